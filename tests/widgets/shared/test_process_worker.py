"""Trainings in a process of their own: the same events, a clean end, and a parent that survives whatever happens."""

import importlib
import os
import pickle
import subprocess
import sys
import time

import numpy as np
import psutil
import pytest

from napari_kdunet import core
from napari_kdunet.widgets.shared import process_worker as module
from napari_kdunet.widgets.shared.models import models
from napari_kdunet.widgets.shared.process_worker import Idle, prepare, run_in_process

CONFIG = core.TrainConfig(k=1, patch=32, batch=2, steps=8, validations=2, device="cpu")
ENDLESS = core.TrainConfig(k=1, patch=32, batch=2, minutes=60, validations=10_000, device="cpu")
VALIDATED = core.TrainConfig(k=1, patch=32, batch=2, steps=100_000, validations=50_000, device="cpu")


@pytest.fixture
def em_volumes(tiny_em):
    raw, labels = tiny_em
    return core.open_volume(raw, voxel_size=(10.0,) * 3, name="em"), core.open_volume(labels, name="mito")


@pytest.fixture
def running(own_process):
    """Gives the processes that have not ended yet."""
    return lambda: [process for process in own_process if process.poll() is None]


def without_idle(events):
    return [event for event in events if not isinstance(event, Idle)]


def test_it_learns_the_very_same(em_volumes, running):
    here = list(core.iter_train(*em_volumes, CONFIG))
    there = without_idle(run_in_process(core.iter_train, *em_volumes, CONFIG))
    assert [type(event) for event in there] == [type(event) for event in here]
    losses = [[event.loss for event in events if isinstance(event, core.Stepped)] for events in (here, there)]
    assert len(losses[0]) == 8
    assert losses[0] == losses[1]
    ours, theirs = (events[-1].model.net.state_dict() for events in (here, there))
    assert all((ours[name] == theirs[name]).all() for name in ours)
    assert running() == []


def test_a_process_that_was_prepared_learns_the_very_same(em_volumes, own_process):
    prepare()
    waiting = psutil.Process(own_process[0].pid)
    assert any(waiting.cpu_percent(interval=0.5) < 5 for _ in range(120))
    here, there = (
        [event.loss for event in events if isinstance(event, core.Stepped)]
        for events in (core.iter_train(*em_volumes, CONFIG), run_in_process(core.iter_train, *em_volumes, CONFIG))
    )
    assert len(own_process) == 1
    assert here == there


def test_a_process_that_was_prepared_and_died_is_replaced(em_volumes, own_process):
    prepare()
    dead = own_process.pop()
    dead.kill()
    dead.wait()
    *_, done = run_in_process(core.iter_train, *em_volumes, CONFIG)
    assert isinstance(done, core.Done)


def test_a_closed_panel_leaves_no_process(bench, own_process):
    widget = bench.open("Train teacher")
    assert len(own_process) == 1
    bench.viewer.window.remove_dock_widget(widget.native)
    bench.wait(lambda: own_process[0].poll() == 0)


def test_only_slices_that_are_read_travel(tiny_em, own_process):
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
    *_, done = run_in_process(core.iter_train, core.open_volume(raw), core.open_volume(labels), config)
    assert isinstance(done, core.Done)
    assert raw.read == {11, 500, 801}
    assert raw.processes == labels.processes == {os.getpid()}


def test_a_subclass_of_a_volume_stays_here_too(em_volumes, own_process, notified):
    class Registered(core.Volume):
        """By a user's script, so that the other process cannot import it."""

    raw, labels = (Registered(volume.name, volume.source, volume.voxel_size) for volume in em_volumes)
    *_, done = run_in_process(core.iter_train, raw, labels, CONFIG)
    assert isinstance(done, core.Done)
    assert len(own_process) == 1
    assert notified == []


def test_its_errors_come_back(em_volumes, running):
    raw, _ = em_volumes
    empty = core.open_volume(np.zeros((8, 96, 96), np.uint8), name="empty")
    with pytest.raises(core.UnlabelledError, match=r"^empty has no foreground") as caught:
        without_idle(run_in_process(core.iter_train, raw, empty, CONFIG))
    assert "splits.py" in caught.value.__notes__[0]  # where over there
    assert running() == []


def test_a_slice_that_cannot_be_read_is_named(em_volumes, own_process):
    class Broken:
        shape, dtype = (8, 96, 96), np.dtype("uint8")

        def __getitem__(self, key):
            raise OSError("the disk is gone")

    _, labels = em_volumes
    with pytest.raises(core.VolumeError, match=r"cannot read slice z=\d of em: the disk is gone"):
        without_idle(run_in_process(core.iter_train, core.open_volume(Broken(), name="em"), labels, CONFIG))


def test_closing_ends_it_in_the_middle(em_volumes, own_process):
    events = run_in_process(core.iter_train, *em_volumes, ENDLESS)
    next(event for event in events if isinstance(event, core.Stepped))
    events.close()
    assert [process.returncode for process in own_process] == [0]


def test_closing_ends_it_before_it_has_begun(em_volumes, own_process):
    events = run_in_process(core.iter_train, *em_volumes, ENDLESS)
    assert isinstance(next(events), Idle)
    clock = time.perf_counter()
    events.close()
    assert time.perf_counter() - clock < module._KILL_TIMEOUT
    assert [process.returncode for process in own_process] == [0]


def test_closing_ends_it_in_a_step_that_takes_too_long(own_process, tmp_path, monkeypatch):
    task = "import threading\ndef steps():\n    yield 1\n    threading.Event().wait(600)\n"
    (tmp_path / "long_steps.py").write_text(task)
    monkeypatch.syspath_prepend(tmp_path)
    events = run_in_process(importlib.import_module("long_steps").steps)
    assert next(event for event in events if not isinstance(event, Idle)) == 1
    clock = time.perf_counter()
    events.close()
    assert time.perf_counter() - clock < module._KILL_TIMEOUT
    assert [process.returncode for process in own_process] == [0]


def test_nothing_of_the_current_folder_is_imported(em_volumes, own_process, tmp_path, monkeypatch):
    """Where napari was started is often a stranger's folder."""
    for name in ("json", "numpy", "torch", "napari_kdunet"):
        (tmp_path / f"{name}.py").write_text("open('ran', 'w')\nraise SystemExit")
    monkeypatch.chdir(tmp_path)
    *_, done = run_in_process(core.iter_train, *em_volumes, CONFIG)
    assert isinstance(done, core.Done)
    assert not (tmp_path / "ran").exists()


def test_it_does_not_run_ahead_of_a_pause(em_volumes, running):
    events = run_in_process(core.iter_train, *em_volumes, ENDLESS)
    first = next(event for event in events if isinstance(event, core.Stepped))
    process = psutil.Process(running()[0].pid)
    assert any(process.cpu_percent(interval=0.3) < 15 for _ in range(60))
    events.close()
    assert first.step == 1


def test_without_its_parent_it_ends_and_can_be_resumed(tiny_em, tmp_path):
    """The pipes of a parent that dies are closed by the system."""
    raw, labels = (np.array(each) for each in tiny_em)
    out = tmp_path / "model.safetensors"
    child = subprocess.Popen(
        [sys.executable, "-m", "napari_kdunet.widgets.shared.process_main"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    task = pickle.dumps((core.iter_train, (raw, labels, VALIDATED), {"out": out}))
    child.stdin.write(pickle.dumps(("task", task)))
    child.stdin.flush()
    while not isinstance((event := pickle.load(child.stdout)[1]), core.Validated):
        child.stdin.write(pickle.dumps(("consumed",)))
        child.stdin.flush()
    for pipe in (child.stdin, child.stdout):
        pipe.close()
    errors = child.stderr.read()
    child.stderr.close()
    assert (child.wait(60), errors) == (0, b"")
    events = core.iter_train(raw, labels, VALIDATED, out=out, resume=True)
    assert next(each for each in events if isinstance(each, core.Stepped)).step > event.step
    events.close()


def test_a_process_that_is_killed_is_told_of(em_volumes, own_process):
    events = run_in_process(core.iter_train, *em_volumes, ENDLESS)
    next(event for event in events if isinstance(event, core.Stepped))
    own_process.pop().kill()
    with pytest.raises(core.TrainingError, match=r"process has ended .* memory"):
        without_idle(events)


def test_what_cannot_be_pickled_runs_here_and_the_user_is_told(em_volumes, own_process, notified):
    def steps(*args):  # no module has it
        yield from core.iter_train(*args)

    assert isinstance(next(run_in_process(steps, *em_volumes, CONFIG)), core.Started)
    assert own_process == []
    assert len(notified) == 1
    assert "cannot be sent to another process" in notified[0]
    assert len(notified[0]) < 300


def test_another_fault_while_pickling_is_raised(own_process, notified):
    class Faulty:
        def __reduce__(self):
            raise ZeroDivisionError("a fault of its own")

    with pytest.raises(ZeroDivisionError, match="of its own"):
        next(run_in_process(core.iter_train, Faulty(), None))
    assert own_process == []
    assert notified == []


def test_a_widget_trains_distils_and_previews(bench, own_process):
    teacher = bench.open("Train teacher", k=2)
    teacher.view.start_button.click()
    bench.wait(lambda: bool(own_process))
    bench.finish(teacher)
    assert teacher.view.status.text().startswith("Done")
    bench.assert_shown_and_gone(teacher)
    student = bench.open("Distil student")
    student.view.start_button.click()
    bench.finish(student)
    assert student.view.status.text().startswith("Done")
    assert models.get(student.model_name).net.k == 1
    bench.assert_shown_and_gone(student)
    assert [process.returncode for process in own_process[:2]] == [0, 0]
    assert len(own_process) == 3, "the third waits for the next start"


@pytest.mark.parametrize("how", ["stop", "dock closed", "window closed"])
def test_a_training_that_is_cut_short_ends_cleanly(bench, own_process, how):
    widget = bench.open("Train teacher", steps=None, minutes=60.0)
    widget.view.start_button.click()
    bench.wait_for(widget, "training", steps=1, validations=0)
    if how == "stop":
        bench.stop(widget)
    elif how == "dock closed":
        bench.viewer.window.remove_dock_widget(widget.native)
    else:
        bench.viewer.close()
    bench.wait(lambda: own_process[0].poll() is not None)
    assert own_process[0].returncode == 0


def test_strokes_reach_a_live_training(bench, own_process):
    widget = bench.open("Train teacher")
    widget.add_strokes()
    widget.live.value = True
    strokes, truth = bench.viewer.layers["em strokes"], bench.mito.data
    widget.view.start_button.click()
    bench.wait(lambda: widget.view.status.text().startswith("Waiting"))
    for z in (2, 5):
        strokes.data = np.where((np.arange(8) == z)[:, None, None], np.where(truth > 0, 2, 1), 0).astype(np.uint8)
        bench.wait_for(widget, "live", steps=3, validations=1)
        bench.wait(lambda z=z: models.get(widget.model_name).summary["validation"]["slices"] == [z])
    bench.stop(widget)
    assert own_process[0].returncode == 0


def test_a_process_that_died_is_notified(bench, own_process, notified):
    widget = bench.open("Train teacher", steps=None, minutes=60.0)
    widget.view.start_button.click()
    bench.wait_for(widget, "training", steps=1, validations=0)
    own_process.pop().kill()
    bench.finish(widget)
    bench.assert_ready(widget)
    assert len(notified) == 1
    assert "process has ended" in notified[0]


def test_switched_off_it_is_a_thread(em_volumes, own_process, monkeypatch):
    monkeypatch.setattr(module, "OWN_PROCESS", False)
    assert isinstance(next(run_in_process(core.iter_train, *em_volumes, CONFIG)), core.Started)
    assert own_process == []
