"""The foreground of a block and how thick it is there: the landscape of the watershed."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import Any, TypeAlias

import edt
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from napari_kdunet.core.graphs import components

__all__ = ["Landscape", "Window"]

Window: TypeAlias = tuple[slice, slice, slice]
Mask = NDArray[np.bool_]

_REACH = 150.0  # nm, cap of the thickness: necks twice as wide cannot be told from bodies
_COARSE = 15.0  # nm between the points at which the thickness is computed
_TRUNCATE = 3.0  # standard deviations at which a Gaussian is cut off


@dataclass(frozen=True)
class Landscape:
    """Settings by which foreground and its thickness follow from probabilities.

    Attributes
    ----------
    voxel_size : tuple of float
        nm, ZYX.
    threshold : float
        Probability above which a voxel is foreground.
    flat : bool
        Whether each slice is treated on its own.
    smoothing, holes : float
        Standard deviation of a Gaussian over the probability, and width up to which holes are filled, in nm; 0 is off.
    """

    voxel_size: tuple[float, float, float]
    threshold: float
    flat: bool
    smoothing: float
    holes: float

    def _voxels(self, length: float) -> tuple[int, int, int]:
        z, y, x = (math.ceil(length / size) for size in self.voxel_size)
        return (0 if self.flat else z, y, x)

    @property
    def sigma(self) -> tuple[float, ...]:
        """Standard deviation (Z, Y, X) of the Gaussian, in voxels."""
        return tuple(self.smoothing / size * (i > 0 or not self.flat) for i, size in enumerate(self.voxel_size))

    @property
    def pool(self) -> tuple[int, int, int]:
        """Number of voxels (Z, Y, X) in one cell of the coarse grid."""
        z, y, x = (max(1, int(_COARSE / size)) for size in self.voxel_size)
        return (1 if self.flat else z, y, x)

    @property
    def halo(self) -> tuple[int, ...]:
        """Number of voxels (Z, Y, X) around a block that its landscape depends on."""
        parts = [math.ceil(_TRUNCATE * s) + 1 if s else 0 for s in self.sigma]
        holes = self._voxels(self.holes) if self.holes else (0, 0, 0)
        reach, pool = self._voxels(_REACH), self.pool
        halo = tuple(s + h + 1 + r + 3 * p for s, h, r, p in zip(parts, holes, reach, pool, strict=True))
        return (0, *halo[1:]) if self.flat else halo

    def heights(
        self, probability: NDArray[Any], window: Window, block: Window, boundary: NDArray[Any] | None = None
    ) -> NDArray[np.float32]:
        """Return the landscape of a block, with one voxel around it.

        Its heights are the distance to the background in nm times the foreground probability, and 0 in the background.
        With `boundary` the probability of the outlines is subtracted from that of the foreground, which leaves that of
        the inside of objects.

        Parameters
        ----------
        probability : (Z, Y, X)
            Foreground probability in `window`: bool, float32 in [0, 1], or uint8 or uint16 scaled to their range. It
            may be modified in place.
        boundary : (Z, Y, X), optional
            Probability of the outlines of objects, of one of the same dtypes.
        window, block : Window
            Window of the volume that was read, and the block in it. `window` begins at multiples of `pool` and extends
            `halo` beyond the block, or to the edge of the volume.

        Returns
        -------
        (Z + 2, Y + 2, X + 2) float32
            Heights in nm.
        """
        probability, mask = self._foreground(probability)
        if self.holes:
            holes = _find_holes(mask, self._voxels(self.holes), self.flat)
            mask.ravel()[holes] = True
            probability.ravel()[holes] = 1 if probability.dtype.kind in "bf" else np.iinfo(probability.dtype).max
        coarse = self._thickness(probability, boundary)
        heights = np.zeros(tuple(b.stop - b.start + 2 for b in block), np.float32)
        # extent along each axis of the block with one voxel around it, as far as it was read
        read = [(max(b.start - 1, w.start), min(b.stop + 1, w.stop)) for b, w in zip(block, window, strict=True)]
        inner = tuple(slice(a - w.start, b - w.start) for (a, b), w in zip(read, window, strict=True))
        outer = tuple(slice(a - b.start + 1, c - b.start + 1) for (a, c), b in zip(read, block, strict=True))
        points = np.nonzero(mask[inner])
        at = [
            (p + i.start + 0.5) / f - 0.5 for p, i, f in zip(points, inner, self.pool, strict=True)
        ]  # in the coarse grid
        least = 0.5 * min(f * size for f, size in zip(self.pool, self.voxel_size, strict=True))
        thick = ndimage.map_coordinates(coarse, at, order=1, mode="nearest")
        # rounded, so that summing in another order does not change the order of heights
        heights[outer][points] = np.maximum(np.rint(64 * thick), np.rint(64 * least)) / 64
        return heights

    def _foreground(self, probability: NDArray[Any]) -> tuple[NDArray[Any], Mask]:
        if any(self.sigma):
            values = _unit(probability)
            probability = ndimage.gaussian_filter(values, self.sigma, truncate=_TRUNCATE, mode="nearest")
        if probability.dtype.kind == "b":
            return probability, probability.copy()
        if probability.dtype.kind == "u":
            table = np.arange(np.iinfo(probability.dtype).max + 1, dtype=np.float32) / np.iinfo(probability.dtype).max
            return probability, (table > np.float32(self.threshold))[probability]
        return probability, probability > np.float32(self.threshold)

    def _thickness(self, probability: NDArray[Any], boundary: NDArray[Any] | None) -> NDArray[np.float32]:
        """Return distance to the background (nm, capped) times probability of the inside, on the coarse grid."""
        mean = _pooled(probability, self.pool)
        size = np.array(self.voxel_size) * self.pool
        unit = float(size[1:].min() if self.flat else size.min())
        above = mean > (np.float32(self.threshold) if probability.dtype.kind != "b" else np.float32(0.5))
        scale = tuple(size / unit)
        if self.flat:
            squares = np.stack([edt.edtsq(part, anisotropy=scale[1:], black_border=False) for part in above])
        else:
            squares = edt.edtsq(above, anisotropy=scale, black_border=False)
        squares = np.minimum(np.rint(256 * squares.astype(np.float64)) / 256, (_REACH / unit) ** 2)
        if boundary is not None:
            mean = np.maximum(mean - _pooled(boundary, self.pool), 0)
        thickness: NDArray[np.float32] = (unit * np.sqrt(squares) * mean).astype(np.float32)
        return thickness


def _unit(probability: NDArray[Any]) -> NDArray[np.float32]:
    """Return probabilities as float32 from 0 to 1."""
    values: NDArray[np.float32] = probability.astype(np.float32)
    if probability.dtype.kind == "u":
        values /= np.iinfo(probability.dtype).max
    return values


def _pooled(probability: NDArray[Any], pool: tuple[int, int, int]) -> NDArray[np.float32]:
    """Return means over cells of `pool` voxels, from 0 to 1; a cell cut by the edge is averaged over what remains."""
    if pool == (1, 1, 1):
        return _unit(probability)
    shape = tuple(-(-n // f) for n, f in zip(probability.shape, pool, strict=True))
    total = np.zeros(shape, np.uint64 if probability.dtype.kind in "bu" else np.float32)
    for start in itertools.product(*map(range, pool)):
        part = probability[tuple(slice(s, None, f) for s, f in zip(start, pool, strict=True))]
        total[tuple(map(slice, part.shape))] += part
    counts = [np.minimum(f, n - f * np.arange(m)) for n, f, m in zip(probability.shape, pool, shape, strict=True)]
    voxels = counts[0][:, None, None] * counts[1][:, None] * counts[2]
    top = np.iinfo(probability.dtype).max if probability.dtype.kind == "u" else 1
    mean: NDArray[np.float32] = (total / (voxels * np.float64(top))).astype(np.float32)
    return mean


def _find_holes(mask: Mask, most: tuple[int, int, int], flat: bool) -> NDArray[np.int64]:
    """Return flat indices of enclosed background that is at most `most` voxels wide along each axis.

    Background that touches the edge of `mask` is not a hole. Only runs along x that are short enough are examined.
    """
    padded = np.pad(mask, ((0, 0) if flat else (1, 1), (1, 1), (1, 1)))
    values, shape = padded.ravel(), np.array(padded.shape)
    changes = np.flatnonzero(values[1:] != values[:-1]) + 1
    stops, starts = changes[2::2], changes[1:-1:2]  # runs of background between two of foreground
    lengths = stops - starts
    short = (lengths <= most[2]) & (starts // shape[2] == stops // shape[2])
    starts, lengths = starts[short], lengths[short]
    if not len(starts):
        return np.empty(0, np.int64)
    voxels = np.repeat(starts - np.append(0, np.cumsum(lengths)[:-1]), lengths) + np.arange(lengths.sum())
    strides = [int(shape[1] * shape[2]), int(shape[2]), 1][flat:]
    is_open, links = np.zeros(len(voxels), bool), []
    for stride in (s * sign for s in strides for sign in (-1, 1)):
        near = voxels + stride
        at = np.minimum(np.searchsorted(voxels, near), len(voxels) - 1)
        member = voxels[at] == near
        is_open |= ~member & ~values.take(near)
        links.append(np.stack([np.flatnonzero(member), at[member]]))
    count, part = components(np.concatenate(links, axis=1), len(voxels))
    good = np.bincount(part, is_open, count) == 0
    places = np.unravel_index(voxels, tuple(shape))
    for place, width in zip(places[flat:], most[flat:], strict=True):
        low, high = np.full(count, 2**62), np.full(count, -1)
        np.minimum.at(low, part, place)
        np.maximum.at(high, part, place)
        good &= high - low < width
    z, y, x = (place[good[part]] for place in places)
    return np.asarray(np.ravel_multi_index((z - (not flat), y - 1, x - 1), mask.shape), np.int64)
