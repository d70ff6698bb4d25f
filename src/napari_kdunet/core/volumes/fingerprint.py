"""Checksums that tell whether the pixels of volumes are the same."""

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
    """Return the shape of a volume and a CRC-32 of up to 16 of `slices` and of `about`, e.g. ``8x64x64:0f9a32c1``.

    The checksum includes dtype, voxel size, fill value and the slices of the mask of the sample, if there is one. With
    `every`, it includes all of `slices`: of labels that are edited by hand, a single slice may have changed. Slices
    that cannot be read are left out.
    """
    about = (about, str(volume.dtype), volume.voxel_size, volume.fill)
    if volume.sample is not None:
        about = (*about, volume_fingerprint(volume.sample, slices, every=every))
    total = zlib.crc32(repr(about).encode())
    for z in slices if every else spaced(slices, _SLICES):
        with suppress(VolumeError):  # the slice may not be needed; if it is, training says so
            total = zlib.crc32(volume.read(z).tobytes(), total)
    return f"{'x'.join(map(str, volume.shape))}:{total:08x}"


def data_fingerprint(*images: Volume, labels: Sequence[Volume] = ()) -> str:
    """Return the fingerprints of images and of labels, separated by spaces."""
    found = [volume_fingerprint(image, range(len(image))) for image in images]
    found += [volume_fingerprint(each, range(len(each)), every=True) for each in labels]
    return " ".join(found)
