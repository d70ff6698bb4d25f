"""The models of the session, and choosing, opening and saving them."""

import errno
import os

import pytest
from qtpy.QtWidgets import QFileDialog

from napari_kdunet import core
from napari_kdunet.widgets.shared.models import ModelChooser, ModelStore


@pytest.fixture
def model():
    return core.Model(core.KUNet(1), summary={"note": "untrained"})


@pytest.fixture
def chooser(qtbot):
    chooser = ModelChooser(ModelStore())
    qtbot.addWidget(chooser)
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


def test_an_unknown_name_is_a_model_error():
    with pytest.raises(core.ModelError, match="nobody"):
        ModelStore().get("nobody")


def test_chooser_follows_the_store_and_keeps_the_choice(chooser, model):
    with pytest.raises(core.ModelError, match="train one"):
        chooser.model()
    assert not chooser.save_button.isEnabled()
    first = chooser.store.add("first", model)
    assert chooser.name == first
    assert chooser.save_button.isEnabled()
    chooser.store.add("second", core.Model(core.KUNet(1)))
    assert chooser.name == first
    assert chooser.model() is model
    assert [chooser.combo.itemText(i) for i in range(chooser.combo.count())] == ["second", "first"]


def test_what_is_saved_can_be_opened(chooser, model, tmp_path, monkeypatch, qtbot):
    path = tmp_path / "mine"
    monkeypatch.setattr(QFileDialog, "getSaveFileName", lambda *_: (str(path), ""))
    monkeypatch.setattr(QFileDialog, "getOpenFileName", lambda *_: (str(path) + ".safetensors", ""))
    chooser.store.add("em", model)
    chooser.save_button.click()
    with qtbot.waitSignal(chooser.changed, check_params_cb=lambda name: name == "mine"):
        chooser.open_button.click()
    assert chooser.model().summary == model.summary


def test_a_cancelled_dialog_does_nothing(chooser, model, monkeypatch):
    monkeypatch.setattr(QFileDialog, "getSaveFileName", lambda *_: ("", ""))
    monkeypatch.setattr(QFileDialog, "getOpenFileName", lambda *_: ("", ""))
    chooser.store.add("em", model)
    chooser.save_button.click()
    chooser.open_button.click()
    assert chooser.store.names() == ["em"]


def test_a_file_that_is_no_model_is_notified(chooser, tmp_path, notified, qtbot):
    bad = tmp_path / "bad.safetensors"
    bad.write_bytes(b"not a model")
    chooser.open(bad)
    qtbot.waitUntil(lambda: len(notified) == 1)
    assert str(bad) in notified[0]
    assert chooser.name == ""


def test_a_full_disk_is_notified_and_nothing_is_lost(chooser, model, tmp_path, monkeypatch, notified):
    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    path = tmp_path / "em.safetensors"
    path.write_bytes(b"what was there")
    monkeypatch.setattr(os, "fsync", full)
    monkeypatch.setattr(QFileDialog, "getSaveFileName", lambda *_: (str(path), ""))
    chooser.store.add("em", model)
    chooser.save_button.click()
    assert len(notified) == 1
    assert "No space left on device" in notified[0]
    assert "make room" in notified[0]
    assert path.read_bytes() == b"what was there"
    assert list(tmp_path.glob("*.safetensors")) == [path]
    assert chooser.model() is model


def test_a_chooser_that_is_gone_is_not_told(qtbot, model):
    store, chooser = ModelStore(), None
    chooser = ModelChooser(store)
    with qtbot.waitSignal(chooser.destroyed):
        chooser.deleteLater()
    store.add("em", model)


def test_none_can_be_chosen_where_it_is_allowed(qtbot, model):
    chooser = ModelChooser(ModelStore(), none="a fresh network")
    qtbot.addWidget(chooser)
    assert (chooser.combo.currentText(), chooser.name) == ("a fresh network", "")
    name = chooser.store.add("em k1", model)
    assert chooser.name == "", "a new model is offered, not chosen"
    chooser.name = name
    assert chooser.model() is model
    chooser.store.clear()
    assert chooser.name == ""
