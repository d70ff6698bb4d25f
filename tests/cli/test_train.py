"""The command `train` from end to end, on blobs that a few steps learn."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
import torch

from command_line import SMALL, VOXEL, run
from folders import names
from napari_kdunet import core


def test_train_tells_what_it_does(data, teacher, tmp_path):
    path = tmp_path / "again.safetensors"
    result = run("train", data / "raw.tif", data / "labels.tif", "-o", path, "--k", 4, "--steps", 40, *SMALL)
    assert result.code == 0
    assert names(tmp_path) == ["again.safetensors"]
    first, *validations = result.lines  # not a terminal: no bar, but each validation
    count = core.KUNet(k=4, depth=2).parameter_count
    assert f"{count:,} parameters on cpu; 7 labelled slices; validated on held-out slices, z = 3" in first
    assert [line.split()[:2] for line in validations] == [["step", "20"], ["step", "40"]]
    assert validations[0].endswith("best so far")
    best = max(float(re.search(r"IoU (\S+)", line)[1]) for line in validations)
    assert best > 0.5
    assert re.fullmatch(rf"{re.escape(str(path))}  IoU {best:.3f} at threshold 0\.\d\d  \d+ s\n", result.out)
    again, before = core.load_model(path), core.load_model(teacher)
    assert all(map(torch.equal, again.net.state_dict().values(), before.net.state_dict().values()))


def test_validation_on_given_volumes_and_a_start(data, teacher, tmp_path):
    val = ["--val-raw", data / "raw.tif", "--val-labels", data / "labels.tif"]
    path = tmp_path / "m.safetensors"
    more = ["--steps", 2, "--lr", 1e-6, "--start", teacher]
    result = run("train", data / "raw.tif", data / "labels.tif", "-o", path, *val, *more, *SMALL)
    assert result.code == 0, result.err
    assert "8 labelled slices; validated on given volume, z = 0:8" in result.lines[0]


def test_what_a_start_knows_is_kept_unless_it_is_to_forget(data, teacher, tmp_path):
    labels, path = core.open_volume(data / "labels.tif")[:], tmp_path / "m.safetensors"
    strokes = np.where(np.arange(labels.shape[-1]) < 20, 1 + (labels > 0), 0)
    np.save(tmp_path / "strokes.npy", strokes.astype(np.uint8))
    argv = ["train", data / "raw.tif", tmp_path / "strokes.npy", "-o", path, "--start", teacher, "--voxel-size", 10]
    argv += ["--ignore", 0, "--steps", 2, *SMALL]
    models = {}
    for how in ((), ("--forget",)):
        result = run(*argv, *how, "--overwrite")
        assert result.code == 0, result.err
        models[how] = core.load_model(path)
        assert ("kept" in models[how].summary) == (not how)
    kept, forgotten = (model.net.state_dict() for model in models.values())
    assert not all(map(torch.equal, kept.values(), forgotten.values()))


@pytest.mark.parametrize("command", [["train"], ["distill", "{teacher}"]])
def test_a_start_has_its_form_and_pixel_size(command, data, teacher, tmp_path):
    start, path = tmp_path / "start.safetensors", tmp_path / "m.safetensors"
    volumes = [data / "raw.tif", data / "labels.tif", "--voxel-size", 8]
    form = ["--k", 3, "--depth", 2, "--activation", "relu", "--pixel-size", 8]
    assert run("train", *volumes, "-o", start, *form, "--steps", 40, *SMALL[2:]).code == 0
    going_on = [word.format(teacher=teacher) for word in command]
    going_on += [*volumes, "-o", path, "--start", start, "--steps", 2, "--lr", 1e-6, *SMALL[2:]]
    result = run(*going_on)
    assert result.code == 0, result.err
    made, started = core.load_model(path), core.load_model(start)
    assert (made.form, made.pixel_size) == (started.form, 8.0)
    refused = run(*going_on, "--overwrite", "--depth", 3)
    assert refused.code == 2
    assert "depth" in refused.err


def test_several_images_each_with_its_voxel_size(data, teacher, tmp_path):
    path, small = tmp_path / "m.safetensors", ["--start", teacher, "--lr", 1e-6, "--steps", 4, *SMALL]
    pairs = [data / "raw.tif", data / "labels.tif", data / "unknown.tif", data / "labels.tif"]
    sizes = ["--voxel-size", 10, "--voxel-size", "30,5,5"]
    result = run("train", *pairs, "-o", path, "--volume-weights", "1,2", *sizes, *small)
    assert result.code == 0, result.err
    first, *validations = result.lines
    assert "14 labelled slices" in first
    assert f"of {data / 'raw.tif'}, {data / 'unknown.tif'}" in first
    assert "note" not in result.err  # each pixel size is known
    assert all(re.search(r"IoU 0\.\d+ \(0\.\d+, 0\.\d+\) at", line) for line in validations)
    summary = core.load_model(path).summary
    assert len(summary["validation"]["volume_ious"]) == 2
    assert summary["settings"]["volume_weights"] == [1.0, 2.0]
    val = ["--val-raw", data / "raw.tif", "--val-labels", data / "labels.tif"]
    result = run("train", *pairs, "-o", path, *sizes, *val, *val, *small)
    assert result.code == 2
    assert "2 times for 4 images" in result.err
    result = run("train", *pairs, "-o", path, "--overwrite", "--voxel-size", 10, *val, *val, *small)
    assert f"on given volume of {data / 'raw.tif'}, {data / 'raw.tif'}" in result.lines[0]


def test_several_images_each_with_its_sample(data, teacher, tmp_path):
    pairs = [data / "raw.tif", data / "labels.tif"]
    for name in ("raw", "labels"):
        core.write_volume(core.open_volume(data / f"{name}.tif")[2:], tmp_path / f"{name}.tif", voxel_size=VOXEL)
        pairs.append(tmp_path / f"{name}.tif")
    samples = []
    for path in pairs[::2]:
        sample = np.zeros(core.open_volume(path).shape, np.uint8)
        sample[:, :, :40] = 1
        np.save(tmp_path / f"{len(sample)}.npy", sample)
        samples += ["--sample", tmp_path / f"{len(sample)}.npy"]
    argv = ["train", *pairs, "-o", tmp_path / "m.safetensors", "--start", teacher, "--steps", 1, *SMALL]
    result = run(*argv, *samples)
    assert result.code == 0, result.err
    for wrong, told in (
        (samples[2:] + samples[:2], "6.npy"),
        (samples[:2], "8.npy"),
        (samples * 2, "sample is given 4 times for 2 images"),
    ):
        result = run(*argv, "--overwrite", *wrong)
        assert (result.code, told in result.err) == (2, True), result.err


def test_images_without_their_labels(data, tmp_path):
    out = ["-o", tmp_path / "m.safetensors", "--steps", 1]
    result = run("train", data / "raw.tif", data / "labels.tif", data / "other.tif", *out)
    assert result.code == 2
    assert "go in pairs" in result.err
    assert "other.tif" in result.err
    result = run("train", data / "raw.tif", data / "labels.tif", "--val-raw", data / "raw.tif", *out)
    assert result.code == 2
    assert "--val-labels" in result.err


def test_context(data, tmp_path):
    path, mask = tmp_path / "m.safetensors", tmp_path / "mask.tif"
    volumes = (data / "raw.tif", data / "labels.tif")
    trained = run("train", *volumes, "-o", path, "--k", 2, "--context", 1, "--steps", 30, *SMALL)
    assert trained.code == 0, trained.err
    model = core.load_model(path)
    assert (model.context, model.context_distance) == (1, VOXEL[0])
    assert json.loads(run("info", path, "--json").out)["context"] == 1
    assert run("predict", path, volumes[0], "-o", mask).code == 0
    expected = core.predict(model, volumes[0], output="labels").compute()
    np.testing.assert_array_equal(np.asarray(core.open_volume(mask)), expected)
    again = run(
        "train", *volumes, "-o", tmp_path / "b.safetensors", "--start", path, "--steps", 1, "--lr", 1e-6, *SMALL
    )
    assert again.code == 0, again.err
    assert core.load_model(tmp_path / "b.safetensors").form_and_pixel_size == model.form_and_pixel_size
    refused = run("adapt", path, volumes[0], "-o", tmp_path / "c.safetensors", "--start", path, "--steps", 1, *SMALL)
    assert (refused.code, len(refused.lines)) == (2, 1)
    assert "context is 1" in refused.err
