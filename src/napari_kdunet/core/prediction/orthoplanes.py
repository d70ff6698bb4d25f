"""Ortho-plane prediction: a 2-D network on the slices along z, y and x of an isotropic volume, and their mean.

The volume is predicted in blocks that are as large as memory allows. A block is computed with its halo, which overlaps
the next block and is computed again there, so a few large blocks cost less than many small ones.
"""

from __future__ import annotations

import itertools
import math
import threading
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from napari_kdunet.core.networks.model import Model
from napari_kdunet.core.prediction.tiler import Tiler, set_background
from napari_kdunet.core.prediction.tiling import Span
from napari_kdunet.core.reading.sources import Key
from napari_kdunet.core.volumes.resampling import Grid
from napari_kdunet.core.volumes.volume import Volume, check_planes

__all__ = ["OrthoPlanes"]

_ORDERS = ((0, 1, 2), (1, 0, 2), (2, 0, 1))  # slices along z are YX, along y ZX, along x ZY
MEMORY = 9 * 10**8  # bytes of a block, and of the results of the blocks beside it, which a writer holds
_MOST_BLOCKS = 64  # along an axis at most, however much memory a block then takes
_STRIP = 2**22  # pixels that are float64 at a time

_block_lock = threading.Lock()  # one block at a time: each is about as large as memory allows


@dataclass(frozen=True, eq=False)
class OrthoPlanes:
    """Averages the logits of the slices along z, y and x, block by block.

    Attributes
    ----------
    volume : Volume
        ZYX volume of isotropic voxels.
    tilers : tuple of Tiler
        Tilers of the slices along z, y and x.
    classes : int
        Number of classes of the network, to estimate memory.
    memory : int
        Bytes that a block, with the results of the blocks beside it, may take.
    """

    volume: Volume
    tilers: tuple[Tiler, ...]
    classes: int
    memory: int = MEMORY

    @classmethod
    def of(cls, model: Model, volume: Volume, tiler: Tiler, memory: int = MEMORY) -> OrthoPlanes:
        """Make the tilers of the slices along y and x from `tiler`, which is that of the slices along z.

        Raises
        ------
        ConfigError
            If the volume is a single slice or not isotropic; see `check_planes`.
        """
        check_planes(volume)
        size = volume.voxel_size
        grids = [Grid.between(size and (size[y], size[x]), model.pixel_size) for _, y, x in _ORDERS]
        tilers = tuple(replace(tiler, grid=grid) for grid in grids)
        return cls(volume, tilers, model.traits.classes, memory)

    @property
    def unit(self) -> tuple[int, int, int]:
        """Step in voxels (Z, Y, X) at whose multiples blocks start: tiles in all planes then start at whole units."""
        return (self.tilers[1].unit[0], *self.tilers[0].unit)

    @property
    def halo(self) -> tuple[int, int, int]:
        """Width of the halo of a block in voxels (Z, Y, X)."""
        return (self.tilers[1].halo[0], *self.tilers[0].halo)

    def block_size(self, result: Any, working: int | None = None) -> tuple[int, int, int]:
        """Return the sides of a block (Z, Y, X): about `working` working pixels, or the least work within `memory`.

        The memory is that of the block and of a writer, which holds whole slices of the dtype `result`.
        """
        if working is not None:
            ratio = (self.tilers[1].grid.ratio[0], *self.tilers[0].grid.ratio)
            wanted = [max(1, int(working / r) // u) * u for r, u in zip(ratio, self.unit, strict=True)]
            return self._within(wanted)
        shape = self.volume.shape
        parts = np.arange(1, _MOST_BLOCKS + 1)
        sides = [np.unique(-(-n // (parts * unit)) * unit) for n, unit in zip(shape, self.unit, strict=True)]
        block = np.meshgrid(*(np.minimum(each, n) for each, n in zip(sides, shape, strict=True)), indexing="ij")
        around = [np.minimum(b + 2 * halo, n) for b, halo, n in zip(block, self.halo, shape, strict=True)]
        along = [np.minimum(b + 2 * self._reach, n) for b, n in zip(block, shape, strict=True)]
        read = [along[z] * around[y] * around[x] for z, y, x in _ORDERS]
        voxels = math.prod(block)
        held = 4 * (self.classes - 1) * voxels + self.volume.dtype.itemsize * np.max(read, axis=0)
        slab = np.dtype(result).itemsize * block[0] * shape[1] * shape[2]  # a block's own result replaces its sums
        fits = held + np.where(voxels < block[0] * shape[1] * shape[2], slab, 0) <= self.memory
        if not fits.any():  # slices are so large that a writer cannot hold fewer
            fits = (held <= self.memory) & (block[0] == block[0].min())
        best = np.unravel_index(np.argmin(np.where(fits, np.sum(read, axis=0) / voxels, np.inf)), fits.shape)
        return self._within([int(each[best]) for each in block])

    def _within(self, sides: list[int]) -> tuple[int, int, int]:
        z, y, x = (min(side, n) for side, n in zip(sides, self.volume.shape, strict=True))
        return z, y, x

    def compute(self, finish: Callable[[torch.Tensor], NDArray[Any]], *spans: Span) -> NDArray[Any]:
        """Return what `finish` makes of the mean logits of each slice of a block that starts at multiples of `unit`."""
        with _block_lock:
            total = window = None
            all_moments = self._moments  # first: it reads all slices, which also tells what is outside the sample
            for axis, (order, tiler) in enumerate(zip(_ORDERS, self.tilers, strict=True)):
                region = self._region(spans, axis)
                if window is None or window.region != region:
                    window = None  # free its memory first
                    window = self._read(region)
                turned = _Turned(self.volume.name, window.transposed(order), moments=all_moments[axis])
                (first, last), rows, columns = (spans[each] for each in order)
                for i in range(first, last):
                    logits = tiler.window(turned, i, rows, columns)
                    odds = (logits if len(logits) == 1 else logits[1:] - logits[0]).numpy()  # minus the background's
                    if total is None:
                        total = np.zeros((len(odds), *(stop - start for start, stop in spans)), np.float32)
                    total.transpose(0, *(1 + each for each in order))[:, i - first] += odds
                del turned
            assert total is not None
            del window
            total /= len(_ORDERS)
            return self._finished(total, finish, spans)

    def _finished(
        self, odds: NDArray[np.float32], finish: Callable[[torch.Tensor], NDArray[Any]], spans: tuple[Span, ...]
    ) -> NDArray[Any]:
        """Return the result of a block, overwriting its mean logits minus the background's, `odds` (C - 1, Z, Y, X)."""
        result = None
        for i, z in enumerate(range(*spans[0])):
            logits = torch.from_numpy(odds[:, i])
            if len(odds) > 1:
                logits = torch.cat([torch.zeros_like(logits[:1]), logits])
            outside = self.volume.outside(z, slice(*spans[1]), slice(*spans[2]))
            finished = finish(logits if outside is None else set_background(logits, outside))
            if result is None:
                result = odds[0] if finished.dtype == odds.dtype else np.empty(odds.shape[1:], finished.dtype)
            result[i] = finished
        assert result is not None
        return result

    def _region(self, spans: tuple[Span, ...], axis: int) -> tuple[Span, ...]:
        """Return the region to read for the slices of a block along an axis: with the halo in plane, and neighbours."""
        region = [
            (max(start - halo, 0), min(-(-stop // unit) * unit + halo, size))
            for (start, stop), unit, halo, size in zip(spans, self.unit, self.halo, self.volume.shape, strict=True)
        ]
        (first, last), reach = spans[axis], self._reach
        region[axis] = max(first - reach, 0), min(last + reach, self.volume.shape[axis])
        return tuple(region)

    @property
    def _reach(self) -> int:
        """Number of slices from a slice to its furthest neighbour, the same along all axes."""
        return self.tilers[0].neighbours.reach

    def _read(self, region: tuple[Span, ...]) -> _Window:
        (first, last), y, x = region
        pixels = np.empty([stop - start for start, stop in region], self.volume.dtype)
        step = self.volume.source.chunks[0]
        for start in range(first // step * step, last, step):
            z = slice(max(start, first), min(start + step, last))
            pixels[z.start - first : z.stop - first] = self.volume[z, slice(*y), slice(*x)]
        for i in range(first, last):
            shown = self._nearest(i)
            filled = self.volume.mirrored(shown, slice(*y), slice(*x), max(self.tilers[0].halo))
            if filled is not None or shown != i:
                pixels[i - first] = self.volume.read(shown, slice(*y), slice(*x)) if filled is None else filled
        return _Window(pixels, region, self.volume.shape)

    def _nearest(self, z: int) -> int:
        """Return the index of the slice itself or, if it is lost, of the nearest one that is not, if any."""
        for step in range(self.volume.shape[0]):
            for other in (z - step, z + step):
                if 0 <= other < self.volume.shape[0] and not self.volume.is_lost(other):
                    return other
        return z

    @cached_property
    def _moments(self) -> list[NDArray[np.float64]]:
        """Mean and standard deviation (N, 2) of the slices along z, y and x, for which the whole volume is read."""
        depth, height, width = self.volume.shape
        rows = max(1, _STRIP // width)
        sums = [np.zeros((2, n)) for n in self.volume.shape]
        counts = [np.full(n, depth * height * width // n) for n in self.volume.shape]
        offset = self.volume.statistics(0)[0]  # subtracted, as squares of a large mean would drown the variance
        for z, top in itertools.product(range(depth), range(0, height, rows)):
            pixels = self.volume.read(z, slice(top, top + rows))
            self.volume.statistics(z, pixels if pixels.shape == (height, width) else None)
            strip, outside = pixels.astype(np.float64), self.volume.outside(z, slice(top, top + rows))
            strip -= offset
            if outside is not None:
                strip[outside] = 0
                counts[0][z] -= outside.sum()
                counts[1][top : top + rows] -= outside.sum(axis=1)
                counts[2] -= outside.sum(axis=0)
            for power, values in enumerate((strip, np.square(strip))):
                sums[0][power, z] += values.sum()
                sums[1][power, top : top + rows] += values.sum(axis=1)
                sums[2][power] += values.sum(axis=0)
        moments = []
        for total, count in zip(sums, counts, strict=True):
            mean, square = total / np.maximum(count, 1)
            moments.append(np.stack([mean + offset, np.sqrt(np.maximum(square - mean**2, 0))], axis=1))
        return moments


class _Window:
    """A region of a volume in memory, indexed as the whole volume is; a source of a `Volume`."""

    def __init__(self, pixels: NDArray[Any], region: tuple[Span, ...], shape: tuple[int, ...]) -> None:
        self.pixels, self.region, self.dtype = pixels, region, pixels.dtype
        self.shape: tuple[int, int, int] = (shape[0], shape[1], shape[2])
        self.chunks: tuple[int, int, int] = (1, *self.shape[1:])

    def transposed(self, order: tuple[int, int, int]) -> _Window:
        """Return the window with its axes in another order."""
        region, shape = tuple(self.region[axis] for axis in order), tuple(self.shape[axis] for axis in order)
        return _Window(self.pixels.transpose(order), region, shape)

    def __getitem__(self, key: Key) -> NDArray[Any]:
        inside = (
            slice(part.start - first, part.stop - first) if isinstance(part, slice) else part - first
            for part, (first, _) in zip(key, self.region, strict=True)
        )
        return self.pixels[tuple(inside)]


@dataclass(frozen=True, eq=False)
class _Turned(Volume):
    """A window with its axes in another order; `moments` are mean and standard deviation (N, 2) of its slices.

    Pixels outside the sample have been filled already.
    """

    moments: NDArray[np.float64] = field(default_factory=lambda: np.zeros((0, 2)), repr=False)

    def statistics(self, z: int, whole: NDArray[Any] | None = None) -> tuple[float, float]:
        mean, std = self.moments[z]
        return float(mean), float(std)

    def outside(self, z: int, y: slice = slice(None), x: slice = slice(None)) -> None:
        return None

    def mirrored(self, z: int, y: slice, x: slice, reach: int) -> None:
        return None

    def is_lost(self, z: int) -> bool:
        return False
