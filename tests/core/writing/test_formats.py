"""Each format read back by its own library: pixels, voxel size, labels, scale levels."""

from __future__ import annotations

import json
import warnings

import numpy as np
import pytest
import tifffile
import zarr

from napari_kdunet.core.errors import OutputError
from napari_kdunet.core.volumes.volume import open_volume
from napari_kdunet.core.writing.writer import write_volume

VOXEL = (30.0, 4.5, 6.0)


@pytest.fixture
def pixels() -> np.ndarray:
    array = np.random.default_rng(0).integers(0, 200, (4, 37, 53), dtype=np.uint8)
    array[2] = 0
    return array


class Damaged:
    """A volume of which slice 1 cannot be read."""

    def __init__(self, pixels) -> None:
        self.pixels, self.shape, self.dtype = pixels, pixels.shape, pixels.dtype

    def __getitem__(self, z):
        if z == 1:
            raise OSError("bad disk")
        return self.pixels[z]


def test_tiff(pixels, tmp_path):
    write_volume(pixels, tmp_path / "out.tif", voxel_size=VOXEL)
    with tifffile.TiffFile(tmp_path / "out.tif") as tif:
        np.testing.assert_array_equal(tif.asarray(), pixels)
        (x, per_x), (y, per_y) = (tif.pages.first.tags[f"{axis}Resolution"].value for axis in "XY")
        assert (tif.imagej_metadata["spacing"], tif.imagej_metadata["unit"]) == (30.0, "nm")
        assert (per_y / y, per_x / x) == pytest.approx(VOXEL[1:])


@pytest.mark.parametrize("suffix", [".h5", ".hdf5"])
@pytest.mark.parametrize("dtype", ["uint8", "float32", "int64", "bool"])
def test_hdf5(pixels, tmp_path, suffix, dtype):
    h5py = pytest.importorskip("h5py")
    array = pixels.astype(dtype)
    path = tmp_path / f"out{suffix}"
    write_volume(array, path, voxel_size=VOXEL, metadata={"model": "ü"})
    with h5py.File(path) as file:
        assert list(file) == ["volume"]
        data = file["volume"]
        assert data.dtype == (np.uint8 if dtype == "bool" else array.dtype)
        np.testing.assert_array_equal(data[:], array)
        np.testing.assert_allclose(data.attrs["resolution"], VOXEL)
        np.testing.assert_allclose(data.attrs["element_size_um"], np.array(VOXEL) / 1000)
        assert [axis["key"] for axis in json.loads(data.attrs["axistags"])["axes"]] == ["z", "y", "x"]
        assert json.loads(data.attrs["napari_kdunet"]) == {"model": "ü"}
    write_volume(Damaged(array), path, on_error=str, overwrite=True)
    with h5py.File(path) as file:
        assert not file["volume"][1].any()
        assert "resolution" not in file["volume"].attrs
        assert json.loads(file["volume"].attrs["napari_kdunet"]) == {"skipped": [1]}


@pytest.mark.parametrize(
    ("dtype", "stored"),
    [("uint8", "uint16"), ("bool", "int8"), ("int16", "int16"), ("uint16", "uint16"), ("float32", "float32")],
)
def test_mrc(pixels, tmp_path, dtype, stored, capsys):
    mrcfile = pytest.importorskip("mrcfile")
    array = pixels.astype(dtype)
    write_volume(array, tmp_path / "out.mrc", voxel_size=VOXEL, metadata={"model": "ü" * 100})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert mrcfile.validate(tmp_path / "out.mrc"), capsys.readouterr().out
    with mrcfile.open(tmp_path / "out.mrc") as mrc:
        assert (mrc.data.dtype, mrc.is_volume()) == (np.dtype(stored), True)
        np.testing.assert_array_equal(mrc.data, array)
        size = mrc.voxel_size  # angstrom
        assert (size.z, size.y, size.x) == pytest.approx([10 * n for n in VOXEL])
        assert (mrc.header.dmin, mrc.header.dmax) == (array.min(), array.max())
        assert (mrc.header.dmean, mrc.header.rms) == pytest.approx((array.mean(), array.std()), rel=1e-5)
        assert "model" in "".join(mrc.get_labels())
    write_volume(Damaged(array), tmp_path / "out.mrc", on_error=str, overwrite=True)
    assert not mrcfile.read(tmp_path / "out.mrc")[1].any()


def test_mrc_refuses_what_it_cannot_hold(pixels, tmp_path, one_line):
    for dtype in ("int64", "float64", "uint32"):
        with one_line(OutputError, "out.mrc", dtype, ".zarr"):
            write_volume(pixels.astype(dtype), tmp_path / "out.mrc")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("version", ["0.4", "0.5"])
@pytest.mark.parametrize("labels", [False, True])
def test_ome_zarr(tmp_path, version, labels):
    yaozarrs = pytest.importorskip("yaozarrs")
    array = np.random.default_rng(0).integers(0, 255, (3, 2500, 31), dtype=np.uint8)
    array[1] = 0
    path = tmp_path / "out.zarr"
    write_volume(array, path, voxel_size=VOXEL, labels=labels, ome_version=version, metadata={"k": 2})
    yaozarrs.validate_zarr_store(path)
    group = zarr.open_group(path, mode="r")
    assert group.metadata.zarr_format == (2 if version == "0.4" else 3)
    assert group.attrs["napari_kdunet"] == {"k": 2}
    image = group.attrs.asdict() if version == "0.4" else group.attrs["ome"]
    assert ("image-label" in image) == labels
    (multiscale,) = image["multiscales"]
    assert [axis["unit"] for axis in multiscale["axes"]] == ["nanometer"] * 3
    assert [group[level["path"]].shape for level in multiscale["datasets"]] == [
        (3, 2500, 31),
        (3, 1250, 16),
        (3, 625, 8),
    ]
    np.testing.assert_array_equal(group["0"][:], array)
    if labels:
        np.testing.assert_array_equal(group["2"][:], array[:, ::4, ::4])
    else:
        even = np.pad(array, [(0, 0), (0, 0), (0, 1)], mode="edge").astype(float)
        np.testing.assert_array_equal(group["1"][:], np.rint(even.reshape(3, 1250, 2, 16, 2).mean((2, 4))))
    for level in range(3):
        volume = open_volume(path, level=level)
        assert volume.voxel_size == pytest.approx((30.0, 4.5 * 2**level, 6.0 * 2**level))
    # the centre of the first pixel of a mean lies between those it is the mean of
    last = multiscale["datasets"][2]["coordinateTransformations"]
    assert last[1:] == ([] if labels else [{"type": "translation", "translation": [0.0, 1.5 * 4.5, 1.5 * 6.0]}])


@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_ome_zarr_without_a_voxel_size(pixels, tmp_path, version):
    write_volume(pixels.astype(np.float32), tmp_path / "out.zarr", ome_version=version)
    volume = open_volume(tmp_path / "out.zarr")
    assert volume.voxel_size is None
    np.testing.assert_array_equal(volume[:], pixels)


def test_an_unfinished_zarr_of_another_version_is_not_gone_on_with(pixels, tmp_path):
    from napari_kdunet.core.writing.writer import iter_write

    writing = iter_write(pixels, tmp_path / "out.zarr", resume_key="this", ome_version="0.4")
    next(writing)
    writing.close()
    assert next(iter_write(pixels, tmp_path / "out.zarr", resume_key="this", ome_version="0.5")) == (0, 1)


@pytest.mark.parametrize("dtype", ["float64", "float32", "int64"])
@pytest.mark.parametrize("suffix", [".tif", ".zarr", ".h5", ".mrc"])
def test_a_voxel_size_in_numpy_numbers(pixels, tmp_path, suffix, dtype):
    size = np.array([30, 4, 6], dtype)  # as a layer of napari has it
    for given in (size, tuple(size)):
        write_volume(pixels, tmp_path / f"out{suffix}", voxel_size=given, overwrite=True)
        assert open_volume(tmp_path / f"out{suffix}").voxel_size == (30, 4, 6)


def test_what_cannot_be_written(pixels, tmp_path, one_line):
    for size in ((np.inf, 1, 1), (0, 1, 1), (1, np.nan, 1), (1, 1, 1e300), (1, 1), (1, None, 1), 1):
        for suffix in (".tif", ".zarr", ".h5", ".mrc"):
            with one_line(OutputError, f"out{suffix}", "three positive numbers"):
                write_volume(pixels, tmp_path / f"out{suffix}", voxel_size=size)
    with one_line(OutputError, "0.4 or 0.5"):
        write_volume(pixels, tmp_path / "out.zarr", ome_version="0.3")
    assert list(tmp_path.iterdir()) == []


def test_the_threshold_stays_in_an_mrc_of_which_much_is_said(tmp_path):
    metadata = {"output": "probability", "lost": list(range(200)), "threshold": 0.7, "model": "m"}
    write_volume(np.full((2, 8, 8), 0.6, np.float32), tmp_path / "p.mrc", voxel_size=VOXEL, metadata=metadata)
    assert open_volume(tmp_path / "p.mrc").threshold == 0.7
