"""Which neighbouring slices a network with context sees beside a slice."""

from __future__ import annotations

import math
from dataclasses import dataclass

from napari_kdunet.core.volumes.volume import Volume

__all__ = ["Neighbours"]


@dataclass(frozen=True)
class Neighbours:
    """The slices of a volume that a network sees with a slice, as its input channels.

    Neighbours are the slices nearest to multiples of one distance; if slices are further apart than that, a slice may
    be its own neighbour. Beyond the first and the last slice the stack is mirrored, without repeating these two. A
    neighbour that shows nothing is replaced by the one at the same distance on the other side, or else by the slice
    itself.

    Attributes
    ----------
    context : int
        Number of neighbours on each side.
    step : float
        Distance between neighbours, in slices of the volume.
    """

    context: int = 0
    step: float = 1.0

    @classmethod
    def between(cls, context: int, distance: float, voxel_size: tuple[float, float, float] | None) -> Neighbours:
        """Return the neighbours at multiples of `distance` (nm) in a volume of this voxel size (ZYX, nm).

        If either is unknown (0, None), they are the adjacent slices.
        """
        return cls(context, distance / voxel_size[0] if distance and voxel_size else 1.0)

    @property
    def reach(self) -> int:
        """Number of slices from a slice to its furthest neighbour."""
        return self._steps(self.context)

    def choices(self, z: int, depth: int) -> list[tuple[int, ...]]:
        """Return candidate slices for each channel, from low to high z; the first that shows something is to be used.

        Parameters
        ----------
        z : int
            Index of the slice itself.
        depth : int
            Number of slices in the volume.
        """
        offsets = [self._steps(i) for i in range(1, self.context + 1)]
        return [
            (_mirrored(z + offset, depth), _mirrored(z - offset, depth), z) if offset else (z,)
            for offset in (*(-each for each in reversed(offsets)), 0, *offsets)
        ]

    def of(self, volume: Volume, z: int) -> list[int]:
        """Return the slice of each channel, from low to high z, for slice `z`; read them to see which show nothing.

        Raises
        ------
        VolumeError
            If a slice cannot be read.
        """
        return [
            next((other for other in choices if not volume.is_lost(other)), z)
            for choices in self.choices(z, len(volume))
        ]

    def _steps(self, i: int) -> int:
        """Return the number of slices to neighbour `i`; halves are rounded up, on both sides alike."""
        return math.floor(i * self.step + 0.5)


def _mirrored(z: int, depth: int) -> int:
    """Return `z`, mirrored at the first and the last slice until it is within the stack."""
    period = max(2 * (depth - 1), 1)
    z %= period
    return min(z, period - z) if depth > 1 else 0
