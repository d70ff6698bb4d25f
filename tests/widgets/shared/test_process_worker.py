"""Trainings in a process of their own: the same events, and the window's side stays whole whatever becomes of it."""

import os
import time
from contextlib import suppress

import numpy as np
import psutil
import pytest

from napari_kdunet import core
from napari_kdunet.widgets.shared import process_worker as module
from napari_kdunet.widgets.shared.models import models
from napari_kdunet.widgets.shared.process_worker import Quiet, apart

pytestmark = pytest.mark.usefixtures("own_process")

CONFIG = core.TrainConfig(k=1, patch=32, batch=2, steps=8, validations=2, device="cpu")
ENDLESS = core.TrainConfig(k=1, patch=32, batch=2, minutes=60, validations=10_000, device="cpu")


def started_here():
    """The processes of trainings that this one has started and that are at work."""
    found = []
    for each in psutil.Process().children():
        with suppress(psutil.Error):  # it has just ended
            if "napari_kdunet.widgets.shared.process_main" in each.cmdline():
                found.append(each)
    return found


@pytest.fixture
def em_volumes(tiny_em):
    raw, labels = tiny_em
    return core.open_volume(raw, voxel_size=(10.0,) * 3, name="em"), core.open_volume(labels, name="mito")


def heard(events):
    return [event for event in events if not isinstance(event, Quiet)]


def test_it_learns_the_very_same(em_volumes):
    here, there = list(core.iter_train(*em_volumes, CONFIG)), heard(apart(core.iter_train, *em_volumes, CONFIG))
    assert [type(event) for event in there] == [type(event) for event in here]
    losses = [[event.loss for event in events if isinstance(event, core.Stepped)] for events in (here, there)]
    assert len(losses[0]) == 8
    assert losses[0] == losses[1]
    ours, theirs = (events[-1].model.net.state_dict() for events in (here, there))
    assert all((ours[name] == theirs[name]).all() for name in ours)
    assert started_here() == []


def test_only_slices_that_are_read_travel(tiny_em):
    class Watched:
        shape, dtype = (1000, 96, 96), np.dtype("uint8")

        def __init__(self, data):
            self.data, self.read, self.processes = data, set(), set()

        def __getitem__(self, key):
            self.read.add(key[0])
            self.processes.add(os.getpid())
            return self.data[key[0] % 8, *key[1:]]

    raw, labels = map(Watched, tiny_em)
    config = core.TrainConfig(k=1, patch=32, batch=2, steps=2, validations=1, slices=(11, 500, 801), device="cpu")
    *_, done = apart(core.iter_train, core.open_volume(raw), core.open_volume(labels), config)
    assert isinstance(done, core.Done)
    assert raw.read == {11, 500, 801}
    assert raw.processes == labels.processes == {os.getpid()}


def test_its_errors_come_back(em_volumes):
    raw, _ = em_volumes
    empty = core.open_volume(np.zeros((8, 96, 96), np.uint8), name="empty")
    with pytest.raises(core.UnlabelledError, match=r"^empty has no foreground") as caught:
        heard(apart(core.iter_train, raw, empty, CONFIG))
    assert "splits.py" in caught.value.__notes__[0]  # where over there
    assert started_here() == []


def test_a_slice_that_cannot_be_read_is_named(em_volumes):
    class Broken:
        shape, dtype = (8, 96, 96), np.dtype("uint8")

        def __getitem__(self, key):
            raise OSError("the disk is gone")

    _, labels = em_volumes
    with pytest.raises(core.VolumeError, match=r"cannot read slice z=\d of em: the disk is gone"):
        heard(apart(core.iter_train, core.open_volume(Broken(), name="em"), labels, CONFIG))


def test_closing_ends_it_in_the_middle(em_volumes):
    events = apart(core.iter_train, *em_volumes, ENDLESS)
    next(event for event in events if isinstance(event, core.Stepped))
    (process,) = started_here()
    events.close()
    assert not process.is_running()


def test_closing_ends_it_before_it_has_begun(em_volumes):
    events = apart(core.iter_train, *em_volumes, ENDLESS)
    assert isinstance(next(events), Quiet)
    clock = time.perf_counter()
    events.close()
    assert time.perf_counter() - clock < 10
    assert started_here() == []


def test_it_does_not_run_ahead_of_a_pause(em_volumes):
    events = apart(core.iter_train, *em_volumes, ENDLESS)
    first = next(event for event in events if isinstance(event, core.Stepped))
    (process,) = started_here()
    assert any(process.cpu_percent(interval=0.3) < 15 for _ in range(60))
    events.close()
    assert first.step == 1


def test_a_process_that_is_killed_is_told_of(em_volumes):
    events = apart(core.iter_train, *em_volumes, ENDLESS)
    next(event for event in events if isinstance(event, core.Stepped))
    started_here()[0].kill()
    with pytest.raises(core.TrainingError, match=r"process has ended .* memory"):
        heard(events)


def test_what_cannot_be_sent_is_done_here(em_volumes):
    def steps(*args):  # no module has it
        yield from core.iter_train(*args)

    assert isinstance(next(apart(steps, *em_volumes, CONFIG)), core.Started)
    assert started_here() == []


def test_a_widget_trains_distils_and_previews(bench):
    teacher = bench.open("Train teacher", k=2)
    teacher.view.start_button.click()
    bench.wait(lambda: bool(started_here()))
    bench.finish(teacher)
    assert teacher.view.status.text().startswith("Done")
    bench.assert_segmented(teacher)
    student = bench.open("Distil student")
    student.view.start_button.click()
    bench.finish(student)
    assert student.view.status.text().startswith("Done")
    assert models.get(student.model_name).net.k == 1
    bench.assert_segmented(student)
    assert started_here() == []


def test_strokes_reach_a_live_training(bench):
    widget = bench.open("Train teacher")
    widget.inputs.strokes_button.click()
    widget.live.setChecked(True)
    strokes, truth = bench.viewer.layers["em strokes"], bench.mito.data
    widget.view.start_button.click()
    bench.wait(lambda: widget.view.status.text().startswith("Waiting"))
    for z in (2, 5):
        strokes.data = np.where((np.arange(8) == z)[:, None, None], np.where(truth > 0, 2, 1), 0).astype(np.uint8)
        bench.wait_for(widget, "live", steps=3, validations=1)
        bench.wait(lambda z=z: models.get(widget.model_name).summary["validation"]["slices"] == [z])
    bench.stop(widget)
    assert started_here() == []


def test_a_process_that_died_is_notified(bench, notified):
    widget = bench.open("Train teacher", budget={"minutes": 60})
    widget.view.start_button.click()
    bench.wait_for(widget, "training", steps=1, validations=0)
    started_here()[0].kill()
    bench.finish(widget)
    bench.assert_ready(widget)
    assert len(notified) == 1
    assert "process has ended" in notified[0]


def test_switched_off_it_is_a_thread(em_volumes, monkeypatch):
    monkeypatch.setattr(module, "OWN_PROCESS", False)
    assert isinstance(next(apart(core.iter_train, *em_volumes, CONFIG)), core.Started)
    assert started_here() == []
