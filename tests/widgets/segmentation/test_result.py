"""Probabilities and mask of a volume, in memory and in a temporary Zarr."""

import gc

import numpy as np
import pytest

from napari_kdunet.widgets.segmentation import result as result_module
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


def test_a_very_large_slice_is_a_file_that_is_drawn_in_part(tiny_model):
    """Probabilities and mask of 20,000 x 20,000 pixels would take 1.2 GB of memory, and drawing them all seconds."""
    result = Result(tiny_model, (1, 20_000, 20_000), 0.5)
    assert result.folder is not None
    for array in (result.mask, result.probability):
        assert isinstance(array, np.memmap)
        levels = result.levels(array[0])
        assert levels[0].shape == (20_000, 20_000)
        assert max(levels[-1].shape) <= 1024
        array[0, 64, 96] = 1
        assert [level[64 >> i, 96 >> i] for i, level in enumerate(levels)] == [1] * len(levels), "no copies"
    folder = result.folder
    del result, array, levels
    gc.collect()
    assert not folder.exists()


def test_several_large_slices_are_one_file_too(tiny_model, monkeypatch):
    """Of a Zarr every other pixel would be as long to read as all of them."""
    monkeypatch.setattr(result_module, "_DRAWN_WHOLE", 40)
    result = Result(tiny_model, (3, 40, 50), 0.5, memory=0)
    assert isinstance(result.mask, np.memmap)
    assert Result(tiny_model, (3, 40, 40), 0.5, memory=0).levels("array") == "array"


def test_tiles_of_a_slice_get_one_threshold(tiny_model):
    result = Result(tiny_model, (1, 4, 8), 0.5)
    result.tiles = 2
    probability = np.linspace(0, 1, 32, dtype=np.float32).reshape(4, 8)
    result.put(0, probability[:, :4], None, (slice(0, 4), slice(0, 4)))
    result.threshold = 0.25
    assert not result.done[0]
    result.put(0, probability[:, 4:], None, (slice(0, 4), slice(4, 8)), 1)
    assert result.done[0]
    np.testing.assert_array_equal(result.mask[0], probability > 0.5)
    result.apply(0)
    np.testing.assert_array_equal(result.mask[0], probability > 0.25)
