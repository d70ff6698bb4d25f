"""Ctrl-C and signals: what there is gets saved, and the command can be gone on with."""

from __future__ import annotations

import os
import re
import signal
import subprocess
from unittest import mock

import numpy as np
import pytest

from command_line import MODULE, SMALL, run
from folders import names
from napari_kdunet import core
from napari_kdunet.core.training.trainer import Trainer

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


def test_a_stopped_adaptation_leaves_its_model_alone(data, teacher, tmp_path):
    """What would need an option that `adapt` has not is neither kept nor spoken of."""
    model, state = tmp_path / "m.safetensors", tmp_path / "m.resume.safetensors"
    state.write_text("of a training that was stopped")
    argv = ["adapt", teacher, data / "raw.tif", "-o", model, *LONG]
    with subprocess.Popen([*MODULE, *argv], stderr=subprocess.PIPE, text=True) as process:
        said = []
        for line in process.stderr:
            said.append(line)
            if line.startswith("step "):
                process.send_signal(signal.SIGINT)
                break
        said += process.stderr.readlines()
    assert process.returncode == 130
    assert said[-1].startswith("stopped: ")
    assert "--resume" not in "".join(said)
    assert state.read_text() == "of a training that was stopped"
    model.touch()
    again = run(*argv)
    assert (again.code, len(again.lines)) == (2, 1)
    assert "--overwrite" in again.err
    assert "--resume" not in again.err
    done = run(*argv, "--overwrite", "--k", 4, "--steps", 1)
    assert done.code == 0, done.err
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


def press_at(step: int, times: int, number=signal.SIGINT):
    """Ctrl-C, perhaps twice, while a step runs."""
    honest = Trainer.step

    def pressed(trainer):
        if trainer.progress.step == step:
            for _ in range(times):
                signal.raise_signal(number)
        return honest(trainer)

    return mock.patch.object(Trainer, "step", pressed)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_stopped_before_there_is_a_model(number, data, tmp_path):
    model = tmp_path / "m.safetensors"
    model.write_text("of another training")
    before = signal.getsignal(number)
    with press_at(3, 1, number):
        result = run("train", data / "raw.tif", data / "labels.tif", "-o", model, "--overwrite", *LONG)
    assert result.code == 130
    assert result.lines[1:] == [
        "stopped: no model was good enough to be saved yet; go on with --resume (from m.resume.safetensors)."
    ]
    assert model.read_text() == "of another training"
    assert signal.getsignal(number) is before
    argv = ["train", data / "raw.tif", data / "labels.tif", "-o", model, "--overwrite"]
    anew = run(*argv, "--k", 1, "--steps", 2, *SMALL)
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
    assert (b"stopped: nothing was written." in shown) == (suffix == ".tif")
    assert (b" of 5000 slices are kept, and the same command goes on." in shown) == (suffix == ".zarr")
    assert b"Traceback" not in shown
    assert len(names(tmp_path / "out")) == (suffix == ".zarr")


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
    assert process.returncode == (130 if number == signal.SIGTERM else -number)
    assert not killed.exists()
    (note,) = run(*argv, killed).lines
    done = re.fullmatch(r"note: going on after (\d+) slice(s?) that an earlier run had written", note)
    assert done is not None
    assert (done[1] == "1") == (done[2] == "")  # it can be killed after a single one
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
