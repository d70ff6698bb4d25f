"""Trainings in a process of their own: the same events, a clean end, and a parent that survives whatever happens."""

import dataclasses
import os
import pickle
import subprocess
import sys
import time

import numpy as np
import psutil
import pytest

import plain_tasks
from napari_kdunet import core
from napari_kdunet.widgets.shared.models import models
from napari_kdunet.widgets.workers import process as module
from napari_kdunet.widgets.workers.process import Idle, prepare, run_in_process

CONFIG = core.TrainConfig(k=1, patch=32, batch=2, steps=8, validations=2, slices=(11, 500, 801), device="cpu")
ENDLESS = core.TrainConfig(k=1, patch=32, batch=2, minutes=60, validations=10_000, device="cpu")
VALIDATED = core.TrainConfig(k=1, patch=32, batch=2, steps=100_000, validations=50_000, device="cpu")


@pytest.fixture
def em_volumes(tiny_em):
    raw, labels = tiny_em
    return core.open_volume(raw, voxel_size=(10.0,) * 3, name="em"), core.open_volume(labels, name="mito")


def without_idle(events):
    return [event for event in events if not isinstance(event, Idle)]


class Watched:
    """A thousand slices that know which of them were read, and by which processes."""

    shape, dtype = (1000, 96, 96), np.dtype("uint8")

    def __init__(self, data):
        self.data, self.read, self.processes = data, set(), set()

    def __getitem__(self, key):
        self.read.add(key[0])
        self.processes.add(os.getpid())
        return self.data[key[0] % 8, *key[1:]]


@pytest.fixture(scope="module")
def here(tiny_em):
    """The events of a training in this process."""
    return list(core.iter_train(*(core.open_volume(Watched(each)) for each in tiny_em), CONFIG))


@pytest.fixture(scope="module")
def there(tiny_em, own_processes, tmp_path_factory):
    """The events of the same training in another process, its volumes, and the folder that it was started in."""
    folder = tmp_path_factory.mktemp("strange")
    for name in ("json", "numpy", "torch", "napari_kdunet"):
        (folder / f"{name}.py").write_text("open('ran', 'w')\nraise SystemExit")
    watched = [Watched(each) for each in tiny_em]
    with own_processes(tmp_path_factory.mktemp("logs")) as processes, pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        events = without_idle(run_in_process(core.iter_train, *map(core.open_volume, watched), CONFIG))
        assert [process.returncode for process in processes] == [0]
    return events, watched, folder


def losses(events):
    return [event.loss for event in events if isinstance(event, core.Stepped)]


def test_it_learns_the_very_same(here, there):
    there, *_ = there
    assert [type(event) for event in there] == [type(event) for event in here]
    assert len(losses(here)) == 8
    assert losses(here) == losses(there)
    ours, theirs = (events[-1].model.net.state_dict() for events in (here, there))
    assert all((ours[name] == theirs[name]).all() for name in ours)


def test_only_slices_that_are_read_travel(there):
    _, (raw, labels), _ = there
    assert raw.read == {11, 500, 801}
    assert raw.processes == labels.processes == {os.getpid()}


def test_nothing_of_the_current_folder_is_imported(there):
    """Where napari was started is often a stranger's folder."""
    events, _, folder = there
    assert isinstance(events[-1], core.Done)
    assert not (folder / "ran").exists()


def test_a_process_that_was_prepared_learns_the_very_same(tiny_em, here, own_process):
    prepare()
    waiting = psutil.Process(own_process[0].pid)
    assert any(waiting.cpu_percent(interval=0.5) < 5 for _ in range(120))
    there = run_in_process(core.iter_train, *(core.open_volume(Watched(each)) for each in tiny_em), CONFIG)
    assert losses(there) == losses(here)
    assert len(own_process) == 1


def test_a_process_that_was_prepared_and_died_is_replaced(em_volumes, own_process):
    prepare()
    dead = own_process.pop()
    dead.kill()
    dead.wait()
    raw, _ = em_volumes
    assert without_idle(run_in_process(plain_tasks.sums, raw)) == list(plain_tasks.sums(raw))
    assert len(own_process) == 1


def test_a_closed_panel_leaves_no_process(bench, own_process):
    widget = bench.open("Train teacher")
    assert len(own_process) == 1
    bench.viewer.window.remove_dock_widget(widget.native)
    bench.wait(lambda: own_process[0].poll() == 0)


def test_a_subclass_of_a_volume_stays_here_too(em_volumes, own_process, notified):
    class Registered(core.Volume):
        """By a user's script, so that the other process cannot import it."""

    raw, _ = em_volumes
    registered = Registered(raw.name, raw.source, raw.voxel_size)
    assert without_idle(run_in_process(plain_tasks.sums, registered)) == list(plain_tasks.sums(raw))
    assert len(own_process) == 1
    assert notified == []


def test_what_is_known_of_a_volume_goes_with_it(em_volumes, own_process):
    raw, _ = em_volumes
    mask = core.open_volume(np.ones(raw.shape, np.uint8), name="mask")
    known = core.open_volume(raw, name="em", voxel_size=(30, 8, 8), sample=mask, invert=True)
    known = dataclasses.replace(known, threshold=0.3, notes=("seen from afar",))
    (told,) = without_idle(run_in_process(plain_tasks.describe, known))
    assert told == plain_tasks.description(known)
    assert told["sample"] == int(np.prod(raw.shape))
    assert (told["inverted"], told["threshold"], told["notes"]) == (True, 0.3, ("seen from afar",))


def test_its_errors_come_back(own_process):
    with pytest.raises(core.UnlabelledError, match=r"^empty has no foreground") as caught:
        without_idle(run_in_process(plain_tasks.unlabelled, "empty"))
    assert "plain_tasks.py" in caught.value.__notes__[0]  # where over there
    assert [process.returncode for process in own_process] == [0]


def test_a_slice_that_cannot_be_read_ends_a_training_and_is_named(em_volumes, own_process):
    class Broken:
        shape, dtype = (8, 96, 96), np.dtype("uint8")

        def __getitem__(self, key):
            raise OSError("the disk is gone")

    _, labels = em_volumes
    with pytest.raises(core.VolumeError, match=r"cannot read slice z=\d of em: the disk is gone"):
        without_idle(run_in_process(core.iter_train, core.open_volume(Broken(), name="em"), labels, ENDLESS))


def test_closing_ends_it_in_the_middle(own_process, tmp_path):
    events = run_in_process(plain_tasks.endless, tmp_path / "log")
    assert next(event for event in events if not isinstance(event, Idle)) == 1
    events.close()
    assert [process.returncode for process in own_process] == [0]
    assert (tmp_path / "log").read_text().endswith("closed\n")


def test_closing_ends_it_before_it_has_begun(em_volumes, own_process):
    events = run_in_process(core.iter_train, *em_volumes, ENDLESS)
    assert isinstance(next(events), Idle)
    clock = time.perf_counter()
    events.close()
    assert time.perf_counter() - clock < module._KILL_TIMEOUT
    assert [process.returncode for process in own_process] == [0]


def test_closing_ends_it_in_a_step_that_takes_too_long(own_process):
    events = run_in_process(plain_tasks.stuck)
    assert next(event for event in events if not isinstance(event, Idle)) == 1
    clock = time.perf_counter()
    events.close()
    assert time.perf_counter() - clock < module._KILL_TIMEOUT
    assert [process.returncode for process in own_process] == [0]


def test_it_does_not_run_ahead_of_a_pause(own_process, tmp_path):
    events = run_in_process(plain_tasks.endless, tmp_path / "log")
    assert next(event for event in events if not isinstance(event, Idle)) == 1
    process = psutil.Process(own_process[0].pid)
    assert any(process.cpu_percent(interval=0.3) < 15 for _ in range(60))
    assert len((tmp_path / "log").read_text().split()) <= 4  # two are sent ahead, and one waits to be
    events.close()


def test_without_its_parent_it_ends_and_can_be_resumed(tiny_em, tmp_path):
    """The pipes of a parent that dies are closed by the system."""
    raw, labels = (np.array(each) for each in tiny_em)
    out = tmp_path / "model.safetensors"
    child = subprocess.Popen(
        [sys.executable, "-m", "napari_kdunet.widgets.workers.process_main"],
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


_EXITS = """
import threading

import torch

import plain_tasks
from napari_kdunet.widgets.workers.process import Idle, prepare, run_in_process

begun = threading.Event()


def consume():
    for event in run_in_process(plain_tasks.slow):
        if not isinstance(event, Idle):
            begun.set()


threading.Thread(target=consume, daemon=True).start()
begun.wait()
prepare()
"""


def test_python_may_end_while_an_event_is_received():
    """A thread that is within torch by then would abort it."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    ended = subprocess.run([sys.executable, "-c", _EXITS], capture_output=True, text=True, env=environment)
    assert (ended.returncode, ended.stderr) == (0, "")


def test_a_process_that_is_killed_is_told_of(own_process, tmp_path):
    events = run_in_process(plain_tasks.endless, tmp_path / "log")
    next(event for event in events if not isinstance(event, Idle))
    own_process.pop().kill()
    with pytest.raises(core.TrainingError, match=r"process has ended .* memory"):
        without_idle(events)


def test_what_cannot_be_pickled_runs_here_and_the_user_is_told(em_volumes, own_process, notified):
    def steps(*args):  # no module has it
        yield from core.iter_train(*args)

    assert isinstance(next(run_in_process(steps, *em_volumes, ENDLESS)), core.Started)
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
    assert isinstance(next(run_in_process(core.iter_train, *em_volumes, ENDLESS)), core.Started)
    assert own_process == []
