"""*Objects* lets go of its layers: when it is closed, when it moves on to others, and when they are removed."""

import gc
import threading
import weakref
from types import SimpleNamespace

import numpy as np
import pytest
from napari.layers import Labels

from napari_kdunet.widgets.proofreading import slice_preview
from napari_kdunet.widgets.proofreading.layer_watch import LayerWatch
from napari_kdunet.widgets.proofreading.measuring import Measured
from napari_kdunet.widgets.shared.layers import OBJECTS
from objects_panel import settle

NM = {"scale": (10.0, 10.0, 10.0), "units": ("nm",) * 3}


def boxes():
    """Two boxes."""
    mask = np.zeros((8, 40, 60), np.uint8)
    mask[1:7, 5:25, 5:25] = mask[1:7, 5:25, 35:55] = 1
    return mask


@pytest.fixture
def viewer(make_napari_viewer):
    made = make_napari_viewer()
    made.add_labels(boxes(), name="mask", **NM)
    return made


@pytest.fixture
def dock(viewer):
    """Opens the panel; gives it with its dock."""
    return lambda: viewer.window.add_plugin_dock_widget("napari-kdunet", "Objects")


@pytest.fixture
def find(qtbot):
    """Finds objects and waits until they are measured."""

    def until(panel):
        panel.start()
        settle(panel, qtbot)
        return panel.layer

    return until


def click(layer, point):
    """A click, for all that listens to the mouse on a layer."""
    for callback in list(layer.mouse_drag_callbacks):
        place = tuple(layer.data_to_world(point))
        event = SimpleNamespace(pos=np.array([10, 10]), position=place, type="mouse_press")
        for _ in callback(layer, event) or ():
            event.type = "mouse_release"


@pytest.mark.parametrize("kept", [False, True])
def test_a_closed_panel_corrects_and_measures_nothing(viewer, dock, find, qtbot, monkeypatch, kept):
    """Whether or not somebody, as napari's console, still holds it."""
    holder, panel = dock()
    layer = find(panel)
    free = list(layer.mouse_drag_callbacks)[:-1]
    panel.tool.value = "delete"
    click(layer, (4, 15, 10))
    assert layer.data[4, 15, 10] == 0, "while it is open it does"
    settle(panel, qtbot)
    panel.tool.value = "cut"
    assert not layer.mouse_pan
    panel.tool.value = "delete"
    holder.destroyOnClose()
    held = panel if kept else None
    del holder, panel
    qtbot.wait(100)
    gc.collect()
    assert layer.mouse_drag_callbacks == free
    before, measured = layer.data.copy(), []
    monkeypatch.setattr(Measured, "of", lambda *_: measured.append(True))
    viewer.layers.selection.active = None
    viewer.layers.selection.active = layer  # which an open panel takes up
    click(layer, (4, 15, 45))
    assert np.array_equal(layer.data, before)
    layer.data_setitem((np.array([4]), np.array([15]), np.array([45])), 0)
    layer.scale = (5.0, 5.0, 5.0)
    assert not layer.metadata[OBJECTS].stale, "so that nothing is measured later"
    assert not measured
    assert held is None or held.worker is None


def test_each_time_it_is_opened_one_hand_is_on_the_layer(viewer, dock, find, qtbot):
    holder, panel = dock()
    layer = find(panel)
    count = len(layer.mouse_drag_callbacks)
    for _ in range(2):
        panel.tool.value = "cut"
        assert not layer.mouse_pan, "a stroke does not move the picture"
        holder.destroyOnClose()
        assert layer.mouse_pan, "without the panel a drag does"
        holder, panel = dock()
        assert panel.layer is layer
        assert len(layer.mouse_drag_callbacks) == count


def test_a_layer_keeps_nobody_who_watches_it():
    class Watcher:
        def __init__(self, layer):
            self.watch = LayerWatch(layer, edited=self.told, selected=self.told, resized=self.told, mouse=self.drag)

        def told(self, *_):
            pass

        def drag(self, layer, event):
            layer.data[:] = 0
            yield

    layer = Labels(boxes(), **NM)
    gone = weakref.ref(Watcher(layer))
    gc.collect()
    assert gone() is None
    click(layer, (4, 15, 10))
    layer.scale = (5.0, 5.0, 5.0)
    assert layer.data.any()


def test_docked_again_it_goes_on(viewer, dock, find, qtbot):
    holder, panel = dock()
    layer = find(panel)
    viewer.window.remove_dock_widget(holder)
    layer.scale = (5.0, 5.0, 5.0)
    before = panel.table["volume_um3"].to_numpy()
    viewer.window.add_dock_widget(panel, name="again")
    qtbot.waitUntil(lambda: np.allclose(panel.table["volume_um3"], before / 8, rtol=1e-6), timeout=60_000)
    panel.tool.value = "delete"
    click(layer, (4, 15, 10))
    assert layer.data[4, 15, 10] == 0
    settle(panel, qtbot)


def test_it_lets_go_of_a_layer_when_it_moves_on_and_when_that_is_removed(viewer, dock, find, qtbot, tmp_path):
    _, panel = dock()
    first = find(panel)
    panel.select_all([1, 2])
    panel.source.value = viewer.layers["mask"]
    second = find(panel)
    assert second is not first
    assert panel.selection == [], "the ids are of other objects"
    counts = [len(layer.mouse_drag_callbacks) for layer in (first, second)]
    assert counts[0] == counts[1] - 1
    panel.tool.value = "delete"
    click(first, (4, 15, 10))
    assert first.data[4, 15, 10] > 0
    viewer.layers.selection.active = first
    assert [len(layer.mouse_drag_callbacks) for layer in (first, second)] == counts[::-1]
    panel.export(str(tmp_path / "t.csv"))
    assert "Wrote" in panel.status.text()
    viewer.layers.remove(first)
    assert len(first.mouse_drag_callbacks) <= counts[0]
    assert panel.layer is not first
    assert "Wrote" not in panel.status.text()


def test_the_preview_goes_with_the_panel(viewer, dock, qtbot):
    holder, panel = dock()
    panel.live.value = True
    qtbot.waitUntil(lambda: panel.preview.layer is not None and not panel.preview.is_busy, timeout=60_000)
    layer = panel.preview.layer
    holder.destroyOnClose()
    assert layer not in viewer.layers


def test_a_preview_that_is_closed_while_it_is_made_stays_so(viewer, dock, qtbot, monkeypatch):
    _, panel = dock()
    real, begun, go_on, made = slice_preview.instances, threading.Event(), threading.Event(), threading.Event()

    def slow(*args, **options):
        begun.set()
        go_on.wait(60)
        try:
            return real(*args, **options)
        finally:
            made.set()

    monkeypatch.setattr(slice_preview, "instances", slow)
    panel.live.value = True
    qtbot.waitUntil(begun.is_set, timeout=60_000)
    panel.live.value = False
    panel.preview.close()
    go_on.set()
    qtbot.waitUntil(made.is_set, timeout=60_000)
    qtbot.wait(50)  # for what it would send
    assert panel.preview.layer is None
    assert [layer.name for layer in viewer.layers] == ["mask"]


def test_closed_while_it_measures_the_next_panel_measures(viewer, dock, find, qtbot, monkeypatch):
    holder, panel = dock()
    layer = find(panel)
    real, begun, go_on, measured = Measured.of, threading.Event(), threading.Event(), threading.Event()

    def slow(*args):
        begun.set()
        go_on.wait(60)
        try:
            return real(*args)
        finally:
            measured.set()

    monkeypatch.setattr(Measured, "of", slow)
    layer.data_setitem(np.nonzero(layer.data == 2), 0)
    qtbot.waitUntil(begun.is_set, timeout=60_000)
    holder.destroyOnClose()
    del holder, panel
    go_on.set()
    qtbot.waitUntil(measured.is_set, timeout=60_000)
    qtbot.wait(50)  # for what it would send
    assert layer.metadata[OBJECTS].stale
    _, panel = dock()
    settle(panel, qtbot)
    assert panel.table["id"].tolist() == [1]
