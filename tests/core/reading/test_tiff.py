"""TIFF, OME-TIFF and ImageJ's: pixels, voxel size, what is incomplete or no volume."""

from __future__ import annotations

import logging
from threading import Thread

import numpy as np
import pytest
import tifffile

from napari_kdunet.core.volumes.volume import open_volume


def test_big_tiff_tiles_and_lzw(pixels, tmp_path):
    for name, options in {"big": {"bigtiff": True}, "tiled": {"tile": (16, 16)}, "lzw": {"compression": "lzw"}}.items():
        path = tmp_path / f"{name}.tif"
        tifffile.imwrite(path, pixels, photometric="minisblack", **options)
        np.testing.assert_array_equal(open_volume(path).read(2), pixels[2])


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
        path,
        pixels,
        imagej=True,
        resolution=(factor / 4, factor / 8),
        metadata={"unit": unit, "spacing": 40 / factor, "axes": "ZYX"},
    )
    assert open_volume(path).voxel_size == pytest.approx((40, 8, 4), rel=1e-5)


def test_imagej_virtual_stack_has_one_page_only(pixels, tmp_path, fails):
    path = tmp_path / "ij.tif"
    tifffile.imwrite(path, pixels.astype(np.uint16), imagej=True, truncate=True)
    with tifffile.TiffFile(path) as tif:
        assert len(tif.pages) == 1
    np.testing.assert_array_equal(open_volume(path).read(4), pixels[4])
    path.write_bytes(path.read_bytes()[:-10])
    fails(path, str(path), "truncated")


@pytest.mark.parametrize(("unit", "factor"), [("nm", 1), ("µm", 1e3), ("Å", 0.1), ("pixel", None)])
def test_ome_tiff_voxel_size(pixels, tmp_path, unit, factor):
    sizes = {f"PhysicalSize{a}": n / (factor or 1) for a, n in zip("ZYX", (30.0, 10.0, 20.0), strict=True)}
    units = {f"PhysicalSize{a}Unit": unit for a in "ZYX"}
    tifffile.imwrite(
        tmp_path / "a.ome.tif", pixels, ome=True, compression="zlib", metadata={"axes": "ZYX", **sizes, **units}
    )
    expected = None if factor is None else pytest.approx((30, 10, 20))
    assert open_volume(tmp_path / "a.ome.tif").voxel_size == expected


def test_ome_tiff_pyramid(pixels, tmp_path, fails):
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


@pytest.mark.parametrize("keep", [0.9, 0.6, 0.3, 0.05])
@pytest.mark.parametrize("kind", ["shaped", "zlib", "imagej", "ome", "pages", "pages-zlib"])
def test_truncated_tiff_is_noticed_at_open(tmp_path, caplog, kind, keep, fails):
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


def test_empty_tiff(tmp_path, fails):
    (tmp_path / "a.tif").write_bytes(b"")
    fails(tmp_path / "a.tif", str(tmp_path / "a.tif"))
    (tmp_path / "b.tif").write_bytes(b"this is text")
    fails(tmp_path / "b.tif", str(tmp_path / "b.tif"))


def test_colour_is_refused(tmp_path, fails):
    rgb = np.zeros((20, 30, 3), np.uint8)
    tifffile.imwrite(tmp_path / "a.tif", rgb, photometric="rgb")
    tifffile.imwrite(tmp_path / "b.tif", rgb[None].repeat(2, 0), photometric="rgb")
    for name in "ab":
        fails(tmp_path / f"{name}.tif", f"{name}.tif", "RGB", "greyscale")
    tifffile.imwrite(
        tmp_path / "c.tif",
        np.zeros((3, 20, 30), np.uint8),
        photometric="rgb",
        planarconfig="separate",
        metadata=None,
        software="another program",
    )
    fails(tmp_path / "c.tif", "c.tif", "3 planes", "photometric='minisblack'")


def test_channels_and_times(pixels, tmp_path, fails):
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, pixels, imagej=True, metadata={"axes": "TYX"})
    np.testing.assert_array_equal(open_volume(path).read(4), pixels[4])  # a stack that somebody called a film
    tifffile.imwrite(path, pixels, imagej=True)  # tifffile's default is CYX
    np.testing.assert_array_equal(open_volume(path).read(4), pixels[4])
    tifffile.imwrite(path, pixels[:3], imagej=True)
    fails(path, str(path), "C=3", "one channel")
    tifffile.imwrite(path, pixels[None].repeat(2, 0), ome=True, metadata={"axes": "TZYX"})
    fails(path, str(path), "T=2, Z=5")


def test_pages_that_differ(pixels, tmp_path, fails):
    with tifffile.TiffWriter(tmp_path / "a.tif") as tif:
        tif.write(pixels[0], metadata=None)
        tif.write(pixels[0, :9], metadata=None)
    fails(tmp_path / "a.tif", str(tmp_path / "a.tif"), "different shapes")


def test_corrupt_page(pixels, tmp_path, fails):
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


def test_ome_xml_of_fewer_slices_than_pages(pixels, tmp_path, caplog):
    path = tmp_path / "a.ome.tif"
    tifffile.imwrite(path, pixels, ome=True, metadata={"axes": "ZYX"}, photometric="minisblack")
    tifffile.tiffcomment(path, tifffile.tiffcomment(path).replace('SizeZ="5"', 'SizeZ="3"').encode())
    volume = open_volume(path)
    np.testing.assert_array_equal(np.asarray(volume), pixels)
    assert volume.notes == ("its OME-XML does not fit: pages are taken as slices",)
    assert caplog.messages == []


def test_a_grey_image_is_taken_before_a_larger_one_in_colour(pixels, tmp_path):
    with tifffile.TiffWriter(tmp_path / "a.ome.tif", ome=True) as tif:
        tif.write(np.zeros((200, 300, 3), np.uint8), photometric="rgb", metadata={"axes": "YXS"})
        tif.write(pixels, photometric="minisblack", metadata={"axes": "ZYX"})
    volume = open_volume(tmp_path / "a.ome.tif")
    np.testing.assert_array_equal(np.asarray(volume), pixels)
    assert volume.notes == ("the largest grey one of 2 images is taken, choose another with series",)
