"""Scores against values computed by hand."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

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
