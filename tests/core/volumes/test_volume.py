"""Every kind of source: pixels, voxel size, laziness, and one clear line for what cannot be used."""

from __future__ import annotations

import logging
import os
import pickle
from pathlib import Path
from threading import Thread

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


@pytest.fixture
def pixels() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 200, (5, 37, 53), dtype=np.uint8)


def ome_zarr(path: Path, levels: list[np.ndarray], axes: str = "zyx", version: str = "0.5", **multiscale) -> Path:
    units = {"z": {"unit": "micrometer"}, "y": {"unit": "nanometer"}, "x": {"unit": "nanometer"}}
    kinds = {"t": "time", "c": "channel"}
    scale = {"t": 1.0, "c": 1.0, "z": 0.03, "y": 4.0, "x": 5.0}
    image = {
        "axes": [{"name": axis, "type": kinds.get(axis, "space"), **units.get(axis, {})} for axis in axes],
        "datasets": [
            {
                "path": str(level),
                "coordinateTransformations": [
                    {"type": "scale", "scale": [scale[a] * (2**level if a in "yx" else 1) for a in axes]},
                    {"type": "translation", "translation": [0.5] * len(axes)},
                ],
            }
            for level in range(len(levels))
        ],
        **multiscale,
    }
    group = zarr.open_group(path, mode="w", zarr_format=3 if version == "0.5" else 2)
    group.attrs.update(
        {"ome": {"version": "0.5", "multiscales": [image]}} if version == "0.5" else {"multiscales": [image]}
    )
    for level, array in enumerate(levels):
        group.create_array(str(level), data=array, chunks=tuple(min(n, 16) for n in array.shape))
    return path


def fails(source, *words: str, error: type[Exception] = VolumeError, **options) -> None:
    """Opening (or calling) fails with one line that holds all the words."""
    with pytest.raises(error) as caught:
        source() if callable(source) else open_volume(source, **options)
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message


# ---------------------------------------------------------------- pixels, from every kind of source


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


def test_big_tiff_tiles_and_lzw(pixels, tmp_path):
    for name, options in {"big": {"bigtiff": True}, "tiled": {"tile": (16, 16)}, "lzw": {"compression": "lzw"}}.items():
        path = tmp_path / f"{name}.tif"
        tifffile.imwrite(path, pixels, photometric="minisblack", **options)
        np.testing.assert_array_equal(open_volume(path).read(2), pixels[2])


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


@pytest.mark.parametrize("suffix", [".tif", ".png"])
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "bool"])
def test_folder_in_natural_order(pixels, tmp_path, suffix, dtype):
    array = (pixels > 100) if dtype == "bool" else pixels.astype(dtype)
    for z, name in enumerate(["s1", "s2", "s9", "s10", "s100"]):
        path = tmp_path / f"{name}{suffix}"
        tifffile.imwrite(path, array[z]) if suffix == ".tif" else Image.fromarray(array[z]).save(path)
    (tmp_path / f".hidden{suffix}").write_bytes(b"resource fork")
    (tmp_path / "notes.txt").write_text("not a slice")
    volume = pickle.loads(pickle.dumps(open_volume(tmp_path)))
    assert volume.dtype == dtype
    np.testing.assert_array_equal(np.asarray(volume), array)
    np.testing.assert_array_equal(volume.read(3, slice(0, 4), slice(5, 9)), array[3, :4, 5:9])


def test_large_png_is_no_decompression_bomb(tmp_path):
    Image.new("1", (14_000, 14_000)).save(tmp_path / "large.png")  # Image.open refuses more than 179 megapixels
    assert open_volume(tmp_path / "large.png").shape == (1, 14_000, 14_000)


@pytest.mark.parametrize("version", ["0.4", "0.5"])
@pytest.mark.parametrize("axes", ["zyx", "czyx", "tczyx"])
def test_ome_zarr_levels_and_voxel_size(pixels, tmp_path, version, axes):
    lead = (None,) * (len(axes) - 3)
    path = ome_zarr(tmp_path / "image.zarr", [pixels[lead], pixels[:, ::2, ::2][lead]], axes, version)
    volume = open_volume(path)
    assert volume.voxel_size == pytest.approx((30, 4, 5))  # 0.03 µm, 4 nm, 5 nm
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(volume)).read(2, slice(3, 9)), pixels[2, 3:9])
    half = open_volume(path, level=1)
    assert half.voxel_size == pytest.approx((30, 8, 10))
    np.testing.assert_array_equal(half.data.compute(scheduler="synchronous"), pixels[:, ::2, ::2])
    assert open_volume(zarr.open_group(path, mode="r")).voxel_size == volume.voxel_size


def test_ome_zarr_common_scale_and_no_unit(pixels, tmp_path):
    common = [{"type": "scale", "scale": [1.0, 2.0, 2.0]}]
    path = ome_zarr(tmp_path / "a.zarr", [pixels], coordinateTransformations=common)
    assert open_volume(path).voxel_size == pytest.approx((30, 8, 10))
    path = ome_zarr(tmp_path / "b.zarr", [pixels], axes="zyx", version="0.4")
    group = zarr.open_group(path)
    image = group.attrs["multiscales"][0]
    image["axes"] = ["z", "y", "x"]  # as in 0.3: no units
    group.attrs["multiscales"] = [image]
    assert open_volume(path).voxel_size is None


# ---------------------------------------------------------------- voxel size of TIFFs


@pytest.mark.parametrize(
    ("unit", "factor"),
    [
        ("nm", 1),
        ("µm", 1e3),
        ("μm", 1e3),
        ("um", 1e3),
        ("micron", 1e3),
        ("microns", 1e3),
        ("mm", 1e6),
        ("cm", 1e7),
        ("pm", 1e-3),
    ],
)
def test_imagej_voxel_size(pixels, tmp_path, unit, factor):
    path = tmp_path / "ij.tif"
    unit = unit.replace("µ", "\\u00B5").replace("μ", "\\u00B5")  # as ImageJ writes it
    tifffile.imwrite(
        path, pixels, imagej=True, resolution=(4.0, 2.0), metadata={"unit": unit, "spacing": 1.5, "axes": "ZYX"}
    )
    assert open_volume(path).voxel_size == pytest.approx((1.5 * factor, 0.5 * factor, 0.25 * factor))


def test_imagej_virtual_stack_has_one_page_only(pixels, tmp_path):
    path = tmp_path / "ij.tif"
    tifffile.imwrite(path, pixels.astype(np.uint16), imagej=True, truncate=True)
    with tifffile.TiffFile(path) as tif:
        assert len(tif.pages) == 1
    np.testing.assert_array_equal(open_volume(path).read(4), pixels[4])
    path.write_bytes(path.read_bytes()[:-10])
    fails(path, str(path), "truncated")


@pytest.mark.parametrize(("unit", "factor"), [("nm", 1), ("µm", 1e3), ("Å", 0.1), ("pixel", None)])
def test_ome_tiff_voxel_size(pixels, tmp_path, unit, factor):
    sizes = {f"PhysicalSize{a}": n for a, n in zip("ZYX", (3.0, 1.0, 2.0), strict=True)}
    units = {f"PhysicalSize{a}Unit": unit for a in "ZYX"}
    tifffile.imwrite(
        tmp_path / "a.ome.tif", pixels, ome=True, compression="zlib", metadata={"axes": "ZYX", **sizes, **units}
    )
    expected = None if factor is None else pytest.approx((3 * factor, 1 * factor, 2 * factor))
    assert open_volume(tmp_path / "a.ome.tif").voxel_size == expected


def test_ome_tiff_pyramid(pixels, tmp_path):
    path = tmp_path / "a.ome.tif"
    with tifffile.TiffWriter(path, ome=True) as tif:
        metadata = {"axes": "ZYX", "PhysicalSizeX": 0.004, "PhysicalSizeY": 0.004, "PhysicalSizeZ": 0.03}
        tif.write(pixels[:, :36, :52], subifds=1, tile=(16, 16), metadata=metadata)
        tif.write(pixels[:, :36:2, :52:2], subfiletype=1, tile=(16, 16))
    half = open_volume(path, level=1)
    assert half.voxel_size == pytest.approx((30, 8, 8))
    np.testing.assert_array_equal(half.read(3), pixels[3, :36:2, :52:2])
    fails(path, str(path), "levels 0 to 1", "level 2", level=2)


@pytest.mark.parametrize(
    ("resolution", "unit", "expected"),
    [
        ((2_000_000, 1_000_000), "CENTIMETER", (5, 10, 5)),  # z is not stated: the in-plane size
        ((2_540_000, 2_540_000), "INCH", (10, 10, 10)),
        ((72, 72), "INCH", None),
        ((300, 300), "INCH", None),
        ((5, 5), "NONE", None),
    ],
)
def test_plain_tiff_voxel_size(pixels, tmp_path, resolution, unit, expected):
    path = tmp_path / "plain.tif"
    tifffile.imwrite(path, pixels, resolution=resolution, resolutionunit=unit)
    assert open_volume(path).voxel_size == (expected and pytest.approx(expected))


def test_voxel_size_override(pixels):
    volume = open_volume(pixels, voxel_size=(30, 4, 4))
    assert volume.voxel_size == (30.0, 4.0, 4.0)
    assert open_volume(volume).voxel_size == (30.0, 4.0, 4.0)
    assert open_volume(volume, voxel_size=(1, 2, 3), name="raw").name == "raw"
    for wrong in [(1, 2), (0, 1, 1), (1, float("nan"), 1)]:
        fails(pixels, "voxel size", "three positive numbers", voxel_size=wrong)


# ---------------------------------------------------------------- laziness


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


def test_sparse_npy_and_zarr_open_at_once(tmp_path):
    shape = (500, 20_000, 20_000)
    with (tmp_path / "big.npy").open("wb") as file:
        np.lib.format.write_array_header_2_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})
        start = file.tell()
        file.seek(start + 499 * 20_000**2)
        file.write(b"\x07\x09")
        file.truncate(start + 500 * 20_000**2)  # 200 GB that are not there
    zarr.create_array(tmp_path / "big.zarr", shape=shape, chunks=(1, 512, 512), dtype="u1")[499, 0, :2] = [7, 9]
    for name in ("big.npy", "big.zarr"):
        volume = open_volume(tmp_path / name)
        assert len(pickle.dumps(volume)) < 10_000
        np.testing.assert_array_equal(volume.read(499, slice(0, 1), slice(0, 3)), [[7, 9, 0]])
        np.testing.assert_array_equal(
            volume.data[499, 0, :3].compute(scheduler="synchronous") if "zarr" in name else [7, 9, 0], [7, 9, 0]
        )


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


def test_tiff_page_is_decoded_once_for_its_tiles(pixels, tmp_path, monkeypatch):
    tifffile.imwrite(tmp_path / "raw.tif", pixels, compression="zlib")
    decoded = []
    original = tifffile.TiffPage.asarray
    monkeypatch.setattr(
        tifffile.TiffPage, "asarray", lambda page, **kw: decoded.append(page.index) or original(page, **kw)
    )
    volume = open_volume(tmp_path / "raw.tif")
    assert decoded == []
    for x in range(0, 50, 10):
        volume.read(0, slice(0, 10), slice(x, x + 10))
    assert decoded == [0]


def test_threads_share_a_tiff(tmp_path):
    array = np.random.default_rng(1).integers(0, 255, (40, 200, 200), dtype=np.uint8)
    tifffile.imwrite(tmp_path / "raw.tif", array, compression="zlib")
    data = open_volume(tmp_path / "raw.tif").data
    np.testing.assert_array_equal(data.compute(scheduler="threads", num_workers=8), array)


# ---------------------------------------------------------------- statistics


def test_statistics_over_several_strips(tmp_path):
    array = np.random.default_rng(2).normal(1e4, 3, (2, 2500, 20))
    volume = open_volume(array)
    assert volume.statistics(1) == pytest.approx((array[1].mean(), array[1].std()), rel=1e-12)
    constant = open_volume(np.full((1, 3, 3), 255, np.uint8))
    assert constant.statistics(0) == (255.0, 0.0)
    assert open_volume(np.eye(2, dtype=bool)).statistics(0) == (0.5, 0.5)


def test_statistics_are_remembered():
    class Small(Recording):
        shape = (2, 10, 10)

    array = Small()
    volume = open_volume(array)
    assert volume.statistics(1) == volume.statistics(1) == (1.0, 0.0)
    assert len(array.keys) == 1


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_statistics_refuse_nan_and_infinity(value):
    array = np.zeros((3, 5, 5), np.float32)
    array[2, 4, 4] = value
    volume = open_volume(array, name="raw.npy")
    assert volume.statistics(1) == (0.0, 0.0)
    fails(lambda: volume.statistics(2), "slice z=2 of raw.npy", "NaN or infinite", "nan_to_num")


# ---------------------------------------------------------------- what cannot be used


def test_missing_unknown_and_not_a_volume(tmp_path):
    fails(tmp_path / "no.tif", "no such file", str(tmp_path / "no.tif"))
    (tmp_path / "a.h5").write_bytes(b"x")
    fails(tmp_path / "a.h5", str(tmp_path / "a.h5"), "unknown ending", ".tif")
    fails([1, 2], "list", "path or an array")
    fails(np.zeros((2, 3, 4, 5)), "4 axes", "(2, 3, 4, 5)")
    fails(np.zeros((3, 4), complex), "complex128")
    fails(np.zeros((3, 4), object), "object")
    fails(np.zeros((0, 3, 4)), "empty", "(0, 3, 4)")
    fails(np.zeros((3, 4)), "level 1", level=1)


def test_empty_files_and_folders(tmp_path):
    fails(tmp_path, str(tmp_path), "empty")
    (tmp_path / "a.tif").write_bytes(b"")
    fails(tmp_path / "a.tif", str(tmp_path / "a.tif"))
    (tmp_path / "b.tif").write_bytes(b"this is text")
    fails(tmp_path / "b.tif", str(tmp_path / "b.tif"))
    np.save(tmp_path / "c.npy", np.zeros((0, 4, 4)))
    fails(tmp_path / "c.npy", str(tmp_path / "c.npy"), "empty")
    zarr.create_array(tmp_path / "d.zarr", shape=(0, 4, 4), dtype="u1", chunks=(1, 4, 4))
    fails(tmp_path / "d.zarr", str(tmp_path / "d.zarr"), "empty")


def test_colour_is_refused(tmp_path):
    rgb = np.zeros((20, 30, 3), np.uint8)
    tifffile.imwrite(tmp_path / "a.tif", rgb, photometric="rgb")
    tifffile.imwrite(tmp_path / "b.tif", rgb[None].repeat(2, 0), photometric="rgb")
    for name in "ab":
        fails(tmp_path / f"{name}.tif", f"{name}.tif", "RGB", "greyscale")
    tifffile.imwrite(tmp_path / "c.tif", np.zeros((4, 20, 30), np.uint8), photometric="rgb", planarconfig="separate")
    fails(tmp_path / "c.tif", "c.tif", "4 planes", "photometric='minisblack'")  # a short stack, saved carelessly
    for mode in ("RGB", "RGBA", "LA"):
        Image.new(mode, (4, 4)).save(tmp_path / "d.png")
        fails(tmp_path / "d.png", "d.png", mode, "greyscale")


def test_channels_and_times(pixels, tmp_path):
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, pixels, imagej=True, metadata={"axes": "TYX"})
    np.testing.assert_array_equal(open_volume(path).read(4), pixels[4])  # a stack that somebody called a film
    tifffile.imwrite(path, pixels, imagej=True)  # tifffile's default is CYX
    np.testing.assert_array_equal(open_volume(path).read(4), pixels[4])
    tifffile.imwrite(path, pixels[:3], imagej=True)
    fails(path, str(path), "C=3", "one channel")
    tifffile.imwrite(path, pixels[None].repeat(2, 0), ome=True, metadata={"axes": "TZYX"})
    fails(path, str(path), "T=2, Z=5")
    fails(ome_zarr(tmp_path / "c.zarr", [pixels[:3][None]], "tzyx") / "0", "4 axes")
    fails(ome_zarr(tmp_path / "c.zarr", [pixels[:, None]], "czyx"), "c.zarr", "5 along axis c")
    fails(ome_zarr(tmp_path / "x.zarr", [pixels], "xyz"), "x.zarr", "axes xyz")


def test_pages_that_differ(pixels, tmp_path):
    with tifffile.TiffWriter(tmp_path / "a.tif") as tif:
        tif.write(pixels[0], metadata=None)
        tif.write(pixels[0, :9], metadata=None)
    fails(tmp_path / "a.tif", str(tmp_path / "a.tif"), "different shapes")


def test_folders_that_do_not_fit(pixels, tmp_path):
    tifffile.imwrite(tmp_path / "1.tif", pixels[0])
    tifffile.imwrite(tmp_path / "2.tif", pixels[0, 1:])
    fails(tmp_path, str(tmp_path / "2.tif"), "(36, 53)", "1.tif", "(37, 53)")
    tifffile.imwrite(tmp_path / "2.tif", pixels[0].astype(np.uint16))
    fails(tmp_path, str(tmp_path / "2.tif"), "uint16")
    tifffile.imwrite(tmp_path / "2.tif", pixels)
    fails(tmp_path, str(tmp_path / "2.tif"), "5 slices")


@pytest.mark.parametrize("keep", [0.9, 0.6, 0.3, 0.05])
@pytest.mark.parametrize("kind", ["shaped", "zlib", "imagej", "ome", "pages", "pages-zlib"])
def test_truncated_tiff_is_noticed_at_open(tmp_path, caplog, kind, keep):
    array = np.random.default_rng(3).integers(0, 255, (8, 64, 64), dtype=np.uint8)
    path = tmp_path / "cut.tif"
    if kind.startswith("pages"):
        with tifffile.TiffWriter(path) as tif:
            for image in array:
                tif.write(image, metadata=None, compression="zlib" if "zlib" in kind else None)
    else:
        options = {"imagej": {"imagej": True}, "ome": {"ome": True}, "zlib": {"compression": "zlib"}}.get(kind, {})
        tifffile.imwrite(path, array, photometric="minisblack", **options)
    data = path.read_bytes()
    np.testing.assert_array_equal(open_volume(path)[:], array)
    path.write_bytes(data[: int(keep * len(data))])
    fails(path, str(path))
    assert caplog.messages == []  # tifffile's own lines would say it twice


def test_tifffile_may_log_what_is_no_error(pixels, tmp_path, caplog, monkeypatch):
    logger = logging.getLogger("tifffile")
    tifffile.imwrite(tmp_path / "raw.tif", pixels, compression="zlib")
    decode = tifffile.TiffPage.asarray

    def asarray(page, **options):
        logger.warning("odd, but it can be read")
        other = Thread(target=logger.warning, args=("of another thread",))
        other.start()
        other.join()
        return decode(page, **options)

    monkeypatch.setattr(tifffile.TiffPage, "asarray", asarray)
    np.testing.assert_array_equal(open_volume(tmp_path / "raw.tif").read(0), pixels[0])
    assert caplog.messages == ["of another thread", "odd, but it can be read"]
    assert logger.filters == []


def test_truncated_npy_and_png(pixels, tmp_path):
    np.save(tmp_path / "a.npy", pixels)
    (tmp_path / "a.npy").write_bytes((tmp_path / "a.npy").read_bytes()[:-100])
    fails(tmp_path / "a.npy", str(tmp_path / "a.npy"))
    Image.fromarray(pixels[0]).save(tmp_path / "a.png")
    (tmp_path / "a.png").write_bytes((tmp_path / "a.png").read_bytes()[:-500])
    volume = open_volume(tmp_path / "a.png")
    fails(lambda: volume.read(0), "cannot read slice z=0 of", str(tmp_path / "a.png"))


def test_corrupt_page_and_chunk(pixels, tmp_path):
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, pixels, compression="zlib")
    with tifffile.TiffFile(path) as tif:
        offset = tif.pages[2].dataoffsets[0]
    data = bytearray(path.read_bytes())
    data[offset : offset + 40] = b"\xff" * 40
    path.write_bytes(data)
    volume = open_volume(path)
    np.testing.assert_array_equal(volume.read(1), pixels[1])
    fails(lambda: volume.read(2), f"cannot read slice z=2 of {path}: ")
    fails(lambda: volume.data[2].compute(scheduler="synchronous"), f"of {path}")

    path = tmp_path / "b.zarr"
    zarr.create_array(path, data=pixels, chunks=(1, 37, 53))
    (path / "c" / "3" / "0" / "0").write_bytes(b"not a chunk")
    volume = open_volume(path)
    np.testing.assert_array_equal(volume.read(1), pixels[1])
    fails(lambda: volume.read(3), f"cannot read slice z=3 of {path}: ")
    fails(lambda: volume.read(5), str(path), "slices 0 to 4", "z=5")


def test_a_slice_of_a_folder_that_goes_bad_is_named(pixels, tmp_path):
    for z, image in enumerate(pixels):
        tifffile.imwrite(tmp_path / f"{z}.tif", image)
    volume = open_volume(tmp_path)
    (tmp_path / "3.tif").write_bytes(b"gone")
    np.testing.assert_array_equal(volume.read(2), pixels[2])
    fails(lambda: volume.read(3), f"cannot read slice z=3 of {tmp_path}: {tmp_path / '3.tif'}: ")


def test_zarr_groups(pixels, tmp_path):
    group = zarr.open_group(tmp_path / "g.zarr", mode="w")
    group.create_array("em", data=pixels)
    fails(tmp_path / "g.zarr", str(tmp_path / "g.zarr"), "without an OME image", "em")
    np.testing.assert_array_equal(open_volume(tmp_path / "g.zarr" / "em").read(1), pixels[1])
    path = ome_zarr(tmp_path / "o.zarr", [pixels])
    fails(path, str(path), "levels 0 to 0", "level 3", level=3)
    zarr.open_group(path).attrs["ome"] = {"version": "0.5", "multiscales": [{"axes": []}]}
    fails(path, str(path))


def test_check_labels(pixels):
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
