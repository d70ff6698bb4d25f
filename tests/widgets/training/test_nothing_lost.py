"""No training is lost: models on disk as they get better, and a question before napari or a dock is closed."""

import errno
import os
import threading
import time

import pytest
from qtpy.QtCore import QEvent, QObject, QTimer
from qtpy.QtWidgets import QApplication

from napari_kdunet import core
from napari_kdunet.widgets.shared.models import ModelStore, models
from napari_kdunet.widgets.shared.session_folder import KEPT_DAYS, SessionFolder

ENDLESS = {"steps": None, "minutes": 60.0, "validations": 10_000}
DAY = 86_400.0


@pytest.fixture
def training(bench):
    """A training under way that has a model by now."""
    train = bench.open("Train teacher", **ENDLESS)
    train.view.start_button.click()
    bench.wait_for(train, "training")
    return train


@pytest.fixture
def answer(qtbot):
    """Answer the next question by the button of this text; gives a list of what was asked."""

    def arrange(text):
        asked = []

        def press():
            box = QApplication.activeModalWidget()
            if box is None:
                QTimer.singleShot(20, press)
                return
            asked.append(box.text())
            next(button for button in box.buttons() if button.text() == text).click()

        QTimer.singleShot(0, press)
        return asked

    return arrange


def dock_of(widget):
    return widget.native.parent()


def test_a_model_is_listed_after_a_crash(bench, training):
    """While the training goes on, another napari lists it: nothing had to be ended in order."""
    (path,) = models.session.folder.glob("*.safetensors")
    assert core.load_model(path).net.k == 1
    later = ModelStore(SessionFolder(models.session.root))
    (name,) = later.names()
    assert name.startswith(f"em k1 (session of {time.strftime('%Y-%m-%d')}")
    bench.stop(training)
    written, kept = core.load_model(path), models.get("em k1")
    assert all((a == b).all() for a, b in zip(written.net.parameters(), kept.net.parameters(), strict=True))
    assert written.summary == kept.summary


def test_models_of_an_earlier_session_can_be_chosen(bench, tiny_model, qtbot):
    earlier = SessionFolder(models.session.root)
    earlier.folder = earlier.root / "2026-01-02T03-04-05 1"
    earlier.write(tiny_model, earlier.new_path("em/k2"))
    segment = bench.viewer.window.add_plugin_dock_widget("napari-kdunet", "Segment")[1]
    segment.model.value = "em_k2 (session of 2026-01-02 03:04:05)"
    qtbot.waitUntil(lambda: segment.loaded is not None)
    assert segment.loaded.threshold == tiny_model.threshold


def test_models_of_long_ago_are_deleted_and_others_stay(tiny_model, tmp_path):
    old, new = (SessionFolder(tmp_path) for _ in range(2))
    old.folder, new.folder = tmp_path / "2026-01-02T03-04-05 1", tmp_path / "2026-03-02T03-04-05 1"
    paths = [session.new_path("em") for session in (old, old, new)]
    for path, session, days in zip(paths, (old, old, new), (KEPT_DAYS + 1, KEPT_DAYS - 1, KEPT_DAYS - 2), strict=True):
        session.write(tiny_model, path)
        os.utime(path, (time.time() - days * DAY,) * 2)
    half = new.folder / ".em.part-1-2-3.safetensors"
    half.touch()
    (tmp_path / "somebody's").mkdir()
    (tmp_path / "somebody's" / "own.safetensors").touch()
    os.utime(tmp_path / "somebody's" / "own.safetensors", (0, 0))
    listed = list(SessionFolder(tmp_path).earlier)
    assert listed == ["em (session of 2026-03-02 03:04:05)", "em 2 (session of 2026-01-02 03:04:05)"]
    assert [path.exists() for path in paths] == [False, True, True]
    assert half.exists()
    assert (tmp_path / "somebody's" / "own.safetensors").exists()


def test_a_folder_that_cannot_be_written_to_is_told_once(bench, notified, monkeypatch):
    def full(_):
        assert threading.current_thread() is not threading.main_thread(), "the window does not wait for the disk"
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    train = bench.open("Train teacher")
    train.view.start_button.click()
    bench.finish(train)
    assert models.session_names() == ["em k1"]
    (message,) = [each for each in notified if "only in memory" in each]
    assert "save it before you close napari" in message
    assert "No space left on device" in message


class Stay(QObject):
    """Keeps a window open, as the test's own viewer closes it for good; counts how often it was to close."""

    closed = 0

    def eventFilter(self, watched, event):
        if event.type() != QEvent.Type.Close:
            return False
        self.closed += 1
        event.ignore()
        return True


def test_closing_napari_asks(bench, answer):
    train = bench.open("Train teacher", **ENDLESS)
    window = train.native.window()
    stay = Stay(window)
    window.installEventFilter(stay)
    train.view.start_button.click()
    bench.wait_for(train, "training")
    asked = answer("Go on training")
    window.close()
    assert len(asked) == 1
    assert "“em k1”, is kept" in asked[0]
    assert not stay.closed
    steps = len(train.view.curves.runs["training"].steps)
    bench.wait_for(train, "training", steps=steps + 1)
    answer("Stop and keep")
    window.close()
    assert stay.closed
    bench.wait(lambda: train.worker is None)
    assert list(models.session.folder.glob("*.safetensors"))
    window.close()
    assert stay.closed == 2, "nothing is asked when nothing is under way"
    window.removeEventFilter(stay)


def test_closing_a_dock_asks(bench, training, answer):
    dock = dock_of(training)
    asked = answer("Go on training")
    dock.title.close_button.click()
    assert len(asked) == 1
    assert dock_of(training) is dock
    steps = len(training.view.curves.runs["training"].steps)
    bench.wait_for(training, "training", steps=steps + 1)
    worker = training.worker
    answer("Stop and keep")
    dock.title.close_button.click()
    assert dock_of(training) is None
    assert worker.stopped


def test_nothing_is_asked_when_nothing_is_under_way(bench, training):
    bench.stop(training)
    dock_of(training).title.close_button.click()
    assert dock_of(training) is None
