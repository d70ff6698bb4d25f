"""The models of the session, and choosing, opening and saving them."""

import errno
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import pytest
from qtpy.QtWidgets import QFileDialog

from napari_kdunet import core
from napari_kdunet.widgets.shared.models import ModelChoice, ModelStore


@pytest.fixture
def model():
    return core.Model(core.KUNet(1), summary={"note": "untrained"})


@pytest.fixture
def chooser(qtbot):
    chooser = ModelChoice(ModelStore())
    chooser.row = chooser.with_buttons()
    qtbot.addWidget(chooser.row.native)
    return chooser


def test_names_are_made_unique_and_the_latest_comes_first(model):
    store, told = ModelStore(), []
    store.changed.connect(lambda: told.append(store.session_names()))
    assert [store.add("em k2", model) for _ in range(3)] == ["em k2", "em k2 2", "em k2 3"]
    assert store.session_names() == ["em k2 3", "em k2 2", "em k2"]
    assert len(told) == 3
    better = core.Model(core.KUNet(1))
    store.update("em k2", better)
    assert store.get("em k2") is better
    assert len(told) == 4


def test_bundled_models_are_read_when_asked_for_and_only_once(model, tmp_path, bundle):
    bundle(model.save(tmp_path / "em-k1.safetensors"))
    store = ModelStore()
    assert store.names() == ["em-k1"]
    assert store.session_names() == []
    assert store.get("em-k1").summary == model.summary
    assert store.get("em-k1") is store.get("em-k1")
    assert store.add("em-k1", model) == "em-k1 2", "a bundled model is not hidden"


def test_two_threads_that_ask_at_once_get_one_model(model, tmp_path, bundle, monkeypatch):
    """As when Start is pressed while the panel still reads: the mask's model must be the one that the panel shows."""
    bundle(model.save(tmp_path / "em-k1.safetensors"))
    store, load, asked = ModelStore(), core.load_model, threading.Barrier(2)

    def load_slowly(source):
        with suppress(threading.BrokenBarrierError):
            asked.wait(0.2)  # for the other one to come here too
        return load(source)

    monkeypatch.setattr(core, "load_model", load_slowly)
    with ThreadPoolExecutor(2) as pool:
        one, other = pool.map(store.get, ["em-k1"] * 2)
    assert one is other


def test_an_unknown_name_is_a_model_error():
    with pytest.raises(core.ModelError, match="nobody"):
        ModelStore().get("nobody")


def test_choice_follows_the_store_and_keeps_what_was_chosen(chooser, model):
    with pytest.raises(core.ModelError, match="train one"):
        chooser.model()
    first = chooser.store.add("first", model)
    assert chooser.value == first
    chooser.store.add("second", core.Model(core.KUNet(1)))
    assert chooser.value == first
    assert chooser.model() is model
    assert chooser.choices == ("second", "first")
    heard = []
    chooser.changed.connect(heard.append)
    chooser.store.update("first", core.Model(core.KUNet(1)))
    assert heard == ["first"], "a better one has taken its place"


def test_the_list_says_what_a_model_is_for(tmp_path, bundle):
    data = {"volume": "EPFL hippocampus, CA1, 5 nm"}
    held_out = {"validation": {"on": "held-out slices", "iou": 0.857}}
    bundle(core.Model(core.KUNet(2), summary={"data": data, **held_out}).save(tmp_path / "em-k2.safetensors"))
    store = ModelStore()
    parts = ["em-k2", "mitochondria", "2-Unet", "31 k parameters", "IoU 0.86 on EPFL hippocampus"]
    assert store.describe("em-k2").split(" · ") == parts
    store.add("mine", core.Model(core.KUNet(1), summary=held_out), "my volume")
    assert store.describe("mine").endswith("IoU 0.86 on my volume")
    store.add("strokes", core.Model(core.KUNet(1), summary={"validation": {"on": "training slices", "iou": 0.99}}))
    assert "IoU" not in store.describe("strokes"), "of the labels themselves"


def test_which_model_is_taken_at_first(tmp_path, bundle):
    def scored(iou, **more):
        return core.Model(core.KUNet(1), summary={"validation": {"on": "held-out slices", "iou": iou}, **more})

    bundle(scored(0.7).save(tmp_path / "a-weak.safetensors"), scored(0.8).save(tmp_path / "b-good.safetensors"))
    store = ModelStore()
    assert store.best_for("em") == store.newest_teacher() == "b-good", "not the first by the alphabet"
    store.add("other", scored(0.9), "another image")
    store.add("teacher", scored(0.5), "em")
    store.add("student", scored(0.4, teacher={"parameters": 1}), "em")
    assert store.best_for("em") == "student", "the newest trained on this image"
    assert store.best_for("a third") == "b-good"
    assert store.newest_teacher() == "teacher"
    general = scored(0.6, data={"sources": 3})
    bundle(general.save(tmp_path / "c-general.safetensors"), scored(0.8).save(tmp_path / "b-good.safetensors"))
    assert ModelStore().best_for("em") == "c-general", "one that knows several kinds of image"


def test_what_is_saved_can_be_opened(chooser, model, tmp_path, monkeypatch, qtbot):
    path = tmp_path / "mine"
    monkeypatch.setattr(QFileDialog, "getSaveFileName", lambda *_: (str(path), ""))
    monkeypatch.setattr(QFileDialog, "getOpenFileName", lambda *_: (str(path) + ".safetensors", ""))
    chooser.store.add("em", model)
    chooser.row.model_buttons.save_model.native.click()
    chooser.row.model_buttons.open_model.native.click()
    qtbot.waitUntil(lambda: chooser.value == "mine")
    assert chooser.model().summary == model.summary


def test_a_cancelled_dialog_does_nothing(chooser, model, monkeypatch):
    monkeypatch.setattr(QFileDialog, "getSaveFileName", lambda *_: ("", ""))
    monkeypatch.setattr(QFileDialog, "getOpenFileName", lambda *_: ("", ""))
    chooser.store.add("em", model)
    chooser.row.model_buttons.save_model.native.click()
    chooser.row.model_buttons.open_model.native.click()
    assert chooser.store.names() == ["em"]


def test_a_file_that_is_no_model_is_notified(chooser, tmp_path, notified, qtbot):
    bad = tmp_path / "bad.safetensors"
    bad.write_bytes(b"not a model")
    chooser.open(bad)
    qtbot.waitUntil(lambda: len(notified) == 1)
    assert str(bad) in notified[0]
    assert chooser.value is None


def test_a_full_disk_is_notified_and_nothing_is_lost(chooser, model, tmp_path, monkeypatch, notified):
    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    path = tmp_path / "em.safetensors"
    path.write_bytes(b"what was there")
    monkeypatch.setattr(os, "fsync", full)
    monkeypatch.setattr(QFileDialog, "getSaveFileName", lambda *_: (str(path), ""))
    chooser.store.add("em", model)
    chooser.row.model_buttons.save_model.native.click()
    assert len(notified) == 1
    assert "No space left on device" in notified[0]
    assert "make room" in notified[0]
    assert path.read_bytes() == b"what was there"
    assert list(tmp_path.glob("*.safetensors")) == [path]
    assert chooser.model() is model


def test_a_chooser_that_is_gone_is_not_told(qtbot, model):
    store, chooser = ModelStore(), None
    chooser = ModelChoice(store)
    with qtbot.waitSignal(chooser.native.destroyed):
        chooser.native.deleteLater()
    store.add("em", model)


def test_none_can_be_chosen_where_it_is_allowed(qtbot, model):
    chooser = ModelChoice(ModelStore(), none="a fresh network", first=lambda _: None)
    qtbot.addWidget(chooser.native)
    assert (chooser.native.currentText(), chooser.value) == ("a fresh network", None)
    name = chooser.store.add("em k1", model)
    assert chooser.value is None, "a new model is offered, not chosen"
    chooser.value = name
    assert chooser.model() is model
    chooser.store.clear()
    assert chooser.value is None
