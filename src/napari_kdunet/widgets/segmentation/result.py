"""The result of segmenting a volume: probabilities and a mask, filled slice by slice, and large slices tile by tile."""

from __future__ import annotations

import mmap
import shutil
import tempfile
import threading
import weakref
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, cast

import numpy as np
import psutil  # type: ignore[import-untyped]
import zarr
from numpy.typing import NDArray

from napari_kdunet import core
from napari_kdunet.widgets.workers.stopping import stoppable, was_stopped

if TYPE_CHECKING:
    from napari_kdunet.widgets.segmentation.recipe import Planes

__all__ = ["Result", "segment"]

_ROUNDING = 1e-3  # rounding to float16 may move a probability this near to the threshold to its other side
_TILE = 1024  # pixels: side of a chunk in a temporary Zarr, and of a tile predicted between two checks for a stop
_SLICE_BYTES = 2**30  # most memory for the result of a single slice
_ROWS = 256  # rows of a slice that are processed at a time
_DRAWN_WHOLE = 16_384  # pixels: the longest side of a slice that napari draws, and repaints in part, as one texture
_COARSEST = 1024  # pixels: the longest side of the last level of a pyramid, at most

Window: TypeAlias = tuple[slice, slice]
"""Rows and columns of a slice."""


class Result:
    """Probabilities and a mask, ZYX, in memory or, for a very large volume, in a temporary folder.

    The folder holds Zarr arrays or, for a single slice and for slices that are drawn as pyramids, memory-mapped files.
    It is deleted with this object.

    The mask can be painted on: a new threshold changes only voxels whose probability lies between it and the old one.

    Parameters
    ----------
    model : Model
        The model that segments; with more than two classes the class of each voxel is kept too.
    shape : tuple of int
        Shape of the volume, ZYX.
    threshold : float
        Foreground probability above which a voxel is not background.
    memory : int, optional
        Bytes of memory that the result may take; if None, a quarter of the free memory, and for a single slice at most
        1 GiB.
    inverted : bool
        Whether bright and dark of the image are exchanged for the model.
    planes : {"z", "zyx"}
        Axes along which slices are predicted, as in `core.predict`.

    Attributes
    ----------
    probability : array
        float16 in [0, 1]; 0 where nothing has been segmented yet.
    mask : array
        uint8; 0 is background.
    done : ndarray
        bool, (Z,): whether each slice has been segmented.
    tiles : int
        Number of tiles of a slice.
    tiles_done : ndarray
        int, (Z,): number of tiles of each slice that have been segmented, row by row.
    failed : ndarray
        bool, (Z,): whether the last run of `segment` could not read a slice; the next one tries it again.
    lost : ndarray
        bool, (Z,): whether a slice that has been segmented holds no image, so that all of it is background.
    folder : Path or None
        The temporary folder, if there is one.
    is_pyramid : bool
        Whether the slices are so large that napari would take seconds to draw one: see `levels`.
    outlines : dask.array.Array or None
        Probability of the outlines of objects, ZYX, lazy; None before `segment` starts, and if the model has not learnt
        outlines.

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
        planes: Planes = "z",
    ) -> None:
        self.model, self.threshold, self.inverted, self.planes = model, threshold, inverted, planes
        multiclass = len(model.class_names) > 2 and not model.boundary
        self.done, self.tiles_done, self.tiles = np.zeros(shape[0], bool), np.zeros(shape[0], int), 1
        self.lost = np.zeros(shape[0], bool)
        self.failed = np.zeros(shape[0], bool)
        self._applied = np.full(shape[0], np.nan)  # threshold that was applied to each slice of the mask
        self._lock = threading.Lock()
        self.outlines: Any = None
        size = int(np.prod(shape, dtype=np.int64)) * (4 if multiclass else 3)
        most = _SLICE_BYTES if shape[0] == 1 else size
        limit = min(psutil.virtual_memory().available // 4, most) if memory is None else memory
        self.is_pyramid = max(shape[1:]) > _DRAWN_WHOLE
        self._is_mapped = self.is_pyramid or shape[0] == 1
        self.folder = _temporary_folder(size) if size > limit else None
        if self.folder is not None:
            weakref.finalize(self, shutil.rmtree, self.folder, ignore_errors=True)  # at exit too
        self.probability = self._make("probability", shape, np.float16)
        self.mask = self._make("mask", shape, np.uint8)
        self._classes = self._make("classes", shape, np.uint8) if multiclass else None

    def _make(self, name: str, shape: tuple[int, int, int], dtype: Any) -> Any:
        if self.folder is None:
            return np.zeros(shape, dtype)
        if self._is_mapped:
            return np.memmap(self.folder / name, dtype, "w+", shape=shape)
        chunks = (1, *(min(n, _TILE) for n in shape[1:]))
        return zarr.create_array(self.folder / f"{name}.zarr", shape=shape, chunks=chunks, dtype=dtype, fill_value=0)

    def levels(self, array: Any) -> Any:
        """Return what a layer shows of `probability` or `mask`: the array or, if slices are large, a pyramid of views.

        napari draws the part of a pyramid that is on screen, at the resolution of the screen; it cannot be painted on.
        """
        if not self.is_pyramid:
            return array
        levels = [array]
        while max(levels[-1].shape[-2:]) > _COARSEST:
            levels.append(levels[-1][..., ::2, ::2])
        return levels

    @property
    def about(self) -> dict[str, Any]:
        """Settings that the result is made with, for the metadata of a file."""
        how = {"threshold": self.threshold, "inverted": self.inverted}
        return how | {"views": self.model.views, "planes": self.planes}

    @property
    def is_multiclass(self) -> bool:
        """Whether the mask has several classes."""
        return self._classes is not None

    def put(
        self,
        z: int,
        probability: NDArray[np.float32],
        classes: NDArray[np.uint8] | None = None,
        window: Window = (slice(None), slice(None)),
        index: int = 0,
    ) -> None:
        """Store a tile of slice `z`: its foreground probability and, with several classes, the likeliest one, both YX.

        All tiles of a slice get the threshold of its first one, until `apply` gives the slice another. Tiles are stored
        in the order of their `index`; a tile out of turn, such as one that is stored already, is ignored.
        """
        with self._lock:
            if self.tiles_done[z] != index:  # from a worker that was stopped and replaced amid this tile
                return
            if not self.tiles_done[z]:
                self._applied[z] = self.threshold
            foreground, at = probability > self._applied[z], (z, *window)
            self.probability[at] = probability
            if self._classes is not None:
                self._classes[at] = classes
            self.mask[at] = foreground if classes is None else np.where(foreground, classes, 0)
            self._leave_memory()
            self.tiles_done[z] += 1
            self.done[z] = self.tiles_done[z] >= self.tiles

    def missing(self, near: int) -> int | None:
        """Return the slice nearest to `near` that is neither segmented nor has failed, or None."""
        return _nearest(np.flatnonzero(~(self.done | self.failed)), near)

    def outdated(self, near: int) -> int | None:
        """Return the slice nearest to `near` whose mask has an outdated threshold, or None."""
        return _nearest(np.flatnonzero(self.done & (self._applied != self.threshold)), near)

    def apply(self, z: int) -> None:
        """Apply the threshold to slice `z` of the mask; nothing is predicted again."""
        with self._lock:
            old, new = float(self._applied[z]), self.threshold
            if not self.done[z] or old == new:
                return
            for rows in self._rows():
                probability, mask = self.probability[z, rows], self.mask[z, rows]
                between = (probability >= min(old, new)) & (probability <= max(old, new))
                if between.any():
                    value = np.uint8(1) if self._classes is None else self._classes[z, rows]
                    foreground = np.where(probability > new, value, np.uint8(0))
                    self.mask[z, rows] = np.where(between, foreground, mask)
                self._leave_memory()
            self._applied[z] = new

    def paint(self, z: int, where: NDArray[np.bool_], values: NDArray[np.uint8]) -> None:
        """Set slice `z` of the mask to `values` at the pixels `where` (both YX), as the user does by painting."""
        with self._lock:
            self.mask[z] = np.where(where, values, self.mask[z])

    def foreground_class(self, z: int) -> Any:
        """Return the class that pixels of slice `z` have where they are foreground: YX, or 1 for all pixels."""
        return 1 if self._classes is None else np.maximum(self._classes[z], 1)

    def is_shown_by(self, data: Any) -> bool:
        """Return whether the data of a layer are this mask itself, rather than a copy of it or other data."""
        arrays = isinstance(data, np.ndarray) and isinstance(self.mask, np.ndarray)
        return bool(np.may_share_memory(data, self.mask)) if arrays else data is self.mask

    @property
    def is_corrected(self) -> bool:
        """Whether the user has painted on any slice of the mask."""
        return any(map(self._is_corrected, np.flatnonzero(self.done).tolist()))

    def corrected_slices(self) -> dict[int, NDArray[np.uint8]]:
        """Return copies, by z, of the mask's slices that the user has painted on: they differ from the prediction."""
        return {z: np.array(self.mask[z]) for z in np.flatnonzero(self.done).tolist() if self._is_corrected(z)}

    def _is_corrected(self, z: int) -> bool:
        applied = np.float32(self._applied[z])
        for rows in self._rows():
            with self._lock:
                probability, mask = self.probability[z, rows], self.mask[z, rows]
            foreground = probability > applied
            differs = mask != (foreground if self._classes is None else np.where(foreground, self._classes[z, rows], 0))
            if differs.any() and (np.abs(probability[differs] - applied) > _ROUNDING).any():
                return True
        return False

    def _leave_memory(self) -> None:
        """Take the pages of mapped files out of this process's memory, where the system can; they stay cached."""
        for array in (self.probability, self.mask, self._classes):
            if isinstance(array, np.memmap) and hasattr(mmap, "MADV_DONTNEED"):
                cast(mmap.mmap, array.base).madvise(mmap.MADV_DONTNEED)

    def _rows(self) -> Iterator[slice]:
        """Return the rows of a slice in parts that take little memory."""
        return (slice(first, first + _ROWS) for first in range(0, self.mask.shape[1], _ROWS))

    def catch_up(self, focus: Focus) -> Iterator[int]:
        """Apply the threshold to all slices, the nearest to the focus first; yields z of each that changed."""
        while (z := self.outdated(focus.z)) is not None:
            self.apply(z)
            yield z


class Focus:
    """The slice on screen, nearest to which the workers begin; the GUI thread sets it."""

    def __init__(self, z: int = 0) -> None:
        self.z = z


def segment(volume: core.Volume, result: Result, focus: Focus, is_stopped: Callable[[], bool]) -> Iterator[int]:
    """Segment the missing slices of `result` by its model, the nearest to the focus first; yields z after each tile.

    Only one slice of the volume is in memory at a time: of a large slice one tile, and with planes "zyx" one block.

    Raises
    ------
    VolumeError
        If slices cannot be read, after all others are segmented; with planes "zyx", where each needs all others, at
        once.
    """
    plain = core.open_volume(volume, invert=result.inverted)
    if result.model.boundary:
        result.outlines = core.predict(result.model, plain, output="boundary")  # along z: a few slices at a time
    volume = stoppable(plain, is_stopped)
    result.failed[:], first_error = False, None
    try:
        probability, classes = _lazy(result, volume)  # for a generalist model, this already reads a few windows
        blocks, rows, columns = (_pieces(sizes) for sizes in probability.chunks)
        tiles = list(product(rows, columns))
        result.tiles = len(tiles)
        while (near := result.missing(focus.z)) is not None:
            slices = next(each for each in blocks if each.start <= near < each.stop)
            window = tiles[index := int(result.tiles_done[near])]
            done = range(slices.start, slices.stop)
            try:
                block = probability[(slices, *window)].compute(scheduler="synchronous")
                likeliest = None if classes is None else classes[(slices, *window)].compute(scheduler="synchronous")
            except core.VolumeError as error:
                if was_stopped(error) or result.planes == "zyx":
                    raise
                result.failed[slices] = True
                first_error = first_error or error
                yield from done
                continue
            for i, z in enumerate(done):
                result.put(z, block[i], None if likeliest is None else likeliest[i], window, index)
                result.apply(z)  # in case the threshold has changed since the first tile
                result.lost[z] = volume.is_lost(z)
            yield from done
        if first_error is not None:
            raise first_error
    except core.VolumeError as error:
        if not was_stopped(error):
            raise


def _lazy(result: Result, volume: core.Volume) -> tuple[Any, Any]:
    """Return probability and, with several classes, the likeliest class; large slices in tiles of a second each."""
    tile, model, planes = None, result.model, result.planes
    probability = core.predict(model, volume, planes=planes)
    if planes == "z" and probability.numblocks[1:] != (1, 1):
        tile = _TILE
        probability = core.predict(model, volume, tile=tile)
    if not result.is_multiclass:
        return probability, None
    classes = core.predict(model, volume, tile=tile, planes=planes, output="labels", threshold=0.0)
    return probability, classes.rechunk(probability.chunks)


def _pieces(sizes: tuple[int, ...]) -> list[slice]:
    """Return the pieces of an axis as slices, from their sizes."""
    return [slice(stop - n, stop) for n, stop in zip(sizes, np.cumsum(sizes).tolist(), strict=True)]


def _nearest(slices: NDArray[np.intp], near: int) -> int | None:
    return int(slices[np.argmin(np.abs(slices - near))]) if len(slices) else None


def _temporary_folder(size: int) -> Path:
    free = shutil.disk_usage(tempfile.gettempdir()).free
    if free < size:
        raise core.OutputError(
            f"the result may take {size / 1e9:.1f} GB, but {tempfile.gettempdir()} has {free / 1e9:.1f} GB free: make "
            "room, set TMPDIR to a folder on a larger disk, or run `napari-kdunet predict`, which writes where you say."
        )
    return Path(tempfile.mkdtemp(prefix="napari-kdunet-"))
