"""A checksum of a teacher: a training is gone on with by the same."""

from __future__ import annotations

import zlib

import torch
from torch import Tensor

from napari_kdunet.core.data.onnx_teacher import OnnxNetwork
from napari_kdunet.core.networks.model import Model
from napari_kdunet.core.volumes.fingerprint import volume_fingerprint
from napari_kdunet.core.volumes.volume import Volume

__all__ = ["teacher_fingerprint"]


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
