"""*Compare with ground truth*, opened through the manifest and driven by its controls."""

import csv
import math
import threading

import dask.array as da
import numpy as np
import pytest
from napari.layers import Image, Labels
from qtpy.QtCore import QPointF, Qt
from qtpy.QtGui import QGuiApplication

from napari_kdunet import core
from napari_kdunet.widgets.comparison import comparison as comparison_module
from napari_kdunet.widgets.comparison.layer_pair import default_pair
from napari_kdunet.widgets.comparison.overlay import COLOURS
from napari_kdunet.widgets.shared.layers import OBJECTS, RESULT

GRID = {"scale": (50, 20, 20), "units": ("nm",) * 3, "translate": (100, 0, 0), "axis_labels": ("z", "y", "x")}
NAME = "Compare with ground truth"


@pytest.fixture(scope="module")
def probability(em):
    """A fair guess at the labels, float32 in [0, 1], with a slice that is much worse than the others."""
    rng = np.random.default_rng(0)
    guess = np.clip(em[1] * 0.6 + rng.random(em[1].shape, np.float32) * 0.55, 0, 1).astype(np.float32)
    guess[3] = rng.random(guess[3].shape, np.float32)
    return guess


@pytest.fixture
def compare(open_widget, em, probability):
    """The widget with a prediction and the ground truth."""
    viewer, widget = open_widget(NAME)
    viewer.add_image(em[0], name="raw", **GRID)
    viewer.add_labels(em[1].copy(), name="truth", **GRID)
    viewer.add_labels((probability > 0.5).astype(np.uint8), name="guess", **GRID)
    return viewer, widget


def finished(qtbot, widget):
    qtbot.waitUntil(lambda: not widget.live_comparison.is_running, timeout=20_000)
    drawn(qtbot, widget)


def drawn(qtbot, widget):
    qtbot.waitUntil(lambda: not widget.live_comparison.is_busy)
    widget.draw_soon.flush()


def shown(widget):
    """The table as numbers, by title and score."""
    titles, *rows = (line.split("\t") for line in widget.table.text().split("\n"))
    return {
        title: {row[0]: math.nan if row[i] == "–" else float(row[i]) for row in rows}
        for i, title in enumerate(titles)
        if i
    }


def test_layers_are_chosen_and_numbers_equal_the_cores(compare, em, probability, qtbot):
    viewer, widget = compare
    assert (widget.prediction.value.name, widget.reference.value.name) == ("guess", "truth")
    widget.start_button.native.click()
    finished(qtbot, widget)
    scores = core.evaluate(probability > 0.5, em[1])
    assert tuple(widget.live_comparison.slices) == scores.slices
    z = viewer.dims.current_step[0]
    for title, counts in (("Volume", scores.total), (f"Slice {z}", scores.slices[z])):
        for name, attribute in (("IoU", "iou"), ("Dice", "dice"), ("Precision", "precision"), ("Recall", "recall")):
            assert shown(widget)[title][name] == pytest.approx(getattr(counts, attribute), abs=1e-4)
    viewer.dims.set_current_step(0, 1)
    drawn(qtbot, widget)
    assert shown(widget)["Slice 1"]["IoU"] == pytest.approx(scores.slices[1].iou, abs=1e-4)
    np.testing.assert_allclose(widget.profile.curve.getData()[1], [s.iou for s in scores.slices])
    assert widget.profile.mark.value() == 1
    assert widget.profile.mean.value() == pytest.approx(scores.iou)


@pytest.mark.parametrize("order", [("truth", "mask", "guess"), ("mask", "guess", "truth"), ("guess", "truth", "mask")])
def test_the_mask_is_held_against_the_users_labels_in_any_order(em, order):
    layers = {
        "truth": Labels(em[1], name="truth"),
        "mask": Labels(em[1], name="mask", metadata={RESULT: None}),
        "guess": Image(em[0] / 255.0, name="guess", metadata={RESULT: None}),
    }
    prediction, reference = default_pair([layers[name] for name in order])
    assert (prediction.name, reference.name) == ("mask", "truth")
    others = [layer for layer in layers.values() if layer is not prediction]
    assert [layer.name for layer in default_pair(others)] == ["guess", "truth"]
    assert default_pair([]) == (None, None)
    objects = Labels(em[1], name="objects", metadata={OBJECTS: None})
    assert default_pair([objects, *(layers[name] for name in order), objects])[1].name == "truth"


def test_a_script_compares_by_the_names_of_the_rows(compare, em, probability, qtbot):
    viewer, widget = compare
    viewer.layers["guess"].name = "my guess"
    assert widget.asdict().keys() == {"prediction", "reference", "sparse", "threshold", "show_overlay"} | {
        name for name in widget.asdict() if name.endswith("button")
    }
    assert widget.prediction.value is viewer.layers["my guess"], "a choice outlives its name"
    widget.start()
    finished(qtbot, widget)
    assert widget.live_comparison.total == core.evaluate(probability > 0.5, em[1]).total


def test_layers_in_different_places_are_warned_of_once(compare, notified, qtbot):
    viewer, widget = compare
    widget.start_button.native.click()
    finished(qtbot, widget)
    assert notified == []
    viewer.layers["truth"].translate = (100, 20, -40)
    widget.prediction.value = viewer.add_labels(viewer.layers["guess"].data, name="again", **GRID)
    widget.start_button.native.click()
    finished(qtbot, widget)
    (message,) = notified
    assert message.startswith("truth is shifted from again (by +0, +1, -2 voxels)")
    widget.start()
    finished(qtbot, widget)
    assert notified == [message]


def test_probabilities_and_their_threshold(compare, em, probability, qtbot):
    viewer, widget = compare
    viewer.add_image(probability, name="probability", **GRID)
    assert not widget.threshold.enabled
    widget.prediction.value = viewer.layers["probability"]
    widget.start_button.native.click()
    finished(qtbot, widget)
    assert widget.threshold.enabled
    assert tuple(widget.live_comparison.slices) == core.evaluate(probability, em[1]).slices
    widget.threshold.value = 0.7
    wanted = core.evaluate(probability, em[1], threshold=0.7).slices
    qtbot.waitUntil(lambda: tuple(widget.live_comparison.slices) == wanted)  # by itself


def test_sparse_reference_counts_what_was_looked_at(compare, em, probability, qtbot):
    viewer, widget = compare
    sparse = em[1] + 1
    sparse[:, ::2] = 0
    viewer.add_labels(sparse, name="sparse", **GRID)
    widget.prediction.value, widget.reference.value = viewer.layers["guess"], viewer.layers["sparse"]
    widget.sparse.value = True
    widget.start_button.native.click()
    finished(qtbot, widget)
    assert tuple(widget.live_comparison.slices) == core.evaluate(probability > 0.5, sparse, ignore=0).slices
    assert not viewer.layers["comparison"].data[:, ::2].any()


@pytest.fixture
def scored(open_widget, qtbot):
    """Compare a prediction with labels in a new panel; the panel once that has ended."""

    def compared(prediction, truth):
        viewer, widget = open_widget(NAME)
        viewer.add_labels(truth, name="truth")
        viewer.add_labels(prediction, name="guess")
        widget.prediction.value, widget.reference.value = viewer.layers["guess"], viewer.layers["truth"]
        widget.start_button.native.click()
        finished(qtbot, widget)
        return widget

    return compared


@pytest.mark.parametrize("case", ["ids", "grey levels", "no background"])
def test_what_is_assumed_of_the_values_is_said_as_by_evaluate(case, scored, em):
    prediction, truth = em[1], em[1]
    if case == "ids":
        prediction = em[1] * np.arange(1, 6, dtype=np.uint16)[:, None, None]
    elif case == "grey levels":
        prediction = (em[0] // 2 + 127).astype(np.uint8)
    else:
        truth = np.ones_like(em[1])
    widget = scored(prediction, truth)
    named = [core.open_volume(each, name=name) for each, name in ((prediction, "guess"), (truth, "truth"))]
    (note,) = core.evaluate(*named).notes
    assert widget.notes.text() == f"Note: {note}."
    assert widget.notes.isVisibleTo(widget.native)


def test_nothing_is_said_where_nothing_is_assumed(scored, em):
    widget = scored(em[1], em[1])
    assert widget.notes.text() == ""
    assert not widget.notes.isVisibleTo(widget.native)


def test_labels_whose_background_is_not_known_are_refused_as_by_evaluate(scored, em, notified):
    """Scores would be those of a mask that covers everything."""
    widget = scored(em[1], em[1] + 1)
    with pytest.raises(core.LabelsError) as refused:
        core.evaluate(em[1], core.open_volume(em[1] + 1, name="truth"))
    assert notified == [str(refused.value)]
    assert widget.error_label.text() == notified[0]
    assert "give 0 as the ignore value" in notified[0]
    assert math.isnan(shown(widget)["Volume"]["IoU"])
    assert "comparison" not in widget.viewer.layers
    widget.sparse.value = True  # as it advises
    widget.start_button.native.click()


def test_two_predictions(compare, probability, qtbot):
    viewer, widget = compare
    viewer.add_image(probability, name="teacher", **GRID)
    widget.prediction.value, widget.reference.value = viewer.layers["guess"], viewer.layers["teacher"]
    viewer.layers["guess"].data[2, :40] = 0
    widget.start_button.native.click()
    finished(qtbot, widget)
    scores = core.evaluate(viewer.layers["guess"].data, (probability > 0.5).astype(np.uint8))
    assert tuple(widget.live_comparison.slices) == scores.slices
    assert widget.live_comparison.worst == 2


def test_click_and_worst_slice_go_there(compare, em, probability, qtbot):
    viewer, widget = compare
    widget.start_button.native.click()
    finished(qtbot, widget)
    widget.worst_button.native.click()
    ious = [s.iou for s in core.evaluate(probability > 0.5, em[1]).slices]
    assert viewer.dims.current_step[0] == int(np.nanargmin(ious)) == 3
    assert widget.profile.dot.getData()[0] == [3]

    class Click:  # as pyqtgraph tells it
        def button(self):
            return Qt.MouseButton.LeftButton

        def scenePos(self):
            return widget.profile.plot.getPlotItem().getViewBox().mapViewToScene(QPointF(1.3, 0.5))

    widget.profile.plot.scene().sigMouseClicked.emit(Click())
    assert viewer.dims.current_step[0] == 1


def test_overlay_codes_and_counts(compare, em, probability, qtbot):
    viewer, widget = compare
    widget.start_button.native.click()
    finished(qtbot, widget)
    layer, total = viewer.layers["comparison"], widget.live_comparison.total
    assert isinstance(layer.data, da.Array)
    assert layer.data.chunks[0] == (1,) * len(em[1])
    codes, guess = layer.data.compute(), probability > 0.5
    np.testing.assert_array_equal(codes == 1, guess & (em[1] == 1))
    np.testing.assert_array_equal(codes == 2, guess & (em[1] == 0))
    np.testing.assert_array_equal(codes == 3, ~guess & (em[1] == 1))
    assert tuple(np.bincount(codes.ravel())) == (total.tn, total.tp, total.fp, total.fn)
    np.testing.assert_array_equal(layer.scale, GRID["scale"])
    np.testing.assert_array_equal(layer.translate, GRID["translate"])
    for label, colour in COLOURS.items():
        rgb = [round(255 * channel) for channel in layer.colormap.map(np.array([label]))[0][:3]]
        assert rgb == [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
    assert layer.colormap.map(np.array([0]))[0][3] == 0
    assert "comparison" not in [layer.name for layer in widget.prediction.choices]
    widget.show_overlay.value = False
    assert "comparison" not in viewer.layers
    widget.show_overlay.value = True
    viewer.layers.remove("comparison")
    assert not widget.show_overlay.value


def test_painting_is_counted_again(compare, em, qtbot):
    viewer, widget = compare
    widget.start_button.native.click()
    finished(qtbot, widget)
    viewer.dims.set_current_step(0, 1)
    guess, before = viewer.layers["guess"], widget.live_comparison.slices[1]
    guess.fill((1, 0, 0), 0)  # whatever is there, so that the next line changes something
    guess.selected_label, guess.brush_size, guess.n_edit_dimensions = 1, 20, 2
    guess.paint((1, 30, 30), 1)
    wanted = core.evaluate(guess.data, em[1]).slices[1]
    assert wanted != before
    qtbot.waitUntil(lambda: widget.live_comparison.slices[1] == wanted)
    drawn(qtbot, widget)
    assert shown(widget)["Slice 1"]["IoU"] == pytest.approx(wanted.iou, abs=1e-4)
    codes = np.bincount(np.asarray(viewer.layers["comparison"].data[1]).ravel(), minlength=4)
    assert tuple(codes) == (wanted.tn, wanted.tp, wanted.fp, wanted.fn)
    guess.undo()
    wanted = core.evaluate(guess.data, em[1]).slices[1]
    qtbot.waitUntil(lambda: widget.live_comparison.slices[1] == wanted)


def test_copy_and_csv(compare, em, probability, qtbot, tmp_path, notified):
    _, widget = compare
    assert not widget.copy_button.enabled
    widget.start_button.native.click()
    finished(qtbot, widget)
    widget.copy_button.native.click()
    scores = core.evaluate(probability > 0.5, em[1])
    assert QGuiApplication.clipboard().text().split("\n")[1].startswith(f"IoU\t{scores.iou:.4f}\t")
    widget.export(str(tmp_path / "scores.csv"))
    rows = list(csv.DictReader((tmp_path / "scores.csv").read_text().splitlines()))
    assert [row["z"] for row in rows] == ["0", "1", "2", "3", "4", "all"]
    assert float(rows[-1]["iou"]) == pytest.approx(scores.iou, abs=1e-6)
    assert int(rows[2]["fp"]) == scores.slices[2].fp
    widget.export(str(tmp_path / "nowhere" / "scores.csv"))
    assert "choose another folder" in notified[0]


def test_nothing_to_find_is_a_dash(open_widget, qtbot):
    viewer, widget = open_widget(NAME)
    for name in ("truth", "guess"):
        viewer.add_labels(np.zeros((3, 8, 8), np.uint8), name=name)
    widget.start_button.native.click()
    finished(qtbot, widget)
    assert math.isnan(shown(widget)["Volume"]["IoU"])
    widget.worst_button.native.click()
    assert widget.live_comparison.worst is None


def test_2d(open_widget, em, qtbot):
    viewer, widget = open_widget(NAME)
    viewer.add_labels(em[1][0], name="truth")
    viewer.add_labels(em[1][1], name="guess")
    widget.start_button.native.click()
    finished(qtbot, widget)
    assert widget.live_comparison.total == core.evaluate(em[1][1], em[1][0]).total
    assert viewer.layers["comparison"].ndim == 2
    widget.worst_button.native.click()


def test_wrong_layers_are_told(open_widget, em, qtbot, notified):
    viewer, widget = open_widget(NAME)
    viewer.add_image(em[0], name="raw")
    widget.start_button.native.click()
    assert "choose two different layers" in notified[-1]
    viewer.add_labels(em[1], name="truth")
    widget.start_button.native.click()
    assert "choose two different layers" in notified[-1]
    viewer.add_labels(em[1][:, :32], name="part")
    widget.prediction.value = viewer.layers["part"]
    widget.start_button.native.click()
    assert "same shape" in notified[-1]
    viewer.add_image(em[0] + 0.5, name="no probability")
    widget.prediction.value, widget.reference.value = viewer.layers["no probability"], viewer.layers["truth"]
    widget.start_button.native.click()
    finished(qtbot, widget)
    assert "not a probability" in notified[-1]
    assert len(notified) == 4
    assert "comparison" not in viewer.layers
    assert widget.start_button.enabled


@pytest.fixture
def gate(monkeypatch):
    """Lets slices be counted one by one."""
    may, count = threading.Semaphore(0), comparison_module.Comparison.score

    def held(self, z):
        may.acquire(timeout=5)
        return count(self, z)

    monkeypatch.setattr(comparison_module.Comparison, "score", held)
    yield may
    may.release(100)


def test_stop_keeps_what_is_counted(compare, qtbot, gate):
    _, widget = compare
    widget.start_button.native.click()
    gate.release(2)
    qtbot.waitUntil(lambda: sum(s is not None for s in widget.live_comparison.slices) == 2)
    widget.stop_button.native.click()
    gate.release(2)
    finished(qtbot, widget)
    assert "Volume (" in widget.table.text()
    assert widget.start_button.enabled
    assert widget.copy_button.enabled


def test_closed_amid_work_and_docked_again_it_begins_anew(compare, em, probability, qtbot, gate):
    viewer, _ = compare
    dock, widget = viewer.window.add_plugin_dock_widget("napari-kdunet", NAME)
    widget.prediction.value, widget.reference.value = viewer.layers["guess"], viewer.layers["truth"]
    widget.start_button.native.click()
    gate.release(1)
    qtbot.waitUntil(lambda: any(widget.live_comparison.slices))
    dock.destroyOnClose()
    viewer.window.add_dock_widget(widget, name="again")
    assert not widget.live_comparison.is_running
    gate.release(100)
    widget.start()
    finished(qtbot, widget)
    assert tuple(widget.live_comparison.slices) == core.evaluate(probability > 0.5, em[1]).slices


def test_closed_amid_a_comparison_of_objects_it_can_compare_them_again(compare, qtbot):
    viewer, _ = compare
    dock, widget = viewer.window.add_plugin_dock_widget("napari-kdunet", NAME)
    widget.prediction.value = widget.reference.value = viewer.layers["truth"]
    widget.prediction.value = viewer.add_labels(viewer.layers["truth"].data.copy(), name="again", **GRID)
    widget.objects_button.native.click()
    assert widget.object_worker is not None
    dock.destroyOnClose()
    assert widget.object_worker is None
    viewer.window.add_dock_widget(widget, name="docked again")
    widget.compare_objects()
    qtbot.waitUntil(lambda: widget.object_worker is None, timeout=60_000)
    assert "F1" in widget.objects.summary.text()


def test_removing_a_layer_or_the_viewer_meanwhile_breaks_nothing(compare, qtbot, gate, notified):
    viewer, widget = compare
    widget.start_button.native.click()
    gate.release(1)
    qtbot.waitUntil(lambda: any(widget.live_comparison.slices))
    viewer.layers.remove("guess")
    gate.release(1)
    finished(qtbot, widget)
    assert widget.live_comparison.comparison is None
    assert "comparison" not in viewer.layers
    viewer.add_labels(np.zeros_like(viewer.layers["truth"].data), name="another", **GRID)
    widget.prediction.value, widget.reference.value = viewer.layers["another"], viewer.layers["truth"]
    widget.start_button.native.click()
    viewer.close()
    gate.release(100)
    qtbot.wait(100)
    assert not notified


def test_a_mask_that_segment_changes_is_compared_again(compare, em, probability, qtbot):
    viewer, widget = compare
    widget.start_button.native.click()
    finished(qtbot, widget)
    guess = viewer.layers["guess"]
    guess.data[:] = em[1]
    guess.events.data(value=guess.data)  # as Segment tells it when it is done
    qtbot.waitUntil(lambda: widget.live_comparison.total.iou == 1)


def object_pair():
    """True objects, and a prediction in which one is split, two are merged, one is missed and one false."""
    true, predicted = np.zeros((2, 8, 30, 60), np.uint16)
    true[1:7, 2:12, 2:22], true[1:7, 2:12, 26:36], true[1:7, 2:12, 36:46], true[2:5, 20:28, 5:15] = 1, 2, 3, 4
    predicted[1:7, 2:12, 2:12], predicted[1:7, 2:12, 12:22] = 1, 2
    predicted[1:7, 2:12, 26:46] = 3
    predicted[6:8, 20:28, 40:50] = 9
    return predicted, true


def test_errors_of_objects_are_listed_and_clicked_through(open_widget, qtbot):
    predicted, true = object_pair()
    viewer, widget = open_widget(NAME)
    viewer.add_labels(true, name="truth", **GRID)
    viewer.add_labels(predicted, name="objects", **GRID)
    widget.prediction.value, widget.reference.value = viewer.layers["objects"], viewer.layers["truth"]
    widget.objects_button.native.click()
    qtbot.waitUntil(lambda: widget.object_worker is None, timeout=60_000)
    scores, table = core.score_objects(predicted, true), widget.objects.table
    rows = [[table.item(row, column).text() for column in range(3)] for row in range(table.rowCount())]
    assert rows == [["split", "1, 2", "1"], ["merge", "3", "2, 3"], ["missed", "–", "4"], ["false", "9", "–"]]
    text = widget.objects.summary.text()
    assert "4 objects against 4" in text
    assert f"F1 {scores.f1():.3f}" in text
    assert f"AP 0.5–0.95 {scores.mean_average_precision:.3f}" in text
    assert "1 split, 1 merged" in text
    for row, (kind, at, ids) in enumerate(
        [
            ("split", (predicted, (1, 2)), (1, 1)),
            ("merge", (true, (2, 3)), (3, 2)),
            ("missed", (true, (4,)), (3, 4)),
            ("false", (predicted, (9,)), (9, 4)),
        ]
    ):
        table.selectRow(row)
        camera = getattr(viewer, "scene", viewer).camera.center
        point = viewer.layers["truth"].world_to_data((viewer.dims.point[0], *camera[-2:]))
        assert at[0][tuple(np.round(point).astype(int))] in at[1], kind
        selected = tuple(viewer.layers[name].selected_label for name in ("objects", "truth"))
        assert selected == ids, kind
    widget.prediction.value = viewer.layers["truth"]
    assert table.rowCount() == 0


def test_a_mask_or_another_place_is_not_taken_for_objects_in_silence(open_widget, notified, qtbot):
    predicted, true = object_pair()
    viewer, widget = open_widget(NAME)
    viewer.add_labels(true, name="truth", translate=(1, 0, 0))
    viewer.add_labels((predicted > 0).astype(np.uint8), name="mask")
    widget.prediction.value, widget.reference.value = viewer.layers["mask"], viewer.layers["truth"]
    widget.objects_button.native.click()
    qtbot.waitUntil(lambda: widget.object_worker is None, timeout=60_000)
    text = widget.objects.summary.text()
    assert text.startswith("1 objects against 4")
    assert text.endswith("if it is a mask, first find its objects in the panel Objects.")
    assert [message[:50] for message in notified] == ["truth is shifted from mask (by +1, +0, +0 voxels),"]


def test_objects_that_fill_a_volume_are_noted(scored, em, qtbot):
    widget = scored(em[1], em[1] * 5)
    widget.reference.value.data = em[1] + 1
    widget.objects_button.native.click()
    qtbot.waitUntil(lambda: widget.object_worker is None, timeout=60_000)
    assert "Note: truth has no background of 0 where it is scored: each of" in widget.objects.summary.text()


def test_the_overlay_lies_on_the_prediction_wherever_that_is(compare, qtbot):
    viewer, widget = compare
    widget.start()
    finished(qtbot, widget)
    qtbot.waitUntil(lambda: widget.overlay.layer is not None)
    guess = viewer.layers["guess"]
    guess.scale, guess.translate = (100, 40, 40), (0, 7, 0)
    qtbot.waitUntil(lambda: tuple(widget.overlay.layer.translate) == (0, 7, 0))
    assert tuple(widget.overlay.layer.scale) == (100, 40, 40)


def test_scores_go_with_the_data_that_they_are_of(compare, em, qtbot, notified):
    viewer, widget = compare
    widget.start()
    finished(qtbot, widget)
    viewer.layers["guess"].data = np.zeros((5, 9, 9), np.uint8)
    qtbot.waitUntil(lambda: any("choose layers of the same shape" in text for text in notified))
    assert not widget.csv_button.enabled
    assert widget.live_comparison.slices == []
    assert "comparison" not in viewer.layers


def test_other_layers_are_taken_when_those_that_were_compared_are_gone(compare, em, qtbot):
    viewer, widget = compare
    widget.start()
    finished(qtbot, widget)
    viewer.layers.clear()
    for name in ("x", "y"):
        viewer.add_labels(em[1].copy(), name=name, **GRID)
    assert {widget.prediction.value.name, widget.reference.value.name} == {"x", "y"}


def test_a_slice_that_cannot_be_read_is_told_in_the_panel(compare, em, qtbot, notified, damaged_at):
    viewer, widget = compare
    damaged = viewer.add_labels(damaged_at(em[1]), name="damaged", **GRID)
    widget.prediction.value, widget.reference.value = viewer.layers["guess"], damaged
    widget.start_button.native.click()
    finished(qtbot, widget)
    assert notified == ["cannot read slice z=0 of damaged: the chunk is damaged"]
    assert widget.error_label.text() == notified[0]
    assert widget.start_button.enabled


def test_what_has_no_objects_is_said(compare, probability, notified, qtbot):
    viewer, widget = compare
    viewer.add_image(probability, name="probability", **GRID)
    widget.prediction.value, widget.reference.value = viewer.layers["probability"], viewer.layers["truth"]
    widget.objects_button.native.click()
    qtbot.waitUntil(lambda: widget.object_worker is None, timeout=60_000)
    assert len(notified) == 1
    assert "probability has dtype float32: objects are whole numbers" in widget.error_label.text()
    widget.sparse.value = True
    widget.objects_button.native.click()
    assert "untick" in widget.error_label.text()


def sums(widget):
    """Voxel counts of the whole volume, as of the comparison and as of the layers by now."""
    predicted, true = (layer.data for layer in widget.live_comparison.layers)
    return widget.live_comparison.total, core.evaluate(predicted, true).total


def test_edits_of_many_slices_and_off_screen_undo_are_counted_again(compare, qtbot):
    viewer, widget = compare
    viewer.dims.set_current_step(0, 2)
    widget.start_button.native.click()
    finished(qtbot, widget)
    guess, before = viewer.layers["guess"], widget.live_comparison.total
    guess.data_setitem(np.nonzero(guess.data), 0)
    qtbot.waitUntil(lambda: widget.live_comparison.total.tp == 0)
    drawn(qtbot, widget)
    counted, wanted = sums(widget)
    assert counted == wanted != before
    assert shown(widget)["Volume"]["IoU"] == 0
    viewer.dims.set_current_step(0, 0)
    guess.undo()
    qtbot.waitUntil(lambda: widget.live_comparison.total == before)
    truth = viewer.layers["truth"]
    truth.fill((4, 0, 0), 1)  # off screen, of the reference
    qtbot.waitUntil(lambda: widget.live_comparison.total != before)
    counted, wanted = sums(widget)
    assert counted == wanted


class SlowLabels:
    """Labels of which a slice is read at a time, each once the test lets it; counts them."""

    def __init__(self, labels):
        self.labels, self.read, self.may_read = labels, 0, threading.Semaphore(0)

    def hold(self):
        while self.may_read.acquire(blocking=False):
            pass
        self.read = 0

    def layer(self):
        def block(block_info=None):
            z = block_info[None]["array-location"][0][0]
            if threading.current_thread() is not threading.main_thread():  # that of the viewer goes on
                self.may_read.acquire(timeout=5)
                self.read += 1
            return self.labels[z : z + 1]

        depth, *plane = self.labels.shape
        chunks = ((1,) * depth, *((n,) for n in plane))
        return da.map_blocks(block, chunks=chunks, dtype=self.labels.dtype, meta=np.empty((0, 0, 0), np.uint16))


@pytest.fixture
def slow_objects(open_widget):
    """The widget, with objects that are read slowly as the prediction, and a few of its slices read."""
    predicted, true = (np.repeat(each, 8, axis=0) for each in object_pair())
    slow = SlowLabels(predicted)
    viewer, widget = open_widget(NAME)
    viewer.add_labels(true, name="truth")
    viewer.add_labels(predicted, name="other")
    slow.may_read.release(1000)  # for the viewer, which reads on threads of dask
    viewer.add_labels(slow.layer(), name="slow")
    widget.prediction.value, widget.reference.value = viewer.layers["slow"], viewer.layers["truth"]
    slow.hold()
    yield viewer, widget, slow
    slow.may_read.release(10_000)


def test_stop_ends_the_comparison_of_objects(slow_objects, notified, qtbot):
    _, widget, slow = slow_objects
    widget.objects_button.native.click()
    slow.may_read.release(2)
    qtbot.waitUntil(lambda: slow.read > 1)
    worker = widget.object_worker
    with qtbot.waitSignal(worker.finished, timeout=20_000):
        widget.stop_button.native.click()
        assert widget.objects_button.enabled
        slow.may_read.release(10_000)
    assert slow.read < 2 * len(slow.labels) // 3, "it does not read the rest"
    assert widget.objects.comparison is None
    assert not widget.stop_button.enabled
    assert notified == []


def test_objects_of_a_pair_that_is_no_longer_chosen_are_not_shown(slow_objects, notified, qtbot):
    viewer, widget, slow = slow_objects
    widget.objects_button.native.click()
    worker = widget.object_worker
    with qtbot.waitSignal(worker.finished, timeout=20_000):
        widget.prediction.value = viewer.layers["other"]
        slow.may_read.release(10_000)
    qtbot.waitUntil(lambda: widget.objects_button.enabled)
    assert widget.objects.comparison is None
    widget.objects_button.native.click()
    qtbot.waitUntil(lambda: widget.object_worker is None, timeout=60_000)
    assert widget.objects.comparison.scores.count == (4, 4)
    assert notified == []
