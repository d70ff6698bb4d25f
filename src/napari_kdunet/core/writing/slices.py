"""The slices of a volume, ready to be written: of a lazy one computed ahead of whoever takes them."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeAlias

import dask.array as da
import numpy as np

from napari_kdunet.core.errors import VolumeError
from napari_kdunet.core.writing.slabs import by_blocks, is_thick, slabs

__all__ = ["Slice", "compute", "computed"]

Slice: TypeAlias = tuple[int, "np.ndarray[Any, Any] | OSError | VolumeError"]
"""Its index, and its pixels or why they cannot be read."""

_AHEAD = 2**25  # bytes of slices that are computed while others are written
_TOGETHER = 0.5  # seconds


def computed(volume: Any, todo: Sequence[int]) -> Iterator[Slice]:
    """The slices `todo` of an array, in that order, or all that an iterable has.

    Of a dask array the next are computed while one is being taken.
    """
    if not hasattr(volume, "__getitem__"):
        return _numbered(volume)
    if not isinstance(volume, da.Array):
        return (_tried(z, lambda z=z: np.asarray(volume[z])) for z in todo)  # type: ignore[misc]
    if is_thick(volume):
        return (slice_ for slab in slabs(volume, todo) for slice_ in map(_own, compute(volume, slab)))
    most = _most(volume)
    return _ahead(volume, todo, most) if most else (slice_ for z in todo for slice_ in compute(volume, [z]))


def _own(slice_: Slice) -> Slice:
    """Whoever has the last slice of a slab does not hold all of it."""
    z, pixels = slice_
    return z, pixels.copy() if isinstance(pixels, np.ndarray) else pixels


def _numbered(slices: Iterable[Any]) -> Iterator[Slice]:
    z = 0
    try:
        for slice_ in slices:
            yield z, np.asarray(slice_)
            z += 1
    except OSError as error:
        yield z, error


def compute(volume: da.Array, wanted: Sequence[int], scheduler: str | None = None) -> list[Slice]:
    """Slices of a lazy array near each other, together; one by one where any cannot be read or they are large.

    Those of a thick chunk can be read all or not at all.
    """
    if is_thick(volume):
        try:
            slab = by_blocks(volume[wanted[0] : wanted[-1] + 1], scheduler)
        except (OSError, VolumeError) as error:
            return [(z, error) for z in wanted]
        return [(z, slab[z - wanted[0]]) for z in wanted]
    if len(wanted) > 1 and _most(volume):
        try:
            block = volume[wanted[0] : wanted[-1] + 1].compute(scheduler=scheduler)
            return [(z, block[z - wanted[0]]) for z in wanted]
        except (OSError, VolumeError):
            pass
    take = _whole if _most(volume) else _by_rows
    return [_tried(z, lambda z=z: take(volume, z, scheduler)) for z in wanted]  # type: ignore[misc]


def _most(volume: da.Array) -> int:
    """How many slices may be in memory at once, beside the one that is."""
    return int(_AHEAD // math.prod((*volume.shape[1:], volume.dtype.itemsize)))


def _tried(z: int, read: Callable[[], np.ndarray[Any, Any]]) -> Slice:
    try:
        return z, read()
    except (OSError, VolumeError) as error:
        return z, error


def _whole(volume: da.Array, z: int, scheduler: str | None) -> np.ndarray[Any, Any]:
    slice_: np.ndarray[Any, Any] = volume[z].compute(scheduler=scheduler)
    return slice_


def _by_rows(volume: da.Array, z: int, scheduler: str | None) -> np.ndarray[Any, Any]:
    """A large slice, by rows of chunks: computed at once it would be in memory twice."""
    slice_ = np.empty(volume.shape[1:], volume.dtype)
    bottom = 0
    for rows in volume.chunks[1]:
        top, bottom = bottom, bottom + rows
        slice_[top:bottom] = volume[z, top:bottom].compute(scheduler=scheduler)
    return slice_


def _ahead(volume: da.Array, todo: Sequence[int], most: int) -> Iterator[Slice]:
    """As `computed`; up to `most` slices are computed together while those before are written.

    Together, as a scheduler may take as long to begin as a tiny network for a slice; but not for long, so that the
    consumer can stop.
    """

    def timed(wanted: Sequence[int]) -> tuple[list[Slice], float]:
        clock = time.perf_counter()
        return compute(volume, wanted), time.perf_counter() - clock

    count, wanted = 1, todo[:1]
    with ThreadPoolExecutor(1, "kdunet-ahead") as pool:
        running = pool.submit(timed, wanted)
        while wanted:
            slices, seconds = running.result()
            todo = todo[len(wanted) :]
            count = min(2 * count, most) if seconds < _TOGETHER / 2 else count if seconds < _TOGETHER else 1
            wanted = _neighbours(todo, count)
            running = pool.submit(timed, wanted)
            yield from slices


def _neighbours(todo: Sequence[int], most: int) -> Sequence[int]:
    """The first slices of `todo`, as long as each is the next of the one before."""
    count = 0
    while count < min(most, len(todo)) and todo[count] == todo[0] + count:
        count += 1
    return todo[:count]
