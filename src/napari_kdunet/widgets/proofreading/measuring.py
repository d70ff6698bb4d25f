"""Measure the objects of a layer, after an edit only those touched; carry corrections over to their mask."""

from __future__ import annotations

import threading
import zlib
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from napari_kdunet.core import Volume, measure
from napari_kdunet.core.objects.foreground import Window
from napari_kdunet.core.objects.measure import remeasure
from napari_kdunet.core.reading.voxel_size import VoxelSize
from napari_kdunet.core.volumes.fingerprint import data_fingerprint
from napari_kdunet.core.volumes.probability import is_probability, read_probability
from napari_kdunet.widgets.segmentation.result import Result

__all__ = ["MaskCorrections", "Measured", "Measurement", "Measuring", "measure_edited", "measure_objects"]

_TILE = 256  # pixels a side
_MOST = 0.1  # share of the tiles: if more have changed, all objects are measured


@dataclass(frozen=True, eq=False)
class Measured:
    """State of objects when they were measured, and what they were measured with.

    Attributes
    ----------
    tiles : ndarray of uint32, (Z, tiles along Y, tiles along X)
        Checksum of each tile of the ids; empty if they are not in memory.
    voxel_size : tuple of float or None
        Voxel size in nm (Z, Y, X).
    raw, source : Any
        Identities of the image and of the mask or probability that the objects were measured with.
    seen : str or None
        Checksum of some slices of these two; None if it is not known.
    """

    tiles: NDArray[np.uint32]
    voxel_size: VoxelSize | None
    raw: Any = None
    source: Any = None
    seen: str | None = None

    @classmethod
    def of(cls, ids: Volume, raw: Any, source: Any, seen: str | None = None) -> Measured:
        """Return the state of objects as they are now; they are read once."""
        rows, columns = (range(0, n, _TILE) for n in ids.shape[1:])
        tiles = np.zeros((len(ids), len(rows), len(columns)), np.uint32)
        for z in range(len(ids)):
            pixels = ids.read(z)
            for i, y in enumerate(rows):
                for j, x in enumerate(columns):
                    tiles[z, i, j] = zlib.crc32(np.ascontiguousarray(pixels[y : y + _TILE, x : x + _TILE]).data)
        return cls(tiles, ids.voxel_size, raw, source, seen)

    @classmethod
    def unread(cls, ids: Volume, raw: Any, source: Any = None) -> Measured:
        """Return the state of objects that are not in memory, and so cannot be edited."""
        return cls(np.zeros((0, 0, 0), np.uint32), ids.voxel_size, raw, source)

    def is_like(self, other: Measured) -> bool:
        """Return whether both were measured with the same image, mask or probability, and voxel size."""
        mine, others = ((each.tiles.shape, each.raw, each.source) for each in (self, other))
        same = self.seen == other.seen or None in (self.seen, other.seen)
        return mine == others and same and self.has_size(other.voxel_size)

    def has_size(self, voxel_size: VoxelSize | None) -> bool:
        """Return whether the objects were measured with this voxel size (nm)."""
        size, other = (np.array(each or (0.0,) * 3) for each in (self.voxel_size, voxel_size))
        return bool(np.allclose(size, other))


class Measurement(NamedTuple):
    """A table of `measure_objects`, and the state of the objects when it was made."""

    table: pd.DataFrame
    measured: Measured | None


@dataclass(frozen=True)
class Measuring:
    """Measures objects, again after each edit.

    Attributes
    ----------
    raw, source : Volume or None
        As in `measure_objects`.
    names : tuple of Any
        Identities of `raw` and `source`.
    last : Measurement or None
        Earlier measurement of the same objects.
    """

    raw: Volume | None
    source: Volume | None
    names: tuple[Any, Any]
    last: Measurement | None = None

    def measure(self, ids: Volume, progress: Callable[[float], object], *, in_memory: bool) -> Measurement:
        """Measure objects, only the edited ones if these are known; raises the errors of `core.measure`."""
        if not in_memory:
            unread = Measured.unread(ids, None if self.raw is None else self.names[0])
            return Measurement(measure_objects(ids, self.raw, self.source, progress), unread)
        raw, source = self.names
        sure = self.source is not None and self.source.shape == ids.shape and is_probability(self.source)
        with_ = [volume for volume in (self.raw, self.source if sure else None) if volume is not None]
        names = (raw if self.raw is not None else None, source if sure else None)
        now = Measured.of(ids, *names, data_fingerprint(*with_))
        before = None if self.last is None else self.last.measured
        if self.last is None or before is None or not now.is_like(before):
            return Measurement(measure_objects(ids, self.raw, self.source, progress), now)
        return Measurement(measure_edited(self.last.table, before, now, ids, self.raw, self.source, progress), now)


def measure_objects(
    ids: Volume, raw: Volume | None, source: Volume | None, progress: Callable[[float], object] | None = None
) -> pd.DataFrame:
    """Measure objects by `core.measure`; if `source` is a probability, its mean in each object is `mean_probability`.

    Raises the errors of `core.measure`.
    """
    table = measure(ids, raw, voxel_size=ids.voxel_size, progress=progress)
    return _with_probability(table, ids, source, (slice(0, n) for n in ids.shape))


def measure_edited(
    table: pd.DataFrame,
    before: Measured,
    now: Measured,
    ids: Volume,
    raw: Volume | None,
    source: Volume | None,
    progress: Callable[[float], object] | None = None,
) -> pd.DataFrame:
    """Return what `measure_objects` returns, measuring only objects in tiles that have changed since `before`.

    Parameters
    ----------
    table : pandas.DataFrame
        Measurements of the objects in state `before`.
    before, now : Measured
        State of the objects when they were measured, and now.
    ids, raw, source, progress
        As in `measure_objects`.
    """
    changed = np.argwhere(before.tiles != now.tiles)
    if len(changed) == 0:
        return table
    if len(changed) > _MOST * before.tiles.size or not len(table):
        return measure_objects(ids, raw, source, progress)
    low, high = _boxes(table, ids)
    touched = np.zeros(len(table), bool)
    tile = np.array([1, _TILE, _TILE])
    numbers: set[int] = set()
    for at in changed:
        start, stop = at * tile, np.minimum((at + 1) * tile, ids.shape)
        touched |= ((low < stop) & (high > start)).all(axis=1)
        numbers.update(np.unique(ids.read(int(start[0]), *_window(start, stop)[1:])).tolist())
    numbers = (numbers | {int(i) for i in table["id"][touched]}) - {0}
    known = table["id"].isin(list(numbers)).to_numpy()
    first = np.min([*low[known], *(changed * tile)], axis=0)
    last = np.max([*high[known], *np.minimum((changed + 1) * tile, ids.shape)], axis=0)
    window = _window(first, last)
    new = remeasure(table, ids, numbers, window, raw, voxel_size=ids.voxel_size, progress=progress)
    if "mean_probability" in table:
        new = new.merge(table[["id", "mean_probability"]], "left", "id")
    return _with_probability(new, ids, source, window, numbers)


def _window(low: NDArray[np.int64], high: NDArray[np.int64]) -> Window:
    z, y, x = (slice(int(a), int(b)) for a, b in zip(low, high, strict=True))
    return z, y, x


def _boxes(table: pd.DataFrame, ids: Volume) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the bounding box of each object: its first voxel (n, 3), and the one after the last."""
    size = ids.voxel_size or (1.0,) * 3
    low, high = (
        np.stack([np.rint(table[f"box_{axis}_{end}_nm"] / step) for axis, step in zip("zyx", size, strict=True)], 1)
        for end in ("min", "max")
    )
    return low.astype(np.int64), high.astype(np.int64)


def _with_probability(
    table: pd.DataFrame, ids: Volume, source: Volume | None, window: Iterable[slice], only: Collection[int] = ()
) -> pd.DataFrame:
    """Return the table with the mean probability of the objects `only`, which lie in `window`; by default of all."""
    if source is None or source.shape != ids.shape or not is_probability(source) or not len(table):
        return table
    order = table["id"].to_numpy()
    wanted = np.isin(order, np.array(sorted(only), order.dtype)) if only else np.ones(len(order), bool)
    sums = np.zeros(len(order))
    planes, y, x = window
    for z in range(planes.start, planes.stop):
        present, part = np.unique(ids.read(z, y, x), return_inverse=True)
        found = np.bincount(part.ravel(), read_probability(source, z, y, x).ravel(), len(present))
        inside = present != 0
        sums[np.searchsorted(order, present[inside])] += found[inside]
    means = sums / table["voxels"]
    return table.assign(mean_probability=np.where(wanted, means, table.get("mean_probability", means)))


class MaskCorrections:
    """Carries changes of objects over to the mask of *Segment* in which they were found.

    What the user adds to an object becomes foreground in the mask, and what is deleted becomes background; what finding
    the objects itself has left out or filled stays as it was. *Train on corrections* can then learn from the mask.

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
        self._before: dict[int, NDArray[np.uint8]] = {}  # slices of the mask before any correction
        self._lock = threading.Lock()

    def hand_on(self, ids: Volume) -> list[int]:
        """Change the mask where the objects have changed since the last call; return the z of these slices.

        Where a correction was taken back, the mask is restored. May be called from any thread.
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
