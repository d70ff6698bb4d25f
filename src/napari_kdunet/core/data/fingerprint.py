"""Checksums of what a network learns from: what is gone on with must be of the same images, labels and teacher."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor

from napari_kdunet.core.data.onnx_teacher import OnnxNetwork
from napari_kdunet.core.data.splits import spaced
from napari_kdunet.core.errors import VolumeError
from napari_kdunet.core.networks.model import Model
from napari_kdunet.core.volumes.volume import Volume

__all__ = ["data_fingerprint", "teacher_fingerprint", "volume_fingerprint"]

_SLICES = 16  # of a volume, evenly spaced


def volume_fingerprint(volume: Volume, slices: Sequence[int], about: Any = "") -> str:
    """Shape of a volume, and a CRC-32 of up to 16 of the slices and of `about`, e.g. ``8x64x64:0f9a32c1``."""
    total = zlib.crc32(repr(about).encode()) if about else 0
    for z in spaced(slices, _SLICES):
        with suppress(VolumeError):  # it may be a slice that is not needed, or the training says so
            total = zlib.crc32(volume.read(z).tobytes(), total)
    return f"{'x'.join(map(str, volume.shape))}:{total:08x}"


def data_fingerprint(*volumes: Volume) -> str:
    """Fingerprints of volumes, one behind the other."""
    return " ".join(volume_fingerprint(volume, range(len(volume))) for volume in volumes)


def teacher_fingerprint(teacher: Model | Volume) -> str:
    """Number and CRC-32 of the weights of a network that teaches, and how it is applied; or of a probability volume."""
    if isinstance(teacher, Volume):
        return volume_fingerprint(teacher, range(len(teacher)), teacher.dtype)
    total = zlib.crc32(repr((teacher.pixel_size, teacher.context_distance, teacher.threshold, teacher.adapts)).encode())
    for value in teacher.net.state_dict().values():
        if isinstance(value, Tensor):
            total = zlib.crc32(value.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes(), total)
    for module in teacher.net.modules():
        total = zlib.crc32(module.content, total) if isinstance(module, OnnxNetwork) else total
    return f"{teacher.parameter_count} parameters, {total:08x}"
