"""Files of strangers: what never ends, what claims to be huge, and names that are hard to print."""

from __future__ import annotations

import gzip
import json
import os
import resource
import struct
import time
import zlib
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import google_crc32c
import h5py
import imagecodecs
import nibabel
import numcodecs
import numpy as np
import pytest
import tifffile
import zarr
from PIL import Image
from zarr.codecs import BloscCodec, GzipCodec, ZstdCodec

from napari_kdunet.core.errors import VolumeError
from napari_kdunet.core.reading.readers import READERS
from napari_kdunet.core.volumes.volume import open_volume
from napari_kdunet.core.writing.target import check_target


@contextmanager
def bounded(seconds: float = 2, megabytes: float = 200):
    """What is done takes no longer and no more memory."""
    before, started = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    yield
    assert time.process_time() - started < seconds
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024 < megabytes


# ---------------------------------------------------------------- what never ends


@pytest.mark.parametrize(("order", "period"), [("<", 1), (">", 3), ("<", 150)])
def test_pages_that_go_round(tmp_path, fails, order, period):
    """A chain of pages without a tag, of which the last is followed by an earlier one."""
    form = struct.Struct(f"{order}HI")
    places = range(8, 8 + form.size * (period + 2), form.size)
    chain = b"".join(form.pack(0, place) for place in (*places[1:], places[2]))
    magic = b"II*\0" if order == "<" else b"MM\0*"
    (tmp_path / "a.tif").write_bytes(magic + struct.pack(f"{order}I", places[0]) + chain)
    with bounded():
        fails(tmp_path / "a.tif", "a.tif is damaged", f"page {period + 2} ")


def test_a_page_without_pixels(tmp_path, fails):
    (tmp_path / "a.tif").write_bytes(b"II*\0" + struct.pack("<IHI", 8, 0, 0))
    fails(tmp_path / "a.tif", "a.tif is truncated or damaged")


@pytest.mark.parametrize("big", [False, True])
def test_pages_with_many_reduced_copies(tmp_path, fails, big):
    path = tmp_path / "a.tif"
    tag = (65330, 16 if big else 4, 50_000, [8] * 50_000, True)
    tifffile.imwrite(path, np.zeros((2, 8, 8), np.uint8), bigtiff=big, extratags=[tag], metadata=None)
    path.write_bytes(path.read_bytes().replace(struct.pack("<H", 65330), struct.pack("<H", 330), 1))
    with bounded():
        fails(path, "a.tif is damaged", "page 0 has 50000 reduced copies")


# ---------------------------------------------------------------- pipes and devices


@pytest.mark.parametrize("name", ["a.tif", "a.png", "a.jpg", "a.npy", "a.mrc", "a.h5", "a.nrrd", "a.nii"])
def test_a_pipe_is_no_file(tmp_path, name, fails):
    os.mkfifo(tmp_path / name)
    fails(tmp_path / name, str(tmp_path / name), "no regular file")
    (tmp_path / f"b{name}").symlink_to("/dev/zero")
    fails(tmp_path / f"b{name}", "no regular file")


def test_a_pipe_as_a_slice(pixels, tmp_path, fails):
    for z, image in enumerate(pixels):
        tifffile.imwrite(tmp_path / f"{z}.tif", image)
    volume = open_volume(tmp_path)
    (tmp_path / "3.tif").unlink()
    os.mkfifo(tmp_path / "3.tif")
    fails(tmp_path, "3.tif", "no regular file")
    fails(lambda: volume.read(3), "3.tif", "no regular file")


def test_a_pipe_as_a_part_of_an_ome_tiff(pixels, tmp_path, fails):
    path = tmp_path / "a.ome.tif"
    tifffile.imwrite(path, pixels, ome=True, metadata={"axes": "ZYX"})
    text = tifffile.tiffcomment(path)
    for name in ("b.ome.tif", "/dev/zero"):
        part = f'<TiffData FirstZ="0" IFD="0" PlaneCount="1"><UUID FileName="{name}">urn:uuid:1</UUID></TiffData>'
        start, end = text.index("<TiffData"), text.index("</Pixels>")
        tifffile.tiffcomment(path, (text[:start] + part + text[end:]).encode())
        if name == "b.ome.tif":
            os.mkfifo(tmp_path / name)
        fails(path, name, "no regular file")


def test_a_pipe_as_the_data_of_a_header(pixels, tmp_path, fails):
    head = "NRRD0004\ntype: uint8\ndimension: 3\nsizes: 4 4 4\nencoding: raw\ndata file: a.raw\n"
    (tmp_path / "a.nhdr").write_text(head)
    os.mkfifo(tmp_path / "a.raw")
    fails(tmp_path / "a.nhdr", "a.raw", "no regular file")
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("em", (4, 4, 4), "u1", external=[("a.raw", 0, 64)])
    fails(tmp_path / "a.h5", "a.h5", "other files")


# ---------------------------------------------------------------- what claims to be huge


def png(width: int, height: int, data: bytes) -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def huge(kind: str, folder: Path) -> Path:
    """A small file whose header claims to be of many GB."""
    path = folder / f"a.{kind}"
    if kind == "png":
        path.write_bytes(png(65000, 65000, zlib.compress(bytes(10**6))))
    elif kind == "jpg":
        Image.new("L", (16, 16)).save(path)
        data = path.read_bytes()
        at = data.index(b"\xff\xc0") + 5
        path.write_bytes(data[:at] + struct.pack(">HH", 65000, 65000) + data[at + 4 :])
    elif kind == "tif":
        tifffile.imwrite(path, np.zeros((64, 64), np.uint8), compression="zlib", metadata=None, rowsperstrip=64)
        data = bytearray(path.read_bytes())
        with tifffile.TiffFile(path) as tif:
            for name in ("ImageWidth", "ImageLength", "RowsPerStrip"):
                tag = tif.pages[0].tags[name]
                struct.pack_into("<HII", data, tag.offset + 2, 4, 1, 60000)
        path.write_bytes(data)
    elif kind == "ome.tif":
        tifffile.imwrite(path, np.zeros((2, 64, 64), np.uint8), ome=True, metadata={"axes": "ZYX"})
        text = tifffile.tiffcomment(path)
        tifffile.tiffcomment(path, text.replace('SizeZ="2"', 'SizeZ="2000000000"').encode())
    elif kind == "zarr":
        zarr.create_array(path, shape=(10**4, 10**5, 10**5), chunks=(1, 10**5, 10**5), dtype="u1")
    elif kind == "h5":
        with h5py.File(path, "w") as file:
            file.create_dataset("em", (4, 60000, 60000), "u1", chunks=(1, 60000, 60000), compression="gzip")
    elif kind == "nii.gz":
        header = nibabel.Nifti1Image(np.zeros((4, 4, 4), np.uint8), np.eye(4)).header
        header.set_data_shape((3000, 3000, 3000))
        path.write_bytes(gzip.compress(header.binaryblock + bytes(100)))
    elif kind == "nrrd":
        head = "NRRD0004\ntype: uint8\ndimension: 3\nsizes: 5000 5000 5000\nencoding: gzip\n\n"
        path.write_bytes(head.encode() + gzip.compress(bytes(100)))
    elif kind == "n5":
        path.mkdir()
        attributes = {"dimensions": [10**5] * 3, "blockSize": [10**5, 10**5, 1], "dataType": "uint8"}
        (path / "attributes.json").write_text(json.dumps(attributes | {"compression": {"type": "gzip"}}))
    elif kind == "npy":
        head = str({"descr": "|u1", "fortran_order": False, "shape": (10**5,) * 3})
        path.write_bytes(b"\x93NUMPY\x01\x00" + struct.pack("<H", len(head) + 1) + head.encode() + b"\n")
    return path


@pytest.mark.parametrize("kind", ["png", "jpg", "tif", "zarr", "h5", "nii.gz", "nrrd", "n5", "npy"])
def test_headers_that_claim_many_gigabytes(tmp_path, kind, fails):
    path = huge(kind, tmp_path)
    with bounded():
        fails(path, str(path))


def test_ome_xml_that_claims_many_planes(tmp_path):
    with bounded():
        volume = open_volume(huge("ome.tif", tmp_path))
    assert volume.shape == (2, 64, 64)
    assert any("OME-XML cannot be read" in note for note in volume.notes)


@pytest.mark.parametrize("codec", ["gzip", "zstd", "blosc"])
def test_a_chunk_that_becomes_more_than_a_chunk(tmp_path, codec, fails):
    large = bytes(10**9) if codec == "gzip" else np.zeros(10**8, np.uint8)
    made = {"gzip": GzipCodec(), "zstd": ZstdCodec(), "blosc": BloscCodec()}[codec]
    path = tmp_path / "a.zarr"
    zarr.create_array(path, data=np.ones((2, 1024, 1024), np.uint8), chunks=(1, 1024, 1024), compressors=made)
    packed = {"gzip": lambda a: gzip.compress(a, 9), "zstd": numcodecs.Zstd().encode, "blosc": numcodecs.Blosc().encode}
    (path / "c" / "0" / "0" / "0").write_bytes(packed[codec](large))
    del large
    volume = open_volume(path)
    assert volume.read(1).all()
    with bounded():
        fails(lambda: volume.read(0), "more than a chunk")


@pytest.mark.parametrize("codec", ["zlib", "gzip", "bz2", "xz"])
def test_a_chunk_of_an_older_compressor_that_becomes_more(tmp_path, codec, fails):
    """zarr decompresses these whole, whatever they become."""
    name = {"zlib": "zlib", "gzip": "gzip", "bz2": "bz2", "xz": "lzma"}[codec]
    options = {"preset": 0} if codec == "xz" else {"level": 9}
    made = numcodecs.get_codec({"id": name} | options)
    pixels = np.random.default_rng(0).integers(0, 250, (2, 600, 600), dtype=np.uint8)
    path = tmp_path / "a.zarr"
    zarr.create_array(path, data=pixels, chunks=(1, 600, 600), compressors=made, zarr_format=2)
    (path / "0.0.0").write_bytes(made.encode(bytes(3 * 10**8)))
    volume = open_volume(path)
    np.testing.assert_array_equal(volume.read(1), pixels[1])
    with bounded(seconds=4):
        fails(lambda: volume.read(0), "more than a chunk")


def test_a_chunk_of_hdf5_that_becomes_more(tmp_path, fails):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        dataset = file.create_dataset("em", (2, 64, 64), "u1", chunks=(1, 64, 64), compression="gzip")
        dataset.id.write_direct_chunk((0, 0, 0), zlib.compress(bytes(10**8)))
        dataset[1] = 1
    volume = open_volume(tmp_path / "a.h5")
    assert volume.read(1).all()
    with bounded():
        fails(lambda: volume.read(0), "damaged")


def test_a_chunk_in_a_shard_that_is_read_whole(tmp_path, fails):
    path = tmp_path / "a.zarr"
    pixels = np.random.default_rng(0).integers(0, 9, (2, 1024, 1024), dtype=np.uint8)
    zarr.create_array(path, data=pixels, shards=(1, 1024, 1024), chunks=(1, 512, 512), compressors=GzipCodec())
    shard, bomb = path / "c" / "0" / "0" / "0", zlib.compress(bytes(4 * 10**8), 9, 31)
    data = shard.read_bytes()
    body, index = data[:-68], list(struct.unpack("<8Q", data[-68:-4]))
    index[6:] = len(body), len(bomb)
    packed = struct.pack("<8Q", *index)
    shard.write_bytes(body + bomb + packed + struct.pack("<I", google_crc32c.value(packed)))
    volume = open_volume(path)
    np.testing.assert_array_equal(volume.read(1), pixels[1])
    with bounded():
        fails(lambda: volume.read(0), "more than a chunk")
        fails(lambda: volume.read(0, slice(600, 700), slice(600, 700)), "more than a chunk")


@pytest.mark.filterwarnings("ignore:Combining a")
def test_shards_in_shards_and_compressed_shards(tmp_path, fails):
    zarr.create_array(tmp_path / "a.zarr", shape=(2, 64, 64), shards=(1, 64, 64), chunks=(1, 32, 32), dtype="u1")
    metadata = json.loads((tmp_path / "a.zarr" / "zarr.json").read_text())
    inner = json.loads(json.dumps(metadata["codecs"][0]))
    inner["configuration"]["chunk_shape"] = [1, 16, 16]
    gzipped = {"name": "gzip", "configuration": {"level": 5}}
    sharded = metadata["codecs"][0]
    for codecs in ([sharded | {"configuration": sharded["configuration"] | {"codecs": [inner]}}], [sharded, gzipped]):
        (tmp_path / "a.zarr" / "zarr.json").write_text(json.dumps(metadata | {"codecs": codecs}))
        fails(tmp_path / "a.zarr", "compressed several times")


def test_chunks_of_text_in_an_array_of_numbers(tmp_path, fails):
    """Each says how many strings it holds, for which memory is taken at once."""
    zarr.create_array(tmp_path / "a.zarr", data=np.ones((2, 8, 8), np.uint8), chunks=(2, 8, 8))
    metadata = json.loads((tmp_path / "a.zarr" / "zarr.json").read_text())
    for name in ("vlen-utf8", "vlen-bytes"):
        (tmp_path / "a.zarr" / "zarr.json").write_text(json.dumps(metadata | {"codecs": [{"name": name}]}))
        (tmp_path / "a.zarr" / "c" / "0" / "0" / "0").write_bytes(b"\xff\xff\xff\x7f" * 9)
        with bounded():
            fails(lambda: open_volume(tmp_path / "a.zarr").read(0), "text or objects")


def test_large_chunks_of_next_to_nothing(tmp_path, fails):
    """The blank ones that are not there take no more memory than their slice."""
    shape = (3, 16000, 12000)
    zarr.create_array(tmp_path / "a.zarr", shape=shape, chunks=(1, *shape[1:]), dtype="u1")
    with bounded(megabytes=300):
        assert not open_volume(tmp_path / "a.zarr").read(0).any()
    (tmp_path / "a.zarr" / "c" / "1" / "0").mkdir(parents=True)
    (tmp_path / "a.zarr" / "c" / "1" / "0" / "0").write_bytes(ZstdCodec()._zstd_codec.encode(bytes(192_000_000)))
    with h5py.File(tmp_path / "a.h5", "w") as file:
        dataset = file.create_dataset("em", shape, "u1", chunks=(1, *shape[1:]), compression="gzip")
        dataset.id.write_direct_chunk((1, 0, 0), zlib.compress(bytes(192_000_000)))
    with bounded():
        for name in ("a.zarr", "a.h5"):
            fails(lambda: open_volume(tmp_path / name).read(1), "smaller chunks")  # noqa: B023


def test_chunks_of_a_pixel(tmp_path, fails):
    zarr.create_array(tmp_path / "a.zarr", shape=(2, 20000, 20000), chunks=(1, 1, 1), dtype="u1")
    volume = open_volume(tmp_path / "a.zarr")
    assert volume.read(0, slice(4), slice(4)).shape == (4, 4)
    with bounded():
        fails(lambda: volume.read(0), "400,000,000 chunks")


@pytest.mark.parametrize("codec", ["jpeg2000", "jpegxl", "jpeg", "png", "webp"])
def test_a_strip_that_says_it_is_an_image_of_another_size(tmp_path, codec, fails):
    side, path = 3000, tmp_path / "a.tif"
    encode = {"jpeg2000": imagecodecs.jpeg2k_encode, "jpegxl": imagecodecs.jpegxl_encode}.get(codec)
    encode = encode or {"jpeg": imagecodecs.jpeg8_encode, "png": imagecodecs.png_encode}.get(codec)
    for size in (64, side):
        image = np.zeros((size, size), np.uint8)
        data = imagecodecs.webp_encode(np.stack([image] * 3, -1), lossless=True) if encode is None else encode(image)
        code = {"jpeg2000": 34712, "jpegxl": 50002, "jpeg": 7, "png": 34933, "webp": 50001}[codec]
        tags = [
            (256, 64),
            (257, 64),
            (258, 8),
            (259, code),
            (262, 1),
            (273, 122),
            (277, 1),
            (278, 64),
            (279, len(data)),
        ]
        entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
        path.write_bytes(b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4) + data)
        if size == 64 and encode:
            assert not open_volume(path).read(0).any()
    with bounded():
        fails(lambda: open_volume(path).read(0), f"says that it is {side} x {side}")


def test_a_header_that_skips_most_of_a_compressed_file(tmp_path, fails):
    head = "NRRD0004\ntype: uint8\ndimension: 3\nsizes: 4 4 4\nencoding: gzip\nbyte skip: {}\n\n"
    for skip in (1000, 3 * 10**8):
        (tmp_path / "a.nrrd").write_bytes(head.format(skip).encode() + zlib.compress(bytes(skip) + b"\1" * 64, 1, 31))
        if skip == 1000:
            assert open_volume(tmp_path / "a.nrrd").read(0).all()
    with bounded():
        fails(tmp_path / "a.nrrd", "skips 300,000,000 bytes")


def test_a_window_of_a_virtual_hdf5_looks_at_the_chunks_of_its_own(tmp_path, fails):
    """One that is damaged elsewhere is not read, as a source can be a terabyte."""
    noise = np.random.default_rng(0).integers(0, 255, (8, 700, 700), dtype=np.uint8)
    with h5py.File(tmp_path / "part.h5", "w") as file:
        dataset = file.create_dataset("em", data=noise, chunks=(1, 700, 700), compression="gzip")
        dataset.id.write_direct_chunk((5, 0, 0), zlib.compress(bytes(6 * 10**8)))
    layout = h5py.VirtualLayout((9, 700, 700), "u1")
    layout[1:9] = h5py.VirtualSource("part.h5", "em", shape=noise.shape)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_virtual_dataset("em", layout)
    volume = open_volume(tmp_path / "a.h5")
    for z in (1, 5, 7, 8):
        np.testing.assert_array_equal(volume.read(z), noise[z - 1])
    with bounded():
        fails(lambda: volume.read(6), "holds more than")


@pytest.mark.parametrize("kind", ["zarr", "h5", "png", "tif"])
def test_what_is_decoded_at_once_and_larger_than_memory(tmp_path, kind, monkeypatch):
    """However little it is compressed: pixels of which a slice would fit in memory, in a chunk that does not."""
    pixels = np.random.default_rng(0).integers(0, 255, (8, 100, 100), dtype=np.uint8)
    path = tmp_path / f"a.{kind}"
    if kind == "zarr":
        zarr.create_array(path, data=pixels, chunks=pixels.shape)
    elif kind == "h5":
        with h5py.File(path, "w") as file:
            file.create_dataset("raw", data=pixels, chunks=pixels.shape, compression="gzip")
    elif kind == "png":
        Image.fromarray(pixels.reshape(800, 100)).save(path)
    else:
        tifffile.imwrite(path, pixels.reshape(800, 100), compression="zlib")
    open_volume(path).read(0)
    memory = {"SC_PHYS_PAGES": 10, "SC_PAGE_SIZE": 4096}
    monkeypatch.setattr(os, "sysconf", lambda name: memory[name])
    with pytest.raises(VolumeError, match="more than the memory here"):
        open_volume(path).read(0)


def test_large_images_that_compress_well_are_no_bombs(tmp_path):
    """A blank slice of labels, for one."""
    tifffile.imwrite(tmp_path / "a.tif", np.zeros((8000, 8000), np.uint8), compression="zlib")
    assert open_volume(tmp_path / "a.tif").shape == (1, 8000, 8000)
    zarr.create_array(tmp_path / "a.zarr", shape=(9, 20000, 20000), chunks=(1, 20000, 20000), dtype="u1")
    assert open_volume(tmp_path / "a.zarr").shape == (9, 20000, 20000)


def test_a_slice_larger_than_memory_is_refused_when_it_is_read(tmp_path, fails):
    zarr.create_array(tmp_path / "a.zarr", shape=(2, 10**9, 10**6), chunks=(1, 512, 512), dtype="u1", fill_value=7)
    volume = open_volume(tmp_path / "a.zarr")
    assert (volume.read(0, slice(9), slice(9)) == 7).all()
    with bounded():
        fails(lambda: volume.read(0), "cannot read slice z=0", "1,000,000.0 GB at once")


# ---------------------------------------------------------------- names


@pytest.mark.parametrize(
    "name", ["no\0.tif", "no\x1b[31m.tif", "no\n.tif", "n\to.tif", "\u202eno.tif", "x" * 300 + ".tif", "x/" * 3000]
)
def test_names_that_are_hard_to_print(tmp_path, name):
    for source in (f"{tmp_path}/{name}", Path(f"{tmp_path}/{name}")):
        with pytest.raises(VolumeError) as caught:
            open_volume(source)
        message = str(caught.value)
        assert message.isprintable()
        assert len(message) < 300


def test_messages_are_short_whatever_a_file_holds(tmp_path, fails):
    group = zarr.open_group(tmp_path / "a.zarr", mode="w")
    for i in range(9):
        group.create_array(f"{'long' * 20}{i}", shape=(2, 2, 2), dtype="u1")
    with h5py.File(tmp_path / "a.h5", "w") as file:
        for i in range(9):
            file["\x1b" + "long" * 40 + str(i)] = np.zeros((2, 2, 2))
    zarr.create_array(tmp_path / "b.zarr", shape=(2, 2, 2), dtype="u1", dimension_names=["long" * 90, "\n", "b"])
    for name in ("a.zarr", "a.h5", "b.zarr"):
        with pytest.raises(VolumeError) as caught:
            open_volume(tmp_path / name)
        assert str(caught.value).isprintable()
        assert len(str(caught.value)) < 300


@pytest.mark.skipif(os.getuid() == 0, reason="root may read everything")
def test_a_folder_that_may_not_be_read(tmp_path, fails):
    (tmp_path / "a").mkdir(mode=0)
    fails(tmp_path / "a", "no permission", str(tmp_path / "a"))


def test_what_may_not_be_read_is_said(tmp_path, monkeypatch, fails):
    """As for somebody who is not root."""

    def refuse(path: Path) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "iterdir", refuse)
    fails(tmp_path, "no permission to read", str(tmp_path))


def test_a_folder_that_may_not_be_entered(pixels, tmp_path, monkeypatch, fails):
    """Its names may be listed, but what they are may not be asked."""
    folder, honest = tmp_path / "slices", Path.stat
    folder.mkdir()
    tifffile.imwrite(folder / "0.tif", pixels[0])

    def refuse(path: Path, **options) -> os.stat_result:
        if path.parent == folder:
            raise PermissionError(13, "Permission denied", str(path))
        return honest(path, **options)

    monkeypatch.setattr(Path, "stat", refuse)
    fails(folder, "no permission to read", str(folder))
    check_target(tmp_path / "mask.tif", inputs=[folder])


# ---------------------------------------------------------------- files that name others


@pytest.fixture
def secret(pixels, tmp_path) -> Path:
    """A file of the user's, outside of the folder in which the stranger's are."""
    (tmp_path / "mine").mkdir()
    (tmp_path / "theirs").mkdir()
    tifffile.imwrite(tmp_path / "mine" / "a.tif", pixels, photometric="minisblack")
    with h5py.File(tmp_path / "mine" / "a.h5", "w") as file:
        file["em"] = pixels
    return tmp_path / "mine"


@pytest.mark.parametrize("name", ["../mine/a.tif", "&#46;&#46;/mine/a.tif", "&x;", "FULL"])
def test_an_ome_tiff_takes_no_pixels_from_elsewhere(pixels, secret, name, fails):
    path = secret.parent / "theirs" / "a.ome.tif"
    tifffile.imwrite(path, np.zeros_like(pixels), ome=True, metadata={"axes": "ZYX"})
    text = tifffile.tiffcomment(path)
    part = '<TiffData FirstZ="{0}" IFD="{0}" PlaneCount="1"><UUID FileName="{1}">urn:uuid:1</UUID></TiffData>'
    parts = "".join(part.format(z, name.replace("FULL", str(secret / "a.tif"))) for z in range(len(pixels)))
    start, end = text.index("<TiffData"), text.index("</Pixels>")
    kind = '<!DOCTYPE a [<!ENTITY x "../mine/a.tif">]>' if name == "&x;" else ""
    tifffile.tiffcomment(path, (text[:start] + parts + text[end:]).replace("<OME", f"{kind}<OME", 1).encode())
    if kind:  # it is not asked what it says
        assert not np.asarray(open_volume(path)).any()
    else:
        fails(path, str(path), "outside of its folder")


def test_a_header_takes_no_pixels_from_elsewhere(secret, fails):
    path = secret.parent / "theirs" / "a.nhdr"
    for data in ("../mine/a.tif", secret / "a.tif"):
        path.write_text(f"NRRD0004\ntype: uint8\ndimension: 3\nsizes: 4 4 4\nencoding: raw\ndata file: {data}\n")
        fails(path, str(path), "outside of its folder")


def test_hdf5_takes_no_pixels_from_elsewhere(pixels, secret, fails, monkeypatch):
    folder = secret.parent / "theirs"
    monkeypatch.chdir(folder)
    os.mkfifo(folder / "pipe")

    def make(name: str, source: str, dataset: str = "em") -> Path:
        layout = h5py.VirtualLayout(pixels.shape, "u1")
        layout[:] = h5py.VirtualSource(source, dataset, shape=pixels.shape)
        with h5py.File(folder / name, "w") as file:
            file.create_virtual_dataset("em", layout)
        return folder / name

    with h5py.File(folder / "link.h5", "w") as file:
        file["em"], file["soft"] = h5py.ExternalLink("pipe", "em"), h5py.SoftLink("/em")
        file["loop"] = h5py.SoftLink("/loop")
    for inside in ("em", "soft"):
        fails(f"{folder}/link.h5:/{inside}", "links to another file")
    fails(f"{folder}/link.h5:/loop", "no dataset loop")
    with h5py.File(folder / "external.h5", "w") as file:
        file.create_dataset("em", (4, 4, 4), "u1", external=[(str(secret / "a.tif"), 0, 64)])
    fails(folder / "external.h5", "other files")
    fails(make("far.h5", str(secret / "a.h5")), "outside of its folder")
    fails(make("pipes.h5", "pipe"), "no regular file")
    fails(make("gone.h5", "nothing.h5"), "not there")
    fails(make("chain.h5", "external.h5"), "other files")
    fails(make("linked.h5", "link.h5", "soft"), "links to another file")
    fails(make("itself.h5", "itself.h5"), "other files")
    os.link(secret / "a.h5", folder / "part.h5")
    np.testing.assert_array_equal(np.asarray(open_volume(make("ours.h5", "part.h5"))), pixels)


def test_a_precomputed_volume_takes_no_pixels_from_elsewhere(pixels, secret, fails):
    (secret / "0-4_0-4_0-4").write_bytes(bytes(64))
    path = secret.parent / "theirs" / "em"
    path.mkdir()
    for key in ("../../mine", str(secret), "a/../../../mine"):
        scale = {"key": key, "size": [4, 4, 4], "encoding": "raw", "chunk_sizes": [[4, 4, 4]], "resolution": [4, 4, 40]}
        info = {"@type": "neuroglancer_multiscale_volume", "data_type": "uint8", "num_channels": 1, "type": "image"}
        (path / "info").write_text(json.dumps(info | {"scales": [scale | {"voxel_offset": [0, 0, 0]}]}))
        fails(path, str(path), "outside of its folder")


def test_a_tiff_of_micro_manager_is_its_own_pages(pixels, secret):
    """An index beside an NDTiff, and that of an MMStack, would have tifffile open any file."""
    path = secret.parent / "theirs" / "a_MMStack.tif"
    summary = json.dumps({"MicroManagerVersion": "2", "Frames": 1, "Slices": 4}).encode()
    name = b"../mine/a.tif"
    axes = b'{"z": 0}'
    entry = struct.pack("<I", len(axes)) + axes + struct.pack("<I", len(name)) + name
    (path.parent / "NDTiff.index").write_bytes(entry + struct.pack("<8I", 8, 4, 4, 0, 0, 0, 0, 0))
    tifffile.imwrite(
        path,
        np.full((4, 4), 7, np.uint8),
        photometric="minisblack",
        metadata=None,
        extratags=[(51123, "s", 0, '{"a": 1}', True)],
    )
    old = path.read_bytes()
    with tifffile.TiffFile(path) as tif:
        first, data, tags = tif.pages.first.offset, tif.pages.first.dataoffsets[0], tif.pages.first.tags
        moves = [(tags["StripOffsets"].offset, data), (tags[51123].offset, tags[51123].valueoffset)]
    head = struct.pack("<4I", 483729, 2, 2355492, len(summary)) + summary
    head += bytes(len(head) % 2)
    moved = bytearray(old[8:])  # nothing but these two offsets points into a file of one strip
    for at, value in moves:
        struct.pack_into("<I", moved, at, value + len(head))
    path.write_bytes(old[:4] + struct.pack("<I", first + len(head)) + head + moved)
    with tifffile.TiffFile(path) as tif:
        assert tif.is_ndtiff
    assert (np.asarray(open_volume(path)) == 7).all()


def test_links_within_an_hdf5_are_followed(pixels, tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["group/em"], file["other"], file["em"] = pixels, h5py.SoftLink("group"), h5py.SoftLink("/other/em")
    for inside in ("em", "other", "other/em", "group"):
        np.testing.assert_array_equal(np.asarray(open_volume(f"{tmp_path}/a.h5:/{inside}")), pixels)


@cache
def deflated() -> bytes:
    """300 MB in 290 kB."""
    return zlib.compress(bytes(3 * 10**8))


@pytest.mark.parametrize(
    "case", ["deflated twice", "deflated and packed", "packed", "a large chunk", "virtual", "of small chunks"]
)
def test_chunks_of_hdf5_are_judged_before_they_are_decompressed(tmp_path, case, fails):
    bomb, created = deflated(), h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    side = 64 if case == "of small chunks" else 1024
    created.set_chunk((1, side, side))
    if case == "packed":
        bomb = b"\0a" + b"\xe0\xff\0" * 300_000
        created.set_filter(32000, 0, ())
    else:
        created.set_deflate(9)
    if case == "deflated twice":
        created.set_deflate(9)
        bomb = zlib.compress(bomb, 9)
        assert len(bomb) < 10_000
    elif case == "deflated and packed":
        created.set_filter(32000, 0, ())
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        space = h5py.h5s.create_simple((2, side, side))
        dataset = h5py.h5d.create(file.id, b"em", h5py.h5t.NATIVE_UINT8, space, created)
        dataset.write_direct_chunk((0, 0, 0), bomb)
    if case in ("virtual", "of small chunks"):
        layout = h5py.VirtualLayout((2, side, side), "u1")
        layout[:] = h5py.VirtualSource("a.h5", "em", shape=(2, side, side))
        path = tmp_path / "b.h5"
        with h5py.File(path, "w") as file:
            file.create_virtual_dataset("em", layout)
    del bomb
    with bounded():
        fails(lambda: open_volume(path).read(0), "damaged")


def test_honest_filters_of_hdf5(pixels, tmp_path):
    large = np.random.default_rng(0).integers(0, 255, (2, 700, 700), dtype=np.uint8)  # deflated 490 kB a slice
    ways = ({"compression": "gzip", "shuffle": True, "fletcher32": True}, {"scaleoffset": 0}, {"compression": "lzf"})
    for i, (array, how) in enumerate((a, how) for a in (pixels, large) for how in ways):
        with h5py.File(tmp_path / f"{i}.h5", "w") as file:
            file.create_dataset("em", data=array, chunks=(1, *array.shape[1:]), **how)
        np.testing.assert_array_equal(np.asarray(open_volume(tmp_path / f"{i}.h5")), array)


@pytest.mark.parametrize("ending", READERS)
def test_a_file_without_a_byte(tmp_path, fails, ending):
    """As an interrupted copy leaves it."""
    path = tmp_path / f"raw{ending}"
    path.touch()
    fails(path, f"raw{ending} is empty")
