"""Each format written by its own library and read back: pixels, axes, voxel size in nm, one line for what is wrong."""

from __future__ import annotations

import functools
import http.server
import importlib.util
import json
import os
import pickle
import runpy
import threading
from pathlib import Path

import h5py
import mrcfile
import nibabel
import nrrd
import numcodecs
import numpy as np
import pytest
import tensorstore
import zarr

from napari_kdunet.core.reading.formats.zarr_image import _storage_options
from napari_kdunet.core.reading.readers import FORMATS
from napari_kdunet.core.volumes.volume import Volume, open_volume
from napari_kdunet.core.writing.writer import write_volume

ROOT = Path(__file__).parents[3]
NM = (40.0, 5.0, 4.0)


def assert_reads(volume: Volume, pixels: np.ndarray, voxel_size: tuple[float, float, float] | None = NM) -> None:
    assert (volume.shape, volume.dtype) == (pixels.shape, pixels.dtype)
    assert volume.voxel_size == voxel_size
    sent = pickle.dumps(volume)
    assert len(sent) < 10_000
    for copy in (volume, pickle.loads(sent)):
        np.testing.assert_array_equal(copy.read(2, slice(3, 9), slice(10, 50, 3)), pixels[2, 3:9, 10:50:3])
        np.testing.assert_array_equal(np.asarray(copy), pixels)
    np.testing.assert_array_equal(volume.data[1:3].compute(scheduler="threads"), pixels[1:3])


# ---------------------------------------------------------------- MRC


@pytest.mark.parametrize("dtype", ["int8", "int16", "uint16", "float32", "float16"])
def test_mrc(pixels, tmp_path, dtype):
    array = pixels.astype(dtype)
    with mrcfile.new(tmp_path / "raw.mrc") as file:
        file.set_data(array)
        file.voxel_size = (40, 50, 400)  # Å, X Y Z
        file.set_extended_header(np.zeros(100, "V1"))
    assert_reads(open_volume(tmp_path / "raw.mrc"), array)


@pytest.mark.parametrize("order", [(1, 2, 3), (3, 1, 2), (2, 1, 3), (3, 2, 1)])
def test_mrc_axes_of_the_header(pixels, tmp_path, order):
    """mapc, mapr and maps tell which axis columns, rows and sections are."""
    zyx = {3: 0, 2: 1, 1: 2}
    with mrcfile.new(tmp_path / "raw.mrc") as file:
        file.set_data(pixels.transpose([zyx[axis] for axis in reversed(order)]).astype(np.int16))
        file.header.mapc, file.header.mapr, file.header.maps = order
        file.header.mx, file.header.my, file.header.mz = 53, 37, 5
        file.header.cella = (53 * 40, 37 * 50, 5 * 400)
    assert_reads(open_volume(tmp_path / "raw.mrc"), pixels.astype(np.int16))


def test_mrc_bytes_of_imod_and_unknown_sizes(pixels, tmp_path):
    with mrcfile.new(tmp_path / "raw.mrc") as file:
        file.set_data(pixels.view(np.int8))
    assert open_volume(tmp_path / "raw.mrc").voxel_size is None
    data = bytearray((tmp_path / "raw.mrc").read_bytes())
    data[152:160] = np.array([1146047817, 0], "<i4").tobytes()
    (tmp_path / "imod.rec").write_bytes(data)
    assert_reads(open_volume(tmp_path / "imod.rec"), pixels, None)
    with mrcfile.open(tmp_path / "raw.mrc", "r+") as file:
        file.voxel_size = 1
    volume = open_volume(tmp_path / "raw.mrc")
    assert volume.voxel_size is None
    assert any("1 Å" in note for note in volume.notes)


@pytest.mark.parametrize(
    ("stated", "dtype", "words"),
    [
        ((0, 199, 99), np.uint8, "unsigned: its header states a grey value of 199"),
        ((0, -1, 140), np.uint8, "unsigned: its header states a grey value of 140"),
        ((0, 0, 0), np.int8, "states no range of grey values: its bytes are taken as signed"),
        ((0, -1, -2), np.int8, "states no range of grey values: its bytes are taken as signed"),
        ((-128, 127, 3), np.int8, ""),
        ((-50, 1e9, 3), np.int8, ""),
    ],
)
@pytest.mark.parametrize("imod", [None, 1])
def test_mrc_bytes_by_the_range_that_is_stated(pixels, tmp_path, stated, dtype, words, imod):
    """Older programs wrote unsigned bytes without IMOD's stamp; that stamp is believed, whatever range is stated."""
    with mrcfile.new(tmp_path / "raw.mrc") as file:
        file.set_data(pixels.view(np.int8))
        file.voxel_size = (40, 50, 400)
        file.header.dmin, file.header.dmax, file.header.dmean = stated
    if imod is not None:
        data = bytearray((tmp_path / "raw.mrc").read_bytes())
        data[152:160] = np.array([1146047817, imod], "<i4").tobytes()
        (tmp_path / "raw.mrc").write_bytes(data)
        dtype, words = np.int8, ""
    volume = open_volume(tmp_path / "raw.mrc")
    assert_reads(volume, pixels.view(dtype))
    assert words in " ".join(volume.notes)
    assert bool(volume.notes) == bool(words)


def test_mrc_of_several_volumes_and_cut_ones(pixels, tmp_path, fails):
    with mrcfile.new(tmp_path / "raw.mrc") as file:
        file.set_data(np.stack([pixels, pixels + 1]).astype(np.int16))
    fails(tmp_path / "raw.mrc", "choose one time")
    np.testing.assert_array_equal(np.asarray(open_volume(tmp_path / "raw.mrc", time=1)), pixels + 1)
    (tmp_path / "raw.mrc").write_bytes((tmp_path / "raw.mrc").read_bytes()[:-9])
    fails(tmp_path / "raw.mrc", "truncated")


# ---------------------------------------------------------------- HDF5


@pytest.mark.parametrize("chunks", [None, (1, 16, 16), (5, 37, 53)])
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "uint64", "float32", ">i4", "bool"])
def test_hdf5(pixels, tmp_path, chunks, dtype):
    array = (pixels > 100) if dtype == "bool" else pixels.astype(dtype)
    with h5py.File(tmp_path / "cremi.h5", "w") as file:
        dataset = file.create_dataset("volumes/raw", data=array, chunks=chunks, compression="gzip" if chunks else None)
        dataset.attrs["resolution"] = [40.0, 5.0, 4.0]  # CREMI: nm, ZYX
        file["annotations/ids"] = np.arange(9)
        file["table"] = np.zeros((3, 2))
    array = array.astype(array.dtype.newbyteorder("="))
    assert_reads(open_volume(tmp_path / "cremi.h5"), array)
    assert_reads(open_volume(f"{tmp_path}/cremi.h5:/volumes/raw"), array)
    assert_reads(open_volume(f"{tmp_path}/cremi.h5:volumes"), array)


def test_hdf5_with_several_volumes(pixels, tmp_path, fails):
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        file["raw"], file["labels/ids"] = pixels, pixels + 1
    fails(path, str(path), "FILE:/PATH", "/raw", "/labels/ids")
    fails(f"{path}:/nothing", "no dataset nothing", "/raw")
    fails(f"{tmp_path}/b.h5:/raw", "no such file")
    np.testing.assert_array_equal(np.asarray(open_volume(f"{path}:/labels/ids")), pixels + 1)
    with h5py.File(tmp_path / "empty.h5", "w") as file:
        file["names"] = "abc"
    fails(tmp_path / "empty.h5", "empty")


@pytest.mark.parametrize("order", ["zyx", "tzyxc", "xyz", "yxzc"])
def test_hdf5_of_ilastik(pixels, tmp_path, order):
    array = pixels.reshape(
        [dict(zip("zyx", pixels.shape, strict=True)).get(a, 1) for a in sorted(order, key="tzyxc".index)]
    )
    array = array.transpose([sorted(order, key="tzyxc".index).index(axis) for axis in order])
    with h5py.File(tmp_path / "a.h5", "w") as file:
        dataset = file.create_dataset("exported_data", data=array)
        tags = [{"key": axis, "typeFlags": 2, "resolution": 0, "description": ""} for axis in order]
        dataset.attrs["axistags"] = json.dumps({"axes": tags})
    assert_reads(open_volume(tmp_path / "a.h5"), pixels, None)


def test_hdf5_element_size(pixels, tmp_path):
    with h5py.File(tmp_path / "a.hdf5", "w") as file:
        file.create_dataset("raw", data=pixels).attrs["element_size_um"] = [0.04, 0.005, 0.004]
    assert_reads(open_volume(tmp_path / "a.hdf5"), pixels)


# ---------------------------------------------------------------- NRRD and NIfTI


@pytest.mark.parametrize("encoding", ["raw", "gzip", "bzip2", "ascii"])
@pytest.mark.parametrize("ending", [".nrrd", ".nhdr"])
@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint64", "float32"])
def test_nrrd(pixels, tmp_path, encoding, ending, dtype):
    header = {"spacings": [4.0, 5.0, 40.0], "units": ["nm"] * 3, "encoding": encoding}
    nrrd.write(str(tmp_path / f"a{ending}"), pixels.astype(dtype).T, header)
    assert_reads(open_volume(tmp_path / f"a{ending}"), pixels.astype(dtype))


@pytest.mark.parametrize("unit", ["nm", "microns", "mm"])
def test_nrrd_space_directions(pixels, tmp_path, unit):
    nm = {"nm": 1, "microns": 1e-3, "mm": 1e-6}[unit]
    turned = np.array([[0.0, 4 * nm, 0], [5 * nm, 0, 0], [0, 0, -40 * nm]])
    header = {"space": "left-posterior-superior", "space directions": turned, "space units": [unit] * 3}
    nrrd.write(str(tmp_path / "a.nrrd"), pixels.T, header)
    assert_reads(open_volume(tmp_path / "a.nrrd"), pixels)


def test_nrrd_labels_channels_and_unknown_units(pixels, tmp_path, fails):
    nrrd.write(str(tmp_path / "a.nrrd"), pixels, {"labels": ["z", "y", "x"], "spacings": [40.0, 5.0, 4.0]})
    volume = open_volume(tmp_path / "a.nrrd")
    assert_reads(volume, pixels, None)
    assert any("without a unit" in note for note in volume.notes)
    both = np.stack([pixels.T, pixels.T + 1])
    directions = [None, [4.0, 0, 0], [0, 5.0, 0], [0, 0, 40.0]]
    kinds = ["list", "domain", "domain", "domain"]
    header = {"kinds": kinds, "space dimension": 3, "space units": ["nm"] * 3}
    nrrd.write(str(tmp_path / "b.nrrd"), both, header | {"space directions": [np.full(3, np.nan), *directions[1:]]})
    fails(tmp_path / "b.nrrd", "choose one channel")
    assert_reads(open_volume(tmp_path / "b.nrrd", channel=1), pixels + 1)


@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
@pytest.mark.parametrize("unit", ["micron", "mm", "unknown"])
def test_nifti(pixels, tmp_path, ending, unit):
    nm = {"micron": 1e-3, "mm": 1e-6, "unknown": 1}[unit]
    image = nibabel.Nifti1Image(pixels.T, np.diag([-4 * nm, 5 * nm, 40 * nm, 1]))
    image.header.set_xyzt_units(unit)
    nibabel.save(image, tmp_path / f"a{ending}")
    assert_reads(open_volume(tmp_path / f"a{ending}"), pixels, None if unit == "unknown" else NM)


def test_nifti_scaled_and_over_time(pixels, tmp_path, fails):
    image = nibabel.Nifti1Image(pixels.T, np.eye(4))
    image.header.set_slope_inter(2, 3)
    nibabel.save(image, tmp_path / "a.nii")
    np.testing.assert_allclose(
        np.asarray(open_volume(tmp_path / "a.nii")), nibabel.load(tmp_path / "a.nii").get_fdata().T
    )
    nibabel.save(nibabel.Nifti1Image(np.stack([pixels.T, pixels.T + 1], -1), np.eye(4)), tmp_path / "b.nii")
    fails(tmp_path / "b.nii", "choose one time")
    np.testing.assert_array_equal(np.asarray(open_volume(tmp_path / "b.nii", time=1)), pixels + 1)


# ---------------------------------------------------------------- N5 and precomputed


def n5(path: Path, pixels: np.ndarray, **metadata: object) -> None:
    spec = {"driver": "n5", "kvstore": {"driver": "file", "path": str(path)}, "create": True}
    spec["metadata"] = {
        "dimensions": pixels.T.shape, "blockSize": [16, 16, 2], "dataType": str(pixels.dtype),
        "compression": {"type": "gzip"}, **metadata,
    }  # fmt: skip
    tensorstore.open(spec).result()[...] = pixels.T


def test_n5(pixels, tmp_path, fails):
    n5(tmp_path / "a.n5" / "em", pixels, axes=["x", "y", "z"], units=["nm"] * 3, resolution=[4, 5, 40])
    assert_reads(open_volume(tmp_path / "a.n5" / "em"), pixels)
    (tmp_path / "a.n5" / "attributes.json").write_text('{"n5": "2.5.0"}')
    assert_reads(open_volume(tmp_path / "a.n5"), pixels)
    n5(tmp_path / "a.n5" / "mito", pixels)
    fails(tmp_path / "a.n5", "N5 group", "em, mito")
    assert_reads(open_volume(tmp_path / "a.n5" / "mito"), pixels, None)


@pytest.mark.parametrize("where", ["group", "dataset"])
def test_n5_levels(pixels, tmp_path, where, fails):
    folder = tmp_path / "em"
    n5(folder / "s0", pixels)
    n5(folder / "s1", pixels[:, ::2, ::2], downsamplingFactors=[2, 2, 1])
    attributes = {"pixelResolution": {"unit": "um", "dimensions": [0.004, 0.005, 0.04]}}
    (folder / "attributes.json").write_text(json.dumps(attributes if where == "group" else {}))
    if where == "dataset":
        for level, factor in enumerate((1, 2)):
            file = folder / f"s{level}" / "attributes.json"
            sizes = [0.004 * factor, 0.005 * factor, 0.04]
            file.write_text(
                json.dumps(json.loads(file.read_text()) | {"pixelResolution": {"unit": "um", "dimensions": sizes}})
            )
    assert_reads(open_volume(folder), pixels)
    assert_reads(open_volume(folder, level=1), pixels[:, ::2, ::2], (40, 10, 8))
    fails(folder, "levels 0 to 1", level=2)


@pytest.mark.parametrize("sharded", [False, True])
def test_precomputed(pixels, tmp_path, sharded, fails):
    scale = {
        "size": [53, 37, 5],
        "encoding": "raw",
        "chunk_size": [16, 16, 2],
        "resolution": [4, 5, 40],
        "voxel_offset": [7, 0, 100],
    }
    if sharded:
        scale["sharding"] = {
            "@type": "neuroglancer_uint64_sharded_v1", "hash": "identity", "preshift_bits": 1, "minishard_bits": 1,
            "shard_bits": 1, "data_encoding": "gzip", "minishard_index_encoding": "gzip",
        }  # fmt: skip
    spec = {
        "driver": "neuroglancer_precomputed",
        "kvstore": {"driver": "file", "path": str(tmp_path / "em")},
        "multiscale_metadata": {"data_type": "uint8", "num_channels": 2, "type": "image"},
        "scale_metadata": scale,
        "create": True,
    }
    tensorstore.open(spec).result()[...] = np.stack([pixels.T, pixels.T + 1], -1)
    assert_reads(open_volume(tmp_path / "em", channel=1), pixels + 1)
    fails(tmp_path / "em", "choose one channel")
    fails(tmp_path / "em", "levels 0 to 0", level=1)


def test_n5_datasets_below_groups_without_attributes(pixels, tmp_path, fails):
    n5(tmp_path / "a.n5" / "volumes" / "raw", pixels)
    (tmp_path / "a.n5" / "attributes.json").write_text('{"n5": "2.5.0"}')
    assert_reads(open_volume(tmp_path / "a.n5"), pixels, None)
    n5(tmp_path / "a.n5" / "volumes" / "labels" / "s0", pixels)
    fails(tmp_path / "a.n5", "give the path of a dataset in it (volumes/labels/s0, volumes/raw)")
    (tmp_path / "b.n5").mkdir()
    (tmp_path / "b.n5" / "attributes.json").write_text('{"n5": "2.5.0"}')
    fails(tmp_path / "b.n5", str(tmp_path / "b.n5"), "N5 group without a dataset in it")


@pytest.mark.parametrize("kind", ["n5", "precomputed"])
def test_a_pipe_as_a_chunk_is_refused(pixels, tmp_path, kind, fails):
    """Reading from it would never end."""
    n5(tmp_path / "em", pixels)
    chunk = tmp_path / "em" / "0" / "0" / "1"
    if kind == "precomputed":
        spec = {"driver": "neuroglancer_precomputed", "kvstore": {"driver": "file", "path": str(tmp_path / "em")}}
        (tmp_path / "em" / "attributes.json").unlink()
        scale = {"size": [53, 37, 5], "encoding": "raw", "chunk_size": [16, 16, 2], "resolution": [4, 5, 40]}
        multi = {"data_type": "uint8", "num_channels": 1, "type": "image"}
        made = tensorstore.open(
            {**spec, "create": True, "multiscale_metadata": multi, "scale_metadata": scale}
        ).result()
        made[...] = pixels.T[..., None]
        chunk = tmp_path / "em" / "4_5_40" / "0-16_0-16_2-4"
    chunk.unlink()
    os.mkfifo(chunk)
    volume = open_volume(tmp_path / "em")
    np.testing.assert_array_equal(volume.read(0), pixels[0])
    fails(lambda: volume.read(3), "no regular file", "cannot read slice z=3")


# ---------------------------------------------------------------- remote, and readers that are not installed


@pytest.fixture
def served(tmp_path):
    """The address of a web server of a folder."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(tmp_path)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_remote_zarr(pixels, tmp_path, served, fails):
    write_volume(open_volume(pixels, voxel_size=NM), tmp_path / "a.zarr")
    assert_reads(open_volume(f"{served}/a.zarr"), pixels)
    assert_reads(open_volume(f"{served}/a.zarr/0"), pixels, None)
    fails(f"{served}/b.zarr", f"{served}/b.zarr")
    fails("nonsense://a.zarr", "nonsense")


@pytest.mark.parametrize("path", ["a.zarr", "a.zarr/0"], ids=["image", "array"])
def test_a_chunk_of_a_remote_zarr_that_becomes_more_than_a_chunk(tmp_path, served, path, fails):
    write_volume(open_volume(np.ones((2, 64, 64), np.uint8)), tmp_path / "a.zarr")
    large = np.zeros(10**7, np.uint8)
    array = zarr.open(tmp_path / "a.zarr" / "0")
    assert [codec.to_dict()["name"] for codec in array.compressors] == ["zstd"]
    chunk = next(file for file in (tmp_path / "a.zarr" / "0").rglob("c/0/**/*") if file.is_file())
    chunk.write_bytes(numcodecs.Zstd().encode(large))
    volume = open_volume(f"{served}/{path}")
    assert volume.read(1).all()
    fails(lambda: volume.read(0), "more than a chunk")


def test_public_buckets_are_read_anonymously(monkeypatch):
    monkeypatch.setenv("HOME", "/nowhere")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_PROFILE", "AWS_ROLE_ARN", "AWS_WEB_IDENTITY_TOKEN_FILE"):
        monkeypatch.delenv(name, raising=False)
    assert _storage_options("s3://bucket/a.zarr") == {"anon": True}
    assert _storage_options("https://a.zarr") == {}
    monkeypatch.setenv("AWS_PROFILE", "me")
    assert _storage_options("s3://bucket/a.zarr") == {}


@pytest.mark.parametrize(("name", "module"), [("a.nrrd", "nrrd"), ("a.nii.gz", "nibabel"), ("a.n5", "tensorstore")])
def test_a_reader_that_is_not_installed(tmp_path, monkeypatch, name, module, fails):
    path = tmp_path / name
    if name == "a.n5":
        path.mkdir()
        (path / "attributes.json").write_text("{}")
    else:
        path.write_bytes(b"x")
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda wanted, *a: None if wanted == module else find(wanted, *a))
    fails(path, str(path), 'pip install "napari-kdunet[formats]"')


def test_the_table_in_the_documentation_is_that_of_the_readers():
    table = runpy.run_path(str(ROOT / "scripts" / "formats.py"))["table"]()
    assert table in (ROOT / "docs" / "formats.md").read_text()
    assert len(table.splitlines()) == len(FORMATS) + 2


def test_zarr_sharded_and_with_a_pipe(pixels, tmp_path, fails):
    path = tmp_path / "a.zarr"
    zarr.create_array(path, data=pixels, chunks=(1, 16, 16), shards=(5, 48, 64))
    assert_reads(open_volume(path), pixels, None)
    (path / "c" / "0" / "0" / "0").unlink()
    os.mkfifo(path / "c" / "0" / "0" / "0")
    fails(lambda: open_volume(path).read(0), "no regular file")
