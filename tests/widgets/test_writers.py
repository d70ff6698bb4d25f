"""Masks saved by napari's own means, and read back by the libraries of the formats."""

import dask.array as da
import numpy as np
import pytest
import tifffile
import zarr

from napari_kdunet import core
from napari_kdunet.widgets.shared.layers import voxel_size_of

GRID = {"scale": (0.05, 0.005, 0.005), "units": ("um",) * 3}
NM = (50.0, 5.0, 5.0)


def labels(largest, dtype=np.int32):
    data = np.zeros((3, 16, 20), dtype)
    data[1, 4:9, 3:7] = largest
    return data


@pytest.mark.parametrize(("largest", "dtype"), [(1, "uint8"), (256, "uint16"), (65_536, "uint32")])
def test_a_tiff_states_the_pixel_size_in_as_few_bits_as_it_needs(make_napari_viewer, tmp_path, largest, dtype):
    viewer = make_napari_viewer()
    viewer.add_labels(labels(largest), name="mask", **GRID)
    path = tmp_path / "mask.tif"
    assert viewer.layers.save(path, plugin="napari-kdunet") == [str(path)]
    with tifffile.TiffFile(path) as file:
        page = file.pages[0]
        np.testing.assert_array_equal(file.asarray(), labels(largest))
        assert (page.dtype, file.imagej_metadata["unit"], file.imagej_metadata["spacing"]) == (dtype, "nm", 50.0)
        assert page.tags["XResolution"].value[1] / page.tags["XResolution"].value[0] == pytest.approx(5.0)
    assert core.open_volume(path).voxel_size == pytest.approx(NM)


def test_an_ome_zarr_states_scale_and_labels_and_is_napari_kdunets_by_its_ending(make_napari_viewer, tmp_path):
    viewer = make_napari_viewer()
    layer = viewer.add_labels(da.from_array(labels(300), chunks=(1, 16, 20)), name="mask", **GRID)
    path = tmp_path / "mask.zarr"
    layer.save(str(path))
    ome = zarr.open_group(path, mode="r").attrs["ome"]
    (image,) = ome["multiscales"]
    assert [axis["unit"] for axis in image["axes"]] == ["nanometer"] * 3
    assert image["datasets"][0]["coordinateTransformations"][0]["scale"] == pytest.approx(NM)
    assert "image-label" in ome
    volume = core.open_volume(path)
    assert (volume.dtype, volume.voxel_size) == (np.uint16, pytest.approx(NM))
    np.testing.assert_array_equal(np.asarray(volume), labels(300))


@pytest.mark.parametrize("flat", [False, True])
def test_a_saved_mask_comes_back_as_labels_to_paint_on(make_napari_viewer, tmp_path, flat):
    viewer = make_napari_viewer()
    data, grid = (labels(300)[1], {"scale": (5.0, 5.0), "units": ("nm",) * 2}) if flat else (labels(300), GRID)
    viewer.add_labels(data, name="mask", **grid).save(str(tmp_path / "mask.zarr"))
    (layer,) = viewer.open(tmp_path / "mask.zarr", plugin="napari-kdunet")
    assert (layer._type_string, layer.data.dtype, layer.ndim) == ("labels", np.uint16, data.ndim)
    np.testing.assert_array_equal(layer.data, data)
    assert voxel_size_of(layer) == pytest.approx((5.0,) * 3 if flat else NM)
    layer.paint((0,) * data.ndim, 9)
    assert layer.data[(0,) * data.ndim] == 9


def test_that_the_place_of_a_layer_is_not_kept_is_said(make_napari_viewer, tmp_path, notified):
    viewer = make_napari_viewer()
    viewer.add_labels(labels(1), name="still", **GRID).save(str(tmp_path / "still.zarr"))
    assert not notified
    viewer.add_labels(labels(1), name="moved", translate=(0, 1, 0), **GRID).save(str(tmp_path / "moved.zarr"))
    viewer.add_labels(labels(1), name="turned", rotate=30, **GRID).save(str(tmp_path / "turned.zarr"))
    assert [message.partition(" ")[0] for message in notified] == ["moved.zarr", "turned.zarr"]
    assert "will open at the origin" in notified[0]


def test_a_mask_is_saved_with_the_size_of_its_affine_transform(make_napari_viewer, tmp_path):
    viewer = make_napari_viewer()
    viewer.add_labels(labels(1), affine=np.diag([50, 5, 4, 1]), units=("nm",) * 3).save(str(tmp_path / "mask.zarr"))
    assert core.open_volume(tmp_path / "mask.zarr").voxel_size == pytest.approx((50.0, 5.0, 4.0))


def test_a_flat_mask_of_unknown_size_replaces_an_earlier_one(make_napari_viewer, tmp_path):
    viewer = make_napari_viewer()
    layer = viewer.add_labels(labels(1)[1], name="mask")
    path = tmp_path / "mask.tif"
    path.write_bytes(b"an earlier one")
    layer.save(str(path), plugin="napari-kdunet")
    np.testing.assert_array_equal(tifffile.imread(path), labels(1)[1])
    assert core.open_volume(path).voxel_size is None


def test_what_somebody_else_has_put_into_a_zarr_is_not_replaced(make_napari_viewer, tmp_path):
    viewer = make_napari_viewer()
    layer = viewer.add_labels(labels(1), name="mask")
    (tmp_path / "mask.zarr").mkdir()
    (tmp_path / "mask.zarr/notes.txt").write_text("mine")
    with pytest.raises(core.OutputError, match=r"mask\.zarr"):
        layer.save(str(tmp_path / "mask.zarr"), plugin="napari-kdunet")
    assert (tmp_path / "mask.zarr/notes.txt").read_text() == "mine"
