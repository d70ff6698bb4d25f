"""What label values mean."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.ndimage import binary_erosion

from napari_kdunet import core
from napari_kdunet.core.volumes.labels import class_index, outline_targets, target_probabilities


@pytest.mark.parametrize("dtype", ["bool", "uint8", "uint16", "int32", "uint32", "int64"])
def test_any_instance_is_foreground(dtype):
    ids = np.array([[0, 1, 2], [77, 0, 200]]).astype(dtype)
    index = class_index(ids)
    assert index.dtype == np.int16
    assert index.tolist() == [[0, 1, 1], [1, 0, 1]]


def test_large_ids():
    assert class_index(np.array([0, 2**32 - 1, 70_000], np.uint32)).tolist() == [0, 1, 1]


@pytest.mark.parametrize(("dtype", "ignore"), [("uint8", 255), ("int32", -1), ("uint16", 1), ("int64", 2**31)])
def test_ignore_value(dtype, ignore):
    labels = np.array([0, 7, ignore], dtype)
    assert class_index(labels, ignore=ignore).tolist() == [0, 1, -1]
    assert labels.tolist() == [0, 7, ignore]  # the input stays as it was


def test_the_largest_numbers_of_64_bits(one_line):
    """2^64-1 as the ignore value, 2^64-3 as background, and ids that int64 has no room for."""
    labels = np.array([0, 2**63 + 5, 2**64 - 1, 2**64 - 3, 2**64 - 1], np.uint64)
    assert class_index(labels, ignore=2**64 - 1).tolist() == [0, 1, -1, 0, -1]
    assert class_index(labels, ignore=-1).tolist() == [0, 1, -1, 0, -1]
    with one_line(core.LabelsError, "2^64-1", "ignore value"):
        class_index(labels)
    with one_line(core.LabelsError, "2^64-2", "ignore value"):
        class_index(np.array([2**64 - 2], np.uint64), ignore=-1)
    assert class_index(np.array([0, 2**64 - 3, 4], np.uint64), ignore=2**64 - 3).tolist() == [0, -1, 1]


@pytest.mark.parametrize(("dtype", "ignore"), [("uint8", 300), ("uint8", -1), ("int16", 2**15), ("bool", 255)])
def test_an_ignore_value_that_the_labels_cannot_have(dtype, ignore, one_line):
    with one_line(core.LabelsError, f"ignore is {ignore}", dtype):
        class_index(np.zeros(3, dtype), ignore=ignore)


def test_scribbles():
    """Where 0 means not looked at, 1 is the background and 2 the first class."""
    assert class_index(np.array([0, 1, 2, 3], np.uint8), ignore=0).tolist() == [-1, 0, 1, 1]
    assert class_index(np.array([0, 1, 2, 3], np.uint8), classes=3, ignore=0).tolist() == [-1, 0, 1, 2]


def test_classes():
    assert class_index(np.array([0, 1, 2, 9]), classes=3, ignore=9).tolist() == [0, 1, 2, -1]


def test_errors(one_line):
    with one_line(core.LabelsError, "-3", "negative"):
        class_index(np.array([0, -3]))
    with one_line(core.LabelsError, "-3"):  # one negative value is named, another is not
        class_index(np.array([-1, -3]), ignore=-1)
    with one_line(core.LabelsError, "class 3", "3 classes"):
        class_index(np.array([0, 3]), classes=3)
    with one_line(core.LabelsError, "class 3"):
        class_index(np.array([0, 4]), classes=3, ignore=0)


def test_shares():
    shares = target_probabilities(np.array([[0, 1], [2, 255]], np.uint8), classes=3, ignore=255)
    assert shares.dtype == np.float32
    assert shares.shape == (3, 2, 2)
    assert shares.transpose(1, 2, 0).tolist() == [[[1, 0, 0], [0, 1, 0]], [[0, 0, 1], [0, 0, 0]]]


def test_outlines_of_objects_by_their_ids():
    """As somebody would draw them: two pixels within each object, along the background and along its neighbour."""
    ids = np.zeros((12, 20), np.uint16)
    ids[2:11, 1:10], ids[2:11, 10:19] = 300, 7
    background, inside, outline = outline_targets(ids)
    expected = np.zeros(ids.shape, bool)
    for left in (1, 10):
        expected[4:9, left + 2 : left + 7] = True
    assert np.array_equal(inside > 0, expected)
    assert np.array_equal(background > 0, ids == 0)
    assert np.array_equal(background + inside + outline, np.ones(ids.shape))
    assert np.array_equal(outline_targets(ids > 0)[2] > 0, (ids > 0) & ~binary_erosion(ids > 0, iterations=2))


def test_outlines_are_as_wide_in_nm_along_both_axes():
    """Of pixels half as long along Y twice as many rows; of pixels that are longer than an outline one."""
    ids = np.ones((40, 40), np.uint8)
    ids[:, :3] = ids[:6] = ids[-6:] = 0
    outline = outline_targets(ids, (0.5, 1.0))[2] > 0
    assert (outline[:, 30].sum(), outline[20].sum()) == (8, 2)  # it goes on beyond the last column
    assert outline_targets(ids, (4.0, 4.0))[2][20].sum() == 1


def test_outlines_beside_what_nobody_has_looked_at():
    """Where an object ends beside pixels to ignore, it may go on: inside and outline are as likely."""
    labels = np.full((9, 30), 9, np.uint8)
    labels[:, 5:25] = 1
    labels[:, 25:] = 0
    targets = outline_targets(labels, ignore=9)[:, 4]
    assert targets[:, 4].tolist() == [0, 0, 0]
    assert targets[:, 5].tolist() == targets[:, 6].tolist() == [0, 0.5, 0.5]
    assert targets[:, 7].tolist() == [0, 1, 0]
    assert targets[:, 24].tolist() == [0, 0, 1]
    scribbles = np.where(labels == 9, 0, labels + 1)  # 0 is nothing, 1 background, 2 and up objects
    assert np.array_equal(outline_targets(scribbles, ignore=0), outline_targets(labels, ignore=9))
