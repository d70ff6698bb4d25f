"""Checksums by which the pixels of volumes are told from others."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from napari_kdunet.core.errors import VolumeError
from napari_kdunet.core.volumes.slices import spaced
from napari_kdunet.core.volumes.volume import Volume

__all__ = ["data_fingerprint", "volume_fingerprint"]

_SLICES = 16  # of a volume, evenly spaced


def volume_fingerprint(volume: Volume, slices: Sequence[int], about: Any = "") -> str:
    """Shape of a volume, and a CRC-32 of up to 16 of the slices and of `about`, e.g. ``8x64x64:0f9a32c1``.

    Those of its sample count too, where that is a mask.
    """
    if volume.sample is not None:
        about = (about, volume_fingerprint(volume.sample, slices))
    total = zlib.crc32(repr(about).encode()) if about else 0
    for z in spaced(slices, _SLICES):
        with suppress(VolumeError):  # it may be a slice that is not needed, or the training says so
            total = zlib.crc32(volume.read(z).tobytes(), total)
    return f"{'x'.join(map(str, volume.shape))}:{total:08x}"


def data_fingerprint(*volumes: Volume) -> str:
    """Fingerprints of volumes, one behind the other."""
    return " ".join(volume_fingerprint(volume, range(len(volume))) for volume in volumes)
