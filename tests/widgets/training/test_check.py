"""Without held-out slices there is a check, called what it is, and no training IoU as a score."""

import numpy as np
import pytest

from napari_kdunet import core
from napari_kdunet.widgets.shared.models import models
from napari_kdunet.widgets.training.check import STROKES, keep_strokes_aside


def painted(shape, strokes):
    """Labels with short strokes: (label, z, y, x)."""
    labels = np.zeros(shape, np.uint8)
    for label, z, y, x in strokes:
        labels[z, y : y + 4, x : x + 8] = label
    return labels


FEW = [(1, 3, 8 + 20 * i, 8) for i in range(4)] + [(2, 3, 8 + 20 * i, 60) for i in range(4)]
MANY = [(label, 3, 2 + 8 * i, x) for i in range(11) for label, x in ((1, 4), (2, 60))]
SPARSE = core.TrainConfig(ignore=0)


@pytest.mark.parametrize(("strokes", "count"), [(FEW, 2), (MANY, 4)])
def test_one_stroke_in_five_is_kept_aside(strokes, count):
    labels = painted((8, 96, 96), strokes)
    kept = keep_strokes_aside(core.open_volume(labels, name="mine"), SPARSE)
    train, check = (np.asarray(volume) for volume in (kept.train, kept.check))
    assert kept.strokes == count
    np.testing.assert_array_equal(train + check, labels)
    assert not ((train > 0) & (check > 0)).any()
    for label in (1, 2):
        assert (check == label).sum() == 32 * count // 2, "whole strokes"
        assert (train == label).any()
    again = keep_strokes_aside(core.open_volume(labels, name="mine"), SPARSE)
    np.testing.assert_array_equal(again.check, check)


def test_nothing_is_kept_aside_where_slices_can_be_or_strokes_are_few():
    labels = painted((8, 96, 96), [(label, z, y, 8) for z in range(8) for label, y in ((1, 8), (2, 40))])
    assert keep_strokes_aside(core.open_volume(labels), SPARSE) is None, "slices are held out"
    labels = painted((8, 96, 96), FEW[:6])
    assert keep_strokes_aside(core.open_volume(labels), SPARSE) is None
    whole = (painted((8, 96, 96), FEW) > 1).astype(np.uint8)
    assert keep_strokes_aside(core.open_volume(whole), core.TrainConfig()) is None, "whole slices have no strokes"


def strokes_layer(bench, strokes):
    labels = painted(bench.mito.data.shape, strokes)
    return bench.viewer.add_labels(labels, name="strokes", scale=bench.em.scale, units=bench.em.units)


def test_strokes_of_one_slice_get_a_check(bench):
    train = bench.open("Train teacher")
    train.labels_layer.value, train.sparse.value = strokes_layer(bench, FEW), True
    train.view.start_button.click()
    bench.finish(train)
    assert train.view.score.text().startswith("Check IoU ")
    assert train.view.score.text().endswith(STROKES)
    assert train.view.curves.iou_plot.getAxis("left").labelText == "check IoU"
    assert "2 strokes are kept aside" in train.view.notes.text()
    assert "IoU" not in train.view.status.text(), "a check is no score"
    assert "IoU" not in models.describe(train.model_name)
    assert models.get(train.model_name).summary["validation"]["on"] == STROKES


def test_few_strokes_get_the_agreement_of_two_passes(bench):
    train = bench.open("Train teacher")
    train.labels_layer.value, train.sparse.value = strokes_layer(bench, FEW[2:6]), True
    train.view.start_button.click()
    bench.finish(train)
    words = train.view.score.text()
    assert words.startswith("Check: the masks of a slice and of its mirror image agree with an IoU of ")
    assert 0 <= float(words.partition("IoU of ")[2][:5]) <= 1
    model = models.get(train.model_name)
    here, there = (
        core.predict(model, core.open_volume(each, voxel_size=(10.0,) * 3), output="labels").compute()[0]
        for each in (bench.em.data[3], bench.em.data[3, ::-1, ::-1])
    )
    there, either = there[::-1, ::-1], (here + there[::-1, ::-1] > 0).sum()
    wanted = (here * there > 0).sum() / either if either else 1.0
    assert f"IoU of {wanted:.3f}." in words
