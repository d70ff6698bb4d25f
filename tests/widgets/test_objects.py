"""The panel *Objects*, through the manifest: find, look at, correct, export."""

import numpy as np
import pandas as pd
import pytest
from qtpy.QtCore import QEvent, QPointF, Qt
from qtpy.QtGui import QMouseEvent
from qtpy.QtWidgets import QApplication

from napari_kdunet import core
from napari_kdunet.widgets.segmentation.result import Result
from napari_kdunet.widgets.shared.layers import PREVIEW, RESULT
from objects_panel import boxes

NM = {"scale": (10.0, 10.0, 10.0), "units": ("nm",) * 3}


@pytest.fixture
def panel(open_widget, qtbot):
    viewer, widget = open_widget("Objects")
    viewer.add_image(boxes() * 50 + 20, name="em", **NM)
    viewer.add_labels(boxes(), name="mask", **NM)
    widget.raw.value = viewer.layers["em"]
    assert widget.source.value is viewer.layers["mask"]
    widget.wait = lambda: qtbot.waitUntil(
        lambda: widget.worker is None and widget.table is not None and not widget.session.stale, timeout=120_000
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
    assert found.layer.features["volume_um3"].tolist()[1:] == found.table["volume_um3"].tolist()
    assert found.rows.ids == [1, 2, 3]
    assert "3 objects, 0 checked" in found.status.text()


def test_of_a_mask_that_is_not_segmented_to_the_end_it_is_said(panel):
    result = Result(core.Model(core.KUNet(1, depth=2), pixel_size=10.0), boxes().shape, 0.5)
    panel.viewer.layers["mask"].metadata[RESULT] = result
    result.done[:12] = True
    panel.start()
    panel.wait()
    assert "12 of 16 slices" in panel.status.text()
    result.done[:] = True
    panel.start()
    panel.wait()
    assert "slices" not in panel.status.text()


def test_a_row_shows_the_object_and_an_object_its_row(found):
    number = int(found.table["id"].iloc[-1])
    found.rows.selectRow(found.rows.ids.index(number))
    assert found.layer.selected_label == number
    row = found.table.set_index("id").loc[number]
    expected = [row[f"centroid_{a}_nm"] - 5 for a in "zyx"]
    camera = getattr(found.viewer, "scene", found.viewer).camera
    assert camera.center[1:] == pytest.approx(expected[1:], abs=1)
    assert found.viewer.dims.point[0] == pytest.approx(expected[0], abs=10)
    found.layer.selected_label = 1
    assert found.rows.selected() == [1]


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


def test_what_is_no_object_is_not_checked(found):
    found.layer.selected_label = 50
    found.check()
    assert "no object is selected" in found.error_label.text()
    assert not found.checked


def test_many_rows_are_selected_as_one(found):
    table = pd.concat([found.table] * 7000, ignore_index=True)
    found.rows.show_table(table.assign(id=np.arange(1, len(table) + 1)))
    found.rows.select(range(100, 20_000))
    assert len(found.rows.selectionModel().selection()) == 1
    assert found.rows.selected() == list(range(100, 20_000))
    found.rows.select([3, 5, 6])
    assert found.rows.selected() == [3, 5, 6]


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
    assert "Wrote 3 of 3 objects to t.csv" in found.status.text()


def test_what_is_corrected_is_exported_once_it_is_measured(found, tmp_path, qtbot):
    found.select(2)
    found.delete()
    found.export(str(tmp_path / "t.csv"))
    assert not (tmp_path / "t.csv").exists()
    assert "export them when that has ended" in found.error_label.text()
    settle(found, qtbot, 2)
    found.export(str(tmp_path / "t.csv"))
    assert pd.read_csv(tmp_path / "t.csv")["id"].tolist() == [1, 3]


def test_what_cannot_be_measured_is_said_before_objects_are_found(panel):
    panel.viewer.add_labels(boxes()[5], name="section", scale=(10.0, 10.0), units=("nm",) * 2)
    panel.source.value = panel.viewer.layers["section"]
    panel.start()
    assert panel.worker is None
    assert "choose the image of that mask, or none, under Image" in panel.error_label.text()
    panel.raw.value = None
    panel.viewer.add_labels(boxes(), name="unknown")
    panel.source.value = panel.viewer.layers["unknown"]
    panel.start()
    assert panel.worker is None
    assert "type it under Pixel size" in panel.error_label.text()
    assert "unknown objects" not in panel.viewer.layers


def test_export_to_parquet(found, tmp_path):
    pytest.importorskip("pyarrow")
    found.export(str(tmp_path / "t.parquet"))
    table = pd.read_parquet(tmp_path / "t.parquet")
    expected = found.table.assign(checked=False)
    assert table.dtypes.tolist() == expected.dtypes.tolist()
    pd.testing.assert_frame_equal(table, expected)


def test_sort_and_filter_by_measurement(found, tmp_path):
    volumes = found.table.set_index("id")["volume_um3"]
    header = found.rows.horizontalHeader()
    column = list(found.rows.measurements.frame.columns).index("volume_um3")
    found.select(2)
    found.rows.sortByColumn(column, Qt.SortOrder.DescendingOrder)
    assert found.rows.ids == volumes.sort_values(ascending=False).index.tolist()
    assert found.rows.selected() == [2], "the selection goes with its object"
    assert header.sortIndicatorSection() == column
    limit = volumes.sort_values().iloc[0]
    found.filter.value = f"volume_um3 > {limit:.9g} and not touches_border"
    assert sorted(found.rows.ids) == sorted(volumes[volumes > limit].index)
    assert "3 objects, 2 shown" in found.status.text()
    assert len(found.plot.table) == 2
    found.export(str(tmp_path / "t.csv"))
    assert len(pd.read_csv(tmp_path / "t.csv")) == 2
    for text, message in (("volum > 1", "no column 'volum'"), ("volume_um3 > > 1", "cannot be read")):
        found.filter.value = text
        assert message in found.error_label.text()
    found.filter.value = ""
    assert len(found.rows.ids) == 3
    assert found.error_label.isHidden()


def test_each_measurement_has_one_title_with_its_unit(found):
    model, boxes = found.rows.measurements, (found.plot.along_x, found.plot.along_y)
    shown = [model.headerData(i, Qt.Orientation.Horizontal) for i in range(model.columnCount())]
    assert len(set(shown)) == len(shown)
    assert not any("_" in title for title in shown)
    assert {"Volume (µm³)", "Surface (µm²)", "Length (nm)", "Centroid z (nm)", "Sphericity"} <= set(shown)
    for box in boxes:
        titles = [box.itemText(i) for i in range(box.count())]
        assert set(titles) - {"Count"} < set(shown)
        assert [box.itemData(i, Qt.ItemDataRole.ToolTipRole) for i in range(box.count())][-1] in found.table


def test_napari_s_own_table_and_the_panel_select_each_other(found, qtbot):
    _, table = found.viewer.window.add_plugin_dock_widget("napari", "Features table widget")
    found.viewer.layers.selection.active = found.layer
    model = table.table.model()
    column = list(found.layer.features.columns).index("volume_um3") + 1
    found.select(3)
    found.viewer.dims.set_point(0, 0)
    for number, volume in found.table.set_index("id")["volume_um3"].items():
        table.table.clearSelection()
        row = next(r for r in range(model.rowCount()) if model.index(r, column).data() == volume)
        table.table.selectRow(row)
        assert found.layer.selected_label == number
        assert found.rows.selected() == [number]
        z = found.viewer.dims.current_step[0]
        assert (found.layer.data[z] == number).any(), "it is on screen"
        found.rows.selectRow(found.rows.ids.index(number % 3 + 1))
        (selected,) = {model.mapToSource(index).row() for index in table.table.selectionModel().selectedIndexes()}
        assert model.sourceModel().df["volume_um3"].iloc[selected] == found.table["volume_um3"][number % 3]


def drag(plot, qtbot, points, modifier=Qt.KeyboardModifier.NoModifier):
    """Drag the mouse along points in the units of a plot."""
    view, port = plot.plot, plot.plot.viewport()
    places = [view.mapFromScene(plot.box.mapViewToScene(QPointF(*point))) for point in points]
    qtbot.mousePress(port, Qt.MouseButton.LeftButton, modifier, places[0])
    for place in places[1:]:
        event = QMouseEvent(
            QEvent.Type.MouseMove,
            QPointF(place),
            QPointF(port.mapToGlobal(place)),
            Qt.MouseButton.NoButton,
            Qt.MouseButton.LeftButton,
            modifier,
        )
        qtbot.wait(15)  # pyqtgraph takes a hundred a second
        QApplication.sendEvent(port, event)
    qtbot.mouseRelease(port, Qt.MouseButton.LeftButton, modifier, places[-1])


def inner(plot, qtbot):
    """The range of a plot, without its very edge, once it follows what is shown."""
    ranges = []

    def is_still():
        plot.plot.grab()  # it is adapted when it is painted, and again when that has moved an axis
        ranges.append(plot.box.viewRange())
        return len(ranges) > 4 and all(each == ranges[-1] for each in ranges[-4:])

    qtbot.waitUntil(is_still)
    return [(low + (high - low) / 100, high - (high - low) / 100) for low, high in plot.box.viewRange()]


def test_a_lasso_a_box_and_a_range_select(found, qtbot):
    plot, table = found.plot, found.table.set_index("id")
    found.views.setCurrentWidget(plot)
    found.native.window().show()
    qtbot.waitExposed(found.native.window())
    assert (plot.along_x.currentText(), plot.along_y.currentText()) == ("Volume (µm³)", "Count"), "at first"
    plot.show_columns("volume_um3", "centroid_y_nm")
    assert [plot.plot.getAxis(side).labelText for side in ("bottom", "left")] == ["Volume (µm³)", "Centroid y (nm)"]
    x, y = table["volume_um3"], table["centroid_y_nm"]
    (left, right), (low, high) = inner(plot, qtbot)
    plot.show_table(plot.table)  # drawn again, at that range
    axis = plot.plot.getAxis("bottom")
    assert axis.tickStrings([0.005], axis.scale * axis.autoSIPrefixScale, 0.001) == ["0.005"], (
        "in the unit of the label"
    )
    half = (y.min() + y.max()) / 2  # two objects lie below it
    corners = [(left, low), (right, low), (right, half), (left, half), (left, low)]
    drag(plot, qtbot, corners)
    assert sorted(found.rows.selected()) == sorted(y[y < half].index) == sorted(found.selection)
    plot.shape.setCurrentText("box")
    drag(plot, qtbot, [(left, half), (left, high), (right, high)], Qt.KeyboardModifier.ShiftModifier)
    assert sorted(found.rows.selected()) == [1, 2, 3]
    plot.along_y.setCurrentText("Count")
    (left, right), (low, high) = inner(plot, qtbot)
    counts = [value for _, level in plot.plot.getAxis("left").tickValues(0, 2, 150) for value in level]
    assert counts == [0, 1, 2], "objects are counted in whole numbers"
    least = x.sort_values()
    drag(plot, qtbot, [(left, high / 2), ((least.iloc[0] + least.iloc[1]) / 2, high / 2)])
    assert found.rows.selected() == [least.index[0]]
    assert found.layer.selected_label == least.index[0]
    found.delete_button.native.click()
    settle(found, qtbot, 2)
    assert sorted(plot.table["id"]) == sorted(least.index[1:])


def test_the_plot_marks_what_is_selected(found):
    """Whatever order the table has, and only what the filter shows."""
    plot, table = found.plot, found.table.set_index("id")
    largest = int(table["volume_um3"].idxmax())
    found.rows.sortByColumn(2, Qt.SortOrder.DescendingOrder)
    found.layer.selected_label = largest
    assert found.rows.selected() == [largest]
    assert plot.marked.opts["height"].sum() == 1
    assert plot.marked.opts["height"][-1] == 1, "the last bar"
    plot.show_columns("volume_um3", "centroid_y_nm")
    for number in (2, 1, 3):
        found.layer.selected_label = number
        x, y = plot.picked.getData()
        assert (x.tolist(), y.tolist()) == tuple([table[name][number]] for name in ("volume_um3", "centroid_y_nm"))
    assert len(plot.points.getData()[0]) == 3
    found.layer.selected_label = largest
    found.filter.value = f"volume_um3 < {table['volume_um3'].max()}"
    assert plot.picked.getData()[0].tolist() == []
    assert found.selection == []


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


def test_what_the_filter_hides_is_selected_no_more_and_stays(found, qtbot):
    found.select_all([1, 2])
    found.filter.value = "id = 1"
    assert found.selection == [1]
    assert "2 selected" not in found.status.text()
    found.delete()
    settle(found, qtbot, 2)
    assert np.unique(found.layer.data).tolist() == [0, 2, 3]
    found.filter.value = ""
    found.select_all([2])
    found.filter.value = "id = 3"
    found.delete()
    assert "no object is selected" in found.error_label.text()
    assert np.unique(found.layer.data).tolist() == [0, 2, 3]


def test_no_objects_and_what_to_do_is_said(panel):
    panel.min_diameter.value = 1_000
    panel.start()
    panel.wait()
    assert len(panel.table) == 0
    assert "lower the threshold or the minimum diameter" in panel.status.text()
    panel.next_suspicious()
    assert "there are no objects" in panel.error_label.text()


def test_the_preview_goes_over_to_another_mask_and_leaves_the_selection(panel, qtbot):
    viewer = panel.viewer
    other = viewer.add_labels(boxes().repeat(2, axis=2), name="other", scale=(10, 10, 5), units="nm")
    viewer.layers.selection.active = painted = viewer.layers["mask"]
    panel.raw.value, panel.source.value, panel.live.value = None, painted, True
    qtbot.waitUntil(lambda: panel.preview.layer is not None and not panel.preview.is_busy, timeout=60_000)
    assert viewer.layers.selection.active == painted, "strokes go on there"
    panel.source.value = other
    qtbot.waitUntil(lambda: panel.preview.layer.name == "other objects preview", timeout=60_000)
    assert panel.preview.layer.data.shape == (1, 60, 160)
    assert tuple(panel.preview.layer.scale) == (10, 10, 5)


def test_a_slice_that_the_preview_cannot_read_is_told_in_the_panel(panel, qtbot, notified, damaged_at):
    """It looks at neighbours of the slice on screen too."""
    z = panel.viewer.dims.current_step[0] - 1
    panel.source.value = panel.viewer.add_labels(damaged_at(boxes(), z), name="damaged", **NM)
    panel.live.value = True
    qtbot.waitUntil(lambda: bool(notified), timeout=60_000)
    assert notified == [f"cannot read slice z={z} of damaged: the chunk is damaged"]
    assert panel.error_label.text() == notified[0]


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
