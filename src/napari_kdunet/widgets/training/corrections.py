"""Train on the corrections that the user has painted into a segmentation."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import dask.array as da
import numpy as np
from napari.layers import Labels, Layer
from numpy.typing import NDArray

from napari_kdunet import core
from napari_kdunet.core.formatting import format_slices
from napari_kdunet.core.volumes.labels import class_index, read_classes
from napari_kdunet.core.volumes.volume import check_labels
from napari_kdunet.widgets.shared.layers import OBJECTS, RESULT, data_of, segmented_image, volume_of
from napari_kdunet.widgets.workers.process import run_in_process

if TYPE_CHECKING:
    import napari.viewer

    from napari_kdunet.core import Model, TrainConfig, Volume
    from napari_kdunet.widgets.segmentation.result import Result

__all__ = ["corrected_mask", "iter_corrections", "labels_of_slices", "result_of_objects", "results_of_image"]


def corrected_mask(viewer: napari.viewer.Viewer) -> tuple[Labels, Result]:
    """Return the mask of *Segment* to take corrections from, and the result that it shows.

    It is the selected mask, or the one in which the selected objects were found, else the topmost one. Of several
    masks, one that has been corrected comes first, as a new mask lies above it.

    Corrections of objects that were found in a mask are first carried over into that mask.

    Raises
    ------
    LabelsError
        If there is no mask, or its layer is a copy or was given other data.
    """
    active = viewer.layers.selection.active
    layers = [active, *reversed(viewer.layers)]
    for layer in viewer.layers:
        corrections = getattr(layer.metadata.get(OBJECTS), "corrections", None)
        if corrections is not None:
            corrections.hand_on(volume_of(layer))
            if layer is active:
                layers.sort(key=lambda each: getattr(each, "metadata", {}).get(RESULT) is not corrections.result)
    masks = [layer for layer in layers if isinstance(layer, Labels) and RESULT in layer.metadata]
    if not masks:
        raise core.LabelsError(
            "there is nothing to correct: segment the volume, and paint into its mask where it is wrong."
        )
    several = len({layer.name for layer in masks}) > 1
    corrected = (layer for layer in masks if several and layer.metadata[RESULT].is_corrected)
    mask = next(corrected, masks[0])
    if not mask.metadata[RESULT].is_shown_by(data_of(mask)):
        raise core.LabelsError(
            f"{mask.name} is a copy of a mask of Segment, or its data were replaced, so its corrections are "
            "unknown: choose it under Labels, or select the original mask."
        )
    return mask, mask.metadata[RESULT]


def results_of_image(viewer: napari.viewer.Viewer, mask: Labels) -> list[Result]:
    """Return the results that the masks of an image show, from the bottom up, but that of `mask` last."""
    image, own = segmented_image(mask), mask.metadata[RESULT]
    masks = [each for each in viewer.layers if isinstance(each, Labels) and RESULT in each.metadata]
    others = [each.metadata[RESULT] for each in masks if image is not None and segmented_image(each) is image]
    return [*(result for result in dict.fromkeys(others) if result is not own), own]


def result_of_objects(layer: Layer) -> Result | None:
    """Return the segmentation in whose mask the objects of a layer were found; None for any other layer."""
    corrections = getattr(layer.metadata.get(OBJECTS), "corrections", None)
    return None if corrections is None else corrections.result


def iter_corrections(
    results: Sequence[Result],
    raw: Volume,
    earlier: Volume | None,
    config: TrainConfig,
    start: Model,
    keep: bool = True,
) -> Iterator[Any]:
    """Train on all corrected slices and on the earlier labels of others; yields the events of `core.iter_train`.

    No corrected slice is held out. The validation slices are those that a training on the earlier labels would hold
    out, if any: a model from such a training has not been trained on them.

    Parameters
    ----------
    results : sequence of Result
        Segmentations with slices that the user has corrected, which are copied. If a slice is corrected in several, the
        last one counts.
    raw : Volume
        The image.
    earlier : Volume, optional
        Earlier labels of the image.
    config : TrainConfig
        Settings: classes, ignore value, which slices of the earlier labels count, and which share of them is held out.
    start : Model
        The model to continue from.
    keep : bool
        Whether `start` teaches what earlier strokes leave unlabelled, as in `core.iter_train`; corrected slices are
        labelled throughout.

    Raises
    ------
    LabelsError
        If nothing was corrected, or the earlier labels do not fit the image.
    """
    corrected = {z: labels for result in results for z, labels in result.corrected_slices().items()}
    if not corrected:
        raise core.LabelsError("nothing is corrected yet: paint into the mask where it is wrong, or erase.")
    known, held_out = _earlier_slices(raw, earlier, config, corrected)

    def index_of(z: int) -> NDArray[np.int16]:
        if z in corrected:
            return class_index(corrected[z], config.label_classes)
        assert earlier is not None
        return read_classes(earlier, z, classes=config.label_classes, ignore=config.ignore)

    shape = results[-1].mask.shape
    train_labels = labels_of_slices(shape, "corrected labels", index_of, (corrected.keys() | known) - held_out)
    val = (raw, labels_of_slices(shape, "earlier labels", index_of, held_out)) if held_out else None
    settings = replace(config, ignore=0, slices="auto", val_share=0.0)
    keep = keep and config.ignore is not None  # a corrected slice is labelled throughout
    for event in run_in_process(core.iter_train, raw, train_labels, settings, start=start, keep=keep, val=val):
        if isinstance(event, core.Started):
            where = f"earlier labels, z = {', '.join(map(str, event.val_slices))}" if val else "training slices"
            which = "slices are all" if len(corrected) > 1 else "slice is"
            note = f"the corrected {which} trained on (z = {format_slices(corrected)}), and the IoU is that of {where}."
            event = replace(event, notes=(*event.notes, note))
        yield event


def _earlier_slices(
    raw: Volume, earlier: Volume | None, config: TrainConfig, corrected: dict[int, Any]
) -> tuple[set[int], set[int]]:
    """Return the z of the slices with earlier labels, and of those among them to validate on."""
    from napari_kdunet.core.data.splits import held_out_slices, is_labelled, labelled_slices  # they import torch

    known: tuple[int, ...] = ()
    if earlier is not None:
        check_labels(raw, earlier)
        with suppress(core.UnlabelledError):
            known = labelled_slices(earlier, config)
    held_out = {z for z in held_out_slices(known, config.val_share) if z not in corrected}
    if earlier is None or not any(is_labelled(earlier, z, config)[1] for z in held_out):
        held_out = set()
    return set(known), held_out


def labels_of_slices(
    shape: tuple[int, int, int], name: str, index_of: Callable[[int], NDArray[np.int16]], slices: set[int]
) -> Volume:
    """Return labels of some slices, lazy, ZYX uint8: 0 = not annotated, 1 = background, 2 and up = the other classes.

    `index_of` returns the class indices (YX) of a slice, -1 where it is not annotated.
    """

    def labels_of(block_id: Any = (0, 0, 0)) -> NDArray[np.uint8]:
        z = block_id[0]
        if z not in slices:
            return np.zeros((1, *shape[1:]), np.uint8)
        return (index_of(z) + 1).astype(np.uint8)[None]

    chunks = ((1,) * shape[0], *((n,) for n in shape[1:]))
    lazy = da.map_blocks(labels_of, chunks=chunks, dtype=np.uint8, meta=np.empty((0, 0, 0), np.uint8))
    return core.open_volume(lazy, name=name)
