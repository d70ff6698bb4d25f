"""Which pixels of a slice show the sample, and their mean and standard deviation.

Outside the sample are padding around a rotated, aligned or partly acquired image, missing tiles, lost sections, and
single pixels far beyond all others (hot pixels, or a code for "no data"): their values say nothing, and would spoil the
statistics that a slice is standardised by.

Padding is found as large connected regions of exactly one value. The first test for them, runs of equal values along
the borders and in every 32nd row, is cheap, so that slices without padding take hardly longer. Narrow bands of padding,
such as cracks and seams between tiles, are looked for in every 32nd row and column, and only in the lowest and the
highest value.
"""

from __future__ import annotations

import math
from functools import cache, lru_cache
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from napari_kdunet.core.volumes.padding import BAND, LEAST_REGION, RUN, Mask, ReadRows, find_regions, strips_of

__all__ = ["BLURRED", "Pad", "Summary", "UnusableError", "compiled_passes", "mirrored", "standardised", "summarise"]

BLURRED = 2  # pixels along the edge of the sample that interpolation mixes with the padding
_MOST_FILLS = 8
_CORNER = 16  # pixels of equal value along both sides of a corner, which may be padding
_IN_RUNS = 0.6  # least share of a value's pixels that are in runs if it is a band of padding rather than saturation
_MOST_BANDS = 4  # bands that a line of a slice crosses at most, on average
_STRIP_ROWS = 1024
_AT_ONCE = 2**15  # pixels that are float64 at a time: few enough for the cache
_COMPILED = (np.uint8, np.uint16, np.int16, np.float32)  # usual dtypes of images; each takes a second to compile
_LEAST_SAMPLE = 0.01  # share of a slice; with less, and less than RUN x RUN pixels, it has no sample
_NOISE_LEVELS = 16  # most distinct values of a slice that may be nothing but read noise ...
_NOISE_SHARE = 0.02  # ... or its largest standard deviation, as a share of the range of 8 and 16 bit integers
_QUANTILES = (0.001, 0.999)  # pixels between them span the values of an image ...
_BEYOND = 10  # ... and one beyond them by this many spans is none of it
_MOST = (0.05, 0.95)  # quantiles of a part of the pixels, which surely span less
_UNLIKE = 0.02  # correlation of neighbouring pixels below which they have nothing in common
_SURELY_ALIKE = 0.3  # ... and above which a look at every 32nd row is enough
_FILLED_ROWS = 256
_KEPT = 2**22  # pixels of the largest window whose mirror images are cached for the next slice


Pad: TypeAlias = tuple[int, int]
"""Pixels before and after."""


class UnusableError(ValueError):
    """Values that cannot be standardised; the message continues a sentence that begins with the slice."""


class Summary(NamedTuple):
    """Statistics of a slice that are needed to standardise it.

    `mean` and `std` are those of the sample, in raw values. `outside` marks the pixels outside the sample, None if
    there are none; `lost` says that the slice shows no sample.
    """

    mean: float
    std: float
    outside: Mask | None = None
    lost: bool = False


def summarise(
    read: ReadRows, shape: tuple[int, int], fill: float | None = None, stated: ReadRows | None = None
) -> Summary:
    """Find the sample in a slice, and its mean and standard deviation.

    Parameters
    ----------
    read : callable
        Reads rows of the slice, (rows, X). Called once with each strip of rows, and again where padding is likely.
    shape : tuple of int
        (Y, X).
    fill : float, optional
        Value outside the sample, which may be NaN; padding is detected if None.
    stated : callable, optional
        Reads rows of a mask that is non-zero in the sample; then `fill` is not used, and no padding is detected.

    Raises
    ------
    UnusableError
        If the sample holds NaN or infinite values, or values too large or too small to compute with.
    """
    scan = _Scan(shape)
    for rows in strips_of(shape[0], _STRIP_ROWS):
        scan.add(rows, read(rows))
    if stated is not None:
        outside = _stated(stated, shape)
    elif fill is not None:
        outside = find_regions(read, shape, fill, stated=True)
    else:
        outside = Mask(shape)
        for value in scan.fills():
            outside |= find_regions(read, shape, value, stated=False)
        for value in scan.bands():
            outside |= find_regions(read, shape, value, stated=False, band=True)
    if (limits := scan.limits()) is not None:
        for rows in strips_of(shape[0], _STRIP_ROWS):
            strip = read(rows)
            outside.add(rows, (strip < limits[0]) | (strip > limits[1]))
    moments = scan.moments
    if outside.any():
        moments = _Moments()
        for rows in strips_of(shape[0], _STRIP_ROWS):
            moments.add(read(rows)[~outside.window(rows, grow=BLURRED)])
        if moments.finite and moments.size < min(RUN * RUN, _LEAST_SAMPLE * math.prod(shape)):
            mean = scan.moments.mean_and_std()[0] if scan.moments.finite else 0.0
            return Summary(mean, 0.0, None, lost=True)
    mean, std = moments.mean_and_std()
    masked = outside if outside.any() else None
    constant = std == 0 and math.prod(shape) >= LEAST_REGION
    return Summary(mean, std, masked, constant or _is_noise(read, mean, std, masked, scan))


def standardised(
    pixels: NDArray[Any], mean: float, std: float, pads: tuple[Pad, Pad] = ((0, 0), (0, 0))
) -> NDArray[np.float32]:
    """Return ``(pixels - mean) / std`` as float32, undivided if `std` is 0, with `pads` mirrored at its borders.

    Pixels of more than 16 bits are computed in double precision: they may be far from 0, and close to each other.

    Parameters
    ----------
    pixels : ndarray
        (Y, X), of any dtype.
    mean, std : float
        Statistics of the slice, in raw values.
    pads : pair of (int, int)
        Pixels to add before and after, along Y and X.
    """
    compiled, std = compiled_passes(), std or 1.0
    if compiled is not None and pixels.dtype in _COMPILED:
        rows, columns = (_reflected(n, *pad) for n, pad in zip(pixels.shape, pads, strict=True))
        image = np.empty((len(rows), len(columns)), np.float32)
        number = np.float32 if pixels.dtype.itemsize <= 2 else np.float64
        borders = (rows, columns, pads[1][0])
        compiled.write_standardised(np.ascontiguousarray(pixels), *borders, number(mean), number(std), image)
        return image
    pixels = np.pad(pixels, pads, mode="reflect")
    if pixels.dtype.itemsize <= 2:
        image = pixels.astype(np.float32)
        image -= np.float32(mean)
        image /= np.float32(std)
        return image
    image = np.empty(pixels.shape, np.float32)
    step = max(1, _AT_ONCE // pixels.shape[-1])
    for top in range(0, len(pixels), step):
        image[top : top + step] = (pixels[top : top + step].astype(np.float64) - mean) / std
    return image


@cache
def compiled_passes() -> Any:
    """Return the module of compiled passes over the pixels of a slice; None without Numba (the extra ``fast``)."""
    try:
        from napari_kdunet.core.kernels import pixels
    except ImportError:
        return None
    return pixels


@lru_cache
def _reflected(size: int, before: int, after: int) -> NDArray[np.int64]:
    """Return the source index of each row (or column) of an image of `size` rows with mirrored rows at both ends."""
    return np.pad(np.arange(size), (before, after), mode="reflect")


def mirrored(
    pixels: NDArray[Any], outside: NDArray[np.bool_], inner: tuple[slice, slice], reach: int, value: float
) -> NDArray[Any]:
    """Replace the pixels outside the sample by the image mirrored at the sample's edge.

    A pixel at distance d from the nearest pixel of the sample gets the value at distance d beyond that.

    Parameters
    ----------
    pixels : ndarray
        (Y, X), any dtype.
    outside : ndarray
        (Y, X) bool, the pixels to replace.
    inner : pair of slice
        Window of the result within `pixels`. If `pixels` has twice `reach` more on each side, or ends at the image's
        border, the result does not depend on what lies beyond.
    reach : int
        Distance in pixels: those farther from the sample get `value`, and so do those whose mirror image is outside.
    value : float
        Value of pixels that are not mirrored, in raw units.

    Returns
    -------
    ndarray
        A new array of the size of `inner`, of the dtype of `pixels`.
    """
    result: NDArray[Any] = pixels[inner].copy()
    result[outside[inner]] = value if pixels.dtype.kind == "f" else _nearest(value, pixels.dtype)
    target, source = _mirror_images(outside, inner, reach)
    result.reshape(-1)[target] = pixels.reshape(-1)[source]
    return result


def _nearest(value: float, dtype: np.dtype[Any]) -> int:
    """Return the nearest value of an integer type; as a float, the mean of the largest 64-bit values is beyond it."""
    if dtype.kind == "b":
        return value >= 0.5
    limits = np.iinfo(dtype)
    return min(max(round(value), int(limits.min)), int(limits.max))


_Indices: TypeAlias = NDArray[np.int32]
_last: tuple[NDArray[np.bool_], tuple[slice, slice], int, tuple[_Indices, _Indices]] | None = None
"""Last arguments and result of `_mirror_images`, as the slices of a stack often have the same padding."""


def _mirror_images(outside: NDArray[np.bool_], inner: tuple[slice, slice], reach: int) -> tuple[_Indices, _Indices]:
    """Return flat indices of the pixels to replace, in the result, and of their mirror images, in the whole window."""
    global _last
    last = _last
    if last is not None and last[1:3] == (inner, reach) and np.array_equal(last[0], outside):
        return last[3]
    (top, bottom, _), (left, right, _) = (part.indices(n) for part, n in zip(inner, outside.shape, strict=True))
    if outside.all():
        return np.empty(0, np.int32), np.empty(0, np.int32)
    nearest = ndimage.distance_transform_edt(outside, return_distances=False, return_indices=True)
    targets, sources = [], []
    for first in range(top, bottom, _FILLED_ROWS):
        y, x = np.nonzero(outside[first : min(first + _FILLED_ROWS, bottom), left:right])
        near_y, near_x = (each[first:bottom, left:right][y, x] for each in nearest)
        off_y, off_x = near_y - y - first, near_x - x - left
        mirror_y, mirror_x = (
            np.clip(near + off, 0, n - 1)
            for near, off, n in zip((near_y, near_x), (off_y, off_x), outside.shape, strict=True)
        )
        usable = (off_y**2 + off_x**2 <= reach**2) & ~outside[mirror_y, mirror_x]
        targets.append(((y + first - top) * (right - left) + x)[usable].astype(np.int32))
        sources.append((mirror_y * outside.shape[1] + mirror_x)[usable].astype(np.int32))
    found = np.concatenate(targets), np.concatenate(sources)
    _last = (outside, inner, reach, found) if outside.size <= _KEPT else None
    return found


class _Moments:
    """Mean and standard deviation, from many small parts."""

    def __init__(self) -> None:
        self._parts: list[tuple[int, float, float]] = []
        self._range: tuple[float, float] = (math.inf, -math.inf)
        """Lowest and highest pixel as long as all are (nearly) equal; after that infinite."""
        self.finite = True

    @property
    def size(self) -> int:
        return sum(size for size, *_ in self._parts)

    def add(self, pixels: NDArray[Any]) -> None:
        self.finite = self.finite and bool(np.isfinite(pixels).all())
        if not self.finite or not pixels.size:
            return
        with np.errstate(over="ignore"):
            for part in np.array_split(pixels.reshape(-1), -(-pixels.size // _AT_ONCE)):
                mean, variance = _mean_and_variance(part)
                self._parts.append((part.size, mean, variance))
                if math.sqrt(variance) > 1e-6 * abs(mean):
                    self._range = (-math.inf, math.inf)
                else:
                    self._range = (min(self._range[0], part.min()), max(self._range[1], part.max()))

    def mean_and_std(self) -> tuple[float, float]:
        if not self.finite:
            raise UnusableError(
                "holds NaN or infinite values: replace them, or give --fill nan (in Python fill=math.nan) where NaN is "
                "no sample"
            )
        size, means, variances = np.array(self._parts).T
        with np.errstate(over="ignore", invalid="ignore"):
            mean = float(np.average(means, weights=size))
            std = math.sqrt(np.average(variances + (means - mean) ** 2, weights=size))
        if not math.isfinite(mean) or not math.isfinite(std):
            raise UnusableError("holds values too large to compute with: divide them by a power of ten")
        lowest, highest = self._range
        if lowest == highest:
            return float(lowest), 0.0
        if std == 0:
            raise UnusableError("holds values too small to compute with: multiply them by a power of ten")
        return mean, std


def _mean_and_variance(part: NDArray[Any]) -> tuple[float, float]:
    """Return mean and variance of at most `_AT_ONCE` pixels: of uint8 and uint16 from exact sums, in half the time."""
    if part.dtype in (np.uint8, np.uint16):
        compiled = compiled_passes()
        total, squares = _sums(part) if compiled is None else compiled.sums(part)
        return total / part.size, (squares * part.size - total**2) / part.size**2
    values = part.astype(np.float64)
    mean = values.mean()
    values -= mean
    np.square(values, out=values)  # not values @ values: the threads of a BLAS then keep a core busy waiting
    return mean, values.mean()


def _sums(part: NDArray[Any]) -> tuple[int, int]:
    """Return exact sums of pixels and of their squares, as the compiled `sums` does."""
    squared, summed = (np.uint16, np.uint32) if part.dtype == np.uint8 else (np.uint32, np.uint64)
    squares = part.astype(squared)
    total = int(np.add.reduce(squares, dtype=summed))
    np.square(squares, out=squares)
    return total, int(np.add.reduce(squares, dtype=summed))


class _Scan:
    """The one pass over each slice: its moments, and the values that may be padding."""

    def __init__(self, shape: tuple[int, int]) -> None:
        self.shape, self.moments = shape, _Moments()
        self.lines: list[NDArray[Any]] = []
        """Every 32nd row."""
        self._across: list[NDArray[Any]] = []
        """Every 32nd column."""
        self._columns: list[NDArray[Any]] = []
        self._runs: dict[float, int] = {}
        self._nan = False
        self._range = (math.inf, -math.inf)
        """Lowest and highest pixel of a slice of more than 8 bits."""

    def add(self, rows: slice, strip: NDArray[Any]) -> None:
        """Add the next strip, `rows` of the slice."""
        if rows.start == 0:
            self._count_corners(strip)
        if rows.stop == self.shape[0]:
            self._count_corners(strip[::-1])
        self.moments.add(strip)
        if strip.dtype.itemsize > 1:
            self._range = min(self._range[0], strip.min().item()), max(self._range[1], strip.max().item())
        self._nan = self._nan or (not self.moments.finite and bool(np.isnan(strip).any()))
        self.lines.append(strip[::RUN].copy())
        self._across.append(strip[:, ::RUN].copy())
        self._columns.append(strip[:, [0, -1]])
        self._count_runs(self.lines[-1])
        if rows.stop == self.shape[0]:
            self._count_runs(strip[-1:])
            self._count_runs(np.concatenate(self._columns).T)

    def _count_corners(self, strip: NDArray[Any]) -> None:
        """Note the value of a corner with equal pixels along both sides: a slight rotation leaves no longer run."""
        if min(self.shape) < 4 * _CORNER:
            return
        for corner in (strip[:_CORNER, :_CORNER], strip[:_CORNER, : -_CORNER - 1 : -1]):
            sides = np.concatenate((corner[0], corner[:, 0]))
            if len(sides) == 2 * _CORNER and (sides == sides[0]).all():
                value = sides[0].item()
                self._runs[value] = self._runs.get(value, 0) + _CORNER

    def _count_runs(self, lines: NDArray[Any]) -> None:
        """Note the values that occur `RUN` or more times side by side."""
        some = lines[:, :: RUN // 4]  # a run covers four of these: most lines have no four equal ones, and are done
        alike = some[:, 1:] == some[:, :-1]
        if not (alike[:, 2:] & alike[:, 1:-1] & alike[:, :-2]).any():
            return
        flat = np.ascontiguousarray(lines).reshape(-1)
        changes = np.empty(flat.size, bool)
        np.not_equal(flat[1:], flat[:-1], out=changes[1:])
        changes[:: lines.shape[1]] = True
        starts = np.flatnonzero(changes)
        lengths = np.diff(starts, append=flat.size)
        for i in np.flatnonzero(lengths >= RUN):
            value = flat[starts[i]].item()
            self._runs[value] = self._runs.get(value, 0) + int(lengths[i])

    def limits(self) -> tuple[float, float] | None:
        """Return the lowest and the highest value that a pixel of the image may have, if any pixel is beyond them."""
        if not self.moments.finite or self._range[0] > self._range[1]:
            return None
        (lowest, highest), lines = self._range, np.concatenate(self.lines)
        low, high = np.quantile(lines[:, ::16], _MOST)
        if highest - lowest <= _BEYOND * (high - low):  # as in nearly all slices: no need to sort all of the lines
            return None
        low, high = np.quantile(lines, _QUANTILES)
        low, high = low - _BEYOND * (high - low), high + _BEYOND * (high - low)
        return (low, high) if low < high and (lowest < low or highest > high) else None

    def fills(self) -> list[float]:
        """Return the values that may be padding: those with most pixels in runs, and NaN if there is any."""
        values = sorted(self._runs, key=self._runs.__getitem__, reverse=True)[:_MOST_FILLS]
        return [*values, math.nan] if self._nan else values

    def bands(self) -> list[float]:
        """Return the lowest and the highest value, each if narrow bands of it may run through half of the slice."""
        if min(self.shape) < 4 * RUN:
            return []
        rows, columns = np.concatenate(self.lines), np.concatenate(self._across).T
        extremes = {rows.min().item(), rows.max().item()} - self._runs.keys()
        return [value for value in sorted(extremes) if _in_half_of(rows == value) or _in_half_of(columns == value)]


def _in_half_of(lines: NDArray[np.bool_]) -> bool:
    """Whether half of the lines have a run as long as a band is wide, few have many, and few runs are shorter."""
    pixels, last = np.count_nonzero(lines), lines.shape[1] - BAND + 1
    if 2 * pixels < BAND * len(lines):
        return False
    starts = np.logical_and.reduce([lines[:, i : last + i] for i in range(BAND)])
    crossed = np.count_nonzero(starts.any(axis=1))
    in_runs = np.zeros_like(lines)
    for i in range(BAND):
        in_runs[:, i : last + i] |= starts
    runs = np.count_nonzero(starts[:, 1:] > starts[:, :-1]) + np.count_nonzero(starts[:, 0])
    return bool(
        2 * crossed >= len(lines) and runs <= _MOST_BANDS * crossed and np.count_nonzero(in_runs) >= _IN_RUNS * pixels
    )


def _stated(read: ReadRows, shape: tuple[int, int]) -> Mask:
    outside = Mask(shape)
    for rows in strips_of(shape[0], _STRIP_ROWS):
        outside.add(rows, read(rows) == 0)
    return outside


def _is_noise(read: ReadRows, mean: float, std: float, outside: Mask | None, scan: _Scan) -> bool:
    """Whether the sample is nothing but read noise: few grey levels, and neighbouring pixels are uncorrelated."""
    lines, shape = np.concatenate(scan.lines), scan.shape
    if math.prod(shape) < RUN * RUN or lines.dtype == bool:
        return False
    if lines.dtype.kind in "iu" and lines.dtype.itemsize <= 2:
        if std > _NOISE_SHARE * 2 ** (8 * lines.dtype.itemsize):
            return False
    elif np.unique(lines[0]).size > _NOISE_LEVELS:
        return False
    if outside is None:
        some = lines.astype(np.float64) - mean
        if (some[:, :-1] * some[:, 1:]).sum() > _SURELY_ALIKE * np.square(some).sum():
            return False
    sums, pixels = np.zeros(3), 0
    for rows in strips_of(shape[0], _STRIP_ROWS):
        values = (read(rows).astype(np.float64) - mean).astype(np.float32)
        if outside is not None:
            values[outside.window(rows, grow=BLURRED)] = 0
        pixels += int(np.count_nonzero(values))
        products = (values * values, values[:, 1:] * values[:, :-1], values[1:] * values[:-1])
        sums += [product.sum(dtype=np.float64) for product in products]
    return bool(np.abs(sums[1:]).max() <= max(_UNLIKE, 4 / math.sqrt(max(pixels, 1))) * sums[0])
