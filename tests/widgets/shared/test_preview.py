"""The slice on screen, segmented."""

import numpy as np
import pytest

from napari_kdunet import core
from napari_kdunet.widgets.shared import preview as preview_module
from napari_kdunet.widgets.shared.preview import Preview

WORLD = {"scale": (20.0, 10.0, 10.0), "translate": (100.0, 200.0, 300.0), "units": ("nm",) * 3}


@pytest.fixture(scope="module")
def model():
    import torch

    torch.manual_seed(0)
    return core.Model(core.KUNet(2), threshold=0.3)


@pytest.fixture
def viewer(make_napari_viewer):
    return make_napari_viewer()


@pytest.fixture
def em(viewer, tiny_em):
    return viewer.add_image(tiny_em[0], name="em", axis_labels=("z", "y", "x"), **WORLD)


@pytest.fixture
def settled(qtbot):
    def wait(preview):
        qtbot.waitUntil(lambda: not preview.is_busy, timeout=20_000)
        return preview

    return wait


def expected(model, raw, z):
    return core.predict(model, core.open_volume(raw, voxel_size=WORLD["scale"]))[z].compute()


def test_it_shows_the_slice_on_screen_on_the_grid_of_the_image(viewer, em, model, settled, tiny_em):
    viewer.dims.set_current_step(0, 2)
    preview = Preview(viewer, em)
    assert preview.layer is None
    preview.show(model)
    layer = settled(preview).layer
    assert layer.name == "em preview"
    assert layer.data.shape == (1, 96, 96)
    np.testing.assert_allclose(layer.scale, em.scale)
    np.testing.assert_allclose(layer.translate, (140, 200, 300))
    assert layer.units == em.units
    assert layer.axis_labels == em.axis_labels
    probability = expected(model, tiny_em[0], 2)
    np.testing.assert_allclose(preview.probability, probability, atol=1e-5)
    np.testing.assert_array_equal(layer.data[0], preview.probability > model.threshold)
    assert viewer.layers.selection.active is em, "the user's selection stays"


def test_it_follows_the_user(viewer, em, model, settled, tiny_em):
    preview = Preview(viewer, em)
    viewer.dims.set_current_step(0, 7)
    assert not preview.is_busy, "nothing to follow before a model is shown"
    preview.show(model)
    layer = settled(preview).layer
    for step in (1, 5, 3):  # the last one wins
        viewer.dims.set_current_step(0, step)
    settled(preview)
    assert preview.z == 3
    assert preview.layer is layer
    np.testing.assert_allclose(layer.translate[0], 100 + 3 * 20)
    np.testing.assert_allclose(preview.probability, expected(model, tiny_em[0], 3), atol=1e-5)


def test_what_is_out_of_date_is_not_shown(viewer, em, model, settled, tiny_em):
    other = core.Model(core.KUNet(1), threshold=0.9)
    preview = Preview(viewer, em)
    shown = []
    viewer.layers.events.inserted.connect(lambda event: shown.append((preview.z, preview.probability)))
    preview.show(other)
    preview.show(model)
    viewer.dims.set_current_step(0, 6)
    preview_data = settled(preview).layer.data
    ((z, probability),) = shown
    assert z == 6
    np.testing.assert_allclose(probability, expected(model, tiny_em[0], 6), atol=1e-5)
    np.testing.assert_array_equal(preview_data[0], probability > model.threshold)


def test_what_changes_while_a_slice_is_segmented_is_segmented_again(viewer, em, model, settled, tiny_em):
    preview = Preview(viewer, em)
    preview.show(model)
    em.data = tiny_em[0][::-1]  # the first is under way
    settled(preview)
    np.testing.assert_allclose(preview.probability, expected(model, tiny_em[0][::-1], preview.z), atol=1e-5)


def test_threshold_needs_no_prediction(viewer, em, model, settled):
    preview = Preview(viewer, em)
    preview.show(model)
    settled(preview)
    assert preview.threshold == model.threshold
    for threshold in (0.1, 0.6):
        preview.threshold = threshold
        assert not preview.is_busy
        np.testing.assert_array_equal(preview.layer.data[0], preview.probability > threshold)
    preview.threshold = None
    assert preview.threshold == model.threshold


def test_a_2d_image_gets_a_2d_preview(viewer, model, settled, tiny_em):
    em = viewer.add_image(tiny_em[0][0], name="flat", scale=(10, 10), units=("nm", "nm"))
    preview = Preview(viewer, em)
    preview.show(model)
    assert settled(preview).layer.data.shape == (96, 96)


def test_of_a_large_slice_it_shows_the_part_on_screen(viewer, model, settled, tiny_em, monkeypatch):
    """The middle of the screen, on the grid of the image, as all of it segmented has it; it follows the camera."""
    monkeypatch.setattr(preview_module, "_MOST", 48)
    monkeypatch.setattr(preview_module, "_STEP", 16)
    em = viewer.add_image(tiny_em[0], name="em", **WORLD)
    viewer.dims.set_current_step(0, 4)
    preview = Preview(viewer, em)
    preview.get_ready()
    assert preview.layer.data.shape == (1, 48, 48)
    whole = expected(model, tiny_em[0], 4)
    for middle, (y, x) in (((0, 0), (0, 0)), ((70, 40), (48, 16))):
        camera = getattr(viewer, "scene", viewer).camera
        camera.center = em.data_to_world((4, *middle))
        preview.show(model)
        layer = settled(preview).layer
        np.testing.assert_allclose(preview.probability, whole[y : y + 48, x : x + 48], atol=1e-5)
        assert layer.data.shape == (1, 48, 48)
        np.testing.assert_allclose(layer.data_to_world((0, 0, 0)), em.data_to_world((4, y, x)))
    camera.center = em.data_to_world((4, 10, 90))
    assert settled(preview).place == (4, slice(0, 48), slice(48, 96))
    preview.close()


def test_it_lies_right_on_an_image_turned_in_plane(viewer, model, settled, tiny_em):
    em = viewer.add_image(tiny_em[0], rotate=30, scale=(20, 10, 10), translate=(1, 2, 3))
    viewer.dims.set_point(0, em.data_to_world((4, 0, 0))[0])
    preview = Preview(viewer, em)
    preview.show(model)
    layer = settled(preview).layer
    np.testing.assert_allclose(layer.data_to_world((0, 7, 9)), em.data_to_world((preview.z, 7, 9)))


def test_it_shows_the_data_that_the_image_has_by_now(viewer, em, model, settled, tiny_em):
    preview = Preview(viewer, em)
    preview.show(model)
    settled(preview)
    other = tiny_em[0][::-1].copy()
    em.data = other
    preview.show(model)
    settled(preview)
    np.testing.assert_allclose(preview.probability, expected(model, other, preview.z), atol=1e-5)


def test_removing_the_layer_or_the_image_ends_it(viewer, em, model, settled):
    preview = Preview(viewer, em)
    preview.show(model)
    viewer.layers.remove(settled(preview).layer)
    assert preview.is_closed
    preview.show(model)
    assert not preview.is_busy
    again = Preview(viewer, em)
    again.show(model)
    settled(again)
    viewer.layers.remove(em)
    assert again.is_closed
    assert list(viewer.layers) == []


def test_closing_takes_the_layer_away_even_while_it_works(viewer, em, model, settled):
    preview = Preview(viewer, em)
    preview.show(model)
    preview.close()
    preview.close()
    settled(preview)
    assert list(viewer.layers) == [em]


def test_an_error_is_notified_and_the_next_request_works(viewer, em, model, settled, notified, monkeypatch):
    preview = Preview(viewer, em)

    def fail(*_, **__):
        raise RuntimeError("CUDA out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(core, "predict", fail)
        preview.show(model)
        settled(preview)
    assert len(notified) == 1
    assert "Out of memory" in notified[0]
    preview.show(model)
    assert settled(preview).layer is not None


def test_slices_that_are_scrolled_past_can_be_left_out(viewer, em, model, settled, qtbot):
    preview = Preview(viewer, em, rest=50)
    preview.show(model)
    settled(preview)
    predicted = []
    viewer.layers["em preview"].events.data.connect(lambda: predicted.append(preview.z))
    for z in range(1, 7):
        viewer.dims.set_current_step(0, z)
    qtbot.waitUntil(lambda: preview.z == 6)
    assert predicted == [6]
    viewer.dims.set_current_step(0, 2)
    assert preview.is_busy, "it waits whether the user stays"
    preview.close()
    assert not preview.is_busy


def test_there_is_one_an_image_called_after_it_and_unlike_a_mask(viewer, em, model, settled):
    first, second = Preview(viewer, em), Preview(viewer, em)
    first.get_ready()
    second.get_ready()
    assert first.is_closed
    assert [layer.name for layer in viewer.layers] == ["em", "em preview"]
    em.name = "hippocampus"
    assert second.layer.name == "hippocampus preview"
    assert second.layer.contour > 0, "an outline: what lies under it is seen"


def test_another_scale_segments_again(viewer, em, model, settled, tiny_em):
    preview = Preview(viewer, em)
    preview.show(model)
    settled(preview)
    em.scale = (20.0, 5.0, 5.0)
    settled(preview)
    volume = core.open_volume(tiny_em[0], voxel_size=(20, 5, 5))
    np.testing.assert_allclose(preview.probability, core.predict(model, volume)[preview.z].compute(), atol=1e-5)
    np.testing.assert_allclose(preview.layer.scale, em.scale)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("translate", (0.0, 50.0, 70.0)),
        ("rotate", (0, 0, 30)),
        ("shear", (0.0, 0.0, 0.2)),
        ("affine", np.array([[1, 0, 0, 7], [0, 1, 0, 30], [0, 0, 1, 60], [0, 0, 0, 1]], float)),
    ],
)
def test_it_goes_where_the_image_is_moved(em, viewer, model, settled, name, value):
    preview = Preview(viewer, em)
    preview.show(model)
    settled(preview)
    setattr(em, name, value)
    settled(preview)
    for corner in np.eye(4)[:, :3]:
        placed = preview.layer.data_to_world(corner)
        np.testing.assert_allclose(placed, em.data_to_world(np.add(corner, (preview.z, 0, 0))), atol=1e-6)


def test_an_image_that_gets_other_axes_is_shown_or_told_of(em, viewer, model, settled, tiny_em, notified):
    """A preview of other axes than its data would keep napari from drawing, and from closing, any layer."""
    told = []
    preview = Preview(viewer, em, on_error=told.append)
    preview.show(model)
    settled(preview)
    raw = tiny_em[0]
    em.data = raw[2]
    settled(preview)
    assert preview.layer.data.shape == (96, 96)
    np.testing.assert_array_equal(preview.layer.data, preview.probability > model.threshold)
    em.data = np.stack([raw, raw])
    preview.threshold = 0.4
    preview.show(model)
    assert len(notified) == 1, "once, however often a training shows its model"
    assert [str(error) for error in told] == notified
    assert notified[0].startswith("the layer em has 4 axes (2, 8, 96, 96)")
    em.data = raw
    settled(preview)
    assert preview.layer.data.shape == (1, 96, 96)
    np.testing.assert_allclose(preview.layer.translate, np.add(em.translate, preview.z * np.array([em.scale[0], 0, 0])))
    viewer.layers.clear()
    assert preview.is_closed
