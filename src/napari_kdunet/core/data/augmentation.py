"""Augmentation of training patches: a random warp (flips, rotation, scale, elastic deformation) and intensity change.

Random numbers are drawn for the whole batch, of which a process keeps its own patches: so all processes draw the same.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from napari_kdunet.core.config import TrainConfig

__all__ = ["change_intensity", "random_warp", "warp"]

_MESH = 32  # working pixels between the control points of the elastic deformation


def random_warp(count: int, mine: slice, config: TrainConfig, generator: torch.Generator) -> Tensor:
    """Sampling positions of warped patches, relative to the centre of each.

    Rotation, scale, flips and a smooth elastic displacement (a coarse mesh of random vectors, enlarged) are one field,
    so that a patch is interpolated once (paper: flips and elastic stretching).

    Parameters
    ----------
    count : int
        Patches in the whole batch, for which random numbers are drawn.
    mine : slice
        Those of them to make.
    config : TrainConfig
        Patch side and the strengths `rotation`, `scale`, `flips` and `elastic`.
    generator : torch.Generator
        Source of randomness.

    Returns
    -------
    Tensor
        (N, Y, X, 2) float32, the last axis x and y, in working pixels.
    """
    side = config.patch
    axis = torch.arange(side, dtype=torch.float32) - (side - 1) / 2
    base = torch.stack(torch.meshgrid(axis, axis, indexing="xy"), dim=-1)
    uniform = 2 * torch.rand(3, count, generator=generator)[:, mine] - 1
    number = uniform.shape[1]
    angle, size = math.radians(config.rotation) * uniform[0], 1 + config.scale * uniform[1]
    mirror = upside = torch.ones(number)
    if config.flips:
        mirror = torch.where(uniform[2] < 0, -1.0, 1.0)
        upside = torch.where(torch.rand(count, generator=generator)[mine] < 0.5, -1.0, 1.0)
    cos, sin = size * angle.cos(), size * angle.sin()
    matrix = torch.stack((cos * mirror, -sin * upside, sin * mirror, cos * upside), dim=-1).view(number, 2, 2)
    field = torch.einsum("nij,yxj->nyxi", matrix, base)
    if config.elastic:
        knots = side // _MESH + 3
        mesh = config.elastic * torch.randn(count, 2, knots, knots, generator=generator)[mine]
        fine = F.interpolate(mesh, (side, side), mode="bicubic", align_corners=True)
        field = field + fine.permute(0, 2, 3, 1)
    return field


def warp(channels: Sequence[Tensor], offset: Tensor, corner: Iterable[int]) -> Tensor:
    """Cut a warped patch out of channels, all alike, by bilinear interpolation.

    The centre lies so that a patch without rotation stays inside the block, and on whole pixels, so that one that is
    not warped is not blurred either; beyond the border the block is mirrored.

    Parameters
    ----------
    channels : sequence of Tensor
        (C, Y, X) each, of one size, of any dtype.
    offset : Tensor
        (Y, X, 2) of one patch, as `random_warp` gives it, on the device to compute on.
    corner : iterable of int
        First row and column of the patch before the warp.

    Returns
    -------
    Tensor
        (sum of C, Y, X) float32.
    """
    size = channels[0].shape[-2:]
    centre = [first + (offset.shape[0] - 1) / 2 for first in corner]
    points = offset + offset.new_tensor((centre[1], centre[0]))
    first, last = points.amin(dim=(0, 1)).tolist(), points.amax(dim=(0, 1)).tolist()
    x, y = (
        slice(min(max(math.floor(a) - 1, 0), max(n - 2, 0)), max(min(math.ceil(b) + 2, n), 1))
        for a, b, n in zip(first, last, (size[1], size[0]), strict=True)
    )
    window = torch.cat([part[:, y, x].to(offset.device, torch.float32) for part in channels])
    extent = offset.new_tensor((x.stop - x.start, y.stop - y.start))
    start = offset.new_tensor((x.start, y.start))
    grid = (2 * (points - start) + 1) / extent - 1
    return F.grid_sample(window[None], grid[None], padding_mode="reflection", align_corners=False)[0]


def change_intensity(image: Tensor, count: int, mine: slice, config: TrainConfig, generator: torch.Generator) -> Tensor:
    """Change brightness (in standard deviations) and contrast of each patch by up to `config.intensity`.

    `image` is (N, 1, Y, X), standardised; other arguments as in `random_warp`.
    """
    change = config.intensity * (2 * torch.rand(2, count, 1, 1, 1, generator=generator) - 1)
    gain, shift = change[:, mine].to(image).unbind()
    return image * (1 + gain) + shift
