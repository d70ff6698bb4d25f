"""The plan of one flat memory for all planes of a k-Unet, and its work as stages and bands, for `inference`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from napari_kdunet.core.kernels.inference import BAND, DOWN, HEAD, INPUT, STAGE, STEP, UP
from napari_kdunet.core.kernels.simd import LANES

__all__ = ["MemoryPlan", "WeightOffsets", "plan_memory"]

_BANDS = 4  # per thread and stage, if there are rows enough: little is computed twice, and no thread waits long

WeightOffsets: TypeAlias = list[tuple[int, int, int]]
"""Offsets of the weights of each stage: its two convolutions and the layer after them."""


@dataclass(frozen=True)
class MemoryPlan:
    """Memory and tasks for the kernels: all that they need besides the weights; see `inference.run`.

    Attributes
    ----------
    memory : ndarray of float32
        All planes, with zeros around each: the padding of the convolutions.
    size : tuple of int
        Size (Y, X) of the images, in pixels.
    logits : ndarray of float32, shape (C, Y, X)
        A view of the memory where the output is.
    stages, bands, progress : ndarray
        As in `inference.run`.
    scratch : tuple of int
        Offset of each thread's part of the memory.
    """

    memory: NDArray[np.float32]
    size: tuple[int, int]
    logits: NDArray[np.float32]
    stages: NDArray[Any]
    bands: NDArray[Any]
    progress: NDArray[np.int64]
    scratch: tuple[int, ...]


@dataclass(frozen=True)
class _Level:
    """Planes of one resolution: a row begins with zeros, and there is a row of zeros above and below."""

    channels: int
    height: int
    width: int
    row: int

    @property
    def plane(self) -> int:
        return (self.height + 2) * self.row

    @property
    def origin(self) -> int:
        """Offset of the first pixel of a plane."""
        return self.row + LANES


def plan_memory(
    k: int, depth: int, ends: tuple[int, int], weights: WeightOffsets, size: tuple[int, int], threads: int
) -> MemoryPlan:
    """Plan the memory of a network with `ends` channels in and out, for images of one `size` (Y, X).

    Both sides must be multiples of ``2**depth``.
    """
    channels, outputs = ends
    lanes = -(-(size[1] >> depth) // LANES) * LANES  # tiles write whole vectors, on all levels
    levels = [_Level(k << i, size[0] >> i, size[1] >> i, (lanes << (depth - i)) + LANES) for i in range(depth + 1)]
    used = 0

    def take(level: _Level, channels: int) -> int:
        nonlocal used
        used += channels * level.plane + LANES
        return used - channels * level.plane - LANES + level.origin

    inputs = [take(level, max(1, level.channels // 2) if i else channels) for i, level in enumerate(levels)]
    skips = [take(level, 2 * level.channels) for level in levels[:-1]]
    output = take(levels[0], outputs)
    stages = np.zeros(2 * depth + 2, STAGE)
    for i, stage in enumerate(stages[1:]):
        _describe(stage, i, levels, inputs, skips, output, ends)
        stage["first"], stage["second"], stage["last"] = weights[i]
    stages[0] = stages[1]  # its size and source
    stages[0]["kind"] = INPUT
    own = max((2 * level.channels + 1) * (STEP + 2) * level.row for level in levels) + 2 * LANES
    own = -(-own // LANES) * LANES
    scratch = tuple(-(-used // LANES) * LANES + thread * own for thread in range(threads))
    memory = _aligned(scratch[-1] + own + (STEP + 2) * levels[0].row)
    bands = np.array(list(_bands(stages["height"].tolist(), threads)), BAND)
    strides = (4 * levels[0].plane, 4 * levels[0].row, 4)
    logits = np.lib.stride_tricks.as_strided(memory[output:], (outputs, *size), strides)
    return MemoryPlan(memory, size, logits, stages, bands, np.zeros(1 + len(bands), np.int64), scratch)


def _level(stage: int, depth: int) -> int:
    """Return the level of a stage: down from 0 to `depth`, and up again."""
    return depth - abs(depth - stage)


def _describe(
    stage: Any,
    index: int,
    levels: list[_Level],
    inputs: list[int],
    skips: list[int],
    output: int,
    ends: tuple[int, int],
) -> None:
    depth = len(levels) - 1
    at = _level(index, depth)
    level = levels[at]
    for name in ("height", "width", "row", "channels"):
        stage[name] = getattr(level, name)
    stage["source_plane"] = level.plane
    if index <= depth:
        stage["inputs"], stage["source"] = level.channels // 2 if at else ends[0], inputs[at]
    else:
        stage["inputs"], stage["source"] = 2 * level.channels, skips[at]
    if index < depth:
        goal, stage["kind"] = levels[at + 1], DOWN
        stage["skip"], stage["skip_plane"], stage["target"] = skips[at], level.plane, inputs[at + 1]
    elif at:
        goal, stage["kind"] = levels[at - 1], UP
        stage["target"] = skips[at - 1] + goal.channels * goal.plane
        stage["target_channels"] = goal.channels
    else:
        goal, stage["kind"] = level, HEAD
        stage["target"], stage["target_channels"] = output, ends[1]
    stage["target_plane"], stage["target_row"] = goal.plane, goal.row


def _bands(heights: list[int], threads: int) -> Iterator[tuple[int, int, int, int, int]]:
    """Yield the bands of each stage, given the stages' heights; two convolutions need two rows beyond a band."""
    first, rows, count = 0, 0, 0  # of the stage before: its first band, the rows of a band, the number of bands
    for stage, height in enumerate(heights):
        size = max(STEP, height // (threads * _BANDS) // STEP * STEP)
        for top in range(0, height, size):
            bottom, needs, until = min(top + size, height), 0, 0
            if stage:
                before = heights[stage - 1]
                begin, end = max(top - 2, 0) * before // height, -(-min(bottom + 2, height) * before // height)
                needs, until = first + begin // rows, first - (-end // rows)
            yield stage, top, bottom, needs, until
        first, rows, count = first + count, size, -(-height // size)


def _aligned(size: int) -> NDArray[np.float32]:
    """Return zeros, aligned to the length of a vector."""
    memory = np.zeros(size + LANES, np.float32)
    start = -(memory.ctypes.data // memory.itemsize) % LANES
    return memory[start : start + size]
