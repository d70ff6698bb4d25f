"""The settings of a distillation: those of a training and of the soft loss."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from types import MappingProxyType, NoneType
from typing import Any, Self

from napari_kdunet.core.config.limits import VIEWS
from napari_kdunet.core.config.setting import setting
from napari_kdunet.core.config.training import TrainConfig

__all__ = ["ADAPTING", "DistillConfig"]


@dataclass(frozen=True, kw_only=True)
class DistillConfig(TrainConfig):
    """How to distil a teacher into a k-Unet: the settings of training and those of the soft loss.

    The loss is ``hard + lam * tau**2 * H(P_T^tau, P_S^tau)`` (paper, "The Distillation Procedure"; the factor
    tau² after Hinton et al. 2015).
    """

    k: int = setting(2, "Channels at the top of the student; doubled at each of the down-samplings.", ge=1, le=512)
    tau: float | None = setting(
        None,
        "Temperature: larger values soften the teacher's probabilities and show more of its doubts; empty: 4 with "
        "labels, 1 with the teacher alone.",
        gt=0,
        le=1e3,
        types=(float, NoneType),
    )
    lam: float = setting(
        1.0, "Weight of the teacher relative to the labels: 0 ignores the teacher, 1 counts both equally.", ge=0, le=1e3
    )
    mode: str = setting(
        "best",
        "Learn from labels and teacher (mixed), the teacher alone (soft), or the teacher, then labels "
        "(sequential); best: soft for few labels, else mixed.",
        choices=("best", "mixed", "soft", "sequential"),
    )
    soft_share: float = setting(
        0.5, "Share of the budget that a sequential distillation spends on the teacher.", gt=0, lt=1, advanced=True
    )
    unlabelled_share: float = setting(
        0.5, "Share of the patches that come from slices without labels, if there are any.", ge=0, le=1
    )
    teacher_views: int = setting(
        1,
        "Test-time augmentation of a teacher network: average over mirror images (2, 4) and quarter turns (8).",
        choices=VIEWS,
        advanced=True,
    )
    confidence: float = setting(
        0.0,
        "Weight pixels by the teacher's confidence, |2 p - 1| for its probability p, to this power; 0: all equally.",
        ge=0,
        le=8,
        advanced=True,
    )
    rounds: int = setting(
        1,
        "Equal parts of the budget. The teacher teaches in the first, the student's own answers, renewed and averaged "
        "over 8 views, in each later one.",
        ge=1,
        le=100,
        advanced=True,
    )

    @classmethod
    def adapting(cls, **settings: Any) -> Self:
        """Return settings for adapting a student to an unlabelled image by a teacher that knows this kind of image."""
        return cls(**{**ADAPTING, **settings})

    def for_adapting(self) -> Self:
        """Return these settings for training without labels: fields at their defaults take the values of `adapting`."""
        changed = [spec.name for spec in fields(self) if getattr(self, spec.name) != spec.default]
        return self.adapting(**{name: getattr(self, name) for name in changed})

    def settled(self, sparse: bool) -> dict[str, Any]:
        """Return `mode` and `tau` to train with; for mode "best", `sparse` (at most strokes are labelled) decides.

        The reasons are in docs/recipe.md.
        """
        mode = ("soft" if sparse else "mixed") if self.mode == "best" else self.mode
        return {"mode": mode, "tau": replace(self, mode=mode).temperature}

    @property
    def teaches_labelled(self) -> bool:
        """Whether the soft loss covers labelled pixels too: in distillation it does."""
        return True

    def loss_weights(self, used: float) -> tuple[float | None, float | None]:
        """Return the weights of `TrainConfig.loss_weights` by `mode`: both, soft alone, or first soft and then hard."""
        if self.mode in ("mixed", "best"):
            return 1.0, self.lam
        return (1.0, None) if self.mode == "sequential" and used >= self.labels_from else (None, 1.0)

    @property
    def temperature(self) -> float:
        """Temperature of the soft loss: `tau`, or if that is None 1 in the mode "soft" and 4 in the others."""
        return self.tau if self.tau is not None else 1.0 if self.mode == "soft" else 4.0

    @property
    def confidence_power(self) -> float:
        """Exponent of the teacher's confidence: see `TrainConfig.confidence_power`."""
        return self.confidence

    @property
    def labels_from(self) -> float:
        """Share of the budget after which the labels replace the teacher: see `TrainConfig.labels_from`."""
        return self.soft_share if self.mode == "sequential" else 0.0

    def round_of(self, used: float) -> int:
        """Return the round, from 0, at a used share of the budget: see `TrainConfig.round_of`."""
        return min(int(used * self.rounds), self.rounds - 1)

    def unlabelled_patches(self, labelled: int, unlabelled: int) -> float:
        """Return the share of `TrainConfig.unlabelled_patches`.

        It is `unlabelled_share` while labels are learnt from too, and that of the unlabelled blocks among all blocks
        while the teacher is alone.
        """
        return self.unlabelled_share if self.mode in ("mixed", "best") else unlabelled / (labelled + unlabelled)


#: Settings of `DistillConfig.adapting`: the teacher alone, its probabilities not softened, weighted by its confidence;
#: then the student itself, which has outgrown it (docs/unseen.md).
ADAPTING: Mapping[str, Any] = MappingProxyType(
    {"mode": "soft", "tau": 1.0, "confidence": 1.0, "teacher_views": 4, "intensity": 0.5, "rounds": 4}
)
