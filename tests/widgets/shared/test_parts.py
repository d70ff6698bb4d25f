"""Images with channels and time points: one is chosen, and nothing takes channels for slices."""

import dask.array as da
import numpy as np
import pytest
import tifffile

from napari_kdunet import core
from napari_kdunet.widgets.shared.models import models


def finish(qtbot, widget):
    qtbot.waitUntil(lambda: not widget.segmentation.is_running, timeout=20_000)


@pytest.fixture
def segment(open_widget, tiny_model, qtbot):
    viewer, widget = open_widget("Segment")
    models.add("tiny", tiny_model)
    qtbot.waitUntil(lambda: widget.loaded is tiny_model)
    return viewer, widget


def test_a_channel_of_a_file_with_two_is_chosen(segment, em, tiny_model, tmp_path, qtbot, notified):
    viewer, widget = segment
    pair = np.stack([255 - em[0][0], em[0][0]])
    tifffile.imwrite(tmp_path / "pair.tif", pair, imagej=True, metadata={"axes": "CYX"})
    (image,) = viewer.open(tmp_path / "pair.tif", plugin="napari")
    assert widget.image.value is image
    widget.start()
    assert "2 channels rather than slices: choose one under Image" in notified[-1]
    assert widget.part.visible or not widget.native.isVisible()
    assert widget.part.choices == (None, 0, 1)
    widget.part.value = 1
    assert widget.image.value.name == "pair channel 1"
    assert np.shares_memory(widget.image.value.data, image.data)
    assert not widget.part.choices or widget.part.choices == (None,)
    widget.start()
    finish(qtbot, widget)
    mask = viewer.layers["pair channel 1 tiny mask"].data
    wanted = core.predict(tiny_model, em[0][:1], output="labels", threshold=widget.threshold.value).compute()[0]
    np.testing.assert_array_equal(mask, wanted)


def test_a_part_is_of_that_image_and_lies_where_it_does(segment, em):
    """Not of another one that was called the same, nor any layer of its name."""
    viewer, widget = segment
    grid = {"scale": (1.0, 50.0, 20.0, 20.0), "rotate": 15.0, "affine": np.diag([1.0, 1.0, 2.0, 1.0, 1.0])}
    viewer.add_labels(np.zeros((4, 4), np.uint8), name="pair channel 0")
    for raw in (em[0], 255 - em[0]):
        image = viewer.add_image(np.stack([raw, raw // 2]), name="pair", axis_labels=("c", "z", "y", "x"), **grid)
        widget.image.value = image
        widget.part.value = 0
        part = widget.image.value
        assert np.shares_memory(part.data, image.data)
        np.testing.assert_allclose(part.data_to_world((1, 5, 7)), image.data_to_world((0, 1, 5, 7))[1:])
        widget.image.value = image
        widget.part.value = 0
        assert widget.image.value is part, "made once"
        viewer.layers.remove(image)


def test_a_time_point_then_a_channel(segment, em, qtbot):
    """Of five axes one after the other; what is lazy stays lazy, and the scale goes with it."""
    viewer, widget = segment
    five = da.stack([da.stack([em[0], em[0] // 2], axis=1)] * 3)
    scale = {"scale": (1.0, 50.0, 1.0, 20.0, 20.0), "units": ("s", "nm", "pixel", "nm", "nm")}
    viewer.add_image(five, name="five", axis_labels=("t", "z", "c", "y", "x"), **scale)
    assert widget.part.label == "Time point"
    widget.part.value = 2
    assert (widget.part.label, widget.image.value.ndim) == ("Channel", 4)
    widget.part.value = 1
    layer = widget.image.value
    assert layer.name == "five time point 2 channel 1"
    assert isinstance(layer.data, da.Array)
    np.testing.assert_array_equal(layer.data, em[0] // 2)
    np.testing.assert_array_equal(layer.scale, (50.0, 20.0, 20.0))
    assert widget.image_pixel_size.value == 20.0
    widget.image.value = viewer.layers["five"]
    assert widget.part.value is None


@pytest.mark.parametrize(("place", "kind"), [((0, 1), "Time point"), ((1, 0), "Time point"), ((0,), "Time point")])
def test_axes_of_length_1(segment, em, notified, place, kind):
    viewer, widget = segment
    image = viewer.add_image(np.expand_dims(em[0], place), name="long")
    widget.start()
    assert "choose a time point or channel under Image" in notified[-1]
    while widget.image.value.ndim > 3:
        assert widget.part.choices == (None, 0)
        assert widget.part.label == kind
        widget.part.value = 0
    assert np.shares_memory(widget.image.value.data, image.data)
    np.testing.assert_array_equal(widget.image.value.data, em[0])


def test_axes_without_names(open_widget, em):
    viewer, widget = open_widget("Train teacher")
    viewer.add_image(np.stack([em[0]] * 6), name="frames")
    assert (widget.part.label, len(widget.part.choices)) == ("Time point", 7)
    viewer.add_image(np.stack([em[0]] * 2, axis=1), name="dyes")
    widget.image.value = viewer.layers["dyes"]
    assert (widget.part.label, len(widget.part.choices)) == ("Channel", 3)
    widget.image.value = viewer.add_image(em[0], name="em")
    assert widget.part.choices == (None,)
