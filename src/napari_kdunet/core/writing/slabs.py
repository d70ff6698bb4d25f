"""The slices of a lazy array whose chunks are many slices thick."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import accumulate, groupby
from typing import Any

import dask.array as da
import numpy as np
from numpy.typing import NDArray

__all__ = ["by_blocks", "is_thick", "slabs"]

_SLAB = 2**30  # bytes


def is_thick(volume: da.Array) -> bool:
    """Whether any chunk is more than one slice."""
    return bool(max(volume.chunks[0]) > 1)


def slabs(volume: da.Array, todo: Sequence[int]) -> Iterator[list[int]]:
    """The slices `todo`, those of a chunk together, up to 1 GiB: so each chunk is computed once."""
    most = max(1, _SLAB // math.prod((*volume.shape[1:], volume.dtype.itemsize)))
    stops = list(accumulate(volume.chunks[0]))
    for _, group in groupby(todo, lambda z: bisect_right(stops, z)):
        slab = list(group)
        yield from (slab[i : i + most] for i in range(0, len(slab), most))


def by_blocks(slab: da.Array, scheduler: str | None = None) -> NDArray[Any]:
    """Compute it block by block, and not as an array: dask would hold each block twice, and then all of them twice."""
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
