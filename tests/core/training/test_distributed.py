"""Training in two processes on the CPU, against one with twice the batch."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from napari_kdunet import core
from napari_kdunet.core.data.dataset import prepare

SCRIPT = Path(__file__).with_name("two_processes.py")
spec = importlib.util.spec_from_file_location("two_processes", SCRIPT)
two = importlib.util.module_from_spec(spec)
spec.loader.exec_module(two)


@pytest.fixture(scope="module")
def volumes(blobs):
    return blobs()


@pytest.fixture(scope="module")
def seen(volumes, tmp_path_factory):
    """What each of two processes saw, and the folder that they worked in."""
    folder = tmp_path_factory.mktemp("two")
    for name, volume in zip(("raw", "labels"), volumes, strict=True):
        np.save(folder / f"{name}.npy", volume)
    done = subprocess.run([sys.executable, SCRIPT, folder], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return [json.loads((folder / f"seen-{rank}.json").read_text()) for rank in (0, 1)], folder


def alike(found, expected):
    """Whether two traces are equal but for rounding."""
    assert [each[:2] for each in found] == [each[:2] for each in expected]
    for one, other in zip(found, expected, strict=True):
        for a, b in zip(one[2:], other[2:], strict=True):
            assert a == pytest.approx(b, rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("name", ["plain", "taught", "kept"])
def test_two_processes_are_one_with_twice_the_batch(seen, volumes, name):
    """The loss of each step, the validations and the weights: of labels, of a teacher, and of strokes and a start."""
    (first, second), _ = seen
    raw, labels = volumes
    sources = {
        "plain": lambda: core.iter_train(raw, labels, two.PLAIN),
        "taught": lambda: core.iter_distill(two.teacher(), raw, labels, two.TAUGHT),
        "kept": lambda: core.iter_train(raw, two.strokes(labels), two.KEPT, start=two.teacher()),
    }
    expected = list(two.trace(sources[name]()))
    assert first[name] == second[name]
    alike(first[name], expected)
    losses = [each[2] for each in first[name] if each[0] == "step"]
    assert len(losses) == (20 if name == "plain" else 6)
    alone = half = two.half(two.PLAIN)
    if name == "plain":  # half the batch in one process is another training: the comparison can fail
        alone = [each[2] for each in two.trace(core.iter_train(raw, labels, half)) if each[0] == "step"]
        assert max(abs(a - b) for a, b in zip(alone, losses, strict=True)) > 0.02


def test_one_model_file(seen):
    (first, _), folder = seen
    assert "plain.safetensors" in first["files"]
    assert "plain.resume.safetensors" not in first["files"]
    model = core.load_model(folder / "plain.safetensors")
    assert two.weights(model) == first["plain"][-1][3]
    assert model.summary["processes"] == 2
    assert model.summary["settings"]["batch"] == 4
    assert not list(folder.glob(".*"))


def test_minutes_end_at_the_same_step(seen):
    (first, second), _ = seen
    assert first["timed"][-1][0] == "done"
    assert first["timed"] == second["timed"]


def test_a_stop_ends_both_and_resuming_equals_never_having_stopped(seen):
    """With batch normalisation, whose statistics are the same in both."""
    (first, second), _ = seen
    assert first["whole"] == second["whole"]
    assert first["stopped"][-1] == ["step", 3, first["whole"][3][2]]
    assert second["stopped"][:-1] == first["stopped"]
    assert second["stopped"][-1][0] == "TrainingError"
    assert "stopped.resume.safetensors" in first["files"]
    assert first["stopped"] + first["resumed"] == first["whole"]
    assert first["resumed"] == second["resumed"]


def test_a_loss_that_is_not_finite_in_one_ends_both(seen):
    both, _ = seen
    for each in both:
        assert len(each["diverged"]) == 4
        assert each["diverged"][-1][0] == "DivergedError"


def test_one_that_dies_does_not_make_the_other_wait(seen):
    (first, second), _ = seen
    assert "left alone" not in second
    assert first["left alone"][-1][0] == "TrainingError"
    assert "another process" in first["left alone"][-1][1]


@pytest.mark.parametrize("share", [0.0, 0.5])
def test_the_parts_of_a_batch_are_the_batch(volumes, quick, share):
    raw, labels = volumes
    settings = {"slices": (0, 1, 2, 3), "val_share": 0.0, "elastic": 4.0, "mode": "mixed", "device": "cpu"}
    pools = [
        prepare(
            raw, labels, quick(batch=12 // n, **settings), torch.device("cpu"), teacher=two.teacher(), processes=n
        ).sampler
        for n in (1, 3)
    ]
    whole = pools[0].batch(5, share, teacher=True)
    for rank in range(3):
        part = pools[1].batch(5, share, teacher=True, rank=rank)
        for name in ("image", "target", "teacher_logits"):
            assert torch.equal(getattr(part, name), getattr(whole, name)[rank::3])


def test_cores_are_shared(monkeypatch):
    from napari_kdunet.core.devices import cores

    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    assert cores() == 8
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert cores() == 2
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "16")
    assert cores() == 1
