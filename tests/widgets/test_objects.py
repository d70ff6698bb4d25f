"""The panel *Objects*, through the manifest: find, look at, correct, export."""

import numpy as np
import pandas as pd
import pytest

from napari_kdunet.widgets.shared.layers import PREVIEW

NM = {"scale": (10.0, 10.0, 10.0), "units": ("nm",) * 3}


def boxes():
    """Two boxes with a neck between them, and one apart."""
    mask = np.zeros((16, 60, 80), np.uint8)
    mask[2:14, 5:25, 5:30] = mask[2:14, 5:25, 40:70] = mask[6:10, 13:17, 30:40] = 1
    mask[2:14, 35:55, 10:40] = 1
    return mask


@pytest.fixture
def panel(open_widget, qtbot):
    viewer, widget = open_widget("Objects")
    viewer.add_image(boxes() * 50 + 20, name="em", **NM)
    viewer.add_labels(boxes(), name="mask", **NM)
    widget.raw.value = viewer.layers["em"]
    assert widget.source.value is viewer.layers["mask"]
    widget.wait = lambda: qtbot.waitUntil(
        lambda: widget.worker is None and widget.table is not None and not widget._again, timeout=120_000
    )
    return widget


@pytest.fixture
def found(panel):
    panel.start()
    panel.wait()
    return panel


def settle(panel, qtbot, count):
    """Wait until the table follows a correction."""
    qtbot.waitUntil(lambda: panel.table is not None and len(panel.table) == count, timeout=120_000)
    panel.wait()


def test_objects_are_found_and_measured(found):
    assert found.layer.name == "mask objects"
    assert found.source.value.name == "mask"
    assert np.unique(found.layer.data).tolist() == [0, 1, 2, 3]
    assert np.array_equal(found.layer.scale, (10, 10, 10))
    assert found.table["mean_grey"].tolist() == [70] * 3
    assert found.layer.features["volume_um3"].tolist() == found.table["volume_um3"].tolist()
    assert found.rows.rowCount() == 3
    assert "3 objects, 0 checked" in found.status.text()


def test_a_row_shows_the_object_and_an_object_its_row(found):
    number = int(found.table["id"].iloc[-1])
    found.rows.selectRow(next(r for r in range(3) if int(found.rows.item(r, 0).text()) == number))
    assert found.layer.selected_label == number
    row = found.table.set_index("id").loc[number]
    expected = [row[f"centroid_{a}_nm"] - 5 for a in "zyx"]
    camera = getattr(found.viewer, "scene", found.viewer).camera
    assert camera.center[1:] == pytest.approx(expected[1:], abs=1)
    assert found.viewer.dims.point[0] == pytest.approx(expected[0], abs=10)
    found.layer.selected_label = 1
    assert found.rows.selected() == 1


def test_corrections_by_clicks_and_undo(found, qtbot):
    data, start = found.layer.data, found.layer.data.copy()
    found.tool.value = "merge"
    found.click((8, 15, 15))
    found.click((8, 15, 60))
    assert data[8, 15, 15] == data[8, 15, 60]
    settle(found, qtbot, 2)
    found.tool.value = "split"
    found.click((8, 15, 15))
    found.click((8, 15, 60))
    assert data[8, 15, 15] != data[8, 15, 60]
    found.tool.value = "delete"
    found.click((8, 45, 20))
    assert data[8, 45, 20] == 0
    found.tool.value = "add"
    found.click((8, 45, 20))
    assert data[8, 45, 20] > 0
    settle(found, qtbot, 3)
    for _ in range(4):
        found.layer.undo()
    assert np.array_equal(data, start)


def test_checked_and_the_next(found):
    found.next_suspicious()
    seen = []
    for _ in range(3):
        seen.append(int(found.layer.selected_label))
        found.check()
    assert sorted(seen) == [1, 2, 3]
    assert "3 objects, 3 checked" in found.status.text()
    found.next_suspicious()
    assert "all objects are checked" in found.error_label.text()


def test_export(found, tmp_path):
    found.export(str(tmp_path / "t.csv"))
    table = pd.read_csv(tmp_path / "t.csv")
    assert table["id"].tolist() == [1, 2, 3]
    assert not table["checked"].any()


def test_preview_follows_settings_and_goes(panel, qtbot):
    panel.live.value = True
    qtbot.waitUntil(lambda: panel.preview.layer is not None and not panel.preview.is_busy, timeout=60_000)
    layer = panel.preview.layer
    assert PREVIEW in layer.metadata
    assert layer.data.shape == (1, 60, 80)
    assert len(np.unique(layer.data)) == 4
    panel.split.value = 0.0
    qtbot.waitUntil(lambda: len(np.unique(layer.data)) == 3 and not panel.preview.is_busy, timeout=60_000)
    panel.live.value = False
    qtbot.waitUntil(lambda: layer not in panel.viewer.layers, timeout=10_000)


def test_what_is_wrong_is_said(open_widget, notified):
    _, panel = open_widget("Objects")
    panel.start()
    assert "no mask is chosen" in panel.error_label.text()
    panel.smooth()
    assert "no objects yet" in panel.error_label.text()


def test_the_pixel_size_of_a_mask_is_not_looked_for(panel):
    """A model looks at images: of a mask the size is typed, or known."""
    assert not panel.image_pixel_size.native.isHidden()
    assert panel.find_button.native.isHidden()
