"""Files that are dropped on napari's canvas, through the manifest."""

import h5py
import mrcfile
import npe2
import numpy as np
import pytest
import tifffile
import zarr
from qtpy.QtWidgets import QInputDialog

from napari_kdunet import core
from napari_kdunet.widgets import readers
from napari_kdunet.widgets.shared.layers import volume_of, voxel_size_of
from napari_kdunet.widgets.shared.models import models


def test_an_ome_zarr_comes_in_with_its_scale(make_napari_viewer, tmp_path):
    raw = np.arange(3 * 16 * 20, dtype=np.uint16).reshape(3, 16, 20)
    path = tmp_path / "em.zarr"
    core.write_volume(raw, path, voxel_size=(50.0, 5.0, 5.0))
    viewer = make_napari_viewer()
    (layer,) = viewer.open(path, plugin="napari-kdunet")
    assert (layer.name, layer._type_string) == ("em", "image")
    assert voxel_size_of(layer) == pytest.approx((50.0, 5.0, 5.0))
    assert layer.axis_labels == ("z", "y", "x")
    np.testing.assert_array_equal(np.asarray(layer.data), raw)
    _, segment = viewer.window.add_plugin_dock_widget("napari-kdunet", "Segment")
    assert segment.image.value is layer
    assert segment.image_pixel_size.value == 5.0


def test_a_large_slice_comes_in_as_a_pyramid(make_napari_viewer, tmp_path, monkeypatch):
    """Else napari would read all of it, and draw all of it each time anything changes."""
    raw = np.random.default_rng(0).integers(0, 255, (1, 1200, 1100), np.uint8)
    path = tmp_path / "em.zarr"
    core.write_volume(raw, path, voxel_size=(50.0, 5.0, 5.0))
    monkeypatch.setattr(readers, "_LARGE", 1100)
    viewer = make_napari_viewer()
    (layer,) = viewer.open(path, plugin="napari-kdunet")
    assert [level.shape for level in layer.data][:2] == [(1200, 1100), (600, 550)]
    assert volume_of(layer).shape == (1, 1200, 1100)
    assert volume_of(layer).voxel_size == (5.0, 5.0, 5.0)
    np.testing.assert_array_equal(np.asarray(layer.data[0]), raw[0])


RAW = np.arange(3 * 16 * 20, dtype=np.uint16).reshape(3, 16, 20)
NM = (50.0, 5.0, 5.0)


def write_mrc(path):
    with mrcfile.new(path) as file:
        file.set_data(RAW)
        file.voxel_size = tuple(10 * size for size in NM[::-1])  # angstrom, X Y Z


def write_hdf5(path):
    with h5py.File(path, "w") as file:
        file.create_dataset("volumes/raw", data=RAW, chunks=(1, 8, 8)).attrs["resolution"] = NM


def write_several_hdf5(path):
    with h5py.File(path, "w") as file:
        for name in ("volumes/raw", "volumes/labels"):
            file.create_dataset(name, data=RAW).attrs["resolution"] = NM


def write_several_n5(path):
    for name in ("raw", "labels"):
        write_n5(path / name)
    (path / "attributes.json").write_text('{"n5": "2.0.0"}')


def write_several_zarr(path):
    group = zarr.open_group(path, mode="w")
    for name in ("raw", "labels"):
        array = group.create_array(name, data=RAW, dimension_names=["z", "y", "x"])
        array.attrs["resolution"] = NM


def write_times_and_channels(path):
    """OME-Zarr, of which RAW is time point 1, channel 2."""
    axes = [("t", "time", "second"), ("c", "channel", None), *((a, "space", "nanometer") for a in "zyx")]
    data = np.zeros((2, 3, *RAW.shape), RAW.dtype)
    data[1, 2] = RAW
    group = zarr.open_group(path, mode="w")
    group.create_array("0", data=data)
    image = {
        "axes": [{"name": name, "type": kind} | ({"unit": unit} if unit else {}) for name, kind, unit in axes],
        "datasets": [{"path": "0", "coordinateTransformations": [{"type": "scale", "scale": [1, 1, *NM]}]}],
    }
    group.attrs["ome"] = {"version": "0.5", "multiscales": [image]}


def write_n5(path):
    tensorstore = pytest.importorskip("tensorstore")
    spec = {"driver": "n5", "kvstore": {"driver": "file", "path": str(path)}}
    metadata = {"dimensions": RAW.shape[::-1], "blockSize": [8, 8, 1], "dataType": "uint16"}
    metadata |= {"compression": {"type": "gzip"}, "resolution": NM[::-1], "units": ["nm"] * 3}
    store = tensorstore.open(spec | {"metadata": metadata}, create=True).result()
    store.write(RAW.T).result()


def write_slices(path):
    path.mkdir()
    for z, page in enumerate(RAW):
        tifffile.imwrite(path / f"z{z}.tif", page, resolution=(1e7 / NM[1],) * 2, resolutionunit="CENTIMETER")


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("em.mrc", write_mrc),
        ("em.REC", write_mrc),
        ("em.map", write_mrc),
        ("em.h5", write_hdf5),
        ("em.hdf5", write_hdf5),
        ("em.hdf", write_hdf5),
        ("em.n5", write_n5),
        ("em", write_slices),
    ],
)
def test_what_napari_opens_without_its_scale(make_napari_viewer, tmp_path, name, write):
    path = tmp_path / name
    write(path)
    viewer = make_napari_viewer()
    (layer,) = viewer.open(path, plugin="napari-kdunet")
    assert (layer.name, layer._type_string, layer.axis_labels) == ("em", "image", ("z", "y", "x"))
    assert hasattr(layer.data, "compute"), "lazy"
    np.testing.assert_array_equal(np.asarray(layer.data), RAW)
    expected = NM if name != "em" else (5.0, 5.0, 5.0)  # slices do not state their distance
    assert voxel_size_of(layer) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("name", "write", "choices", "answers", "called"),
    [
        ("em.h5", write_several_hdf5, [["volumes/labels", "volumes/raw"]], ["volumes/raw"], "em volumes/raw"),
        ("em.n5", write_several_n5, [["labels", "raw"]], ["raw"], "em raw"),
        ("em.zarr", write_several_zarr, [["labels", "raw"]], ["raw"], "em raw"),
        ("em.zarr", write_times_and_channels, [["0", "1"], ["0", "1", "2"]], ["1", "2"], "em time point 1 channel 2"),
    ],
)
@pytest.mark.parametrize("absolute", [True, False])
def test_one_of_several_is_chosen(
    make_napari_viewer, tmp_path, monkeypatch, name, write, choices, answers, called, absolute
):
    write(tmp_path / name)
    asked = []

    def answer(*arguments):
        asked.append(arguments[3])
        return answers[len(asked) - 1], True

    monkeypatch.setattr(QInputDialog, "getItem", answer)
    monkeypatch.chdir(tmp_path)
    viewer = make_napari_viewer()
    (layer,) = viewer.open(tmp_path / name if absolute else name, plugin="napari-kdunet")
    assert asked == choices
    assert (layer.name, layer._type_string) == (called, "image")
    np.testing.assert_array_equal(np.asarray(layer.data), RAW)
    assert voxel_size_of(layer) == pytest.approx(NM)
    monkeypatch.setattr(QInputDialog, "getItem", lambda *_: ("", False))
    assert viewer.open(tmp_path / name, plugin="napari-kdunet") == []
    assert len(viewer.layers) == 1, "cancelled"


@pytest.mark.parametrize(
    ("dtype", "inside", "kind"),
    [
        (np.uint16, "volumes/labels/mito", "labels"),
        (np.uint8, "mito_seg", "labels"),
        (np.int32, "instances", "labels"),
        (np.uint64, "mito", "labels"),
        (np.uint32, "em/labelled", "image"),
        (np.uint16, "maskless", "image"),
        (np.float32, "labels", "image"),
    ],
)
def test_labels_of_other_tools_come_in_as_labels(make_napari_viewer, tmp_path, dtype, inside, kind):
    path = tmp_path / "labels" / "seg.h5"  # names of the user's own, which say nothing
    path.parent.mkdir()
    with h5py.File(path, "w") as file:
        file.create_dataset(inside, data=RAW.astype(dtype))
    viewer = make_napari_viewer()
    (layer,) = viewer.open(path, plugin="napari-kdunet")
    assert layer._type_string == kind
    assert isinstance(layer.data, np.ndarray) == (kind == "labels"), "in memory, to paint on"
    np.testing.assert_array_equal(np.asarray(layer.data), RAW.astype(dtype))


def test_labels_in_a_zarr_of_other_tools(make_napari_viewer, tmp_path):
    group = zarr.open_group(tmp_path / "seg.zarr", mode="w")
    for name in ("em", "labels/mito"):
        group.create_array(name, data=RAW, chunks=(1, 8, 8))
    viewer = make_napari_viewer()
    kinds = [viewer.open(tmp_path / "seg.zarr" / at, plugin="napari-kdunet")[0] for at in ("em", "labels/mito")]
    assert [layer._type_string for layer in kinds] == ["image", "labels"]


@pytest.mark.parametrize("suffix", [".h5", ".zarr"])
@pytest.mark.parametrize("labels", [True, False])
def test_a_mask_of_ours_comes_in_as_labels(make_napari_viewer, tmp_path, suffix, labels):
    path = tmp_path / f"mito{suffix}"
    core.write_volume(RAW, path, labels=labels)
    (layer,) = make_napari_viewer().open(path, plugin="napari-kdunet")
    assert layer._type_string == ("labels" if labels else "image")


def test_what_was_assumed_is_told(make_napari_viewer, notified, tmp_path):
    (tmp_path / "em" / "more").mkdir(parents=True)
    for z, pixels in enumerate(RAW):
        tifffile.imwrite(tmp_path / "em" / f"{z}.tif", pixels)
    viewer = make_napari_viewer()
    viewer.open(tmp_path / "em", plugin="napari-kdunet")
    assert notified == ["em: its folders are left out: more"]


@pytest.mark.parametrize("name", ["em.tif", "em.tiff", "em.ome.tif", "em.png", "em.jpg", "em.npy"])
def test_nothing_stands_between_a_user_and_a_plain_image(name):
    readers = npe2.PluginManager.instance().iter_compatible_readers([name])
    assert "napari-kdunet" not in {reader.plugin_name for reader in readers}


def test_a_damaged_file_is_one_line(make_napari_viewer, tmp_path):
    (tmp_path / "em.mrc").write_bytes(b"no volume at all" * 99)
    viewer = make_napari_viewer()
    with pytest.raises(core.VolumeError, match=r"em\.mrc"):
        viewer.open(tmp_path / "em.mrc", plugin="napari-kdunet")
    assert len(viewer.layers) == 0


def test_a_model_that_is_dropped_is_in_the_list_and_no_layer(make_napari_viewer, tmp_path):
    path = core.Model(core.KUNet(1)).save(tmp_path / "mine.safetensors")
    viewer = make_napari_viewer()
    assert viewer.open(path, plugin="napari-kdunet") == []
    assert models.session_names() == ["mine"]
    assert len(viewer.layers) == 0
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(core.ModelError, match=r"mine\.safetensors is not a model"):  # which napari notifies
        viewer.open(path, plugin="napari-kdunet")
    assert models.session_names() == ["mine"]
