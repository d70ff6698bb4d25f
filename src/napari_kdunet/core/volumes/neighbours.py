"""Which neighbouring slices a network with context sees beside a slice."""

from __future__ import annotations

import math
from dataclasses import dataclass

from napari_kdunet.core.volumes.volume import Volume

__all__ = ["Neighbours"]


@dataclass(frozen=True)
class Neighbours:
    """The slices of a volume that a network sees with a slice, as its input channels.

    They are at multiples of one distance, each the slice nearest to it: of a volume whose slices are further apart than
    that, a slice may be its own neighbour. Beyond the first and the last slice the stack is mirrored, without these
    two again. In the place of a slice that shows nothing comes the one at the same distance on the other side, or
    else the slice itself.

    Attributes
    ----------
    context : int
        Neighbours on each side.
    step : float
        Their distance, in slices of the volume.
    """

    context: int = 0
    step: float = 1.0

    @classmethod
    def between(cls, context: int, distance: float, voxel_size: tuple[float, float, float] | None) -> Neighbours:
        """Those at multiples of `distance` (nm) in a volume of this voxel size (ZYX, nm).

        Where either is not known (0, None), they are the next slices.
        """
        return cls(context, distance / voxel_size[0] if distance and voxel_size else 1.0)

    @property
    def reach(self) -> int:
        """Slices from a slice to its furthest neighbour."""
        return self._steps(self.context)

    def choices(self, z: int, depth: int) -> list[tuple[int, ...]]:
        """For each channel, from below to above, z of the slices of which the first that shows something is taken.

        Parameters
        ----------
        z : int
            The slice itself.
        depth : int
            Number of slices in the volume.
        """
        offsets = [self._steps(i) for i in range(1, self.context + 1)]
        return [
            (_mirrored(z + offset, depth), _mirrored(z - offset, depth), z) if offset else (z,)
            for offset in (*(-each for each in reversed(offsets)), 0, *offsets)
        ]

    def of(self, volume: Volume, z: int) -> list[int]:
        """Slices of the channels, from below to above, of slice `z`; they are read to know which show nothing.

        Raises
        ------
        VolumeError
            If one cannot be read.
        """
        return [
            next((other for other in choices if not volume.is_lost(other)), z)
            for choices in self.choices(z, len(volume))
        ]

    def _steps(self, i: int) -> int:
        """Slices to neighbour `i`: halves are rounded up, on both sides alike."""
        return math.floor(i * self.step + 0.5)


def _mirrored(z: int, depth: int) -> int:
    """`z`, from below 0 and from beyond the last slice mirrored back, as often as it takes."""
    period = max(2 * (depth - 1), 1)
    z %= period
    return min(z, period - z) if depth > 1 else 0
