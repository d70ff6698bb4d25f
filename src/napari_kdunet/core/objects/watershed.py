"""Watershed whose result does not depend on how a volume is cut into blocks.

Every foreground voxel points to the highest of its neighbours; the voxels that lead to the same maximum form a basin.
Basins are merged over their saddles, the highest first, unless a saddle is low compared with both maxima. The maxima
that are left are the seeds of a marker-based watershed. A voxel's pointer depends on its 26 neighbours alone, so blocks
yield the same basins as the whole volume, and pass on a table of basins and saddles instead of voxels.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from napari_kdunet.core.graphs import components

__all__ = ["Basins", "Saddles", "find_basins", "join_parts", "merge_basins"]

Ints = NDArray[np.int64]
Heights = NDArray[np.float32]


@dataclass(frozen=True)
class Saddles:
    """Pairs of basins that touch, and the heights at which they do.

    Attributes
    ----------
    first : (n,) int64
        First basin of each pair.
    second : (n,) int64
        Second basin; for pairs across the faces of a block, the voxel beyond the face (index into the flat volume).
    heights : (n,) float32
        Height of the saddle; infinite where the two are parts of one basin.
    """

    first: Ints
    second: Ints
    heights: Heights

    @staticmethod
    def join(parts: list[Saddles]) -> Saddles:
        """Concatenate saddles."""
        empty = Saddles(np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.float32))
        columns = zip(*((p.first, p.second, p.heights) for p in [empty, *parts]), strict=True)
        return Saddles(*(np.concatenate(column) for column in columns))

    def __getitem__(self, key: Any) -> Saddles:
        return Saddles(self.first[key], self.second[key], self.heights[key])

    def highest(self) -> Saddles:
        """Return the highest saddle of each pair of basins, in the order of the pairs."""
        low, high = np.minimum(self.first, self.second), np.maximum(self.first, self.second)
        order = np.lexsort((-self.heights, high, low))
        low, high = low[order], high[order]
        new = np.ones(len(order), bool)
        new[1:] = (low[1:] != low[:-1]) | (high[1:] != high[:-1])
        return Saddles(low[new], high[new], self.heights[order][new])


@dataclass(frozen=True)
class Basins:
    """The basins of a block.

    Attributes
    ----------
    labels : (Z, Y, X) uint32
        Basin of each voxel of the block, from 1; 0 is background.
    roots : (n,) int64
        Place of each basin's maximum, as index into the flat volume; -1 where it lies in another block.
    peaks : (n,) float32
        Height of the maximum; 0 where it lies in another block.
    inner, outer : Saddles
        Saddles within the block, and from a basin to a voxel beyond the faces of the block; basins from 0.
    shell : tuple of (m,) int64
        Places of the foreground voxels at the faces of the block, and their basins, from 0.
    """

    labels: NDArray[np.uint32]
    roots: Ints
    peaks: Heights
    inner: Saddles
    outer: Saddles
    shell: tuple[Ints, Ints]


def find_basins(height: Heights, origin: tuple[int, ...], shape: tuple[int, ...], *, flat: bool) -> Basins:
    """Find the basins of a block and where they touch.

    Parameters
    ----------
    height : (Z + 2, Y + 2, X + 2) float32
        The block, with a voxel of its surroundings on each side; above 0 in the foreground, 0 elsewhere.
    origin : tuple of int
        Voxel (Z, Y, X) of the volume at which the block begins.
    shape : tuple of int
        Shape of the volume.
    flat : bool
        Whether each slice is a landscape of its own, in which a voxel has 8 neighbours instead of 26.
    """
    heights, strides = height.ravel(), np.array([height.shape[1] * height.shape[2], height.shape[2], 1])
    steps = list(itertools.product(([0] if flat else [-1, 0, 1]), (-1, 0, 1), (-1, 0, 1)))
    offsets = [int(np.dot(step, strides)) for step in steps]
    inside = np.zeros(height.shape, bool)
    inside[1:-1, 1:-1, 1:-1] = height[1:-1, 1:-1, 1:-1] > 0
    here = np.flatnonzero(inside)
    maxima, basin = _ends_of_paths(here, _steepest(heights, here, offsets), heights.size)
    own = inside.ravel()[maxima]

    def place(voxels: Ints) -> Ints:
        z, y, x = np.unravel_index(voxels, height.shape)
        z, y, x = z + (origin[0] - 1), y + (origin[1] - 1), x + (origin[2] - 1)
        return np.asarray((z * shape[1] + y) * shape[2] + x, np.int64)

    peaks = np.where(own, heights.take(maxima), 0).astype(np.float32)
    inner, outer = [], [Saddles(np.flatnonzero(~own), place(maxima[~own]), np.full((~own).sum(), np.inf, np.float32))]
    at_basin, value = np.full(heights.size, -1, np.int32), heights.take(here)
    at_basin[here] = basin
    for offset in offsets[len(offsets) // 2 + 1 :]:
        near = here + offset
        low = np.minimum(heights.take(near), value)
        other = at_basin.take(near)
        pairs = np.flatnonzero((other >= 0) & (other != basin))
        inner.append(Saddles(basin[pairs], other[pairs].astype(np.int64), low[pairs]).highest())
        pairs = np.flatnonzero((other < 0) & (low > 0))
        outer.append(Saddles(basin[pairs], place(near[pairs]), low[pairs]))
    z, y, x = np.unravel_index(here, height.shape)
    labels = np.zeros(tuple(n - 2 for n in height.shape), np.uint32)
    labels[z - 1, y - 1, x - 1] = basin + 1
    inside[2:-2, 2:-2, 2:-2] = False
    faces = np.flatnonzero(inside)
    return Basins(
        labels,
        np.where(own, place(maxima), -1),
        peaks,
        Saddles.join(inner).highest(),
        Saddles.join(outer),
        (place(faces), at_basin.take(faces).astype(np.int64)),
    )


def _steepest(heights: Heights, here: Ints, offsets: list[int]) -> Ints:
    """Return the highest neighbour of each voxel `here`, possibly itself, as index into the flat `heights`."""
    highest, parent = np.full(len(here), -1, np.float32), np.empty_like(here)
    for offset in offsets:  # ascending, so that of equal heights the last voxel wins, as in the whole volume
        near = here + offset
        at = heights.take(near)
        better = at >= highest
        np.copyto(highest, at, where=better)
        np.copyto(parent, near, where=better)
    return parent


def _ends_of_paths(here: Ints, parent: Ints, size: int) -> tuple[Ints, Ints]:
    """Return the places where paths from parent to parent end, and for each voxel `here` the number of its path's end.

    `here` and `parent` (the parent of each voxel `here`) are indices into `size` voxels. A path also ends at the first
    voxel that is not in `here`. Ends in `here` come first.
    """
    index = np.full(size, -1, np.int32)
    index[here] = np.arange(len(here), dtype=np.int32)
    beyond = np.unique(parent[index.take(parent) < 0])
    index[beyond] = len(here) + np.arange(len(beyond), dtype=np.int32)
    to = np.concatenate([index.take(parent), index.take(beyond)])  # those beyond point to themselves
    while not np.array_equal(further := to.take(to), to):
        to = further
    ends, number = np.unique(to[: len(here)], return_inverse=True)
    return np.concatenate([here, beyond])[ends], number.astype(np.int64)


def join_parts(saddles: Saddles, count: int) -> list[Saddles]:
    """Return infinite saddles that link the parts of a basin to its first part, and finite ones between first parts."""
    whole = _wholes(saddles, count)
    first = np.full(int(whole.max(initial=-1)) + 1, count, np.int64)
    np.minimum.at(first, whole, np.arange(count))
    owner = first[whole]
    parts = np.flatnonzero(owner != np.arange(count))
    links = Saddles(owner[parts], parts, np.full(len(parts), np.inf, np.float32))
    one, other = owner[saddles.first], owner[saddles.second]
    kept = np.flatnonzero(one != other)
    return [links, Saddles(one[kept], other[kept], saddles.heights[kept]).highest()]


def _wholes(saddles: Saddles, count: int) -> Ints:
    """Return the number, from 0, of the whole that each of `count` basins belongs to: infinite saddles join parts."""
    same = saddles[np.isinf(saddles.heights)]
    return components(np.stack([same.first, same.second]), count)[1]


def merge_basins(roots: Ints, peaks: Heights, saddles: Saddles, ratio: float) -> Ints:
    """Merge basins over their saddles, and number the objects that result.

    Two basins are merged where the saddle between them is at least `ratio` times the lower of their maxima: this is a
    relative threshold on their dynamics (Grimaud 1992; Najman & Schmitt 1996).

    Parameters
    ----------
    roots : (n,) int64
        Places of the maxima (index into the flat volume); -1 for a part of a basin without its maximum, which an
        infinite saddle joins to the rest of it.
    peaks : (n,) float32
        Heights of the maxima.
    saddles : Saddles
        Saddles between basins, in any order; pairs may be repeated.
    ratio : float
        Relative threshold in [0, 1]; 0 merges all basins that touch.

    Returns
    -------
    (n,) int64
        Object of each basin, numbered from 0 in the order of the objects' first maxima.
    """
    count = len(roots)
    whole = _wholes(saddles, count)
    parts = int(whole.max(initial=-1)) + 1
    root, peak = np.full(parts, -1, np.int64), np.zeros(parts, np.float32)
    np.maximum.at(root, whole, roots)
    np.maximum.at(peak, whole, peaks)
    order = np.argsort(root)  # basins by the place of their maximum, whatever block they were found in
    rank = np.empty(parts, np.int64)
    rank[order] = np.arange(parts)
    whole, root, peak = rank[whole], root[order], peak[order]
    first, second = whole[saddles.first], whole[saddles.second]
    usable = (first != second) & (saddles.heights >= np.float32(ratio) * np.minimum(peak[first], peak[second]))
    pairs = Saddles(first[usable], second[usable], saddles.heights[usable]).highest()
    pairs = pairs[np.lexsort((pairs.second, pairs.first, -pairs.heights))]
    owner = _merged(peak, pairs, ratio)
    ends, number = np.unique(owner, return_inverse=True)
    earliest = np.full(len(ends), parts, np.int64)
    np.minimum.at(earliest, number, np.arange(parts))
    final = np.empty(len(ends), np.int64)
    final[np.argsort(earliest)] = np.arange(len(ends))
    return np.asarray(final[number][whole], np.int64)


def _merged(peak: Heights, pairs: Saddles, ratio: float) -> Ints:
    """Return the owner of each basin after merging over `pairs`, the highest saddle first (Kruskal's order)."""
    owner, high = list(range(len(peak))), peak.tolist()

    def find(basin: int) -> int:
        while owner[basin] != basin:
            owner[basin] = owner[owner[basin]]
            basin = owner[basin]
        return basin

    for a, b, saddle in zip(pairs.first.tolist(), pairs.second.tolist(), pairs.heights.tolist(), strict=True):
        a, b = find(a), find(b)
        if a != b and saddle >= ratio * min(high[a], high[b]):
            if (high[a], a) < (high[b], b):
                a, b = b, a
            owner[b] = a
    return np.array([find(basin) for basin in range(len(peak))], np.int64)
