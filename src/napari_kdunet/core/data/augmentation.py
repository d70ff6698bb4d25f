"""Augmentation of training patches: a random warp of image, labels and teacher, and a random appearance of the image.

The warp is flips, rotation, scale and elastic deformation; the appearance is style, gamma, local contrast, inversion,
blur, noise, blank strips, brightness and contrast. Most of these draw no random numbers when they are off. Random
numbers are drawn for the whole batch, and each process uses those of its own patches, so that all draw the same.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from napari_kdunet.core.config.training import TrainConfig

__all__ = [
    "add_noise",
    "blank_strips",
    "blur",
    "change_appearance",
    "change_gamma",
    "mix_amplitudes",
    "mix_local_contrast",
    "random_warp",
    "warp",
]

_MESH = 32  # working pixels between the control points of the elastic deformation
_COARSE, _NEIGHBOURS = 8, 9  # local contrast is that of 9 x 9 cells of 8 x 8 working pixels
_FLAT = 0.1  # standard deviation below which local contrast is not raised further
_STRIPS = 3  # blank strips in a patch
_WIDEST = 1 / 16  # largest width of a blank strip, as a share of the patch


def random_warp(count: int, mine: slice, config: TrainConfig, generator: torch.Generator) -> Tensor:
    """Draw the sampling positions of warped patches, relative to the centre of each.

    Rotation, scale, flips and a smooth elastic displacement (a coarse mesh of random vectors, enlarged) make up one
    field, so that a patch is interpolated once (paper: flips and elastic stretching).

    Parameters
    ----------
    count : int
        Number of patches in the whole batch, for which random numbers are drawn.
    mine : slice
        The patches of the batch to make.
    config : TrainConfig
        Patch side and the strengths `rotation`, `scale`, `zoom`, `flips` and `elastic`.
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
    if config.zoom:
        octaves = config.zoom * (2 * torch.rand(count, generator=generator)[mine] - 1)
        field = field * 2 ** octaves[:, None, None, None]
    return field


def warp(channels: Sequence[Tensor], offset: Tensor, corner: Iterable[int]) -> Tensor:
    """Cut the same warped patch out of all channels by bilinear interpolation.

    A patch that is not warped lies on whole pixels and is not blurred. Beyond the border of the block, its image is
    mirrored. If the patch is coarser than the block by a factor of 2 or more, means over that number of pixels are
    interpolated.

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
    step = (offset[1:, 0] - offset[:-1, 0]).norm(dim=-1).mean().item() if offset.shape[0] > 1 else 1.0
    if step >= 2:  # the grid is in shares of the window, so the window's pixels may be larger
        window = F.interpolate(window[None], [max(1, n // int(step)) for n in window.shape[-2:]], mode="area")[0]
    return F.grid_sample(window[None], grid[None], padding_mode="reflection", align_corners=False)[0]


def change_appearance(
    image: Tensor,
    count: int,
    mine: slice,
    config: TrainConfig,
    generator: torch.Generator,
    style: Tensor | None = None,
) -> Tensor:
    """Change style, gamma, local contrast, sharpness, noise, brightness and contrast of each patch at random.

    Parameters
    ----------
    image : Tensor
        (N, C, Y, X) float32, standardised; the channels are neighbouring slices and are changed alike.
    count, mine, config, generator
        As in `random_warp`.
    style : Tensor, optional
        Other patches, of `image`'s shape, whose Fourier amplitudes are mixed in.

    Returns
    -------
    Tensor
        The changed patches, of `image`'s shape.
    """

    def draw(low: float, high: float) -> Tensor:
        """Draw uniform random numbers, (N, 1, 1, 1)."""
        return (low + (high - low) * torch.rand(count, 1, 1, 1, generator=generator)[mine]).to(image)

    change = config.intensity * (2 * torch.rand(2, count, 1, 1, 1, generator=generator) - 1)
    gain, shift = change[:, mine].to(image).unbind()
    if style is not None:
        image = mix_amplitudes(image, style, draw(0, config.style))
    if config.gamma:
        image = change_gamma(image, draw(-config.gamma, config.gamma).exp())
    if config.local_contrast:
        image = mix_local_contrast(image, draw(0, config.local_contrast))
    if config.inversion:
        image = torch.where(draw(0, 1) < config.inversion, -image, image)
    if config.blur:
        image = blur(image, draw(0, config.blur), config.blur)
    if config.noise:
        seeds = torch.randint(2**62, (count,), generator=generator)[mine]
        image = add_noise(image, draw(0, config.noise), seeds.tolist())
    if config.strips:
        where = torch.rand(count, _STRIPS, 4, generator=generator)[mine]
        image = blank_strips(image, draw(0, 1) < config.strips, where)
    return image * (1 + gain) + shift


def mix_amplitudes(image: Tensor, style: Tensor, weight: Tensor) -> Tensor:
    """Mix the Fourier amplitudes of other patches, which are their texture and noise, into each patch.

    The phases, which are the shapes, stay, and so do mean and standard deviation (Xu et al. 2021, arXiv:2105.11120).

    Parameters
    ----------
    image, style : Tensor
        (N, C, Y, X) float32.
    weight : Tensor
        (N, 1, 1, 1) share of the other amplitudes, 0 to 1.
    """
    own, other = torch.fft.rfft2(image), torch.fft.rfft2(style)
    mixed = torch.polar(torch.lerp(own.abs(), other.abs(), weight), own.angle())
    return _standardised_as(torch.fft.irfft2(mixed, s=image.shape[-2:]), image)


def change_gamma(image: Tensor, exponent: Tensor) -> Tensor:
    """Raise grey values, scaled from 0 at a patch's lowest to 1 at its highest, to a power; (N, C, Y, X).

    Mean and standard deviation stay, so that only the shape of the histogram changes.
    """
    low, high = image.amin(dim=(-2, -1), keepdim=True), image.amax(dim=(-2, -1), keepdim=True)
    return _standardised_as(((image - low) / (high - low).clamp_min(1e-6)) ** exponent, image)


def mix_local_contrast(image: Tensor, weight: Tensor) -> Tensor:
    """Mix into each patch its copy with equalised local contrast: standardised by mean and deviation around each pixel.

    Parameters
    ----------
    image : Tensor
        (N, C, Y, X) float32.
    weight : Tensor
        (N, 1, 1, 1) share of the equalised patch, 0 to 1.
    """
    size = image.shape[-2:]
    moments = torch.cat((image, image.square()), dim=1)
    coarse = F.interpolate(moments, [-(-n // _COARSE) for n in size], mode="area")
    coarse = F.avg_pool2d(coarse, _NEIGHBOURS, 1, _NEIGHBOURS // 2, count_include_pad=False)
    mean, square = F.interpolate(coarse, size, mode="bilinear", align_corners=False).chunk(2, dim=1)
    std = (square - mean.square()).clamp_min(0).sqrt().clamp_min(_FLAT)
    return _standardised_as(torch.lerp(image, (image - mean) / std, weight), image)


def blur(image: Tensor, sigma: Tensor, largest: float) -> Tensor:
    """Blur each patch by a Gaussian of its own.

    Parameters
    ----------
    image : Tensor
        (N, C, Y, X) float32.
    sigma : Tensor
        (N, 1, 1, 1) standard deviations, working pixels.
    largest : float
        Upper bound of the standard deviations; the kernel is cut off at 3 times that.
    """
    radius = min(math.ceil(3 * largest), min(image.shape[-2:]) - 1)
    at = torch.arange(-radius, radius + 1, device=image.device)
    kernel = (-0.5 * (at / sigma.clamp_min(1e-3)) ** 2).softmax(dim=-1)  # (N, 1, 1, 2 * radius + 1)
    rows = F.pad(image.transpose(0, 1), (radius,) * 4, mode="reflect")
    for weights in (kernel, kernel.transpose(-2, -1)):
        rows = F.conv2d(rows, weights, groups=len(image))
    return rows.transpose(0, 1)


def add_noise(image: Tensor, std: Tensor, seeds: Sequence[int]) -> Tensor:
    """Add white noise to each patch, from a seed of its own, so that it depends on no other patch; (N, C, Y, X)."""
    device = image.device
    noise = [
        torch.randn(patch.shape, generator=torch.Generator(device).manual_seed(seed), device=device)
        for patch, seed in zip(image, seeds, strict=True)
    ]
    return image + std * torch.stack(noise)


def blank_strips(image: Tensor, blank: Tensor, where: Tensor) -> Tensor:
    """Set strips across a patch to one grey value each, as lost lines and charging do.

    Parameters
    ----------
    image : Tensor
        (N, C, Y, X) float32.
    blank : Tensor
        (N, 1, 1, 1) bool: which patches get strips.
    where : Tensor
        (N, strips, 4) random numbers from 0 to 1: axis, place, width and grey value of each strip.
    """
    blanked = image.clone()
    for patch, chosen, strips in zip(blanked, blank.flatten().tolist(), where.tolist(), strict=True):
        for axis, place, width, grey in strips if chosen else ():
            lines = patch.movedim(-1 if axis < 0.5 else -2, 0)
            first = int(place * len(lines))
            lines[first : first + 1 + int(width * _WIDEST * len(lines))] = 6 * grey - 3
    return blanked


def _standardised_as(changed: Tensor, image: Tensor) -> Tensor:
    """Return `changed` with the mean and standard deviation of each patch of `image`; (N, C, Y, X)."""
    std, mean = torch.std_mean(image, dim=(-2, -1), keepdim=True)
    std_now, mean_now = torch.std_mean(changed, dim=(-2, -1), keepdim=True)
    return (changed - mean_now) * (std / std_now.clamp_min(1e-6)) + mean
