"""*Find* beside the pixel size, opened through the manifest, with a network that is sure of discs of 100 nm."""

import os
from pathlib import Path

import numpy as np
import pytest

from detector import Detector, discs
from napari_kdunet import core
from napari_kdunet.widgets.shared.layers import voxel_size_of
from napari_kdunet.widgets.shared.models import models

TRUE = 10.0  # nm


@pytest.fixture
def knowing():
    model = core.Model(Detector(), 10.0)
    models.add("discs", model)
    return model


def opened(open_widget, qtbot, name, raw):
    viewer, widget = open_widget(name)
    viewer.add_image(raw, name="em")
    if name == "Segment":
        qtbot.waitUntil(lambda: widget.loaded is not None)
    return viewer, widget


def text_after_find(qtbot, widget):
    widget.find_button.native.click()
    assert widget.find_button.text == "Stop"
    qtbot.waitUntil(lambda: widget.find_button.text == "Find", timeout=60_000)
    return widget.pixel_size_finding.value


@pytest.mark.parametrize("name", ["Train teacher", "Segment"])
def test_what_is_found_goes_to_the_row_and_the_layers(open_widget, qtbot, knowing, name):
    viewer, widget = opened(open_widget, qtbot, name, discs(TRUE))
    labels = viewer.add_labels(np.zeros(viewer.layers["em"].data.shape, int), name="mito")
    text = text_after_find(qtbot, widget)
    size = widget.image_pixel_size.value
    assert size == pytest.approx(TRUE, rel=0.3)
    assert voxel_size_of(viewer.layers["em"]) == voxel_size_of(labels) == pytest.approx((size,) * 3)
    assert text == f"Found {size:g} nm, where discs is surest."
    assert not widget.image_pixel_size.native.styleSheet(), "known now"
    widget.image_pixel_size.value = 12.0
    assert widget.pixel_size_finding.value == "", "what is typed was not found"


@pytest.mark.parametrize("name", ["Train teacher", "Segment"])
def test_in_noise_nothing_is_found_and_nothing_changed(open_widget, qtbot, knowing, name):
    noise = np.random.default_rng(0).integers(0, 256, (1, 130, 130), dtype=np.uint8)
    viewer, widget = opened(open_widget, qtbot, name, noise)
    assert text_after_find(qtbot, widget).startswith("Not found: discs is not sure at any pixel size. Type the")
    assert widget.image_pixel_size.value is None
    assert voxel_size_of(viewer.layers["em"]) is None


def test_inverted_contrast_is_said_ticked_and_segmented(open_widget, qtbot, knowing):
    raw = 255 - discs(TRUE)
    viewer, widget = opened(open_widget, qtbot, "Segment", raw)
    text = text_after_find(qtbot, widget)
    assert "Bright and dark are reversed compared with the images that discs knows. “Inverted contrast” is" in text
    assert widget.inverted.value
    seen = core.open_volume(raw, voxel_size=voxel_size_of(viewer.layers["em"]), invert=True)
    expected = core.predict(knowing, seen).compute()
    assert 0.05 < (expected > 0.5).mean() < 0.5
    widget.live.value = True
    qtbot.waitUntil(lambda: widget.preview is not None and widget.preview.probability is not None)
    np.testing.assert_allclose(widget.preview.probability, expected[0], atol=1e-5)
    widget.start()
    qtbot.waitUntil(lambda: not widget.segmentation.is_running)
    np.testing.assert_array_equal(widget.segmentation.mask.data, expected > 0.5)
    widget.inverted.value = False
    widget.start()
    qtbot.waitUntil(lambda: not widget.segmentation.is_running)
    assert (widget.segmentation.mask.data != (expected > 0.5)).mean() > 0.05, "the contrast as it is now"


def test_what_was_found_of_one_image_is_not_taken_for_the_next(open_widget, qtbot, knowing):
    viewer, widget = opened(open_widget, qtbot, "Segment", 255 - discs(TRUE))
    text_after_find(qtbot, widget)
    assert widget.inverted.value
    widget.image.value = viewer.add_image(discs(TRUE), name="other")
    assert not widget.inverted.value


def test_inverted_contrast_is_said_where_a_teacher_would_see_it(open_widget, qtbot, knowing):
    _, widget = opened(open_widget, qtbot, "Distil student", 255 - discs(TRUE))
    assert text_after_find(qtbot, widget).endswith("This model would find little as a teacher: invert the image first.")


def test_a_search_can_be_stopped_and_changes_nothing_then(open_widget, qtbot, knowing):
    viewer, widget = opened(open_widget, qtbot, "Segment", discs(TRUE))
    widget.find_button.native.click()
    qtbot.waitUntil(lambda: " of 20 sizes tried" in widget.pixel_size_finding.value)
    widget.find_button.native.click()
    assert (widget.find_button.text, widget.pixel_size_finding.value) == ("Find", "")
    widget.find_button.native.click()
    widget.image_pixel_size.value = 50.0  # typed meanwhile
    assert widget.find_button.text == "Find"
    widget.find_button.native.click()
    viewer.layers.clear()
    assert widget.find_button.text == "Find"


def test_what_is_missing_is_said(open_widget, qtbot, notified):
    viewer, widget = open_widget("Train teacher")
    viewer.add_image(discs(TRUE), name="em")
    widget.find_button.native.click()
    assert widget.pixel_size_finding.value == notified[-1]
    assert notified == ["there is no model to find the pixel size with: train or open one, or type the pixel size."]
    models.add("any", core.Model(core.KUNet(1), pixel_size=0))
    text = text_after_find(qtbot, widget)
    assert text.startswith("the model works at the pixels of each image")
    assert text == notified[-1]


@pytest.mark.data
@pytest.mark.slow
@pytest.mark.skipif("KDUNET_DATA" not in os.environ, reason="KDUNET_DATA is not set")
def test_a_bundled_model_finds_the_size_of_real_em(open_widget, qtbot, bundle):
    bundle(Path(core.__file__).parents[1] / "models/lucchi-4unet.safetensors")
    raw = core.open_volume(Path(os.environ["KDUNET_DATA"]) / "epfl-training-raw.tif")
    _, widget = opened(open_widget, qtbot, "Train teacher", raw.data[20:165:60].compute())
    text_after_find(qtbot, widget)
    assert widget.image_pixel_size.value == pytest.approx(5.0, rel=0.3)
