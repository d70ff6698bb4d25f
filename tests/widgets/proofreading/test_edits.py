"""Corrections of objects: what they do, and that each is one step of undo together with painting."""

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from napari.layers import Image, Labels

from napari_kdunet.core import LabelsError
from napari_kdunet.widgets.proofreading import edits


def boxes():
    """Two boxes joined by a neck (1), one apart (2), one in two slices of five (3)."""
    data = np.zeros((7, 40, 60), np.uint16)
    data[1:6, 5:15, 5:20] = data[1:6, 5:15, 25:40] = data[2:4, 9:11, 20:25] = 1
    data[1:6, 25:35, 5:20] = 2
    data[1, 25:35, 30:40] = data[5, 25:35, 34:44] = 3
    return data


@pytest.fixture
def layer():
    return Labels(boxes())


def test_merge_and_delete(layer):
    edits.merge_objects(layer, 1, 2)
    assert (layer.data == 1).sum() == (boxes() == 1).sum() + (boxes() == 2).sum()
    edits.delete_objects(layer, [3])
    assert np.unique(layer.data).tolist() == [0, 1]
    layer.undo()
    layer.undo()
    assert np.array_equal(layer.data, boxes())
    layer.redo()
    assert np.unique(layer.data).tolist() == [0, 1, 3]


def test_split_at_the_neck(layer):
    new = edits.split_object(layer, [(3, 10, 8)], [(3, 10, 35)])
    assert new == 4
    assert (layer.data[:, 5:15, 5:20] == 1).sum() == 5 * 10 * 15
    assert (layer.data[:, 5:15, 25:40] == 4).sum() == 5 * 10 * 15
    assert np.array_equal(layer.data > 0, boxes() > 0)
    layer.undo()
    assert np.array_equal(layer.data, boxes())


def test_split_by_strokes(layer):
    """Each part is what its whole stroke lies in, where two points would cut elsewhere."""
    layer.data[1:6, 5:15, 20:25] = 1  # no neck
    edits.split_object(layer, [(3, 10, 8), (3, 10, 11)], [(3, 10, 14), (3, 10, 38)])
    assert (layer.data[3, 10, 5:12] == 1).all()
    assert (layer.data[3, 10, 15:40] == 4).all()
    layer.undo()
    assert np.unique(layer.data[3, 10]).tolist() == [0, 1]
    with pytest.raises(LabelsError, match="twice"):
        edits.split_object(layer, [(3, 10, 8), (3, 10, 11)], [(3, 10, 9), (3, 10, 10)])


def test_cut_along_a_line(layer):
    """In the slice exactly along it, corner to corner too, where two points or no neck would cut elsewhere."""
    layer.data[1:6, 5:15, 20:25] = 1  # no neck
    start = layer.data.copy()
    new = edits.cut_object(layer, [(3, 2, 8), (3, 17, 23)])
    assert new == 4
    y, x = np.nonzero(start[3] == 1)
    side = x - (8 + (y - 2))
    assert (layer.data[3][y[side < 0], x[side < 0]] == 4).all()  # the smaller part
    assert (layer.data[3][y[side > 0], x[side > 0]] == 1).all()
    for z in (1, 2, 4, 5):
        assert (layer.data[z] == layer.data[3])[start[3] == 1].mean() > 0.95  # but for pixels on the line
    assert np.array_equal(layer.data > 0, start > 0)
    layer.undo()
    assert np.array_equal(layer.data, start)


def test_a_line_that_does_not_cross(layer):
    for line in ([(3, 10, 2), (3, 10, 10)], [(3, 20, 2), (3, 20, 50)], [(3, 10, 10)]):
        with pytest.raises(LabelsError, match="right across"):
            edits.cut_object(layer, line)
    assert np.array_equal(layer.data, boxes())
    assert edits.cut_object(layer, [(3.1, 2.3, 9.7), (3.1, 27.6, 10.1)]) == 4  # between pixels, as a hand draws
    layer.undo()
    flat = Labels(boxes()[3])
    assert edits.cut_object(flat, [(3, 10), (16, 10)]) == 3
    assert (flat.data[5:15, 5:10] == 3).all()
    assert (flat.data[25:35, 5:20] == 2).all()  # another object in the way is left alone


def test_delete_several_in_one_step(layer):
    edits.delete_objects(layer, [1, 3])
    assert np.unique(layer.data).tolist() == [0, 2]
    layer.undo()
    assert np.array_equal(layer.data, boxes())


def test_fill_between_two_slices(layer):
    assert edits.fill_between(layer, 3) == 3
    middle = np.argwhere(layer.data[3] == 3)
    assert middle.mean(0) == pytest.approx((29.5, 36.5), abs=1)
    with pytest.raises(LabelsError, match="nothing to fill"):
        edits.fill_between(layer, 2)


def test_smooth_takes_off_what_sticks_out(layer):
    layer.data[3, 30, 20:24] = 2
    edits.smooth_object(layer, 2)
    assert not (layer.data[3, 30, 21:24] == 2).any()
    assert (layer.data == 2)[2:5, 28:32, 8:17].all()


def test_add_from_a_probability(layer):
    probability = np.zeros(layer.data.shape, np.float32)
    probability[2:5, 2:38, 45:55] = 0.8
    new = edits.add_object(layer, Image(probability), (3, 10, 50), 0.5)
    added = layer.data == new
    assert added.sum() == (3 * 36 * 10) - 0
    assert not added[5].any()
    with pytest.raises(LabelsError, match="no foreground"):
        edits.add_object(layer, Image(probability), (0, 0, 0), 0.5)


@pytest.mark.parametrize("voxels", [np.s_[5, 39, 59], np.s_[1, 1:9, 1:4]])
def test_an_object_that_smoothing_would_erase_stays(layer, voxels):
    """One voxel in the corner, and a thin one, of which no outline is left."""
    layer.data[voxels] = 9
    before = layer.data.copy()
    with pytest.raises(LabelsError, match="object 9 is too small or thin to smooth"):
        edits.smooth_object(layer, 9)
    assert np.array_equal(layer.data, before)


def test_an_object_that_is_gone_is_not_looked_for_where_somebody_clicked(layer):
    edits.delete_objects(layer, [3])
    with pytest.raises(LabelsError, match="no object is selected"):
        edits.delete_objects(layer, [3])
    with pytest.raises(LabelsError, match="no object at that point"):
        edits.delete_objects(layer, [0])


def test_what_cannot_be_done_changes_nothing(layer):
    for call in (
        lambda: edits.merge_objects(layer, 1, 1),
        lambda: edits.delete_objects(layer, [0]),
        lambda: edits.split_object(layer, [(3, 10, 8)], [(3, 30, 8)]),
        lambda: edits.smooth_object(layer, 99),
    ):
        with pytest.raises(LabelsError):
            call()
    assert np.array_equal(layer.data, boxes())


ACTIONS = {
    "merge": lambda layer: edits.merge_objects(layer, 1, 2),
    "delete": lambda layer: edits.delete_objects(layer, [3]),
    "split": lambda layer: edits.split_object(layer, [(3, 10, 8)], [(3, 10, 35)]),
    "cut": lambda layer: edits.cut_object(layer, [(3, 3, 30), (3, 17, 31)]),
    "smooth": lambda layer: edits.smooth_object(layer, 2),
    "fill": lambda layer: edits.fill_between(layer, 3),
    "paint": lambda layer: layer.paint((3, 20, 50), 7),
}


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.sampled_from(sorted(ACTIONS)), min_size=1, max_size=6))
def test_any_sequence_undone_is_the_start_and_redone_the_end(names):
    layer = Labels(boxes())
    states = [layer.data.copy()]
    for name in names:
        try:
            ACTIONS[name](layer)
        except LabelsError:
            continue
        if not np.array_equal(layer.data, states[-1]):
            states.append(layer.data.copy())
    for state in states[-2::-1]:
        layer.undo()
        assert np.array_equal(layer.data, state)
    for state in states[1:]:
        layer.redo()
        assert np.array_equal(layer.data, state)
