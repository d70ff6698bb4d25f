"""The result of segmenting a volume: probabilities and a mask, filled slice by slice."""

from __future__ import annotations

import shutil
import tempfile
import threading
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil  # type: ignore[import-untyped]
import zarr
from numpy.typing import NDArray

from napari_kdunet import core

__all__ = ["Result", "segment"]

_ROUNDING = 1e-3  # a float16 probability may lie on the other side of a threshold this near
_TILE = 1024  # of a chunk in a temporary Zarr


class Result:
    """Probabilities and a mask, ZYX, in memory, or of a very large volume in a temporary Zarr.

    The Zarr is deleted with this object.

    The mask can be painted on: a new threshold changes only voxels whose probability lies between it and the old one.

    Parameters
    ----------
    model : Model
        The model that segments; with more than two classes the class of each voxel is kept too.
    shape : tuple of int
        Of the volume, ZYX.
    threshold : float
        Foreground probability above which a voxel is not background.
    memory : int, optional
        Bytes of memory that it may take; a quarter of the free memory if None.
    inverted : bool
        Whether bright and dark of the image are exchanged for the model.

    Attributes
    ----------
    probability : array
        float16 in [0, 1]; 0 where nothing has been segmented yet.
    mask : array
        uint8; 0 is background.
    done : ndarray
        bool, (Z,): whether each slice has been segmented.
    folder : Path or None
        Folder of the temporary Zarr, if there is one.

    Raises
    ------
    OutputError
        If neither memory nor disk suffice.
    """

    def __init__(
        self,
        model: core.Model,
        shape: tuple[int, int, int],
        threshold: float,
        *,
        memory: int | None = None,
        inverted: bool = False,
    ) -> None:
        self.model, self.threshold, self.inverted = model, threshold, inverted
        multiclass = len(model.class_names) > 2
        self.done = np.zeros(shape[0], bool)
        self._applied = np.full(shape[0], np.nan)  # threshold that was applied to each slice of the mask
        self._lock = threading.Lock()
        size = int(np.prod(shape, dtype=np.int64)) * (4 if multiclass else 3)
        limit = psutil.virtual_memory().available // 4 if memory is None else memory
        self.folder = _temporary_folder(size) if size > limit else None
        if self.folder is not None:
            weakref.finalize(self, shutil.rmtree, self.folder, ignore_errors=True)  # at exit too
        self.probability = self._make("probability", shape, np.float16)
        self.mask = self._make("mask", shape, np.uint8)
        self._classes = self._make("classes", shape, np.uint8) if multiclass else None

    def _make(self, name: str, shape: tuple[int, int, int], dtype: Any) -> Any:
        if self.folder is None:
            return np.zeros(shape, dtype)
        chunks = (1, *(min(n, _TILE) for n in shape[1:]))
        return zarr.create_array(self.folder / f"{name}.zarr", shape=shape, chunks=chunks, dtype=dtype, fill_value=0)

    def put(self, z: int, probability: NDArray[np.float32], classes: NDArray[np.uint8] | None = None) -> None:
        """Store slice `z`: its foreground probability (YX) and, with several classes, the likeliest class."""
        with self._lock:
            level = self.threshold
            foreground = probability > level
            self.probability[z] = probability
            if self._classes is not None:
                self._classes[z] = classes
            self.mask[z] = foreground if classes is None else np.where(foreground, classes, 0)
            self.done[z], self._applied[z] = True, level

    def missing(self, near: int) -> int | None:
        """The slice nearest to `near` that is not segmented yet."""
        return _nearest(np.flatnonzero(~self.done), near)

    def outdated(self, near: int) -> int | None:
        """The slice nearest to `near` whose mask has an outdated threshold."""
        return _nearest(np.flatnonzero(self.done & (self._applied != self.threshold)), near)

    def apply(self, z: int) -> None:
        """Apply the threshold to slice `z` of the mask; nothing is predicted again."""
        with self._lock:
            old, new = float(self._applied[z]), self.threshold
            if not self.done[z] or old == new:
                return
            probability, mask = self.probability[z], self.mask[z]
            between = (probability >= min(old, new)) & (probability <= max(old, new))
            value = 1 if self._classes is None else self._classes[z]
            self.mask[z] = np.where(between, np.where(probability > new, value, 0), mask)
            self._applied[z] = new

    def corrected_slices(self) -> dict[int, NDArray[np.uint8]]:
        """Copies of the slices of the mask, by z, that the user has painted on: they differ from the prediction."""
        corrected = {}
        for z in np.flatnonzero(self.done).tolist():
            with self._lock:
                above, mask = self.probability[z] - self._applied[z], self.mask[z]
            value = 1 if self._classes is None else self._classes[z]
            if ((mask != np.where(above > 0, value, 0)) & (np.abs(above) > _ROUNDING)).any():
                corrected[z] = np.array(mask)
        return corrected

    def catch_up(self, focus: Focus) -> Iterator[int]:
        """Apply the threshold to all slices, the nearest to the focus first; yields z of each that changed."""
        while (z := self.outdated(focus.z)) is not None:
            self.apply(z)
            yield z


class Focus:
    """The current slice, set by the GUI thread: workers begin with the slices nearest to it."""

    def __init__(self, z: int = 0) -> None:
        self.z = z


def segment(volume: core.Volume, result: Result, focus: Focus) -> Iterator[int]:
    """Segment the missing slices of `result` by its model, the nearest to the focus first; yields z of each.

    Only one slice of the volume is in memory at a time.
    """
    model = result.model
    volume = core.open_volume(volume, invert=result.inverted)
    probability = core.predict(model, volume)
    multiclass = len(model.class_names) > 2
    classes = core.predict(model, volume, output="labels", threshold=0.0) if multiclass else None
    while (z := result.missing(focus.z)) is not None:
        labels = None if classes is None else classes[z].compute(scheduler="synchronous")
        result.put(z, probability[z].compute(scheduler="synchronous"), labels)
        yield z


def _nearest(slices: NDArray[np.intp], near: int) -> int | None:
    return int(slices[np.argmin(np.abs(slices - near))]) if len(slices) else None


def _temporary_folder(size: int) -> Path:
    free = shutil.disk_usage(tempfile.gettempdir()).free
    if free < size:
        raise core.OutputError(
            f"the result may take {size / 1e9:.1f} GB, and {tempfile.gettempdir()} has {free / 1e9:.1f} GB free: make "
            "room, set TMPDIR to a larger disk, or run `napari-kdunet predict`, which writes to where you say."
        )
    return Path(tempfile.mkdtemp(prefix="napari-kdunet-"))
