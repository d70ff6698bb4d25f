"""Inference of a k-Unet, compiled by Numba; `layout` plans its memory, `prediction.compiled` calls it.

The two convolutions of a stage are fused with the pooling, the up-convolution or the head after them: they run over a
few rows at a time, so that intermediate results stay in the cache. Stages are cut into bands of rows: tasks that the
threads take in turn, each begun as soon as the bands that it reads are done. The threads are ours and not Numba's:
Numba's workqueue layer, the only one that is always available, ends the process when two threads use it at once.
"""

from __future__ import annotations

import zlib
from pathlib import Path

import numpy as np

from napari_kdunet.core.kernels import simd
from napari_kdunet.core.kernels.jit import copy, njit
from napari_kdunet.core.kernels.simd import LANES, VECTORS, atomic_add, convolve, enlarge, shrink

__all__ = ["BAND", "DOWN", "HEAD", "INPUT", "STAGE", "STEP", "UP", "run"]

STEP = 16  # rows at a time: what the first convolution of a stage passes to the second then fits the L2 cache
_SPINS_BEFORE_YIELD = 20_000  # some 0.1 ms of waiting for a band, before the thread gives its core away

_SIMD = zlib.crc32(Path(simd.__file__).read_bytes())

DOWN, UP, HEAD, INPUT = 0, 1, 2, 3

#: A stage: two 3x3 convolutions and a pooling (DOWN), an up-convolution (UP) or the head (HEAD) after them. INPUT
#: copies the image to the `source` of the first such stage. Planes are given by the offset of their first pixel in the
#: memory, weights by the offset of their first number in the weights.
STAGE = np.dtype(
    [
        (name, np.int64)
        for name in (
            *("kind", "height", "width", "row", "inputs", "channels"),  # `row`: stride from one row to the next
            *("source", "source_plane"),  # `plane`: stride from one channel to the next
            *("first", "second", "last"),  # weights of the two convolutions and of the layer after them
            *("skip", "skip_plane"),  # for DOWN: where the second convolution writes
            *("target", "target_plane", "target_row", "target_channels"),
        )
    ]
)
#: A band: rows `top` to `bottom` of a stage. It reads what the bands `needs` up to, not including, `until` write.
BAND = np.dtype([(name, np.int64) for name in ("stage", "top", "bottom", "needs", "until")])


def _block(channels, rows, taps):
    """Make a convolution to `channels` channels in register tiles of `rows` rows, with smaller ones at the edges."""
    wide = VECTORS * LANES

    @njit(nogil=True)
    def block(memory, weights, source, target, kernel, slope, top, bottom, width):
        start, plane, row, inputs = source
        goal, goal_plane, goal_row = target
        whole = top + (bottom - top) // rows * rows
        for y in range(top, bottom, rows):
            for x in range(0, width, wide):
                here, there = start + y * row + x, goal + y * goal_row + x
                if y < whole and x + wide <= width:
                    at, to = (here, plane, row, inputs), (there, goal_plane, goal_row)
                    convolve(memory, weights, at, to, kernel, slope, (channels, rows, VECTORS), taps)
                    continue
                for r in range(min(rows, bottom - y)):
                    for v in range(0, min(wide, width - x), LANES):
                        at = (here + r * row + v, plane, row, inputs)
                        to = (there + r * goal_row + v, goal_plane, goal_row)
                        convolve(memory, weights, at, to, kernel, slope, (channels, 1, 1), taps)

    return block


def _convolution(taps):
    """Make a convolution with `taps` x `taps` weights for rows `top` to `bottom`; source and target start at row 0."""
    four, two, one = (_block(channels, rows, taps) for channels, rows in ((4, 1), (2, 2), (1, 4)))

    @njit(nogil=True)
    def convolution(memory, weights, source, target, channels, kernel, slope, top, bottom, width):
        goal, plane, row = target
        while channels > 0:
            if channels >= 4:
                four(memory, weights, source, (goal, plane, row), kernel, slope, top, bottom, width)
                done = 4
            elif channels >= 2:
                two(memory, weights, source, (goal, plane, row), kernel, slope, top, bottom, width)
                done = 2
            else:
                one(memory, weights, source, (goal, plane, row), kernel, slope, top, bottom, width)
                done = 1
            kernel += done * (1 + taps * taps * source[3])
            goal += done * plane
            channels -= done

    return convolution


_convolve3, _convolve1 = _convolution(3), _convolution(1)


@njit(nogil=True)
def _pad(memory, start, plane, row, channels, top, bottom, width):
    """Write zero padding left and right of rows, where tiles and former uses of the memory leave other values."""
    for c in range(channels):
        for y in range(top, bottom):
            at = start + c * plane + y * row
            memory[at - 1] = 0
            memory[at + width] = 0


@njit(nogil=True)
def _move_up(memory, start, plane, row, channels, rows):
    """Copy to `start` the two rows that lie `rows` rows further down, with the zeros beside them."""
    for c in range(channels):
        to, count = start + c * plane - 1, 2 * row
        copy(memory[to + rows * row : to + rows * row + count], memory[to : to + count])


@njit(nogil=True)
def _copy(memory, image, stage, top, bottom):
    """Copy rows of the image to where the first stage reads them."""
    for c in range(stage.inputs):
        for y in range(top, bottom):
            at = stage.source + c * stage.source_plane + y * stage.row
            copy(image[c, y], memory[at : at + stage.width])


@njit(nogil=True)
def _pool(memory, stage, top, bottom):
    width = stage.width // 2
    for c in range(stage.channels):
        for y in range(top // 2, bottom // 2):
            at = stage.skip + c * stage.skip_plane + 2 * y * stage.row
            to = stage.target + c * stage.target_plane + y * stage.target_row
            for x in range(0, width, LANES):
                shrink(memory, at + 2 * x, stage.row, to + x)
    _pad(memory, stage.target, stage.target_plane, stage.target_row, stage.channels, top // 2, bottom // 2, width)


@njit(nogil=True)
def _upconvolve(memory, weights, stage, source, plane, top, bottom):
    """Up-convolve rows `top` to `bottom`, the first of which lies at `source`, to twice as many."""
    kernel, target, wide = stage.last, stage.target, VECTORS * LANES
    for _ in range(stage.target_channels):
        for y in range(top, bottom):
            here, there = source + (y - top) * stage.row, target + 2 * y * stage.target_row
            for x in range(0, stage.width, wide):
                if x + wide <= stage.width:
                    at, to = (here + x, plane, stage.row, stage.channels), (there + 2 * x, stage.target_row)
                    enlarge(memory, weights, at, to, kernel, VECTORS)
                    continue
                for v in range(x, stage.width, LANES):
                    at, to = (here + v, plane, stage.row, stage.channels), (there + 2 * v, stage.target_row)
                    enlarge(memory, weights, at, to, kernel, 1)
        kernel += 4 * (1 + stage.channels)
        target += stage.target_plane
    rows = (2 * top, 2 * bottom, 2 * stage.width)
    _pad(memory, stage.target, stage.target_plane, stage.target_row, stage.target_channels, *rows)


@njit(nogil=True)
def _head(memory, weights, stage, source, top, bottom):
    target, no_activation = (stage.target, stage.target_plane, stage.target_row), np.float32(1)
    outputs, width = stage.target_channels, stage.width
    _convolve1(memory, weights, source, target, outputs, stage.last, no_activation, top, bottom, width)


@njit(nogil=True)
def _between(memory, weights, stage, slope, mid, plane, top, begin, end):
    """Compute rows `begin` to `end` of the first convolution, zeros outside the image; row `top` - 1 is at `mid`."""
    source = (stage.source, stage.source_plane, stage.row, stage.inputs)
    first, last = max(begin, 0), min(end, stage.height)
    target = (mid - (top - 1) * stage.row, plane, stage.row)
    _convolve3(memory, weights, source, target, stage.channels, stage.first, slope, first, last, stage.width)
    _pad(memory, target[0], plane, stage.row, stage.channels, first, last, stage.width)
    for y in (-1, stage.height):
        if begin <= y < end:
            for c in range(stage.channels):
                at = target[0] + c * plane + y * stage.row
                memory[at - 1 : at + stage.width + 1] = 0


@njit(nogil=True)
def _work(memory, weights, stage, slope, scratch, band):
    """Compute one band, a few rows at a time; `scratch` is the offset of this thread's intermediate results."""
    plane = (STEP + 2) * stage.row
    mid = scratch + LANES
    out, out_plane = scratch + LANES + (stage.channels + 1) * plane, STEP * stage.row
    for top in range(band.top, band.bottom, STEP):
        bottom = min(top + STEP, band.bottom)
        begin = top - 1 if top == band.top else top + 1  # those before are the last two of the step before
        _between(memory, weights, stage, slope, mid, plane, top, begin, bottom + 1)
        between = (mid - (top - 1) * stage.row, plane, stage.row, stage.channels)
        if stage.kind == DOWN:
            result = (stage.skip, stage.skip_plane, stage.row)
        else:
            result = (out - top * stage.row, out_plane, stage.row)
        _convolve3(memory, weights, between, result, stage.channels, stage.second, slope, top, bottom, stage.width)
        if stage.kind == DOWN:
            _pad(memory, *result, stage.channels, top, bottom, stage.width)
            _pool(memory, stage, top, bottom)
        elif stage.kind == UP:
            _upconvolve(memory, weights, stage, out, out_plane, top, bottom)
        else:
            _head(memory, weights, stage, (*result, stage.channels), top, bottom)
        _move_up(memory, mid, plane, stage.row, stage.channels, bottom - top)


def _compile(version, *, cache):
    """Compile `run`, with Numba's `cache` on disk: beside this file, or else in the user's folder.

    Numba sees that a cached function is stale only by the date of this file and by the variables that the function
    closes over. So `version`, a checksum of `simd`, makes Numba compile again when that file has changed.
    """

    @njit(nogil=True, cache=cache)
    def run(memory, weights, image, stages, bands, progress, slope, scratch, band):
        """Take bands in turn until there are none.

        Parameters
        ----------
        memory, weights : ndarray of float32
            All planes, and all parameters.
        image : ndarray of float32
            (channels, Y, X), contiguous.
        stages, bands : ndarray of STAGE, of BAND
            The tasks; a band needs only earlier bands.
        progress : ndarray of int64
            Counters shared by the threads, zeros at first: bands taken, then for each band whether it is done.
        slope : float32
            Slope of the activation below 0.
        scratch : int
            Offset of this thread's part of the memory.
        band : int
            A band that was taken but could not be begun, or -1.

        Returns
        -------
        int
            -1 when all bands are taken; else a band that has waited too long for others: call again with it.
        """
        while version:
            if band < 0:
                band = atomic_add(progress, 0, 1)
            if band >= len(bands):
                break
            for needed in range(bands[band].needs, bands[band].until):
                spins = 0
                while atomic_add(progress, 1 + needed, 0) == 0:
                    spins += 1
                    if spins > _SPINS_BEFORE_YIELD:
                        return band
            stage = stages[bands[band].stage]
            if stage.kind == INPUT:
                _copy(memory, image, stage, bands[band].top, bands[band].bottom)
            else:
                _work(memory, weights, stage, slope, scratch, bands[band])
            atomic_add(progress, 1 + band, 1)
            band = -1
        return -1

    return run


try:
    run = _compile(_SIMD, cache=True)
except RuntimeError:  # there is no folder for the cache
    run = _compile(_SIMD, cache=False)
