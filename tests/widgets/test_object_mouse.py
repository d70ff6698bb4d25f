"""Proofreading in *Objects* with the mouse: clicks and strokes on napari's canvas, and what undo makes of them."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from qtpy.QtCore import QEvent, QPoint, QPointF, Qt
from qtpy.QtGui import QMouseEvent
from qtpy.QtWidgets import QApplication

from napari_kdunet import core

NM = {"scale": (20.0, 10.0, 10.0), "units": ("nm",) * 3}


def boxes():
    """Two boxes with a neck between them, one apart, and one that is missing in two slices."""
    mask = np.zeros((10, 60, 80), np.uint8)
    mask[1:9, 5:25, 5:30] = mask[1:9, 5:25, 40:70] = mask[4:6, 13:17, 30:40] = 1
    mask[1:9, 35:55, 10:40] = mask[1:4, 35:55, 50:70] = mask[6:9, 35:55, 50:70] = 1
    return mask


class Mouse:
    """The user's hand: presses, moves and releases on the canvas, at places in the pixels of a layer."""

    def __init__(self, viewer, qtbot):
        self.viewer, self.qtbot = viewer, qtbot
        self.canvas = viewer.window._qt_viewer.canvas
        self.native = self.canvas.native
        origin, right, down = (np.array(self._world(at)) for at in ((0, 0), (100, 0), (0, 100)))
        self.origin, self.matrix = origin, np.stack([(right - origin) / 100, (down - origin) / 100], 1)

    def _world(self, at):
        view = self.canvas.view
        return self.canvas._map_canvas2world(at, view)[-2:]

    def place(self, layer, point):
        world = np.array(layer.data_to_world((self.viewer.dims.current_step[0], *point)))[-2:]
        return QPoint(*np.round(np.linalg.solve(self.matrix, world - self.origin)).astype(int).tolist())

    def _send(self, kind, place, buttons):
        button = Qt.MouseButton.NoButton if kind == QEvent.Type.MouseMove else Qt.MouseButton.LeftButton
        place, there = QPointF(place), QPointF(self.native.mapToGlobal(place))
        QApplication.sendEvent(
            self.native, QMouseEvent(kind, place, there, button, buttons, Qt.KeyboardModifier.NoModifier)
        )

    def stroke(self, layer, *points):
        places = [self.place(layer, point) for point in points]
        held, none = Qt.MouseButton.LeftButton, Qt.MouseButton.NoButton
        self._send(QEvent.Type.MouseMove, places[0], none)
        self._send(QEvent.Type.MouseButtonPress, places[0], held)
        for place in places[1:]:
            self.qtbot.wait(12)  # vispy takes a hundred a second
            self._send(QEvent.Type.MouseMove, place, held)
        self._send(QEvent.Type.MouseButtonRelease, places[-1], none)
        QApplication.processEvents()

    def click(self, layer, point):
        """With a hand that trembles."""
        place = self.place(layer, point)
        self._send(QEvent.Type.MouseButtonPress, place, Qt.MouseButton.LeftButton)
        self.qtbot.wait(12)
        self._send(QEvent.Type.MouseMove, place + QPoint(2, 1), Qt.MouseButton.LeftButton)
        self._send(QEvent.Type.MouseButtonRelease, place + QPoint(1, 1), Qt.MouseButton.NoButton)
        QApplication.processEvents()


@pytest.fixture
def panel(open_widget, qtbot):
    viewer, widget = open_widget("Objects", show=True)
    viewer.add_labels(boxes(), name="mask", **NM)
    widget.start()
    widget.wait = lambda: qtbot.waitUntil(
        lambda: widget.worker is None and widget.table is not None and not widget.session.stale, timeout=120_000
    )
    widget.wait()
    viewer.dims.set_current_step(0, 4)
    qtbot.wait(200)
    widget.mouse = Mouse(viewer, qtbot)
    return widget


def at(panel, y, x, z=4):
    return int(panel.layer.data[z, y, x])


def test_all_tools_by_the_mouse(panel, qtbot, notified):
    layer, mouse = panel.layer, panel.mouse
    start = layer.data.copy()
    assert len(panel.table) == 5
    camera = getattr(panel.viewer, "scene", panel.viewer).camera

    panel.tool.value = "merge"
    assert "Click on two objects" in panel.status.text()
    mouse.click(layer, (15, 15))
    assert "Now click on the object to merge" in panel.status.text()
    mouse.click(layer, (15, 60))
    assert at(panel, 15, 15) == at(panel, 15, 60) > 0

    panel.tool.value = "split"
    centre = camera.center
    mouse.stroke(layer, (10, 8), (15, 12), (20, 8))
    assert "Now click or draw on the other side" in panel.status.text()
    mouse.stroke(layer, (10, 65), (15, 60), (20, 65))
    assert at(panel, 15, 10) != at(panel, 15, 65)
    assert {at(panel, 10, 8), at(panel, 20, 8)} == {at(panel, 15, 10)}
    assert camera.center == centre, "a stroke does not move the picture"

    panel.tool.value = "cut"
    assert "line right across" in panel.status.text()
    mouse.stroke(layer, (2, 55), (28, 55))
    assert at(panel, 15, 52) != at(panel, 15, 58) > 0
    assert camera.center == centre
    layer.undo()
    assert at(panel, 15, 52) == at(panel, 15, 58)

    panel.tool.value = "delete"
    mouse.click(layer, (45, 20))
    assert at(panel, 45, 20) == 0
    panel.tool.value = "add"
    mouse.click(layer, (45, 20))
    assert at(panel, 45, 20) > 0
    panel.wait()
    assert len(panel.table) == 5

    panel.tool.value = "merge"  # the two that are one, from slice to slice
    for z in (2, 7):
        panel.viewer.dims.set_current_step(0, z)
        mouse.click(layer, (45, 60))
    panel.viewer.dims.set_current_step(0, 2)
    panel.tool.value = "off"
    panel.select(at(panel, 45, 60, 2))
    panel.fill_button.native.click()
    assert at(panel, 45, 60, 5) == at(panel, 45, 60, 2) > 0
    layer.data_setitem((np.array([2] * 4), np.array([36] * 4), np.arange(70, 74)), at(panel, 45, 60, 2))
    panel.smooth_button.native.click()
    assert at(panel, 36, 73, 2) == 0
    panel.wait()
    expected = core.measure(layer.data, voxel_size=(20, 10, 10))
    pd.testing.assert_frame_equal(panel.table, expected)
    for _ in range(8):
        layer.undo()
    assert np.array_equal(layer.data, start)
    panel.wait()
    assert len(panel.table) == 5, "the table follows an undo"
    assert notified == []


def test_a_click_on_nothing_and_a_pan_change_nothing(panel, notified):
    layer, mouse = panel.layer, panel.mouse
    start = layer.data.copy()
    panel.tool.value = "merge"
    mouse.click(layer, (2, 2))
    assert "no object at that point" in panel.error_label.text()
    panel.tool.value = "delete"
    mouse.stroke(layer, (15, 15), (20, 20))  # a pan, that ends on an object
    assert np.array_equal(layer.data, start)
    assert len(notified) == 1


def test_next_and_checked_with_a_count(panel):
    """By the buttons: the doubtful first, each once, until all are checked."""
    ids = panel.table["id"].tolist()
    panel.next.native.click()
    seen = []
    for count in range(1, 6):
        seen.append(int(panel.layer.selected_label))
        assert (panel.layer.data[panel.viewer.dims.current_step[0]] == seen[-1]).any(), "it is on screen"
        panel.checks.native.click()
        assert f"5 objects, {count} checked" in panel.status.text()
    assert sorted(seen) == ids
    assert panel.layer.features["checked"][ids].all()


MOVES = {
    "merge": lambda p: (p.mouse.click(p.layer, (15, 15)), p.mouse.click(p.layer, (15, 60))),
    "split": lambda p: (
        p.mouse.stroke(p.layer, (40, 14), (50, 14)),
        p.mouse.stroke(p.layer, (40, 36), (50, 36)),
    ),
    "cut": lambda p: p.mouse.stroke(p.layer, (2, 48), (28, 52)),
    "delete": lambda p: p.mouse.click(p.layer, (45, 20)),
    "add": lambda p: p.mouse.click(p.layer, (45, 20)),
}


def do(panel, name):
    """One action of the user's, by the mouse, a button or napari's brush."""
    if name in MOVES:
        panel.tool.value = name
        MOVES[name](panel)
        panel.tool.value = "off"
    elif name == "brush":
        panel.layer.mode, panel.layer.selected_label, panel.layer.brush_size = "paint", 3, 6
        panel.mouse.stroke(panel.layer, (30, 30), (30, 45))
        panel.layer.mode = "pan_zoom"
    else:
        panel.layer.selected_label = 1
        panel.select(1)
        panel.viewer.dims.set_current_step(0, 4)
        getattr(panel, f"{name}_button").native.click()


def test_any_sequence_undone_is_the_start_and_redone_the_end(panel, qtbot):
    """Whatever is done by the mouse, by buttons and by napari's brush, is a history of single steps."""
    layer, start = panel.layer, panel.layer.data.copy()
    camera = getattr(panel.viewer, "scene", panel.viewer).camera
    centre = camera.center

    @settings(max_examples=12, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(st.lists(st.sampled_from([*MOVES, "brush", "smooth", "delete"]), min_size=2, max_size=6))
    def check(names):
        layer.data[...] = start
        layer._reset_history()
        layer.refresh()
        states = [start.copy()]
        for name in names:
            do(panel, name)
            camera.center = centre
            if not np.array_equal(layer.data, states[-1]):
                states.append(layer.data.copy())
        for state in states[-2::-1]:
            layer.undo()
            assert np.array_equal(layer.data, state), names
        for state in states[1:]:
            layer.redo()
            assert np.array_equal(layer.data, state), names

    check()
    panel.wait()
    expected = core.measure(layer.data, voxel_size=(20, 10, 10))
    pd.testing.assert_frame_equal(panel.table, expected)
