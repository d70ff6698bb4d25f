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
from napari_kdunet.widgets.shared.layers import RESULT

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
    assert "choose two layers" in notified[-1]
    viewer.add_labels(em[1], name="truth")
    widget.start_button.native.click()
    assert "choose two layers" in notified[-1]
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
    may, count = threading.Semaphore(0), comparison_module.Comparison.confusion

    def held(self, z):
        may.acquire(timeout=5)
        return count(self, z)

    monkeypatch.setattr(comparison_module.Comparison, "confusion", held)
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
