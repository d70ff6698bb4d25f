"""Which slices are neighbours: by distance in nm, mirrored at the ends of the stack, and never a lost one."""

from __future__ import annotations

import numpy as np
import pytest

from napari_kdunet import core
from napari_kdunet.core.volumes.neighbours import Neighbours


def stack(depth: int, size: float | None = None) -> core.Volume:
    raw = np.random.default_rng(0).integers(0, 255, (depth, 40, 40), dtype=np.uint8)
    return core.open_volume(raw, voxel_size=None if size is None else (size, 5.0, 5.0))


def of(depth: int, z: int, context: int, distance: float = 0.0, size: float | None = None) -> list[int]:
    volume = stack(depth, size)
    return Neighbours.between(context, distance, volume.voxel_size).of(volume, z)


def test_the_slice_stands_between_those_below_and_above():
    assert of(9, 4, 0) == [4]
    assert of(9, 4, 1) == [3, 4, 5]
    assert of(9, 4, 2) == [2, 3, 4, 5, 6]


@pytest.mark.parametrize("depth", [1, 2, 3, 5])
@pytest.mark.parametrize("context", [1, 2, 8])
def test_beyond_the_ends_the_stack_is_mirrored_as_numpy_does(depth, context):
    mirrored = np.pad(np.arange(depth), context, mode="reflect") if depth > 1 else np.zeros(2 * context + 1, int)
    for z in range(depth):
        assert of(depth, z, context) == mirrored[z : z + 2 * context + 1].tolist()


@pytest.mark.parametrize(
    ("size", "seen"),
    [
        (20.0, [8, 9, 10, 11, 12]),
        (10.0, [6, 8, 10, 12, 14]),
        (8.0, [5, 7, 10, 13, 15]),  # 20 nm are 2.5 slices and halves go outwards, 40 nm are 5
        (30.0, [9, 9, 10, 11, 11]),
        (41.0, [9, 10, 10, 10, 11]),  # the slice itself is nearer than the next one
        (100.0, [10] * 5),
        (None, [8, 9, 10, 11, 12]),
    ],
)
def test_the_nearest_slices_at_multiples_of_a_distance(size, seen):
    assert of(21, 10, 2, 20.0, size) == seen


def test_without_a_distance_they_are_the_next_slices():
    assert of(21, 10, 1, 0.0, 45.0) == [9, 10, 11]


def test_in_the_place_of_a_lost_one_comes_that_on_the_other_side_or_the_slice_itself():
    raw = np.array(stack(7)[:])
    raw[[1, 3]] = 0
    volume, neighbours = core.open_volume(raw), Neighbours(1)
    assert neighbours.of(volume, 4) == [5, 4, 5]
    assert neighbours.of(volume, 0) == [0, 0, 0]
    assert neighbours.of(volume, 2) == [2, 2, 2]
    assert neighbours.of(volume, 5) == [4, 5, 6]
