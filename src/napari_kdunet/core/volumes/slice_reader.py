"""Read or compute the slices of a volume one after the other, the next ones ahead of time."""

from __future__ import annotations

import math
import time
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import accumulate, groupby
from typing import Any, TypeAlias

import dask.array as da
import numpy as np
from dask.base import compute_as_if_collection
from numpy.typing import NDArray

from napari_kdunet.core.errors import VolumeError, one_line
from napari_kdunet.core.volumes.volume import Volume

__all__ = ["Slice", "compute_slices", "iter_slabs", "iter_slices", "read_slices"]

Slice: TypeAlias = tuple[int, "NDArray[Any] | OSError | VolumeError"]
"""Index of a slice along z, and its pixels (Y, X) or the error with which reading them failed."""

_PREFETCH_BYTES = 2**25  # of slices that are computed while others are written
_BATCH_SECONDS = 0.5  # that slices computed together may take, so that the consumer can stop between two batches
_SLAB_BYTES = 2**30


def iter_slices(volume: Any, indices: Sequence[int]) -> Iterator[Slice]:
    """Read or compute slices of a volume, in the order of `indices`.

    Parameters
    ----------
    volume : array-like or iterable
        ZYX. For a dask array, the next slices are computed in the background while one is being used. From an iterable,
        which has no index, all slices are taken.
    indices : sequence of int
        Slices to read, ascending.

    Yields
    ------
    Slice
        Index and pixels, or the error for a slice that cannot be read; a failed slice of an array does not end the
        iteration.
    """
    if not hasattr(volume, "__getitem__"):
        return _enumerate_slices(volume)
    if not isinstance(volume, da.Array):
        return (_read_slice(z, lambda z=z: np.asarray(volume[z])) for z in indices)  # type: ignore[misc]
    if _is_thick(volume):
        slabs = iter_slabs(volume, indices)
        # map, as a loop variable would hold the last slab while the next is computed
        return (slice_ for slab in slabs for slice_ in map(_detached, compute_slices(volume, slab)))
    most = _prefetch_count(volume)
    if most == 0:
        return (slice_ for z in indices for slice_ in compute_slices(volume, [z]))
    return _prefetch(volume, indices, most)


def read_slices(volume: Volume, indices: Sequence[int], *window: slice) -> Iterator[NDArray[Any]]:
    """Read slices as `iter_slices` does, but yield only the pixels, of a volume or of a window (rows, columns) of it.

    Raises
    ------
    VolumeError
        If a slice cannot be read; the message says why.
    """
    for z, pixels in iter_slices(volume.data[(slice(None), *window)] if window else volume.data, indices):
        if isinstance(pixels, VolumeError):
            raise pixels
        if isinstance(pixels, OSError):
            raise VolumeError(f"cannot read slice z={z} of {volume.name}: {one_line(pixels)}") from pixels
        yield pixels


def iter_slabs(volume: da.Array, indices: Sequence[int]) -> Iterator[list[int]]:
    """Group slices by the chunk along z that holds them, up to 1 GiB a group, so that each chunk is computed once."""
    most = max(1, _SLAB_BYTES // _slice_bytes(volume))
    stops = list(accumulate(volume.chunks[0]))
    for _, group in groupby(indices, lambda z: bisect_right(stops, z)):
        slab = list(group)
        yield from (slab[i : i + most] for i in range(0, len(slab), most))


def compute_slices(volume: da.Array, indices: Sequence[int], scheduler: str | None = None) -> list[Slice]:
    """Compute neighbouring slices of a dask array.

    They are computed together, but one by one where any of them cannot be read, and by rows of chunks where they are
    large. Slices that share a chunk can be read all or not at all.

    Parameters
    ----------
    volume : dask.array.Array
        ZYX.
    indices : sequence of int
        Slices to compute, ascending and without gaps unless they share a chunk.
    scheduler : str, optional
        Dask's scheduler, by default the current one.
    """
    if _is_thick(volume):
        try:
            slab = _compute_by_blocks(volume[indices[0] : indices[-1] + 1], scheduler)
        except (OSError, VolumeError) as error:
            return [(z, error) for z in indices]
        return [(z, slab[z - indices[0]]) for z in indices]
    if len(indices) > 1 and _prefetch_count(volume):
        try:
            return list(zip(indices, _compute_together(volume, indices, scheduler), strict=True))
        except (OSError, VolumeError):
            pass
    compute = _compute_whole if _prefetch_count(volume) else _compute_by_rows
    return [_read_slice(z, lambda z=z: compute(volume, z, scheduler)) for z in indices]  # type: ignore[misc]


def _is_thick(volume: da.Array) -> bool:
    """Whether any chunk holds more than one slice."""
    return bool(max(volume.chunks[0]) > 1)


def _slice_bytes(volume: da.Array) -> int:
    return math.prod((*volume.shape[1:], volume.dtype.itemsize))


def _prefetch_count(volume: da.Array) -> int:
    """How many slices may be in memory beside the one being written."""
    return _PREFETCH_BYTES // _slice_bytes(volume)


def _enumerate_slices(slices: Iterable[Any]) -> Iterator[Slice]:
    z = 0
    try:
        for slice_ in slices:
            yield z, np.asarray(slice_)
            z += 1
    except OSError as error:
        yield z, error


def _read_slice(z: int, read: Callable[[], NDArray[Any]]) -> Slice:
    try:
        return z, read()
    except (OSError, VolumeError) as error:
        return z, error


def _detached(slice_: Slice) -> Slice:
    """Copy a slice out of its slab, so that holding the one does not keep the other in memory."""
    z, pixels = slice_
    return z, pixels.copy() if isinstance(pixels, np.ndarray) else pixels


def _compute_whole(volume: da.Array, z: int, scheduler: str | None) -> NDArray[Any]:
    return _compute_together(volume, [z], scheduler)[0]


def _compute_together(volume: da.Array, indices: Sequence[int], scheduler: str | None) -> list[NDArray[Any]]:
    """Compute slices, each a row of the grid of chunks; slicing the array first takes dask three times as long."""
    _, ny, nx = volume.numblocks
    keys = [[[(volume.name, z, y, x) for x in range(nx)] for y in range(ny)] for z in indices]
    computed = compute_as_if_collection(da.Array, volume.dask, keys, scheduler=scheduler)
    if ny * nx == 1:
        return [tiles[0][0][0] for tiles in computed]
    return [np.concatenate([np.concatenate(row, axis=2) for row in tiles], axis=1)[0] for tiles in computed]


def _compute_by_rows(volume: da.Array, z: int, scheduler: str | None) -> NDArray[Any]:
    """Compute a large slice by rows of chunks: computed at once it would be in memory twice."""
    slice_ = np.empty(volume.shape[1:], volume.dtype)
    bottom = 0
    for rows in volume.chunks[1]:
        top, bottom = bottom, bottom + rows
        slice_[top:bottom] = volume[z, top:bottom].compute(scheduler=scheduler)
    return slice_


def _compute_by_blocks(slab: da.Array, scheduler: str | None) -> NDArray[Any]:
    """Compute a slab block by block: computed at once each block, and then the slab, would be in memory twice."""
    blocks = slab.to_delayed()
    if blocks.size == 1:
        whole: NDArray[Any] = blocks.item().compute(scheduler=scheduler)
        return whole
    whole = np.empty(slab.shape, slab.dtype)
    for index, block in np.ndenumerate(blocks):
        starts = (sum(sizes[:i]) for sizes, i in zip(slab.chunks, index, strict=True))
        where = (slice(a, a + sizes[i]) for a, sizes, i in zip(starts, slab.chunks, index, strict=True))
        whole[tuple(where)] = block.compute(scheduler=scheduler)
    return whole


def _prefetch(volume: da.Array, indices: Sequence[int], most: int) -> Iterator[Slice]:
    """Compute slices in a background thread, up to `most` at once, while those before are being written.

    A dask scheduler may take as long to start as a tiny network for a slice, so slices are computed in batches, which
    grow as long as a batch takes less than `_BATCH_SECONDS`.
    """

    def timed(batch: Sequence[int]) -> tuple[list[Slice], float]:
        start = time.perf_counter()
        return compute_slices(volume, batch), time.perf_counter() - start

    count, batch = 1, indices[:1]
    with ThreadPoolExecutor(1, "kdunet-prefetch") as pool:
        running = pool.submit(timed, batch)
        while batch:
            slices, seconds = running.result()
            indices = indices[len(batch) :]
            count = min(2 * count, most) if seconds < _BATCH_SECONDS / 2 else count if seconds < _BATCH_SECONDS else 1
            batch = _leading_run(indices, count)
            running = pool.submit(timed, batch)
            slices.reverse()
            while slices:
                yield slices.pop()  # and let go of it: the next batch grows in memory meanwhile


def _leading_run(indices: Sequence[int], most: int) -> Sequence[int]:
    """Return the first `indices` without a gap, up to `most`."""
    count = 0
    while count < min(most, len(indices)) and indices[count] == indices[0] + count:
        count += 1
    return indices[:count]
