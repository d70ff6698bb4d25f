"""The command `adapt` from end to end: a student of a volume that nobody has labelled."""

from __future__ import annotations

import pytest

from command_line import SMALL, run
from folders import names
from napari_kdunet import core
from napari_kdunet.core.config.distillation import ADAPTING


def test_adapt(data, teacher, tmp_path):
    path = tmp_path / "student.safetensors"
    result = run("adapt", teacher, data / "raw.tif", "-o", path, "--k", 1, "--steps", 60, *SMALL)
    assert result.code == 0, result.err
    assert "validated on teacher" in result.err
    student = core.load_model(path)
    settings = student.summary["settings"]
    assert (student.net.k, settings["mode"], settings["tau"], settings["confidence"]) == (1, "soft", 1.0, 1.0)
    assert settings["rounds"] == 1, "it begins untrained"
    iou = core.evaluate(core.predict(student, data / "raw.tif", output="labels"), data / "labels.tif").iou
    assert iou > 0.5
    assert names(tmp_path) == ["student.safetensors"]
    again = run("adapt", teacher, data / "raw.tif", "-o", path, "--k", 1, "--steps", 2, *SMALL)
    assert (again.code, len(again.lines)) == (2, 1)
    assert "--overwrite" in again.err


def test_a_student_of_the_teachers_size_begins_as_the_teacher(data, teacher, tmp_path):
    path = tmp_path / "student.safetensors"
    result = run("adapt", teacher, data / "raw.tif", "-o", path, "--k", 4, "--steps", 1, "--lr", 1e-9, *SMALL)
    assert result.code == 0, result.err
    before, after = (core.load_model(each).net.state_dict() for each in (teacher, path))
    weights = [name for name in before if name.endswith("weight")]
    assert all(abs(before[name] - after[name]).max() < 1e-6 for name in weights)
    assert core.load_model(path).summary["settings"]["rounds"] == ADAPTING["rounds"]


@pytest.mark.parametrize("option", ["--paper", "--slices", "--ignore", "--mode"])
def test_what_is_for_labels_is_not_offered(data, teacher, tmp_path, option):
    result = run("adapt", teacher, data / "raw.tif", "-o", tmp_path / "m.safetensors", option, "1")
    assert result.code == 2
    assert option in result.err
