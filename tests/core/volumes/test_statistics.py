"""Mean and standard deviation of a slice."""

from __future__ import annotations

import numpy as np
import pytest

from napari_kdunet.core.volumes.volume import open_volume


def test_statistics_over_several_strips(tmp_path):
    array = np.random.default_rng(2).normal(1e4, 3, (2, 2500, 20))
    volume = open_volume(array)
    assert volume.statistics(1) == pytest.approx((array[1].mean(), array[1].std()), rel=1e-12)
    constant = open_volume(np.full((1, 3, 3), 255, np.uint8))
    assert constant.statistics(0) == (255.0, 0.0)
    assert open_volume(np.eye(2, dtype=bool)).statistics(0) == (0.5, 0.5)


def test_statistics_are_remembered():
    class Counting:
        shape, dtype, reads = (2, 10, 10), np.dtype(np.uint8), 0

        def __getitem__(self, key):
            self.reads += 1
            return np.ones((10, 10), np.uint8)

    array = Counting()
    volume = open_volume(array)
    assert volume.statistics(1) == volume.statistics(1) == (1.0, 0.0)
    assert array.reads == 1


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_statistics_refuse_nan_and_infinity(value, fails):
    array = np.zeros((3, 5, 5), np.float32)
    array[2, 4, 4] = value
    volume = open_volume(array, name="raw.npy")
    assert volume.statistics(1) == (0.0, 0.0)
    fails(lambda: volume.statistics(2), "slice z=2 of raw.npy", "NaN or infinite", "--fill nan", "fill=math.nan")
