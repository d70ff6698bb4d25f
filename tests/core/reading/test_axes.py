"""Axes: what a file says of them counts, transposed to ZYX lazily, or one line that says what to choose."""

from __future__ import annotations

import itertools
import pickle
from pathlib import Path

import dask.array as da
import h5py
import numpy as np
import pytest
import tifffile
import zarr

from napari_kdunet.core.volumes.volume import Volume, open_volume

ORDERS = ["".join(order) for order in itertools.permutations("zyx")]


def stored_as(pixels: np.ndarray, order: str) -> np.ndarray:
    """ZYX pixels with their axes in another order; axes other than z, y and x have length 1."""
    more = [axis for axis in order if axis not in "zyx"]
    array = pixels.reshape((1,) * len(more) + pixels.shape)
    return np.ascontiguousarray(array.transpose([[*more, *"zyx"].index(axis) for axis in order]))


def assert_reads(volume: Volume, pixels: np.ndarray) -> None:
    """Slices, windows, dask and a pickled copy all have these pixels."""
    assert volume.shape == pixels.shape
    np.testing.assert_array_equal(np.asarray(volume), pixels)
    np.testing.assert_array_equal(volume.read(3, slice(5, 30), slice(11, 12)), pixels[3, 5:30, 11:12])
    np.testing.assert_array_equal(volume[1:4, 30:2:-3, ::7], pixels[1:4, 30:2:-3, ::7])
    np.testing.assert_array_equal(volume.data[::2, 9].compute(scheduler="synchronous"), pixels[::2, 9])
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(volume)).read(4), pixels[4])


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("kind", ["tif", "tif-zlib", "zarr3", "xarray2", "ome-zarr", "h5", "npy", "array", "dask"])
def test_named_axes_in_any_order(pixels, tmp_path, kind, order):
    array, source, options = stored_as(pixels, order), tmp_path / f"raw.{kind[:3]}", {}
    if kind.startswith("tif"):
        compression = "zlib" if "zlib" in kind else None
        tifffile.imwrite(source, array, metadata={"axes": order.upper()}, compression=compression)
    elif kind == "zarr3":
        words = {"z": "depth", "y": "row", "x": "Width"}
        zarr.create_array(source, data=array, chunks=(2, 9, 9), dimension_names=[words[axis] for axis in order])
    elif kind == "xarray2":
        stored = zarr.create_array(source, data=array, chunks=(2, 9, 9), zarr_format=2)
        stored.attrs["_ARRAY_DIMENSIONS"] = list(order)
    elif kind == "ome-zarr":
        group = zarr.open_group(source, mode="w", zarr_format=2)
        group.create_array("0", data=array)
        scale = [{"z": 40.0, "y": 4.0, "x": 5.0}[axis] for axis in order]
        group.attrs["multiscales"] = [
            {
                "axes": [{"name": axis, "type": "space", "unit": "nanometer"} for axis in order],
                "datasets": [{"path": "0", "coordinateTransformations": [{"type": "scale", "scale": scale}]}],
            }
        ]
    elif kind == "h5":
        with h5py.File(source, "w") as file:
            dataset = file.create_dataset("em", data=array)
            for dimension, axis in zip(dataset.dims, order, strict=True):
                dimension.label = axis
            dataset.attrs["resolution"] = [{"z": 40.0, "y": 4.0, "x": 5.0}[axis] for axis in order]
    else:
        options = {"axes": order.upper()}
        if kind == "npy":
            np.save(source, array)
        else:
            source = array if kind == "array" else da.from_array(array, chunks=(2, 8, 8))
    volume = open_volume(source, **options)
    assert_reads(volume, pixels)
    assert volume.voxel_size == ((40, 4, 5) if kind in ("ome-zarr", "h5") else None)


@pytest.mark.parametrize("order", ["TCZYX", "XYZCT", "CZYX", "YXCZ", "ZTYX"])
def test_channel_and_time_are_chosen(pixels, order, fails):
    lengths = {"T": 2, "C": 3}
    array = stored_as(pixels, order.lower())
    array = np.tile(array, [lengths.get(axis, 1) for axis in order])
    chosen = {name: 1 for name, axis in (("channel", "C"), ("time", "T")) if axis in order}
    index = tuple(slice(1, 2) if axis in "TC" else slice(None) for axis in order)
    array[index] += 50
    np.testing.assert_array_equal(np.asarray(open_volume(array, axes=order, **chosen)), pixels + 50)
    for name in chosen:
        others = {key: value for key, value in chosen.items() if key != name}
        fails(array, f"choose one {name}", axes=order, **others)
        fails(array, f"there is no {name} 7", axes=order, **others, **{name: 7})


def test_axes_of_length_one_need_no_name(pixels):
    np.testing.assert_array_equal(np.asarray(open_volume(pixels[:, None], axes="ZYX")), pixels)
    np.testing.assert_array_equal(np.asarray(open_volume(pixels[0].T, axes="XY"))[0], pixels[0])


@pytest.mark.parametrize("names", [None, [None] * 3, ["dim_0", "dim_1", "dim_2"], ["axis-0", "axis-1", "axis-2"]])
def test_axes_without_names_are_zyx(pixels, tmp_path, names):
    zarr.create_array(tmp_path / "raw.zarr", data=pixels, dimension_names=names)
    np.testing.assert_array_equal(np.asarray(open_volume(tmp_path / "raw.zarr")), pixels)


@pytest.mark.parametrize("names", [["a", "y", "x"], ["z", "y", "y"], ["t", "z", "x"], ["", "y", "x"]])
def test_ambiguous_axes_are_refused_until_they_are_named(pixels, tmp_path, names, fails):
    zarr.create_array(tmp_path / "raw.zarr", data=pixels, dimension_names=names)
    fails(tmp_path / "raw.zarr", "raw.zarr has axes", "axes, e.g. ZYX")
    np.testing.assert_array_equal(np.asarray(open_volume(tmp_path / "raw.zarr", axes="zyx")), pixels)


@pytest.mark.parametrize("axes", ["ZY", "ZYXQ", "ZZYX", "CZYX", "", "zy x"])
def test_wrong_axes(pixels, axes, fails):
    fails(pixels, "axes", axes=axes)
    fails(np.zeros((4, 5, 6, 7)), "4 axes", "(4, 5, 6, 7)", axes="ZYX")


def test_a_colour_image_is_no_volume(fails):
    fails(np.zeros((64, 64, 3), np.uint8), "(64, 64, 3)", "colour", "axes, e.g. YXC")
    assert open_volume(np.zeros((64, 64, 3), np.uint8), axes="YXC", channel=2).shape == (1, 64, 64)
    assert open_volume(np.zeros((3, 64, 64), np.uint8)).shape == (3, 64, 64)


@pytest.mark.parametrize("depth", [3, 4])
@pytest.mark.parametrize("options", [{}, {"compression": "zlib"}, {"metadata": None}, {"metadata": {"axes": "ZYX"}}])
@pytest.mark.filterwarnings("ignore:.*data with shape:DeprecationWarning")
def test_a_short_stack_that_tifffile_took_for_colours(pixels, tmp_path, depth, options):
    tifffile.imwrite(tmp_path / "raw.tif", pixels[:depth], **options)
    volume = open_volume(tmp_path / "raw.tif")
    np.testing.assert_array_equal(np.asarray(volume), pixels[:depth])
    named = options.get("metadata") is not None
    assert [note for note in volume.notes if f"{depth} slices without photometric" in note] or named


def test_colours_of_a_tiff_are_chosen(pixels, tmp_path):
    rgb = np.stack([pixels[0], pixels[1], pixels[2]], axis=-1)
    tifffile.imwrite(tmp_path / "a.tif", rgb, photometric="rgb")
    tifffile.imwrite(tmp_path / "b.tif", rgb[None].repeat(2, 0), photometric="rgb")
    np.testing.assert_array_equal(open_volume(tmp_path / "a.tif", channel=2)[0], pixels[2])
    np.testing.assert_array_equal(open_volume(tmp_path / "b.tif", channel=1)[1], pixels[1])


@pytest.mark.parametrize("axes", ["CZYX", "ZCYX", "TZYX", "TZCYX"])
@pytest.mark.parametrize("kind", ["imagej", "ome"])
def test_hyperstacks(pixels, tmp_path, axes, kind, fails):
    order = "TZCYX" if kind == "imagej" else axes
    lengths = {"T": 2 if "T" in axes else 1, "C": 2 if "C" in axes else 1, "Z": 5, "Y": 37, "X": 53}
    array = np.random.default_rng(0).integers(0, 255, [lengths[a] for a in order], dtype=np.uint8)
    tifffile.imwrite(tmp_path / "raw.tif", array, **{kind: True}, metadata={"axes": order})
    chosen = {name: 1 for name, axis in (("channel", "C"), ("time", "T")) if lengths[axis] > 1}
    index = tuple(1 if lengths[a] == 2 else 0 if a in "TC" else slice(None) for a in order)
    np.testing.assert_array_equal(np.asarray(open_volume(tmp_path / "raw.tif", **chosen)), array[index])
    fails(tmp_path / "raw.tif", "choose one", "2")


def imagej_pages(path: Path, pages: np.ndarray, said: str) -> Path:
    with tifffile.TiffWriter(path) as tif:
        for i, page in enumerate(pages):
            description = None if i else f"ImageJ=1.53t\nimages={len(pages)}\n{said}\n"
            tif.write(page, description=description, metadata=None, contiguous=False)
    return path


@pytest.mark.parametrize("order", ["xyczt(default)", "xyctz", "xyzct", "xyztc", "xytcz", "xytzc", "zct"])
def test_order_of_an_imagej_hyperstack(tmp_path, order):
    array = np.random.default_rng(0).integers(0, 255, (2, 5, 3, 20, 30), dtype=np.uint8)  # TZCYX
    slowest_first = order.removesuffix("(default)").removeprefix("xy")[::-1]
    pages = array.transpose(*("tzc".index(axis) for axis in slowest_first), 3, 4).reshape(-1, 20, 30)
    path = imagej_pages(tmp_path / "raw.tif", pages, f"channels=3\nslices=5\nframes=2\norder={order}")
    volume = open_volume(path, channel=2, time=1)
    np.testing.assert_array_equal(np.asarray(volume), array[1, :, 2])
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(volume)).read(3), array[1, 3, 2])


def test_order_that_no_hyperstack_has(pixels, tmp_path, fails):
    several = imagej_pages(tmp_path / "a.tif", pixels[:6], "channels=2\nslices=3\norder=zyx")
    fails(several, "order 'zyx'", "zct")
    one = imagej_pages(tmp_path / "b.tif", pixels[:6], "slices=6\norder=zyx")
    np.testing.assert_array_equal(np.asarray(open_volume(one)), pixels[:6])


def test_several_images_in_one_ome_tiff(pixels, tmp_path, fails):
    path = tmp_path / "a.ome.tif"
    with tifffile.TiffWriter(path, ome=True) as tif:
        tif.write(pixels[0, ::4, ::4], metadata={"axes": "YX", "Name": "overview"})
        tif.write(pixels, metadata={"axes": "ZYX", "PhysicalSizeX": 5, "PhysicalSizeXUnit": "nm"}, compression="zlib")
        tif.write(pixels[:2] + 1, metadata={"axes": "ZYX"})
    volume = open_volume(path)
    np.testing.assert_array_equal(np.asarray(volume), pixels)
    assert volume.voxel_size == (5, 5, 5)
    assert any("largest of 3 images" in note for note in volume.notes)
    np.testing.assert_array_equal(np.asarray(pickle.loads(pickle.dumps(open_volume(path, series=2)))), pixels[:2] + 1)
    fails(path, "no image 3", series=3)


def test_transposed_pages_are_decoded_once(pixels, tmp_path, monkeypatch):
    tifffile.imwrite(tmp_path / "raw.tif", stored_as(pixels, "xyz"), metadata={"axes": "XYZ"}, compression="zlib")
    decoded = []
    original = tifffile.TiffPage.asarray
    monkeypatch.setattr(
        tifffile.TiffPage, "asarray", lambda page, **kw: decoded.append(page.index) or original(page, **kw)
    )
    volume = open_volume(tmp_path / "raw.tif")
    for z in range(5):
        np.testing.assert_array_equal(volume.read(z), pixels[z])
    assert len(decoded) <= 53


def test_a_subclass_of_volume_travels_as_itself(pixels, tmp_path):
    np.save(tmp_path / "raw.npy", pixels)
    opened = open_volume(tmp_path / "raw.npy")
    mine = pickle.loads(pickle.dumps(open_volume(_Mine(opened.name, opened.source, (5, 5, 5)), name="mine")))
    assert type(mine) is _Mine
    assert mine.name == "mine"
    np.testing.assert_array_equal(mine.read(2), pixels[2])


class _Mine(Volume):
    pass


def test_pixels_of_a_file_are_read_by_the_row(tmp_path):
    """A file that is cut short while it is read is an error: read by a memory map it would end the process."""
    path = Path(tmp_path / "raw.npy")
    np.save(path, np.ones((50, 64, 64), np.uint8))
    volume = open_volume(path)
    assert volume.read(49).all()
    path.write_bytes(path.read_bytes()[:-4000])
    assert volume.read(48).all()
    with pytest.raises(Exception, match="cut short") as caught:
        volume.read(49)
    assert type(caught.value).__name__ == "VolumeError"
