"""Zarr arrays and OME-Zarr images."""

from __future__ import annotations

import pickle

import numcodecs
import numpy as np
import pytest
import zarr

from napari_kdunet.core.errors import VolumeError
from napari_kdunet.core.reading.formats.zarr_chunks import PlainChunks
from napari_kdunet.core.volumes.volume import open_volume


@pytest.mark.parametrize("version", ["0.4", "0.5"])
@pytest.mark.parametrize("axes", ["zyx", "czyx", "tczyx"])
def test_ome_zarr_levels_and_voxel_size(pixels, tmp_path, version, axes, ome_zarr):
    lead = (None,) * (len(axes) - 3)
    path = ome_zarr(tmp_path / "image.zarr", [pixels[lead], pixels[:, ::2, ::2][lead]], axes, version)
    volume = open_volume(path)
    assert volume.voxel_size == pytest.approx((30, 4, 5))  # 0.03 µm, 4 nm, 5 nm
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(volume)).read(2, slice(3, 9)), pixels[2, 3:9])
    half = open_volume(path, level=1)
    assert half.voxel_size == pytest.approx((30, 8, 10))
    np.testing.assert_array_equal(half.data.compute(scheduler="synchronous"), pixels[:, ::2, ::2])
    assert open_volume(zarr.open_group(path, mode="r")).voxel_size == volume.voxel_size


def test_ome_zarr_common_scale_and_no_unit(pixels, tmp_path, ome_zarr):
    common = [{"type": "scale", "scale": [1.0, 2.0, 2.0]}]
    path = ome_zarr(tmp_path / "a.zarr", [pixels], coordinateTransformations=common)
    assert open_volume(path).voxel_size == pytest.approx((30, 8, 10))
    path = ome_zarr(tmp_path / "b.zarr", [pixels], axes="zyx", version="0.4")
    group = zarr.open_group(path)
    image = group.attrs["multiscales"][0]
    image["axes"] = ["z", "y", "x"]  # as in 0.3: no units
    group.attrs["multiscales"] = [image]
    assert open_volume(path).voxel_size is None


def test_zarr_reads_only_the_chunks_needed(tmp_path):
    class Counting(zarr.storage.MemoryStore):
        async def get(self, key, *args, **kwargs):
            reads.append(key)
            return await super().get(key, *args, **kwargs)

    reads: list[str] = []
    array = zarr.create_array(Counting(), data=np.ones((6, 64, 64), "u1"), chunks=(1, 32, 32))
    reads.clear()
    open_volume(array).read(4, slice(0, 32), slice(32, 64))
    assert reads == ["c/4/0/1"]


def test_zarr_groups(pixels, tmp_path, ome_zarr, fails):
    group = zarr.open_group(tmp_path / "g.zarr", mode="w")
    group.create_array("em", data=pixels)
    fails(tmp_path / "g.zarr", str(tmp_path / "g.zarr"), "without an OME image", "em")
    np.testing.assert_array_equal(open_volume(tmp_path / "g.zarr" / "em").read(1), pixels[1])
    path = ome_zarr(tmp_path / "o.zarr", [pixels])
    fails(path, str(path), "levels 0 to 0", "level 3", level=3)
    zarr.open_group(path).attrs["ome"] = {"version": "0.5", "multiscales": [{"axes": []}]}
    fails(path, str(path))


def test_sparse_zarr_opens_at_once(tmp_path):
    path = tmp_path / "big.zarr"
    zarr.create_array(path, shape=(500, 20_000, 20_000), chunks=(1, 512, 512), dtype="u1")[499, 0, :2] = [7, 9]
    volume = open_volume(path)
    assert len(pickle.dumps(volume)) < 10_000
    np.testing.assert_array_equal(volume.read(499, slice(0, 1), slice(0, 3)), [[7, 9, 0]])
    np.testing.assert_array_equal(volume.data[499, 0, :3].compute(scheduler="synchronous"), [7, 9, 0])


def test_empty_zarr(tmp_path, fails):
    zarr.create_array(tmp_path / "d.zarr", shape=(0, 4, 4), dtype="u1", chunks=(1, 4, 4))
    fails(tmp_path / "d.zarr", str(tmp_path / "d.zarr"), "empty")


def test_channels_and_times(pixels, tmp_path, ome_zarr, fails):
    fails(ome_zarr(tmp_path / "c.zarr", [pixels[:3][None]], "tzyx") / "0", "4 axes")
    fails(ome_zarr(tmp_path / "c.zarr", [pixels[:, None]], "czyx"), "c.zarr", "C=5", "channel, 0 to 4")
    np.testing.assert_array_equal(open_volume(tmp_path / "c.zarr", channel=3)[0], pixels[3])


def test_corrupt_chunk(pixels, tmp_path, fails):
    path = tmp_path / "b.zarr"
    zarr.create_array(path, data=pixels, chunks=(1, 37, 53))
    (path / "c" / "3" / "0" / "0").write_bytes(b"not a chunk")
    volume = open_volume(path)
    np.testing.assert_array_equal(volume.read(1), pixels[1])
    fails(lambda: volume.read(3), f"cannot read slice z=3 of {path}: ")
    fails(lambda: volume.read(5), str(path), "slices 0 to 4", "z=5")


def test_metadata_that_do_not_fit_its_arrays(pixels, tmp_path, ome_zarr, fails):
    path = ome_zarr(tmp_path / "a.zarr", [pixels])
    fails(path, "images 0 to 0", "no image 1", series=1)
    group = zarr.open_group(path)
    image = group.attrs["ome"]["multiscales"][0]
    scale = {"type": "scale", "scale": [1, 30, 4, 5]}
    group.attrs["ome"] = {"multiscales": [image | {"datasets": [{"path": "0", "coordinateTransformations": [scale]}]}]}
    assert open_volume(path).voxel_size is None
    assert "4 numbers for 3 axes" in open_volume(path).notes[0]
    group.attrs["ome"] = {"multiscales": [image | {"datasets": [{"path": "9"}]}]}
    fails(path, "no array 9")
    group.attrs["ome"] = {"multiscales": [image | {"datasets": None}]}
    fails(path, "OME metadata without an array")


STORED = {
    "v2": {"zarr_format": 2},
    "v2, big": {"zarr_format": 2, "dtype": ">u2"},
    "v2, blosc": {"zarr_format": 2, "compressors": numcodecs.Blosc()},
    "v2, zlib": {"zarr_format": 2, "compressors": numcodecs.Zlib()},
    "plain": {"compressors": None},
    "zstd": {},
    "blosc": {"compressors": zarr.codecs.BloscCodec()},
    "gzip": {"compressors": zarr.codecs.GzipCodec()},
    "big": {"serializer": zarr.codecs.BytesCodec(endian="big")},
    "float": {"dtype": "float32", "fill_value": 0.5},
}
LEFT = {
    "two compressors": {"compressors": [zarr.codecs.GzipCodec(), zarr.codecs.Crc32cCodec()]},
    "shards": {"shards": (2, 20, 30)},
    "Fortran": {"zarr_format": 2, "order": "F"},
    "filters": {"zarr_format": 2, "filters": [numcodecs.Delta(dtype="u2")]},
    "transposed": {"filters": [zarr.codecs.TransposeCodec(order=(2, 1, 0))]},
}


@pytest.mark.parametrize("kind", [*STORED, *LEFT])
def test_chunks_are_as_zarr_reads_them(tmp_path, kind):
    """Of one or two slices, not all of the image, one of them missing."""
    how = {"shape": (5, 37, 50), "chunks": (2, 20, 30), "dtype": "u2", "fill_value": 7} | (STORED | LEFT)[kind]
    array = zarr.create_array(tmp_path / "a.zarr", **how)
    pixels = np.random.default_rng(0).integers(0, 60_000, (5, 37, 50)).astype(how["dtype"])
    array[:4] = pixels[:4]
    pixels[4:] = how["fill_value"]
    plain = PlainChunks.of(array, lambda key: None)
    assert isinstance(plain, PlainChunks) == (kind in STORED)
    volume = open_volume(tmp_path / "a.zarr")
    for z, y, x in [(0, (0, 37), (0, 50)), (3, (5, 20), (30, 31)), (1, (19, 21), (29, 31)), (4, (0, 9), (3, 40))]:
        np.testing.assert_array_equal(volume.read(z, slice(*y), slice(*x)), pixels[z, slice(*y), slice(*x)])
    np.testing.assert_array_equal(volume[1:4, 3:20, 7:11], pixels[1:4, 3:20, 7:11])
    np.testing.assert_array_equal(np.asarray(volume), pixels)
    block = volume.read(2)
    block[:] = 0  # nobody else's


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize("compressed", [True, False])
def test_a_chunk_of_too_few_pixels_is_an_error(tmp_path, version, compressed):
    how = {"shape": (2, 30, 30), "chunks": (1, 30, 30), "dtype": "u1", "zarr_format": version}
    array = zarr.create_array(tmp_path / "a.zarr", **how, compressors="auto" if compressed else None)
    array[:] = 1
    file = tmp_path / "a.zarr" / ("1.0.0" if version == 2 else "c/1/0/0")
    short = np.ones(17, "u1").tobytes()
    file.write_bytes(numcodecs.Zstd().encode(short) if compressed else short)
    volume = open_volume(tmp_path / "a.zarr")
    assert (volume.read(0) == 1).all()
    with pytest.raises(VolumeError, match="17 pixels"):
        volume.read(1)


def test_a_chunk_that_links_to_itself_is_an_error(tmp_path):
    zarr.create_array(tmp_path / "a.zarr", shape=(1, 30, 30), chunks=(1, 30, 30), dtype="u1")[:] = 1
    chunk = tmp_path / "a.zarr" / "c/0/0/0"
    chunk.unlink()
    chunk.symlink_to(chunk)
    with pytest.raises(VolumeError, match="symbolic links"):
        open_volume(tmp_path / "a.zarr").read(0)
