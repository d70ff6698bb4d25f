"""Padding around the sample in a slice: large connected regions of exactly one value."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from functools import cached_property
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from napari_kdunet.core.graphs import components

__all__ = ["LEAST_REGION", "RUN", "Mask", "ReadRows", "find_regions", "grown", "strips_of"]

RUN = 32
"""Number of equal values side by side that no microscope records."""
LEAST_REGION = 64
"""Least number of pixels of a region of a stated fill value, which single pixels of the sample may have too."""
BAND = 4
"""Least width in pixels of a band of padding, such as a seam between tiles or a crack, through half of a slice."""
_LEAST_CORNER = 4 * RUN  # least pixels of a region at the border
_BLOCK = 16  # pixels that a block of a lossy JPEG and its neighbour reach into the padding
_RECTANGULAR = 0.95  # least share of its bounding box that a missing tile covers
_IN_SAMPLE = 0.01  # share of the other pixels above which a value occurs in the sample too, as saturation
_SOLID = 4  # half the width of the narrowest padding that is told from saturation
_NEAREST = 0.3  # share of the other pixels, those nearest to a value, to which ...
_SATURATED = 0.65  # ... more than this share of the pixels beside a saturated region belong

ReadRows: TypeAlias = Callable[[slice], NDArray[Any]]
"""Reads rows of a slice, (rows, X)."""


def strips_of(height: int, rows: int) -> Iterator[slice]:
    """Split the rows of a slice into strips of up to `rows`."""
    return (slice(top, min(top + rows, height)) for top in range(0, height, rows))


def grown(mask: NDArray[np.bool_], pixels: int) -> NDArray[np.bool_]:
    """Return a mask (Y, X) grown by `pixels` to all sides, diagonals too, in a tenth of the time of a filter."""
    for axis in (0, 1):
        along = np.moveaxis(mask, axis, 0)
        wide = along.copy()
        for step in range(1, pixels + 1):
            wide[step:] |= along[:-step]
            wide[:-step] |= along[step:]
        mask = np.moveaxis(wide, 0, axis)
    return mask


class Mask:
    """A boolean mask (Y, X), stored as bits in an eighth of its size."""

    def __init__(self, shape: tuple[int, int]) -> None:
        self.shape = shape
        self._bits = np.zeros((shape[0], -(-shape[1] // 8)), np.uint8)

    @property
    def nbytes(self) -> int:
        """Bytes that the mask takes in memory."""
        return self._bits.nbytes

    def add(self, rows: slice, mask: NDArray[Any]) -> None:
        """Mark pixels of these rows in addition, where `mask` (rows, X) is true."""
        self._bits[rows] |= np.packbits(mask, axis=1)

    def __ior__(self, other: Mask) -> Mask:
        self._bits |= other._bits
        return self

    def any(self) -> bool:
        """Whether any pixel is marked."""
        return bool(self._bits.any())

    def window(self, y: slice = slice(None), x: slice = slice(None), grow: int = 0) -> NDArray[np.bool_]:
        """Return the mask (Y, X) in a window, grown by `grow` pixels to all sides."""
        (top, bottom, _), (left, right, _) = (part.indices(n) for part, n in zip((y, x), self.shape, strict=True))
        first_y, first_x = max(top - grow, 0), max(left - grow, 0)
        last_x = min(right + grow, self.shape[1])
        bits = self._bits[first_y : bottom + grow, first_x // 8 : -(-last_x // 8)]
        mask = np.unpackbits(bits, axis=1)[:, first_x % 8 :][:, : last_x - first_x].view(bool)
        if grow and mask.any():
            mask = grown(mask, grow)
        return mask[top - first_y :, left - first_x :][: bottom - top, : right - left]


def find_regions(
    read: ReadRows, shape: tuple[int, int], value: float, stated: bool, pixels_at_once: int = 2**24, band: bool = False
) -> Mask:
    """Find the connected regions of exactly this value that lie outside the sample.

    Which regions these are depends on the value:

    - `stated` by the user: all but specks; with NaN, all.
    - NaN, not stated: all but specks at the border. Elsewhere it stays an error, as it is no value of an image.
    - Of a `band`: those that reach the border and run through half of the slice.
    - Otherwise guessed: large ones that reach the border, or are rectangles, as missing tiles are; and if any reaches
      the border, all large ones. If the sample has this value too, as with much contrast, padding is only what is solid
      and lines half of a side or ends abruptly: beside a saturated region pixels are nearly of its value.

    The slice is labelled in strips of `pixels_at_once`, and the regions are joined across them.
    """
    found = _Regions(read, shape, value, pixels_at_once)
    area, border, sides = found.joined()
    if math.isnan(value):
        chosen = ((border > 0) & (area >= LEAST_REGION)) | stated
    elif stated:
        chosen = area >= LEAST_REGION
    elif band:
        chosen = (border > 0) & (area >= RUN * RUN) & (2 * sides >= np.array([shape]).T).any(axis=0)
    else:
        chosen = _looks_like_padding(area, border, sides)
        others = math.prod(shape) - found.pixels(chosen)
        if chosen.any() and found.may_be_saturated and found.pixels(~chosen) > _IN_SAMPLE * others:
            found = _Regions(read, shape, value, pixels_at_once, solid=True)
            area, border, sides = found.joined()
            may_be = (found.likeness() <= _SATURATED) | (2 * border >= min(shape))
            chosen = _looks_like_padding(area, border, sides, may_be)
    outside = Mask(shape)
    for index, (rows, first) in enumerate(zip(found.strips, found.offsets, strict=True) if chosen.any() else ()):
        strip, labelled, count = found.label(index)
        region = np.append(False, chosen[first : first + count])[labelled]
        is_sharp = found.solid or math.isnan(value)
        outside.add(rows, region if is_sharp else _with_soft_edge(strip, region, value))
    return outside


def _looks_like_padding(
    area: NDArray[Any], border: NDArray[Any], sides: NDArray[Any], may_be: NDArray[np.bool_] | bool = True
) -> NDArray[np.bool_]:
    """Return which regions are large and at the border, rectangles, or large while another is at the border."""
    rectangular = (sides.min(axis=0) >= RUN) & (area >= _RECTANGULAR * sides.prod(axis=0))
    # a line that is one pixel wide is not padding: a ramp has one
    at_border = (border > 0) & (2 * area >= np.maximum(2 * _LEAST_CORNER, 3 * border)) & may_be
    chosen: NDArray[np.bool_] = at_border | ((area >= RUN * RUN) & (rectangular | (at_border.any() & may_be)))
    return chosen


class _Regions:
    """Connected regions of a value in a slice, which is labelled strip by strip; they are joined across the strips.

    With `solid` the regions are without what is narrower than padding, and apart where they are joined by no more.
    """

    def __init__(
        self, read: ReadRows, shape: tuple[int, int], value: float, pixels_at_once: int, solid: bool = False
    ) -> None:
        self.shape, self.strips = shape, list(strips_of(shape[0], max(1, pixels_at_once // shape[1])))
        self.offsets: list[int] = []
        """Index of the first region of each strip."""
        self._read, self._value, self.solid, self._count = read, value, solid, 0
        self._labelled: tuple[int, NDArray[Any], NDArray[np.int32], int] | None = None
        self._areas: list[NDArray[np.int64]] = []
        self._border: list[NDArray[np.int64]] = []
        self._boxes: list[NDArray[np.int64]] = []
        self._pairs: list[NDArray[np.int64]] = []
        self._last: NDArray[np.int64] | None = None
        above = below = True
        for index, rows in enumerate(self.strips):
            strip, labelled, count = self.label(index)
            self._add(rows, labelled, count)
            above, below = above and bool(strip.min() >= value), below and bool(strip.max() <= value)
        self.may_be_saturated = above or below
        """Whether this is the lowest or the highest value of the slice."""

    def label(self, index: int) -> tuple[NDArray[Any], NDArray[np.int32], int]:
        """Return a strip, its regions, numbered from 1 on, and their number; the last one asked for is kept."""
        if self._labelled is None or self._labelled[0] != index:
            rows = self.strips[index]
            halo = 2 * _SOLID if self.solid else 0
            first = max(rows.start - halo, 0)
            around = self._read(slice(first, min(rows.stop + halo, self.shape[0])))
            within = slice(rows.start - first, rows.stop - first)
            is_value = np.isnan(around) if math.isnan(self._value) else around == self._value
            if self.solid:
                width, bits = 2 * _SOLID + 1, is_value.view(np.uint8)
                core = ndimage.minimum_filter(bits, width, mode="constant", cval=1)
                is_value = ndimage.maximum_filter(core, width, mode="constant", cval=0).view(bool)
            self._labelled = (index, around[within], *ndimage.label(is_value[within]))
        return self._labelled[1:]

    def _add(self, rows: slice, labelled: NDArray[np.int32], count: int) -> None:
        """Add the regions of the next strip, which are 1 to `count` in `labelled`."""
        area = np.bincount(labelled.reshape(-1), minlength=count + 1)[1:]
        lines = [labelled[:, 0], labelled[:, -1]]
        lines += [labelled[0]] * (rows.start == 0) + [labelled[-1]] * (rows.stop == self.shape[0])
        border = np.bincount(np.concatenate(lines), minlength=count + 1)[1:]
        boxes = np.tile([self.shape[0], 0, self.shape[1], 0], (count, 1))
        large = np.flatnonzero(area >= RUN)
        objects = ndimage.find_objects(labelled) if large.size else []
        for i in large:
            y, x = objects[i]
            boxes[i] = rows.start + y.start, rows.start + y.stop, x.start, x.stop
        index = np.where(labelled[[0, -1]] > 0, labelled[[0, -1]] + np.int64(self._count - 1), -1)
        if self._last is not None:
            pairs = np.stack((self._last, index[0]))
            self._pairs.append(np.unique(pairs[:, (pairs >= 0).all(axis=0)], axis=1))
        self._last = index[1]
        self.offsets.append(self._count)
        self._count += count
        self._areas.append(area)
        self._border.append(border)
        self._boxes.append(boxes)

    def joined(self) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
        """Return, for each strip's regions, area, pixels at the border and sides (y, x) of the whole joined region."""
        count, of = self._joined
        boxes, whole = np.concatenate(self._boxes), np.tile([self.shape[0], 0, self.shape[1], 0], (count, 1))
        for side, join in enumerate((np.minimum, np.maximum, np.minimum, np.maximum)):
            join.at(whole[:, side], of, boxes[:, side])
        sides: NDArray[Any] = np.subtract(whole[of, 1::2], whole[of, ::2]).T
        return self._total(self._areas), self._total(self._border), sides

    @cached_property
    def _joined(self) -> tuple[int, NDArray[np.int64]]:
        """Number of joined regions, and which of them each strip's region is a part of."""
        if not self._pairs or not self._count:
            return self._count, np.arange(self._count)
        return components(np.concatenate(self._pairs, axis=1), self._count)

    def _total(self, counts: Iterable[NDArray[np.int64]]) -> NDArray[np.int64]:
        """Return for each strip's region the sum over the whole joined region, of counts that are given by strip."""
        count, of = self._joined
        return np.bincount(of, np.concatenate(list(counts)), count).astype(np.int64)[of]

    def pixels(self, which: NDArray[np.bool_]) -> int:
        """Return the number of pixels of some of the strips' regions."""
        return int(np.concatenate(self._areas)[which].sum())

    def likeness(self) -> NDArray[np.float64]:
        """Return for each strip's region which share of the pixels beside the joined region is nearly of its value."""
        strips = [_beside(*self.label(index)[:2], self._value) for index in range(len(self.strips))]
        limit = np.quantile(np.concatenate([others for _, _, others in strips]), _NEAREST)
        counts = [area.size for area in self._areas]
        near = [np.bincount(of[away <= limit], minlength=n) for (of, away, _), n in zip(strips, counts, strict=True)]
        beside = [np.bincount(of, minlength=n) for (of, _, _), n in zip(strips, counts, strict=True)]
        return self._total(near) / np.maximum(self._total(beside), 1)


def _beside(
    strip: NDArray[Any], labelled: NDArray[np.int32], value: float
) -> tuple[NDArray[np.int32], NDArray[np.float32], NDArray[np.float32]]:
    """Return of each pixel beside a region the region's index and how far it is from the value, and so of some others.

    A pixel that is beside a region on several sides counts as often.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        distance = np.abs(strip.astype(np.float32) - np.float32(value))
    of, away = [], []
    for axis in (0, 1):
        regions, distances = np.moveaxis(labelled, axis, 0), np.moveaxis(distance, axis, 0)
        for inner, outer in ((slice(1, None), slice(-1)), (slice(-1), slice(1, None))):
            at_edge = (regions[inner] > 0) & (regions[outer] == 0)
            of.append(regions[inner][at_edge] - 1)
            away.append(distances[outer][at_edge])
    return np.concatenate(of), np.concatenate(away), distance[labelled == 0][::_BLOCK]


def _with_soft_edge(strip: NDArray[Any], region: NDArray[np.bool_], value: float) -> NDArray[np.bool_]:
    """Return the region with its edge as lossy compression has left it, if most adjacent pixels are close in value."""
    around = grown(region, 1) & ~region
    if not around.any():
        return region
    with np.errstate(over="ignore", invalid="ignore"):
        distance = np.abs(strip.astype(np.float32) - np.float32(value))
        tolerance = np.median(distance[~region][::_BLOCK]) / 4
    if not math.isfinite(tolerance):  # the padding is infinite, or the lowest float
        return region
    near = distance <= tolerance
    if 2 * np.count_nonzero(near & around) < np.count_nonzero(around):
        return region
    if grown(~region, _BLOCK // 4).all():  # thinner than a block
        return region
    soft: NDArray[np.bool_] = ndimage.binary_dilation(region, np.ones((3, 3)), _BLOCK, mask=near)
    return soft | region
