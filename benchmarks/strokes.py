"""Strokes that a script paints as a user would: on a few slices, each inside one class according to the truth."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from scipy import ndimage

STROKES, LENGTH, BRUSH, NEAR = 30, 90, 9, 30  # number of strokes; pixels


def strokes(truth: np.ndarray, slices: Sequence[int], seed: int) -> Iterator[tuple[int, int, np.ndarray]]:
    """Yield z, label (1 background, 2 foreground) and points (N, 2) of each stroke, along a straight line.

    Strokes are alternately inside a mitochondrion and in the background, and there alternately near a mitochondrion and
    anywhere.
    """
    rng, room = np.random.default_rng(seed), {}
    for z in slices:
        inside = truth[z] > 0
        room[z] = ndimage.distance_transform_edt(~inside), ndimage.distance_transform_edt(inside)
    for i in range(STROKES):
        z, label = slices[i // 2 % len(slices)], 2 - i % 2
        free = room[z][label - 1]
        where = free > BRUSH
        if i % 4 == 1:
            where &= free < NEAR
        start = rng.choice(np.argwhere(where))
        lines = [_line(start, angle, free) for angle in rng.uniform(0, 2 * np.pi, 24)]
        yield z, label, max(lines, key=len)


def painted(truth: np.ndarray, slices: Sequence[int], seed: int) -> np.ndarray:
    """Return labels (Z, Y, X) uint8 with all strokes; 0 is not painted."""
    labels = np.zeros(truth.shape, np.uint8)
    for z, label, points in strokes(truth, slices, seed):
        line = np.zeros(truth.shape[1:], bool)
        line[tuple(np.round(points).astype(int).T)] = True
        labels[z][ndimage.distance_transform_edt(~line) <= BRUSH / 2] = label
    return labels


def _line(start: np.ndarray, angle: float, free: np.ndarray) -> np.ndarray:
    """Return points from `start` in a direction, as far as the brush stays in one class and in the slice."""
    points = start + np.arange(0, LENGTH, 3)[:, None] * (np.sin(angle), np.cos(angle))
    inside = ((points >= 0) & (points <= np.array(free.shape) - 1)).all(axis=1)
    at = np.round(points * inside[:, None]).astype(int)
    stays = inside & (free[tuple(at.T)] > BRUSH / 2 + 1)
    return points[: int(np.argmin(stays)) if not stays.all() else len(points)]
