"""What people do to a viewer while it works: several volumes at once, several trainings at once, changes of mind."""

import errno
import os
import threading

import numpy as np
import pytest
from qtpy.QtWidgets import QFileDialog

from napari_kdunet import core
from napari_kdunet.widgets.shared.models import models

ENDLESS = {"steps": None, "minutes": 60.0, "validations": 10_000}


@pytest.fixture
def small(bench):
    """A second volume of another shape, voxel size and place, with its labels."""
    grid = {"scale": (20.0, 20.0, 20.0), "units": ("nm",) * 3}
    raw, labels = bench.em.data[1:6, :64, :80], bench.mito.data[1:6, :64, :80]
    image = bench.viewer.add_image(raw, name="small", **grid)
    return image, bench.viewer.add_labels(labels, name="small mito", **grid)


def test_volumes_of_different_shapes_do_not_mix(bench, small, notified):
    image, _ = small
    train = bench.open("Train teacher")
    assert (train.image.value, train.labels_layer.value) == small, "the topmost at first"
    train.view.start_button.click()
    bench.finish(train)
    assert models.session_names() == ["small k1"]
    assert train.preview.image is image
    assert train.preview.layer.data.shape == (1, 64, 80)
    train.image.value = bench.em
    train.view.start_button.click()
    bench.finish(train)
    assert notified[-1].startswith("labels small mito have shape (5, 64, 80), but their image em has shape (8, 96, 96)")
    train.labels_layer.value = bench.mito
    train.view.start_button.click()
    bench.finish(train)
    assert models.session_names() == ["em k1", "small k1"]
    assert len(train.view.curves.runs) == 1, "another image, another plot"
    bench.assert_shown_and_gone(train)
    assert [layer.name for layer in bench.viewer.layers] == ["em", "mito", "small", "small mito"]


def test_a_run_keeps_to_what_it_was_started_on(bench, small):
    train = bench.open("Train teacher", **ENDLESS)
    train.image.value, train.labels_layer.value = bench.em, bench.mito
    train.view.start_button.click()
    bench.wait_for(train, "training")
    train.image.value, train.labels_layer.value = small
    seen = len(train.view.curves.runs["training"].ious)
    bench.wait_for(train, "training", validations=seen + 2)
    bench.stop(train)
    assert models.session_names() == ["em k1"]
    bench.assert_shown_and_gone(train)


def test_two_trainings_at_once_do_not_mix(bench, tiny_model, notified):
    models.add("teacher", core.Model(tiny_model.net))
    train, distill = bench.open("Train teacher", **ENDLESS), bench.open("Distil student", **ENDLESS)
    distill.teacher.value = "teacher"
    train.view.start_button.click()
    distill.view.start_button.click()
    bench.wait_for(train, "training")
    bench.wait_for(distill, "student")
    bench.stop(train)
    bench.assert_ready(train)
    assert distill.view.stop_button.isEnabled()
    seen = distill.view.curves.runs["student"]
    bench.wait_for(distill, "student", steps=len(seen.steps) + 1, validations=len(seen.ious) + 1)
    bench.stop(distill)
    bench.assert_ready(distill)
    assert set(models.session_names()) == {"teacher", "em k1", "em k1 distilled"}
    assert set(train.view.curves.runs) == {"training"}
    assert set(distill.view.curves.runs) == {"student"}
    assert models.get("em k1 distilled").summary["teacher"]["parameters"] == tiny_model.parameter_count
    assert "teacher" not in models.get("em k1").summary
    assert train.preview.layer is not distill.preview.layer
    assert notified == []


def test_live_hears_its_own_layer_alone(bench):
    train = bench.open("Train teacher")
    train.add_strokes()
    train.live.value = True
    strokes = train.labels_layer.value
    other = bench.viewer.add_labels(
        np.zeros_like(bench.mito.data), name="other", scale=bench.em.scale, units=bench.em.units
    )
    train.view.start_button.click()
    for layer, z in ((other, 2), (strokes, 5)):
        for label, at in ((1, 20), (2, 70)):
            layer.paint((z, at, at), label)
    bench.wait_for(train, "live")
    bench.stop(train)
    assert models.get("em live").summary["validation"]["slices"] == [5]


def test_a_full_disk_while_a_run_goes_on_does_not_stop_it(bench, notified, monkeypatch, tmp_path):
    fsync = os.fsync

    def full(file):
        if threading.current_thread() is threading.main_thread():
            raise OSError(errno.ENOSPC, "No space left on device")
        fsync(file)

    train = bench.open("Train teacher", **ENDLESS)
    train.view.start_button.click()
    bench.wait_for(train, "training")
    monkeypatch.setattr(QFileDialog, "getSaveFileName", lambda *_: (str(tmp_path / "m.safetensors"), ""))
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        train.view.save_button.click()
    assert len(notified) == 1
    assert "No space left on device" in notified[0]
    seen = len(train.view.curves.runs["training"].steps)
    bench.wait_for(train, "training", steps=seen + 2)
    train.view.save_button.click()
    assert core.load_model(tmp_path / "m.safetensors").net.k == 1
    bench.stop(train)
