"""A few windows of a volume, by which a network is made to fit it: its pixel size, its statistics."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from itertools import product

from napari_kdunet.core.networks.model import Model
from napari_kdunet.core.prediction.tiler import Tiler
from napari_kdunet.core.volumes.neighbours import Neighbours
from napari_kdunet.core.volumes.resampling import Grid
from napari_kdunet.core.volumes.slices import spaced
from napari_kdunet.core.volumes.volume import Volume

__all__ = ["Probes"]

_LOOKED_AT = 12  # slices, until so many are found that are not lost
_WORKING_SIDE = 640  # working pixels of the window that is predicted
_LARGEST_SIDE = 2048  # pixels of the image that are held of a slice
_PLACES = (0.5, 0.25, 0.75, 0.0, 1.0)  # of that window along a side, the first one that is good
_LITTLE_OUTSIDE = 0.25  # share of a good window that is outside the sample


@dataclass(frozen=True)
class Probes:
    """Windows of evenly spaced slices, in memory: those where there is sample.

    Attributes
    ----------
    volume : Volume
        Each window with those of the neighbours that the network sees, one after the other.
    tiler : Tiler
        Applies the network to them.
    """

    volume: Volume
    tiler: Tiler

    @classmethod
    def of(cls, model: Model, volume: Volume, slices: int, device: str, threads: int | None) -> Probes | None:
        """Those of so many slices; None where there is no sample anywhere."""
        neighbours = Neighbours.between(model.context, model.context_distance, volume.voxel_size)
        found = _windows(volume, slices)
        if not found:
            return None
        held = volume.extract([(near, y, x) for z, y, x in found for near in neighbours.of(volume, z)])
        tiler = Tiler.of(model, held, device, threads)
        return cls(held, replace(tiler, neighbours=Neighbours(model.context)))

    @property
    def slices(self) -> range:
        """Indices in `volume` of the windows to predict, in the middle of their neighbours."""
        context = self.tiler.neighbours.context
        return range(context, len(self.volume), 2 * context + 1)

    def middle(self, grid: Grid) -> tuple[tuple[int, int], tuple[int, int]]:
        """Start and stop along Y and X of what of each window is predicted at the working pixel size of `grid`."""
        spans = []
        for n, ratio in zip(self.volume.shape[1:], grid.ratio, strict=True):
            side = min(n, max(1, int(_WORKING_SIDE / ratio)))
            spans.append(((n - side) // 2, (n - side) // 2 + side))
        return spans[0], spans[1]


def _windows(volume: Volume, slices: int) -> list[tuple[int, slice, slice]]:
    """Slices that show sample, and of each the window to look at."""
    count = min(max(slices, 1), len(volume))
    first, more = (spaced(range(len(volume)), most) for most in (count, _LOOKED_AT))
    held = [z for z in first if not volume.is_lost(z)]
    for z in more if len(held) < count else ():
        if z not in first and len(held) < count and not volume.is_lost(z):
            held.append(z)
    whole = max(volume.shape[1:]) <= _LARGEST_SIDE and all(volume.outside(z) is None for z in held)
    window = (slice(None), slice(None))
    return [(z, *(window if whole else _window(volume, z))) for z in sorted(held)]


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
