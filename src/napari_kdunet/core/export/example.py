"""The part of an image that an exported file shows or tests with."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from napari_kdunet.core.errors import VolumeError
from napari_kdunet.core.volumes.volume import Volume

__all__ = ["read_middle"]


def read_middle(volume: Volume, sides: tuple[int, int]) -> NDArray[np.float32]:
    """Return the middle of the middle slice, (Y, X) float32: `sides` pixels, or as many as there are.

    Raises
    ------
    VolumeError
        The slice cannot be read, or holds NaN or infinite values.
    """
    z, lengths = len(volume) // 2, [min(pair) for pair in zip(volume.shape[1:], sides, strict=True)]
    starts = [(n - length) // 2 for n, length in zip(volume.shape[1:], lengths, strict=True)]
    y, x = (slice(start, start + length) for start, length in zip(starts, lengths, strict=True))
    pixels = volume.read(z, y, x).astype(np.float32)
    if not np.isfinite(pixels).all():
        raise VolumeError(f"slice z={z} of {volume.name} holds NaN or infinite values: give another image")
    return pixels
