"""Probabilities and mask of a volume, in memory and in a temporary Zarr."""

import gc

import numpy as np
import pytest

from napari_kdunet.widgets.segmentation.result import Result


@pytest.mark.parametrize("memory", [None, 0], ids=["in memory", "in a Zarr"])
def test_corrected_slices_are_those_that_were_painted_on(tiny_model, memory):
    rng = np.random.default_rng(0)
    result = Result(tiny_model, (3, 40, 50), 0.5, memory=memory)
    for z in range(2):
        result.put(z, rng.random((40, 50), np.float32))
    assert result.corrected_slices() == {}
    result.threshold = 0.3
    result.apply(0)
    assert result.corrected_slices() == {}, "one slice has the new threshold, the other the old one"
    painted = result.mask[1]
    sure = np.unravel_index(np.argmax(result.probability[1]), (40, 50))
    painted[sure] = 0
    result.mask[1] = painted
    corrected = result.corrected_slices()
    assert list(corrected) == [1]
    np.testing.assert_array_equal(corrected[1], painted)


def test_the_threshold_is_applied_to_all_but_what_was_painted(tiny_model):
    result = Result(tiny_model, (1, 4, 4), 0.5)
    result.put(0, np.linspace(0, 1, 16, dtype=np.float32).reshape(4, 4))
    result.mask[0, 0, 0] = 1
    result.threshold = 0.3
    assert result.outdated(0) == 0
    result.apply(0)
    assert result.outdated(0) is None
    wanted = result.probability[0] > 0.3
    wanted[0, 0] = True
    np.testing.assert_array_equal(result.mask[0] > 0, wanted)


def test_the_temporary_zarr_goes_with_the_result(tiny_model):
    result = Result(tiny_model, (1, 4, 4), 0.5, memory=0)
    folder = result.folder
    assert folder.exists()
    del result
    gc.collect()
    assert not folder.exists()


def test_a_very_large_slice_is_a_file_that_can_be_painted_on(tiny_model):
    """Probabilities and mask of 20,000 x 20,000 pixels would take 1.2 GB of memory."""
    result = Result(tiny_model, (1, 20_000, 20_000), 0.5)
    assert result.folder is not None
    for array in (result.mask, result.probability):
        assert isinstance(array, np.memmap)
    mask = result.mask[0]
    mask[5, 7] = 1
    assert result.mask[0, 5, 7] == 1
    folder = result.folder
    del result, array, mask
    gc.collect()
    assert not folder.exists()


def test_tiles_of_a_slice_get_one_threshold(tiny_model):
    result = Result(tiny_model, (1, 4, 8), 0.5)
    result.tiles = 2
    probability = np.linspace(0, 1, 32, dtype=np.float32).reshape(4, 8)
    result.put(0, probability[:, :4], None, (slice(0, 4), slice(0, 4)))
    result.threshold = 0.25
    assert not result.done[0]
    result.put(0, probability[:, 4:], None, (slice(0, 4), slice(4, 8)))
    assert result.done[0]
    np.testing.assert_array_equal(result.mask[0], probability > 0.5)
    result.apply(0)
    np.testing.assert_array_equal(result.mask[0], probability > 0.25)
