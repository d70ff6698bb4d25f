"""Measure the objects of a layer, and how sure the model is of each; hand corrections on to the mask they are from."""

from __future__ import annotations

import threading
from collections.abc import Callable

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from napari_kdunet.core import Volume, measure
from napari_kdunet.core.volumes.probability import is_probability, read_probability
from napari_kdunet.widgets.segmentation.result import Result

__all__ = ["MaskCorrections", "measure_objects"]


def measure_objects(
    ids: Volume, raw: Volume | None, source: Volume | None, progress: Callable[[float], object] | None = None
) -> pd.DataFrame:
    """Measure objects as `core.measure`, and where `source` is a probability its mean in each: `mean_probability`.

    Errors are those of `core.measure`.
    """
    table = measure(ids, raw, voxel_size=ids.voxel_size, progress=progress)
    if source is not None and source.shape == ids.shape and is_probability(source) and len(table):
        order = table["id"].to_numpy()
        sums = np.zeros(len(order))
        for z in range(len(ids)):
            present, part = np.unique(ids.read(z), return_inverse=True)
            found = np.bincount(part.ravel(), read_probability(source, z).ravel(), len(present))
            inside = present != 0
            sums[np.searchsorted(order, present[inside])] += found[inside]
        table["mean_probability"] = sums / table["voxels"]
    return table


class MaskCorrections:
    """Hands what is changed in objects on to the mask of *Segment* that they were found in.

    What the user adds to an object becomes foreground there, and what is deleted background; what finding the objects
    itself has left out or filled stays as it was. The mask is then one that *Train on corrections* learns from.

    Parameters
    ----------
    result : Result
        The segmentation.
    ids : Volume
        The objects as they were found.
    """

    def __init__(self, result: Result, ids: Volume) -> None:
        self.result = result
        self._start = [np.packbits(ids.read(z) != 0) for z in range(len(ids))]
        self._known = list(self._start)
        self._before: dict[int, NDArray[np.uint8]] = {}  # slices of the mask as they were
        self._lock = threading.Lock()

    def hand_on(self, ids: Volume) -> list[int]:
        """Change the mask where the objects have changed since the last call; returns the z of these slices.

        Where a correction was taken back, the mask is again as it was. From any thread.
        """
        changed = []
        with self._lock:
            for z, known in enumerate(self._known):
                inside = ids.read(z) != 0
                now = np.packbits(inside)
                if not np.array_equal(now, known):
                    before = self._before.setdefault(z, np.array(self.result.mask[z]))
                    undone = inside == _unpacked(self._start[z], inside.shape)
                    corrected = np.where(inside, self.result.foreground_class(z), 0).astype(np.uint8)
                    self.result.paint(z, _unpacked(now ^ known, inside.shape), np.where(undone, before, corrected))
                    self._known[z] = now
                    changed.append(z)
        return changed


def _unpacked(bits: NDArray[np.uint8], shape: tuple[int, ...]) -> NDArray[np.bool_]:
    return np.unpackbits(bits, count=shape[0] * shape[1]).astype(bool).reshape(shape)
