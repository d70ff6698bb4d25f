"""The slices of a lazy array whose chunks are many slices thick."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import accumulate
from typing import Any

import dask.array as da
import numpy as np

__all__ = ["by_slabs"]

_SLAB = 2**30  # bytes


def by_slabs(volume: da.Array, start: int) -> Iterator[np.ndarray[Any, Any]]:
    """The slices from `start` on, those of a chunk together, up to 1 GiB: so each chunk is computed once."""
    most = max(1, _SLAB // math.prod((*volume.shape[1:], volume.dtype.itemsize)))
    for stop in accumulate(volume.chunks[0]):
        while start < stop:
            slab = volume[start : min(start + most, stop)]
            yield from map(np.copy, _computed(slab))  # who has the last slice does not hold the slab with it
            start += len(slab)


def _computed(slab: da.Array) -> np.ndarray[Any, Any]:
    """Block by block, and not as an array: dask would hold each block twice, and then all of them twice."""
    blocks = slab.to_delayed()
    if blocks.size == 1:
        whole: np.ndarray[Any, Any] = blocks.item().compute()
        return whole
    whole = np.empty(slab.shape, slab.dtype)
    for index, block in np.ndenumerate(blocks):
        starts = (sum(sizes[:i]) for sizes, i in zip(slab.chunks, index, strict=True))
        where = (slice(a, a + sizes[i]) for a, sizes, i in zip(starts, slab.chunks, index, strict=True))
        whole[tuple(where)] = block.compute()
    return whole
