"""Wrong input is one line and exit code 2 with nothing written; what fails later keeps the best model."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import tifffile
import torch

from command_line import MODULE, SHAPE, SMALL, VOXEL, run
from folders import names
from napari_kdunet import core
from napari_kdunet.cli import main
from napari_kdunet.core.training.trainer import Trainer

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
    "one sample for two volumes": (
        "predict {teacher} {data}/raw.tif {data}/short.tif --out-dir {out} --sample {data}/labels.tif",
        "the mask of one volume, not of 2",
    ),
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
    "over the image": ("predict {teacher} {data}/raw.tif --overwrite -o {data}/../{data.name}/raw.tif", "another name"),
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


def test_what_is_wrong_is_said_once_by_two_processes(data, tmp_path):
    argv = ["train", data / "raw.tif", data / "empty.tif", "-o", tmp_path / "m.safetensors", "--devices", "2", *SMALL]
    result = subprocess.run([*MODULE, *argv, "--device", "cpu"], capture_output=True, text=True, timeout=300)
    assert result.returncode == 2
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: ")
    assert "no foreground" in line


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
    slope = np.broadcast_to(np.add.outer(np.arange(SHAPE[1]), np.arange(SHAPE[2])).astype(np.uint8), SHAPE)
    core.write_volume(slope, tmp_path / "slope.tif", voxel_size=VOXEL)  # a constant image would be no sample at all
    core.write_volume(rng.integers(0, 2, SHAPE).astype(np.uint8), tmp_path / "noise.tif", voxel_size=VOXEL)
    model = tmp_path / "m.safetensors"
    result = run("train", tmp_path / "slope.tif", tmp_path / "noise.tif", "-o", model, "--k", 1, "--steps", 4, *SMALL)
    assert result.code == 1
    assert result.out == ""
    assert [line for line in result.lines if line.startswith("error: ")] == result.lines[-1:]
    assert "collapsed" in result.lines[-1]
    assert not model.exists()
    assert not list(tmp_path.glob("*.resume.*")), "it has come to its end, and nothing is left to go on with"


def test_diverged_after_a_good_model(data, tmp_path, monkeypatch):
    honest = Trainer.step

    def step(trainer):
        if trainer.progress.step == 30:
            raise core.DivergedError("training diverged at step 31.", trainer.checkpoints.best)
        return honest(trainer)

    monkeypatch.setattr(Trainer, "step", step)
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
    assert "for objects check the voxel size (--voxel-size)" in result.err


@pytest.mark.parametrize("error", [RuntimeError("a bug"), KeyError("a bug")])
def test_a_bug_keeps_its_traceback(error, teacher, monkeypatch):
    monkeypatch.setattr(core, "load_model", mock.Mock(side_effect=error))
    monkeypatch.setattr(sys, "argv", ["napari-kdunet", "info", str(teacher)])
    with pytest.raises(type(error), match="a bug"):
        main()
