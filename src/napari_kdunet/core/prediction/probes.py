"""A few windows of a volume, by which a network is fitted to it: to find its pixel size or its statistics."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from itertools import product

from napari_kdunet.core.errors import VolumeError
from napari_kdunet.core.networks.model import Model
from napari_kdunet.core.prediction.tiler import Tiler
from napari_kdunet.core.volumes.neighbours import Neighbours
from napari_kdunet.core.volumes.resampling import Grid
from napari_kdunet.core.volumes.slices import spaced
from napari_kdunet.core.volumes.volume import Volume

__all__ = ["Probes"]

_LOOKED_AT = 12  # slices that are examined besides, until enough are found that are not lost
_WORKING_SIDE = 640  # working pixels along a side of the window that is predicted
_LARGEST_SIDE = 2048  # image pixels along a side of the window that is held in memory
_PLACES = (0.5, 0.25, 0.75, 0.0, 1.0)  # of that window along a side of the slice; the first good one is taken
_LITTLE_OUTSIDE = 0.25  # largest share of a good window that is outside the sample


@dataclass(frozen=True)
class Probes:
    """Windows of evenly spaced slices, in memory, where there is sample.

    Attributes
    ----------
    volume : Volume
        The windows as slices, each among those of the neighbours that the network sees.
    tiler : Tiler
        Applies the network to the windows.
    """

    volume: Volume
    tiler: Tiler

    @classmethod
    def of(cls, model: Model, volume: Volume, slices: int, device: str, threads: int | None) -> Probes | None:
        """Read the windows of `slices` slices; None if there is no sample anywhere."""
        neighbours = Neighbours.between(model.context, model.context_distance, volume.voxel_size)
        found = _windows(volume, slices, neighbours)
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
        """Return start and stop, along Y and X, of the middle of each window, which is predicted with `grid`."""
        spans = []
        for n, ratio in zip(self.volume.shape[1:], grid.ratio, strict=True):
            side = min(n, max(1, int(_WORKING_SIDE / ratio)))
            spans.append(((n - side) // 2, (n - side) // 2 + side))
        return spans[0], spans[1]


def _windows(volume: Volume, slices: int, neighbours: Neighbours) -> list[tuple[int, slice, slice]]:
    """Return slices that show sample, each with the rows and columns of its window.

    Slices that cannot be read are passed over: whoever predicts them decides what follows from that.

    Raises
    ------
    VolumeError
        If there is no other slice.
    """
    count = min(max(slices, 1), len(volume))
    first, more = (spaced(range(len(volume)), most) for most in (count, _LOOKED_AT))
    errors = []

    def shows_sample(z: int) -> bool:
        try:
            return not volume.is_lost(z) and bool(neighbours.of(volume, z))
        except VolumeError as error:
            errors.append(error)
            return False

    held = [z for z in first if shows_sample(z)]
    for z in more if len(held) < count else ():
        if z not in first and len(held) < count and shows_sample(z):
            held.append(z)
    if errors and not held:
        raise errors[0]
    whole = max(volume.shape[1:]) <= _LARGEST_SIDE and all(volume.outside(z) is None for z in held)
    window = (slice(None), slice(None))
    return [(z, *(window if whole else _window(volume, z))) for z in sorted(held)]


def _window(volume: Volume, z: int) -> tuple[slice, slice]:
    """Return a window with little outside the sample, if possible the middle; its shape is the same for all slices."""
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
