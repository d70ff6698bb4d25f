"""Resampling between an image's own pixels and the working pixels of a model.

The ratio of the two is rounded to a fraction of small integers, so that a tile that starts at a multiple of
`Grid.unit` starts at a whole pixel of either kind, and resampling a tile equals resampling the image.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache, reduce
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from numpy.typing import NDArray

from napari_kdunet.core.errors import ConfigError
from napari_kdunet.core.volumes.sample import compiled_passes

if TYPE_CHECKING:  # exported models use the grid without torch
    from torch import Tensor

    from napari_kdunet.core.reading.voxel_size import VoxelSize

__all__ = ["LARGEST_DENOMINATOR", "Grid"]

Bilinear: TypeAlias = tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]
"""For each pixel along an axis, the two that it lies between, and the weight of the second, from 0 to 1."""

LARGEST_DENOMINATOR = 6  # 10 nm : 4.6 nm becomes 13 : 6; at worst, near 1 : 1, it is 8 % off, within scale augmentation


def _simple(ratio: float) -> Fraction:
    """Return the fraction of small integers nearest to a ratio of at least 1."""
    return Fraction(ratio).limit_denominator(LARGEST_DENOMINATOR)


@dataclass(frozen=True)
class Grid:
    """Width of an image's own pixel in working pixels, along Y and X."""

    ratio: tuple[Fraction, Fraction] = (Fraction(1), Fraction(1))

    @classmethod
    def between(cls, pixel: tuple[float, float] | None, working: float) -> Grid:
        """Return the grid from an image's `pixel` size (YX, nm) to the `working` pixel size (nm).

        If the image's is unknown (None) or `working` is 0, both are taken to be equal.

        Raises
        ------
        ConfigError
            If one is more than 64 times the other.
        """
        if pixel is None or working == 0:
            return cls()
        ratios = []
        for size in pixel:
            if not 1 / 64 <= size / working <= 64:
                raise ConfigError(f"a pixel size of {size:g} nm is too far from the working {working:g} nm.")
            ratios.append(1 / _simple(working / size) if size < working else _simple(size / working))
        return cls((ratios[0], ratios[1]))

    @classmethod
    def in_plane(cls, voxel_size: VoxelSize | None, working: float) -> Grid:
        """Return the grid as `between` does, from the Y and X of a voxel size (ZYX, nm)."""
        return cls.between(voxel_size and voxel_size[1:], working)

    def unit(self, multiple: int) -> tuple[int, int]:
        """Return the smallest steps (Y, X) in image pixels that are whole multiples of `multiple` working pixels."""
        ry, rx = (math.lcm(r.numerator, multiple) // r.numerator * r.denominator for r in self.ratio)
        return ry, rx

    def working_size(self, size: tuple[int, int]) -> tuple[int, int]:
        """Return the size (Y, X) in working pixels of `size` image pixels, rounded up."""
        y, x = (math.ceil(n * r) for n, r in zip(size, self.ratio, strict=True))
        return y, x

    def to_working(self, image: Tensor) -> Tensor:
        """Resample (N, C, Y, X) to working pixels: mean of the area when shrinking, bilinear when enlarging."""
        return _resample(image, self.ratio)

    def to_image(self, working: Tensor) -> Tensor:
        """Resample (N, C, Y, X) from working pixels (logits) to image pixels, by the same methods as `to_working`."""
        return _resample(working, (1 / self.ratio[0], 1 / self.ratio[1]))

    def above(self, working: Tensor, level: float, window: tuple[slice, slice]) -> NDArray[np.uint8]:
        """Return 1 where `to_image` of a plane (Y, X) is above `level`, else 0, in a `window` of image pixels.

        This takes one pass if compiled passes are available, the plane is on the CPU, and it is only enlarged.
        """
        compiled = compiled_passes()
        if compiled is None or working.device.type != "cpu" or max(self.ratio) > 1 or self == Grid():
            plane: NDArray[np.float32] = self.to_image(working[None, None])[0, 0][window].cpu().numpy()
            found: NDArray[np.bool_] = plane > level
            return found.view(np.uint8)
        sizes = (math.ceil(n / r) for n, r in zip(working.shape, self.ratio, strict=True))
        axes = [_bilinear(n, size, s.start, s.stop) for n, size, s in zip(working.shape, sizes, window, strict=True)]
        mask = np.empty([s.stop - s.start for s in window], np.uint8)
        compiled.write_above(working.numpy(), *axes, np.float32(level), mask)
        return mask


@lru_cache
def _bilinear(size: int, wanted: int, start: int, stop: int) -> Bilinear:
    """Locate the pixels `start` to `stop` of a line of `size` pixels that is enlarged to `wanted`, as torch does."""
    where = np.maximum((np.arange(start, stop) + 0.5) * (size / wanted) - 0.5, 0)
    first = where.astype(np.int64)
    return first, np.minimum(first + 1, size - 1), (where - first).astype(np.float32)


def _resample(x: Tensor, ratio: tuple[Fraction, Fraction]) -> Tensor:
    import torch.nn.functional as F

    size = [math.ceil(n * r) for n, r in zip(x.shape[-2:], ratio, strict=True)]
    for axis, r in zip((-2, -1), ratio, strict=True):
        if r < 1:
            x = _shrink(x, axis, 1 / r)
    if list(x.shape[-2:]) == size:
        return x
    exact = all(r.numerator & (r.numerator - 1) == 0 for r in ratio)  # otherwise float32 is off by 1e-7 of the width
    return F.interpolate(x if exact else x.double(), size, mode="bilinear", align_corners=False).to(x.dtype)


def _shrink(x: Tensor, axis: int, factor: Fraction) -> Tensor:
    """Shrink along one axis by the mean of the area."""
    import torch
    import torch.nn.functional as F

    size = list(x.shape[-2:])
    if factor.denominator == 1 and size[axis] % factor == 0:  # the same as torch's, in a twentieth of the time
        total: Tensor = reduce(torch.add, x.unflatten(axis, (-1, int(factor))).unbind(axis))
        return total / int(factor)
    size[axis] = math.ceil(size[axis] / factor)
    return F.interpolate(x, size, mode="area")
