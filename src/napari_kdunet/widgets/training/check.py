"""Checks if no slice can be held out: one stroke in five is kept aside, or two passes of the model are compared.

The IoU on the labels that a network learns from is no measure: on a few strokes it is soon near 1, whatever the network
is worth.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from napari_kdunet import core
from napari_kdunet.core.volumes.labels import read_classes
from napari_kdunet.widgets.training.corrections import labels_of_slices

if TYPE_CHECKING:
    from napari_kdunet.core import Model, TrainConfig, Volume

__all__ = ["STROKES", "Agreement", "KeptAside", "add_agreement", "keep_strokes_aside", "name_check"]

#: Value of `Started.validated_on`, and of "on" in the validation of a model's summary, for strokes kept aside.
STROKES = "strokes kept aside"

_SHARE = 5  # one stroke in this many is kept aside
_LEAST = 3  # least number of strokes of each class
_TOUCHING = np.ones((3, 3), bool)


@dataclass(frozen=True)
class Agreement:
    """Agreement, as an IoU, of two passes of the best model: over a slice as it is and over its mirror image."""

    iou: float


@dataclass(frozen=True)
class KeptAside:
    """Labels to learn from, labels to check with, and the number of strokes in the latter."""

    train: Volume
    check: Volume
    strokes: int


def keep_strokes_aside(labels: Volume, config: TrainConfig) -> KeptAside | None:
    """Keep one stroke in five aside if no slice can be held out; a stroke is a connected component in one slice.

    Returns None if slices can be held out, if whole slices are labelled (`config.ignore` is None), or if a class has
    fewer than three strokes.

    Raises
    ------
    UnlabelledError
        If nothing is labelled, or nothing as foreground.
    """
    from napari_kdunet.core.data.splits import held_out_slices, labelled_slices  # they import torch

    slices = labelled_slices(labels, config)
    if config.ignore is None or held_out_slices(slices, config.val_share):
        return None
    indices = {z: read_classes(labels, z, classes=config.label_classes, ignore=config.ignore) for z in slices}
    strokes = _strokes(indices, config.label_classes)
    if min(map(len, strokes)) < _LEAST:
        return None
    rng = np.random.default_rng(config.seed)
    kept = [
        of_class[i]
        for of_class in strokes
        for i in rng.choice(len(of_class), max(1, len(of_class) // _SHARE), replace=False)
    ]
    check = {z: np.full_like(index, -1) for z, index in indices.items()}
    for z, where in kept:
        check[z][where], indices[z][where] = indices[z][where], -1

    def volume(of: dict[int, NDArray[np.int16]], name: str) -> Volume:
        return labels_of_slices(labels.shape, name, of.__getitem__, set(of))

    return KeptAside(volume(indices, labels.name), volume(check, f"{labels.name}, kept aside"), len(kept))


def _strokes(indices: dict[int, NDArray[np.int16]], classes: int) -> list[list[tuple[int, Any]]]:
    """Return the strokes of each class: z, and a mask of the pixels (YX)."""
    strokes: list[list[tuple[int, Any]]] = [[] for _ in range(classes)]
    for z, index in indices.items():
        for of_class, found in zip(range(classes), strokes, strict=True):
            parts, _ = ndimage.label(index == of_class, structure=_TOUCHING)
            for number in range(1, int(parts.max()) + 1):
                found.append((z, parts == number))
    return strokes


def name_check(events: Iterator[Any], kept: KeptAside) -> Iterator[Any]:
    """Yield the events, in which the validation is said to be on the strokes that were kept aside."""
    for event in events:
        if isinstance(event, core.Started):
            note = f"{kept.strokes} strokes are kept aside and not learnt from: the check is how well they are found."
            event = replace(event, validated_on=STROKES, notes=(*event.notes, note))
        elif isinstance(event, core.Validated | core.Done):
            event = replace(event, model=_named(event.model))
        yield event


def _named(model: Model) -> Model:
    validation = {**model.summary.get("validation", {}), "on": STROKES}
    return replace(model, summary={**model.summary, "validation": validation})


def add_agreement(events: Iterator[Any], raw: Volume) -> Iterator[Any]:
    """Yield the events, and after the last an `Agreement` if the model was validated on its training slices."""
    started: core.Started | None = None
    for event in events:
        yield event
        if isinstance(event, core.Started):
            started = event
        elif isinstance(event, core.Done) and started is not None and started.validated_on == "training slices":
            yield Agreement(_agreement(event.model, raw, started.val_slices[0]))


def _agreement(model: Model, raw: Volume, z: int) -> float:
    """Return the IoU of the masks of a slice as it is and mirrored along both axes; 1 if both are empty."""
    pixels = raw.read(z)
    first, second = (
        core.predict(model, core.open_volume(image, voxel_size=raw.voxel_size), output="labels", views=1).compute(
            scheduler="synchronous"
        )[0]
        for image in (pixels, pixels[::-1, ::-1])
    )
    second = second[::-1, ::-1]
    either = ((first > 0) | (second > 0)).sum()
    return float(((first > 0) & (second > 0)).sum() / either) if either else 1.0
