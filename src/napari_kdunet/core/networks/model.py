"""A model: a network and all that is needed to apply it, in one ``.safetensors`` file. No pickle is ever loaded."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from napari_kdunet import __version__
from napari_kdunet.core.config.limits import LEAST_PIXEL_SIZE, VIEWS, check_views
from napari_kdunet.core.config.training import check_setting
from napari_kdunet.core.errors import ConfigError, ModelError
from napari_kdunet.core.files import is_file
from napari_kdunet.core.networks.bundled import bundled_models
from napari_kdunet.core.networks.class_names import TWO_CLASSES, has_boundary
from napari_kdunet.core.networks.model_file import DamagedError, TensorFile, save_tensors
from napari_kdunet.core.networks.protocol import Counted, Network, UsualUNet
from napari_kdunet.core.networks.unet import KUNet

__all__ = ["Model", "ModelLike", "load_model"]

_FORMAT = 1
_WITH_CONTEXT = 2  # the format of a network that sees neighbouring slices, which older versions cannot apply
_FORM = KUNet.FORM[:-1]  # what the network is rebuilt from, except `context`, which files without it do not name
_LONGEST_NAME = 100  # characters of a class's name


@dataclass(frozen=True)
class Model:
    """A network and all that is needed to apply it.

    Attributes
    ----------
    net : nn.Module
        The network, which maps (N, channels, Y, X) float images, standardised slice by slice, to (N, classes, Y, X)
        logits. A `KUNet`, or a teacher's own module, which can be applied but not saved.
    pixel_size : float
        Pixel size in nm that the network works at; 0 is the image's own.
    threshold : float
        Foreground probability above which a pixel is foreground, chosen on validation.
    class_names : tuple of str
        Names of the classes, background first. The default becomes ``class 1``, ``class 2`` and so on if the network
        has more than two classes.
    summary : dict
        How the network was trained: settings, split, scores. JSON values only.
    context_distance : float
        Distance in nm between the slices that the network sees (`context`); 0 is that between a volume's own slices.

    Raises
    ------
    ModelError
        If the network has an even number of input channels.
    """

    net: nn.Module
    pixel_size: float = 10.0
    threshold: float = 0.5
    class_names: tuple[str, ...] = TWO_CLASSES
    summary: dict[str, Any] = field(default_factory=dict)
    context_distance: float = 0.0

    def __post_init__(self) -> None:
        self.net.eval()
        for name in ("pixel_size", "threshold", "context_distance"):  # numpy's numbers are unknown to JSON and C
            object.__setattr__(self, name, float(getattr(self, name)))
        if self.traits.channels % 2 == 0:
            raise ModelError(
                f"the network has {self.traits.channels} input channels: it needs an odd number, the slice itself "
                "between as many neighbours on each side."
            )
        classes = self.traits.classes
        if self.class_names == TWO_CLASSES and classes != 2:
            names = ("background", *(f"class {i}" for i in range(1, classes)))
            object.__setattr__(self, "class_names", names)

    @property
    def traits(self) -> Network:
        """What the network states of itself: `channels`, `classes`, `multiple`, `reach` and `k`.

        For a module that does not state them, `UsualUNet` has values that suit the usual U-Nets.
        """
        return self.net if isinstance(self.net, Network) else UsualUNet()

    @property
    def context(self) -> int:
        """Number of neighbouring slices that the network sees on each side of a slice."""
        return self.traits.channels // 2

    @property
    def boundary(self) -> bool:
        """Whether the last class is the outlines of objects, a part of the foreground: `TrainConfig.boundary`."""
        return has_boundary(self.class_names)

    @property
    def adapts(self) -> bool:
        """Whether the model is marked as best with batch normalisation statistics of the image that it is applied to.

        Generalists are. `predict` then takes the statistics by itself, as `adapt_statistics` does.
        """
        return self.summary.get("statistics") == "volume"

    @property
    def views(self) -> int:
        """Number of views (see `predict`) that the model is marked as best averaged over; 1 if it is not marked."""
        views = self.summary.get("views")
        return views if isinstance(views, int) and views in VIEWS else 1

    def with_views(self, views: int) -> Model:
        """Return the same model, marked as best averaged over this number of views: 1, 2, 4 or 8.

        Raises
        ------
        ConfigError
            If `views` is another number.
        """
        check_views(views)
        return replace(self, summary=self.summary | {"views": views})

    @property
    def parameter_count(self) -> int:
        """Number of learnable parameters."""
        net = self.net
        return net.parameter_count if isinstance(net, Counted) else sum(p.numel() for p in net.parameters())

    @property
    def form(self) -> dict[str, Any]:
        """Settings of training that the network fixes: a training that starts from it must have the same.

        Raises
        ------
        ModelError
            If the network is not a `KUNet`.
        """
        net = self.net
        if not isinstance(net, KUNet):
            raise ModelError(f"a {type(net).__name__} is not a k-Unet: it can teach and predict, but not be saved.")
        return net.form

    @property
    def form_and_pixel_size(self) -> dict[str, Any]:
        """Settings of a training that continues from this model unchanged: form, outlines, sizes in nm.

        Raises
        ------
        ModelError
            If the network is not a `KUNet`.
        """
        sizes = {"pixel_size": self.pixel_size, "context_distance": self.context_distance}
        return self.form | {"boundary": self.boundary} | sizes

    def describe(self) -> dict[str, Any]:
        """Return all but the weights as JSON values, as in `napari-kdunet info` and the file's metadata.

        Raises
        ------
        ModelError
            If the network is not a `KUNet`.
        """
        form = self.form
        context = {"context": form.pop("context"), "context_distance": self.context_distance}
        return {
            "format": _WITH_CONTEXT if self.context else _FORMAT,
            "version": __version__,
            **form,
            **(context if self.context else {}),  # a file without it is as older versions write and read it
            "parameters": self.parameter_count,
            "normalisation": "standardised slice by slice",
            "pixel_size": self.pixel_size,
            "threshold": self.threshold,
            "class_names": list(self.class_names),
            "summary": self.summary,
        }

    def save(self, path: str | Path) -> Path:
        """Write the model to a ``.safetensors`` file, atomically, and return its path.

        Raises
        ------
        ModelError
            If the network is not a `KUNet`.
        OutputError
            If the file cannot be written.
        """
        weights = {name: value.contiguous() for name, value in self.net.state_dict().items()}
        return save_tensors(path, weights, self.describe())


ModelLike: TypeAlias = Model | str | Path
"""A model, its ``.safetensors`` file, or the name of a bundled one."""


def load_model(source: ModelLike) -> Model:
    """Read a model from a ``.safetensors`` file or by the name of a bundled one; a `Model` is returned as it is.

    Raises
    ------
    ModelError
        If there is no such file or name, or the file is damaged or not one of ours.
    """
    if isinstance(source, Model):
        return source
    if not isinstance(source, str | Path):
        raise ModelError(
            f"a {type(source).__name__:.60} is no model: give a Model, its file, or the name of a bundled one."
        )
    path = Path(source)
    if not is_file(path) and str(source) in bundled_models():
        path = bundled_models()[str(source)]
    if not is_file(path):
        known = ", ".join(bundled_models())
        hint = f"give a .safetensors file or one of {known}" if known else "give a .safetensors file"
        raise ModelError(f"no model {str(path)!r}: {hint}.")
    try:
        file = TensorFile.open(path)
        metadata = file.metadata
        version = metadata.get("format")
        if isinstance(version, int) and version > _WITH_CONTEXT:
            raise ModelError(f"{path} was written by napari-kdunet {metadata.get('version')!r:.20}: update to read it.")
        net = _network(metadata)
        file.expect(net.state_dict())
        more = _application(metadata)
        _fill(net, file.read())
    except (DamagedError, ConfigError) as error:
        reason = str(error).rstrip(".")[:150]
        raise ModelError(f"{path} is not a model of napari-kdunet or is damaged ({reason}).") from error
    return Model(net, **more)


def _network(metadata: dict[str, Any]) -> KUNet:
    """Make the network of a file's metadata, without memory for its weights; raise `DamagedError`, `ConfigError`."""
    missing = [name for name in (*_FORM, "pixel_size", "threshold", "class_names", "summary") if name not in metadata]
    if missing:
        raise DamagedError(f"its metadata has no {missing[0]}")
    form = {name: metadata[name] for name in _FORM} | {"context": metadata.get("context", 0)}
    for name, value in form.items():
        check_setting(name, value if isinstance(value, int | float) or len(str(value)) < 40 else "...")
    with torch.device("meta"):
        return KUNet(**form, init="torch")  # for "he" torch takes seconds to import what computes on meta


def _application(metadata: dict[str, Any]) -> dict[str, Any]:
    """Read all of a `Model` but the network from a file's metadata; raise `DamagedError`, `ConfigError`."""
    size, threshold, names, summary = (metadata[n] for n in ("pixel_size", "threshold", "class_names", "summary"))
    if type(size) not in (int, float) or not (size == 0 or LEAST_PIXEL_SIZE <= size <= 1e6):
        raise DamagedError("its pixel_size is not a number of nm that a network can work at")
    if type(threshold) not in (int, float) or not 0 <= threshold < 1:
        raise DamagedError("its threshold is not a probability below 1")
    if not isinstance(names, list) or not all(isinstance(name, str) and len(name) <= _LONGEST_NAME for name in names):
        raise DamagedError("its class_names are not a list of names")
    if len(names) != metadata["classes"] and tuple(names) != TWO_CLASSES:  # as older versions wrote always
        raise DamagedError(f"it has {len(names)} class_names for {metadata['classes']} classes")
    if not isinstance(summary, dict):
        raise DamagedError("its summary is not an object")
    distance = metadata.get("context_distance", 0.0)
    check_setting("context_distance", distance)
    sizes = {"pixel_size": float(size), "context_distance": float(distance)}
    return {**sizes, "threshold": float(threshold), "class_names": tuple(names), "summary": summary}


def _fill(net: KUNet, weights: dict[str, Tensor]) -> None:
    """Load weights into a network of `_network`; raise `DamagedError` if with them its output would not be finite."""
    types = {name: value.dtype for name, value in net.state_dict().items()}
    weights = {name: value.to(types[name]) for name, value in weights.items()}
    for name, value in weights.items():
        if not value.isfinite().all() or (name.endswith("running_var") and (value < 0).any()):
            raise DamagedError(f"{name} holds a number that is not finite, or a negative variance")
    net.load_state_dict(weights, assign=True)
