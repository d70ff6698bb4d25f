"""From volumes to training batches: slices at the working pixel size, and patches sampled from them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property, partial
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from napari_kdunet.core.config.training import TrainConfig
from napari_kdunet.core.data.augmentation import change_appearance, random_warp, warp
from napari_kdunet.core.data.teachers import TeacherOutput
from napari_kdunet.core.prediction.tiling import Span
from napari_kdunet.core.volumes.labels import OUTLINE, outline_targets, read_classes, target_probabilities
from napari_kdunet.core.volumes.neighbours import Neighbours
from napari_kdunet.core.volumes.resampling import Grid
from napari_kdunet.core.volumes.sample import standardised
from napari_kdunet.core.volumes.volume import Volume

__all__ = ["Batch", "Block", "PatchSampler", "TrainingVolume", "load_blocks"]

_SIDE = 2048  # working pixels: larger slices are cut into blocks of about this side
_SPARSE = 0.25  # share of labelled pixels below which patches are cut around them
_MIRRORED = 128  # working pixels for which the image is mirrored at the sample's edge
_WHOLE = 0.999  # share of a pixel that lies in the sample, from which on it is inside: all of it, to float rounding
_EVERY = 8  # working pixels between the sites of a block that the sample does not fill
_LEAST = 1e-6  # lower bound of the teacher's probabilities, whose logarithm is taken


@dataclass(frozen=True)
class TrainingVolume:
    """A volume to train on, with its labels and a teacher's output for it, where there are any."""

    raw: Volume
    labels: Volume | None = None
    teacher: TeacherOutput | None = None
    slices: tuple[int, ...] = ()
    """z of the slices to take."""
    index: int = 0
    """Position among the volumes of the training."""


@dataclass(frozen=True, eq=False)
class Block:
    """A window of a slice at the working pixel size.

    Attributes
    ----------
    images : tuple of Tensor
        The slice between the neighbours that the network sees, from below to above, each (1, Y, X) float16 and
        standardised by its whole slice. Neighbouring blocks share them.
    target : Tensor or None
        (C, Y, X) uint8, the target probabilities times 255; None if the slice is not labelled.
    inside : Tensor or None
        (1, Y, X) uint8, 1 in the sample; None if all of the block is.
    sites : Tensor or None
        (N, 2), Y and X of pixels to cut patches around: labelled ones if these are few, else some of the sample if that
        does not fill the block; None if patches may lie anywhere.
    """

    volume: TrainingVolume
    grid: Grid
    z: int
    y: slice
    x: slice
    images: tuple[Tensor, ...]
    target: Tensor | None
    inside: Tensor | None
    sites: Tensor | None

    @property
    def image(self) -> Tensor:
        """The image of the slice itself, (1, Y, X) float16."""
        return self.images[len(self.images) // 2]

    @cached_property
    def area(self) -> int:
        """Number of working pixels in the sample."""
        return self.image.numel() if self.inside is None else int(self.inside.sum())

    @property
    def nbytes(self) -> int:
        """Bytes in memory, including images that are shared with neighbouring blocks."""
        return sum(part.nbytes for part in (*self.images, self.target, self.inside) if part is not None)

    @property
    def teacher_probability(self) -> Tensor | None:
        """The teacher's probabilities without the background, (C - 1, Y, X) float32, computed at the first use."""
        return None if self.volume.teacher is None else self.volume.teacher.working(self.z, self.y, self.x, self.grid)


def load_blocks(volume: TrainingVolume, config: TrainConfig, limit: int) -> tuple[list[Block], bool]:
    """Read the slices of a volume as blocks of at most `limit` bytes in all.

    If there is more, an even sample of the windows is read, with `config.ignore` only of those in which something is
    labelled. The second value returned says whether that is so.
    """
    grid = Grid.in_plane(volume.raw.voxel_size, config.pixel_size)
    windows = [(z, y, x) for z in volume.slices for y, x in _windows(volume.raw.shape[1:], grid)]
    pixels = [math.prod(grid.working_size((y.stop - y.start, x.stop - x.start))) for _, y, x in windows]
    each = (
        2 * (2 * config.context + 1)
        + (config.classes if volume.labels else 0)
        + (4 * (config.classes - 1) if volume.teacher else 0)
    )
    most = int(limit / (each * max(pixels, default=1)))
    if len(windows) > most and volume.labels is not None and config.ignore is not None:
        windows = [window for window in windows if _is_labelled(volume.labels, window, config)]
    keep = max(1, min(len(windows), most))
    chosen = [windows[i * len(windows) // keep] for i in range(keep)] if windows else []
    read = cache(partial(_read_image, volume.raw, grid))
    blocks = [_read_block(volume, grid, config, read, *window) for window in chosen]
    return [block for block in blocks if block.area and (block.sites is None or len(block.sites))], keep < len(windows)


def _is_labelled(labels: Volume, window: tuple[int, slice, slice], config: TrainConfig) -> bool:
    return bool((read_classes(labels, *window, classes=config.label_classes, ignore=config.ignore) >= 0).any())


def _windows(shape: tuple[int, ...], grid: Grid) -> Iterator[tuple[slice, slice]]:
    parts = []
    for size, ratio in zip(shape, grid.ratio, strict=True):
        count = max(1, round(size * ratio / _SIDE))
        edges = [size * i // count for i in range(count + 1)]
        parts.append([slice(a, b) for a, b in pairwise(edges)])
    return ((y, x) for y in parts[0] for x in parts[1])


def _read_image(raw: Volume, grid: Grid, z: int, y: Span, x: Span) -> Tensor:
    """Read a window of a slice, (1, Y, X) float16, standardised by the whole slice, at the working pixel size."""
    mean, std = raw.statistics(z)
    rows, columns = slice(*y), slice(*x)
    filled = raw.mirrored(z, rows, columns, math.ceil(_MIRRORED / min(grid.ratio)))
    image = standardised(raw.read(z, rows, columns) if filled is None else filled, mean, std)
    return _working(image[None], grid).half()


def _working(channels: NDArray[Any], grid: Grid) -> Tensor:
    return grid.to_working(torch.from_numpy(channels.astype(np.float32))[None])[0]


def _read_block(
    volume: TrainingVolume,
    grid: Grid,
    config: TrainConfig,
    read: Callable[[int, Span, Span], Tensor],
    z: int,
    y: slice,
    x: slice,
) -> Block:
    working = partial(_working, grid=grid)
    neighbours = Neighbours.between(config.context, config.context_distance, volume.raw.voxel_size)
    images = tuple(read(near, (y.start, y.stop), (x.start, x.stop)) for near in neighbours.of(volume.raw, z))
    outside = volume.raw.outside(z, y, x)
    inside = None if outside is None else (working(~outside[None]) > _WHOLE).to(torch.uint8)
    target = None
    if volume.labels is not None:
        if config.boundary:
            known = _outlines(volume.labels, grid, config, z, y, x)
        else:
            known = target_probabilities(volume.labels.read(z, y, x), config.classes, config.ignore)
        target = (working(known) * 255).round().to(torch.uint8)
        target = target if inside is None else target * inside
    return Block(volume, grid, z, y, x, images, target, inside, _sites(target, inside))


def _outlines(labels: Volume, grid: Grid, config: TrainConfig, z: int, y: slice, x: slice) -> NDArray[np.float32]:
    """Return target probabilities (3, Y, X) of a window as they are in the whole slice: its surroundings are read."""
    pixel = (float(grid.ratio[0]), float(grid.ratio[1]))
    around, inner = [], []
    for part, size, side in zip((y, x), labels.shape[1:], pixel, strict=True):
        margin = math.ceil(max(OUTLINE, *pixel) / side) + 1
        first = max(part.start - margin, 0)
        around.append(slice(first, min(part.stop + margin, size)))
        inner.append(slice(part.start - first, part.stop - first))
    return outline_targets(labels.read(z, *around), pixel, config.ignore)[:, inner[0], inner[1]]


def _sites(target: Tensor | None, inside: Tensor | None) -> Tensor | None:
    """Return the `sites` of a `Block`."""
    if target is not None:
        known = target.any(dim=0)  # partly labelled ones too: a stroke of one pixel is half a working pixel wide
        if known.float().mean() < _SPARSE and (inside is None or known.sum() < _SPARSE * inside.sum()):
            return known.nonzero()
    return None if inside is None else inside[0, ::_EVERY, ::_EVERY].nonzero() * _EVERY


@dataclass(frozen=True)
class Batch:
    """A training batch on the device.

    Attributes
    ----------
    image : Tensor
        (N, channels, Y, X) float32, patches of the `images` of blocks.
    target : Tensor
        (N, C, Y, X) float32 target probabilities, 0 where unlabelled.
    teacher_logits : Tensor or None
        (N, C, Y, X) float32, if asked for.
    inside : Tensor or None
        (N, Y, X) float32, 1 in the sample; None if all patches are.
    """

    image: Tensor
    target: Tensor
    teacher_logits: Tensor | None
    inside: Tensor | None = None


@dataclass
class PatchSampler:
    """Samples batches of patches from blocks; a batch is a function of seed and step, which makes resuming exact."""

    labelled: Sequence[Block]
    unlabelled: Sequence[Block]
    config: TrainConfig
    device: torch.device
    erased: frozenset[int] = frozenset()
    """z of slices of the first volume whose labels have been erased since the start."""
    processes: int = 1
    """Number of processes; each makes `config.batch` of a step's patches."""

    def class_pixels(self) -> Tensor:
        """Return the number of labelled working pixels of each class, (C,) float64."""
        total = torch.zeros(self.config.classes, dtype=torch.float64)
        for block in self.labelled:
            if block.target is not None:
                total += block.target.sum(dim=(1, 2), dtype=torch.float64) / 255
        return total

    @property
    def sparse(self) -> bool:
        """Whether little is labelled: nothing, or strokes on at most a quarter of the pixels of the labelled slices."""
        pixels = sum(block.target[0].numel() for block in self.labelled if block.target is not None)
        return float(self.class_pixels().sum()) <= _SPARSE * pixels

    def replace(self, z: int, blocks: Sequence[Block]) -> None:
        """Replace the labelled blocks of slice `z` of the first volume; the old ones stay while there are no others."""
        self.erased = self.erased - {z} if blocks else self.erased | {z}
        gone = self.erased | {z}
        others = [block for block in self.labelled if block.volume.index or block.z not in gone]
        self.labelled = [*others, *blocks] or self.labelled

    def teach(self, output: Callable[[Volume], TeacherOutput]) -> None:
        """Let another teacher replace the one so far; `output` returns what it says of a volume."""
        made: dict[int, TeacherOutput] = {}

        def taught(block: Block) -> Block:
            volume = block.volume
            if volume.teacher is not None:
                volume.teacher.forget()
            if volume.index not in made:
                made[volume.index] = output(volume.raw)
            return replace(block, volume=replace(volume, teacher=made[volume.index]))

        self.labelled = [taught(block) for block in self.labelled]
        self.unlabelled = [taught(block) for block in self.unlabelled]

    def batch(self, step: int, unlabelled_share: float = 0.0, *, teacher: bool = False, rank: int = 0) -> Batch:
        """Make the batch of a step: random patches of random blocks, with image, labels and teacher augmented alike.

        Parameters
        ----------
        step : int
            Number of the step, which seeds the randomness together with `config.seed`.
        unlabelled_share : float
            Share of the patches, on average over the steps, from unlabelled blocks, where there are both kinds.
        teacher : bool
            Whether the teacher's logits are needed.
        rank : int
            Rank of the process whose patches to make, of those that share the batch.
        """
        config, generator = self.config, torch.Generator().manual_seed(self.config.seed * 1_000_003 + step)
        count, mine = config.batch * self.processes, slice(rank, None, self.processes)
        blocks = self._choose(step, count, unlabelled_share, generator)[mine]
        offsets = random_warp(count, mine, config, generator)
        places = torch.rand(count, 3, generator=generator)[mine]
        upside_down = [False] * len(blocks)
        if config.context and config.flips:
            upside_down = (torch.rand(count, generator=generator)[mine] < 0.5).tolist()
        warped = [
            warp(_channels(block, teacher, flip), offset.to(self.device), _corner(block, config.patch, place))
            for block, flip, offset, place in zip(blocks, upside_down, offsets, places.tolist(), strict=True)
        ]
        images, others = zip(*(w.tensor_split([2 * config.context + 1]) for w in warped), strict=True)
        style = self._style(count, mine, generator) if config.style else None
        return Batch(
            change_appearance(torch.stack(images), count, mine, config, generator, style),
            torch.stack([self._target(block, w) for block, w in zip(blocks, others, strict=True)]),
            torch.stack([_logits(block, w, config.classes) for block, w in zip(blocks, others, strict=True)])
            if teacher
            else None,
            _inside(blocks, others),
        )

    def _choose(self, step: int, count: int, unlabelled_share: float, generator: torch.Generator) -> list[Block]:
        # rounded so that the share is right over the steps: 3/4 of two patches are one and two in turn
        unlabelled = int((step + 1) * count * unlabelled_share) - int(step * count * unlabelled_share)
        unlabelled = unlabelled if self.labelled else count
        unlabelled = unlabelled if self.unlabelled else 0
        chosen = []
        for blocks, number in ((self.labelled, count - unlabelled), (self.unlabelled, unlabelled)):
            if number:
                weights = self._weights(blocks)
                chosen += [blocks[i] for i in torch.multinomial(weights, number, True, generator=generator).tolist()]
        return chosen

    def _style(self, count: int, mine: slice, generator: torch.Generator) -> Tensor:
        """Return unwarped patches (N, channels, Y, X) of any volume, whose Fourier amplitudes are mixed in."""
        blocks = [*self.labelled, *self.unlabelled]
        chosen = torch.multinomial(self._weights(blocks), count, True, generator=generator)[mine].tolist()
        places = torch.rand(count, 3, generator=generator)[mine].tolist()
        plain = replace(self.config, rotation=0.0, scale=0.0, elastic=0.0, zoom=0.0, flips=False)
        offset = random_warp(1, slice(None), plain, generator)[0].to(self.device)
        return torch.stack(
            [
                warp(blocks[i].images, offset, _corner(blocks[i], self.config.patch, place))
                for i, place in zip(chosen, places, strict=True)
            ]
        )

    def _weights(self, blocks: Sequence[Block]) -> Tensor:
        """Return the relative probability (N,) of each block: by `volume_weights`, and by area within a volume."""
        areas = torch.tensor([block.area for block in blocks], dtype=torch.float64)
        if (given := self.config.volume_weights) != "area":
            volumes = torch.tensor([block.volume.index for block in blocks])
            totals = areas.new_zeros(int(volumes.max()) + 1).index_add(0, volumes, areas)
            weights = torch.ones_like(totals) if given == "even" else areas.new_tensor(given)[: len(totals)]
            areas *= (weights * areas.sum() / totals)[volumes]
        return areas.float()

    def _target(self, block: Block, warped: Tensor) -> Tensor:
        """Return the target probabilities, which come first in `warped`, the warped channels after the images."""
        if block.target is None:
            return warped.new_zeros(self.config.classes, *warped.shape[1:])
        target = warped[: self.config.classes] / 255
        return target if block.inside is None else target * (warped[-1] > _WHOLE)


def _channels(block: Block, teacher: bool, upside_down: bool) -> list[Tensor]:
    """Return all that is warped together: images (mirrored in z if `upside_down`), target, teacher and `inside`."""
    images = block.images[::-1] if upside_down else block.images
    parts = (*images, block.target, block.teacher_probability if teacher else None, block.inside)
    return [part for part in parts if part is not None]


def _inside(blocks: Sequence[Block], warped: Sequence[Tensor]) -> Tensor | None:
    """Return `Batch.inside`; it is the last warped channel of a block that has it."""
    if all(block.inside is None for block in blocks):
        return None
    pairs = zip(blocks, warped, strict=True)
    return torch.stack(
        [w.new_ones(w.shape[1:]) if block.inside is None else (w[-1] > _WHOLE).to(w) for block, w in pairs]
    )


def _logits(block: Block, warped: Tensor, classes: int) -> Tensor:
    """Return the teacher's logits (C, Y, X); its probabilities without the background come after the target."""
    first = 0 if block.target is None else classes
    others = warped[first : first + classes - 1]
    return torch.cat((1 - others.sum(dim=0, keepdim=True), others)).clamp_min(_LEAST).log()


def _corner(block: Block, side: int, place: Sequence[float]) -> Iterator[int]:
    """Yield the first row and column of a patch: anywhere, or so that the site that `place` chooses is well inside."""
    for axis, size in enumerate(block.image.shape[-2:]):
        room = size - side
        if block.sites is None:
            wanted = place[axis] * room
        else:
            site = int(block.sites[int(place[2] * len(block.sites)), axis])
            wanted = site - side / 2 + (place[axis] - 0.5) * side / 2
        yield room // 2 if room <= 0 else min(max(round(wanted), 0), room)
