"""A few windows of a volume, by which a network is made to fit it: its pixel size, its statistics."""

from __future__ import annotations

import math
from itertools import product

from napari_kdunet.core.volumes.resampling import Grid
from napari_kdunet.core.volumes.volume import Volume

__all__ = ["middle", "probe_windows"]

_LOOKED_AT = 12  # slices, until so many are found that are not lost
_WORKING_SIDE = 640  # working pixels of the window that is predicted
_LARGEST_SIDE = 2048  # pixels of the image that are held of a slice
_PLACES = (0.5, 0.25, 0.75, 0.0, 1.0)  # of that window along a side, the first one that is good
_LITTLE_OUTSIDE = 0.25  # share of a good window that is outside the sample


def probe_windows(volume: Volume, slices: int) -> Volume | None:
    """Windows of evenly spaced slices, in memory: those where there is sample; None where there is none anywhere."""
    count = min(max(slices, 1), len(volume))
    spaced = [(2 * i + 1) * len(volume) // (2 * count) for i in range(count)]
    more = [(2 * i + 1) * len(volume) // (2 * _LOOKED_AT) for i in range(_LOOKED_AT)]
    held = [z for z in spaced if not volume.is_lost(z)]
    for z in more if len(held) < count else ():
        if z not in spaced and len(held) < count and not volume.is_lost(z):
            held.append(z)
    whole = max(volume.shape[1:]) <= _LARGEST_SIDE and all(volume.outside(z) is None for z in held)
    window = (slice(None), slice(None))
    return volume.extract([(z, *(window if whole else _window(volume, z))) for z in sorted(held)]) if held else None


def _window(volume: Volume, z: int) -> tuple[slice, slice]:
    """A part of a slice, of the same shape for each, where little is outside the sample: the middle if it is there."""
    shape = volume.shape[1:]
    height, width = (min(n, max(n // 2, _WORKING_SIDE), _LARGEST_SIDE) for n in shape)
    best, least = (slice(0, height), slice(0, width)), math.inf
    for at_y, at_x in product(_PLACES, _PLACES):
        top, left = round(at_y * (shape[0] - height)), round(at_x * (shape[1] - width))
        window = slice(top, top + height), slice(left, left + width)
        outside = volume.outside(z, *window)
        share = 0.0 if outside is None else float(outside.mean())
        if share < least:
            best, least = window, share
        if least <= _LITTLE_OUTSIDE:
            break
    return best


def middle(probes: Volume, grid: Grid) -> tuple[tuple[int, int], tuple[int, int]]:
    """Start and stop along Y and X of what of each window is predicted at the working pixel size of `grid`."""
    spans = []
    for n, ratio in zip(probes.shape[1:], grid.ratio, strict=True):
        side = min(n, max(1, int(_WORKING_SIDE / ratio)))
        spans.append(((n - side) // 2, (n - side) // 2 + side))
    return spans[0], spans[1]
