"""Scores of objects, against scikit-image, brute force and cases with known answers."""

import itertools
import math

import dask.array as da
import numpy as np
import pytest
from skimage.metrics import adapted_rand_error, variation_of_information

from napari_kdunet import core


def random_pair(seed):
    """True objects, and a prediction that splits, merges, shifts and forgets some of them."""
    rng = np.random.default_rng(seed)
    true = np.zeros((6, 40, 40), np.uint16)
    for i, (y, x) in enumerate(itertools.product(range(0, 40, 10), repeat=2), 1):
        true[:, y + 1 : y + rng.integers(5, 11), x + 1 : x + rng.integers(5, 11)] = 7 * i
    predicted = np.roll(true, (0, rng.integers(0, 3), rng.integers(0, 3)), (0, 1, 2)).copy()
    predicted[predicted == 7] = 14  # merged
    predicted[:3][predicted[:3] == 21] = 1000  # split
    predicted[predicted == 28] = 0  # forgotten
    return predicted, true


def brute_force(predicted, true, threshold):
    """Matched IoUs, objects found and wanted, from one mask after the other."""
    a, b = ([i for i in np.unique(ids) if i] for ids in (predicted, true))
    ious = [
        ((predicted == i) & (true == j)).sum() / ((predicted == i) | (true == j)).sum()
        for i, j in itertools.product(a, b)
    ]
    return [v for v in ious if (v > 0.5 if threshold == 0.5 else v >= threshold)], len(a), len(b)


@pytest.mark.parametrize("seed", [0, 1, 3])
def test_as_others_have_them(seed):
    predicted, true = random_pair(seed)
    scores = core.score_objects(predicted, true)
    assert scores.adapted_rand_error == pytest.approx(adapted_rand_error(true, predicted)[0])
    split, merge = variation_of_information(true, predicted)
    assert scores.voi_split == pytest.approx(split)
    assert scores.voi_merge == pytest.approx(merge)
    matched, found, wanted = brute_force(predicted, true, 0.5)
    assert scores.count == (found, wanted)
    assert scores.precision() == pytest.approx(len(matched) / found)
    assert scores.recall() == pytest.approx(len(matched) / wanted)
    assert scores.mean_matched_iou == pytest.approx(np.mean(matched))
    assert scores.panoptic_quality == pytest.approx(sum(matched) / ((found + wanted) / 2))
    precisions = []
    for threshold in np.arange(50, 100, 5) / 100:
        tp = len(brute_force(predicted, true, threshold)[0])
        precisions.append(tp / (found + wanted - tp))
        assert scores.average_precision(threshold) == pytest.approx(precisions[-1])
    assert scores.mean_average_precision == pytest.approx(np.mean(precisions))


def test_splits_and_merges():
    true = np.zeros((1, 10, 40), np.uint8)
    true[:, 2:8, 2:18], true[:, 2:8, 20:28], true[:, 2:8, 29:38] = 1, 2, 3
    predicted = true.copy()
    assert (core.score_objects(predicted, true).splits, core.score_objects(predicted, true).merges) == (0, 0)
    predicted[:, 2:8, 8:13], predicted[:, 2:8, 13:18] = 9, 10  # the first in three
    predicted[true == 3] = 2  # the others in one
    scores = core.score_objects(predicted, true)
    assert (scores.splits, scores.merges) == (2, 1)
    assert scores.count == (4, 3)


def test_perfect_nothing_and_ignored():
    _, true = random_pair(0)
    perfect = core.score_objects(true.astype(np.uint64) * 1000, true)
    assert perfect.f1() == perfect.panoptic_quality == perfect.mean_average_precision == 1
    assert perfect.variation_of_information == 0
    large = np.where(true > 0, true.astype(np.uint64) + 2**63, 0)
    assert core.score_objects(large, large).to_dict() == core.score_objects(true, true).to_dict()
    assert core.score_objects(large, np.zeros_like(large)).errors()[-1].predicted == (int(large.max()),)
    nothing = core.score_objects(np.zeros_like(true), true)
    assert nothing.recall() == nothing.panoptic_quality == 0
    assert math.isnan(nothing.precision())
    assert nothing.to_dict()["precision"] is None
    half = true.copy()
    half[true == 7] = 255
    assert core.score_objects(np.where(true == 7, 0, true), half, ignore=255).f1() == 1


def test_a_low_threshold_matches_each_object_once():
    true, predicted = np.zeros((1, 4, 12), np.uint8), np.zeros((1, 4, 12), np.uint8)
    true[:, :, :6], true[:, :, 6:] = 1, 2
    predicted[:, :, 2:10] = 5
    assert core.score_objects(predicted, true).f1(0.1) == pytest.approx(2 / 3)


def test_what_cannot_be_scored():
    with pytest.raises(core.LabelsError, match="shape"):
        core.score_objects(np.ones((1, 4, 4), np.uint8), np.ones((1, 4, 5), np.uint8))
    with pytest.raises(core.LabelsError, match="whole numbers"):
        core.score_objects(np.ones((1, 4, 4), np.float32), np.ones((1, 4, 4), np.uint8))


@pytest.mark.parametrize("use", [core.score_objects, lambda lazy, true: core.measure(true, lazy, voxel_size=10.0)])
def test_a_slice_that_cannot_be_read_is_named_with_the_reason(use):
    true = random_pair(0)[1]

    def read(block, block_info=None):
        if block_info[None]["chunk-location"][0] == 2:
            raise OSError("the disk is gone")
        return block

    lazy = da.from_array(true, chunks=(1, -1, -1)).map_blocks(read, dtype=true.dtype, meta=true[:0])
    with pytest.raises(core.VolumeError, match=r"cannot read slice z=2 of .*: the disk is gone"):
        use(lazy, true)


def test_errors_name_the_objects():
    true = np.zeros((4, 10, 40), np.uint8)
    true[:, 1:9, 1:11], true[:, 1:9, 12:20], true[:, 1:9, 21:28], true[:, 1:9, 32:38] = 1, 2, 3, 9
    predicted = np.zeros_like(true)
    predicted[:, 1:9, 1:6], predicted[:, 1:9, 6:11] = 5, 6  # 1 is split
    predicted[:, 1:9, 12:28] = 7  # 2 and 3 are merged
    predicted[:2, 0:1, 28:31] = 8  # false; 9 is missed
    scores = core.score_objects(predicted, true)
    assert scores.errors() == [
        ("split", (5, 6), (1,)),
        ("merge", (7,), (2, 3)),
        ("missed", (), (9,)),
        ("false", (8,), ()),
    ]
    assert (scores.splits, scores.merges) == (1, 1)
    assert core.score_objects(true, true).errors() == []


@pytest.mark.parametrize("seed", range(4))
def test_errors_are_as_many_as_the_counts(seed):
    scores = core.score_objects(*random_pair(seed))
    errors = scores.errors()
    assert sum(len(e.predicted) - 1 for e in errors if e.kind == "split") == scores.splits
    assert sum(len(e.true) - 1 for e in errors if e.kind == "merge") == scores.merges
    told = {i for e in errors for i in e.true}
    assert scores.count[1] - len(scores.matches()) <= len(told)


def test_values_mean_what_they_mean_to_evaluate():
    """CREMI's marks at the end of 64 bits, an ignore value that no label can be, and labels below 0."""
    true = np.zeros((2, 20, 30), np.uint64)
    true[:, 3:9, 3:9] = 7
    predicted = (true > 0).astype(np.uint16)
    true[:, 12:, :15], true[:, 12:, 15:] = 2**64 - 3, 2**64 - 1
    scores = core.score_objects(predicted, true, ignore=-1)
    assert (scores.count, scores.f1()) == ((1, 1), 1)
    with pytest.raises(core.LabelsError, match=r"2\^64-1"):
        core.score_objects(predicted, true)
    with pytest.raises(core.LabelsError, match="ignore is 300"):
        core.score_objects(predicted, predicted.astype(np.uint8), ignore=300)
    with pytest.raises(core.LabelsError, match="negative"):
        core.score_objects(predicted, -predicted.astype(np.int16))
    scribbles = np.where(true == 7, 2, 1).astype(np.uint8)  # 1 is the background, 0 is not painted
    scribbles[:, 12:] = 0
    assert core.score_objects(predicted, scribbles, ignore=0).count == (1, 1)
