"""What nobody thinks of: names that are too long or odd, a full standard output, a file that is cut meanwhile."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import tifffile

from command_line import MODULE, run
from napari_kdunet import core
from napari_kdunet.core.writing import writer

MODEL = "lucchi-1unet"


def refused(*argv, by: int = 2) -> str:
    """The one line of a command that ends with this exit code."""
    code, out, err = run(*argv)
    assert (code, out) == (by, "")
    (line,) = err.splitlines()
    assert line.startswith("error: ")
    assert len(line) < 320
    assert line.isprintable()
    return line


@pytest.fixture
def raw(tmp_path) -> Path:
    path = tmp_path / "raw.tif"
    pixels = np.random.default_rng(0).integers(0, 255, (6, 64, 64), dtype=np.uint8)
    core.write_volume(pixels, path, voxel_size=(10, 10, 10))
    return path


LONG = {"name": "n" * 300, "path": "/".join(["d" * 100] * 60)}


@pytest.mark.parametrize("long", LONG.values(), ids=LONG)
def test_names_that_are_too_long(long, raw, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for suffix in (".tif", ".zarr", ".h5", ".mrc"):
        assert "longer than" in refused("predict", MODEL, raw, "-o", f"{long}{suffix}")
    for argv in (
        ("predict", f"{long}.safetensors", raw, "-o", "mask.tif"),
        ("predict", MODEL, f"{long}.tif", "-o", "mask.tif"),
        ("predict", MODEL, raw, "--out-dir", long),
        ("train", raw, raw, "-o", f"{long}.safetensors"),
        ("train", f"{long}.tif", raw, "-o", "m.safetensors"),
        ("train", raw, f"{long}.tif", "-o", "m.safetensors"),
        ("distill", f"{long}.safetensors", raw, "-o", "m.safetensors"),
        ("distill", MODEL, raw, "-o", f"{long}.safetensors"),
        ("evaluate", f"{long}.tif", raw),
        ("info", f"{long}.safetensors"),
        ("demo", "--out", long),
    ):
        refused(*argv)
    assert [path.name for path in tmp_path.iterdir()] == ["raw.tif"]


def test_control_characters_are_shown_and_not_obeyed(raw, tmp_path):
    odd = "a\x1b[31m\x07\nb\x9b"
    line = refused("predict", MODEL, tmp_path / f"{odd}.tif", "-o", tmp_path / "mask.tif")
    assert r"a\x1b[31m\x07\nb\x9b.tif" in line
    out = tmp_path / f"{odd}.zarr"
    code, shown, err = run("predict", MODEL, raw, "-o", out)
    assert (code, err) == (0, "")
    assert shown == f"{tmp_path}/" + r"a\x1b[31m\x07\nb\x9b.zarr" + "\n"
    assert out.exists()


@pytest.mark.skipif(os.name != "posix", reason="there names are text")
def test_a_name_that_is_no_text(raw, tmp_path):
    out = os.fsdecode(os.fsencode(tmp_path) + b"/\xff.tif")
    done = subprocess.run([*MODULE, "predict", MODEL, raw, "-o", out], capture_output=True, check=False, timeout=60)
    assert (done.returncode, done.stderr) == (0, b"")
    assert Path(out).exists()


@pytest.mark.parametrize("size", ["inf", "-inf", "nan", "1e999", "0", "1,inf,1", "1e308"])
def test_voxel_sizes_that_are_none(size, raw, tmp_path):
    assert size in refused("predict", MODEL, raw, "-o", tmp_path / "mask.tif", f"--voxel-size={size}")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no such device")
@pytest.mark.parametrize("argv", [["info", MODEL], ["info", MODEL, "--json"], ["--help"], ["--version"]])
def test_a_full_standard_output(argv):
    with Path("/dev/full").open("w") as full:
        done = subprocess.run([*MODULE, *argv], stdout=full, stderr=subprocess.PIPE, text=True, timeout=60)
    assert done.returncode == 2
    assert done.stderr == "error: cannot write to the standard output: No space left on device\n"


@pytest.mark.parametrize("argv", [["info", MODEL], ["--help"]])
def test_a_closed_pipe(argv):
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run([*MODULE, *argv], stdout=writing, stderr=subprocess.PIPE, text=True, timeout=60)
    os.close(writing)
    assert (done.returncode, done.stderr) == (141, "")  # as whatever else is piped into head


@pytest.mark.skipif(os.name != "posix", reason="there a shell closes none")
@pytest.mark.parametrize("argv", [["info", MODEL], ["--help"], ["predict", MODEL, "raw.tif", "-o", "mask.tif"]])
def test_a_closed_standard_output(argv, raw):
    done = subprocess.run(
        ["sh", "-c", '"$@" >&-', "sh", *MODULE, *argv], cwd=raw.parent, stderr=subprocess.PIPE, text=True, timeout=60
    )
    assert done.returncode == 2
    assert done.stderr == "error: cannot write to the standard output: it is closed\n"
    assert (raw.parent / "mask.tif").exists() == ("predict" in argv)


@pytest.mark.skipif(os.name != "posix", reason="there a shell closes none")
def test_a_closed_standard_error_stops_no_work(raw):
    argv = [*MODULE, "predict", MODEL, "raw.tif", "-o", "mask.tif"]
    for code, out in ((0, "mask.tif\n"), (2, "")):  # the second time it exists, of which there is a message
        done = subprocess.run(
            ["sh", "-c", '"$@" <&- 2>&-', "sh", *argv], cwd=raw.parent, stdout=subprocess.PIPE, text=True, timeout=60
        )
        assert (done.returncode, done.stdout) == (code, out)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no such device")
def test_a_full_standard_error_stops_no_work(raw, tmp_path):
    core.write_volume(np.asarray(core.open_volume(raw)), tmp_path / "unknown.tif")  # of which there is a note
    out = tmp_path / "mask.tif"
    with Path("/dev/full").open("w") as full:
        argv = [*MODULE, "predict", MODEL, tmp_path / "unknown.tif", "-o", out]
        done = subprocess.run(argv, stdout=subprocess.PIPE, stderr=full, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, f"{out}\n")


@pytest.mark.parametrize("kind", ["tif", "npy"])
def test_a_file_that_is_cut_while_it_is_read(kind, tmp_path):
    """From a memory map it would end the process."""
    path, out = tmp_path / f"raw.{kind}", tmp_path / "mask.zarr"
    pixels = np.random.default_rng(0).integers(0, 255, (40, 64, 64), dtype=np.uint8)
    if kind == "tif":
        tifffile.imwrite(path, pixels, photometric="minisblack")
    else:
        np.save(path, pixels)
    honest = writer.ProgressRecord.add

    def add(record, z):
        if z == 0:
            os.truncate(path, 20_000)
        return honest(record, z)

    argv = ["predict", MODEL, path, "-o", out, "--voxel-size", "10"]
    with mock.patch.object(writer.ProgressRecord, "add", add):
        line = refused(*argv)
    assert f"of {path}" in line
    assert "cut short" in line
    assert re.search("; [1-9] of 40 slices are kept for the next run$", line)
    assert not out.exists()


UNCACHED = """
import json, sys
from numba.core import caching
for kind in vars(caching).values():  # as where neither the package's folder nor the user's can be written to
    if "_locator_classes" in getattr(kind, "__dict__", {}):
        kind._locator_classes = []
from napari_kdunet.cli import main
for command in json.loads(sys.argv.pop()):
    sys.argv[1:] = command
    try:
        main()
    except SystemExit as ended:
        print("ended", ended.code)
"""


@pytest.mark.slow
def test_where_nothing_compiled_can_be_kept(raw, tmp_path):
    """Both commands in one process, for compiling takes most of the time."""
    pytest.importorskip("numba")
    labels = np.asarray(core.open_volume(raw)) > 128
    core.write_volume(labels, tmp_path / "labels.tif")
    small = ["--depth", "1", "--patch", "32", "--batch", "2", "--steps", "2", "--validations", "1", "--threads", "1"]
    commands = [
        ["train", f"{raw}", f"{tmp_path / 'labels.tif'}", "-o", f"{tmp_path / 'a.safetensors'}", "--k", "1", *small],
        ["distill", MODEL, f"{raw}", "-o", f"{tmp_path / 'b.safetensors'}", "--k", "1", *small],
    ]
    argv = [sys.executable, "-c", UNCACHED, json.dumps(commands)]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=600)
    assert (done.returncode, "Traceback" in done.stderr) == (0, False), done.stderr
    ends = [line for line in done.stdout.splitlines() if line.startswith("ended ")]
    assert len(ends) == 2
    assert set(ends) <= {"ended 0", "ended 1"}  # a collapse in so few steps is no matter here


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("can't start new thread"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 4 bytes"),
        OSError(12, "Cannot allocate memory"),
        ImportError("x.so: failed to map segment from shared object"),
    ],
    ids=repr,
)
def test_too_little_memory_is_one_line(error, raw, monkeypatch):
    """Whatever ran into it: an array, a thread, a library that is loaded."""

    def fail(*args, **kwargs):
        raise error

    def fail_to_load(*args, **kwargs):
        try:
            raise error
        except type(error) as cause:
            raise OSError("could not find or load a library") from cause

    monkeypatch.setattr(core, "instances", fail_to_load)
    assert "out of memory" in refused("objects", raw, "-o", raw.with_name("objects.tif"), by=1)
    monkeypatch.setattr(core, "instances", fail)
    assert "out of memory" in refused("objects", raw, "-o", raw.with_name("objects.tif"), by=1)
    assert [entry.name for entry in raw.parent.iterdir()] == ["raw.tif"]
    if not isinstance(error, MemoryError):
        monkeypatch.setattr(core, "instances", mock.Mock(side_effect=type(error)("a bug")))
        with pytest.raises(type(error), match="a bug"):
            run("objects", raw, "-o", raw.with_name("objects.tif"))
