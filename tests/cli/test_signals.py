"""Ctrl-C, SIGTERM and SIGHUP end every command alike, whenever they come; what a killed one left is cleared away."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from folders import names
from napari_kdunet import core
from napari_kdunet.sample import synthetic_em

pytestmark = pytest.mark.skipif(os.name != "posix", reason="there are no such signals")

MODULE = (sys.executable, "-m", "napari_kdunet")
MODEL = "lucchi-1unet"
SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]

# Stops itself when a module is about to be imported, in which an exception could be lost.
STOPPED = """
import os, signal, sys
number, module = int(sys.argv.pop(1)), sys.argv.pop(1)

class Stop:
    def find_spec(self, name, path=None, target=None):
        if name == module:
            try:
                os.kill(os.getpid(), number)
            except BaseException:
                pass

sys.meta_path.insert(0, Stop())
from napari_kdunet.cli import main
main()
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    raw, labels = synthetic_em((4, 64, 64), seed=0)
    core.write_volume(raw, folder / "raw.tif", voxel_size=(10, 10, 10))
    core.write_volume(labels, folder / "labels.tif", voxel_size=(10, 10, 10))
    return folder


COMMANDS = {
    "predict": ["predict", MODEL, "raw.tif", "-o", "{out}/mask.zarr"],
    "train": ["train", "raw.tif", "labels.tif", "-o", "{out}/m.safetensors", "--k", "1", "--steps", "2"],
    "distill": ["distill", MODEL, "raw.tif", "-o", "{out}/m.safetensors", "--k", "1", "--steps", "2"],
    "evaluate": ["evaluate", "labels.tif", "labels.tif"],
    "info": ["info", MODEL],
    "demo": ["demo", "--out", "{out}/demo"],
    "study": ["study", "depth", "-o", "{out}/study"],
    "sweep": ["sweep", MODEL, "raw.tif", "labels.tif", "-o", "{out}/sweep"],
}


MOMENTS = [(command, number, "typer") for command, number in zip(COMMANDS, SIGNALS * 3, strict=False)]
MOMENTS += [("train", signal.SIGTERM, "torch"), ("predict", signal.SIGINT, "torch")]


@pytest.mark.parametrize(("command", "number", "module"), MOMENTS)
def test_stopped_in_the_first_moment(command, number, module, data, tmp_path):
    argv = [word.format(out=tmp_path) for word in COMMANDS[command]]
    done = subprocess.run(
        [sys.executable, "-c", STOPPED, str(int(number)), module, *argv],
        cwd=data,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "stopped.\n")
    assert names(tmp_path) == []


def test_next_to_nothing_is_imported_before_signals_are_handled():
    code = "import sys; before = {*sys.modules}; import napari_kdunet.cli; print(*{*sys.modules} - before)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert not {"typing", "re", "dataclasses", "pathlib", "typer"} & {*done.stdout.split()}


def test_nohup_is_heeded(data):
    code = STOPPED.replace(
        "from napari_kdunet.cli", "signal.signal(signal.SIGHUP, signal.SIG_IGN)\nfrom napari_kdunet.cli"
    )
    argv = [sys.executable, "-c", code, str(int(signal.SIGHUP)), "torch", "info", MODEL, "--json"]
    assert subprocess.run(argv, capture_output=True, check=False, timeout=60).returncode == 0


# Kills itself while it writes slice 2.
KILLED = """
import os, signal, sys
from napari_kdunet.cli import main
from napari_kdunet.core.writing import writer
honest = writer.Written

def written(z, done):
    if z == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return honest(z, done)

writer.Written = written
main()
"""


@pytest.mark.parametrize("suffix", [".tif", ".zarr"])
def test_the_next_run_clears_away_what_a_killed_one_left(suffix, data, tmp_path):
    out = tmp_path / f"mask{suffix}"
    argv = ["predict", MODEL, "raw.tif", "-o", str(out)]
    killed = subprocess.run([sys.executable, "-c", KILLED, *argv], cwd=data, check=False, timeout=60)
    assert killed.returncode == -signal.SIGKILL
    assert not out.exists()
    assert len([name for name in names(tmp_path) if ".part-" in name]) == 1
    done = subprocess.run([*MODULE, *argv], cwd=data, capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stdout) == (0, f"{out}\n")
    assert ("going on after 3 slices" in done.stderr) == (suffix == ".zarr")
    assert names(tmp_path) == [out.name]
    raw = core.open_volume(data / "raw.tif")
    expected = core.predict(core.load_model(MODEL), raw, output="labels").compute()
    np.testing.assert_array_equal(np.asarray(core.open_volume(out)), expected)
