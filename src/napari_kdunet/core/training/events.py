"""The events that a training yields to its consumer, in their order.

``Started``, then for each step ``Stepped`` and now and then ``Validated`` followed by ``Saved``, at last ``Done``.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from napari_kdunet.core.networks.model import Model

__all__ = ["Done", "Event", "Saved", "Started", "Stepped", "Validated"]


@dataclass(frozen=True)
class Started:
    """The data is loaded and the first step is about to run."""

    parameters: int
    """Learnable parameters of the network that trains."""
    device: str
    """Device of the training, e.g. ``cpu``."""
    step: int
    """Steps already done (above 0 when resumed)."""
    labelled_slices: tuple[int, ...]
    """z of the slices with labels to train on, one volume after the other."""
    unlabelled_slices: int
    """Number of slices without labels, which are trained on with the teacher alone."""
    val_slices: tuple[int, ...]
    """z of the validation slices, one volume after the other."""
    validated_on: str
    """``held-out slices``, ``given volume``, ``training slices`` or ``teacher`` (agreement with it); with several
    volumes each kind that occurs, joined by ``and``."""
    prior_ce: float
    """Cross entropy of the class prior on the validation slices, nats a pixel: the value of a collapsed network."""
    notes: tuple[str, ...] = ()
    """Assumptions that were made, one sentence each (unknown pixel size, a sample of a large volume, ...)."""
    val_volumes: tuple[str, ...] = ()
    """Names of the volumes that are validated on, in the order of `Validated.volume_ious`."""
    has_truth: bool = True
    """Whether labels tell which model is best; without them the latest is kept."""


@dataclass(frozen=True)
class Stepped:
    """One step was done."""

    step: int
    """Steps done so far."""
    fraction: float
    """Share of the budget that is used up, 0 to 1."""
    seconds: float
    """Active seconds so far, pauses left out."""
    loss: float
    """Total training loss of this batch."""
    hard: float
    """Part of the loss that comes from the labels; nan if there is none."""
    soft: float
    """Part from the teacher or a kept start model, tau squared included but not lambda; nan if there is none."""
    lr: float
    """Learning rate of this step."""
    data_seconds: float
    """Seconds that this step waited for its batch (patches and augmentation), which is made ahead."""


@dataclass(frozen=True)
class Validated:
    """The (averaged) network was scored on the validation slices at their own resolution.

    Scores are means over the validation volumes.
    """

    step: int
    seconds: float
    """Active seconds so far."""
    ce: float
    """Mean cross entropy, nats a pixel; twice this is the paper's figure."""
    iou: float
    """Foreground IoU at `threshold`."""
    threshold: float
    """Foreground threshold: that of the settings, else the one chosen on these slices (`Curve.best_threshold`)."""
    best: bool
    """Whether this model is the one to keep: the best so far, or without labels (`Started.has_truth`) the latest."""
    model: Model
    """The network as it is now, ready for prediction; later steps do not change it."""
    volume_ious: tuple[float, ...] = ()
    """Foreground IoU at `threshold` of each volume of `Started.val_volumes`; `iou` is their mean."""

    @property
    def paper_ce(self) -> float:
        """Cross entropy as the paper counts it: summed over both softmax channels."""
        return 2 * self.ce


@dataclass(frozen=True)
class Saved:
    """The state to resume from was written."""

    step: int
    path: Path


@dataclass(frozen=True)
class Done:
    """The budget is used up, or there was no more progress."""

    step: int
    seconds: float
    reason: str
    """``budget`` or ``patience``."""
    model: Model
    """The best model; without labels the latest."""
    iou: float
    """Validation IoU of that model."""
    collapsed: bool
    """Whether even the best model gives nearly the same output everywhere."""
    path: Path | None
    """Path of the best model; None if none was asked for, or the model collapsed."""


Event: TypeAlias = Started | Stepped | Validated | Saved | Done
