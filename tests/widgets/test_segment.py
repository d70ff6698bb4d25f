"""*Segment*, opened through the manifest and driven by its controls."""

import gc
import threading

import dask.array as da
import numpy as np
import pytest
import torch

from napari_kdunet import core
from napari_kdunet.widgets.segmentation import result, volume_segmentation
from napari_kdunet.widgets.shared.models import models

GRID = {
    "scale": (50, 20, 20),
    "units": ("nm", "nm", "nm"),
    "translate": (100, 40, 60),
    "axis_labels": ("z", "y", "x"),
}
NM = (50.0, 20.0, 20.0)


def expected(model, raw, threshold):
    return core.predict(model, core.open_volume(raw, voxel_size=NM), output="labels", threshold=threshold).compute()


@pytest.fixture
def segment(open_widget, em, tiny_model, qtbot):
    """The widget with an image and a model that is read."""
    viewer, widget = open_widget("Segment")
    viewer.add_image(em[0], name="raw", **GRID)
    models.add("tiny", tiny_model)
    widget.model.value = "tiny"
    qtbot.waitUntil(lambda: widget.loaded is tiny_model)
    return viewer, widget


def test_what_a_new_user_sees_is_segmented_by_one_click(open_widget, em, tiny_model, qtbot, tmp_path, bundle):
    """A bundled model stands there by name; of an image without a unit it is said how its pixels are taken."""
    model = core.Model(tiny_model.net, pixel_size=20.0, threshold=tiny_model.threshold)
    bundle(model.save(tmp_path / "em-k2.safetensors"))
    viewer, widget = open_widget("Segment")
    assert widget.model.value == "em-k2"
    image = viewer.add_image(em[0], name="raw")
    qtbot.waitUntil(lambda: widget.loaded is not None)
    assert widget.description.value.startswith(f"{tiny_model.parameter_count:,} parameters, works at 20 nm")
    assert "pixel size of raw is not known: its pixels are assumed to be that wide" in widget.description.value
    widget.start_button.native.click()
    qtbot.waitUntil(lambda: not widget.segmentation.is_running)
    np.testing.assert_array_equal(
        viewer.layers["raw em-k2 mask"].data, expected(tiny_model, em[0], tiny_model.threshold)
    )
    image.scale, image.units = (20.0,) * 3, ("nm",) * 3
    assert "taken as" not in widget.description.value, "at once"


def test_a_model_that_is_averaged_over_views(segment, tiny_model, qtbot):
    """As `predict` does it, and as the panel says."""
    viewer, widget = segment
    model = core.Model(tiny_model.net, pixel_size=0, threshold=tiny_model.threshold, summary={"views": 4})
    widget.model.value = models.add("averaged", model)
    qtbot.waitUntil(lambda: widget.loaded is model)
    assert "looks at each slice 4 times" in widget.description.value
    widget.start()
    finished(qtbot, widget)
    raw, mask = viewer.layers["raw"].data, viewer.layers["raw averaged mask"].data
    four, one = (np.asarray(core.predict(model, raw, output="labels", views=views)) for views in (4, 1))
    np.testing.assert_array_equal(mask, four)
    assert (four != one).sum() > 20


def test_views_that_the_user_chooses(segment, tiny_model, qtbot):
    """Mask, preview and batch are averaged over them; the threshold stays, and the mask follows it."""
    viewer, widget = segment
    raw = viewer.layers["raw"].data
    eight, one = (np.asarray(core.predict(tiny_model, raw, views=views)) for views in (8, 1))
    widget.threshold.value = 0.45
    widget.start()
    finished(qtbot, widget)
    widget.views.value = 8
    assert "looks at each slice 8 times" in widget.description.value
    assert widget.threshold.value == pytest.approx(0.45), "the user's"
    widget.threshold.value = 0.4
    qtbot.waitUntil(lambda: not widget.segmentation.is_busy)
    np.testing.assert_array_equal(viewer.layers["raw tiny mask"].data, one > 0.4)
    widget.live.value = True
    qtbot.waitUntil(lambda: widget.preview.probability is not None)
    np.testing.assert_allclose(widget.preview.probability, eight[widget.preview.z], atol=1e-3)
    widget.start()
    finished(qtbot, widget)
    mask = viewer.layers["raw tiny mask"].data
    np.testing.assert_array_equal(mask, eight > 0.4)
    assert (mask != (one > 0.4)).sum() > 20
    assert widget.loaded.views == 8
    widget.views.value = 0
    assert widget.loaded is tiny_model


@pytest.fixture
def cube(segment, em, tiny_model, monkeypatch):
    """The panel with an isotropic volume of three blocks, and what three planes make of it."""
    viewer, widget = segment
    raw, real = np.concatenate([em[0], em[0][::-1]] * 5), core.predict
    image = viewer.add_image(raw, name="cube", scale=(20,) * 3, units="nm")
    widget.image.value = image
    monkeypatch.setattr(result.core, "predict", lambda *a, **how: real(*a, **how, **_blocks(how)))
    volume = core.open_volume(raw, voxel_size=(20,) * 3)
    return viewer, widget, real(tiny_model, volume, planes="zyx").compute()


def _blocks(how):
    return {"tile": 16} if how.get("planes") == "zyx" else {}


def test_three_planes_are_segmented_block_by_block(cube, tiny_model, qtbot):
    viewer, widget, planes = cube
    widget.planes.value = "zyx"
    widget.start_button.native.click()
    qtbot.waitUntil(lambda: widget.bar.value() > 0)
    widget.stop_button.native.click()
    finished(qtbot, widget)
    done = widget.segmentation.result.tiles_done
    assert 1 < np.count_nonzero(done) < len(planes), "a block of slices at a time, the rest not yet"
    assert "goes on from here" in widget.status.text()
    widget.planes.value = "z"
    assert "begins anew" in widget.status.text()
    widget.planes.value = "zyx"
    before = done.sum()
    widget.start_button.native.click()
    assert widget.segmentation.result.tiles_done.sum() >= before
    finished(qtbot, widget)
    threshold, mask = widget.threshold.value, viewer.layers["cube tiny mask"]
    np.testing.assert_array_equal(mask.data, planes > threshold)
    volume = core.open_volume(viewer.layers["cube"].data, voxel_size=(20,) * 3)
    assert (mask.data != core.predict(tiny_model, volume, output="labels").compute()).sum() > 100
    widget.threshold.value = threshold + 0.02
    qtbot.waitUntil(lambda: not widget.segmentation.is_busy)
    assert (mask.data != (planes > threshold + 0.02)).mean() < 2e-3


def test_three_planes_of_a_stack_of_sections_are_refused(segment, qtbot, notified):
    viewer, widget = segment
    widget.planes.value = "zyx"
    widget.start_button.native.click()
    finished(qtbot, widget)
    assert "voxels of raw are 50 x 20 x 20 nm" in widget.error_label.text()
    assert widget.error_label.text().endswith("take planes z.")
    widget.planes.value = "z"
    widget.start_button.native.click()
    finished(qtbot, widget)
    assert widget.segmentation.result.done.all()
    mask = widget.segmentation.mask
    widget.planes.value = "zyx"
    widget.start_button.native.click()
    assert widget.segmentation.mask is mask, "the good one stays"
    assert mask in viewer.layers


def test_of_a_model_chosen_amid_a_click_the_threshold_counts(segment, tiny_model, qtbot):
    viewer, widget = segment
    models.add("other", core.Model(tiny_model.net, pixel_size=0, threshold=0.3))
    widget.model.value = "other"
    widget.start()  # before it is read for the panel
    finished(qtbot, widget)
    assert widget.threshold.value == pytest.approx(0.3)
    np.testing.assert_array_equal(
        viewer.layers["raw other mask"].data, expected(tiny_model, viewer.layers["raw"].data, 0.3)
    )


def test_a_model_that_sees_neighbouring_slices(segment, qtbot):
    viewer, widget = segment
    torch.manual_seed(0)
    model = core.Model(core.KUNet(k=1, bn=False, depth=2, context=1), pixel_size=0, context_distance=100.0)
    models.add("wide", model)
    widget.model.value = "wide"
    qtbot.waitUntil(lambda: widget.loaded is model)
    assert "sees 1 neighbouring slice" in widget.description.value
    widget.live.value = True
    qtbot.waitUntil(lambda: widget.preview is not None and widget.preview.probability is not None)
    volume = core.open_volume(viewer.layers["raw"].data, voxel_size=NM)
    probability = core.predict(model, volume).compute()
    np.testing.assert_allclose(widget.preview.probability, probability[widget.preview.z], atol=1e-6)
    widget.threshold.value = round(float(np.median(probability)), 3)
    widget.start_button.native.click()
    qtbot.waitUntil(lambda: not widget.segmentation.is_running)
    mask = expected(model, viewer.layers["raw"].data, widget.threshold.value)
    assert 0.2 < mask.mean() < 0.8
    np.testing.assert_array_equal(viewer.layers["raw wide mask"].data, mask)


def test_a_model_that_cannot_be_read_is_said_in_the_panel_and_used_no_more(segment, tmp_path, qtbot, bundle, notified):
    viewer, widget = segment
    widget.live.value = True
    qtbot.waitUntil(lambda: widget.preview is not None and widget.preview.probability is not None)
    path = models.get("tiny").save(tmp_path / "cut.safetensors")
    path.write_bytes(path.read_bytes()[:-100])
    bundle(path)
    models.changed.emit()
    widget.model.value = "cut"
    qtbot.waitUntil(lambda: widget.loaded is None)
    assert widget.error_label.text() == notified[-1]
    assert "cut.safetensors" in notified[-1]
    assert [layer.name for layer in viewer.layers] == ["raw"], "the preview was the other model's"
    widget.model.value = "tiny"
    qtbot.waitUntil(lambda: widget.loaded is not None)
    assert widget.error_label.isHidden()
    widget.model.open(path)
    qtbot.waitUntil(lambda: not widget.error_label.isHidden())
    assert widget.error_label.text() == notified[-1]
    assert (widget.model.value, len(notified)) == ("tiny", 2)


@pytest.fixture
def gate(monkeypatch):
    """Holds the work back before each slice until it is let go; counts the slices that were predicted."""

    class Gate:
        def __init__(self):
            self.slices, self.open = [], threading.Event()
            self.open.set()
            self.may = threading.Semaphore(0)

        def hold(self):
            self.open.clear()

        def let(self, count):
            for _ in range(count):
                self.may.release()

        def release(self):
            self.open.set()
            self.let(1)

    gate, put = Gate(), result.Result.put

    def held(self, z, *args):
        while not gate.open.is_set() and not gate.may.acquire(timeout=0.05):
            pass
        gate.slices.append(z)
        put(self, z, *args)

    monkeypatch.setattr(result.Result, "put", held)
    yield gate
    gate.release()


def finished(qtbot, widget):
    qtbot.waitUntil(lambda: not widget.segmentation.is_running, timeout=20_000)


def stopped_after(slices, widget, qtbot, gate):
    """Segment so many slices and perhaps one more, and stop."""
    gate.hold()
    widget.start_button.native.click()
    gate.let(slices)
    qtbot.waitUntil(lambda: widget.bar.value() == slices)
    widget.stop_button.native.click()
    gate.release()
    finished(qtbot, widget)


def test_volume_becomes_a_labels_layer_like_the_image(segment, em, tiny_model, qtbot):
    viewer, widget = segment
    assert widget.threshold.value == pytest.approx(tiny_model.threshold)
    widget.start_button.native.click()
    finished(qtbot, widget)
    mask = viewer.layers["raw tiny mask"]
    assert mask._type_string == "labels"
    np.testing.assert_array_equal(mask.data, expected(tiny_model, em[0], widget.threshold.value))
    assert 0 < mask.data.mean() < 1
    raw = viewer.layers["raw"]
    np.testing.assert_array_equal(mask.scale, raw.scale)
    np.testing.assert_array_equal(mask.translate, raw.translate)
    assert mask.units == raw.units
    assert mask.axis_labels == raw.axis_labels
    np.testing.assert_array_equal(mask.extent.world, raw.extent.world)
    assert widget.start_button.enabled
    assert not widget.stop_button.enabled
    assert widget.bar.value() == widget.bar.maximum() == len(em[0])


def test_it_fills_in_from_the_slice_on_screen(segment, em, qtbot, gate):
    viewer, widget = segment
    viewer.dims.set_current_step(0, 3)
    gate.hold()
    widget.start_button.native.click()
    gate.let(1)
    qtbot.waitUntil(lambda: widget.bar.value() == 1)
    assert gate.slices == [3]
    mask = viewer.layers["raw tiny mask"]
    assert mask.data[3].any()
    assert not mask.data[[0, 1, 2, 4]].any()
    viewer.dims.set_current_step(0, 0)
    gate.release()
    finished(qtbot, widget)
    assert gate.slices[2] == 0  # one was under way when the user moved


def test_a_large_slice_fills_in_tile_by_tile(segment, qtbot, gate):
    """It shows how far it is, stops amid the slice, and goes on from there."""
    viewer, widget = segment
    large = np.random.default_rng(0).integers(0, 255, (2000, 2100), np.uint8)
    widget.image.value = viewer.add_image(large, name="large", scale=(20.0, 20.0), units=("nm", "nm"))
    gate.hold()
    widget.start()
    gate.let(2)
    qtbot.waitUntil(lambda: widget.bar.value() == 2)
    tiles = widget.bar.maximum()
    assert tiles > 4
    assert f"0 of 1 slices, 2 of {tiles} tiles" in widget.status.text()
    mask = viewer.layers["large tiny mask"].data
    assert mask[:1000, :1000].any()
    assert not mask[1500:].any()
    widget.stop()
    gate.let(1)
    finished(qtbot, widget)
    assert 2 <= widget.bar.value() <= 3
    gate.release()
    widget.start()
    finished(qtbot, widget)
    assert len(gate.slices) == tiles, "no tile twice"
    model = models.get("tiny")
    whole = core.predict(model, large, output="labels", threshold=widget.threshold.value).compute()[0]
    assert (viewer.layers["large tiny mask"].data == whole).mean() > 0.9999


def test_of_what_napari_cannot_draw_at_once_a_pyramid_is_shown(segment, em, tiny_model, qtbot, monkeypatch):
    """The window waits neither for a redraw of all of it nor for a new threshold; its mask makes room for another."""
    monkeypatch.setattr(result, "_DRAWN_WHOLE", 79)
    monkeypatch.setattr(result, "_COARSEST", 20)
    monkeypatch.setattr(volume_segmentation, "_AT_ONCE", 64 * 80 - 1)
    viewer, widget = segment
    widget.show_probability.value = True
    widget.start()
    finished(qtbot, widget)
    mask, layer = viewer.layers["raw tiny mask"], viewer.layers["raw tiny probability"]
    for each, dtype in ((mask, np.uint8), (layer, np.float16)):
        assert [level.shape for level in each.data] == [(5, 64, 80), (5, 32, 40), (5, 16, 20)]
        assert each.dtype == dtype
    np.testing.assert_array_equal(mask.data[0], expected(tiny_model, em[0], widget.threshold.value))
    np.testing.assert_array_equal(mask.data[1], mask.data[0][:, ::2, ::2])
    assert "napari cannot paint" in widget.status.text()
    threads, apply = set(), result.Result.apply

    def applied(*args):
        threads.add(threading.current_thread())
        apply(*args)

    monkeypatch.setattr(result.Result, "apply", applied)
    widget.threshold.value = tiny_model.threshold + 0.02
    qtbot.waitUntil(lambda: not widget.segmentation.is_busy)
    assert threads
    assert threading.main_thread() not in threads
    assert (mask.data[0] != expected(tiny_model, em[0], tiny_model.threshold + 0.02)).mean() < 2e-3
    widget.start()
    finished(qtbot, widget)
    assert mask not in viewer.layers
    assert "raw tiny mask" in viewer.layers


def test_a_slice_that_is_read_for_long_can_be_stopped(segment, qtbot):
    """Its mean is taken before its first tile, strip by strip."""
    viewer, widget = segment
    read, strips = [], threading.Semaphore(0)

    def strip(block_info=None):
        read.append(block_info)
        strips.acquire(timeout=20)
        return np.full((1024, 4096), 7, np.uint8)

    lazy = da.map_blocks(strip, chunks=((1024,) * 16, (4096,)), dtype=np.uint8, meta=np.empty((0, 0), np.uint8))
    for _ in range(100):
        strips.release()
    widget.image.value = viewer.add_image(lazy, name="slow", contrast_limits=(0, 255), visible=False)
    while strips.acquire(blocking=False):
        pass
    before = len(read)
    widget.start()
    qtbot.waitUntil(lambda: len(read) > before)
    widget.stop()
    for _ in range(3):
        strips.release()
    finished(qtbot, widget)
    for _ in range(100):
        strips.release()
    assert len(read) < before + 10
    assert widget.start_button.enabled


def test_threshold_changes_the_mask_without_predicting(segment, em, tiny_model, qtbot, gate):
    viewer, widget = segment
    widget.start_button.native.click()
    finished(qtbot, widget)
    mask, before = viewer.layers["raw tiny mask"], len(gate.slices)
    shares = []
    for change in (0.02, -0.02, 0.0):
        threshold = tiny_model.threshold + change
        widget.threshold.value = threshold
        z, wanted = viewer.dims.current_step[0], expected(tiny_model, em[0], threshold)
        assert (mask.data[z] != wanted[z]).mean() < 2e-3  # the slice on screen at once; kept as float16
        qtbot.waitUntil(lambda: not widget.segmentation.is_busy)
        assert (mask.data != wanted).mean() < 2e-3
        shares.append(mask.data.mean())
    assert shares[0] < shares[2] < shares[1]
    assert len(gate.slices) == before


def test_threshold_leaves_what_was_painted(segment, tiny_model, qtbot):
    viewer, widget = segment
    widget.start_button.native.click()
    finished(qtbot, widget)
    mask = viewer.layers["raw tiny mask"]
    sure = np.unravel_index(np.argmin(widget.segmentation.result.probability), mask.data.shape)
    mask.data_setitem(tuple(np.array([i]) for i in sure), 7)
    widget.threshold.value = tiny_model.threshold + 0.01
    qtbot.waitUntil(lambda: not widget.segmentation.is_busy)
    assert mask.data[sure] == 7
    mask.undo()
    assert mask.data[sure] == 0


def test_a_slice_without_an_image_is_told(segment, em, qtbot):
    viewer, widget = segment
    raw = em[0].copy()
    raw[[1, 3]] = 7
    widget.image.value = viewer.add_image(raw, name="lost", scale=(20,) * 3, units="nm")
    widget.start_button.native.click()
    finished(qtbot, widget)
    assert "No image at z = 1,3: taken as background." in widget.status.text()
    assert not viewer.layers["lost tiny mask"].data[[1, 3]].any()


def test_stop_keeps_what_is_done_and_start_goes_on(segment, em, tiny_model, qtbot, gate):
    viewer, widget = segment
    gate.hold()
    widget.start_button.native.click()
    widget.start_button.native.click()  # twice does no harm
    gate.let(2)
    qtbot.waitUntil(lambda: widget.bar.value() == 2)
    widget.stop_button.native.click()
    gate.let(1)
    finished(qtbot, widget)
    assert widget.start_button.enabled
    assert "Stopped" in widget.status.text()
    mask = viewer.layers["raw tiny mask"]
    done = widget.segmentation.result.done
    assert 2 <= done.sum() < len(em[0])
    np.testing.assert_array_equal(mask.data[done], expected(tiny_model, em[0], widget.threshold.value)[done])
    gate.release()
    widget.start_button.native.click()
    finished(qtbot, widget)
    assert sorted(gate.slices) == list(range(len(em[0])))  # none twice
    np.testing.assert_array_equal(mask.data, expected(tiny_model, em[0], widget.threshold.value))
    assert len(viewer.layers) == 2


def test_an_image_given_other_data_meanwhile_is_begun_anew(segment, em, tiny_model, qtbot, gate):
    viewer, widget = segment
    stopped_after(2, widget, qtbot, gate)
    other = em[0][::-1, :48].copy()
    viewer.layers["raw"].data = other
    widget.start_button.native.click()
    finished(qtbot, widget)
    mask = viewer.layers["raw tiny mask"]
    np.testing.assert_array_equal(mask.data, expected(tiny_model, other, widget.threshold.value))


def test_probability_layer_on_demand(segment, em, tiny_model, qtbot):
    viewer, widget = segment
    widget.show_probability.value = True
    assert len(viewer.layers) == 1  # nothing to show yet
    widget.start_button.native.click()
    finished(qtbot, widget)
    layer = viewer.layers["raw tiny probability"]
    wanted = core.predict(tiny_model, core.open_volume(em[0], voxel_size=NM)).compute()
    np.testing.assert_allclose(layer.data, wanted, atol=1e-3)
    np.testing.assert_array_equal(layer.scale, GRID["scale"])
    widget.show_probability.value = False
    assert "raw tiny probability" not in viewer.layers
    widget.show_probability.value = True
    viewer.layers.remove("raw tiny probability")
    assert not widget.show_probability.value


def test_a_probability_layer_that_the_user_removes_meanwhile_comes_back_by_its_box(segment, qtbot):
    """Unticked at once, and ticked again it is shown again; a new start shows it too, whichever layer lies on top."""
    viewer, widget = segment
    widget.show_probability.value = True
    widget.start()
    viewer.layers.remove("raw tiny probability")
    assert widget.segmentation.is_running
    assert not widget.show_probability.value
    widget.show_probability.value = True
    assert "raw tiny probability" in viewer.layers
    finished(qtbot, widget)
    viewer.layers.move(viewer.layers.index("raw tiny probability"), 0)
    widget.start()
    assert widget.show_probability.value
    assert "raw tiny probability" in viewer.layers
    finished(qtbot, widget)


def test_live_follows_the_data_of_the_image(segment, em, tiny_model, qtbot):
    viewer, widget = segment
    widget.live.value = True
    qtbot.waitUntil(lambda: widget.preview is not None and widget.preview.layer is not None)
    viewer.layers["raw"].data = raw = em[0][::-1].copy()
    z, wanted = widget.preview.z, expected(tiny_model, raw, widget.threshold.value)
    qtbot.waitUntil(lambda: np.array_equal(widget.preview.layer.data[0], wanted[z]))


def test_a_mask_whose_data_were_replaced_is_said_to_follow_no_more(segment, qtbot):
    viewer, widget = segment
    widget.start()
    finished(qtbot, widget)
    mask = viewer.layers["raw tiny mask"]
    mask.data = mask.data.copy()
    widget.threshold.value = 0.3
    assert "the threshold no longer changes it" in widget.status.text()


def test_the_threshold_moves_the_mask_again_after_another_model(segment, tiny_model, qtbot):
    viewer, widget = segment
    widget.views.value = 2
    widget.start()
    finished(qtbot, widget)
    models.add("other", core.Model(core.KUNet(1, depth=2), pixel_size=0, threshold=0.2))
    for name in ("other", "tiny"):
        widget.model.value = name
        qtbot.waitUntil(lambda name=name: widget.loaded is not None and widget.loaded.net is models.get(name).net)
    widget.threshold.value = 0.99
    qtbot.waitUntil(lambda: not widget.segmentation.is_busy)
    assert not viewer.layers["raw tiny mask"].data.any()


def test_live_follows_slice_threshold_and_box(segment, em, tiny_model, qtbot):
    viewer, widget = segment
    widget.live.value = True
    qtbot.waitUntil(lambda: widget.preview is not None and widget.preview.layer is not None)
    layer, wanted = widget.preview.layer, expected(tiny_model, em[0], widget.threshold.value)
    np.testing.assert_array_equal(layer.data[0], wanted[widget.preview.z])
    viewer.dims.set_current_step(0, 4)
    qtbot.waitUntil(lambda: widget.preview.z == 4)
    np.testing.assert_array_equal(layer.data[0], wanted[4])
    threshold = widget.threshold.value + 0.02
    widget.threshold.value = threshold
    np.testing.assert_array_equal(layer.data[0], expected(tiny_model, em[0], threshold)[4])
    viewer.layers.remove(layer)
    assert not widget.live.value
    widget.live.value = True
    qtbot.waitUntil(lambda: widget.preview is not None and widget.preview.layer is not None)
    widget.live.value = False
    assert [layer.name for layer in viewer.layers] == ["raw"]


class Counted:
    """An array that knows which slices were read, and refuses to be read whole."""

    def __init__(self, data):
        self.data, self.shape, self.dtype, self.ndim = data, data.shape, data.dtype, data.ndim
        self.reads = []

    def __getitem__(self, key):
        block = self.data[key]
        self.reads.append(block.size)
        return block


def test_lazy_image_is_read_slice_by_slice(open_widget, em, tiny_model, qtbot):
    counted = Counted(em[0])
    viewer, widget = open_widget("Segment")
    viewer.add_image(da.from_array(counted, chunks=(1, -1, -1), meta=em[0][:0]), name="lazy", contrast_limits=(0, 255))
    models.add("tiny", tiny_model)
    qtbot.waitUntil(lambda: widget.loaded is tiny_model)
    counted.reads.clear()
    widget.start_button.native.click()
    finished(qtbot, widget)
    assert max(counted.reads) == em[0][0].size
    assert widget.segmentation.result.done.all()
    np.testing.assert_array_equal(
        viewer.layers["lazy tiny mask"].data,
        core.predict(tiny_model, em[0], output="labels", threshold=widget.threshold.value).compute(),
    )


def test_beyond_memory_it_goes_to_a_temporary_zarr(segment, em, tiny_model, qtbot, monkeypatch):
    viewer, widget = segment
    monkeypatch.setattr(result.psutil, "virtual_memory", lambda: type("M", (), {"available": 1000})())
    widget.show_probability.value = True
    widget.start_button.native.click()
    finished(qtbot, widget)
    mask, folder = viewer.layers["raw tiny mask"], widget.segmentation.result.folder
    assert folder.exists()
    assert str(folder) in widget.status.text()
    assert not isinstance(mask.data, np.ndarray)
    np.testing.assert_array_equal(mask.data[:], expected(tiny_model, em[0], widget.threshold.value))
    widget.threshold.value = tiny_model.threshold + 0.02
    qtbot.waitUntil(lambda: not widget.segmentation.is_busy)
    assert (mask.data[:] != expected(tiny_model, em[0], tiny_model.threshold + 0.02)).mean() < 2e-3
    mask.data_setitem((np.array([0]), np.array([1]), np.array([2])), 5)
    assert mask.data[0, 1, 2] == 5
    viewer.layers.clear()
    del mask
    gc.collect()
    assert not folder.exists()


def test_no_room_on_disk_is_told(segment, qtbot, monkeypatch, notified):
    viewer, widget = segment
    monkeypatch.setattr(result.psutil, "virtual_memory", lambda: type("M", (), {"available": 1000})())
    monkeypatch.setattr(result.shutil, "disk_usage", lambda _: type("D", (), {"free": 1000})())
    widget.start_button.native.click()
    assert "make room" in notified[0]
    assert widget.start_button.enabled
    assert len(viewer.layers) == 1


def test_multiclass_mask_holds_classes(open_widget, em, qtbot):
    torch.manual_seed(1)
    model = core.Model(core.KUNet(k=2, bn=False, depth=2, classes=3), pixel_size=0, class_names=("none", "a", "b"))
    viewer, widget = open_widget("Segment")
    viewer.add_image(em[0], name="raw")
    models.add("three", model)
    qtbot.waitUntil(lambda: widget.loaded is model)
    widget.start_button.native.click()
    finished(qtbot, widget)
    mask = viewer.layers["raw three mask"]
    np.testing.assert_array_equal(
        mask.data, core.predict(model, em[0], output="labels", threshold=widget.threshold.value).compute()
    )
    assert mask.data.max() == 2
    widget.threshold.value = 0.8
    qtbot.waitUntil(lambda: not widget.segmentation.is_busy)
    assert (mask.data != core.predict(model, em[0], output="labels", threshold=0.8).compute()).mean() < 2e-3


def test_outlines_are_in_the_mask_and_go_on_to_objects(open_widget, em, qtbot):
    """Of a model with outlines the mask is one colour; *Objects* splits by them, in its preview too."""
    torch.manual_seed(1)
    names = ("background", "mitochondrion", "boundary")
    model = core.Model(core.KUNet(k=2, bn=False, depth=2, classes=3), pixel_size=0, class_names=names)
    viewer, widget = open_widget("Segment")
    viewer.add_image(em[0], name="raw", scale=(10, 10, 10), units=("nm",) * 3)
    models.add("outlined", model)
    qtbot.waitUntil(lambda: widget.loaded is model)
    widget.start_button.native.click()
    finished(qtbot, widget)
    mask = viewer.layers["raw outlined mask"]
    level = widget.threshold.value
    expected = core.predict(model, em[0], output="labels", threshold=level).compute()
    assert set(np.unique(mask.data)) == {0, 1}
    np.testing.assert_array_equal(mask.data, expected)
    _, objects = viewer.window.add_plugin_dock_widget("napari-kdunet", "Objects")
    objects.source.value, objects.min_diameter.value = mask, 0
    objects.start()
    qtbot.waitUntil(lambda: objects.worker is None and objects.table is not None, timeout=120_000)
    outlines = core.predict(model, em[0], output="boundary")
    wanted, without = (
        np.asarray(core.instances(mask.data, objects.config, boundary=each, voxel_size=(10, 10, 10)))
        for each in (outlines, None)
    )
    assert not np.array_equal(wanted, without)
    np.testing.assert_array_equal(objects.layer.data, wanted)


def test_2d_image(open_widget, em, tiny_model, qtbot):
    viewer, widget = open_widget("Segment")
    viewer.add_image(em[0][0], name="flat", scale=(5, 5))
    models.add("tiny", tiny_model)
    qtbot.waitUntil(lambda: widget.loaded is tiny_model)
    widget.start_button.native.click()
    finished(qtbot, widget)
    wanted = core.predict(tiny_model, em[0][:1], output="labels", threshold=widget.threshold.value).compute()[0]
    np.testing.assert_array_equal(viewer.layers["flat tiny mask"].data, wanted)


def test_wrong_images_are_told(open_widget, tiny_model, qtbot, notified):
    viewer, widget = open_widget("Segment")
    widget.start_button.native.click()
    assert "model" in notified[-1]
    models.add("tiny", tiny_model)
    qtbot.waitUntil(lambda: widget.loaded is tiny_model)
    widget.start_button.native.click()
    assert "no image layer" in notified[-1]
    viewer.add_image(np.zeros((3, 32, 32, 3), np.uint8), rgb=True, name="colour")
    widget.start_button.native.click()
    assert "RGB" in notified[-1]
    viewer.layers.clear()
    viewer.add_image(np.zeros((2, 3, 32, 32), np.uint8), name="four")
    widget.start_button.native.click()
    assert "4 axes" in notified[-1]
    two = viewer.add_image(np.zeros((2, 32, 32), np.uint8), name="two", axis_labels=("c", "y", "x"))
    widget.image.value = two
    widget.start_button.native.click()
    assert "2 channels rather than slices: choose one under Image" in notified[-1]
    assert widget.error_label.text() == notified[-1], "in full in the panel"
    assert len(notified) == 5
    assert widget.start_button.enabled
    assert len(viewer.layers) == 2


def test_removing_layers_meanwhile_breaks_nothing(segment, qtbot, gate, notified):
    viewer, widget = segment
    gate.hold()
    widget.start_button.native.click()
    gate.let(1)
    qtbot.waitUntil(lambda: widget.bar.value() == 1)
    viewer.layers.remove("raw tiny mask")
    gate.release()
    finished(qtbot, widget)
    assert widget.start_button.enabled
    assert not widget.bar.isVisibleTo(widget.native)
    gate.hold()
    widget.start_button.native.click()
    viewer.layers.remove("raw")
    gate.release()
    finished(qtbot, widget)
    assert widget.segmentation.result.done.all()
    assert not notified


def test_the_preview_goes_with_the_panel(segment, qtbot):
    viewer, _ = segment
    dock, widget = viewer.window.add_plugin_dock_widget("napari-kdunet", "Segment")
    qtbot.waitUntil(lambda: widget.loaded is not None)
    widget.live.value = True
    qtbot.waitUntil(lambda: widget.preview.layer is not None)
    layer = widget.preview.layer
    dock.destroyOnClose()
    assert layer not in viewer.layers


def test_closed_amid_work_and_docked_again_it_goes_on(segment, em, tiny_model, qtbot, gate):
    viewer, _ = segment
    dock, widget = viewer.window.add_plugin_dock_widget("napari-kdunet", "Segment")
    qtbot.waitUntil(lambda: widget.loaded is not None)
    widget.image.value, widget.model.value = viewer.layers["raw"], "tiny"
    qtbot.waitUntil(lambda: widget.loaded is tiny_model)
    gate.hold()
    widget.start_button.native.click()
    gate.let(1)
    qtbot.waitUntil(lambda: widget.bar.value() == 1)
    dock.destroyOnClose()
    viewer.window.add_dock_widget(widget, name="again")
    assert not widget.segmentation.is_running
    assert widget.start_button.enabled
    widget.start_button.native.click()
    gate.release()  # the slice of the first start may end too, and counts once
    finished(qtbot, widget)
    result = widget.segmentation.result
    assert result.tiles_done.tolist() == [1] * len(em[0])
    np.testing.assert_array_equal(result.mask, expected(tiny_model, em[0], widget.threshold.value))


def test_closing_the_viewer_meanwhile_breaks_nothing(segment, qtbot, gate, notified):
    viewer, widget = segment
    widget.live.value = True
    gate.hold()
    widget.start_button.native.click()
    gate.let(1)
    qtbot.waitUntil(lambda: widget.bar.value() == 1)
    viewer.close()
    gate.release()
    qtbot.wait(100)
    assert not notified


def test_an_error_in_the_work_leaves_the_buttons_usable(segment, qtbot, monkeypatch, notified):
    _, widget = segment

    def fail(*_, **__):
        raise RuntimeError("CUDA out of memory. Tried to allocate 2 GiB")

    monkeypatch.setattr(result.core, "predict", fail)
    widget.start_button.native.click()
    finished(qtbot, widget)
    assert "Out of memory" in notified[0]
    assert widget.error_label.text() == notified[0], "in full in the panel"
    assert widget.start_button.enabled


def test_a_slice_that_cannot_be_read_is_told_in_the_panel(segment, em, qtbot, notified, damaged_at):
    viewer, widget = segment
    widget.image.value = viewer.add_image(damaged_at(em[0]), name="damaged", **GRID)
    widget.start_button.native.click()
    finished(qtbot, widget)
    assert notified == ["cannot read slice z=0 of damaged: the chunk is damaged"]
    assert widget.error_label.text() == notified[0]
    assert widget.segmentation.result.done[1:].any(), "what can be read is kept"


def test_damaged_slices_are_left_out_and_tried_again(segment, em, tiny_model, qtbot, notified):
    """One lies beside the slice on screen; a disk that answers later is asked again."""
    viewer, widget = segment
    readable, right = threading.Event(), expected(tiny_model, em[0], tiny_model.threshold)

    def read(block, block_info):
        z = block_info[0]["array-location"][0][0]
        if z in (0, 3) and not readable.is_set():
            raise OSError("the disk is away")
        return block

    disk = da.from_array(em[0], chunks=(1, -1, -1)).map_blocks(read, dtype=em[0].dtype, meta=em[0][:0])
    viewer.dims.set_current_step(0, 1)
    widget.image.value = viewer.add_image(disk, name="disk", contrast_limits=(0, 255), **GRID)
    widget.start_button.native.click()
    finished(qtbot, widget)
    mask = viewer.layers["disk tiny mask"].data
    np.testing.assert_array_equal(mask[[1, 2, 4]], right[[1, 2, 4]])
    assert not mask[[0, 3]].any()
    assert widget.status.text() == "3 of 5 slices.\nNo result at z = 0,3: Segment volume tries again."
    assert notified == ["cannot read slice z=0 of disk: the disk is away"]
    readable.set()
    widget.start_button.native.click()
    finished(qtbot, widget)
    np.testing.assert_array_equal(viewer.layers["disk tiny mask"].data, right)
    assert widget.status.text() == "5 of 5 slices."


def test_nan_within_the_sample_costs_no_other_slice(segment, em, tiny_model, qtbot, notified):
    viewer, widget = segment
    raw = em[0].astype(np.float32)
    right = expected(tiny_model, raw, tiny_model.threshold)
    raw[2, 30:33, 40:43] = np.nan
    widget.image.value = viewer.add_image(raw, name="holes", contrast_limits=(0, 255), **GRID)
    widget.start_button.native.click()
    finished(qtbot, widget)
    mask = viewer.layers["holes tiny mask"].data
    np.testing.assert_array_equal(mask[[0, 1, 3, 4]], right[[0, 1, 3, 4]])
    assert "z=2" in notified[0]
    assert "NaN" in notified[0]
    assert "No result at z = 2" in widget.status.text()


def test_a_second_mask_replaces_the_first_unless_that_was_painted_on(segment, qtbot):
    viewer, widget = segment
    for _ in range(2):
        widget.start()
        finished(qtbot, widget)
    assert [layer.name for layer in viewer.layers] == ["raw", "raw tiny mask"]
    mask = viewer.layers["raw tiny mask"]
    sure = np.unravel_index(np.argmin(widget.segmentation.result.probability), mask.data.shape)
    mask.data_setitem(tuple(np.array([i]) for i in sure), 1)
    painted = mask.data.copy()
    widget.start()
    finished(qtbot, widget)
    assert widget.segmentation.mask is not mask
    np.testing.assert_array_equal(viewer.layers["raw tiny mask"].data, painted)
    assert "You have painted on “raw tiny mask”: it stays" in widget.status.text()
    assert "the new mask “raw tiny mask 2” lies beside it" in widget.status.text()
    other = viewer.add_image(viewer.layers["raw"].data.copy(), name="other")
    for image in (other, viewer.layers["raw"]):  # another image in between
        widget.image.value, widget.model.value = image, "tiny"
        widget.start()
        finished(qtbot, widget)
    masks = [layer.name for layer in viewer.layers if layer.name.endswith(("mask", "2", "]"))]
    assert masks == ["raw tiny mask", "other tiny mask", "raw tiny mask 2"]
    np.testing.assert_array_equal(viewer.layers["raw tiny mask"].data, painted)


def test_a_mask_takes_the_place_of_the_preview(segment, qtbot):
    viewer, widget = segment
    widget.live.value = True
    qtbot.waitUntil(lambda: widget.preview is not None and widget.preview.layer is not None)
    widget.start()
    assert not widget.live.value
    finished(qtbot, widget)
    assert [layer.name for layer in viewer.layers] == ["raw", "raw tiny mask"]


def test_another_models_threshold_leaves_the_mask_alone(segment, tiny_model, qtbot):
    """As when a training ends whose model is then the newest on this image."""
    viewer, widget = segment
    widget.start()
    finished(qtbot, widget)
    before = viewer.layers["raw tiny mask"].data.copy()
    assert "threshold" not in widget.description.value
    other = core.Model(tiny_model.net, pixel_size=0, threshold=0.06)
    widget.model.value = models.add("other", other, "raw")
    qtbot.waitUntil(lambda: widget.loaded is other)
    assert widget.threshold.value == pytest.approx(0.06)
    assert "threshold is 0.06 rather than 0.5" in widget.description.value, "one so far from a half is explained"
    qtbot.waitUntil(lambda: not widget.segmentation.is_busy)
    np.testing.assert_array_equal(viewer.layers["raw tiny mask"].data, before)


def test_a_new_model_in_the_list_leaves_threshold_and_corrections(segment, em, tiny_model, qtbot):
    """Each validation of a training adds or changes one."""
    viewer, widget = segment
    widget.start_button.native.click()
    finished(qtbot, widget)
    moved = round(tiny_model.threshold + 0.1, 3)
    widget.threshold.value = moved
    qtbot.waitUntil(lambda: not widget.segmentation.is_busy)
    mask = viewer.layers["raw tiny mask"]
    mask.data_setitem((np.full(9, 2), np.arange(9), np.arange(9)), 1)
    before = mask.data.copy()
    models.add("another", core.Model(core.KUNet(1), threshold=0.9))
    qtbot.waitUntil(lambda: "another" in widget.model.choices)
    widget.model.value = "tiny"
    qtbot.waitUntil(lambda: widget.loaded is tiny_model)
    read = []
    models_read = widget._model_read
    widget._model_read = lambda event: (models_read(event), read.append(event))
    models.changed.emit()
    qtbot.waitUntil(lambda: bool(read))
    assert widget.threshold.value == pytest.approx(moved)
    np.testing.assert_array_equal(mask.data, before)


def test_what_a_stopped_segmentation_would_do_is_said(segment, em, qtbot, gate):
    _, widget = segment
    stopped_after(1, widget, qtbot, gate)
    assert "Stopped: Segment volume goes on from here" in widget.status.text()
    widget.inverted.value = True
    assert "Stopped: Segment volume begins anew, as set above" in widget.status.text()
    widget.inverted.value = False
    assert "goes on from here" in widget.status.text()
    models.add("another", core.Model(core.KUNet(1)))
    widget.model.value = "another"
    qtbot.waitUntil(lambda: "begins anew" in widget.status.text())
