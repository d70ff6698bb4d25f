"""The command `distill` from end to end: with labels, without, and from a probability volume."""

from __future__ import annotations

import pytest

from command_line import SMALL, run
from folders import names
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
    assert "0 labelled and 23 unlabelled slices; validated on teacher, z = 3" in result.err
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
    assert "14 labelled and 8 unlabelled slices" in result.err


def test_a_teacher_of_another_tool(data, tmp_path):
    """A dilated image as ONNX: computed, and named in the model."""
    onnx = pytest.importorskip("onnx")
    node = onnx.helper.make_node("MaxPool", ["x"], ["y"], kernel_shape=[3, 3], pads=[1, 1, 1, 1])
    ends = [onnx.helper.make_tensor_value_info(name, 1, ["n", 1, "h", "w"]) for name in "xy"]
    opset = [onnx.helper.make_opsetid("", 17)]
    made = onnx.helper.make_model(onnx.helper.make_graph([node], "g", ends[:1], ends[1:]), opset_imports=opset)
    made.ir_version = 9
    onnx.save(made, tmp_path / "t.onnx")
    path = tmp_path / "student.safetensors"
    result = run("distill", tmp_path / "t.onnx", data / "raw.tif", "-o", path, "--steps", 40, *SMALL)
    assert result.code == 0, result.err
    assert core.load_model(path).summary["teacher"]["parameters"] == 0


def test_torchscript_is_refused_without_trust(data, tmp_path):
    teacher, path = tmp_path / "t.pt", tmp_path / "student.safetensors"
    teacher.write_bytes(b"never read")
    result = run("distill", teacher, data / "raw.tif", "-o", path, "--steps", 40, *SMALL)
    assert (result.code, len(result.lines)) == (2, 1)
    assert "--trust-teacher" in result.err.replace("\n", " ")
    result = run("distill", teacher, data / "raw.tif", "-o", path, "--steps", 40, "--trust-teacher", *SMALL)
    assert "not a TorchScript file" in result.err.replace("\n", " ")
    assert names(tmp_path) == ["t.pt"]
