"""The command `predict` from end to end: what it writes is what the core predicts."""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tifffile

from command_line import SHAPE, VOXEL, run
from folders import names
from napari_kdunet import core


def test_bright_and_dark_exchanged(data, teacher, tmp_path):
    raw = np.asarray(core.open_volume(data / "raw.tif"))
    core.write_volume(255 - raw, tmp_path / "negative.tif", voxel_size=VOXEL)
    masks = []
    for name, more in (("negative.tif", ["--invert"]), ("negative.tif", []), (data / "raw.tif", ["--no-invert"])):
        out = tmp_path / "mask.tif"
        result = run("predict", teacher, tmp_path / name, "-o", out, "--overwrite", *more)
        assert (result.code, result.err) == (0, "")
        masks.append(np.asarray(core.open_volume(out)))
    assert masks[2].any()
    assert np.array_equal(masks[0], masks[2])
    assert not np.array_equal(masks[1], masks[2])


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
        argv = ["predict", teacher, data / "raw.tif", "-o", path, "--overwrite"]
        assert run(*argv, "--threshold", threshold).code == 0
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


def test_predict_by_as_many_views_as_the_model_says(data, tmp_path):
    """The small generalists say 4."""
    written = {}
    for how in ([], ["--views", 4], ["--views", 1]):
        path = tmp_path / f"{len(written)}.tif"
        argv = ["predict", "mito-1unet", data / "raw.tif", "-o", path, "--probabilities", *how]
        assert run(*argv).code == 0
        written[tuple(how)] = np.asarray(core.open_volume(path)), metadata_of(path)["views"]
    default, four, one = written.values()
    assert (default[1], four[1], one[1]) == (4, 4, 1)
    assert np.array_equal(default[0], four[0])
    assert np.abs(default[0] - one[0]).max() > 0.01


def test_predict_with_statistics_of_the_volume(data, teacher, probability, tmp_path):
    path = tmp_path / "p.tif"
    argv = ["predict", teacher, data / "raw.tif", "-o", path, "--probabilities"]
    assert run(*argv, "--statistics", "volume").code == 0
    written = np.asarray(core.open_volume(path))
    expected = core.predict(core.load_model(teacher), data / "raw.tif", statistics="volume").compute()
    np.testing.assert_allclose(written, expected, atol=1e-6)
    assert np.abs(written - np.asarray(core.open_volume(probability))).max() > 0.01
    assert metadata_of(path)["statistics"] == "volume"


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
        f"note: the pixel size of {data / 'unknown.tif'} is not stated and not found: {teacher} is sure at no size. "
        "It is taken as the model's 10 nm; give --voxel-size."
    ]
    assert core.open_volume(path).voxel_size is None
    with tifffile.TiffFile(path) as tif:
        assert '"pixel_size": "not found"' in tif.pages[0].description
    asked = run("predict", teacher, data / "unknown.tif", "-o", path, "--overwrite", "--voxel-size", "auto")
    assert asked.code == 2
    assert "not stated and not found" in asked.err
    assert "give --voxel-size" in asked.err
    argv = ["predict", teacher, data / "unknown.tif", "-o", path, "--overwrite", "--voxel-size"]
    assert run(*argv, "30,10,10").err == ""
    assert core.open_volume(path).voxel_size == VOXEL
    run(*argv, "20")
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
    is_kept = suffix == ".zarr"
    assert line.endswith("; 2 of 8 slices are kept for the next run") == is_kept
    assert [name for name in names(tmp_path) if not (is_kept and name.startswith(".mask"))] == ["raw.zarr"]

    result = run("predict", teacher, raw, "-o", mask, "--on-error", "skip")
    assert result[:2] == (0, f"{mask}\n")
    going_on = ["note: going on after 2 slices that an earlier run had written"] * is_kept
    assert len(result.lines) == 3 + is_kept
    assert [line for line in result.lines if line.startswith("note: going")] == going_on
    skipped = [line for line in result.lines if line.startswith("skipped")]
    for line, z in zip(skipped, (2, 5), strict=True):
        assert line.startswith(f"skipped: cannot read slice z={z} of {raw}: ")
    assert result.lines[-1:] == [f"note: skipped 2 of 8 slices, which are 0 in {mask}"]
    expected[[2, 5]] = 0
    np.testing.assert_array_equal(np.asarray(core.open_volume(mask)), expected)
    assert about(mask)["skipped"] == [2, 5]

    for path in raw.glob("0/c/*/0/0"):
        path.write_bytes(b"damaged")
    assert run("predict", teacher, raw, "-o", mask, "--on-error", "skip", "--overwrite").code == 2
    np.testing.assert_array_equal(np.asarray(core.open_volume(mask)), expected)  # what stood there before


def about(path: Path) -> dict:
    """What is told about a result in its own file."""
    if path.suffix == ".zarr":
        return json.loads((path / "zarr.json").read_text())["attributes"]["napari_kdunet"]
    with tifffile.TiffFile(path) as tif:
        return json.loads(tif.imagej_metadata["napari_kdunet"])


@pytest.mark.parametrize("suffix", [".tif", ".zarr"])
@pytest.mark.parametrize("planes", ["z", "zyx"])
def test_predict_names_lost_slices_and_leaves_padding_out(suffix, planes, data, teacher, tmp_path):
    raw = np.pad(np.asarray(core.open_volume(data / "raw.tif")), ((0, 0), (40, 24), (16, 40)), constant_values=255)
    raw[1], raw[3] = 0, np.random.default_rng(0).integers(0, 3, raw[3].shape)
    core.write_volume(raw, tmp_path / f"raw{suffix}", voxel_size=VOXEL)
    path = tmp_path / f"p{suffix}"
    argv = [
        "predict",
        teacher,
        tmp_path / f"raw{suffix}",
        "-o",
        path,
        "--probabilities",
        "--planes",
        planes,
        "--voxel-size",
        10,
    ]
    told = run(*argv)
    assert told.code == 0
    assert "z = 1,3" in " ".join(told.err.split())
    assert metadata_of(path)["lost"] == [1, 3]
    written = np.asarray(core.open_volume(path))
    assert not written[[1, 3]].any()
    assert written.sum() == pytest.approx(written[:, 40:-24, 16:-40].sum())
    assert written[0, 40:-24, 16:-40].min() > 0
    argv.append("--overwrite")
    assert run(*argv, "--fill", 7).code == 0
    assert np.asarray(core.open_volume(path))[0, 0, 0] > 0
    core.write_volume((raw > 0).astype(np.uint8), tmp_path / "mask.tif")
    assert run(*argv, "--sample", tmp_path / "mask.tif").code == 0
    assert np.asarray(core.open_volume(path))[0, 0, 0] > 0


def metadata_of(path: Path) -> dict:
    if path.suffix == ".zarr":
        import zarr

        return dict(zarr.open_group(path, mode="r").attrs["napari_kdunet"])
    with tifffile.TiffFile(path) as tif:
        return json.loads(tif.pages[0].description.partition("napari_kdunet=")[2].splitlines()[0])
