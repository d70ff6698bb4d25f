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

_SLICES = 16  # of an image, evenly spaced


def volume_fingerprint(volume: Volume, slices: Sequence[int], about: Any = "", *, every: bool = False) -> str:
    """Shape of a volume, and a CRC-32 of up to 16 of the slices and of `about`, e.g. ``8x64x64:0f9a32c1``.

    Type, voxel size and value around the sample count too, and of a mask of the sample its slices. `every` slice
    counts of what is edited by hand: of labels a single one may have changed.
    """
    about = (about, str(volume.dtype), volume.voxel_size, volume.fill)
    if volume.sample is not None:
        about = (*about, volume_fingerprint(volume.sample, slices, every=every))
    total = zlib.crc32(repr(about).encode())
    for z in slices if every else spaced(slices, _SLICES):
        with suppress(VolumeError):  # it may be a slice that is not needed, or the training says so
            total = zlib.crc32(volume.read(z).tobytes(), total)
    return f"{'x'.join(map(str, volume.shape))}:{total:08x}"


def data_fingerprint(*images: Volume, labels: Sequence[Volume] = ()) -> str:
    """Fingerprints of images and of labels, one behind the other."""
    found = [volume_fingerprint(image, range(len(image))) for image in images]
    found += [volume_fingerprint(each, range(len(each)), every=True) for each in labels]
    return " ".join(found)
