"""Corrections that the user has painted into a segmentation, as labels to learn from."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any

import dask.array as da
import numpy as np
from napari.layers import Labels
from numpy.typing import NDArray

from napari_kdunet import core
from napari_kdunet.core.labels import class_index
from napari_kdunet.core.volumes import check_labels
from napari_kdunet.widgets.layers import RESULT

if TYPE_CHECKING:
    import napari.viewer

    from napari_kdunet.core import TrainConfig, Volume
    from napari_kdunet.widgets.results import Result

__all__ = ["corrected_mask", "with_corrections"]


def corrected_mask(viewer: napari.viewer.Viewer) -> tuple[Labels, Result]:
    """The mask by *Segment* that is selected, or else the topmost one, and the result that it shows.

    Raises
    ------
    LabelsError
        If there is none.
    """
    layers = [viewer.layers.selection.active, *reversed(viewer.layers)]
    for layer in layers:
        if isinstance(layer, Labels) and RESULT in layer.metadata:
            return layer, layer.metadata[RESULT]
    raise core.LabelsError(
        "there is nothing to correct: segment the volume, and paint into its mask where it is wrong."
    )


def with_corrections(result: Result, raw: Volume, earlier: Volume | None, config: TrainConfig) -> Volume:
    """Labels of the corrected slices, and the earlier labels of the others, to be read with ``ignore=0``.

    Parameters
    ----------
    result : Result
        A segmentation, some of whose slices the user has corrected; these are copied.
    raw : Volume
        The image.
    earlier : Volume, optional
        Its labels.
    config : TrainConfig
        Classes, ignore value and which slices of the earlier labels count.

    Returns
    -------
    Volume
        ZYX uint8, lazy: 0 where nobody has looked, 1 = background, 2 and up = classes.

    Raises
    ------
    LabelsError
        If nothing was corrected, or the earlier labels do not fit the image.
    """
    from napari_kdunet.core.splits import labelled_slices  # not at the top: it imports torch

    corrected = result.corrected_slices()
    if not corrected:
        raise core.LabelsError("nothing is corrected yet: paint into the mask where it is wrong, or erase.")
    known: tuple[int, ...] = ()
    if earlier is not None:
        check_labels(raw, earlier)
        with suppress(core.UnlabelledError):
            known = labelled_slices(earlier, config)
    shape = result.mask.shape

    def labels_of(block_id: Any = (0, 0, 0)) -> NDArray[np.uint8]:
        z = block_id[0]
        if z in corrected:
            index = class_index(corrected[z], config.classes)
        elif earlier is not None and z in known:
            index = class_index(earlier.read(z), config.classes, config.ignore)
        else:
            index = np.full(shape[1:], -1, np.int16)
        return (index + 1).astype(np.uint8)[None]

    chunks = ((1,) * shape[0], *((n,) for n in shape[1:]))
    lazy = da.map_blocks(labels_of, chunks=chunks, dtype=np.uint8, meta=np.empty((0, 0, 0), np.uint8))
    return core.open_volume(lazy, name="corrected labels")
