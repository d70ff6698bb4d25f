"""The command line from end to end on a volume of blobs, small enough that a few steps learn it."""

from __future__ import annotations

import dataclasses
import errno
import io
import json
import os
import platform
import re
import signal
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import numpy as np
import pytest
import tifffile
import torch
from scipy import ndimage

from napari_kdunet import __version__, core
from napari_kdunet.cli import main
from napari_kdunet.core.config import PAPER
from napari_kdunet.core.parsing import parse_slices
from napari_kdunet.core.training.trainer import Fit

SHAPE, VOXEL = (8, 70, 60), (30.0, 10.0, 10.0)
SMALL = ("--depth", "2", "--patch", "32", "--batch", "4", "--validations", "2", "--threads", "1")
MODULE = (sys.executable, "-m", "napari_kdunet")


class Result(NamedTuple):
    code: int
    out: str
    err: str

    @property
    def lines(self) -> list[str]:
        return self.err.splitlines()


def run(*argv) -> Result:
    """The console entry in this process."""
    out, err = io.StringIO(), io.StringIO()
    argv = ["napari-kdunet", *map(str, argv)]
    with (
        mock.patch.object(sys, "argv", argv),
        redirect_stdout(out),
        redirect_stderr(err),
        pytest.raises(SystemExit) as told,
    ):
        main()
    return Result(int(told.value.code or 0), out.getvalue(), err.getvalue())


def blobs(shape=SHAPE, seed=0) -> tuple[np.ndarray, np.ndarray]:
    """Bright blobs on a dark noisy ground, and their labels."""
    rng = np.random.default_rng(seed)
    labels = (ndimage.gaussian_filter(rng.standard_normal(shape), (1, 5, 5)) > 0.03).astype(np.uint8)
    raw = 60 + 110 * ndimage.gaussian_filter(labels.astype(float), (0, 1, 1)) + rng.normal(0, 12, shape)
    return raw.clip(0, 255).astype(np.uint8), labels


def names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """A folder of volumes, right and wrong; tests only read it."""
    folder = tmp_path_factory.mktemp("data")
    raw, labels = blobs()
    core.write_volume(raw, folder / "raw.tif", voxel_size=VOXEL)
    core.write_volume(labels, folder / "labels.tif", voxel_size=VOXEL)
    core.write_volume(raw, folder / "unknown.tif")
    core.write_volume(blobs(seed=1)[0], folder / "other.tif", voxel_size=VOXEL)
    core.write_volume(labels[:3], folder / "short.tif")
    core.write_volume(np.zeros_like(labels), folder / "empty.tif")
    core.write_volume(labels.astype(np.float32), folder / "floats.tif")
    core.write_volume(2 * labels.astype(np.float32), folder / "beyond.tif")
    np.save(folder / "nan.npy", np.where(raw > 200, np.nan, raw))
    tifffile.imwrite(folder / "rgb.tif", np.zeros((40, 40, 3), np.uint8), photometric="rgb")
    (folder / "text.tif").write_text("not a TIFF")
    (folder / "text.safetensors").write_text("not a model")
    return folder


@pytest.fixture(scope="module")
def teacher(data, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("teacher") / "teacher.safetensors"
    result = run("train", data / "raw.tif", data / "labels.tif", "-o", path, "--k", 4, "--steps", 40, *SMALL)
    assert result.code == 0, result.err
    return path


@pytest.fixture(scope="module")
def probability(data, teacher, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("probability") / "probability.zarr"
    assert run("predict", teacher, data / "raw.tif", "-o", path, "--probabilities").code == 0
    return path


# What it says of itself


def test_version_and_module():
    assert run("--version") == (0, f"{__version__}\n", "")
    assert subprocess.check_output([*MODULE, "--version"], text=True) == f"{__version__}\n"


def test_help_does_not_import_torch():
    code = "import sys, napari_kdunet.cli; sys.exit('torch' in sys.modules or 'scipy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("command", ["demo", "train", "distill", "predict", "evaluate", "info", "study", "sweep"])
def test_help(command, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    result = run(command, "--help")
    arguments = {
        "demo": "",
        "train": " RAW LABELS",
        "distill": " TEACHER RAW LABELS",
        "predict": " MODEL RAW",
        "evaluate": " PRED LABELS",
        "info": " MODEL",
        "study": " NAME [RAW] LABELS",
        "sweep": " TEACHER RAW LABELS",
    }
    assert result.code == 0
    assert result.err == ""
    (usage,) = re.findall(r"Usage: (.*?) *$", result.out, re.MULTILINE)
    assert usage.replace("[LABELS]", "LABELS") == f"napari-kdunet {command} [OPTIONS]{arguments[command]}"


def test_nothing_to_do_is_help():
    result = run()
    assert result.code == 2
    assert "Commands" in result.out
    assert result.err == ""


CONFIGS = [("train", core.TrainConfig), ("distill", core.DistillConfig)]


@pytest.mark.parametrize(("command", "config"), CONFIGS)
def test_each_setting_has_an_option_with_its_unit_bounds_and_default(command, config, monkeypatch):
    monkeypatch.setenv("COLUMNS", "250")
    lines = run(command, "--help").out.splitlines()
    for spec in dataclasses.fields(config):
        flag = "--" + spec.name.replace("_", "-")
        (line,) = (line for line in lines if flag in line.split())
        meta = spec.metadata
        assert meta["help"].rstrip(".") in line
        assert meta["unit"] in line
        for name, sign in (("ge", ">="), ("gt", ">"), ("le", "<="), ("lt", "<")):
            assert (f"{sign} {meta[name]:g}" if isinstance(meta.get(name), float) else "") in line
            assert (f"{sign} {meta[name]}" if isinstance(meta.get(name), int) else "") in line
        if spec.type == "bool":
            assert f"--no-{flag[2:]}" in line
            assert f"default {'on' if spec.default else 'off'})" in line
        elif spec.default is not None:
            shown = f"{spec.default:g}" if isinstance(spec.default, float) else spec.default
            assert f"default {shown})" in line
        assert all(str(choice) in line for choice in meta["choices"])


def other_value(spec):
    """A value of a setting that is not its default."""
    meta = spec.metadata
    if spec.type == "bool":
        return not spec.default
    if meta["choices"]:
        return meta["choices"][-1]
    if spec.type.startswith("int"):
        return (meta["ge"] if spec.default is None else spec.default) + (16 if spec.name == "patch" else 1)
    return (spec.default or 1.0) / 2


@pytest.fixture
def received(monkeypatch):
    """The settings that training is asked for, which does not take place."""
    configs = []

    def stand_in(*args, **kwargs):
        configs.append(next(a for a in args if isinstance(a, core.TrainConfig)))
        raise core.ConfigError("received")

    monkeypatch.setattr(core, "iter_train", stand_in)
    monkeypatch.setattr(core, "iter_distill", stand_in)
    return configs


@pytest.mark.parametrize(("command", "config"), CONFIGS)
def test_each_option_sets_its_setting(command, config, data, tmp_path, received):
    inputs = [data / "raw.tif", data / "labels.tif"] if command == "train" else ["teacher", data / "raw.tif"]
    start = [command, *inputs, "-o", tmp_path / "m.safetensors"]
    run(*start)
    assert received == [config()]
    for spec in dataclasses.fields(config):
        value, flag = other_value(spec), spec.name.replace("_", "-")
        run(*start, *([f"--{flag}" if value else f"--no-{flag}"] if spec.type == "bool" else [f"--{flag}", value]))
        assert received.pop() == config(**{spec.name: value})
    run(*start, "--slices", "3,5:7", "--class-weights", "1,4")
    assert received.pop() == config(slices=(3, 5, 6), class_weights=(1.0, 4.0))
    run(*start, "--paper", "--lr", 0.5)
    assert received.pop() == config(**{**PAPER, "lr": 0.5})


# The main job


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


def test_info(teacher):
    model = core.load_model(teacher)
    told = json.loads(run("info", teacher, "--json").out)
    assert told == model.describe()
    assert (told["k"], told["bn"], told["depth"], told["pixel_size"]) == (4, True, 2, 10.0)
    assert told["parameters"] == core.KUNet(k=4, depth=2).parameter_count
    assert told["summary"]["settings"]["steps"] == 40
    table = dict(re.split(r" {2,}", line, maxsplit=1) for line in run("info", teacher).out.splitlines())
    assert table["k"] == "4"
    assert table["parameters"] == str(told["parameters"])
    assert table["threshold"] == f"{told['threshold']:.5g}"
    assert table["settings: steps"] == "40"
    assert parse_slices(table["labelled slices"]) == tuple(told["summary"]["labelled_slices"])
    assert table["validation: iou"] == f"{told['summary']['validation']['iou']:.5g}"


@pytest.mark.parametrize("suffix", [".tif", ".zarr"])
def test_predict_labels(suffix, data, teacher, tmp_path):
    path = tmp_path / f"mask{suffix}"
    assert run("predict", teacher, data / "raw.tif", "-o", path) == (0, f"{path}\n", "")
    assert names(tmp_path) == [path.name]
    mask = core.open_volume(path)
    assert (mask.dtype, mask.shape, mask.voxel_size) == (np.uint8, SHAPE, VOXEL)
    expected = core.predict(core.load_model(teacher), data / "raw.tif", output="labels")
    np.testing.assert_array_equal(np.asarray(mask), expected.compute())


def test_predict_threshold(data, teacher, probability, tmp_path):
    path, found = tmp_path / "mask.tif", np.asarray(core.open_volume(probability))
    for share in (0.2, 0.9):
        threshold = round(float(np.quantile(found, share)), 4)
        assert run("predict", teacher, data / "raw.tif", "-o", path, "--threshold", threshold).code == 0
        expected = found > threshold
        np.testing.assert_array_equal(np.asarray(core.open_volume(path)), expected)
        assert 0 < expected.sum() < expected.size


def test_predict_probabilities(data, teacher, probability):
    written = core.open_volume(probability)
    assert (written.dtype, written.shape, written.voxel_size) == (np.float32, SHAPE, VOXEL)
    expected = core.predict(core.load_model(teacher), data / "raw.tif").compute()
    np.testing.assert_allclose(np.asarray(written), expected, atol=1e-6)


def test_predict_views(data, teacher, probability, tmp_path):
    path = tmp_path / "p.zarr"
    assert run("predict", teacher, data / "raw.tif", "-o", path, "--probabilities", "--views", 4).code == 0
    written = np.asarray(core.open_volume(path))
    expected = core.predict(core.load_model(teacher), data / "raw.tif", views=4).compute()
    np.testing.assert_allclose(written, expected, atol=1e-6)
    assert np.abs(written - np.asarray(core.open_volume(probability))).max() > 0.01


@pytest.mark.parametrize("suffix", [".tif", ".zarr"])
def test_predict_planes(suffix, data, teacher, tmp_path):
    path = tmp_path / f"mask{suffix}"
    argv = ["predict", teacher, data / "raw.tif", "-o", path, "--planes", "zyx"]
    told = run(*argv)
    assert told.code == 2
    assert "30 x 10 x 10 nm" in told.err
    assert names(tmp_path) == []
    assert run(*argv, "--voxel-size", "10").code == 0
    raw = core.open_volume(data / "raw.tif", voxel_size=(10, 10, 10))
    expected = core.predict(core.load_model(teacher), raw, planes="zyx", output="labels").compute()
    np.testing.assert_array_equal(np.asarray(core.open_volume(path)), expected)


HEAPS = """
import ctypes, sys
from napari_kdunet.cli import main
path = sys.argv.pop(1)
try:
    main()
except SystemExit as told:
    assert not told.code
libc = ctypes.CDLL(None)
libc.fopen.restype = ctypes.c_void_p
file = ctypes.c_void_p(libc.fopen(path.encode(), b"w"))
libc.malloc_info(0, file)
libc.fclose(file)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
def test_predict_keeps_what_it_frees_in_one_place(data, teacher, tmp_path):
    """Kept by each thread apart, it comes to several 100 MB on large volumes."""
    told = tmp_path / "heaps.xml"
    argv = [told, "predict", teacher, data / "raw.tif", "-o", tmp_path / "out.zarr"]
    subprocess.run([sys.executable, "-c", HEAPS, *map(str, argv)], check=True, capture_output=True, timeout=300)
    assert told.read_text().count("<heap nr=") == 1


def test_predict_says_that_the_pixel_size_is_unknown(data, teacher, tmp_path):
    path = tmp_path / "mask.tif"
    result = run("predict", teacher, data / "unknown.tif", "-o", path)
    assert result.code == 0
    assert result.lines == [
        f"note: the pixel size of {data / 'unknown.tif'} is not known: "
        "taken as the model's 10 nm; --voxel-size sets it."
    ]
    assert core.open_volume(path).voxel_size is None
    assert run("predict", teacher, data / "unknown.tif", "-o", path, "--voxel-size", "30,10,10").err == ""
    assert core.open_volume(path).voxel_size == VOXEL
    run("predict", teacher, data / "unknown.tif", "-o", path, "--voxel-size", "20")
    assert core.open_volume(path).voxel_size == (20, 20, 20)


@pytest.mark.parametrize("suffix", [".tif", ".zarr"])
def test_predict_past_what_cannot_be_read(suffix, data, teacher, tmp_path):
    raw, mask = tmp_path / "raw.zarr", tmp_path / f"mask{suffix}"
    core.write_volume(core.open_volume(data / "raw.tif"), raw)
    expected = core.predict(core.load_model(teacher), raw, output="labels").compute()
    assert expected[[2, 5]].any((1, 2)).all()
    for z in (2, 5):
        (raw / "0" / "c" / str(z) / "0" / "0").write_bytes(b"damaged")
    stopped = run("predict", teacher, raw, "-o", mask)
    assert stopped.code == 2
    (line,) = stopped.lines
    assert line.startswith(f"error: cannot read slice z=2 of {raw}: ")
    assert names(tmp_path) == ["raw.zarr"]

    result = run("predict", teacher, raw, "-o", mask, "--on-error", "skip")
    assert result[:2] == (0, f"{mask}\n")
    assert len(result.lines) == 3
    assert result.lines[0].startswith(f"skipped: cannot read slice z=2 of {raw}: ")
    assert result.lines[1].startswith(f"skipped: cannot read slice z=5 of {raw}: ")
    assert result.lines[2:] == [f"note: skipped 2 of 8 slices, which are 0 in {mask}"]
    expected[[2, 5]] = 0
    np.testing.assert_array_equal(np.asarray(core.open_volume(mask)), expected)
    assert about(mask)["skipped"] == [2, 5]

    for path in raw.glob("0/c/*/0/0"):
        path.write_bytes(b"damaged")
    assert run("predict", teacher, raw, "-o", mask, "--on-error", "skip").code == 2
    np.testing.assert_array_equal(np.asarray(core.open_volume(mask)), expected)  # what stood there before


def about(path: Path) -> dict:
    """What is told about a result in its own file."""
    if path.suffix == ".zarr":
        return json.loads((path / "zarr.json").read_text())["attributes"]["napari_kdunet"]
    with tifffile.TiffFile(path) as tif:
        return json.loads(tif.imagej_metadata["napari_kdunet"])


def test_evaluate(data, teacher, probability, tmp_path):
    mask = tmp_path / "mask.tif"
    run("predict", teacher, data / "raw.tif", "-o", mask)
    _, labels = blobs()
    expected = core.evaluate(np.asarray(core.open_volume(mask)), labels)
    told = json.loads(run("evaluate", mask, data / "labels.tif", "--json").out)
    assert told == expected.to_dict()
    assert told["iou"] > 0.5
    assert len(told["iou_per_slice"]) == SHAPE[0]
    table = dict(re.split(r" {2,}", line) for line in run("evaluate", mask, data / "labels.tif").out.splitlines())
    assert {name: table[name] for name in ("iou", "dice", "precision", "recall")} == {
        name: f"{told[name]:.5g}" for name in ("iou", "dice", "precision", "recall")
    }
    worst = min(told["iou_per_slice"])
    assert table["worst slice"] == f"{worst:.4f} at z = {told['iou_per_slice'].index(worst)}"

    soft = json.loads(run("evaluate", probability, data / "labels.tif", "--json", "--threshold", 0.7).out)
    assert soft == core.evaluate(np.asarray(core.open_volume(probability)), labels, threshold=0.7).to_dict()
    assert soft["paper_ce"] == 2 * soft["ce"]
    nothing = run("evaluate", data / "empty.tif", data / "empty.tif")
    assert re.search(r"^iou +not defined$", nothing.out, re.MULTILINE)
    ignoring = json.loads(run("evaluate", mask, data / "labels.tif", "--json", "--ignore", 1).out)
    assert (ignoring["tp"], ignoring["fp"], ignoring["tn"]) == (0, told["fp"], told["tn"])


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


def test_validation_on_given_volumes_and_a_start(data, teacher, tmp_path):
    val = ["--val-raw", data / "raw.tif", "--val-labels", data / "labels.tif"]
    path = tmp_path / "m.safetensors"
    more = ["--steps", 2, "--lr", 1e-6, "--start", teacher]
    result = run("train", data / "raw.tif", data / "labels.tif", "-o", path, *val, *more, *SMALL)
    assert result.code == 0, result.err
    assert "8 labelled slices; validated on given volume, z = 0:8" in result.lines[0]


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
    refused = run(*going_on, "--depth", 3)
    assert refused.code == 2
    assert "depth" in refused.err


def test_odd_names_are_shown_as_they_are(data, teacher, tmp_path):
    folder = tmp_path / "[red] a :smile: b"
    folder.mkdir()
    missing, mask = folder / "raw[1].tif", folder / "mask.zarr"
    assert str(missing) in run("predict", teacher, missing, "-o", mask).err
    assert run("predict", teacher, data / "raw.tif", "-o", mask, "--probabilities").out == f"{mask}\n"
    model = folder / "student.safetensors"
    result = run("distill", mask, data / "raw.tif", "-o", model, "--steps", 40, *SMALL)
    assert result.out.startswith(str(model))
    assert f"{mask}\n" in run("info", model).out


# Wrong input: one line, exit code 2, nothing written


TRAIN = "train {data}/raw.tif {data}/labels.tif -o {out}/m.safetensors --steps 2 --depth 2 --patch 32"
DISTILL = "distill {teacher} {data}/raw.tif {data}/labels.tif -o {out}/m.safetensors --steps 2 --depth 2 --patch 32"
PREDICT = "predict {teacher} {data}/raw.tif -o {out}/mask.tif"
EVALUATE = "evaluate {data}/labels.tif {data}/labels.tif"
WRONG = {
    # volumes
    "missing raw": (TRAIN.replace("raw.tif", "nowhere.tif"), "nowhere.tif"),
    "missing labels": (TRAIN.replace("labels.tif", "nowhere.tif"), "nowhere.tif"),
    "rgb": (TRAIN.replace("raw.tif", "rgb.tif"), "rgb.tif"),
    "not a tiff": (TRAIN.replace("raw.tif", "text.tif"), "text.tif"),
    "nan": (TRAIN.replace("raw.tif", "nan.npy"), "NaN"),
    "labels of another shape": (TRAIN.replace("labels.tif", "short.tif"), "(3, 70, 60)"),
    "no foreground": (TRAIN.replace("labels.tif", "empty.tif"), "has no foreground"),
    "nothing but ignore": (TRAIN.replace("labels.tif", "empty.tif") + " --ignore 0", "nothing but the ignore value"),
    "float labels": (TRAIN.replace("labels.tif", "floats.tif"), "float32"),
    "val-raw alone": (TRAIN + " --val-raw {data}/raw.tif", "--val-labels"),
    "val labels of another shape": (TRAIN + " --val-raw {data}/raw.tif --val-labels {data}/short.tif", "(3, 70, 60)"),
    "predict missing": (PREDICT.replace("raw.tif", "nowhere.tif"), "nowhere.tif"),
    "predict rgb": (PREDICT.replace("raw.tif", "rgb.tif"), "rgb.tif"),
    "predict nan": (PREDICT.replace("raw.tif", "nan.npy"), "NaN"),
    "predict nan to zarr": (PREDICT.replace("raw.tif", "nan.npy").replace("mask.tif", "mask.zarr"), "NaN"),
    "evaluate missing": (EVALUATE.replace("labels.tif", "nowhere.tif", 1), "nowhere.tif"),
    "evaluate shape": (EVALUATE.replace("labels.tif", "short.tif", 1), "(3, 70, 60)"),
    "evaluate float labels": ("evaluate {data}/labels.tif {data}/floats.tif", "float32"),
    "evaluate beyond 1": (EVALUATE.replace("labels.tif", "beyond.tif", 1), "[0, 1]"),
    # settings
    "not a number": (TRAIN + " --k two", "--k"),
    "out of bounds": (TRAIN + " --k 0", "at least 1"),
    "not a choice": (TRAIN + " --init zeros", "he, torch"),
    "two budgets": (TRAIN + " --minutes 1", "steps and minutes"),
    "patch": (TRAIN + " --patch 33", "multiple"),
    "slices": (TRAIN + " --slices first", "3,8,20:30"),
    "slices beyond": (TRAIN + " --slices 99", "slices 0 to 7"),
    "class weights": (TRAIN + " --class-weights 1,2,3", "2 positive numbers"),
    "device": (TRAIN + " --device abacus", "auto, cpu"),
    "voxel size": (TRAIN + " --voxel-size 1,2", "Z,Y,X"),
    "lr nan": (TRAIN + " --lr nan", "lr is nan"),
    "mode": (DISTILL + " --mode hard", "mixed, soft, sequential"),
    "sequential without labels": (DISTILL.replace(" {data}/labels.tif", "") + " --mode sequential", "give labels"),
    "threshold": (PREDICT + " --threshold 1.5", "threshold"),
    "threads": (PREDICT + " --threads 0", "--threads"),
    "evaluate threshold": (EVALUATE + " --threshold -1", "--threshold"),
    "predict planes": (PREDICT + " --planes xyz", "z or zyx"),
    "predict views": (PREDICT + " --views 3", "1, 2, 4 or 8"),
    "predict device": (PREDICT + " --device abacus", "abacus"),
    "on-error": (PREDICT + " --on-error ignore", "--on-error"),
    "skip and planes": (PREDICT + " --on-error skip --planes zyx", "mend the volume"),
    "scheduler and a tiff": (PREDICT + " --scheduler 127.0.0.1:1", "mask.tif"),
    "no such option": (TRAIN + " --speed 3", "--speed"),
    "no such command": ("paint", "paint"),
    "argument missing": ("evaluate {data}/labels.tif", "LABELS"),
    "no -o": ("predict {teacher} {data}/raw.tif", "--out"),
    # models
    "no model": (PREDICT.replace("{teacher}", "nobody"), "nobody"),
    "not a model": (PREDICT.replace("{teacher}", "{data}/text.safetensors"), "text.safetensors"),
    "info not a model": ("info {data}/text.safetensors", "text.safetensors"),
    "info of a volume": ("info {data}/raw.tif", "raw.tif"),
    "teacher missing": (DISTILL.replace("{teacher}", "nobody.pt"), "nobody.pt"),
    "teacher damaged": (DISTILL.replace("{teacher}", "{data}/text.safetensors"), "text.safetensors"),
    "teacher of another shape": (DISTILL.replace("{teacher}", "{data}/short.tif"), "(3, 70, 60)"),
    "teacher beyond 1": (DISTILL.replace("{teacher}", "{data}/beyond.tif"), "[0, 1]"),
    "start of another form": (TRAIN + " --start {teacher} --k 3", "form"),
    "nothing to resume": (TRAIN + " --resume", "m.resume.safetensors"),
    # targets
    "model ending": (TRAIN.replace("m.safetensors", "m.pt"), ".safetensors"),
    "volume ending": (PREDICT.replace("mask.tif", "mask.png"), ".tif"),
    "no folder": (PREDICT.replace("mask.tif", "nowhere/mask.tif"), "no folder"),
    "no folder for the model": (TRAIN.replace("m.safetensors", "nowhere/m.safetensors"), "no folder"),
    "over the image": ("predict {teacher} {data}/raw.tif -o {data}/../{data.name}/raw.tif", "another name"),
    "over what holds the image": ("predict {teacher} {probability}/0 -o {probability}", "another name"),
    "over the teacher": ("distill {teacher} {data}/raw.tif -o {teacher}", "another name"),
    "demo in a file": ("demo --out {data}/raw.tif", "raw.tif"),
}


def contents(*folders: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for folder in folders for path in folder.rglob("*")}


@pytest.mark.parametrize(("words", "told"), WRONG.values(), ids=WRONG)
def test_wrong_input(words, told, data, teacher, probability, tmp_path):
    folders = (data, teacher.parent, probability.parent)
    before = contents(*folders)
    result = run(*words.format(data=data, teacher=teacher, probability=probability, out=tmp_path).split())
    assert result.code == 2
    (line,) = [line for line in result.lines if not line.startswith("note: ")]
    assert line.startswith("error: ")
    assert told in line
    assert result.out == ""
    assert contents(*folders) == before
    assert names(tmp_path) == []


def test_wrong_input_in_a_process_of_its_own(data, tmp_path):
    argv = [*MODULE, "train", data / "rgb.tif", data / "labels.tif", "-o", tmp_path / "m.safetensors"]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere")
def test_no_permission(data, teacher, tmp_path):
    tmp_path.chmod(0o500)
    result = run("predict", teacher, data / "raw.tif", "-o", tmp_path / "mask.tif")
    tmp_path.chmod(0o700)
    assert result.code == 2
    assert "permission" in result.err


@pytest.fixture
def full_disk(monkeypatch):
    def refuse(*args, **kwargs):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", refuse)
    monkeypatch.setattr(tifffile.TiffWriter, "write", refuse)


@pytest.mark.parametrize("words", [TRAIN, DISTILL, PREDICT], ids=["train", "distill", "predict"])
def test_full_disk(words, data, teacher, tmp_path, full_disk):
    result = run(*words.format(data=data, teacher=teacher, out=tmp_path).split())
    assert result.code == 2
    assert [line for line in result.lines if line.startswith("error: ")] == result.lines[-1:]
    assert "No space left on device" in result.lines[-1]
    assert names(tmp_path) == []


# Trainings that fail


def test_collapsed(data, tmp_path):
    rng = np.random.default_rng(0)
    core.write_volume(np.full(SHAPE, 7, np.uint8), tmp_path / "flat.tif", voxel_size=VOXEL)
    core.write_volume(rng.integers(0, 2, SHAPE).astype(np.uint8), tmp_path / "noise.tif", voxel_size=VOXEL)
    model = tmp_path / "m.safetensors"
    result = run("train", tmp_path / "flat.tif", tmp_path / "noise.tif", "-o", model, "--k", 1, "--steps", 4, *SMALL)
    assert result.code == 1
    assert result.out == ""
    assert [line for line in result.lines if line.startswith("error: ")] == result.lines[-1:]
    assert "collapsed" in result.lines[-1]
    assert not model.exists()


def test_diverged_after_a_good_model(data, tmp_path, monkeypatch):
    honest = Fit.step

    def step(fit):
        if fit.steps == 30:
            raise core.DivergedError("training diverged at step 31.", fit.best)
        return honest(fit)

    monkeypatch.setattr(Fit, "step", step)
    model = tmp_path / "m.safetensors"
    result = run("train", data / "raw.tif", data / "labels.tif", "-o", model, "--k", 4, "--steps", 40, *SMALL)
    assert result.code == 1
    assert result.lines[-1] == f"error: training diverged at step 31. The best model so far is {model}."
    assert core.load_model(model).summary["validation"]["step"] == 20


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory: 99 bytes"),
    ],
    ids=["python", "gpu", "cpu"],
)
def test_out_of_memory(error, data, tmp_path, monkeypatch):
    monkeypatch.setattr(core, "iter_train", mock.Mock(side_effect=error))
    result = run("train", data / "raw.tif", data / "labels.tif", "-o", tmp_path / "m.safetensors")
    assert result.code == 1
    assert len(result.lines) == 1
    assert "lower --batch" in result.err


@pytest.mark.parametrize("error", [RuntimeError("a bug"), KeyError("a bug")])
def test_a_bug_keeps_its_traceback(error, teacher, monkeypatch):
    monkeypatch.setattr(core, "load_model", mock.Mock(side_effect=error))
    monkeypatch.setattr(sys, "argv", ["napari-kdunet", "info", str(teacher)])
    with pytest.raises(type(error), match="a bug"):
        main()


# Ctrl-C


LONG = ("--k", "1", "--steps", "200", *SMALL, "--validations", "20")


def test_stopped_training_goes_on(data, tmp_path):
    model, state = tmp_path / "m.safetensors", tmp_path / "m.resume.safetensors"
    argv = ["train", data / "raw.tif", data / "labels.tif", "-o", model, *LONG]
    with subprocess.Popen([*MODULE, *argv], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        for line in process.stderr:
            if line.startswith("step "):
                process.send_signal(signal.SIGINT)
                break
        rest = process.stderr.read().splitlines()
        assert process.stdout.read() == ""
    assert process.returncode == 130
    assert rest.count("stopping after this step; press Ctrl-C again to stop at once") == 1
    assert line.strip() not in rest  # the line that Ctrl-C came into is not repeated
    assert "Traceback" not in "".join(rest)
    assert rest[-1].startswith("stopped: ")
    assert rest[-1].endswith("; go on with --resume (from m.resume.safetensors).")
    assert (str(model) in rest[-1]) == model.exists()
    assert state.exists()
    assert set(names(tmp_path)) <= {model.name, state.name}

    result = run(*argv, "--resume")
    assert result.code == 0, result.err
    step = int(re.match(r"resumed after step (\d+); ", result.err)[1])
    assert 10 <= step < 200
    assert names(tmp_path) == [model.name]


@pytest.mark.slow
def test_two_processes_stopped_by_one_ctrl_c_go_on(data, tmp_path):
    """The key goes to both; the first ends the training of both, and says so once."""
    model, state = tmp_path / "m.safetensors", tmp_path / "m.resume.safetensors"
    steps = ("--k", "2", "--steps", "40", *SMALL, "--validations", "20", "--device", "cpu")
    argv = ["train", data / "raw.tif", data / "labels.tif", "-o", model, *steps]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen([*MODULE, *argv, "--devices", "2"], **pipes, start_new_session=True) as process:
        said = []
        for line in process.stderr:
            said.append(line)
            if line.startswith("step "):
                os.killpg(process.pid, signal.SIGINT)
                break
        said += process.stderr.readlines()  # to the end: so the second process, which writes there too, has ended
        assert process.stdout.read() == ""
    assert process.returncode == 130, said
    assert said[-1].startswith("stopped: ")
    assert "".join(said).count("validated on") == "".join(said).count("stopped") == 1, said
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)
    assert state.exists()

    alone = run(*argv, "--resume")
    assert (alone.code, alone.out) == (2, "")
    assert "processes 2 (now 1)" in alone.lines[-1]
    again = subprocess.run([*MODULE, *argv, "--devices", "2", "--resume"], capture_output=True, text=True, timeout=300)
    assert again.returncode == 0, again.stderr
    assert again.stdout.startswith(f"{model}  IoU ")
    assert again.stdout.count("\n") == 1
    assert again.stderr.count("resumed after step ") == 1
    assert names(tmp_path) == [model.name]
    assert core.load_model(model).summary["processes"] == 2


def test_what_is_wrong_is_said_once_by_two_processes(data, tmp_path):
    argv = ["train", data / "raw.tif", data / "empty.tif", "-o", tmp_path / "m.safetensors", "--devices", "2", *SMALL]
    result = subprocess.run([*MODULE, *argv, "--device", "cpu"], capture_output=True, text=True, timeout=300)
    assert result.returncode == 2
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: ")
    assert "no foreground" in line


def press_at(step: int, times: int, number=signal.SIGINT):
    """Ctrl-C, perhaps twice, while a step runs."""
    honest = Fit.step

    def pressed(fit):
        if fit.steps == step:
            for _ in range(times):
                signal.raise_signal(number)
        return honest(fit)

    return mock.patch.object(Fit, "step", pressed)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_stopped_before_there_is_a_model(number, data, tmp_path):
    model = tmp_path / "m.safetensors"
    model.write_text("of another training")
    before = signal.getsignal(number)
    with press_at(3, 1, number):
        result = run("train", data / "raw.tif", data / "labels.tif", "-o", model, *LONG)
    assert result.code == 130
    assert result.lines[1:] == [
        "stopped: no model was good enough to be saved yet; go on with --resume (from m.resume.safetensors)."
    ]
    assert model.read_text() == "of another training"
    assert signal.getsignal(number) is before
    anew = run("train", data / "raw.tif", data / "labels.tif", "-o", model, "--k", 1, "--steps", 2, *SMALL)
    assert anew.lines[0].startswith("note: starting anew")


def test_stopped_at_once(data, tmp_path):
    model = tmp_path / "m.safetensors"
    before = signal.getsignal(signal.SIGINT)
    with press_at(25, 2):
        result = run("train", data / "raw.tif", data / "labels.tif", "-o", model, "--k", 4, "--steps", 40, *SMALL)
    assert result.code == 130
    assert result.lines[-1].startswith(f"stopped: the best model so far is {model}; go on with --resume")
    assert names(tmp_path) == ["m.resume.safetensors", "m.safetensors"]
    assert signal.getsignal(signal.SIGINT) is before


def test_stopped_while_loading(teacher, monkeypatch):
    monkeypatch.setattr(core, "load_model", mock.Mock(side_effect=KeyboardInterrupt))
    assert run("info", teacher) == (130, "", "stopped.\n")


@pytest.mark.parametrize("suffix", [".tif", ".zarr"])
def test_stopped_prediction(suffix, teacher, tmp_path):
    pty = pytest.importorskip("pty", exc_type=ImportError)
    (tmp_path / "out").mkdir()
    np.save(tmp_path / "long.npy", np.zeros((5000, 32, 32), np.uint8))
    argv = ["predict", teacher, tmp_path / "long.npy", "-o", tmp_path / "out" / f"mask{suffix}", "--voxel-size", "10"]
    terminal, end = pty.openpty()  # on a terminal there is a bar, which tells when it is under way
    with subprocess.Popen([*MODULE, *argv], stderr=end, stdout=end, env=os.environ | {"TERM": "xterm"}) as process:
        os.close(end)
        shown = b""
        while not re.search(rb"slice [1-9]\d*/5000", shown):
            shown += os.read(terminal, 1000)
        assert any(name.startswith(".mask.part-") for name in names(tmp_path / "out"))
        process.send_signal(signal.SIGINT)
        shown = read_all(terminal)
    assert process.returncode == 130
    assert b"stopped: nothing was written." in shown
    assert b"Traceback" not in shown
    assert names(tmp_path / "out") == []


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])  # memory is out, or the time of a job
def test_killed_prediction_is_gone_on_with(number, teacher, tmp_path):
    pty = pytest.importorskip("pty", exc_type=ImportError)
    np.save(tmp_path / "long.npy", np.random.default_rng(0).integers(0, 255, (600, 32, 32), dtype=np.uint8))
    for folder in ("killed", "whole"):
        (tmp_path / folder).mkdir()
    argv = ["predict", teacher, tmp_path / "long.npy", "--voxel-size", "10", "-o"]
    killed, whole = (tmp_path / folder / "mask.zarr" for folder in ("killed", "whole"))
    terminal, end = pty.openpty()
    with subprocess.Popen(
        [*MODULE, *argv, killed], stderr=end, stdout=end, env=os.environ | {"TERM": "xterm"}
    ) as process:
        os.close(end)
        shown = b""
        while not re.search(rb"slice [1-9]\d*/600", shown):
            shown += os.read(terminal, 1000)
        process.send_signal(number)
        read_all(terminal)
    assert process.returncode == -number
    assert not killed.exists()
    (note,) = run(*argv, killed).lines
    done = re.fullmatch(r"note: going on after (\d+) slices that a killed run had written", note)
    assert done is not None
    assert 0 < int(done[1]) < 600
    assert names(killed.parent) == ["mask.zarr"]
    assert run(*argv, whole).lines == []
    files = [path.relative_to(whole) for path in whole.rglob("*") if path.is_file()]
    assert len(files) > 600
    assert len(files) == sum(path.is_file() for path in killed.rglob("*"))
    assert all((killed / file).read_bytes() == (whole / file).read_bytes() for file in files)


def read_all(terminal: int) -> bytes:
    parts = []
    try:
        while part := os.read(terminal, 1000):
            parts.append(part)
    except OSError:  # how Linux says that the other end is closed
        pass
    os.close(terminal)
    return b"".join(parts)
