"""The table of *Objects* follows pixel size and image as it does corrections; what keeps it from that is said."""

import time
import weakref

import numpy as np
import pandas as pd
import pytest

from napari_kdunet import core
from napari_kdunet.widgets.proofreading import edits, measuring
from napari_kdunet.widgets.proofreading.measuring import Measuring
from napari_kdunet.widgets.segmentation.result import Result
from napari_kdunet.widgets.shared.layers import IMAGE, RESULT
from objects_panel import boxes, settle

NM = {"scale": (10.0, 10.0, 10.0), "units": ("nm",) * 3}


@pytest.fixture
def panel(open_widget):
    viewer, widget = open_widget("Objects")
    viewer.add_image(boxes() * 50 + 20, name="em", **NM)
    viewer.add_labels(boxes(), name="mask", **NM)
    return widget


@pytest.fixture
def wait(qtbot):
    return lambda panel: settle(panel, qtbot)


@pytest.fixture
def found(panel, wait):
    panel.start()
    wait(panel)
    return panel


@pytest.fixture
def count(monkeypatch):
    """How often objects are measured."""
    calls, real = [], Measuring.measure

    def measure(self, *args, **options):
        calls.append(True)
        return real(self, *args, **options)

    monkeypatch.setattr(Measuring, "measure", measure)
    return calls


def test_each_undo_is_noticed(found, wait, qtbot):
    """Also where the histories are as long as they were when one was noticed last."""
    layer, everything = found.layer, found.table["id"].tolist()
    for number in everything[:2]:
        edits.delete_objects(layer, [number])
        wait(found)
        assert number not in found.table["id"].tolist()
        layer.undo()
        qtbot.waitUntil(lambda: found.session.stale)
        wait(found)
        assert found.table["id"].tolist() == everything


def test_what_is_edited_while_nobody_watches_is_measured_when_the_panel_is_back(found, wait, qtbot):
    layer, viewer, number = found.layer, found.viewer, int(found.table["id"][0])
    found.session.saved = True
    viewer.window.remove_dock_widget(found.native)
    layer.data_setitem(np.nonzero(layer.data == number), 0)
    viewer.window.add_dock_widget(found, name="again")
    assert found.session.stale
    assert not found.session.saved
    wait(found)
    assert number not in found.table["id"].tolist()
    viewer.window.remove_dock_widget(found.native)
    viewer.window.add_dock_widget(found, name="once more")
    assert not found.session.stale, "nothing has changed"


def test_a_checked_object_is_checked_again_where_its_deletion_is_undone(found, wait):
    layer, number = found.layer, int(found.table["id"].max())
    place = np.nonzero(layer.data == number)
    found.select(number)
    found.check()
    edits.delete_objects(layer, [number])
    wait(found)
    assert found.checked == set()
    layer.undo()
    wait(found)
    assert found.checked == {number}
    edits.delete_objects(layer, [number])
    wait(found)
    layer.data_setitem(tuple(axis[:40] for axis in place), number)
    wait(found)
    assert found.checked == set(), "another object, with the id of one that is gone"


def test_a_pixel_size_that_is_typed_later_is_that_of_table_and_export(found, wait, tmp_path):
    before = found.table["volume_um3"].to_numpy()
    found.image_pixel_size.value = 5.0
    found.export(str(tmp_path / "t.csv"))
    assert not (tmp_path / "t.csv").exists(), "not before they are measured again"
    found.slice_distance.value = 5.0
    assert tuple(found.layer.scale) == (5, 5, 5)
    assert not found.session.saved
    wait(found)
    np.testing.assert_allclose(found.table["volume_um3"], before / 8, rtol=1e-6)
    np.testing.assert_allclose(found.layer.features["volume_um3"][1:], before / 8, rtol=1e-6)
    found.export(str(tmp_path / "t.csv"))
    np.testing.assert_allclose(pd.read_csv(tmp_path / "t.csv")["volume_um3"], before / 8, rtol=1e-6)


def test_other_units_are_another_pixel_size(found, wait):
    before = found.table["volume_um3"].to_numpy()
    found.layer.scale, found.layer.units = (0.02,) * 3, ("um",) * 3
    assert found.session.stale
    wait(found)
    np.testing.assert_allclose(found.table["volume_um3"], before * 8, rtol=1e-6)


def test_objects_that_are_not_looked_at_follow_when_they_are(found, wait):
    first, before = found.layer, found.table["volume_um3"].to_numpy()
    found.source.value = found.viewer.layers["mask"]
    found.start()
    wait(found)
    assert found.layer is not first
    found.image_pixel_size.value = 20.0
    found.slice_distance.value = 20.0
    wait(found)
    found.viewer.layers.selection.active = first
    assert found.layer is first
    wait(found)
    np.testing.assert_allclose(found.table["volume_um3"], before * 8, rtol=1e-6)


def test_an_image_that_is_chosen_later_gives_grey_values(found, wait):
    assert "mean_grey" not in found.table
    found.raw.value = found.viewer.layers["em"]
    wait(found)
    assert found.table["mean_grey"].tolist() == [70] * 3
    other = found.viewer.add_image(boxes() * 30 + 20, name="other", **NM)
    found.raw.value = other
    wait(found)
    assert found.table["mean_grey"].tolist() == [50] * 3
    assert found.session.image.name == "other"


def test_another_image_of_the_same_name_is_measured_with(found, wait):
    found.raw.value = found.viewer.layers["em"]
    wait(found)
    found.viewer.layers.remove("em")
    found.raw.value = found.viewer.add_image(boxes() * 30 + 20, name="em", **NM)
    wait(found)
    assert found.table["mean_grey"].tolist() == [50] * 3


def test_pixels_that_were_replaced_are_not_mixed_with_those_before(found, wait):
    """After an edit of one object all are measured with the image as it is."""
    em = found.viewer.layers["em"]
    found.raw.value = em
    wait(found)
    em.data = em.data + 100
    found.layer.data_setitem((np.array([8]), np.array([40]), np.array([10])), 0)
    wait(found)
    assert found.table["mean_grey"].tolist() == [170] * 3


def test_nothing_is_measured_again_for_nothing(found, wait, qtbot, open_widget, tmp_path, count):
    found.raw.value = found.viewer.layers["em"]
    wait(found)
    assert len(count) == 1
    found.layer.scale = (10.0, 10.0, 10.0 + 1e-12)  # as of rounding
    found.raw.value = None  # its grey values stay
    found.viewer.add_image(np.zeros((5, 6, 7)), name="of another shape", **NM)
    found.raw.value = found.viewer.layers["of another shape"]
    found.raw.value = found.viewer.layers["em"]
    assert not found.session.stale
    found.save(str(tmp_path / "s.zarr"))
    wait(found)
    viewer, opened = open_widget("Objects")
    viewer.add_image(boxes() * 50 + 20, name="em", **NM)
    opened.open(str(tmp_path / "s.zarr"))
    wait(opened)
    assert opened.raw.value.name == "em"
    assert not opened.session.stale
    assert opened.session.saved
    assert len(count) == 1


def test_an_image_that_cannot_be_measured_with_is_said_and_nothing_old_is_exported(
    found, wait, qtbot, notified, tmp_path
):
    rgb = found.viewer.add_image(np.zeros((16, 60, 80, 3), np.uint8), rgb=True, name="rgb", **NM)
    found.raw.value = rgb
    assert "rgb is RGB" in found.error_label.text(), "at once"
    notified.clear()
    found.select(3)
    found.delete()
    qtbot.waitUntil(lambda: any("rgb is RGB" in message for message in notified), timeout=10_000)
    assert found.session.stale
    found.export(str(tmp_path / "t.csv"))
    assert not (tmp_path / "t.csv").exists()
    found.raw.value = None
    wait(found)
    found.export(str(tmp_path / "t.csv"))
    assert pd.read_csv(tmp_path / "t.csv")["id"].tolist() == [1, 2]
    found.raw.value = found.viewer.layers["em"]
    wait(found)
    found.raw.value = rgb
    found.select(2)
    notified.clear()
    found.delete()
    qtbot.waitUntil(lambda: any("rgb is RGB" in message for message in notified), timeout=10_000)
    assert found.session.stale
    found.raw.value = found.viewer.layers["em"]  # with which they were measured before
    wait(found)
    assert found.table["id"].tolist() == [1]


def mask_of_segment(viewer, name):
    """A mask as *Segment* makes it."""
    result = Result(core.Model(core.KUNet(1, depth=2), pixel_size=10.0), boxes().shape, 0.5)
    metadata = {RESULT: result, IMAGE: weakref.ref(viewer.layers["em"])}
    return viewer.add_labels(boxes(), name=name, metadata=metadata, **NM)


def test_a_mask_of_segment_is_taken_first_and_stays(open_widget):
    viewer, panel = open_widget("Objects")
    viewer.add_image(boxes() * 50 + 20, name="em", **NM)
    mask = mask_of_segment(viewer, "em mask")
    assert panel.source.value is mask
    viewer.add_labels(np.zeros_like(boxes()), name="em strokes", **NM)
    assert panel.source.value is mask
    mask_of_segment(viewer, "another mask")
    assert panel.source.value is mask
    viewer.layers.remove(mask)
    assert panel.source.value is viewer.layers["another mask"], "before the labels of the user"
    _, later = viewer.window.add_plugin_dock_widget("napari-kdunet", "Objects")
    assert later.source.value is viewer.layers["another mask"]


@pytest.mark.parametrize("soon", [False, True])
def test_a_new_object_is_not_checked(found, wait, soon):
    """Though it may get the id of one that was, and is deleted; before that is measured as well."""
    last = max(found.table["id"])
    found.select(last)
    found.check()
    edits.delete_objects(found.layer, [last])
    if not soon:
        wait(found)
    left = {1, 2, 3} - {last}
    number = found.layer.data[8, 15, 15] or found.layer.data[8, 45, 12]
    assert number in left
    new = edits.split_object(found.layer, *(np.argwhere(found.layer.data == number)[[k]] for k in (0, -1)))
    wait(found)
    checked = found.rows.measurements.frame.set_index("id")["checked"]
    assert sorted(checked.index) == sorted({*left, new})
    assert not checked.any()


def test_objects_whose_measuring_was_stopped_can_be_saved(panel, wait, qtbot, monkeypatch, tmp_path):
    real = measuring.measure

    def endless(*args, progress, **options):
        while True:
            time.sleep(0.01)
            progress(0.0)

    monkeypatch.setattr(measuring, "measure", endless)
    panel.start()
    qtbot.waitUntil(lambda: panel.layer is not None, timeout=60_000)
    panel.stop()
    qtbot.waitUntil(lambda: panel.worker is None, timeout=60_000)
    assert "not measured: press Save" in panel.status.text()
    assert panel.save_button.enabled
    assert not panel.export_button.enabled
    monkeypatch.setattr(measuring, "measure", real)
    panel.save(str(tmp_path / "s.zarr"))
    wait(panel)
    assert panel.rows.ids == [1, 2, 3]
    assert "not measured" not in panel.status.text()
    assert (tmp_path / "s.zarr").exists()
