"""Files that are dropped on napari's canvas, through the manifest."""

import numpy as np
import pytest

from napari_kdunet import core
from napari_kdunet.widgets.shared.layers import voxel_size_of
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


def test_a_model_that_is_dropped_is_in_the_list_and_no_layer(make_napari_viewer, tmp_path):
    path = core.Model(core.KUNet(1)).save(tmp_path / "mine.safetensors")
    viewer = make_napari_viewer()
    assert viewer.open(path, plugin="napari-kdunet") == []
    assert models.session_names() == ["mine"]
    assert len(viewer.layers) == 0
