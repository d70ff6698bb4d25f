"""What holds for every kind of source: pixels, laziness, and one clear line for what cannot be used."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import dask.array as da
import numpy as np
import pytest
import tifffile
import zarr
from PIL import Image

from napari_kdunet.core.errors import LabelsError, VolumeError
from napari_kdunet.core.volumes.volume import check_labels, open_volume
from napari_kdunet.core.writing.writer import write_volume

DTYPES = ["uint8", "uint16", "uint32", "int32", "int64", "float32", "float64", "bool"]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", ["tif", "tif-zlib", "tif-bigendian", "npy", "zarr2", "zarr3", "array", "dask"])
def test_pixels_and_dtype(pixels, tmp_path, kind, dtype):
    array = pixels.astype(dtype)
    source: object = tmp_path / f"raw.{kind[:3]}"
    if kind.startswith("tif"):
        compression = "zlib" if kind == "tif-zlib" else None
        byteorder = ">" if kind == "tif-bigendian" else "<"
        tifffile.imwrite(source, array, compression=compression, byteorder=byteorder, photometric="minisblack")
    elif kind == "npy":
        np.save(source, array)
    elif kind.startswith("zarr"):
        source = tmp_path / "raw.zarr"
        zarr.create_array(source, data=array, chunks=(2, 16, 16), zarr_format=int(kind[-1]))
    else:
        source = da.from_array(array, chunks=(2, 16, 16)) if kind == "dask" else array
    volume = open_volume(source)
    assert (volume.shape, volume.dtype, volume.voxel_size) == ((5, 37, 53), np.dtype(dtype), None)
    window = volume.read(3, slice(4, 9), slice(50, 70))
    assert window.dtype == np.dtype(dtype)
    np.testing.assert_array_equal(window, array[3, 4:9, 50:70])
    np.testing.assert_array_equal(volume.data.compute(scheduler="synchronous"), array)
    np.testing.assert_array_equal(np.asarray(volume), array)
    copy = pickle.loads(pickle.dumps(volume))
    np.testing.assert_array_equal(copy.read(4), array[4])


@pytest.mark.parametrize("name", ["raw.tif", "raw.zarr", "raw.npy", "slices"])
def test_another_process_reads_the_same_file_or_says_that_it_cannot(pixels, tmp_path, monkeypatch, name):
    """Wherever it was started: a Zarr that is not there must not read as zeros."""
    monkeypatch.chdir(tmp_path)
    if name.endswith("npy"):
        np.save(name, pixels)
    elif name == "slices":
        Path(name).mkdir()
        for z, image in enumerate(pixels):
            tifffile.imwrite(f"{name}/{z}.tif", image)
    else:
        write_volume(pixels, name)
    sent = pickle.dumps(open_volume(name))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    np.testing.assert_array_equal(np.asarray(pickle.loads(sent)), pixels)
    (tmp_path / name).rename(tmp_path / "moved")
    with pytest.raises(VolumeError, match=rf"z=3 of {name}"):
        pickle.loads(sent).read(3)


def test_what_is_read_is_the_callers_own(pixels, tmp_path):
    tifffile.imwrite(tmp_path / "raw.tif", pixels, compression="zlib")
    for volume in (open_volume(pixels), open_volume(tmp_path / "raw.tif")):
        volume.read(0)[:] = 7
        np.testing.assert_array_equal(volume.read(0), pixels[0])
    assert pixels[0].max() > 7


def test_two_dimensions_are_one_slice(pixels, tmp_path):
    image = pixels[0]
    tifffile.imwrite(tmp_path / "a.tif", image)
    np.save(tmp_path / "a.npy", image)
    Image.fromarray(image).save(tmp_path / "a.png")
    stored = zarr.create_array(tmp_path / "a.zarr", data=image)
    dask = da.from_array(image)
    for source in (
        tmp_path / "a.tif",
        tmp_path / "a.npy",
        str(tmp_path / "a.png"),
        tmp_path / "a.zarr",
        stored,
        dask,
        image,
    ):
        volume = open_volume(source)
        assert volume.shape == volume.data.shape == (1, 37, 53)
        np.testing.assert_array_equal(volume.read(0, slice(3, 5)), image[3:5])
        np.testing.assert_array_equal(volume[:], image[None])


def test_slicing_like_an_array(pixels, tmp_path):
    tifffile.imwrite(tmp_path / "raw.tif", pixels, compression="zlib")
    volume = open_volume(tmp_path / "raw.tif")
    np.testing.assert_array_equal(volume[-1], pixels[-1])
    np.testing.assert_array_equal(volume[1:4, 2:7], pixels[1:4, 2:7])
    assert len(list(volume)) == len(volume) == 5


def test_voxel_size_override(pixels, fails):
    volume = open_volume(pixels, voxel_size=(30, 4, 4))
    assert volume.voxel_size == (30.0, 4.0, 4.0)
    assert open_volume(volume).voxel_size == (30.0, 4.0, 4.0)
    assert open_volume(volume, voxel_size=(1, 2, 3), name="raw").name == "raw"
    for each in (8, np.int64(8), np.float32(8), np.full(3, 8)):
        assert open_volume(pixels, voxel_size=each).voxel_size == (8.0, 8.0, 8.0)
    for wrong in [(1, 2), (0, 1, 1), (1, float("nan"), 1), 0, (1, None, 1), "888"]:
        fails(pixels, "voxel size", "three positive numbers", voxel_size=wrong)


class Recording:
    """A volume of ones, too big for memory, that records what is asked of it."""

    shape, dtype = (1_000, 100_000, 100_000), np.dtype(np.uint8)

    def __init__(self):
        self.keys = []

    def __getitem__(self, key):
        self.keys.append(key)
        return np.ones(
            [len(range(*k.indices(n))) for k, n in zip(key, self.shape, strict=True) if isinstance(k, slice)], "u1"
        )


def test_only_the_window_is_read():
    array = Recording()
    volume = open_volume(array)
    assert volume.data.shape == array.shape
    assert array.keys == []
    assert volume.read(500, slice(10, 20), slice(5)).shape == (10, 5)
    assert array.keys == [(500, slice(10, 20), slice(5))]


def test_missing_unknown_and_not_a_volume(tmp_path, fails):
    fails(tmp_path / "no.tif", "no such file", str(tmp_path / "no.tif"))
    (tmp_path / "a.czi").write_bytes(b"x")
    fails(tmp_path / "a.czi", str(tmp_path / "a.czi"), "unknown ending", ".tif", ".h5", ".mrc")
    fails([1, 2], "list", "path or an array")
    fails(np.zeros((2, 3, 4, 5)), "4 axes", "(2, 3, 4, 5)")
    fails(np.zeros((3, 4), complex), "complex128")
    fails(np.zeros((3, 4), object), "object")
    fails(np.zeros((0, 3, 4)), "empty", "(0, 3, 4)")
    fails(np.zeros((3, 4)), "level 1", level=1)


def test_check_labels(pixels, fails):
    raw = open_volume(pixels, name="raw.tif")
    check_labels(raw, open_volume(pixels > 100))
    check_labels(raw, open_volume(pixels.astype(np.int64)))
    wrong = open_volume(pixels[:, 1:], name="labels.tif")
    fails(lambda: check_labels(raw, wrong), "labels.tif", "(5, 36, 53)", "raw.tif", "(5, 37, 53)", error=LabelsError)
    wrong = open_volume(pixels.astype(np.float32), name="labels.tif")
    fails(lambda: check_labels(raw, wrong), "labels.tif", "float32", "raw.tif", "whole numbers", error=LabelsError)


@pytest.mark.data
@pytest.mark.skipif("KDUNET_DATA" not in os.environ, reason="KDUNET_DATA is not set")
def test_real_volume():
    volume = open_volume(Path(os.environ["KDUNET_DATA"]) / "lucchi-train-raw.tif")
    assert (volume.shape, volume.dtype, volume.voxel_size) == ((165, 768, 1024), np.uint8, (5.0, 5.0, 5.0))
    mean, std = volume.statistics(80)
    assert (mean, std) == pytest.approx((volume.read(80).mean(), volume.read(80).std()))


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "int32", "float32", "bool"])
def test_inverted_contrast(dtype):
    rng = np.random.default_rng(0)
    raw = (rng.random((2, 40, 50)) > 0.5) if dtype == "bool" else (120 * rng.random((2, 40, 50))).astype(dtype)
    inverted = open_volume(raw, invert=True)
    mean, std = open_volume(raw).statistics(0)
    other_mean, other_std = inverted.statistics(0)
    assert inverted.dtype == raw.dtype
    straight = (raw[0].astype(float) - mean) / std
    np.testing.assert_allclose((inverted.read(0).astype(float) - other_mean) / other_std, -straight, atol=1e-4)
    assert np.array_equal(open_volume(inverted, invert=True)[:], raw)
    assert np.array_equal(inverted.data.compute(), inverted[:])


def test_a_fill_value_is_inverted_too():
    raw = np.random.default_rng(0).integers(10, 200, (1, 80, 80), dtype=np.uint8)
    raw[:, :20] = 9
    inverted = open_volume(raw, fill=9, invert=True)
    assert inverted.fill == 246
    assert np.array_equal(inverted.outside(0), open_volume(raw, fill=9).outside(0))


@pytest.mark.parametrize("size", [(50, 0.05, 5), (50, 5, 501), (0.005,) * 3, (5000,) * 3])
def test_implausible_sizes_are_asked_about(size, one_line):
    raw = np.zeros((2, 8, 8), np.uint8)
    with one_line(VolumeError, "under 0.1 or over 500 nm", "is it in nm"):
        open_volume(raw, voxel_size=size)
    for plausible in ((5000, 0.2, 0.5), (0.01, 500, 500)):
        assert open_volume(raw, voxel_size=plausible).voxel_size == plausible


@pytest.mark.parametrize("name", ["", " "])
def test_no_name_is_not_the_current_folder(name, tmp_path, monkeypatch):
    tifffile.imwrite(tmp_path / "a.tif", np.zeros((3, 4), np.uint8))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(VolumeError, match="name of the volume is empty"):
        open_volume(name)


@pytest.mark.parametrize("choice", [{"axes": "XYZ"}, {"channel": 0}, {"time": 1}, {"series": 0}, {"level": 2}])
def test_of_an_open_volume_nothing_is_chosen_any_more(choice):
    volume = open_volume(np.zeros((2, 3, 4), np.uint8), name="em")
    with pytest.raises(VolumeError, match=f"em is open already, as ZYX: choose {next(iter(choice))} where"):
        open_volume(volume, **choice)
