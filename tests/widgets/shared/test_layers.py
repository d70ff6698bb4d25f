"""From layers to volumes, and the combo boxes that follow the viewer."""

import dask.array as da
import numpy as np
import pytest
from napari.components import ViewerModel
from napari.layers import Image, Labels

from napari_kdunet.core import VolumeError
from napari_kdunet.widgets.shared.layers import PREVIEW, LayerChooser, current_slice, volume_of, voxel_size_of

SHAPE = (4, 32, 48)


def image(shape=SHAPE, **more):
    return Image(np.arange(np.prod(shape), dtype=np.uint16).reshape(shape), name="em", **more)


@pytest.mark.parametrize(
    ("layer", "size"),
    [
        (image(), None),
        (image(scale=(5, 5, 5)), None),
        (image(scale=(50, 5, 4), units=("nm",) * 3), (50.0, 5.0, 4.0)),
        (image(scale=(0.05, 0.005, 0.005), units=("um",) * 3), (50.0, 5.0, 5.0)),
        (image(scale=(1, 5, 4), units=("pixel", "nm", "nm")), (5.0, 5.0, 4.0)),
        (image((32, 48), scale=(5, 4), units=("nm", "nm")), (5.0, 5.0, 4.0)),
        (image(scale=(1, 5, 5), units=("nm", "pixel", "pixel")), None),
    ],
)
def test_voxel_size_in_nm(layer, size):
    assert voxel_size_of(layer) == (None if size is None else pytest.approx(size))
    assert volume_of(layer).voxel_size == (None if size is None else pytest.approx(size))


def test_volume_of_each_kind_of_layer():
    assert volume_of(image()).shape == SHAPE
    assert volume_of(image()).name == "em"
    assert volume_of(image((32, 48))).shape == (1, 32, 48)
    labels = np.zeros(SHAPE, np.uint8)
    assert volume_of(Labels(labels)).dtype == np.uint8
    full = np.ones(SHAPE, np.uint8)
    assert volume_of(Image([full, full[:, ::2, ::2]], multiscale=True)).shape == SHAPE
    lazy = da.from_array(full, chunks=(1, 16, 16))
    np.testing.assert_array_equal(volume_of(Image(lazy)).read(2), full[2])


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (Image(np.zeros((4, 32, 48, 3), np.uint8), rgb=True, name="photo"), "photo is RGB: convert it"),
        (Image(np.zeros((2, 3, 4, 32, 48), np.uint8), name="movie"), "movie"),
    ],
)
def test_layers_that_cannot_be_used_say_why(layer, message):
    with pytest.raises(VolumeError, match=message):
        volume_of(layer)


def test_current_slice_goes_by_world_coordinates():
    viewer = ViewerModel()
    flat = viewer.add_image(np.zeros((32, 48)))
    deep = viewer.add_image(np.zeros(SHAPE), scale=(50, 5, 5), translate=(100, 0, 0))
    viewer.add_image(np.zeros((40, 32, 48)), scale=(10, 5, 5))
    viewer.dims.set_point(0, 200)
    assert current_slice(viewer, deep) == 2
    assert current_slice(viewer, flat) == 0
    viewer.dims.set_point(0, 0)
    assert current_slice(viewer, deep) == 0, "the nearest one"
    viewer.dims.set_point(0, 390)
    assert current_slice(viewer, deep) == 3


@pytest.fixture
def choose(qtbot):
    def make(viewer, *kind, **more):
        chooser = LayerChooser(viewer, *kind, **more)
        qtbot.addWidget(chooser)
        return chooser

    return make


def names(chooser):
    return [chooser.itemText(i) for i in range(chooser.count())]


def test_chooser_offers_the_layers_of_its_kind_and_follows_them(choose):
    viewer = ViewerModel()
    chooser = choose(viewer)
    with pytest.raises(VolumeError, match="no image layer is chosen"):
        chooser.wanted()
    one = viewer.add_image(np.zeros(SHAPE), name="one")
    assert chooser.wanted() is one
    two = viewer.add_image(np.zeros(SHAPE), name="two")
    viewer.add_labels(np.zeros(SHAPE, int), name="labels")
    viewer.add_image(np.zeros(SHAPE), name="shown", metadata={PREVIEW: True})
    assert names(chooser) == ["two", "one"]
    assert chooser.layer is one, "the choice stays"
    one.name = "first"
    assert names(chooser) == ["two", "first"]
    viewer.layers.remove(one)
    assert chooser.layer is two, "another takes its place"
    viewer.layers.clear()
    assert chooser.layer is None


def test_chooser_can_have_none(choose):
    viewer = ViewerModel()
    taken = choose(viewer, Labels, "none")
    waiting = choose(viewer, Labels, "none", at_first_none=True)
    picky = choose(viewer, Labels, "none", accepts=lambda layer: layer.ndim == 2)
    one = viewer.add_labels(np.zeros(SHAPE, int), name="one")
    assert names(taken) == names(waiting) == ["none", "one"]
    assert names(picky) == ["none"]
    assert taken.layer is one
    assert waiting.layer is None
    taken.layer = None
    viewer.add_labels(np.zeros(SHAPE, int), name="two")
    assert taken.layer is None, "none was meant"


def test_a_chooser_that_is_gone_is_not_told(qtbot):
    viewer = ViewerModel()
    chooser = LayerChooser(viewer)
    with qtbot.waitSignal(chooser.destroyed):
        chooser.deleteLater()
    viewer.add_image(np.zeros(SHAPE))
