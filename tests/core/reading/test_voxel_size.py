"""Metadata: whatever is wrong in it, the pixels are read; a size is known, or unknown with a note that says why."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np
import pytest
import tifffile
import zarr

from napari_kdunet.core.errors import VolumeError
from napari_kdunet.core.reading.voxel_size import nanometres, read_voxel_size, to_number
from napari_kdunet.core.volumes.volume import open_volume


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("5", 5), (" 5.0\0", None), ("5,0", 5), ("-50.0", -50), ("1.234,5", 1234.5), ("1,234.5", 1234.5),
        ("5e-3", 0.005), ("5,5e-3", 0.0055), (b"7.5", 7.5), ((10, 4), 2.5), ((5.5,), 5.5), ((0, 0), None), ("", None),
        ("abc", None),
        (None, None), ([], None), ({}, None), ("1 000,5", 1000.5), (10**400, None), ("nan", None),
    ],
)  # fmt: skip
def test_numbers_as_they_stand_in_files(text, number):
    found = to_number(text)
    assert np.isnan(found) if number is None else found == number


@pytest.mark.parametrize("unit", ["nm", "NM", "nanometers", "Nanometre", "nm\0", '"nm"', b"nm"])
def test_spellings_of_a_unit(unit):
    assert nanometres("5,0", unit) == 5


@pytest.mark.parametrize(
    "unit", ["µm", "μm", "um", "microns", "\\u00B5m", "\\u03BCm", "\\u03bcm", "Âµm", "\ufffdm", "micrometer"]
)
def test_spellings_of_a_micrometre(unit):
    assert nanometres(0.005, unit) == pytest.approx(5)


def test_what_is_stated_and_means_nothing_is_noted():
    assert read_voxel_size({}) == (None, ())
    assert read_voxel_size({"x": (1, None), "y": (1, "pixel")}) == (None, ())
    assert read_voxel_size({"x": (5, "nm")}) == ((5, 5, 5), ())
    assert read_voxel_size({"z": (50, "nm")})[0] is None
    for size, unit in [((0, 0), "cm"), ("abc", "nm"), (5, "furlong"), (5, None), (float("nan"), "nm"), ("0/0", "cm")]:
        known, (note,) = read_voxel_size({"x": (size, unit), "y": (size, unit)})
        assert known is None
        assert note.startswith("pixel size unknown: ")
        assert str(unit or "without a unit") in note
    known, (note,) = read_voxel_size({"x": (5, "nm"), "z": ("NaN", "nm")})
    assert known == (5, 5, 5)
    assert note.startswith("slice distance unknown: it is stated as NaN nm")


@pytest.mark.parametrize(
    ("z", "doubtful"), [(50_000, True), (501, True), (0.04, True), (500, False), (0.05, False), (70, False)]
)
def test_a_distance_of_slices_that_does_not_fit_the_pixels_is_noted(pixels, tmp_path, z, doubtful):
    """Such as that of an OME-TIFF whose Z has no unit, which then is µm by the standard, beside pixels in nm."""
    units = {"PhysicalSizeXUnit": "nm", "PhysicalSizeYUnit": "nm"}
    sizes = {"PhysicalSizeX": 5, "PhysicalSizeY": 5, "PhysicalSizeZ": z / 1000}
    tifffile.imwrite(tmp_path / "a.ome.tif", pixels, metadata={"axes": "ZYX", **sizes, **units})
    volume = open_volume(tmp_path / "a.ome.tif")
    assert volume.voxel_size == (z, 5, 5)
    words = f"slice distance doubtful: slices {z} nm apart, of pixels of 5 nm, are stated"
    assert [words in note for note in volume.notes] == [True] * doubtful


@pytest.mark.parametrize("unit", ["\\u00C5", "\\u00c5ngstrom", "\\u212B", "Å"])
def test_spellings_of_an_angstrom(unit):
    assert nanometres(50, unit) == pytest.approx(5)


@pytest.mark.parametrize("size", [0.09, 0.005, 501, 352778])
def test_implausible_sizes_are_not_known(pixels, size, one_line):
    known, (note,) = read_voxel_size({"x": (size, "nm"), "y": (size, "nm")})
    assert known is None
    assert f"{size:.6g}" in note
    with one_line(VolumeError, f"{size:g}", "under 0.1 or over 500 nm in plane"):
        open_volume(pixels, voxel_size=(size,) * 3)  # who states it is asked


@pytest.mark.parametrize("size", [0.1, 500])
def test_sizes_at_the_bounds(size):
    assert read_voxel_size({"x": (size, "nm")})[0] == (size,) * 3
    assert read_voxel_size({"x": (500 * 8, "nm")}, level=3)[0] == (4000,) * 3  # of a pyramid the full resolution counts


def patched(path: Path, code: str, *values: float) -> Path:
    """Set the resolution tags of a TIFF to another type."""
    data = bytearray(path.read_bytes())
    size = struct.calcsize(code)
    kind = {"f": 11, "I": 4, "H": 3, "d": 12, "II": 5, "ii": 10}[code]
    with tifffile.TiffFile(path) as tif:
        for name in ("XResolution", "YResolution"):
            tag = tif.pages[0].tags[name]
            struct.pack_into("<H", data, tag.offset + 2, kind)
            at = tag.offset + 8 if size <= 4 else tag.valueoffset
            struct.pack_into(f"<{code}", data, at, *values)
    path.write_bytes(data)
    return path


@pytest.mark.parametrize(
    ("code", "values", "expected"),
    [
        ("f", (2e6,), 5), ("I", (2000000,), 5), ("d", (2e6,), 5), ("II", (4000000, 2), 5), ("H", (0,), None),
        ("II", (0, 0), None), ("II", (2000000, 0), None), ("ii", (-2000000, 1), 5), ("f", (float("nan"),), None),
        ("f", (float("inf"),), None),
    ],
)  # fmt: skip
def test_resolution_tags_of_every_type(pixels, tmp_path, code, values, expected):
    path = tmp_path / "raw.tif"
    tifffile.imwrite(path, pixels, metadata=None, resolution=(2e6, 2e6), resolutionunit="CENTIMETER")
    volume = open_volume(patched(path, code, *values))
    assert volume.voxel_size == (expected and (expected,) * 3)
    np.testing.assert_array_equal(np.asarray(volume), pixels)
    if expected is None and values != (0,):  # which states nothing
        assert any(note.startswith("pixel size unknown") for note in volume.notes)


def imagej(path: Path, pixels: np.ndarray, description: str, resolution: tuple[float, float] = (0.2, 0.2)) -> Path:
    with tifffile.TiffWriter(path) as tif:
        for z, image in enumerate(pixels):
            tif.write(
                image,
                description=None if z else f"ImageJ=1.54f\nimages={len(pixels)}\nslices={len(pixels)}\n{description}",
                metadata=None,
                resolution=resolution,
                resolutionunit="NONE",
                contiguous=False,
            )
    return path


@pytest.mark.parametrize(
    ("description", "resolution", "expected"),
    [
        ("unit=nm\nspacing=-50.0", (0.2, 0.2), (50, 5, 5)),
        ("unit=nm\nspacing=50,0", (0.2, 0.2), (50, 5, 5)),
        ("unit=nm\nzunit=micron\nspacing=0.05", (0.2, 0.2), (50, 5, 5)),
        ("unit=micron\nyunit=nm\nzunit=nm\nspacing=50", (200, 0.2), (50, 5, 5)),
        ("unit=\\u00B5m\nspacing=0.05", (200, 200), (50, 5, 5)),
        ("unit=nm\nspacing=NaN", (0.2, 0.2), (5, 5, 5)),
        ("unit=inch\nspacing=1", (300, 300), None),
        ("unit=pixel\nspacing=1", (0.2, 0.2), None),
        ("unit=nm\nspacing=\nmin=a\nmax", (0.2, 0.2), (5, 5, 5)),
        ("spacing=50", (0.2, 0.2), None),
        ("unit=mm\nspacing=0.05", (1 / 5e-6, 1 / 5e-6), (5e4, 5, 5)),
    ],
)
def test_imagej_units(pixels, tmp_path, description, resolution, expected):
    volume = open_volume(imagej(tmp_path / "raw.tif", pixels, description, resolution))
    assert volume.voxel_size == (expected and pytest.approx(expected, rel=1e-4))
    np.testing.assert_array_equal(np.asarray(volume), pixels)


@pytest.mark.parametrize("says", [3, 9])
def test_imagej_says_another_number_of_slices(pixels, tmp_path, caplog, says):
    path = imagej(tmp_path / "raw.tif", pixels, "unit=nm\nspacing=50")
    text = tifffile.tiffcomment(path).replace("=5", f"={says}", 2)
    tifffile.tiffcomment(path, text.encode())
    volume = open_volume(path)
    np.testing.assert_array_equal(np.asarray(volume), pixels)
    assert any(f"says {says} images, but it holds 5" in note for note in volume.notes)
    assert caplog.messages == []


def test_a_unit_without_a_resolution_is_no_size(pixels, tmp_path):
    """tifffile fills in a resolution of 1 where it is given none."""
    tifffile.imwrite(tmp_path / "raw.tif", pixels, imagej=True, metadata={"unit": "nm", "spacing": 50, "axes": "ZYX"})
    assert open_volume(tmp_path / "raw.tif").voxel_size is None


@pytest.mark.parametrize(
    ("change", "expected", "note"),
    [
        (('="5.0"', '="5,0"'), (40, 5, 5), None),
        (('Name="Image0"', 'Name="a & b"'), (40, 5, 5), "OME-XML cannot be read"),
        (('="5.0"', '="five"'), None, "stated as five nm"),
        (('="5.0"', '="NaN"'), None, "stated as NaN nm"),
        (('SizeT="1"', 'SizeT="one"'), (40, 5, 5), "metadata cannot be read"),
        (('DimensionOrder="XYCZT"', ""), (40, 5, 5), "metadata cannot be read"),
        (("</Pixels>", ""), (40, 5, 5), "OME-XML cannot be read"),
        (("nm", "parsec"), None, "parsec"),
    ],
)
def test_broken_ome_xml(pixels, tmp_path, caplog, change, expected, note):
    path = tmp_path / "a.ome.tif"
    sizes = {"X": 5.0, "Y": 5.0, "Z": 40.0}
    metadata = {"axes": "ZYX", **{f"PhysicalSize{a}": n for a, n in sizes.items()}}
    metadata |= {f"PhysicalSize{a}Unit": "nm" for a in sizes}
    tifffile.imwrite(path, pixels, ome=True, metadata=metadata)
    text = tifffile.tiffcomment(path)
    assert change[0] in text
    tifffile.tiffcomment(path, text.replace(*change).encode())
    volume = open_volume(path)
    np.testing.assert_array_equal(np.asarray(volume), pixels)
    assert volume.voxel_size == expected
    assert note is None or any(note in told for told in volume.notes)
    assert caplog.messages == []


def test_broken_ome_xml_of_several_channels_is_not_a_stack(pixels, tmp_path, fails):
    path = tmp_path / "a.ome.tif"
    tifffile.imwrite(path, np.stack([pixels, pixels]), ome=True, metadata={"axes": "CZYX"})
    tifffile.tiffcomment(path, tifffile.tiffcomment(path).replace('Name="Image0"', 'Name="a & b"').encode())
    fails(path, "several channels")


@pytest.mark.parametrize(
    ("code", "text", "expected"),
    [
        (34682, "[Scan]\r\nPixelWidth=5e-009\r\nPixelHeight=6e-009\r\n", (5, 6, 5)),
        (34680, "[Scan]\r\nPixelWidth=4e-9\r\nPixelHeight=4e-9\r\n", (4, 4, 4)),
        (34118, "0\r\nAP_IMAGE_PIXEL_SIZE\r\nImage Pixel Size = 5.0 nm\r\n", (5, 5, 5)),
        (34118, "0\r\nAP_PIXEL_SIZE\r\nPixel Size = 0.005 µm\r\n", (5, 5, 5)),
        (34118, "0\r\nAP_PIXEL_SIZE\r\nPixel Size = 5,5 nm\r\n", (5.5, 5.5, 5.5)),
        (34118, "0\r\nAP_PIXEL_SIZE\r\nPixel Size = five nm\r\n", None),
        (34682, "[Scan]\r\nPixelWidth=\r\n", None),
    ],
)
def test_tags_of_microscopes(pixels, tmp_path, code, text, expected):
    data = text.encode("cp1252") + b"\0"
    tag = (code, 2, len(data), data, True)
    tifffile.imwrite(tmp_path / "raw.tif", pixels, metadata=None, extratags=[tag])
    volume = open_volume(tmp_path / "raw.tif")
    assert volume.voxel_size == (expected and pytest.approx(expected))
    np.testing.assert_array_equal(np.asarray(volume), pixels)


@pytest.mark.parametrize(
    ("transforms", "expected", "note"),
    [
        ([{"type": "scale", "scale": [40, 5, 5]}], (40, 5, 5), None),
        ([{"type": "scale", "scale": ["40", "5,0", "5"]}], (40, 5, 5), None),
        (None, None, "a unit, but no scale"),
        ([], None, "a unit, but no scale"),
        ([{"type": "identity"}], None, "a unit, but no scale"),
        ([{"type": "scale"}], None, "cannot be read"),
        ([{"type": "scale", "scale": None}], None, "cannot be read"),
        ([{"type": "scale", "scale": [5]}], None, "cannot be read"),
        ([None], None, "cannot be read"),
        ([{"type": "scale", "scale": [40, None, None]}], None, None),
        ([{"type": "scale", "scale": [1e3, 1e3, 1e3]}], None, "1000 x 1000 nm"),
    ],
)
@pytest.mark.parametrize("place", ["dataset", "image"])
def test_odd_transformations_of_ome_zarr(pixels, tmp_path, place, transforms, expected, note):
    group = zarr.open_group(tmp_path / "a.zarr", mode="w", zarr_format=2)
    group.create_array("0", data=pixels)
    axes = [{"name": axis, "type": "space", "unit": "nanometer"} for axis in "zyx"]
    image = {"axes": axes, "datasets": [{"path": "0"}], "coordinateTransformations": None}
    (image if place == "image" else image["datasets"][0])["coordinateTransformations"] = transforms
    group.attrs["multiscales"] = [image]
    volume = open_volume(tmp_path / "a.zarr")
    np.testing.assert_array_equal(np.asarray(volume), pixels)
    assert volume.voxel_size == expected
    assert note is None or any(note in told for told in volume.notes)


@pytest.mark.parametrize("attributes", [{"resolution": "abc"}, {"resolution": [1, 2]}, {"units": 3, "voxel_size": {}}])
def test_odd_attributes_of_an_array(pixels, tmp_path, attributes):
    zarr.create_array(tmp_path / "a.zarr", data=pixels, attributes=json.loads(json.dumps(attributes)))
    volume = open_volume(tmp_path / "a.zarr")
    assert volume.voxel_size is None
    np.testing.assert_array_equal(np.asarray(volume), pixels)


def test_the_users_size_takes_the_note_back(pixels, tmp_path):
    tifffile.imwrite(tmp_path / "raw.tif", pixels, metadata=None, resolution=(72, 72), resolutionunit="INCH")
    (note,) = open_volume(tmp_path / "raw.tif").notes
    assert "352778 x 352778 nm" in note
    assert open_volume(tmp_path / "raw.tif", voxel_size=(5, 5, 5)).notes == ()


def test_a_side_that_means_nothing_is_taken_from_the_other_and_told():
    size, notes = read_voxel_size({"z": (50, "nm"), "y": (5, "pixel"), "x": (5, "nm")})
    assert size == (50, 5, 5)
    assert notes == ("pixel size along y unknown: it is stated as 5 without a unit, and taken as that along x",)
    assert read_voxel_size({"x": (5, "nm")}) == ((5, 5, 5), ())
