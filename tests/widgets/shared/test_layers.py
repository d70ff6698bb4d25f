"""From layers to volumes, and the choices that follow the viewer."""

import dask.array as da
import numpy as np
import pytest
from napari.components import ViewerModel
from napari.layers import Image, Labels
from napari.utils.transforms import Affine

from napari_kdunet import core
from napari_kdunet.core import VolumeError
from napari_kdunet.widgets.shared.layers import (
    OBJECTS,
    PREVIEW,
    RESULT,
    chosen_layer,
    current_slice,
    layer_choice,
    volume_of,
    voxel_size_of,
    warn_if_apart,
)

SHAPE = (4, 32, 48)


def image(shape=SHAPE, **more):
    return Image(np.arange(np.prod(shape), dtype=np.uint16).reshape(shape), name="em", **more)


TURNED = (50.0, 4.0, 5.0)  # its rows lie along what the affine transform has as columns


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
        (image(affine=np.diag([50, 5, 4, 1]), units=("nm",) * 3), (50.0, 5.0, 4.0)),
        (image(scale=(5, 1, 1), rotate=(0, 0, 90), affine=np.diag([10, 5, 4, 1]), units=("nm",) * 3), TURNED),
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
        (Image(np.zeros((2, 3, 4, 32, 48), np.uint8), name="movie"), "movie has 5 axes .* choose a time point"),
        (Image(np.zeros((2, 32, 48), np.uint8), name="dyes", axis_labels=("c", "y", "x")), "dyes has 2 channels"),
        (
            Labels(np.zeros((2, 4, 32, 48), np.uint8), name="film"),
            "film has 4 axes .*: right-click the layer, Convert to",
        ),
        (Labels(np.zeros((2, 32, 48), np.uint8), name="two", axis_labels=("c", "y", "x")), "channels .*: right-click"),
    ],
)
def test_layers_that_cannot_be_used_say_why(layer, message):
    with pytest.raises(VolumeError, match=message):
        volume_of(layer)


ROTATED = Affine(rotate=(0, 0, 2), ndim=3).affine_matrix
MIRRORED = Affine(scale=(1, 1, -1)).affine_matrix


@pytest.mark.parametrize(
    ("one", "other", "message"),
    [
        ({}, {"affine": Affine(translate=(0, 3, 0)).affine_matrix}, "mito is shifted from em (by +0, +3, +0 voxels)"),
        ({"scale": (50, 5, 5)}, {"affine": Affine(scale=(50, 5, 5), translate=(100, 0, 0)).affine_matrix}, "by +2, +0"),
        ({}, {"affine": ROTATED}, "mito is turned, mirrored or sheared against em"),
        ({}, {"affine": MIRRORED}, "mito is turned, mirrored or sheared against em"),
        ({"scale": (1, 1, 1)}, {"scale": (1, -1, 1)}, "mito is turned, mirrored or sheared against em"),
        ({"affine": ROTATED}, {"affine": ROTATED}, None),
        (
            {"affine": ROTATED, "scale": (9, 3, 3), "translate": (9, 6, 3)},
            {"affine": ROTATED, "translate": (1, 2, 1)},
            None,
        ),
        ({"scale": (50, 5, 5)}, {"affine": Affine(scale=(50, 5, 5)).affine_matrix}, None),
        ({"scale": (50, 5, 5), "translate": (100, 5, 5)}, {"translate": (2, 1, 1)}, None),
    ],
)
def test_layers_that_lie_apart_are_warned_of(notified, one, other, message):
    """Where they begin and how their axes run counts, by whichever of napari's transforms; the pixel size does not."""
    warn_if_apart(image(**one), Labels(np.zeros(SHAPE, np.uint8), name="mito", **other))
    assert len(notified) == (message is not None)
    assert message is None or message in notified[0]


def test_a_slice_that_lies_elsewhere_in_its_volume_is_not_warned_of(notified):
    """A 2-D layer has no place along z."""
    warn_if_apart(image((1, 32, 48), translate=(7, 2, 2)), Labels(np.zeros((32, 48), np.uint8), translate=(2, 2)))
    assert notified == []


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
    """A choice that follows its viewer, as in a panel."""

    def make(viewer, *kind, **more):
        choice = layer_choice(viewer, *kind, **more)
        qtbot.addWidget(choice.native)
        events = viewer.layers.events
        for event in (events.inserted, events.removed, events.reordered, events.renamed):
            event.connect(choice.reset_choices)
        return choice

    return make


def names(choice):
    return [choice.native.itemText(i) for i in range(choice.native.count())]


def test_choice_offers_the_layers_of_its_kind_and_follows_them(choose):
    viewer = ViewerModel()
    choice, heard = choose(viewer), []
    choice.changed.connect(heard.append)
    with pytest.raises(VolumeError, match="no image layer is chosen"):
        chosen_layer(choice)
    one = viewer.add_image(np.zeros(SHAPE), name="one")
    assert chosen_layer(choice) is one
    two = viewer.add_image(np.zeros(SHAPE), name="two")
    viewer.add_labels(np.zeros(SHAPE, int), name="labels")
    viewer.add_image(np.zeros(SHAPE), name="shown", metadata={PREVIEW: True})
    assert names(choice) == ["two", "one"]
    assert choice.value is one, "the choice stays"
    one.name = "first"
    assert names(choice) == ["two", "first"]
    assert choice.value is one
    viewer.layers.remove(one)
    assert choice.value is two, "another takes its place"
    viewer.layers.clear()
    assert choice.value is None
    assert heard == [one, two, None], "nothing else is a change"


def test_choice_can_be_none(choose):
    viewer = ViewerModel()
    taken = choose(viewer, Labels, none="none")
    waiting = choose(viewer, Labels, none="none", first=lambda _: None)
    picky = choose(viewer, Labels, none="none", accepts=lambda layer: layer.ndim == 2)
    one = viewer.add_labels(np.zeros(SHAPE, int), name="one")
    assert names(taken) == names(waiting) == ["none", "one"]
    assert names(picky) == ["none"]
    assert taken.value is one
    assert waiting.value is None
    taken.value = None
    viewer.add_labels(np.zeros(SHAPE, int), name="two")
    assert taken.value is None, "none was meant"


@pytest.mark.parametrize("kind", [RESULT, OBJECTS])
def test_results_come_last_and_are_not_taken_by_themselves(choose, kind):
    viewer = ViewerModel()
    labels = choose(viewer, Labels)
    mask = viewer.add_labels(np.zeros(SHAPE, int), name="mask", metadata={kind: None})
    assert labels.value is None
    own = viewer.add_labels(np.zeros(SHAPE, int), name="own")
    later = viewer.add_labels(np.zeros(SHAPE, int), name="mask [1]", metadata={kind: None})
    assert names(labels) == ["own", "mask [1]", "mask"]
    assert labels.value is own
    labels.value = mask
    viewer.layers.remove(later)
    assert labels.value is mask, "who wants it can have it"


def written(path, threshold):
    """A probability in a file, as `predict` writes it."""
    guess = np.random.default_rng(0).random(SHAPE, np.float32)
    about = {"output": "probability", "threshold": threshold}
    core.write_volume(guess, path, voxel_size=(40, 5, 5), metadata=about)
    return str(path)


@pytest.mark.parametrize("name", ["Compare with ground truth", "Objects"])
def test_a_probability_of_a_file_is_taken_at_its_models_threshold(open_widget, tmp_path, name):
    viewer, widget = open_widget(name)
    choice = widget.source if name == "Objects" else widget.prediction
    assert widget.threshold.value == 0.5
    for ending, threshold in ((".tif", 0.7), (".zarr", 0.3), (".h5", 0.999)):
        path = written(tmp_path / f"guess{ending}", threshold)
        [layer] = viewer.open(path, plugin="napari" if ending == ".tif" else "napari-kdunet")
        choice.value = layer
        assert widget.threshold.value == min(threshold, 0.99)
    widget.threshold.value = 0.6
    truth = viewer.add_labels(np.ones(SHAPE, np.uint8))  # what else comes leaves alone what somebody has set
    if name != "Objects":
        widget.reference.value = truth
    assert (choice.value, widget.threshold.value) == (layer, 0.6)
    choice.value = viewer.add_image(np.zeros(SHAPE, np.float32), name="of another program")
    assert widget.threshold.value == 0.5


def test_a_panel_that_is_opened_later_takes_that_threshold_too(make_napari_viewer, tmp_path):
    viewer = make_napari_viewer()
    viewer.open(written(tmp_path / "guess.tif", 0.8), plugin="napari")
    _, compare = viewer.window.add_plugin_dock_widget("napari-kdunet", "Compare with ground truth")
    assert compare.threshold.value == 0.8
