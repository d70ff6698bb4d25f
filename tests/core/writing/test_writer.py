"""Round trips, and what is left behind when writing fails or is given up: nothing."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
import tracemalloc

import dask.array as da
import numpy as np
import pytest
import tifffile
import zarr

from folders import names
from napari_kdunet.core.errors import OutputError, VolumeError
from napari_kdunet.core.volumes.volume import open_volume
from napari_kdunet.core.writing.writer import iter_write, write_volume

SUFFIXES = [".tif", ".tiff", ".zarr"]


@pytest.fixture
def pixels() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 200, (5, 37, 53), dtype=np.uint8)


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "uint32", "int32", "int64", "float32", "float64", "bool"])
def test_round_trip(pixels, tmp_path, suffix, dtype):
    array = pixels.astype(dtype)
    path = tmp_path / f"out{suffix}"
    written: list[int] = []
    write_volume(array, path, voxel_size=(50, 4.6, 0.123), metadata={"model": "ünet\n"}, progress=written.append)
    volume = open_volume(path)
    assert volume.dtype == (np.uint8 if dtype == "bool" and suffix != ".zarr" else np.dtype(dtype))
    assert volume.voxel_size == pytest.approx((50, 4.6, 0.123), rel=1e-6)
    np.testing.assert_array_equal(np.asarray(volume), array)
    assert written == [0, 1, 2, 3, 4]
    assert names(tmp_path) == [f"out{suffix}"]


@pytest.mark.parametrize("suffix", [*SUFFIXES, ".h5", ".mrc"])
@pytest.mark.parametrize("labels", [False, True])
@pytest.mark.parametrize("lazy", [False, True])
def test_bytes_in_the_other_order(tmp_path, suffix, labels, lazy):
    """As an array read from a big-endian file has them."""
    array = np.arange(2 * 20 * 30).reshape(2, 20, 30).astype(">u2")
    write_volume(da.from_array(array) if lazy else array, tmp_path / f"out{suffix}", labels=labels)
    np.testing.assert_array_equal(np.asarray(open_volume(tmp_path / f"out{suffix}")), array)


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("shape", [(1, 37, 53), (3, 1, 53), (2, 5, 3), (3, 4, 4)])
def test_small_shapes_and_no_voxel_size(tmp_path, suffix, shape):
    array = np.random.default_rng(1).random(shape, dtype=np.float32)
    write_volume(array, tmp_path / f"out{suffix}")
    volume = open_volume(tmp_path / f"out{suffix}")
    assert volume.voxel_size is None
    np.testing.assert_array_equal(np.asarray(volume), array)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_lazy_array_is_computed_ahead(tmp_path, suffix):
    """Each slice once, in order, and not all of them before the first is written."""
    computed: list[int] = []

    def block(block_id) -> np.ndarray:
        computed.append(block_id[0])
        return np.full((1, 30, 20), block_id[0], np.uint8)

    lazy = da.map_blocks(block, chunks=((1,) * 40, 30, 20), dtype=np.uint8, meta=np.empty((0, 0, 0), np.uint8))
    writing = iter_write(lazy, tmp_path / f"out{suffix}")
    assert next(writing) == (0, 1)
    assert len(computed) < 10
    assert list(writing) == [(z, z + 1) for z in range(1, 40)]
    assert sorted(computed) == list(range(40))
    np.testing.assert_array_equal(np.asarray(open_volume(tmp_path / f"out{suffix}"))[:, 7, 7], np.arange(40))


def test_slices_ahead_are_not_computed_once_writing_is_stopped(tmp_path):
    computed: list[int] = []

    def block(block_id) -> np.ndarray:
        computed.append(block_id[0])
        return np.zeros((1, 30, 20), np.uint8)

    lazy = da.map_blocks(block, chunks=((1,) * 400, 30, 20), dtype=np.uint8, meta=np.empty((0, 0, 0), np.uint8))
    writing = iter_write(lazy, tmp_path / "out.tif")
    next(writing)
    writing.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("kdunet-prefetch")]
    assert len(computed) < 10


def test_a_bad_slice_of_a_lazy_array_is_named(tmp_path, one_line):
    def block(block_id) -> np.ndarray:
        if block_id[0] == 13:
            raise OSError("bad disk")
        return np.zeros((1, 30, 20), np.uint8)

    lazy = da.map_blocks(block, chunks=((1,) * 40, 30, 20), dtype=np.uint8, meta=np.empty((0, 0, 0), np.uint8))
    written: list[int] = []
    with one_line(VolumeError, "z=13", "bad disk"):
        write_volume(lazy, tmp_path / "out.tif", progress=written.append)
    assert written == list(range(13))
    assert names(tmp_path) == []


class Damaged:
    """A volume of which some slices cannot be read."""

    def __init__(self, pixels, *bad: int) -> None:
        self.pixels, self.bad, self.shape, self.dtype = pixels, bad, pixels.shape, pixels.dtype

    def __getitem__(self, z):
        if z in self.bad:
            raise (OSError if z % 2 else VolumeError)(f"bad slice z={z}")
        return self.pixels[z]


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("lazy", [False, True])
def test_bad_slices_are_skipped_if_asked(pixels, tmp_path, suffix, lazy):
    path, told = tmp_path / f"out{suffix}", []
    source = lazily(Damaged(pixels, 0, 3, 4)) if lazy else Damaged(pixels, 0, 3, 4)
    write_volume(source, path, metadata={"a": 1}, voxel_size=(4, 3, 2), on_error=told.append)
    assert [type(error) for error in told] == [VolumeError] * 3
    assert ["z=0" in str(told[0]), "z=3" in str(told[1]), "z=4" in str(told[2])] == [True] * 3
    expected = pixels.copy()
    expected[[0, 3, 4]] = 0
    volume = open_volume(path)
    np.testing.assert_array_equal(np.asarray(volume), expected)
    assert volume.voxel_size == (4, 3, 2)
    assert about(path) == {"a": 1, "skipped": [0, 3, 4]}
    write_volume(pixels, path, on_error=told.append, overwrite=True)
    assert about(path) == {"skipped": []}
    with pytest.raises(VolumeError, match="z=4"):  # nothing is left of it
        write_volume(Damaged(pixels, *range(5)), path, on_error=told.append, overwrite=True)
    np.testing.assert_array_equal(np.asarray(open_volume(path)), pixels)
    assert names(tmp_path) == [path.name]


def lazily(volume) -> da.Array:
    return da.map_blocks(
        lambda block_id: volume[block_id[0]][None],
        chunks=((1,) * volume.shape[0], *volume.shape[1:]),
        dtype=volume.dtype,
        meta=np.empty((0, 0, 0), volume.dtype),
    )


def about(path) -> dict:
    if path.suffix == ".zarr":
        return zarr.open_group(path, mode="r").attrs["napari_kdunet"]
    with tifffile.TiffFile(path) as tif:
        return json.loads(tif.imagej_metadata["napari_kdunet"])


def test_what_was_skipped_before_a_stop_is_tried_again(pixels, tmp_path):
    def stopped_at(z: int, *bad: int) -> None:
        writing = iter_write(Damaged(pixels, *bad), tmp_path / "out.zarr", resume_key="this", on_error=str)
        while next(writing).z < z:
            pass
        writing.close()
        assert len(names(tmp_path)) == 1  # it is kept, under a hidden name

    stopped_at(3, 0, 2)
    stopped_at(2, 2)
    written = list(iter_write(Damaged(pixels, 2), tmp_path / "out.zarr", resume_key="this", on_error=str))
    assert written == [(2, 4), (4, 5)]
    assert about(tmp_path / "out.zarr") == {"skipped": [2]}
    expected = pixels.copy()
    expected[2] = 0
    np.testing.assert_array_equal(np.asarray(open_volume(tmp_path / "out.zarr")), expected)
    shutil.rmtree(tmp_path / "out.zarr")
    stopped_at(3, 0, 2)
    assert list(iter_write(pixels, tmp_path / "out.zarr", resume_key="this")) == [(0, 3), (2, 4), (4, 5)]
    np.testing.assert_array_equal(np.asarray(open_volume(tmp_path / "out.zarr")), pixels)
    assert names(tmp_path) == ["out.zarr"]


def test_a_stop_before_the_first_slice_leaves_nothing(pixels, tmp_path):
    writing = iter_write(Damaged(pixels, 0), tmp_path / "out.zarr", resume_key="this", on_error=str)
    next(writing)
    writing.close()
    assert names(tmp_path) == []


WRITER = """
import sys
import dask.array as da, numpy as np
from napari_kdunet.core.writing.writer import iter_write
lazy = da.from_array(np.load(sys.argv[1]), chunks=(1, 37, 53))
for z, _ in iter_write(lazy, sys.argv[2], metadata={"a": 1}, resume_key="this"):
    print(z, flush=True)
    if z == 2:
        sys.stdin.read()
"""


@pytest.mark.skipif(os.name != "posix", reason="there a killed process cannot be told from a living one")
@pytest.mark.parametrize(("key", "first"), [("this", 3), ("another", 0)])
def test_a_killed_writing_of_a_zarr_is_gone_on_with(pixels, tmp_path, key, first):
    np.save(tmp_path / "pixels.npy", pixels)
    folder = tmp_path / "out"
    folder.mkdir()
    argv = [sys.executable, "-c", WRITER, tmp_path / "pixels.npy", folder / "out.zarr"]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert [process.stdout.readline() for _ in range(3)] == ["0\n", "1\n", "2\n"]
        process.kill()
    assert len(names(folder)) == 2  # what it left, under hidden names
    (left,) = folder.glob(".out.part-*")
    broken = left / "0" / "c" / "3" / "0" / "0"  # as if it was killed in the middle of the next
    broken.parent.mkdir(parents=True, exist_ok=True)
    broken.write_bytes(b"half")
    broken.with_name("0.123.partial").write_bytes(b"half")  # how zarr calls a chunk, and `files` a note, under way
    (left / ".kdunet-progress.part-123.json").write_bytes(b"half")
    lazy = da.from_array(pixels, chunks=(1, 37, 53))
    written = list(iter_write(lazy, folder / "out.zarr", metadata={"a": 1}, resume_key=key))
    assert written == [(z, z + 1) for z in range(first, 5)]
    write_volume(lazy, tmp_path / "out.zarr", metadata={"a": 1})
    assert tree(folder / "out.zarr") == tree(tmp_path / "out.zarr")
    assert (names(folder) == ["out.zarr"]) == (key == "this")  # another result's is left alone


def tree(folder) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_one_writer_at_a_time(pixels, tmp_path, suffix, one_line):
    path = tmp_path / f"out{suffix}"
    writing = iter_write(pixels, path, resume_key="this")
    assert [next(writing), next(writing)] == [(0, 1), (1, 2)]
    with one_line(OutputError, str(path), f"process {os.getpid()} on ", "is writing it"):
        write_volume(pixels + 1, path, resume_key="this")
    assert list(writing) == [(2, 3), (3, 4), (4, 5)]
    np.testing.assert_array_equal(np.asarray(open_volume(path)), pixels)
    assert names(tmp_path) == [path.name]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_what_a_killed_process_left_is_gone(pixels, tmp_path, suffix):
    """Without a key too: the temporary, and the lock."""
    np.save(tmp_path / "pixels.npy", pixels)
    folder = tmp_path / "out"
    folder.mkdir()
    path = folder / f"out{suffix}"
    argv = [sys.executable, "-c", WRITER.replace('resume_key="this"', ""), tmp_path / "pixels.npy", path]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert [process.stdout.readline() for _ in range(3)] == ["0\n", "1\n", "2\n"]
        process.kill()
    assert len(names(folder)) == 2
    write_volume(pixels, path)
    np.testing.assert_array_equal(np.asarray(open_volume(path)), pixels)
    assert names(folder) == [path.name]


def test_a_slice_that_is_taken_away_meanwhile_is_noticed(pixels, tmp_path, one_line):
    pixels[1] = 0  # an empty slice is there all the same
    writing = iter_write(pixels, tmp_path / "out.zarr")
    next(writing)
    (temporary,) = tmp_path.glob(".out.part-*")
    shutil.rmtree(temporary / "0" / "c" / "0")
    with one_line(OutputError, "out.zarr", "z=0"):
        list(writing)
    assert names(tmp_path) == []


@pytest.mark.parametrize("suffix", [".tif", ".zarr"])
def test_a_large_lazy_slice_is_in_memory_once(tmp_path, suffix):
    """And not as blocks and as a slice made of them."""
    blocks = ((1,), (500,) * 14, (6000,))
    lazy = da.map_blocks(
        lambda block_id: np.full((1, 500, 6000), block_id[1], np.uint8),
        chunks=blocks,
        dtype=np.uint8,
        meta=np.empty((0, 0, 0), np.uint8),
    )
    write_volume(lazy[:, :500], tmp_path / f"small{suffix}")  # what is imported on the way is not counted
    tracemalloc.start()
    write_volume(lazy, tmp_path / f"out{suffix}")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1.6 * lazy.nbytes
    np.testing.assert_array_equal(open_volume(tmp_path / f"out{suffix}").read(0)[:, 5], np.repeat(np.arange(14), 500))


@pytest.mark.parametrize("suffix", [".tif", ".zarr"])
def test_a_thick_chunk_is_computed_once_and_in_memory_once(tmp_path, suffix):
    computed: list[tuple[int, ...]] = []

    def block(block_id) -> np.ndarray:
        computed.append(block_id)
        z = np.arange(block_id[0] * 20, (block_id[0] + 1) * 20)[:, None, None]
        return np.broadcast_to(z + 100 * block_id[1], (20, 200, 700)).astype(np.uint8)

    chunks = ((20,) * 5, (200,) * 2, (700,))
    lazy = da.map_blocks(block, chunks=chunks, dtype=np.uint8, meta=np.empty((0, 0, 0), np.uint8))
    write_volume(lazy[:, :200, :50], tmp_path / f"small{suffix}")
    computed.clear()
    tracemalloc.start()
    write_volume(lazy, tmp_path / f"out{suffix}")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert sorted(computed) == [(slab, row, 0) for slab in range(5) for row in range(2)]
    assert peak < 1.7 * lazy.nbytes / 5  # a slab, and a block of it while it is put in its place
    written = np.asarray(open_volume(tmp_path / f"out{suffix}"))
    np.testing.assert_array_equal(written[:, 7, 9], np.arange(100))
    np.testing.assert_array_equal(written[:, 207, 9], np.arange(100) + 100)


def test_sources(pixels, tmp_path):
    write_volume(da.from_array(pixels, chunks=(2, 20, 20)), tmp_path / "a.tif")
    write_volume(open_volume(tmp_path / "a.tif", voxel_size=(3, 2, 1)), tmp_path / "b.zarr")
    write_volume(iter(pixels), tmp_path / "c.tif", shape=pixels.shape, dtype=np.float32)
    for name in ("a.tif", "b.zarr", "c.tif"):
        np.testing.assert_array_equal(np.asarray(open_volume(tmp_path / name)), pixels)
    assert open_volume(tmp_path / "b.zarr").voxel_size == (3, 2, 1)
    assert open_volume(tmp_path / "c.tif").dtype == np.float32


def test_tiff_is_compressed_and_imagej_knows_it(tmp_path):
    array = np.zeros((4, 500, 500), np.uint8)
    write_volume(array, tmp_path / "out.tif", voxel_size=(30, 4, 4), metadata={"k": 2})
    assert (tmp_path / "out.tif").stat().st_size < array.nbytes / 20
    with tifffile.TiffFile(tmp_path / "out.tif") as tif:
        assert not tif.is_bigtiff
        assert (tif.imagej_metadata["slices"], tif.imagej_metadata["unit"]) == (4, "nm")
        assert json.loads(tif.imagej_metadata["napari_kdunet"]) == {"k": 2}


def test_big_tiff_beyond_two_gib(tmp_path):
    shape = (3 * 2**10, 2**10, 2**10)
    writing = iter_write(
        (np.zeros(shape[1:], np.uint8) for _ in range(shape[0])), tmp_path / "a.tif", shape=shape, dtype="u1"
    )
    next(writing)
    (temporary,) = tmp_path.glob(".*.tif")
    assert temporary.read_bytes()[2] == 43  # the version of BigTIFF; 42 is TIFF
    writing.close()
    assert names(tmp_path) == []


def test_zarr_is_valid_ome_zarr(tmp_path):
    yaozarrs = pytest.importorskip("yaozarrs")
    write_volume(np.ones((3, 1100, 20), np.float32), tmp_path / "out.zarr", voxel_size=(30, 4, 5), metadata={"k": 2})
    yaozarrs.validate_zarr_store(tmp_path / "out.zarr")
    group = zarr.open_group(tmp_path / "out.zarr", mode="r")
    assert (group["0"].chunks, group["1"].shape) == ((1, 1024, 20), (3, 550, 10))
    assert group["0"].metadata.zarr_format == 3
    assert group.attrs["ome"]["version"] == "0.5"
    assert group.attrs["ome"]["multiscales"][0]["name"] == "out"
    assert group.attrs["napari_kdunet"] == {"k": 2}


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_replaces_only_at_the_end(pixels, tmp_path, suffix):
    path = tmp_path / f"out{suffix}"
    write_volume(pixels, path)
    for z, _ in iter_write(pixels + 1, path, overwrite=True):
        np.testing.assert_array_equal(open_volume(path).read(z), pixels[z])
        assert len(names(tmp_path)) == 3  # beside it are the temporary and the lock
    np.testing.assert_array_equal(np.asarray(open_volume(path)), pixels + 1)
    assert names(tmp_path) == [path.name]


def test_onto_its_own_source(pixels, tmp_path):
    path = tmp_path / "out.tif"
    write_volume(pixels, path)
    write_volume(open_volume(path), path, dtype=np.float32, overwrite=True)
    np.testing.assert_array_equal(np.asarray(open_volume(path)), pixels)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_given_up_leaves_nothing(pixels, tmp_path, suffix):
    path = tmp_path / f"out{suffix}"
    write_volume(pixels, path)

    writing = iter_write(pixels + 1, path, overwrite=True)
    assert [next(writing), next(writing)] == [(0, 1), (1, 2)]
    assert len(names(tmp_path)) == 3
    writing.close()
    assert names(tmp_path) == [path.name]

    def interrupt(z: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_volume(pixels + 1, path, progress=interrupt, overwrite=True)
    assert names(tmp_path) == [path.name]
    np.testing.assert_array_equal(np.asarray(open_volume(path)), pixels)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_errors_of_the_source_pass(pixels, tmp_path, suffix):
    def slices():
        yield pixels[0]
        raise VolumeError("cannot read slice z=1 of raw.tif")

    with pytest.raises(VolumeError, match="z=1"):
        write_volume(slices(), tmp_path / f"out{suffix}", shape=pixels.shape, dtype=pixels.dtype)
    for count, match in ((2, "only 2 of 5"), (7, "z=5")):
        source = (pixels[0] for _ in range(count))
        with pytest.raises(OutputError, match=match):
            write_volume(source, tmp_path / f"out{suffix}", shape=pixels.shape, dtype=pixels.dtype)
    with pytest.raises(OutputError, match="z=0"):
        write_volume(iter(pixels[:, 1:]), tmp_path / f"out{suffix}", shape=pixels.shape, dtype=pixels.dtype)
    assert names(tmp_path) == []


class Unmounted:
    """A volume on a share that goes away after two slices."""

    shape, dtype = (5, 37, 53), np.dtype(np.uint8)

    def __getitem__(self, z):
        if z == 2:
            raise OSError(5, "Input/output error", "raw.tif")
        return np.zeros(self.shape[1:], self.dtype)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_os_errors_of_the_source_are_not_taken_for_those_of_writing(tmp_path, suffix):
    with pytest.raises(VolumeError, match=r"cannot read slice z=2 .*Input/output error: 'raw\.tif'"):
        write_volume(Unmounted(), tmp_path / f"out{suffix}")
    assert names(tmp_path) == []


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_full_disk(tmp_path, suffix):
    resource = pytest.importorskip("resource", reason="not on Windows")
    noise = np.random.default_rng(2).integers(0, 255, (8, 300, 300), dtype=np.uint8)
    path = tmp_path / f"out{suffix}"
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(
        resource.RLIMIT_FSIZE, (50_000, hard)
    )  # no file may grow beyond: the write fails as on a full disk
    try:
        with pytest.raises(OutputError, match="cannot write") as caught:
            write_volume(noise, path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert names(tmp_path) == []


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_process_ends_as_usual_after_a_full_disk(tmp_path, suffix):
    pytest.importorskip("resource", reason="not on Windows")
    code = """
import resource, sys
import numpy as np
from napari_kdunet import core
resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
noise = np.random.default_rng(2).integers(0, 255, (8, 300, 300), dtype=np.uint8)
try:
    core.write_volume(noise, sys.argv[1])
except core.OutputError:
    sys.exit(7)
"""
    argv = [sys.executable, "-c", code, str(tmp_path / f"out{suffix}")]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (7, "")


def test_a_rename_that_fails_restores_the_old_zarr(pixels, tmp_path, monkeypatch):
    path = tmp_path / "out.zarr"
    write_volume(pixels, path)
    rename = type(path).rename

    def fail(self, target):
        if ".part-" in self.name:
            raise PermissionError(13, "Permission denied")
        return rename(self, target)

    monkeypatch.setattr(type(path), "rename", fail)
    with pytest.raises(OutputError, match="Permission denied"):
        write_volume(pixels + 1, path, overwrite=True)
    assert names(tmp_path) == ["out.zarr"]
    np.testing.assert_array_equal(np.asarray(open_volume(path)), pixels)


def test_what_is_no_volume(pixels, tmp_path):
    for array in (pixels[0], pixels[:0], pixels.astype(complex)):
        with pytest.raises(OutputError, match=r"out\.tif: shape"):
            write_volume(array, tmp_path / "out.tif")


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_memory_is_that_of_a_slice(tmp_path, suffix):
    slices = (np.full((600, 600), z, np.uint8) for z in range(60))
    tracemalloc.start()
    write_volume(slices, tmp_path / f"out{suffix}", shape=(60, 600, 600), dtype=np.uint8)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10 * 600 * 600  # of 60 slices


def test_slices_before_one_that_cannot_be_read_are_kept(pixels, tmp_path):
    path, bad = tmp_path / "out.zarr", Damaged(pixels, 3)
    with pytest.raises(VolumeError, match="z=3"):
        list(iter_write(bad, path, resume_key="this"))
    assert not path.exists()
    written = list(iter_write(bad, path, resume_key="this", on_error=str))
    assert [z for z, _ in written] == [3, 4]
    np.testing.assert_array_equal(np.asarray(open_volume(path)[0]), pixels[0])
    assert names(tmp_path) == ["out.zarr"]
