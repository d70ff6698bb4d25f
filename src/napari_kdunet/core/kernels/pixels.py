"""Kernels for the pixels of a slice, each a single pass; `volumes.sample` calls them if Numba is available."""
# mypy: ignore-errors

from __future__ import annotations

import numpy as np

from napari_kdunet.core.kernels.jit import can_cache, njit

__all__ = ["sums", "write_above", "write_standardised"]

_OPTIONS = {"nogil": True, "error_model": "numpy", "cache": can_cache()}


@njit(**_OPTIONS)
def sums(pixels):
    """Return the exact sum of unsigned pixels (N,) of at most 16 bits, and that of their squares."""
    total = squares = np.uint64(0)
    for i in range(len(pixels)):
        value = np.uint64(pixels[i])
        total += value
        squares += value * value
    return total, squares


def _standardising(number):
    """Make a kernel that standardises by a mean and a deviation of the type `number`, and computes in that type."""

    @njit(**_OPTIONS)
    def write(pixels, rows, columns, left, mean, std, out):
        right = left + pixels.shape[1]
        for y in range(len(rows)):
            source, target = pixels[rows[y]], out[y]
            inner = target[left:right]
            for x in range(len(source)):
                inner[x] = (number(source[x]) - mean) / std
            for x in range(left):
                target[x] = inner[columns[x]]
            for x in range(right, len(columns)):
                target[x] = inner[columns[x]]

    return write


_in_single, _in_double = _standardising(np.float32), _standardising(np.float64)


def write_standardised(pixels, rows, columns, left, mean, std, out):
    """Write ``(pixels - mean) / std`` to `out`, with borders of other rows and columns around it.

    Parameters
    ----------
    pixels : ndarray
        (Y, X).
    rows, columns : ndarray of int
        Row and column of `pixels` that each row and each column of `out` shows.
    left : int
        Number of columns of `out` before the first of `pixels`.
    mean, std : float32 or float64
        Mean and standard deviation; the computation is in their precision.
    out : ndarray of float32
        (rows, columns).
    """
    write = _in_single if isinstance(mean, np.float32) else _in_double
    write(pixels, rows, columns, left, mean, std, out)


@njit(**_OPTIONS)
def write_above(plane, rows, columns, level, out):
    """Write to `out` where a plane, enlarged bilinearly, is above a level.

    Parameters
    ----------
    plane : ndarray of float32
        (Y, X).
    rows, columns : tuple of ndarray
        For each row (column) of `out`, the first and the second row (column) of the plane that it lies between (int64),
        and its place between them, from 0 at the first to 1 at the second (float32).
    level : float32
        Value above which a pixel counts.
    out : ndarray of uint8
        (rows, columns), 1 above the level and 0 elsewhere.
    """
    first, second, near = columns
    line = np.empty(plane.shape[1], np.float32)
    for y in range(len(out)):
        above, below, weight = plane[rows[0][y]], plane[rows[1][y]], rows[2][y]
        for x in range(len(line)):
            line[x] = above[x] + weight * (below[x] - above[x])
        target = out[y]
        for x in range(len(target)):
            left = line[first[x]]
            target[x] = left + near[x] * (line[second[x]] - left) > level
