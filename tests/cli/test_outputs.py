"""Where results go: nothing of the user's is replaced, a stop keeps what can be gone on with, many volumes at once."""

from __future__ import annotations

import os
import re
import signal
import subprocess
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import tifffile

from command_line import MODULE, run
from folders import contents, names
from napari_kdunet import core
from napari_kdunet.core.writing import writer
from napari_kdunet.sample import synthetic_em

MODEL = "lucchi-1unet"
VOXEL = (10.0, 10.0, 10.0)


def refused(*argv) -> str:
    """The one line with which wrong input is refused."""
    result = run(*argv)
    assert (result.code, result.out) == (2, "")
    (line,) = result.err.splitlines()
    assert line.startswith("error: ")
    assert len(line) < 320
    return line


@pytest.fixture(scope="module")
def volumes() -> tuple[np.ndarray, np.ndarray]:
    return synthetic_em((6, 96, 96), seed=0)


@pytest.fixture
def data(volumes, tmp_path) -> Path:
    """A folder with an image, its labels and the same image as a folder of slices."""
    raw, labels = volumes
    core.write_volume(raw, tmp_path / "raw.tif", voxel_size=VOXEL)
    core.write_volume(labels, tmp_path / "labels.tif", voxel_size=VOXEL)
    (tmp_path / "slices").mkdir()
    for z, image in enumerate(raw):
        tifffile.imwrite(tmp_path / "slices" / f"s{z}.tif", image, compression="zlib")
    return tmp_path


@pytest.fixture(scope="module")
def expected(volumes) -> np.ndarray:
    raw = core.open_volume(volumes[0], voxel_size=VOXEL)
    return core.predict(core.load_model(MODEL), raw, output="labels").compute()


def test_an_output_is_never_an_input(data):
    before = contents(data)
    for argv in (
        ("predict", MODEL, data / "slices", "-o", data / "slices" / "s1.tif"),
        ("predict", MODEL, data / "slices", "-o", data / "slices" / "mask.zarr"),
        ("predict", MODEL, data / "raw.tif", "-o", data / "slices" / ".." / "raw.tif"),
        ("predict", MODEL, data / "slices", "--out-dir", data / "slices" / "masks"),
        ("predict", MODEL, data / "labels.tif", "-o", data / "raw.tif", "--sample", data / "raw.tif"),
        ("train", data / "slices", data / "labels.tif", "-o", data / "slices" / "m.safetensors"),
        ("distill", MODEL, data / "slices", "-o", data / "slices" / "m.safetensors"),
        ("adapt", MODEL, data / "raw.tif", "-o", data / "slices" / "m.safetensors", "--sample", data / "slices"),
        ("sweep", MODEL, data / "slices", data / "labels.tif", "-o", data / "slices"),
        ("study", "depth", data / "slices", data / "labels.tif", "-o", data / "slices" / "study"),
    ):
        line = refused(*argv, *(["--overwrite"] if argv[0] not in ("sweep", "study") else []))
        assert str(data / ("raw.tif" if "raw.tif" in line else "slices")) in line
    assert contents(data) == before


@pytest.mark.parametrize("suffix", [".tif", ".zarr", ".h5", ".mrc"])
def test_a_result_is_replaced_only_if_asked(suffix, data, expected):
    out = data / f"mask{suffix}"
    argv = ["predict", MODEL, data / "raw.tif", "-o", out]
    assert run(*argv) == (0, f"{out}\n", "")
    before = contents(data)
    assert "--overwrite" in refused(*argv)
    assert contents(data) == before
    assert run(*argv, "--overwrite").code == 0
    if suffix in (".tif", ".zarr"):
        np.testing.assert_array_equal(np.asarray(core.open_volume(out)), expected)
    assert sorted({*names(data), out.name}) == names(data)
    assert not any(name.startswith(".") for name in names(data))


def test_a_note_in_a_result_is_kept(data):
    argv = ["predict", MODEL, data / "raw.tif", "-o", data / "mask.zarr"]
    assert run(*argv).code == 0
    (data / "mask.zarr" / "note.txt").write_text("mine")
    assert "note.txt" in refused(*argv, "--overwrite")
    assert (data / "mask.zarr" / "note.txt").read_text() == "mine"


def test_a_link_is_followed(data, expected):
    (data / "there").mkdir()
    (data / "mask.tif").symlink_to(data / "there" / "real.tif")
    assert run("predict", MODEL, data / "raw.tif", "-o", data / "mask.tif").code == 0
    assert (data / "mask.tif").is_symlink()
    np.testing.assert_array_equal(np.asarray(core.open_volume(data / "there" / "real.tif")), expected)
    assert names(data / "there") == ["real.tif"]


@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_a_mask_says_that_it_holds_labels(version, data):
    zarr = pytest.importorskip("zarr")
    out = data / "mask.zarr"
    argv = ["predict", MODEL, data / "raw.tif", "--ome-version", version, "-o", out]
    assert run(*argv).code == 0
    assert run(*argv, "--probabilities", "--overwrite").code == 0
    attributes = zarr.open_group(out, mode="r").attrs.asdict()
    assert "image-label" not in attributes.get("ome", attributes)
    assert run(*argv, "--overwrite").code == 0
    attributes = zarr.open_group(out, mode="r").attrs.asdict()
    assert "image-label" in attributes.get("ome", attributes)


SMALL = ("--k", "1", "--depth", "2", "--patch", "32", "--batch", "2", "--validations", "2", "--threads", "1")


@pytest.mark.parametrize("command", ["train", "distill", "adapt"])
def test_the_state_of_a_training_replaces_no_input(data, command):
    """``NAME.resume.safetensors`` is written too, and removed in the end."""
    start = data / "m.resume.safetensors"
    core.load_model(MODEL).save(start)
    before = contents(data)
    given = {"train": [data / "raw.tif", data / "labels.tif"], "distill": [MODEL, data / "raw.tif"]}
    argv = [command, *given.get(command, [MODEL, data / "raw.tif"]), "-o", data / "m.safetensors", "--start", start]
    argv += ["--steps", "1", "--validations", "1"]  # or it would be long until this test fails
    for more in ([], ["--overwrite"]):
        assert "m.resume.safetensors" in refused(*argv, *more)
    assert contents(data) == before


def test_the_state_of_another_training_is_not_gone_on_with(data):
    argv = ["train", data / "raw.tif", data / "labels.tif", "-o", data / "m.safetensors", *SMALL, "--steps", "4"]
    other, state = data / "other.safetensors", data / "m.resume.safetensors"
    events = core.iter_train(
        data / "raw.tif", data / "labels.tif", core.TrainConfig(k=4, depth=3, patch=32, steps=9, threads=1), out=other
    )
    while not isinstance(next(events), core.Stepped):
        pass
    events.close()
    (data / "other.resume.safetensors").rename(state)
    before = contents(data)
    assert "other settings: k 4 (now 1)" in refused(*argv, "--resume").replace("depth 3 (now 2), ", "")
    core.load_model(MODEL).save(state)
    assert "not the state of a training" in refused(*argv, "--resume")
    state.write_bytes(before[str(state)])
    assert contents(data) == before


def test_a_model_is_replaced_only_if_asked(data):
    out = data / "m.safetensors"
    argv = ["train", data / "raw.tif", data / "labels.tif", "-o", out, *SMALL, "--steps", "4"]
    out.write_bytes(b"of the user's")
    for more in ([], ["--paper"]):
        assert "--overwrite" in refused(*argv, *more)
    distill = ["distill", MODEL, data / "raw.tif", "-o", out]
    assert "--overwrite" in refused(*distill)
    assert out.read_bytes() == b"of the user's"
    (data / "m.resume.safetensors").write_bytes(b"of a training that was stopped")
    assert "--resume" in refused(*argv)
    assert "m.resume.safetensors" in refused(*argv, "--resume")  # and not that there is a model
    assert out.read_bytes() == b"of the user's"
    result = run(*argv, "--overwrite")
    assert result.code in (0, 1)  # a collapse in so few steps is no matter here
    assert "exists" not in result.err


def test_a_demo_replaces_only_what_a_demo_has_made(tmp_path):
    (tmp_path / "teacher.safetensors").write_bytes(b"of the user's")
    assert "teacher.safetensors" in refused("demo", "--out", tmp_path)
    assert contents(tmp_path) == {str(tmp_path / "teacher.safetensors"): b"of the user's"}


# Stopped, and gone on with


def stopped_at(z: int, number: int):
    """A signal while slice `z` is written."""
    honest = writer.ProgressRecord.add

    def add(record, slice_):
        if slice_ == z:
            signal.raise_signal(number)
        return honest(record, slice_)

    return mock.patch.object(writer.ProgressRecord, "add", add)


SIGNALS = [number for name in ("SIGINT", "SIGTERM", "SIGHUP") if (number := getattr(signal, name, None))]


@pytest.mark.parametrize("number", SIGNALS)
def test_a_stopped_prediction_to_a_zarr_is_kept(number, data, expected):
    out = data / "out" / "mask.zarr"
    out.parent.mkdir()
    argv = ["predict", MODEL, data / "raw.tif", "-o", out]
    handlers = [signal.getsignal(n) for n in SIGNALS]
    with stopped_at(3, number):
        result = run(*argv)
    assert (result.code, result.out) == (130, "")
    assert result.err.splitlines()[-1] == "stopped: 4 of 6 slices are kept, and the same command goes on."
    assert [signal.getsignal(n) for n in SIGNALS] == handlers
    assert not out.exists()
    assert len(names(out.parent)) == 1

    other = run(*argv, "--threshold", "0.9")  # another result: nothing of it is taken
    assert (other.code, "going on" in other.err) == (0, False)
    assert len(names(out.parent)) == 2
    again = run(*argv, "--overwrite")
    assert (again.code, again.err) == (0, "note: going on after 4 slices that an earlier run had written\n")
    np.testing.assert_array_equal(np.asarray(core.open_volume(out)), expected)
    assert names(out.parent) == ["mask.zarr"]


@pytest.mark.parametrize("suffix", [".tif", ".h5", ".mrc"])
def test_a_stopped_prediction_to_a_file_leaves_nothing(suffix, data):
    out = data / "out" / f"mask{suffix}"
    out.parent.mkdir()
    with stopped_at(3, signal.SIGTERM):
        result = run("predict", MODEL, data / "raw.tif", "-o", out)
    assert result.code == 130
    assert result.err.splitlines()[-1] == "stopped: nothing was written."
    assert names(out.parent) == []


def test_another_that_writes_the_same_is_named(data):
    from napari_kdunet.core.writing.lock import TargetLock

    with TargetLock(data / "mask.zarr"):
        line = refused("predict", MODEL, data / "raw.tif", "-o", data / "mask.zarr")
    assert f"process {os.getpid()} on " in line
    assert not (data / "mask.zarr").exists()


# Slices that cannot be read


@pytest.mark.parametrize("kind", ["empty", "cut", "text", "damaged"])
def test_on_error_skip_covers_files_that_are_no_images(kind, data, expected):
    file, out = data / "slices" / "s3.tif", data / "mask.tif"
    content = file.read_bytes()
    with tifffile.TiffFile(file) as tif:
        begin = tif.pages.first.dataoffsets[0]
    bad = {
        "empty": b"",
        "cut": content[: begin + 100],
        "text": b"not an image\n",
        "damaged": content[:begin] + b"\xff" * 100 + content[begin + 100 :],
    }
    file.write_bytes(bad[kind])
    argv = ["predict", MODEL, data / "slices", "-o", out, "--voxel-size", "10"]
    assert str(file) in refused(*argv)
    assert not out.exists()
    result = run(*argv, "--on-error", "skip")
    assert result[:2] == (0, f"{out}\n")
    skipped, note = result.err.splitlines()
    assert skipped.startswith(f"skipped: cannot read slice z=3 of {data / 'slices'}: {file}")
    assert note == f"note: skipped 1 of 6 slices, which are 0 in {out}"
    written = np.asarray(core.open_volume(out))
    assert not written[3].any()
    np.testing.assert_array_equal(np.delete(written, 3, 0), np.delete(expected, 3, 0))


def test_a_first_slice_that_is_no_image(data):
    (data / "slices" / "s0.tif").write_bytes(b"")
    argv = ["predict", MODEL, data / "slices", "-o", data / "mask.tif", "--voxel-size", "10", "--on-error", "skip"]
    result = run(*argv)
    assert result.code == 0, result.err
    assert "s0.tif" in result.err
    for file in (data / "slices").iterdir():
        file.write_bytes(b"")
    assert "s0.tif" in refused(*argv, "--overwrite")


# Many volumes


def test_many_volumes(data, expected, monkeypatch):
    (data / "more").mkdir()
    for z in (2, 10):
        core.write_volume(core.open_volume(data / "raw.tif")[:z], data / "more" / f"part{z}.tif", voxel_size=VOXEL)
    monkeypatch.chdir(data)
    out = data / "results" / "today"
    argv = ["predict", MODEL, "raw.tif", "more/*.tif", "slices", "--out-dir", out, "--voxel-size", "10"]
    result = run(*argv)
    assert result.code == 0, result.err
    assert names(out) == ["part10.tif", "part2.tif", "raw.tif", "slices.tif"]
    np.testing.assert_array_equal(np.asarray(core.open_volume(out / "raw.tif")), expected)
    np.testing.assert_array_equal(np.asarray(core.open_volume(out / "slices.tif")), expected)
    rows = [line.split() for line in result.out.splitlines()[1:]]
    assert [(row[0], row[1]) for row in rows] == [
        ("raw.tif", "6"),
        ("more/part2.tif", "2"),
        ("more/part10.tif", "6"),
        ("slices", "6"),
    ]
    assert [line.split()[0] for line in result.err.splitlines()] == ["1/4", "2/4", "3/4", "4/4"]


def test_a_dataset_in_a_file_whose_name_looks_like_a_pattern(data, expected):
    core.write_volume(core.open_volume(data / "raw.tif"), data / "raw[1].h5", voxel_size=VOXEL)
    result = run("predict", MODEL, f"{data / 'raw[1].h5'}:/volume", "-o", data / "mask.tif", "--voxel-size", "10")
    assert result.code == 0, result.err
    np.testing.assert_array_equal(np.asarray(core.open_volume(data / "mask.tif")), expected)


@pytest.mark.parametrize("kind", ["tif", "zarr", "h5", "mrc"])
def test_many_volumes_go_on_after_a_failure(kind, data):
    (data / "bad.tif").write_bytes(b"not a TIFF")
    out = data / "results"
    result = run(
        *("predict", MODEL, data / "bad.tif", data / "nowhere.tif", data / "raw.tif"),
        *("--out-dir", out, "--format", kind),
    )
    assert result.code == 2
    assert names(out) == [f"raw.{kind}"]
    assert result.out.count("failed: ") == 2
    assert all(str(name) in result.out for name in ("bad.tif", "nowhere.tif", f"raw.{kind}"))
    assert result.err.splitlines()[-1] == "error: 2 of 3 volumes failed, see the table."
    again = run("predict", MODEL, data / "raw.tif", "--out-dir", out, "--format", kind)
    assert again.code == 2
    assert "--overwrite" in again.out
    assert run("predict", MODEL, data / "raw.tif", "--out-dir", out, "--format", kind, "--overwrite").code == 0


def test_a_row_of_many_volumes_is_a_line(data):
    """However long its names are: who searches the table for one finds it."""
    folder = data / ("a folder with a long name " * 9)
    folder.mkdir()
    (folder / "raw.tif").write_bytes((data / "raw.tif").read_bytes())
    (folder / "bad.tif").write_bytes(b"not a TIFF")
    result = run("predict", MODEL, folder / "*.tif", "--out-dir", folder / "out")
    heading, bad, good = result.out.splitlines()
    assert heading.split() == ["volume", "slices", "seconds", "result"]
    assert bad.startswith(f"{folder / 'bad.tif'} ")
    assert "failed: " in bad
    assert good.startswith(f"{folder / 'raw.tif'} ")
    assert good.endswith(f" {folder / 'out' / 'raw.tif'}")


def test_many_volumes_of_one_name(data):
    for folder in ("a", "b"):
        (data / folder).mkdir()
        (data / folder / "raw.tif").write_bytes((data / "raw.tif").read_bytes())
    argv = ["predict", MODEL, data / "a" / "raw.tif", data / "b" / "raw.tif", "--out-dir", data / "out"]
    assert run(*argv).code == 0
    assert names(data / "out") == ["a-raw.tif", "b-raw.tif"]
    np.save(data / "a" / "raw.npy", np.zeros((2, 9, 9), np.uint8))
    assert "a-raw" in refused(*argv, data / "a" / "raw.npy")


def test_many_volumes_into_their_own_folder(data):
    """Under other endings all is well; what would replace an input is a row that failed."""
    before = contents(data)
    argv = ["predict", MODEL, data / "raw.tif", "--out-dir", data]
    result = run(*argv, "--overwrite")
    assert result.code == 2
    assert "is the input" in result.out
    assert contents(data) == before
    assert run(*argv, "--format", "zarr").code == 0


def test_one_volume_or_many(data):
    assert "--out-dir" in refused("predict", MODEL, data / "raw.tif")
    assert "--out-dir" in refused("predict", MODEL, data / "raw.tif", "-o", data / "a.tif", "--out-dir", data / "b")
    assert "--out-dir" in refused("predict", MODEL, data / "raw.tif", data / "labels.tif", "-o", data / "a.tif")
    assert "no*.tif" in refused("predict", MODEL, data / "no*.tif", "--out-dir", data / "b")
    assert not (data / "b").exists()


def test_many_volumes_are_stopped_together(data):
    with stopped_at(3, signal.SIGINT):
        result = run("predict", MODEL, data / "raw.tif", data / "labels.tif", "--out-dir", data / "out")
    assert result.code == 130
    assert not re.search("labels", result.out)
    assert names(data / "out") == []


def test_a_name_that_the_output_cannot_show(data, tmp_path):
    """A pipe on Windows is not UTF-8."""
    out = tmp_path / "日本.tif"
    argv = [*MODULE, "predict", MODEL, data / "raw.tif", "-o", out]
    done = subprocess.run(argv, capture_output=True, env=os.environ | {"PYTHONIOENCODING": "cp1252"}, check=False)
    assert done.returncode == 0, done.stderr
    assert rb"\u65e5\u672c.tif" in done.stdout
    assert out.exists()
