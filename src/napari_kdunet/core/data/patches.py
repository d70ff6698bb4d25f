"""From volumes to training batches: slices at the working pixel size, and augmented patches cut out of them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from napari_kdunet.core.config import TrainConfig
from napari_kdunet.core.data.teachers import Teaching
from napari_kdunet.core.volumes.labels import target_probabilities
from napari_kdunet.core.volumes.resampling import Grid
from napari_kdunet.core.volumes.volume import Volume

__all__ = ["Batch", "Block", "Pool", "Source", "load_blocks"]

_SIDE = 2048  # working pixels: larger slices are cut into blocks of about this side
_SPARSE = 0.25  # share of labelled pixels below which patches are cut around them
_LEAST = 1e-6  # probability of a class of which the teacher is sure that it is not there
_MESH = 32  # working pixels between the control points of the elastic deformation


@dataclass(frozen=True)
class Source:
    """A volume to train on, with its labels and what a teacher says of it, where there are any."""

    raw: Volume
    labels: Volume | None = None
    teaching: Teaching | None = None
    slices: tuple[int, ...] = ()
    """z of the slices to take."""


@dataclass(frozen=True, eq=False)
class Block:
    """A window of a slice at the working pixel size.

    `image` is (1, Y, X) float16, standardised by its whole slice; `shares` (C, Y, X) uint8, the class shares times
    255, or None where it is not labelled; `sites` (N, 2) the Y, X of the labelled pixels where they are few, so that a
    patch is cut where there are some; None where any patch will do.
    """

    source: Source
    grid: Grid
    z: int
    y: slice
    x: slice
    image: Tensor
    shares: Tensor | None
    sites: Tensor | None

    @cached_property
    def taught(self) -> Tensor | None:
        """(C - 1, Y, X) float32, the teacher's probabilities but for the background; found when first needed."""
        if self.source.teaching is None:
            return None
        said = self.source.teaching.probabilities(self.z, self.y, self.x)
        return self.grid.to_working(said[None])[0]


def load_blocks(source: Source, config: TrainConfig, limit: int) -> tuple[list[Block], bool]:
    """Read the slices of a source as blocks of at most `limit` bytes in all.

    Where there is more, an even sample of the windows is taken; the second value says so.
    """
    grid = Grid.between(source.raw.voxel_size[1:] if source.raw.voxel_size else None, config.pixel_size)
    windows = [(z, y, x) for z in source.slices for y, x in _windows(source.raw.shape[1:], grid)]
    pixels = [math.prod(grid.working_size((y.stop - y.start, x.stop - x.start))) for _, y, x in windows]
    each = 2 + (config.classes if source.labels else 0) + (4 * (config.classes - 1) if source.teaching else 0)
    keep = max(1, min(len(windows), int(limit / (each * max(pixels, default=1)))))
    chosen = [windows[i * len(windows) // keep] for i in range(keep)] if windows else []
    blocks = [_read_block(source, grid, config, *window) for window in chosen]
    return [block for block in blocks if block.sites is None or len(block.sites)], keep < len(windows)


def _windows(shape: tuple[int, ...], grid: Grid) -> Iterator[tuple[slice, slice]]:
    parts = []
    for size, ratio in zip(shape, grid.ratio, strict=True):
        count = max(1, round(size * ratio / _SIDE))
        edges = [size * i // count for i in range(count + 1)]
        parts.append([slice(a, b) for a, b in pairwise(edges)])
    return ((y, x) for y in parts[0] for x in parts[1])


def _read_block(source: Source, grid: Grid, config: TrainConfig, z: int, y: slice, x: slice) -> Block:
    def working(channels: NDArray[Any]) -> Tensor:
        return grid.to_working(torch.from_numpy(channels.astype(np.float32))[None])[0]

    mean, std = source.raw.statistics(z)
    image = (source.raw.read(z, y, x).astype(np.float32) - mean) / (std or 1.0)
    shares = sites = None
    if source.labels is not None:
        known = target_probabilities(source.labels.read(z, y, x), config.classes, config.ignore)
        shares = (working(known) * 255).round().to(torch.uint8)
        sites = _sites(shares)
    return Block(source, grid, z, y, x, working(image[None]).half(), shares, sites)


def _sites(shares: Tensor) -> Tensor | None:
    """As in `Block`."""
    known = shares.any(dim=0)  # in part too: a stroke of one pixel is half a working pixel wide
    return known.nonzero() if known.float().mean() < _SPARSE else None


@dataclass(frozen=True)
class Batch:
    """A training batch on the device.

    `image` (N, 1, Y, X) float32; `target` (N, C, Y, X) float32 class shares, 0 where nothing is known; `taught`
    (N, C, Y, X) logits of the teacher, or None.
    """

    image: Tensor
    target: Tensor
    taught: Tensor | None


@dataclass
class Pool:
    """All blocks of a training. A batch is a pure function of the seed and the step, which makes resuming exact."""

    labelled: Sequence[Block]
    unlabelled: Sequence[Block]
    config: TrainConfig
    device: torch.device
    erased: frozenset[int] = frozenset()
    """z whose labels have gone since."""
    processes: int = 1
    """How many share each step's batch, every so manieth patch of it each; it is so many times `config.batch`."""

    def class_pixels(self) -> Tensor:
        """(C,) float64 number of labelled working pixels of each class."""
        total = torch.zeros(self.config.classes, dtype=torch.float64)
        for block in self.labelled:
            if block.shares is not None:
                total += block.shares.sum(dim=(1, 2), dtype=torch.float64) / 255
        return total

    def replace(self, z: int, blocks: Sequence[Block]) -> None:
        """Take these as the labelled blocks of slice `z`; the last blocks of all stay until there are others."""
        self.erased = self.erased - {z} if blocks else self.erased | {z}
        others = [block for block in self.labelled if block.z not in self.erased | {z}]
        self.labelled = [*others, *blocks] or self.labelled

    def batch(self, step: int, unlabelled_share: float = 0.0, *, taught: bool = False, rank: int = 0) -> Batch:
        """The batch of a step: random blocks, random places, one warp of image, labels and (if asked) teacher together.

        `unlabelled_share` of it, on average over the steps, comes from the unlabelled blocks, where there are both
        kinds. Where several processes share it, this is the part of that `rank`: all draw the same numbers, and each
        makes its own patches.
        """
        config, generator = self.config, torch.Generator().manual_seed(self.config.seed * 1_000_003 + step)
        count, mine = config.batch * self.processes, slice(rank, None, self.processes)
        blocks = self._choose(step, count, unlabelled_share, generator)[mine]
        offsets = _offsets(count, mine, config, generator)
        places = torch.rand(count, 3, generator=generator)[mine]
        warped = [
            _cut(_channels(block, taught), offset.to(self.device), _corner(block, self.config.patch, place))
            for block, offset, place in zip(blocks, offsets, places.tolist(), strict=True)
        ]
        image = torch.stack([w[:1] for w in warped])
        change = config.intensity * (2 * torch.rand(2, count, 1, 1, 1, generator=generator) - 1)
        gain, shift = change[:, mine].to(image)
        return Batch(
            image * (1 + gain) + shift,
            torch.stack([self._target(block, w) for block, w in zip(blocks, warped, strict=True)]),
            torch.stack([_logits(w, self.config.classes) for w in warped]) if taught else None,
        )

    def _choose(self, step: int, count: int, unlabelled_share: float, generator: torch.Generator) -> list[Block]:
        # 3/4 of two patches are one and two in turn
        unlabelled = int((step + 1) * count * unlabelled_share) - int(step * count * unlabelled_share)
        unlabelled = unlabelled if self.labelled else count
        unlabelled = unlabelled if self.unlabelled else 0
        chosen = []
        for blocks, number in ((self.labelled, count - unlabelled), (self.unlabelled, unlabelled)):
            if number:
                sizes = torch.tensor([float(block.image.numel()) for block in blocks])
                chosen += [blocks[i] for i in torch.multinomial(sizes, number, True, generator=generator).tolist()]
        return chosen

    def _target(self, block: Block, warped: Tensor) -> Tensor:
        if block.shares is None:
            return warped.new_zeros(self.config.classes, *warped.shape[1:])
        return warped[1 : 1 + self.config.classes] / 255


def _channels(block: Block, taught: bool) -> list[Tensor]:
    """What must be warped alike."""
    parts = (block.image, block.shares, block.taught if taught else None)
    return [part for part in parts if part is not None]


def _logits(warped: Tensor, classes: int) -> Tensor:
    """(C, Y, X) logits of the teacher, whose probabilities but for the background come last."""
    others = warped[-(classes - 1) :]
    return torch.cat((1 - others.sum(dim=0, keepdim=True), others)).clamp_min(_LEAST).log()


def _offsets(count: int, mine: slice, config: TrainConfig, generator: torch.Generator) -> Tensor:
    """(N, Y, X, 2) float32: where each pixel of a patch looks, x and y in working pixels from the patch's centre.

    The random numbers are drawn for `count` patches; N of those are `mine`.

    Rotation, change of size, mirroring and a smooth elastic displacement (a coarse mesh of random vectors, enlarged)
    are one field, so that a patch is interpolated once (paper: flips and elastic stretching).
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


def _cut(channels: Sequence[Tensor], offset: Tensor, corner: Iterable[int]) -> Tensor:
    """(channels, Y, X) float32: the channels, interpolated at `offset` around the centre of the patch at `corner`.

    The centre lies so that an unturned patch stays inside the block, on whole pixels, so that one that is not warped
    is not blurred either; where it does not fit, the block is mirrored.
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


def _corner(block: Block, side: int, place: Sequence[float]) -> Iterator[int]:
    """First row and column of a patch of this side: anywhere, or where the labelled site of `place` is well inside."""
    for axis, size in enumerate(block.image.shape[-2:]):
        room = size - side
        if block.sites is None:
            wanted = place[axis] * room
        else:
            site = int(block.sites[int(place[2] * len(block.sites)), axis])
            wanted = site - side / 2 + (place[axis] - 0.5) * side / 2
        yield room // 2 if room <= 0 else min(max(round(wanted), 0), room)
