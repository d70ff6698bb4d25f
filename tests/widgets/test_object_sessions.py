"""Sessions of the panel *Objects*: saved as one OME-Zarr and opened again as they were."""

import json
import shutil
import threading

import numpy as np
import pandas as pd
import pytest
import tifffile
import yaozarrs
import zarr
from napari.layers import Labels
from napari.layers._layer_actions import _duplicate_layer
from qtpy.QtWidgets import QFileDialog

from napari_kdunet import core
from napari_kdunet.widgets.proofreading.session import OBJECTS, read_session
from napari_kdunet.widgets.proofreading.snapshot import Snapshot
from objects_panel import boxes, settle

GRID = {"scale": (40.0, 10.0, 10.0), "translate": (80.0, 0.0, 30.0), "units": ("nm",) * 3}


@pytest.fixture
def wait(qtbot):
    return lambda panel: settle(panel, qtbot)


@pytest.fixture
def found(open_widget, wait, tmp_path):
    """Objects of an image in a file."""
    tifffile.imwrite(tmp_path / "em.tif", boxes(depth=8) * 50 + 20)
    viewer, panel = open_widget("Objects")
    viewer.open(tmp_path / "em.tif", plugin="napari", **GRID)
    viewer.add_labels(boxes(depth=8), name="mask", **GRID)
    panel.raw.value = viewer.layers["em"]
    panel.split.value, panel.min_diameter.value = 0.6, 110.0
    panel.start()
    wait(panel)
    return panel


def state(panel):
    """All that a session holds, of a panel."""
    layer = panel.layer
    grid = [np.asarray(getattr(layer, name)).tolist() for name in ("scale", "translate", "rotate", "shear")]
    table = panel.table.to_dict("list")
    return {
        "data": np.asarray(layer.data).tolist(),
        "grid": [*grid, np.asarray(layer.affine).tolist(), layer.units, layer.name],
        "table": json.dumps({k: [repr(x) for x in v] for k, v in table.items()}),
        "dtypes": [str(kind) for kind in panel.table.dtypes],
        "checked": sorted(panel.checked),
        "selected": int(layer.selected_label),
        "config": panel.config,
        "raw": None if panel.raw.value is None else panel.raw.value.name,
        "features": layer.features.to_csv(),
    }


def correct(panel, wait):
    """Merge, delete, undo that, paint, check one."""
    panel.tool.value = "merge"
    panel.click((4, 15, 15))
    panel.click((4, 15, 60))
    panel.tool.value = "delete"
    panel.click((4, 45, 20))
    panel.layer.undo()
    panel.layer.undo()
    panel.layer.redo()
    panel.layer.paint((4, 50, 70), 9)
    wait(panel)
    everything = core.measure(panel.layer.data, panel.raw.value.data, voxel_size=GRID["scale"])
    pd.testing.assert_frame_equal(panel.table, everything, check_exact=True)
    panel.select(9)
    panel.check()
    panel.select(9)


def opened(open_widget, path, *, drop=True):
    viewer, panel = open_widget("Objects")
    if drop:
        viewer.open(path, plugin="napari-kdunet")
    else:
        panel.open(path)
    return panel


@pytest.mark.parametrize("drop", [True, False])
def test_saved_and_opened_as_it_was(found, open_widget, wait, tmp_path, drop):
    correct(found, wait)
    before, path = state(found), tmp_path / "mine.zarr"
    assert len(set(np.unique(found.layer.data))) == 4
    assert "not saved" in found.status.text()
    found.save(str(path))
    wait(found)
    assert "Saved in mine.zarr" in found.status.text()
    assert "not saved" not in found.status.text()
    yaozarrs.validate_zarr_store(path)
    again = opened(open_widget, path, drop=drop)
    wait(again)
    assert state(again) == before
    assert not again.error_label.isVisible()
    assert {layer.name for layer in again.viewer.layers} == {"em", "mask objects"}
    assert np.asarray(again.viewer.layers["em"].data).tolist() == (boxes(depth=8) * 50 + 20).tolist()
    again.layer.undo()  # and it can be corrected
    again.tool.value = "delete"
    again.click((4, 45, 20))
    wait(again)
    assert len(again.table) == 2


def test_the_panel_takes_up_what_was_dropped_before_it_was_opened(found, make_napari_viewer, wait, tmp_path):
    path = tmp_path / "mine.zarr"
    found.save(str(path))
    wait(found)
    viewer = make_napari_viewer()
    viewer.open(path, plugin="napari-kdunet")
    _, panel = viewer.window.add_plugin_dock_widget("napari-kdunet", "Objects")
    assert state(panel) == state(found)


def test_a_large_one_that_is_dropped_is_read_in_the_background(found, open_widget, wait, tmp_path, monkeypatch):
    path = tmp_path / "mine.zarr"
    found.save(str(path))
    wait(found)
    monkeypatch.setattr("napari_kdunet.widgets.readers._AT_ONCE", 0)
    again = opened(open_widget, path)
    assert list(again.viewer.layers) == [], "the window does not wait"
    wait(again)
    assert state(again) == state(found)
    assert {layer.name for layer in again.viewer.layers} == {"em", "mask objects"}


def test_what_is_painted_just_before_is_in_the_table(found, wait, tmp_path):
    found.layer.paint((4, 50, 70), 9)
    found.save(str(tmp_path / "mine.zarr"))
    found.layer.paint((4, 30, 70), 12)  # and after it not
    wait(found)
    ids, session, _ = read_session(tmp_path / "mine.zarr")
    assert sorted(set(np.unique(np.asarray(ids))) - {0}) == session.table["id"].tolist() == [1, 2, 3, 9]
    assert "not saved" in found.status.text()
    assert 12 in found.table["id"].tolist()


def test_edits_while_it_is_saved_are_not_in_it(found, wait, tmp_path):
    """No slice is copied yet at the time of the edits, but those that they change."""
    layer, number = found.layer, int(found.layer.data[4, 45, 20])
    layer.paint((4, 50, 70), 9)
    wait(found)
    before, table, gate = layer.data.copy(), found.table, threading.Event()
    found.background.check = lambda *_: gate.wait(60)
    found.save(str(tmp_path / "mine.zarr"))
    layer.undo()
    layer.selected_label = number
    found.delete()
    assert found.worker is not None, "it waits, and the window does not"
    gate.set()
    wait(found)
    ids, session, _ = read_session(tmp_path / "mine.zarr")
    assert np.array_equal(np.asarray(ids), before)
    pd.testing.assert_frame_equal(session.table, table)
    assert len(found.table) == len(table) - 2
    assert "not saved" in found.status.text()


def test_a_snapshot_is_what_was_there_before_each_way_to_edit():
    layer = Labels(boxes(depth=8))
    for edit in (
        lambda: layer.paint((4, 50, 70), 9),
        lambda: layer.fill((2, 10, 10), 7),
        lambda: layer.paint_polygon([(2, 30, 60), (2, 30, 75), (2, 45, 75)], 12),
        lambda: layer.data_setitem(np.nonzero(layer.data == 7), 0),
        layer.undo,
        layer.redo,
    ):
        before, snapshot = layer.data.copy(), Snapshot(layer)
        edit()
        assert not np.array_equal(layer.data, before)
        assert np.array_equal(np.asarray(snapshot.read(lambda _: None)), before)


def test_nothing_is_copied_at_once_but_what_is_edited():
    layer = Labels(boxes(depth=8))
    snapshot = Snapshot(layer)
    layer.paint((4, 50, 70), 9)
    layer.data[3:6, 0, 0] = 77  # past napari's history
    ids = snapshot.read(lambda _: None).read
    assert [ids(z)[0, 0] for z in (3, 4, 5)] == [77, 0, 77]
    assert ids(4)[50, 70] == 0


def test_moved_together_it_is_opened_with_its_image(found, open_widget, wait, tmp_path):
    found.save(str(tmp_path / "mine.zarr"))
    wait(found)
    (tmp_path / "elsewhere").mkdir()
    for name in ("mine.zarr", "em.tif"):
        shutil.move(tmp_path / name, tmp_path / "elsewhere" / name)
    panel = opened(open_widget, tmp_path / "elsewhere/mine.zarr")
    assert panel.raw.value.name == "em"
    assert panel.image_button.native.isHidden()


def test_an_image_that_has_moved_is_asked_for(found, open_widget, wait, tmp_path, monkeypatch, notified):
    found.save(str(tmp_path / "mine.zarr"))
    wait(found)
    (tmp_path / "far").mkdir()
    shutil.move(tmp_path / "em.tif", tmp_path / "far/renamed.tif")
    panel = opened(open_widget, tmp_path / "mine.zarr")
    assert [layer.name for layer in panel.viewer.layers] == ["mask objects"]
    assert len(panel.table) == 3
    assert f"The image em ({tmp_path / 'em.tif'}) is not open: press Open image" in panel.status.text()
    assert "\n" not in panel.status.text()
    assert not panel.image_button.native.isHidden()
    tifffile.imwrite(tmp_path / "wrong.tif", boxes(depth=8)[:5])
    for name in ("wrong.tif", "far/renamed.tif"):
        monkeypatch.setattr(QFileDialog, "getOpenFileName", lambda *_, name=name: (str(tmp_path / name), ""))
        panel.image_button.native.click()
    assert len(notified) == 1
    assert "wrong.tif has shape (5, 60, 80)" in notified[0]
    assert panel.raw.value.name == "em"
    assert np.array_equal(panel.raw.value.scale, (40, 10, 10))
    assert "is not open" not in panel.status.text()
    assert panel.image_button.native.isHidden()


def test_no_file_is_opened_that_lies_elsewhere(found, open_widget, wait, tmp_path):
    """A session of a stranger's names paths: those outside of its folder are said, and not opened."""
    (tmp_path / "own").mkdir()
    found.save(str(tmp_path / "own/mine.zarr"))
    wait(found)
    assert (tmp_path / "em.tif").exists()
    panel = opened(open_widget, tmp_path / "own/mine.zarr")
    assert [layer.name for layer in panel.viewer.layers] == ["mask objects"]
    assert "is not open" in panel.status.text()
    panel.viewer.open(tmp_path / "em.tif", plugin="napari", **GRID)
    assert panel.raw.value.name == "em"
    assert "is not open" not in panel.status.text()


@pytest.mark.parametrize("what", ["foreign", "ours", "file", "another session"])
def test_nothing_is_replaced_but_the_session_itself(found, wait, tmp_path, notified, what):
    path = tmp_path / "there.zarr"
    if what == "foreign":
        zarr.open_group(path, mode="w").create_array("x", data=np.arange(9))
    elif what == "ours":
        core.write_volume(boxes(depth=8), path, voxel_size=(10, 10, 10))
    elif what == "file":
        path.write_text("mine")
    else:
        found.save(str(path))
        wait(found)
        found.session.path = None
    before = sorted((str(p), p.stat().st_mtime_ns) for p in [path, *path.rglob("*")])
    found.save(str(path))
    wait(found)
    assert len(notified) == 1
    assert "there.zarr" in notified[0]
    assert "choose another name" in notified[0]
    assert sorted((str(p), p.stat().st_mtime_ns) for p in [path, *path.rglob("*")]) == before
    assert "not saved" in found.status.text()
    assert not [p for p in tmp_path.iterdir() if ".part-" in p.name]


def test_save_again_replaces_the_session(found, open_widget, wait, tmp_path):
    path = tmp_path / "mine.zarr"
    for number in (1, 2):
        found.select(number)
        found.check()
        found.save(str(path))
        wait(found)
    panel = opened(open_widget, path)
    assert panel.checked == found.checked
    assert len(panel.checked) == 2
    panel.check()
    panel.save_button.native.click()  # without a question: it is known where
    wait(panel)
    assert "Saved in mine.zarr" in panel.status.text()


def test_what_others_have_put_in_its_place_is_not_replaced(found, open_widget, wait, notified, tmp_path):
    path = tmp_path / "mine.zarr"
    found.save(str(path))
    wait(found)
    other = opened(open_widget, path)
    other.select(2)
    other.delete()
    wait(other)
    other.save(str(path))
    wait(other)
    found.select(1)
    found.check()
    found.save(str(path))
    wait(found)
    assert "mine.zarr: it has changed since it was opened or saved here; choose another name" in notified[0]
    assert read_session(path)[1].table["id"].tolist() == other.table["id"].tolist()


def test_a_duplicate_of_objects_is_a_session_of_its_own(found, wait, tmp_path):
    path = tmp_path / "mine.zarr"
    found.save(str(path))
    wait(found)
    first, ids = found.layer, found.table["id"].tolist()
    found.viewer.layers.selection.active = first
    _duplicate_layer(found.viewer.layers)
    (copy,) = (layer for layer in found.viewer.layers if OBJECTS in layer.metadata and layer is not first)
    found.viewer.layers.selection.active = copy
    found.select(2)
    found.delete()
    wait(found)
    assert found.table["id"].tolist() == [i for i in ids if i != 2]
    assert found.session.path is None
    found.viewer.layers.selection.active = first
    assert found.table["id"].tolist() == ids
    assert found.session.path == path


def test_no_objects_at_all(found, open_widget, wait, tmp_path):
    found.select_all(found.table["id"].tolist())
    found.delete()
    wait(found)
    found.save(str(tmp_path / "empty.zarr"))
    wait(found)
    again = opened(open_widget, tmp_path / "empty.zarr")
    assert list(again.table) == list(found.table)
    assert len(again.table) == 0


def test_a_flat_image(open_widget, wait, tmp_path):
    viewer, panel = open_widget("Objects")
    viewer.add_labels(boxes(depth=8)[4], name="flat", scale=(10, 10), units=("nm",) * 2)
    panel.start()
    wait(panel)
    panel.save(str(tmp_path / "flat.zarr"))
    wait(panel)
    again = opened(open_widget, tmp_path / "flat.zarr")
    assert again.layer.ndim == 2
    assert state(again) == state(panel)


def test_a_damaged_session_is_one_line(found, make_napari_viewer, wait, tmp_path):
    path = tmp_path / "mine.zarr"
    found.save(str(path))
    wait(found)
    text = json.loads((path / "zarr.json").read_text())
    for change in (
        lambda objects: objects.pop("table"),
        lambda objects: objects["table"].update(types={"id": "O"}),
        lambda objects: objects.update(checked=["a"]),
        lambda objects: objects["layer"].update(scale=[1.0]),
        lambda objects: objects["settings"].update(no_such=1),
        lambda objects: objects["settings"].update(threshold=None),
    ):
        damaged = json.loads(json.dumps(text))
        change(damaged["attributes"]["napari_kdunet"]["objects"])
        (path / "zarr.json").write_text(json.dumps(damaged))
        with pytest.raises(core.VolumeError, match=r"mine\.zarr is damaged"):
            make_napari_viewer().open(path, plugin="napari-kdunet")


def test_several_objects_layers_each_with_its_own(found, wait):
    first = found.layer
    found.select(2)
    found.checked.add(2)
    found.split.value = 0.0
    found.start()
    wait(found)
    assert found.layer is not first
    assert len(found.table) == 2
    assert found.checked == set()
    found.viewer.layers.selection.active = first
    assert found.layer is first
    assert len(found.table) == 3
    assert found.checked == {2}
    assert found.split.value == pytest.approx(0.6)
    found.viewer.layers.remove(first)
    assert found.table is None
    assert first.metadata[OBJECTS].checked == {2}
