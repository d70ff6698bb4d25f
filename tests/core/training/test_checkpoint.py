"""Stopping at any event, and going on as if nothing had happened: bit for bit."""

from __future__ import annotations

import copy
import json
import os
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from napari_kdunet import core

EVENTS = 11  # of six steps, three validations: all after which a consumer may stop, `Done` left out


def trace(events) -> list[tuple[Any, ...]]:
    """What matters of the events: all but time, paths and `Started`."""
    found: list[tuple[Any, ...]] = []
    for e in events:
        if isinstance(e, core.Stepped):
            found.append(("step", e.step, e.loss, e.lr))
        elif isinstance(e, core.Validated):
            found.append(("validated", e.step, e.ce, e.iou, e.threshold, e.best))
        elif isinstance(e, core.Done):
            weights = torch.cat([v.double().ravel() for v in e.model.net.state_dict().values()])
            found.append(("done", e.step, e.iou, e.model.threshold, e.collapsed, weights.numpy().tobytes()))
    return found


@pytest.fixture(scope="module")
def settings(quick):
    return quick(k=2, depth=2, steps=6, validations=3, batch=4, lr=0.02, patience=9)


@pytest.fixture(scope="module")
def never_stopped(blobs, settings):
    return trace(core.iter_train(*blobs(), settings))


@pytest.mark.parametrize("stop", range(EVENTS + 1))
def test_resuming_equals_never_having_stopped(blobs, settings, never_stopped, tmp_path, stop):
    out = tmp_path / "m.safetensors"
    events = core.iter_train(*blobs(), settings, out=out)
    before = [next(events) for _ in range(stop + 1)]
    events.close()
    assert (tmp_path / "m.resume.safetensors").is_file()
    again = core.iter_train(*blobs(), settings, out=out, resume=True)
    started = next(again)
    assert isinstance(started, core.Started)
    assert started.step == before[-1].step
    assert trace(before) + trace(again) == never_stopped


def test_stopped_again_and_again(blobs, settings, never_stopped, tmp_path):
    out, seen = tmp_path / "m.safetensors", []
    for turn in range(40):
        events = core.iter_train(*blobs(), settings, out=out, resume=turn > 0)
        seen += [next(events), next(events)]
        events.close()
        if isinstance(seen[-1], core.Done):
            break
    assert trace(seen) == never_stopped


@pytest.mark.parametrize("form", [{"ema": 0.0}, {"bn": False, "k": 1}, {"schedule": "constant", "clip": 0.0}, {"k": 8}])
def test_other_forms(blobs, settings, tmp_path, form):
    config, out = replace(settings, **form), tmp_path / "m.safetensors"
    expected = trace(core.iter_train(*blobs(), config))
    events = core.iter_train(*blobs(), config, out=out)
    before = [next(events) for _ in range(7)]
    events.close()
    assert trace(before) + trace(core.iter_train(*blobs(), config, out=out, resume=True)) == expected


@pytest.mark.parametrize("mode", ["mixed", "soft", "sequential"])
@pytest.mark.parametrize("stop", [3, 7])
def test_distillation(blobs, quick, model, tmp_path, mode, stop):
    teacher, out = model(2, depth=2), tmp_path / "m.safetensors"
    config = quick(depth=2, steps=6, validations=3, mode=mode, slices=(0, 1, 2, 3))
    expected = trace(core.iter_distill(teacher, *blobs(), config))
    events = core.iter_distill(teacher, *blobs(), config, out=out)
    before = [next(events) for _ in range(stop)]
    events.close()
    assert trace(before) + trace(core.iter_distill(teacher, *blobs(), config, out=out, resume=True)) == expected


@pytest.mark.parametrize("stop", range(3, 9))
def test_a_student_that_teaches_itself(blobs, quick, model, tmp_path, stop):
    """Stopped before, at and after the beginning of each round, of which the second and third are its own."""
    teacher, out = model(2, depth=2), tmp_path / "m.safetensors"
    config = quick(depth=2, steps=6, validations=3, mode="soft", rounds=3, lr=0.02)
    expected = trace(core.iter_distill(teacher, blobs()[0], None, config))
    events = core.iter_distill(teacher, blobs()[0], None, config, out=out)
    before = [next(events) for _ in range(stop)]
    events.close()
    assert trace(before) + trace(core.iter_distill(teacher, blobs()[0], None, config, out=out, resume=True)) == expected


def test_minutes_go_on_where_they_were(blobs, quick, tmp_path):
    config, out = quick(minutes=0.01, validations=2), tmp_path / "m.safetensors"
    events = core.iter_train(*blobs(), config, out=out)
    stopped = next(e for e in events if isinstance(e, core.Stepped) and e.fraction > 0.2)
    events.close()
    first, second, *_ = again = list(core.iter_train(*blobs(), config, out=out, resume=True))
    assert first.step == stopped.step
    assert second.step in (stopped.step, stopped.step + 1)
    assert second.seconds > stopped.seconds
    assert again[-1].seconds >= 0.6


def test_what_a_stop_leaves(blobs, quick, tmp_path):
    """The best model, if there was one; beside it the state; and nothing but the model at the end."""
    out = tmp_path / "m.safetensors"
    config = quick(k=2, depth=2, steps=40, batch=4, validations=4)

    def names() -> list[str]:
        return sorted(p.name for p in tmp_path.iterdir())

    events = core.iter_train(*blobs(), config, out=out)
    next(events)
    assert names() == [".m.safetensors.lock"]
    saved = [e for e in (next(events) for _ in range(36)) if isinstance(e, core.Saved)]
    assert [e.path.name for e in saved] == ["m.resume.safetensors"] * 3
    assert names() == [".m.safetensors.lock", "m.resume.safetensors"]
    events.close()
    assert names() == ["m.resume.safetensors", "m.safetensors"]
    assert core.load_model(out).summary["validation"]["step"] in (10, 20, 30)
    *_, done = core.iter_train(*blobs(), config, out=out, resume=True)
    assert done.path == out
    assert names() == ["m.safetensors"]
    assert core.load_model(out).summary["validation"]["iou"] == done.iou


def test_patience_may_change_when_a_training_is_resumed(blobs, quick, tmp_path):
    """Validations before the stop count: no step so far depends on it."""
    out = tmp_path / "m.safetensors"
    hopeless = quick(steps=50, validations=50, lr=1e-9, prior_bias=False, patience=9)
    events = core.iter_train(*blobs(), hopeless, out=out)
    stale = 0
    while stale < 3:
        event = next(events)
        if isinstance(event, core.Validated):
            stale = 0 if event.best else stale + 1
    events.close()
    again = [type(event) for event in core.iter_train(*blobs(), replace(hopeless, patience=4), out=out, resume=True)]
    assert again == [core.Started, core.Stepped, core.Validated, core.Saved, core.Done]


def test_stopping_before_anything_was_learnt(blobs, settings, tmp_path):
    out = tmp_path / "m.safetensors"
    unasked = core.iter_train(*blobs(), settings, out=out)
    unasked.close()
    assert not list(tmp_path.iterdir())
    without_out = core.iter_train(*blobs(), settings)
    next(without_out), next(without_out)
    without_out.close()


def test_a_stop_leaves_no_thread(blobs, settings):
    import threading

    events = core.iter_train(*blobs(), settings)
    next(events), next(events)
    events.close()
    assert not [t for t in threading.enumerate() if t.name.startswith("kdunet-batches")]


def test_errors(blobs, settings, quick, tmp_path, one_line):
    out = tmp_path / "m.safetensors"
    with one_line(core.ConfigError, "resume"):
        core.iter_train(*blobs(), settings, resume=True)
    with one_line(core.ModelError, "m.resume.safetensors"):
        core.iter_train(*blobs(), settings, out=out, resume=True)
    events = core.iter_train(*blobs(), settings, out=out)
    next(events), next(events)
    events.close()
    state = tmp_path / "m.resume.safetensors"
    for change in ({"lr": 0.5}, {"seed": 3}, {"k": 1}, {"validations": 2}):
        with one_line(core.ConfigError, *change, "other settings"):
            core.iter_train(*blobs(), replace(settings, **change), out=out, resume=True)
    with one_line(core.ConfigError, "tau"):
        distil = core.DistillConfig(**settings.to_dict())
        core.iter_distill(blobs()[1] > 0, *blobs(), distil, out=out, resume=True)
    for change in ({"threads": 2}, {"patience": None}):  # what may change
        core.iter_train(*blobs(), replace(settings, **change), out=out, resume=True).close()
    with one_line(core.ModelError, str(state)):
        core.load_model(state)
    state.write_bytes(state.read_bytes()[:-100])
    with one_line(core.ModelError, str(state)):
        core.iter_train(*blobs(), settings, out=out, resume=True)
    core.Model(core.KUNet(1)).save(state)
    with one_line(core.ModelError, "not the state"):
        core.iter_train(*blobs(), settings, out=out, resume=True)


def test_other_data_are_not_gone_on_with(blobs, quick, model, tmp_path, one_line):
    """Of the same shape and settings: one other pixel of an image, of labels or of a teacher is found."""
    out, (raw, labels) = tmp_path / "m.safetensors", blobs((6, 32, 32))
    config = core.DistillConfig(**quick(k=1, depth=1, steps=4, val_share=0.25).to_dict())
    teacher, volume = model(1, depth=1), (labels > 0).astype(np.float32)
    other = copy.deepcopy(teacher)
    with torch.no_grad():
        other.net.head.bias += 1

    def changed(array, z):
        array = array.copy()
        array[z, 3, 3] = 1 - (array[z, 3, 3] > 0)
        return array

    for first, same, others in (
        (
            (teacher, raw, labels),
            (copy.deepcopy(teacher), raw.copy(), labels.copy()),
            [(other, raw, labels), (replace(teacher, pixel_size=9.0), raw, labels)],
        ),
        ((volume, raw, None), (volume.copy(), raw, None), [(changed(volume, 4), raw, None)]),
        (
            (teacher, raw, labels),
            (teacher, raw, labels),
            [(teacher, changed(raw, z), labels) for z in (0, 3, 5)]
            + [(teacher, raw, changed(labels, z)) for z in (0, 3, 5)]
            + [(teacher, core.open_volume(raw, voxel_size=(5, 5, 5)), labels)]
            + [(teacher, core.open_volume(raw, sample=np.ones(raw.shape, np.uint8)), labels)],
        ),
    ):
        events = core.iter_distill(*first, config, out=out)
        next(events), next(events)
        events.close()
        for given in others:
            with one_line(core.ConfigError, str(out.with_suffix("")), "from other data", "start anew"):
                core.iter_distill(*given, config, out=out, resume=True)
        assert next(core.iter_distill(*same, config, out=out, resume=True)).step == 1


@pytest.mark.parametrize("z", [0, 7, 22])
def test_one_corrected_slice_of_many_is_noticed(blobs, quick, tmp_path, one_line, z):
    raw, labels = blobs((40, 32, 32))
    config = quick(k=1, depth=1, steps=4)
    events = core.iter_train(raw, labels, config, out=tmp_path / "m.safetensors")
    next(events), next(events)
    events.close()
    labels = labels.copy()
    labels[z, 5:9, 5:9] = 1 - labels[z, 5:9, 5:9]
    with one_line(core.ConfigError, "from other data"):
        core.iter_train(raw, labels, config, out=tmp_path / "m.safetensors", resume=True)


def test_two_trainings_to_one_file(blobs, quick, tmp_path, one_line):
    """The second is refused before its first event, with --resume too; the first goes on undisturbed."""
    out, (raw, labels) = tmp_path / "m.safetensors", blobs((6, 32, 32))
    config, soft = quick(k=1, depth=1, steps=40, validations=4), quick(k=1, depth=1, steps=4, tau=4.0)
    first = core.iter_train(raw, labels, config, out=out)
    for event in first:
        if isinstance(event, core.Saved):
            break
    state = (tmp_path / "m.resume.safetensors").read_bytes()
    for second in (
        lambda: core.iter_train(raw, labels, config, out=out),
        lambda: core.iter_train(raw, labels, config, out=out, resume=True),
        lambda: core.iter_distill(np.zeros(raw.shape, np.float32), raw, labels, soft, out=out),
    ):
        with one_line(core.OutputError, str(out), f"process {os.getpid()} on ", "is writing it"):
            next(iter(second()))
    assert (tmp_path / "m.resume.safetensors").read_bytes() == state
    assert [type(event) for event in first][-1] is core.Done
    assert [path.name for path in tmp_path.iterdir()] == [out.name]
    again = core.iter_train(raw, labels, config, out=out)
    next(again)
    again.close()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.resume.safetensors", out.name]


def test_a_training_that_was_taken_for_dead_writes_nothing(blobs, quick, tmp_path, one_line):
    out, (raw, labels) = tmp_path / "m.safetensors", blobs((6, 32, 32))
    events = core.iter_train(raw, labels, quick(k=1, depth=1), out=out)
    next(events)
    lock = tmp_path / ".m.safetensors.lock"
    about = {"host": "node7", "pid": 1, "start": 1, "machine": "00000000"}
    lock.write_text(json.dumps({"token": "another", "process": about}))
    with one_line(core.OutputError, str(out), "process 1 on node7 has taken over"):
        list(events)
    assert [path.name for path in tmp_path.iterdir()] == [lock.name]


@pytest.mark.parametrize("z", [1, 3])
def test_closed_and_gone_on_with_after_a_stroke(blobs, quick, tmp_path, z):
    """On a slice that had strokes, and on one that had none: the best model is written, and the data are the same."""
    raw, full = blobs((4, 32, 32))
    labels, out, edited = np.zeros_like(full), tmp_path / "m.safetensors", []
    labels[1, :, :12] = full[1, :, :12] + 1
    config = quick(k=2, depth=2, steps=40, validations=4, batch=4, ignore=0, val_share=0)

    def changed():
        these, edited[:] = edited[:], []
        return these

    events = core.iter_train(raw, labels, config, out=out, edited=changed)
    for event in events:
        if isinstance(event, core.Validated) and event.step == 30:
            assert event.iou > 0.3
            labels[z, :, 12:20] = full[z, :, 12:20] + 1
            edited.append(z)
        if isinstance(event, core.Stepped) and event.step == 32:
            break
    events.close()
    assert core.load_model(out).summary["validation"]["step"] <= 30
    resumed = list(core.iter_train(raw, labels, config, out=out, resume=True))
    assert resumed[0].step == 32
    assert resumed[0].labelled_slices == tuple(sorted({1, z}))


def test_memory_is_part_of_what_is_gone_on_with(blobs, settings, tmp_path, one_line):
    """It decides which windows are learnt from."""
    out = tmp_path / "m.safetensors"
    events = core.iter_train(*blobs(), settings, out=out)
    next(events)
    events.close()
    with one_line(core.ConfigError, "memory"):
        list(core.iter_train(*blobs(), replace(settings, memory=0.001), out=out, resume=True))
