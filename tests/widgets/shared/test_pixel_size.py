"""The pixel size of an image: from its layer, from the file behind it, or typed."""

import numpy as np
import pytest
import tifffile
from napari.components import ViewerModel

from napari_kdunet.widgets.shared.layers import layer_choice, voxel_size_of
from napari_kdunet.widgets.shared.pixel_size import PixelSize, set_pixel_size

SHAPE = (3, 32, 40)


@pytest.fixture
def row(qtbot):
    """The row in a viewer without a window, following it as a panel does."""
    viewer = ViewerModel()
    image = layer_choice(viewer)
    row = PixelSize(viewer, image)
    viewer.layers.events.inserted.connect(image.reset_choices)
    viewer.layers.events.removed.connect(image.reset_choices)
    qtbot.addWidget(row.native)
    qtbot.addWidget(image.native)
    yield viewer, row
    viewer.layers.clear()


def marked(row):
    return bool(row.number.native.styleSheet())


def test_the_layers_own_is_shown_and_followed(row):
    viewer, row = row
    assert row.number.value is None
    layer = viewer.add_image(np.zeros(SHAPE), scale=(50, 5, 5), units=("nm",) * 3)
    assert (row.number.value, marked(row)) == (5.0, False)
    layer.scale = (50, 4, 4)
    assert row.number.value == 4.0
    layer.units, layer.scale = ("um",) * 3, (0.05, 0.007, 0.007)
    assert row.number.value == pytest.approx(7.0)
    viewer.layers.clear()
    assert row.number.value is None


def test_what_is_not_known_is_marked_and_what_is_typed_goes_to_all_that_lies_there(row):
    viewer, row = row
    image = viewer.add_image(np.zeros(SHAPE), scale=(10, 1, 1), translate=(20, 3, 0))
    labels = viewer.add_labels(np.zeros(SHAPE, int), scale=(10, 1, 1))
    elsewhere = viewer.add_labels(np.zeros(SHAPE, int), scale=(2, 2, 2))
    viewer.dims.set_current_step(0, 1)
    assert (row.number.value, marked(row)) == (None, True)
    row.number.value = 5.0
    assert voxel_size_of(image) == voxel_size_of(labels) == (50.0, 5.0, 5.0), "ratios stay"
    np.testing.assert_allclose(image.translate, (100, 15, 0))
    assert voxel_size_of(elsewhere) is None
    assert not marked(row)
    row.number.value = 4.0
    assert voxel_size_of(image) == (50.0, 4.0, 4.0), "a known distance of slices stays"


def test_what_is_typed_is_not_said_of_another_image(row):
    viewer, row = row
    first = viewer.add_image(np.zeros(SHAPE))
    second = viewer.add_image(np.zeros((5, 20, 20)))
    cut = viewer.add_labels(np.zeros((1, *SHAPE[1:]), int))
    row.chosen.value = first
    row.number.value = 5.0
    assert voxel_size_of(first) == voxel_size_of(cut) == (5.0, 5.0, 5.0)
    assert voxel_size_of(second) is None
    row.chosen.value = second
    assert marked(row)


def test_an_affine_transform_counts(row):
    viewer, row = row
    image = viewer.add_image(np.zeros(SHAPE), units=("nm",) * 3)
    image.affine = np.diag([50, 5, 5, 1])
    assert (row.number.value, row.depth.value) == (5.0, 50.0)
    row.number.value = 4.0
    assert voxel_size_of(image) == pytest.approx((50.0, 4.0, 4.0))
    np.testing.assert_allclose(image.scale, (1, 0.8, 0.8))


def test_the_distance_of_slices_is_shown_and_typed(row):
    """Slices of an image that states nothing are taken as far apart as its pixels are wide, which one has to see."""
    viewer, row = row
    image = viewer.add_image(np.zeros(SHAPE))
    labels = viewer.add_labels(np.zeros(SHAPE, int))
    assert row.depth.native.isHidden()
    row.number.value = 4.6
    assert (row.depth.native.isHidden(), row.depth.value) == (False, 4.6)
    row.depth.value = 50.0
    assert voxel_size_of(image) == voxel_size_of(labels) == (50.0, 4.6, 4.6)
    row.number.value = 5.0
    assert (row.depth.value, voxel_size_of(image)) == (50.0, (50.0, 5.0, 5.0))
    image.scale = (40, 5, 5)
    assert row.depth.value == 40.0
    viewer.layers.clear()
    assert row.depth.native.isHidden()
    viewer.add_image(np.zeros(SHAPE[1:]), scale=(5, 5), units=("nm",) * 2)
    assert row.depth.native.isHidden(), "a single slice has no distance to another"


def test_two_dimensions_and_other_axes(row):
    viewer, _ = row
    flat = viewer.add_image(np.zeros(SHAPE[1:]))
    set_pixel_size(viewer, flat, 8.0)
    assert voxel_size_of(flat) == (8.0, 8.0, 8.0)
    movie = viewer.add_image(np.zeros((2, *SHAPE)))
    set_pixel_size(viewer, movie, 8.0)
    assert tuple(movie.scale) == (1, 8, 8, 8)
    assert str(movie.units[0]) == "pixel"


def test_the_file_behind_a_layer_is_asked(make_napari_viewer, tmp_path):
    """napari opens an ImageJ TIFF that states 5 nm as "pixel"."""
    path = tmp_path / "em.tif"
    pixels_per_um = 200.0
    metadata = {"axes": "ZYX", "spacing": 0.05, "unit": "um"}
    tifffile.imwrite(path, np.zeros(SHAPE, np.uint8), imagej=True, resolution=(pixels_per_um,) * 2, metadata=metadata)
    viewer = make_napari_viewer()
    (layer,) = viewer.open(path, plugin="napari")
    _, widget = viewer.window.add_plugin_dock_widget("napari-kdunet", "Segment")
    assert widget.image_pixel_size.value == pytest.approx(5.0)
    assert voxel_size_of(layer) == pytest.approx((50.0, 5.0, 5.0))
    assert not widget.image_pixel_size.native.styleSheet()
    crop = viewer.add_image(layer.data[:, :16], name="crop")
    widget.image.value = crop
    assert widget.image_pixel_size.value is None


def test_another_file_of_the_same_shape_keeps_the_size_that_it_states(make_napari_viewer, tmp_path):
    viewer = make_napari_viewer()
    layers = []
    for name, size in (("a.tif", 5.0), ("b.tif", 8.0), ("c.tif", None)):
        stated = {} if size is None else {"resolution": (1000 / size,) * 2, "metadata": {"axes": "ZYX", "unit": "um"}}
        tifffile.imwrite(tmp_path / name, np.zeros(SHAPE, np.uint8), imagej=True, **stated)
        layers += viewer.open(tmp_path / name, plugin="napari")
    _, widget = viewer.window.add_plugin_dock_widget("napari-kdunet", "Segment")
    for layer, size in zip(layers[:2], (5.0, 8.0), strict=True):
        widget.image.value = layer
        assert widget.image_pixel_size.value == pytest.approx(size)
    widget.image.value = layers[0]
    widget.image_pixel_size.value = 6.0
    widget.image.value = layers[1]
    assert widget.image_pixel_size.value == pytest.approx(8.0)


def test_an_image_that_a_typed_size_is_taken_for_too_is_named_and_may_have_another(make_napari_viewer, tmp_path):
    viewer = make_napari_viewer()
    layers = []
    for name in ("a.tif", "b.tif"):
        tifffile.imwrite(tmp_path / name, np.zeros(SHAPE, np.uint8), imagej=True)
        layers += viewer.open(tmp_path / name, plugin="napari")
    first, second = layers
    derived = viewer.add_image(np.zeros(SHAPE))
    _, widget = viewer.window.add_plugin_dock_widget("napari-kdunet", "Segment")
    widget.image.value = first
    widget.image_pixel_size.value = 5.0
    assert widget.pixel_size_finding.value == "Taken for b too, of the same shape: choose that image to change it."
    assert [voxel_size_of(layer) for layer in (second, derived)] == [(5.0, 5.0, 5.0)] * 2
    widget.image.value = second
    assert not widget.pixel_size_finding.value
    widget.image_pixel_size.value = 8.0
    assert not widget.pixel_size_finding.value
    assert [voxel_size_of(layer)[1:] for layer in layers] == [(5.0, 5.0), (8.0, 8.0)]
