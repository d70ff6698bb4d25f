"""Padding around the sample in a slice: large connected regions of exactly one value."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
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
      the border, all large ones.

    The slice is labelled in strips of `pixels_at_once`, and the regions are joined across them.
    """

    def label(rows: slice) -> tuple[NDArray[Any], NDArray[np.int32], int]:
        strip = read(rows)
        return strip, *ndimage.label(np.isnan(strip) if math.isnan(value) else strip == value)

    strips, regions = list(strips_of(shape[0], max(1, pixels_at_once // shape[1]))), _Regions(shape)
    for rows in strips:
        strip, labelled, count = label(rows)
        regions.add(rows, labelled, count)
    area, border, sides = regions.joined()
    if math.isnan(value):
        chosen = ((border > 0) & (area >= LEAST_REGION)) | stated
    elif stated:
        chosen = area >= LEAST_REGION
    elif band:
        chosen = (border > 0) & (area >= RUN * RUN) & (2 * sides >= np.array([shape]).T).any(axis=0)
    else:
        rectangular = (sides.min(axis=0) >= RUN) & (area >= _RECTANGULAR * sides.prod(axis=0))
        # a line that is one pixel wide is not padding: a ramp has one
        at_border = (border > 0) & (2 * area >= np.maximum(2 * _LEAST_CORNER, 3 * border))
        chosen = at_border | ((area >= RUN * RUN) & (rectangular | at_border.any()))
    outside = Mask(shape)
    for rows, first in zip(strips if chosen.any() else (), regions.offsets, strict=False):
        if len(strips) > 1:
            strip, labelled, count = label(rows)
        region = np.append(False, chosen[first : first + count])[labelled]
        outside.add(rows, region if math.isnan(value) else _with_soft_edge(strip, region, value))
    return outside


class _Regions:
    """Connected regions of a slice that is labelled strip by strip and joined at the end."""

    def __init__(self, shape: tuple[int, int]) -> None:
        self.shape = shape
        self.offsets: list[int] = []
        """Index of the first region of each strip."""
        self._count = 0
        self._areas: list[NDArray[np.int64]] = []
        self._border: list[NDArray[np.int64]] = []
        self._boxes: list[NDArray[np.int64]] = []
        self._pairs: list[NDArray[np.int64]] = []
        self._last: NDArray[np.int64] | None = None

    def add(self, rows: slice, labelled: NDArray[np.int32], count: int) -> None:
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
        area, border, boxes = (np.concatenate(each) for each in (self._areas, self._border, self._boxes))
        if self._pairs and self._count:
            count, of = components(np.concatenate(self._pairs, axis=1), self._count)
            area = np.bincount(of, area, count).astype(np.int64)[of]
            border = np.bincount(of, border, count).astype(np.int64)[of]
            whole = np.tile([self.shape[0], 0, self.shape[1], 0], (count, 1))
            for side, join in enumerate((np.minimum, np.maximum, np.minimum, np.maximum)):
                join.at(whole[:, side], of, boxes[:, side])
            boxes = whole[of]
        sides: NDArray[Any] = np.subtract(boxes[:, 1::2], boxes[:, ::2]).T
        return area, border, sides


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
