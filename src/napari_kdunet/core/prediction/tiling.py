"""Positions of the tiles of a slice, and the halo that is read around them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TypeAlias

from napari_kdunet.core.volumes.resampling import Grid

__all__ = ["Span", "Tiling"]

Span: TypeAlias = tuple[int, int]
"""A start and a stop, in pixels."""

_TILE_BYTES = 2**28  # of activations at the network's full resolution, about a quarter of its peak
_TILE_SIDE = 2048  # image pixels: if the image is shrunk, its own pixels take more memory than the activations


@dataclass(frozen=True)
class Tiling:
    """The tiles of a slice, for a network and a grid.

    Attributes
    ----------
    grid : Grid
        Ratio of image pixels to working pixels.
    multiple, reach, k : int
        Attributes of the network, see `Network`; `k` serves to estimate the memory of a tile.
    """

    grid: Grid
    multiple: int
    reach: int
    k: int

    @property
    def unit(self) -> tuple[int, int]:
        """Step in image pixels (Y, X) at whose multiples windows start."""
        return self.grid.unit(self.multiple)

    @property
    def halo(self) -> tuple[int, int]:
        """Width in image pixels (Y, X) of the halo around a window of whole units; a multiple of `unit`."""
        reaches = (math.ceil(self.reach / r) + (r > 1) for r in self.grid.ratio)  # enlarging needs one pixel more
        y, x = (-(-reach // unit) * unit for reach, unit in zip(reaches, self.unit, strict=True))
        return y, x

    def tile(self, working: int | None = None) -> tuple[int, int]:
        """Return the sides of a tile in image pixels (Y, X): about `working` working pixels, or what memory allows."""
        most = int(min(1536, (_TILE_BYTES / (4 * self.k)) ** 0.5))
        sides = (int(working / r) if working else min(int(most / r), _TILE_SIDE) for r in self.grid.ratio)
        ty, tx = (max(1, side // u) * u for side, u in zip(sides, self.unit, strict=True))
        return ty, tx
