"""*Train teacher* with *Live* ticked: training that goes on while somebody paints."""

import re

import numpy as np
import pytest

from napari_kdunet import core
from napari_kdunet.widgets.shared.models import models

BACKGROUND, MITOCHONDRION, ERASED = 1, 2, 0


@pytest.fixture
def live(bench):
    """The widget, with an empty layer of strokes to paint on."""
    widget = bench.open("Train teacher")
    widget.add_strokes()
    widget.live.value = True
    return widget


@pytest.fixture
def strokes(live, bench):
    return bench.viewer.layers["em strokes"]


def paint_truth(layer, labels, z):
    """Paint all of a slice as it is, in a stroke a class."""
    for value, label in ((labels[z] > 0, MITOCHONDRION), (labels[z] == 0, BACKGROUND)):
        y, x = np.nonzero(value)
        layer.data_setitem((np.full(len(y), z), y, x), label)


def learnt_from(widget):
    return models.get(widget.model_name).summary["validation"]["slices"]


def test_a_layer_for_strokes_lies_on_the_image_and_is_ready_to_paint_on(bench, live, strokes):
    np.testing.assert_allclose(strokes.scale, bench.em.scale)
    np.testing.assert_allclose(strokes.translate, bench.em.translate)
    assert strokes.units == bench.em.units
    assert strokes.data.shape == bench.em.data.shape
    assert not strokes.data.any()
    assert bench.viewer.layers.selection.active is strokes
    assert (strokes.mode, strokes.selected_label) == ("paint", MITOCHONDRION)
    assert live.labels_layer.value is strokes
    assert live.sparse.value


def test_a_network_that_sees_neighbouring_slices(bench, live, strokes):
    live.context.value = 1
    paint_truth(strokes, bench.mito.data, 2)
    live.view.start_button.click()
    bench.wait_for(live, "live", steps=1, validations=1)
    bench.wait(lambda: any(layer.name == "em preview" and layer.data.size for layer in bench.viewer.layers))
    bench.stop(live)
    model = models.get(live.model_name)
    assert (model.context, model.context_distance) == (1, 10.0)


def test_it_waits_for_strokes_of_both_kinds(bench, live, strokes, notified):
    live.view.start_button.click()
    bench.wait(lambda: live.view.status.text().startswith("Waiting: paint label 1 on background and 2 in a mitoch"))
    assert "nothing is painted yet on em strokes" in live.view.status.text()
    strokes.paint((2, 40, 40), MITOCHONDRION)
    bench.wait(lambda: "there is no background yet on em strokes at z = 2)" in live.view.status.text())
    strokes.paint((2, 80, 80), BACKGROUND)
    bench.wait_for(live, "live", steps=3, validations=1)
    assert re.match(r"live for \d+:\d\d", live.view.bar.text())
    bench.stop(live)
    bench.assert_ready(live)
    assert models.session_names() == ["em live"]
    assert notified == []


def test_it_can_be_stopped_while_it_waits(bench, live):
    live.view.start_button.click()
    bench.wait(lambda: live.view.status.text().startswith("Waiting"))
    bench.stop(live)
    bench.assert_ready(live)
    assert models.session_names() == []


def test_new_strokes_are_learnt_from_without_a_restart(bench, live, strokes):
    """The first strokes call everything by the wrong name; they are erased, and the right ones painted elsewhere."""
    truth = bench.mito.data
    paint_truth(strokes, 1 - (truth > 0), 1)
    live.k.value = 4
    live.view.start_button.click()
    bench.wait_for(live, "live", steps=5, validations=1)
    assert learnt_from(live) == [1]
    for _ in range(2):
        strokes.undo()
    for z in (3, 5):
        paint_truth(strokes, truth, z)
    bench.viewer.dims.set_current_step(0, 6)
    raw = core.open_volume(bench.em.data, voxel_size=(10, 10, 10))

    def right():
        model = models.get(live.model_name)
        return core.evaluate(core.predict(model, raw)[6:].compute(), truth[6:], threshold=model.threshold).iou > 0.4

    ious = live.view.curves.runs["live"].ious
    seen = len(ious)

    def later():
        nonlocal seen
        if len(ious) > seen:  # looked at once for each model
            seen = len(ious)
            return right()
        return False

    bench.wait(later)
    assert learnt_from(live)[0] in (3, 5)
    bench.stop(live)
    assert live.preview.z == 6
    bench.assert_shown_and_gone(live)


def test_labels_that_are_replaced_as_a_whole_are_learnt_from(bench, live, strokes, notified):
    """As another plugin does it; all but one slice have never been on screen."""
    truth = bench.mito.data
    paint_truth(strokes, truth, 1)
    live.view.start_button.click()
    bench.wait_for(live, "live", steps=3, validations=1)
    assert learnt_from(live) == [1]
    other = np.zeros_like(strokes.data)
    other[5] = np.where(truth[5] > 0, MITOCHONDRION, BACKGROUND)
    strokes.data = other
    bench.wait(lambda: learnt_from(live) == [5])
    strokes.paint((6, 40, 40), MITOCHONDRION)
    assert notified == []
    strokes.data = np.zeros_like(other)[:, :50]
    bench.finish(live)
    assert len(notified) == 1
    assert "the shape of the layer has changed from (8, 96, 96) to (8, 50, 96)" in notified[0]
    bench.assert_ready(live)


@pytest.mark.parametrize("keep", [True, False])
def test_it_goes_on_from_a_model_and_the_next_run_from_its_own(keep, bench, live, strokes, tiny_model):
    start = core.Model(tiny_model.net, pixel_size=20.0)
    assert live.keep.value
    live.origin.value = models.add("start", start)
    live.keep.value = keep
    live.lr.value = 1.0  # of no matter: live has its own
    paint_truth(strokes, bench.mito.data, 2)
    live.view.start_button.click()
    bench.wait_for(live, "live", steps=1, validations=1)
    bench.stop(live)
    model = models.get("em live")
    assert model.form == start.form
    assert model.pixel_size == 20.0
    assert model.summary["settings"]["lr"] == pytest.approx(core.TrainConfig().live().lr)
    assert ("kept" in model.summary) == keep
    assert live.origin.value == "em live"


def test_labels_of_another_shape_are_notified_rather_than_waited_for(bench, live, notified):
    live.labels_layer.value = bench.viewer.add_labels(
        np.zeros((3, 96, 96), np.uint8), name="short", scale=bench.em.scale, units=bench.em.units
    )
    live.view.start_button.click()
    bench.finish(live)
    assert len(notified) == 1
    assert "short have shape (3, 96, 96)" in notified[0]
    bench.assert_ready(live)


def test_removing_the_strokes_or_closing_meanwhile_breaks_nothing(bench, live, strokes, notified):
    paint_truth(strokes, bench.mito.data, 2)
    live.view.start_button.click()
    bench.wait_for(live, "live", steps=1, validations=1)
    bench.viewer.layers.remove(strokes)
    bench.wait_for(live, "live", steps=len(live.view.curves.runs["live"].steps) + 3)
    bench.viewer.close()
    assert notified == []
    assert models.session_names() == ["em live"]


def test_a_start_that_is_chosen_meanwhile_stays(bench, live, strokes, tiny_model):
    models.add("start", core.Model(tiny_model.net, pixel_size=20.0))
    paint_truth(strokes, bench.mito.data, 2)
    live.view.start_button.click()
    bench.wait_for(live, "live", steps=1, validations=1)
    live.origin.value = "start"
    bench.wait_for(live, "live", steps=2, validations=3)
    bench.stop(live)
    assert live.origin.value == "start"
