"""Which slices of a labels layer the user has changed, by each way to change them."""

import numpy as np
import pytest

from napari_kdunet.widgets.shared.edited_slices import EditedSlices

ERASED = 0


@pytest.fixture
def painted(bench, qtbot):
    """An empty labels layer, and what `EditedSlices` has found each time the event loop has turned."""
    layer = bench.viewer.add_labels(np.zeros(bench.em.data.shape, np.uint8), name="painted")
    bench.viewer.dims.set_current_step(0, 2)
    edits = EditedSlices(bench.viewer, layer)
    assert edits.take() == []

    def take():
        qtbot.wait(1)
        return edits.take()

    return layer, take


def test_painting_filling_and_erasing_are_found(painted):
    layer, take = painted
    layer.paint((2, 30, 30), 1)
    assert take() == [2]
    assert take() == []
    layer.fill((5, 0, 0), 2)
    assert take() == [5], "on a slice off screen too"
    layer.paint((2, 30, 30), ERASED)
    assert take() == [2]
    layer.n_edit_dimensions, layer.brush_size = 3, 3
    layer.paint((4, 50, 50), 1)
    assert take() == [3, 4, 5]


def test_a_stroke_under_way_is_found(painted):
    layer, take = painted
    with layer.block_history():
        layer.paint((2, 30, 30), 1)
        assert take() == [2]
        layer.paint((2, 60, 60), 1)
        assert take() == [2]
    assert take() == []


def test_undo_and_redo_are_found_off_screen_too(painted, bench):
    layer, take = painted
    layer.paint((2, 30, 30), 1)
    assert take() == [2]
    bench.viewer.dims.set_current_step(0, 7)
    assert take() == []
    layer.undo()
    assert take() == [2]
    layer.redo()
    assert take() == [2]


def test_an_older_stroke_that_is_undone_is_found(bench, qtbot):
    layer = bench.viewer.add_labels(np.zeros(bench.em.data.shape, np.uint8))
    bench.viewer.dims.set_current_step(0, 2)
    layer.paint((2, 30, 30), 1)
    edits = EditedSlices(bench.viewer, layer)
    edits.take()
    layer.undo()
    assert edits.take() == [2]


def test_scrolling_finds_nothing(painted, bench):
    layer, take = painted
    for z in range(len(layer.data)):
        bench.viewer.dims.set_current_step(0, z)
        assert take() == []


def test_other_data_are_found(painted):
    layer, take = painted
    layer.paint((2, 30, 30), 1)
    assert take() == [2]
    other = layer.data.copy()
    other[6] = 1
    layer.data = other
    found = take()
    assert 6 in found
    assert 2 not in found, "it is as it was"
    layer.data = other.copy()
    assert take() == []
    other[0] = 1
    layer.data = other
    assert take() == [0]


def test_a_flat_layer_has_one_slice(bench, qtbot):
    layer = bench.viewer.add_labels(np.zeros((96, 96), np.uint8))
    edits = EditedSlices(bench.viewer, layer)
    edits.take()
    layer.paint((50, 50), 1)
    qtbot.wait(1)
    assert edits.take() == [0]
