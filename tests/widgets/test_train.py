"""*Train teacher*, opened through the manifest and driven by its buttons."""

import errno
import os
import threading

import numpy as np
import pytest
from napari.components import ViewerModel
from qtpy.QtWidgets import QFileDialog
from superqt.utils._qthreading import WorkerBase

from napari_kdunet import core
from napari_kdunet.widgets.notify import OUT_OF_MEMORY
from napari_kdunet.widgets.shared.models import models
from napari_kdunet.widgets.train import TrainWidget

ENDLESS = {"steps": None, "minutes": 60.0, "validations": 10_000}


@pytest.fixture
def widget(bench):
    return bench.open("Train teacher")


@pytest.fixture
def endless(bench):
    return bench.open("Train teacher", **ENDLESS)


def seen(widget):
    return widget.view.curves.runs["training"]


def test_a_run_leaves_a_model_curves_and_a_preview(bench, widget):
    bench.viewer.dims.set_current_step(0, 3)
    bench.assert_ready(widget)
    assert not widget.view.save_button.isEnabled()
    widget.view.start_button.click()
    assert not widget.view.start_button.isEnabled()
    assert widget.view.stop_button.isEnabled()
    bench.finish(widget)
    assert widget.view.curves.iou_plot.isVisible()
    bench.assert_ready(widget)
    assert models.session_names() == ["em k1"]
    model, run = models.get("em k1"), seen(widget)
    assert (model.net.k, model.pixel_size) == (1, 10.0)
    assert run.steps == list(range(1, 13))
    assert np.isfinite(run.losses).all()
    assert len(run.smooth) == 12
    assert run.val_steps == [4, 8, 12]
    assert all(0 <= iou <= 1 for iou in run.ious)
    assert model.summary["validation"]["iou"] == pytest.approx(max(run.ious))
    assert widget.view.bar.value() == widget.view.bar.maximum()
    assert "em k1" in widget.view.status.text()
    assert widget.view.score.text().startswith("Validation IoU ")
    assert f"best {max(run.ious):.3f}" in widget.view.score.text()
    assert widget.view.curves.iou_plot.getAxis("left").labelText == "validation IoU"
    assert widget.preview.z == 3
    bench.assert_shown_and_gone(widget)
    bench.wait(lambda: len(widget.view.curves.drawn("training")) == 3)


def test_the_preview_follows_the_user_and_goes_with_the_run(bench, endless):
    endless.view.start_button.click()
    bench.wait(lambda: endless.preview.probability is not None)
    bench.viewer.dims.set_current_step(0, 6)
    bench.wait(lambda: endless.preview.z == 6)
    assert endless.preview.layer in bench.viewer.layers
    bench.stop(endless)
    assert [layer.name for layer in bench.viewer.layers] == ["em", "mito"]


def test_pause_really_pauses_and_resume_goes_on(bench, endless, qtbot):
    endless.view.start_button.click()
    bench.wait_for(endless, "training")
    with qtbot.waitSignal(endless.worker.paused):
        endless.view.pause_button.click()
    assert endless.view.pause_button.text() == "Resume"
    steps = len(seen(endless).steps)
    with qtbot.assertNotEmitted(endless.worker.finished, wait=300):
        pass
    assert len(seen(endless).steps) == steps
    with qtbot.waitSignal(endless.worker.resumed):
        endless.view.pause_button.click()
    assert endless.view.pause_button.text() == "Pause"
    bench.wait_for(endless, "training", steps=steps + 1)
    bench.stop(endless)


def test_a_paused_run_can_be_stopped(bench, endless, qtbot):
    endless.view.start_button.click()
    bench.wait_for(endless, "training")
    with qtbot.waitSignal(endless.worker.paused):
        endless.view.pause_button.click()
    bench.stop(endless)
    bench.assert_ready(endless)
    assert endless.view.pause_button.text() == "Pause"


def test_stop_keeps_the_best_model_and_closes_the_generator(bench, endless, monkeypatch):
    closed, real = [], core.iter_train

    def watched(*args, **kwargs):
        try:
            yield from real(*args, **kwargs)
        finally:
            closed.append(threading.current_thread())

    monkeypatch.setattr(core, "iter_train", watched)
    endless.view.start_button.click()
    bench.wait_for(endless, "training", validations=2)
    bench.stop(endless)
    assert len(closed) == 1
    assert closed[0] is not threading.main_thread()
    bench.assert_ready(endless)
    assert endless.view.status.text().startswith("Stopped.")
    assert models.get("em k1").summary["validation"]["iou"] == pytest.approx(max(seen(endless).ious))


def test_stop_before_the_first_validation_says_so(bench):
    widget = bench.open("Train teacher", **{**ENDLESS, "validations": 1})
    widget.view.start_button.click()
    bench.wait_for(widget, "training", validations=0)
    bench.stop(widget)
    bench.assert_ready(widget)
    assert models.session_names() == []
    assert "no model" in widget.view.status.text()
    assert not widget.view.save_button.isEnabled()


def test_the_model_can_be_saved_and_a_full_disk_loses_nothing(bench, widget, tmp_path, monkeypatch, notified):
    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    path = tmp_path / "mine.safetensors"
    monkeypatch.setattr(QFileDialog, "getSaveFileName", lambda *_: (str(path), ""))
    widget.view.start_button.click()
    bench.finish(widget)
    notified.clear()  # so short a run may have collapsed
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        widget.view.save_button.click()
    assert len(notified) == 1
    assert "No space left on device" in notified[0]
    assert not path.exists()
    widget.view.save_button.click()
    assert core.load_model(path).summary["validation"] == models.get("em k1").summary["validation"]


def test_the_previews_layer_is_there_from_the_start_and_goes_if_it_stays_empty(bench):
    widget = bench.open("Train teacher", **{**ENDLESS, "validations": 1})
    widget.view.start_button.click()
    assert not bench.viewer.layers["em preview"].data.any()
    bench.stop(widget)
    assert "em preview" not in bench.viewer.layers


def test_start_pressed_twice_starts_one(bench, widget):
    widget.view.start_button.click()
    first, at_work = widget.worker, set(WorkerBase._worker_set)
    widget.view.start_button.click()
    widget.start(widget.job)
    assert widget.worker is first
    assert WorkerBase._worker_set <= at_work
    bench.finish(widget)
    assert models.session_names() == ["em k1"]


def test_a_second_run_adds_a_second_model(bench, widget):
    for _ in range(2):
        widget.view.start_button.click()
        bench.finish(widget)
    assert models.session_names() == ["em k1 2", "em k1"]
    assert seen(widget).val_steps == [4, 8, 12]


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), "mat1 and mat2"),
        (RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB"), OUT_OF_MEMORY),
        (MemoryError(), OUT_OF_MEMORY),
    ],
)
def test_an_error_reaches_the_user_and_loses_nothing(bench, widget, notified, raise_in, error, message):
    raise_in("iter_train", error, after=7)  # behind the first validation
    widget.view.start_button.click()
    bench.finish(widget)
    assert len(notified) == 1
    assert message in notified[0]
    bench.assert_ready(widget)
    assert models.session_names() == ["em k1"], "the best model so far is kept"
    widget.view.start_button.click()
    bench.finish(widget)
    assert models.session_names() == ["em k1 2", "em k1"]


def test_unusable_layers_are_told_at_the_click(bench, widget, notified):
    viewer, start = bench.viewer, widget.view.start_button
    viewer.layers.clear()
    start.click()
    assert notified == ["no image layer is chosen: add an image layer to the viewer."]
    viewer.add_image(np.zeros((8, 96, 96), np.uint8), name="em")
    start.click()
    assert notified[1:] == ["no labels layer is chosen: add a labels layer to the viewer."]
    viewer.add_labels(np.zeros((8, 96, 96), np.uint8), name="empty")
    start.click()
    assert widget.worker is None, "said before anything starts"
    assert widget.error_label.text() == notified[-1], "in full in the panel"
    assert notified[2:] == ["empty has no foreground: label some before training."]
    widget.labels_layer.value = viewer.add_labels(np.ones((4, 96, 96), np.uint8), name="short")
    start.click()
    assert widget.worker is None, "said before anything starts"
    assert widget.error_label.text() == notified[-1], "in full in the panel"
    assert len(notified) == 4
    assert "short have shape (4, 96, 96)" in notified[3]
    widget.image.value = viewer.add_image(np.zeros((8, 96, 96, 3), np.uint8), rgb=True, name="photo")
    start.click()
    assert len(notified) == 5
    assert notified[4].startswith("the layer photo is RGB: convert it")
    widget.image.value = viewer.add_image(np.zeros((2, 8, 96, 96), np.uint8), name="film")
    start.click()
    assert notified[5].startswith("the layer film has 4 axes (2, 8, 96, 96): choose a time point or channel")
    widget.image.value = viewer.add_image(np.zeros((2, 96, 96), np.uint8), name="two", axis_labels=("c", "y", "x"))
    start.click()
    assert notified[6].startswith("the layer two has 2 channels rather than slices: choose one")
    assert widget.error_label.text() == notified[-1]
    bench.assert_ready(widget)
    assert [layer.name for layer in viewer.layers if "preview" in layer.name] == []
    assert models.session_names() == []


@pytest.mark.parametrize(
    ("live", "pixels"),
    [
        (False, np.full((8, 96, 96), 7, np.uint8)),
        (True, np.full((8, 96, 96), 7, np.uint8)),
        (False, np.full((8, 96, 96), np.nan, np.float32)),
    ],
    ids=["constant", "live", "no numbers"],
)
def test_an_image_that_cannot_be_learnt_from_is_named_at_the_click(qtbot, tiny_em, notified, live, pixels):
    viewer = ViewerModel()
    viewer.add_image(pixels, name="em", contrast_limits=(0, 1))
    viewer.add_labels(tiny_em[1], name="mito")
    widget = TrainWidget(viewer)
    qtbot.addWidget(widget.native)
    widget.live.value = live
    widget.view.start_button.click()
    assert widget.worker is None, "said before anything starts"
    assert notified == ["em shows nothing in the slices to train on, only constant grey or noise: choose others."]
    assert widget.error_label.text() == notified[0]


def test_slices_learnt_from_show_something_and_labels_elsewhere_are_warned_of(bench, widget, notified):
    bench.mito.data = np.where(np.arange(8)[:, None, None] < 4, bench.mito.data, 0)
    bench.em.data = np.full_like(bench.em.data, 7)
    bench.em.data[6] = np.arange(96)
    widget.view.start_button.click()
    assert widget.worker is None
    assert notified[0].startswith("em shows nothing")
    bench.em.data[2] = np.arange(96)
    bench.mito.translate = bench.em.data_to_world((0, 0, 3))
    widget.view.start_button.click()
    assert widget.worker is not None
    assert notified[1].startswith("mito is shifted from em (by +0, +0, +3 voxels)")
    bench.stop(widget)


def test_an_image_of_noise_is_named_by_the_training(bench, widget, notified):
    bench.em.data = np.random.default_rng(0).normal(100, 1, bench.em.data.shape).astype(np.uint8)
    widget.view.start_button.click()
    bench.finish(widget)
    assert notified == ["em shows nothing in the slices to train on, only constant grey or noise: choose others."]
    assert widget.error_label.text() == notified[0]
    bench.assert_ready(widget)


def test_what_is_learnt_from_is_no_score(bench, widget):
    bench.mito.data = bench.mito.data * (np.arange(8) == 3)[:, None, None]  # one slice: none is held out
    scores, show = [], widget.view.validated
    widget.view.validated = lambda event: (show(event), scores.append(widget.view.score.text()))
    widget.view.start_button.click()
    bench.finish(widget)
    assert all(words.startswith("Agreement with the labels that it learns from: 0.") for words in scores)
    assert all("This is no score" in words for words in scores)
    assert len(scores) == 3
    assert not widget.view.curves.iou_plot.isVisible(), "the loss alone is plotted"
    assert "IoU" not in models.describe(widget.model_name)


def test_a_collapsed_network_is_said_to_be_one_and_kept(bench, notified):
    widget = bench.open("Train teacher", bn=False)
    widget.lr.min = 0
    widget.lr.value = 1e-6
    widget.view.start_button.click()
    bench.finish(widget)
    assert len(notified) == 1
    assert notified[0].startswith("the network collapsed")
    status = widget.view.status.text()
    assert "The network collapsed" in status
    assert "Train longer" in status
    assert "“em k1”" in status
    assert models.session_names() == ["em k1"]


def test_a_setting_that_does_not_fit_is_notified_by_name(bench, notified):
    widget = bench.open("Train teacher", patch=40)
    widget.view.start_button.click()
    assert len(notified) == 1
    assert notified[0].startswith("patch is 40")
    bench.assert_ready(widget)


def test_sparse_scribbles_train(bench, widget):
    scribbles = np.zeros_like(bench.mito.data)
    scribbles[2:4, 20:60] = bench.mito.data[2:4, 20:60] + 1
    widget.labels_layer.value = bench.viewer.add_labels(scribbles, name="scribbles")
    widget.sparse.value = True
    widget.view.start_button.click()
    bench.finish(widget)
    summary = models.get("em k1").summary
    assert summary["settings"]["ignore"] == 0
    assert summary["labelled_slices"] == [2, 3]


def test_a_flat_image_of_unknown_pixel_size_trains(bench):
    raw, labels = bench.em.data[0], bench.mito.data[0]
    bench.viewer.layers.clear()
    bench.viewer.add_image(raw, name="flat")
    bench.viewer.add_labels(labels, name="mito")
    widget = bench.open("Train teacher")
    widget.view.start_button.click()
    bench.finish(widget)
    assert models.session_names() == ["flat k1"]
    assert widget.preview.layer.data.shape == (96, 96)
    assert "taken as the working 10 nm" in widget.view.notes.text()
    assert widget.view.score.text().startswith("Check: the masks of a slice and of its mirror image agree")
    assert "IoU" not in widget.view.status.text(), "nothing is held out: there is no score"
    assert widget.view.curves.iou_plot.getAxis("left").labelText == "training IoU"


def test_removing_layers_during_a_run_breaks_nothing(bench, endless, notified):
    endless.view.start_button.click()
    bench.wait(lambda: endless.preview.probability is not None)
    bench.viewer.layers.clear()
    bench.wait_for(endless, "training", validations=len(seen(endless).ious) + 1)
    bench.stop(endless)
    assert notified == []
    assert list(bench.viewer.layers) == []
    assert models.session_names() == ["em k1"]


@pytest.mark.parametrize("how", ["viewer", "dock"])
def test_closing_during_a_run_ends_the_thread_and_keeps_the_model(bench, endless, how, notified):
    endless.view.start_button.click()
    bench.wait_for(endless, "training")
    if how == "viewer":
        bench.viewer.close()
    else:
        bench.viewer.window.remove_dock_widget(endless.native)
    bench.wait(lambda: not WorkerBase._worker_set)
    assert models.session_names() == ["em k1"]
    assert notified == []
    if how == "dock":
        assert [layer.name for layer in bench.viewer.layers] == ["em", "mito"], "the preview goes with the widget"
        endless.native.deleteLater()


def test_what_the_model_to_start_from_decides_cannot_be_set(bench, widget):
    decided = {"k", "bn", "depth", "classes", "boundary", "activation", "init", "prior_bias", "pixel_size"}
    models.add("known", core.Model(core.KUNet(2), 10.0))
    for origin, fixed in (("known", decided), (None, set())):
        widget.origin.value = origin
        assert {name for name, each in widget.settings.widgets.items() if not each.enabled} == fixed


def test_settings_persist_from_one_launch_to_the_next(bench, widget):
    config = widget.config()
    bench.viewer.window.remove_dock_widget(widget.native)
    _, again = bench.viewer.window.add_plugin_dock_widget("napari-kdunet", "Train teacher")
    assert again is not widget
    assert again.config() == config
    widget.native.deleteLater()
