"""The settings of a training, each with its unit, bounds and one sentence of help; the paper's and others by name."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from types import MappingProxyType, NoneType
from typing import Any, Self

from napari_kdunet.core.config.limits import LEAST_PIXEL_SIZE
from napari_kdunet.core.config.setting import check_field, check_fields, setting
from napari_kdunet.core.errors import ConfigError

__all__ = ["GOING_ON", "LIVE", "PAPER", "TrainConfig", "check_setting"]


def _are_positive(weights: tuple[Any, ...]) -> bool:
    return all(isinstance(weight, int | float) and 0 < weight < math.inf for weight in weights)


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How to train a k-Unet from labels.

    With the defaults tiny networks train reliably; `TrainConfig.paper()` gives the settings of the paper.

    Raises
    ------
    ConfigError
        If a value is out of the bounds in its field's metadata, or values contradict each other.
    """

    k: int = setting(16, "Channels at the top of the network; doubled at each of the down-samplings.", ge=1, le=512)
    bn: bool = setting(True, "Batch normalisation after each 3x3 convolution.")
    depth: int = setting(4, "Number of down-samplings.", ge=1, le=6, advanced=True)
    classes: int = setting(2, "Number of classes, background included.", ge=2, le=64, advanced=True)
    context: int = setting(
        0,
        "Neighbouring slices that the network sees on each side of a slice.",
        unit="slices",
        ge=0,
        le=8,
        advanced=True,
    )
    context_distance: float = setting(
        0.0,
        "Distance to the neighbouring slices; 0: that between the slices of the volume (of several, the largest).",
        unit="nm",
        ge=0,
        le=1e6,
        advanced=True,
    )
    boundary: bool = setting(
        False,
        "Learn the outlines of objects as a third class, to separate those that touch; best if each has its own label.",
        advanced=True,
    )
    activation: str = setting(
        "leaky_relu",
        "Activation function; leaky_relu keeps the units of tiny networks from dying.",
        choices=("leaky_relu", "relu"),
        advanced=True,
    )
    init: str = setting(
        "torch", "Initial weights: He with zero biases, or PyTorch's own.", choices=("he", "torch"), advanced=True
    )
    prior_bias: bool = setting(
        True,
        "Set the initial bias of the output layer by each class's share of the labels, or without them of the "
        "teacher's output.",
        advanced=True,
    )

    steps: int | None = setting(
        None, "Number of training steps (batches); leave empty to set minutes instead.", ge=1, types=(int, NoneType)
    )
    minutes: float | None = setting(
        None,
        "Training time; 5 where neither steps nor minutes are given.",
        unit="minutes",
        gt=0,
        types=(float, NoneType),
    )
    batch: int = setting(2, "Patches per training step.", unit="patches", ge=1, le=1024, advanced=True)
    patch: int = setting(
        384,
        "Side of a training patch at the working pixel size; for smaller slices, patches shrink and the batch grows.",
        unit="pixels",
        ge=16,
        le=4096,
    )
    pixel_size: float = setting(
        10.0, "Pixel size that the network works at; 0 is the image's own.", unit="nm", ge=0, le=1e6
    )

    lr: float = setting(
        1e-2, "Learning rate of AdamW; its peak in the one-cycle schedule.", gt=0, le=1.0, advanced=True
    )
    schedule: str = setting(
        "one-cycle",
        "Course of the learning rate: up and down again, or constant.",
        choices=("one-cycle", "constant"),
        advanced=True,
    )
    weight_decay: float = setting(1e-2, "Weight decay of AdamW.", ge=0, le=1.0, advanced=True)
    warmup: float = setting(0.2, "Share of the training in which the learning rate rises.", ge=0, lt=1, advanced=True)
    clip: float = setting(
        1.0, "Gradients with a larger norm are clipped to this; 0 is off.", ge=0, le=1e6, advanced=True
    )
    ema: float = setting(0.995, "Decay of the running average of the weights; 0 is off.", ge=0, lt=1, advanced=True)
    dice: float = setting(1.0, "Weight of the soft Dice loss beside the cross entropy.", ge=0, le=100, advanced=True)
    class_weights: str | tuple[float, ...] = setting(
        "none",
        "Weight of each class in the cross entropy: none (equal), balanced (rare ones more), or a number per class.",
        choices=("none", "balanced"),
        types=(str, tuple),
        advanced=True,
    )

    flips: bool = setting(True, "Augment by mirroring.", advanced=True)
    rotation: float = setting(180.0, "Largest random rotation of a patch.", unit="degrees", ge=0, le=180, advanced=True)
    scale: float = setting(0.15, "Largest random change of a patch's size, relative.", ge=0, le=0.9, advanced=True)
    elastic: float = setting(4.0, "Typical random elastic displacement.", unit="pixels", ge=0, le=64, advanced=True)
    intensity: float = setting(
        0.25, "Largest random change of brightness (in standard deviations) and of contrast (relative).", ge=0, le=1
    )
    zoom: float = setting(
        0.0,
        "Largest random change of the pixel size of a patch, finer or coarser: 2 octaves are a factor of 4.",
        unit="octaves",
        ge=0,
        le=4,
        advanced=True,
    )
    gamma: float = setting(
        0.0,
        "Largest random change of gamma, as a logarithm: 1 means exponents from 1/e to e.",
        ge=0,
        le=2,
        advanced=True,
    )
    local_contrast: float = setting(
        0.0,
        "Equalise local contrast at random: largest share of the equalised patch to mix in.",
        ge=0,
        le=1,
        advanced=True,
    )
    inversion: float = setting(0.0, "Share of the patches whose contrast is inverted.", ge=0, le=1, advanced=True)
    blur: float = setting(
        0.0, "Largest standard deviation of a random Gaussian blur.", unit="pixels", ge=0, le=4, advanced=True
    )
    noise: float = setting(
        0.0, "Largest random white noise, in standard deviations of the image.", ge=0, le=4, advanced=True
    )
    strips: float = setting(0.0, "Share of the patches that get blank strips across them.", ge=0, le=1, advanced=True)
    style: float = setting(
        0.0,
        "Mix in Fourier amplitudes (texture, noise) of another patch from any volume: their largest share.",
        ge=0,
        le=1,
        advanced=True,
    )

    slices: str | tuple[int, ...] = setting(
        "auto",
        "Which slices of each volume are labelled: auto (those that hold any label), all, or their z numbers.",
        choices=("auto", "all"),
        types=(str, tuple),
    )
    ignore: int | None = setting(
        None, "Label value that marks pixels as unlabelled.", ge=-(2**31), le=2**31, types=(int, NoneType)
    )
    volume_weights: str | tuple[float, ...] = setting(
        "even",
        "How often patches are drawn from each of several volumes: equally (even), by area, or a number per volume.",
        choices=("even", "area"),
        types=(str, tuple),
        advanced=True,
    )
    val_share: float = setting(
        0.15,
        "Share of the labelled slices, or of all if none are, from their middle, held out for validation; none if it "
        "is less than one slice.",
        ge=0,
        le=0.9,
    )
    val_slices: int = setting(
        8, "Largest number of slices to validate on, evenly spaced.", ge=1, le=10_000, advanced=True
    )
    threshold: float | None = setting(
        None,
        "Probability above which a pixel is foreground; empty: the best one in validation.",
        gt=0,
        lt=1,
        types=(float, NoneType),
        advanced=True,
    )
    validations: int = setting(
        10, "Number of validations during the training, evenly spaced.", ge=1, le=1_000_000, advanced=True
    )
    patience: int | None = setting(
        None,
        "Stop after this many validations without a better IoU on labels; empty: never stop early.",
        ge=1,
        types=(int, NoneType),
        advanced=True,
    )

    seed: int = setting(0, "Seed of all random numbers.", ge=0, le=2**31 - 1)
    device: str = setting("auto", "Where to compute.", choices=("auto", "cpu", "cuda", "mps"))
    precision: str = setting(
        "32-true",
        "Floating-point precision of the training.",
        choices=("32-true", "bf16-mixed", "16-mixed"),
        advanced=True,
    )
    threads: int | None = setting(
        None,
        "CPU threads; empty chooses by k: one for tiny networks, all cores for others.",
        ge=1,
        le=1024,
        types=(int, NoneType),
        advanced=True,
    )
    memory: float = setting(
        1.0,
        "Largest memory for the training slices; if they need more, an even sample is used.",
        unit="GB",
        gt=0,
        advanced=True,
    )

    def __post_init__(self) -> None:
        check_fields(self)
        if self.boundary and self.classes > 3:
            raise ConfigError(
                f"classes is {self.classes}, but boundary is for one class of objects: leave one of them out."
            )
        if self.boundary:
            object.__setattr__(self, "classes", 3)
        if 0 < self.pixel_size < LEAST_PIXEL_SIZE:
            raise ConfigError(f"pixel_size is {self.pixel_size}: give at least {LEAST_PIXEL_SIZE} nm, or 0.")
        if self.steps is not None and self.minutes is not None:
            raise ConfigError("steps and minutes are both given: give one of them.")
        if self.patch % 2**self.depth:
            raise ConfigError(f"patch is {self.patch}: it must be a multiple of 2**depth = {2**self.depth} pixels.")
        if self.bn and self.batch == 1 and self.patch == 2**self.depth:
            raise ConfigError(
                f"batch is 1 and patch is {self.patch}: too little for batch normalisation, give a larger one."
            )
        if isinstance(self.class_weights, tuple) and (
            len(self.class_weights) != self.classes or not _are_positive(self.class_weights)
        ):
            raise ConfigError(f"class_weights is {self.class_weights}: give {self.classes} positive numbers.")
        if isinstance(self.volume_weights, tuple) and not _are_positive(self.volume_weights):
            raise ConfigError(f"volume_weights is {self.volume_weights}: give a positive number for each volume.")
        if isinstance(self.slices, tuple) and not all(isinstance(z, int) and z >= 0 for z in self.slices):
            raise ConfigError(f"slices is {self.slices}: give slice numbers from 0 up.")

    @property
    def budget(self) -> tuple[int | None, float | None]:
        """Budget as (steps, seconds), exactly one of which is not None."""
        if self.steps is not None:
            return self.steps, None
        return None, 60.0 * (5.0 if self.minutes is None else self.minutes)

    def loss_weights(self, used: float) -> tuple[float | None, float | None]:
        """Return the weights of the hard loss (from labels) and of the soft loss (from a teacher).

        Parameters
        ----------
        used : float
            Share of the budget that is used up, 0 to 1.

        Returns
        -------
        tuple of (float or None)
            Weights of the hard and the soft loss; None for a loss that is left out.
        """
        return 1.0, 1.0

    @property
    def teaches_labelled(self) -> bool:
        """Whether the soft loss covers labelled pixels too; a start model that is kept teaches only unlabelled ones."""
        return False

    @property
    def label_classes(self) -> int:
        """Number of classes in the labels: outlines, where the network has them, are derived and not labelled."""
        return 2 if self.boundary else self.classes

    @property
    def temperature(self) -> float:
        """Temperature of the soft loss."""
        return 1.0

    @property
    def confidence_power(self) -> float:
        """Exponent of the teacher's confidence as the weight of a pixel in the soft loss; 0 weights all alike."""
        return 1.0

    @property
    def labels_from(self) -> float:
        """Share of the budget after which the labels replace the teacher; 0 if the loss does not change."""
        return 0.0

    def round_of(self, used: float) -> int:
        """Return the round, from 0, at a used share of the budget; in all but the first the network teaches itself."""
        return 0

    def unlabelled_patches(self, labelled: int, unlabelled: int) -> float:
        """Return the share of patches to draw from unlabelled slices while there is a soft loss.

        Parameters
        ----------
        labelled, unlabelled : int
            Numbers of blocks with and without labels.
        """
        return 0.0

    @classmethod
    def paper(cls, **settings: Any) -> Self:
        """Return the paper's settings: ReLU, PyTorch's initialisation, no BN, plain cross entropy, flips, elastic."""
        return cls(**{**PAPER, **settings})

    def going_on(self) -> Self:
        """Return these settings changed for fine-tuning, so that a good model does not forget what it knows."""
        return replace(self, **GOING_ON)

    def live(self) -> Self:
        """Return these settings changed for training while somebody paints: short steps, a model every two seconds."""
        return replace(self, steps=None, **LIVE)

    def within(self, side: int) -> Self:
        """Return these settings changed for slices with sides of `side` working pixels.

        If the slices are smaller than a patch, patches shrink to their size, and the batch grows so that a step sees as
        many pixels as before.
        """
        patch = max(16, -(-side // 2**self.depth) * 2**self.depth)
        if patch >= self.patch:
            return self
        return replace(self, patch=patch, batch=min(1024, round(self.batch * (self.patch / patch) ** 2)))

    def to_dict(self) -> dict[str, Any]:
        """Return all settings as JSON-ready values."""
        return {name: list(v) if isinstance(v, tuple) else v for name, v in asdict(self).items()}


#: Settings of the paper, as far as it states them (slides; report section 3).
PAPER: Mapping[str, Any] = MappingProxyType(
    {
        "bn": False,
        "activation": "relu",
        "init": "torch",
        "prior_bias": False,
        "dice": 0.0,
        "ema": 0.0,
        "clip": 0.0,
        "lr": 1e-3,
        "schedule": "constant",
        "rotation": 0.0,
        "scale": 0.0,
        "intensity": 0.0,
    }
)

#: Settings of `TrainConfig.going_on`: a constant learning rate, without the peak of one cycle.
GOING_ON: Mapping[str, Any] = MappingProxyType({"lr": 3e-3, "schedule": "constant"})

#: Settings of `TrainConfig.live`: short steps, a running average of the weights over some twenty of them, and a budget
#: that does not run out. All strokes are trained on; they are too few to choose a threshold by.
LIVE: Mapping[str, Any] = MappingProxyType(
    {**GOING_ON, "minutes": 24 * 60.0, "validations": 24 * 60 * 30, "batch": 4, "patch": 128, "ema": 0.95}
    | {"val_share": 0.0, "val_slices": 1, "threshold": 0.5}
)


def check_setting(name: str, value: Any) -> None:
    """Raise `ConfigError` if `TrainConfig` does not allow `value` for the setting `name`, whatever the others are."""
    check_field(next(spec for spec in fields(TrainConfig) if spec.name == name), value)
