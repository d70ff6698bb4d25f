"""What the values of a prediction by another tool mean."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from napari_kdunet import core
from napari_kdunet.core.volumes.probability import is_probability, kind_of, read_probability
from napari_kdunet.core.volumes.volume import open_volume


def blurred(seed: int, width: float, shape=(6, 80, 90)) -> tuple[np.ndarray, np.ndarray]:
    """A probability that a tool is surer of the smaller `width` is, and the truth."""
    field = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=shape), (0, 5, 5))
    field /= field.std()
    return 1 / (1 + np.exp(-(field - 1) / width)), field > 1


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
@pytest.mark.parametrize("width", [0.02, 0.1, 0.5])
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("levels", [None, 11])
def test_probabilities_in_integers(dtype, width, seed, levels):
    probability, truth = blurred(seed, width)
    probability = probability if levels is None else (probability * (levels - 1)).round() / (levels - 1)
    most = np.iinfo(dtype).max
    stored = (probability * most).round().astype(dtype)
    if levels is not None and width == 0.02:  # as sharp as classes
        with pytest.raises(core.VolumeError, match="11 values"):
            core.evaluate(stored, truth)
        return
    scores, expected = core.evaluate(stored, truth), core.evaluate(stored / most, truth)
    assert scores.iou == pytest.approx(expected.iou, abs=1e-6)
    assert scores.iou > 0.7
    assert scores.ce == pytest.approx(expected.ce, rel=0.01)
    np.testing.assert_allclose(read_probability(open_volume(stored), 2), stored[2] / most, atol=1e-6)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int32", "int64", "uint64"])
@pytest.mark.parametrize("values", [(0, 1), (0, "most"), (0, 7)])
def test_masks(dtype, values):
    _, truth = blurred(1, 0.1)
    low, high = (np.iinfo(dtype).max if value == "most" else value for value in values)
    mask = np.where(truth, high, low).astype(dtype)
    assert kind_of(open_volume(mask)) == "mask"
    assert core.evaluate(mask, truth).iou == 1
    assert np.array_equal(read_probability(open_volume(mask), 0), truth[0])


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "uint32", "int32"])
@pytest.mark.parametrize("shuffled", [False, True])
def test_instances_are_foreground(dtype, shuffled):
    _, truth = blurred(2, 0.1)
    ids, count = ndimage.label(truth)
    assert count > 20
    names = np.append(0, np.random.default_rng(0).permutation(250)[:count] + 1 if shuffled else np.arange(1, count + 1))
    instances = names[ids].astype(dtype)
    assert kind_of(open_volume(instances)) == "labels"
    assert core.evaluate(instances, truth).iou == 1
    assert core.evaluate((names[ids] % 3 + (ids > 0)).astype(dtype), truth).iou == 1  # classes


def test_two_values_without_a_background():
    _, truth = blurred(3, 0.1)
    assert core.evaluate(np.where(truth, 230, 20).astype(np.uint8), truth).iou == 1
    with pytest.raises(core.VolumeError, match="from 1 to 2 and no background"):
        core.evaluate(np.where(truth, 2, 1).astype(np.uint8), truth)


@pytest.mark.parametrize("dtype", ["int16", "uint32", "int64", "uint64"])
def test_instances_without_a_background(dtype):
    _, truth = blurred(3, 0.1)
    with pytest.raises(core.VolumeError, match="from 1 to 2 and no background"):
        core.evaluate(np.where(truth, 2, 1).astype(dtype), truth)
    with pytest.raises(core.VolumeError, match="no background"):
        core.instances(np.where(truth, 2, 1).astype(dtype), voxel_size=(10, 10, 10))


def test_values_below_0_are_no_foreground():
    _, truth = blurred(3, 0.1)
    negative = np.where(truth, 1, 0)
    negative[0, 0, :3] = -1
    for use in (core.evaluate, core.score_objects):
        with pytest.raises(core.LabelsError, match="holds -1, which is neither background nor an object"):
            use(negative, truth)
    with pytest.raises(core.LabelsError, match="holds -1"):
        core.instances(negative, voxel_size=(10, 10, 10))


def test_the_background_of_cremi():
    _, truth = blurred(3, 0.1)
    ids = np.where(truth, 3, np.uint64(2**64 - 3)).astype(np.uint64)
    assert kind_of(open_volume(ids)) == "mask"
    assert core.evaluate(ids, truth).iou == 1
    assert core.score_objects(ids, truth).count == (1, 1)
    assert core.measure(ids, voxel_size=(10, 10, 10))["voxels"].tolist() == [truth.sum()]
    found, expected = (np.asarray(core.instances(each, voxel_size=(10, 10, 10))) for each in (ids, truth))
    assert np.array_equal(found, expected)


def test_few_slices_are_read_to_decide():
    class Watched:
        shape, dtype, read = (100, 20, 20), np.dtype(np.uint8), 0

        def __getitem__(self, key):
            self.read += 1
            return np.arange(400, dtype=np.uint8).reshape(20, 20)

    watched = Watched()
    volume = open_volume(watched)
    assert is_probability(volume)
    assert is_probability(volume)
    assert watched.read == 8


def test_floats_beyond_one_are_refused(one_line_of):
    probability, truth = blurred(1, 0.1)
    one_line_of(lambda: core.evaluate(255 * probability, truth), "[0, 1]", "uint8 from 0 to 255")


@pytest.fixture
def one_line_of():
    def check(call, *words):
        with pytest.raises(core.VolumeError) as caught:
            call()
        assert "\n" not in str(caught.value)
        assert all(word in str(caught.value) for word in words)

    return check


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_noisy_probabilities_that_are_cut_off_at_0(dtype):
    most = np.iinfo(dtype).max
    _, truth = blurred(4, 0.1)
    probability = 0.9 * ndimage.gaussian_filter(truth.astype(float), (0, 1, 1))
    noise = np.random.default_rng(0).normal(0, 0.02, truth.shape)
    stored = (np.clip(probability + noise, 0, 1) * most).round().astype(dtype)
    assert core.evaluate(stored, stored > most / 2).iou == 1


@pytest.mark.parametrize(("dtype", "scale"), [("uint8", 100), *(("uint16", n) for n in (100, 255, 1000, 4095, 10_000))])
@pytest.mark.parametrize("width", [0.05, 0.3])
def test_probabilities_of_a_small_scale_are_refused(dtype, scale, width):
    probability, truth = blurred(5, width)
    with pytest.raises(core.VolumeError, match=f"another scale than {dtype}"):
        core.evaluate((probability * scale).round().astype(dtype), truth)


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
@pytest.mark.parametrize("steps", [10, 20])
@pytest.mark.parametrize("width", [0.02, 0.3])
def test_per_cent_in_few_steps_are_refused(dtype, steps, width):
    probability, truth = blurred(6, width)
    with pytest.raises(core.VolumeError, match=r"from 0 to 100, .* give a mask, or probabilities as floats"):
        core.evaluate(((probability * steps).round() * (100 / steps)).astype(dtype), truth)


def test_weak_probabilities_and_a_hundred_instances_are_taken_as_they_are():
    probability, truth = blurred(7, 0.3)
    weak = (probability * 0.18 * 255).round().astype(np.uint8)
    assert core.evaluate(weak, truth, threshold=0.09).iou == pytest.approx(1, abs=0.03)
    ids = np.zeros((2, 100, 100), np.uint8)
    ids[:, ::10, ::10] = np.arange(1, 101).reshape(10, 10)
    ids = ndimage.maximum_filter(ids, (1, 7, 7))
    assert core.evaluate(ids, ids).iou == 1
