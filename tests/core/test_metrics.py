"""Scores against values computed by hand."""

from __future__ import annotations

import io
import json
import math

import numpy as np
import pytest
from PIL import Image
from scipy.ndimage import binary_erosion, gaussian_filter

from napari_kdunet import core
from napari_kdunet.core.metrics import Curve, MeanCurve

PREDICTED = np.array([[[1, 1, 1, 0, 0, 0]], [[0, 0, 5, 0, 0, 0]]], np.uint8)
TRUTH = np.array([[[9, 9, 0, 3, 0, 0]], [[0, 0, 0, 0, 0, 0]]], np.uint16)


def test_by_hand():
    scores = core.evaluate(PREDICTED, TRUTH)
    assert scores.total == core.Confusion(tp=2, fp=2, fn=1, tn=7)
    assert scores.iou == 2 / 5
    assert scores.total.dice == 4 / 7
    assert scores.total.precision == 1 / 2
    assert scores.total.recall == 2 / 3
    assert scores.slices == (core.Confusion(2, 1, 1, 2), core.Confusion(0, 1, 0, 5))
    assert scores.ce is None
    assert scores.paper_ce is None


def test_ignored_pixels_do_not_count():
    truth = TRUTH.copy()
    truth[0, 0, 2] = truth[1, 0, 2] = 255  # both false positives
    assert core.evaluate(PREDICTED, truth, ignore=255).total == core.Confusion(2, 0, 1, 7)
    assert core.evaluate(PREDICTED, truth).total == core.Confusion(4, 0, 1, 7)


def test_scribbles_as_truth():
    truth = np.array([[0, 0, 1, 1, 2, 2]], np.uint8)  # 1 is background, 2 foreground
    predicted = np.array([[1, 0, 1, 0, 1, 0]], np.uint8)
    assert core.evaluate(predicted, truth, ignore=0).total == core.Confusion(1, 1, 1, 1)


def test_what_is_not_defined():
    nothing = np.zeros((2, 3, 3), np.uint8)
    scores = core.evaluate(nothing, nothing)
    assert math.isnan(scores.iou)
    told = json.loads(json.dumps(scores.to_dict(), allow_nan=False))
    assert told["iou"] is told["dice"] is told["precision"] is told["recall"] is None
    assert told["iou_per_slice"] == [None, None]
    assert told["tn"] == 18
    assert "ce" not in told


def test_probabilities():
    probability = np.array([[[0.8, 0.5, 0.5001, 0.1]]], np.float32)
    truth = np.array([[[1, 1, 0, 0]]], np.uint8)
    scores = core.evaluate(probability, truth)
    assert scores.total == core.Confusion(tp=1, fp=1, fn=1, tn=1)  # foreground is above the threshold, not at it
    expected = -(math.log(0.8) + math.log(0.5) + math.log(0.4999) + math.log(0.9)) / 4
    assert scores.ce == pytest.approx(expected, rel=1e-6)
    assert scores.paper_ce == pytest.approx(2 * expected, rel=1e-6)
    assert core.evaluate(probability, truth, threshold=0.05).total == core.Confusion(2, 2, 0, 0)
    assert scores.to_dict()["paper_ce"] == scores.paper_ce


def test_cross_entropy_leaves_ignored_pixels_out_and_stays_finite():
    probability = np.array([[0.0, 1.0, 0.5]])
    truth = np.array([[1, 1, 9]])
    assert core.evaluate(probability, truth, ignore=9).ce == pytest.approx(-math.log(1e-7) / 2)


def test_slice_by_slice_equals_the_whole():
    rng = np.random.default_rng(0)
    probability, truth = rng.random((5, 20, 30)), rng.integers(0, 3, (5, 20, 30))
    whole = core.evaluate(probability.reshape(1, 100, 30), truth.reshape(1, 100, 30), ignore=2)
    parts = core.evaluate(probability, truth, ignore=2)
    assert parts.total == whole.total == sum(parts.slices, core.Confusion())
    assert parts.ce == pytest.approx(whole.ce)


def test_a_lazy_mask_is_scored():
    import dask.array as da

    assert core.evaluate(da.from_array(PREDICTED) > 0, TRUTH).iou == 2 / 5


def test_wrong_input(one_line):
    with one_line(core.LabelsError, "(2, 1, 6)", "(1, 1, 6)"):
        core.evaluate(PREDICTED, TRUTH[:1])
    with one_line(core.LabelsError, "float64"):
        core.evaluate(PREDICTED, TRUTH.astype(float))
    with one_line(core.LabelsError, "ignore"):
        core.evaluate(PREDICTED, np.full_like(TRUTH, 7), ignore=7)
    for bad in (1.5, -0.1, math.nan):
        with one_line(core.VolumeError, "[0, 1]", "z=1"):
            core.evaluate(np.where(PREDICTED == 5, bad, 0.5), TRUTH)


# ---------------------------------------------------------------- all thresholds at once


def curve(probability, index) -> Curve:
    """A curve of two slices added one by one."""
    made = Curve()
    for p, i in zip(probability, index, strict=True):
        made.add(p.astype(np.float32), i.astype(np.int16))
    return made


@pytest.fixture
def noisy():
    rng = np.random.default_rng(1)
    index = rng.integers(-1, 2, (2, 40, 40))
    probability = np.clip(0.3 + 0.15 * (index > 0) + 0.12 * rng.standard_normal(index.shape), 0, 1)
    return probability.astype(np.float32), index


def test_best_threshold_is_nearly_that_of_brute_force(noisy):
    """By 0.002 of IoU it may be worse, to be nearer to 0.5."""
    probability, index = noisy
    made = curve(*noisy)

    def iou(threshold: float) -> float:
        return core.Confusion.of(probability > threshold, index > 0, index >= 0).iou

    thresholds = np.arange(1, 512) / 512
    ious = np.array([iou(t) for t in thresholds])
    best, chosen = ious.max(), made.best_threshold()
    assert made.iou(chosen) == pytest.approx(iou(chosen), abs=1e-9)
    assert iou(chosen) >= best - 0.002
    nearer = abs(thresholds - 0.5) < abs(chosen - 0.5) - 1e-9
    assert (ious[nearer] < best - 0.002).all()
    assert nearer.sum() > 50  # not by chance
    for threshold in (0.25, 0.5, 0.75):
        assert made.iou(threshold) == pytest.approx(iou(threshold), abs=1e-9)
    assert made.iou(0.5) < best


def test_cross_entropies_of_the_curve(noisy):
    probability, index = noisy
    made, known = curve(*noisy), index >= 0
    assert made.pixels == known.sum()
    share = (index > 0).sum() / known.sum()
    assert made.foreground == pytest.approx(share)
    assert made.prior_ce == pytest.approx(-share * math.log(share) - (1 - share) * math.log(1 - share))
    right = np.where(index > 0, probability, 1 - probability)[known]
    assert made.ce == pytest.approx(-np.log(np.clip(right.astype(float), 1e-7, 1)).mean())
    assert made.spread == pytest.approx(probability[known].astype(float).std(), rel=1e-5)
    assert not made.collapsed


@pytest.mark.parametrize(("low", "high", "chosen"), [(0.2, 0.8, 0.5), (0.0, 0.3, 0.3), (0.7, 0.9, 0.7)])
def test_of_equal_thresholds_the_one_nearest_to_a_half(low, high, chosen):
    index = np.array([[[0, 0, 1, 1]]])
    made = curve(np.array([[[low, low, high, high]]]), index)
    assert made.iou(made.best_threshold()) == 1
    assert made.best_threshold() == pytest.approx(chosen, abs=0.01)


def test_collapsed():
    index = (np.arange(1000).reshape(1, 20, 50) % 10 == 0).astype(int)
    noise = np.random.default_rng(0).random(index.shape)
    assert curve(np.full(index.shape, 0.1), index).collapsed
    assert curve(np.full(index.shape, 0.9) + 0.001 * noise, index).collapsed
    assert curve(noise, index).collapsed  # not constant, but says nothing of the truth
    assert not curve(0.2 * index + 0.5 * noise, index).collapsed
    assert curve(np.zeros(index.shape), np.full(index.shape, -1)).collapsed  # nothing seen, and no division by 0


def test_one_threshold_for_several_volumes():
    """Volumes count alike, however large: the threshold is best for the mean, and for neither by itself."""
    rng = np.random.default_rng(0)

    def volume(shift: float, size: int) -> Curve:
        index = (rng.random((size, 100)) < 0.3).astype(np.int16)
        probability = np.clip(0.3 + shift + 0.3 * index + rng.normal(0, 0.1, index.shape), 0, 1)
        return curve(probability.astype(np.float32), index)

    low, high = volume(-0.15, 50), volume(0.15, 500)
    both = MeanCurve((low, high))
    chosen = both.best_threshold()
    assert low.best_threshold() < chosen < high.best_threshold()
    assert both.iou(chosen) == pytest.approx((low.iou(chosen) + high.iou(chosen)) / 2)
    assert both.iou(chosen) >= max(both.iou(i / 512) for i in range(1, 512)) - 0.002
    assert both.ce == pytest.approx((low.ce + high.ce) / 2)
    assert not both.collapsed
    assert MeanCurve((low,)).best_threshold() == low.best_threshold()


# ---------------------------------------------------------------- what cannot be known of the values


@pytest.fixture
def mask() -> np.ndarray:
    """Round objects (2, 96, 96) of 0 and 1, some of which touch."""
    y, x = np.mgrid[:96, :96]
    spots = ((20, 20, 9), (30, 60, 14), (48, 70, 12), (70, 30, 17), (75, 80, 6))
    slice_ = np.any([(y - a) ** 2 + (x - b) ** 2 < r**2 for a, b, r in spots], axis=0)
    return np.stack([slice_, slice_[::-1]]).astype(np.uint8)


def test_labels_without_a_background_of_0(mask, one_line):
    """1 may be the background, as ilastik and Amira write it, or an object: it is asked for."""
    with one_line(core.LabelsError, "1 to 2", "no background of 0", "give 0 as the ignore value"):
        core.evaluate(mask, mask + 1)
    assert not core.evaluate(mask, mask).notes
    assert core.evaluate(mask, mask + 1, ignore=0).iou == 1  # as it advises
    sparse = mask + 1
    sparse[:, :10] = 255
    with one_line(core.LabelsError, "no background of 0"):
        core.evaluate(mask, sparse, ignore=255)
    sparse[sparse == 2] = 1
    scores = core.evaluate(mask, sparse, ignore=255)
    assert scores.total.tn == scores.total.fp == 0
    assert "no background" in scores.notes[0]


def test_ids_that_fill_a_volume_are_objects(mask, one_line):
    """It is only noted, as even 1 and 2 may be two objects that share a volume between them."""
    for ids in (mask + 1, mask + 1 + 2 * (np.arange(96) > 48).astype(np.uint8), np.where(mask, 42, 17)):
        scores = core.score_objects(ids, ids)
        assert scores.f1() == 1
        assert all("no background" in note for note in scores.notes)
        assert len(scores.notes) == 2
        with one_line(core.LabelsError, "no background of 0"):
            core.evaluate(mask, ids)
    assert not core.score_objects(mask, mask).notes


def jpeg(mask, quality):
    def compressed(pixels):
        file = io.BytesIO()
        Image.fromarray(pixels * np.uint8(255)).save(file, "JPEG", quality=quality)
        return np.asarray(Image.open(file))

    return np.stack([*map(compressed, mask)])


@pytest.mark.parametrize("quality", [10, 30, 75, 90, 95])
def test_a_mask_from_jpeg_is_no_labels(mask, quality, one_line):
    """Each halo of 1, 2, 3 would be foreground; as a prediction it is probabilities."""
    grey = jpeg(mask, quality)
    if quality <= 75:  # a prediction of fewer greys is refused too
        assert core.evaluate(grey, mask).iou > (0.9 if quality == 10 else 0.98)
    for scored in (core.evaluate, core.score_objects):
        with one_line(core.LabelsError, "mask in grey", "above 127"):
            scored(mask, grey)
    with one_line(core.LabelsError, "mask in grey"):
        next(core.iter_train(mask * 100, grey, core.TrainConfig(steps=1)))


def test_a_smoothed_mask_is_no_labels(mask, one_line):
    enlarged = [Image.fromarray(each * np.uint8(255)).resize((250, 250), Image.Resampling.BICUBIC) for each in mask]
    large = np.stack([*map(np.asarray, enlarged)])
    for grey in (large, (gaussian_filter(mask.astype(float), (0, 1, 1)) * 255).astype(np.uint8)):
        sparse = grey.copy()
        sparse[:, :5] = 77
        for ignore, labels in ((None, grey), (77, sparse)):
            with one_line(core.LabelsError, "mask in grey"):
                core.evaluate(grey > 127, labels, ignore=ignore)


def test_ids_and_classes_are_no_mask_in_grey(mask):
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:128, :128]
    for side in (2, 3, 8):  # touching objects of so many pixels, in raster order and not
        raster = ((y // side) * (128 // side + 1) + x // side) % 255 + 1
        for ids in (raster, rng.permutation(255)[raster - 1] + 1, np.where(raster % 7, raster, 0)):
            ids[0, 0] = 0
            assert core.evaluate(ids > 0, ids.astype(np.uint8)).iou == 1
            most_ignored = np.where((x < 90) | (y < 90), 255, ids).astype(np.uint8)
            most_ignored[-1] = 0
            assert core.evaluate(most_ignored % 255 > 0, most_ignored, ignore=255).iou == 1
    points = np.zeros((128, 128), np.uint8)
    points[::4, ::4] = rng.permutation(1024).reshape(32, 32) % 256
    classes = 127 * mask + 128 * binary_erosion(mask, np.ones((1, 3, 3))).astype(np.uint8)
    marked = np.where(x[:96, :96] < 60, mask, 255)
    for labels, ignore in ((points, None), (classes, None), (marked, 255)):
        if ignore is None:
            assert core.evaluate(labels > 0, labels).iou == 1
        else:
            assert core.evaluate(mask, labels, ignore=ignore).total.tp > 0


@pytest.mark.parametrize(("dtype", "most"), [("int16", 100), ("int32", 255), ("int64", 1000)])
def test_a_note_says_how_integers_are_read(mask, dtype, most):
    probability = (gaussian_filter(mask.astype(float), (0, 2, 2)) * most).astype(dtype)
    scores = core.evaluate(probability, mask)
    assert scores.iou < 0.9
    (note,) = scores.notes
    assert f"to {probability.max()}, are taken as classes or objects: all but 0 is foreground" in note
    assert not core.evaluate((probability > most / 2).astype(dtype), mask).notes
    assert "probabilities from 0 to 255" in core.evaluate(jpeg(mask, 75), mask).notes[0]
