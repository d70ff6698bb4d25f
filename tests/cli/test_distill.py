"""The command `distill` from end to end: with labels, without, and from a probability volume."""

from __future__ import annotations

import pytest

from command_line import SMALL, names, run
from napari_kdunet import core


@pytest.mark.parametrize("mode", ["mixed", "soft", "sequential"])
def test_distill(mode, data, teacher, tmp_path):
    path = tmp_path / "student.safetensors"
    inputs = [teacher, data / "raw.tif", data / "labels.tif"]
    result = run("distill", *inputs, "-o", path, "--mode", mode, "--steps", 40, "--tau", 2, *SMALL)
    assert result.code == 0, result.err
    assert "validated on held-out slices, z = 3" in result.err
    model = core.load_model(path)
    assert (model.net.k, model.summary["settings"]["mode"], model.summary["settings"]["tau"]) == (2, mode, 2)
    assert model.summary["teacher"]["parameters"] == core.load_model(teacher).parameter_count
    assert model.summary["validation"]["iou"] > 0.5
    assert names(tmp_path) == ["student.safetensors"]


def test_distill_without_labels(data, teacher, tmp_path):
    path = tmp_path / "student.safetensors"
    more = ["--unlabelled", data / "other.tif", "--unlabelled", data / "other.tif"]
    result = run("distill", teacher, data / "raw.tif", "-o", path, "--steps", 40, *more, *SMALL)
    assert result.code == 0, result.err
    assert "0 labelled and 23 taught slices; validated on teacher, z = 3" in result.err
    iou = core.evaluate(core.predict(core.load_model(path), data / "raw.tif", output="labels"), data / "labels.tif").iou
    assert iou > 0.5


def test_distill_from_a_probability_volume(data, probability, tmp_path):
    path = tmp_path / "student.safetensors"
    result = run("distill", probability, data / "raw.tif", "-o", path, "--steps", 40, *SMALL)
    assert result.code == 0, result.err
    assert core.load_model(path).summary["teacher"] == {"probability": str(probability)}


def test_distill_on_several_images(data, teacher, tmp_path):
    path = tmp_path / "student.safetensors"
    pairs = [data / "raw.tif", data / "labels.tif", data / "unknown.tif", data / "labels.tif"]
    more = ["--unlabelled", data / "other.tif", "--voxel-size", 10, "--steps", 40]
    result = run("distill", teacher, *pairs, "-o", path, *more, *SMALL)
    assert result.code == 0, result.err
    assert "14 labelled and 8 taught slices" in result.err
