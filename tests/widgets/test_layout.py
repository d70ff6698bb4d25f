"""The panels on the screen of a laptop: 350 pixels wide, 768 high, tabbed or above each other."""

import numpy as np
import pytest
from qtpy.QtCore import QPoint, Qt
from qtpy.QtWidgets import QApplication, QScrollArea, QTabWidget

PANELS = ("Train teacher", "Distil student", "Segment", "Objects", "Compare with ground truth")


@pytest.fixture
def docks(make_napari_viewer):
    """Opens panels, tabbed or not, in a window of 1366 x 768; gives the window and docks and widgets by name."""

    def open_them(names, *, tabbed):
        viewer = make_napari_viewer(show=True)
        window = viewer.window._qt_window
        window.resize(1366, 768)
        opened = {
            name: viewer.window.add_plugin_dock_widget("napari-kdunet", name, tabify=tabbed and bool(i))
            for i, name in enumerate(names)
        }
        QApplication.processEvents()
        return window, opened

    return open_them


def start_of(widget):
    return widget.view.start_button if hasattr(type(widget), "start_with") else widget.start_button.native


def progress_of(widget):
    """The progress bar, where there is one all the time, or something is under way."""
    bar = widget.view.bar if hasattr(type(widget), "start_with") else getattr(widget, "bar", None)
    return None if bar is None or bar.isHidden() else bar


def scroll_to_the_end(widget):
    for area in widget.native.findChildren(QScrollArea):
        area.verticalScrollBar().setValue(area.verticalScrollBar().maximum())


def is_in_sight(widget, panel):
    """Whether the whole of a widget lies within the panel, as it is scrolled now."""
    corners = widget.mapTo(panel, QPoint(0, 0)), widget.mapTo(panel, QPoint(widget.width() - 1, widget.height() - 1))
    return all(panel.rect().contains(corner) for corner in corners) and not widget.visibleRegion().isEmpty()


def test_all_docks_above_each_other_fit(docks):
    window, opened = docks(PANELS, tabbed=False)
    assert window.minimumSizeHint().height() <= 768 - 30  # of the window's own title
    assert window.height() == 768
    opened["Objects"][1].bar.show()
    QApplication.processEvents()
    for name, (_, widget) in opened.items():
        assert widget.native.height() >= 100
        scroll_to_the_end(widget)
        assert is_in_sight(start_of(widget), widget.native), name
        if (bar := progress_of(widget)) is not None:
            assert is_in_sight(bar, widget.native), name


@pytest.mark.parametrize("name", PANELS)
def test_a_panel_of_350_pixels_shows_its_start(docks, name):
    _, opened = docks(PANELS[:2] if name in PANELS[:2] else (PANELS[0], name), tabbed=True)
    dock, widget = opened[name]
    dock.raise_()
    dock.setFixedWidth(350)
    for _ in range(3):
        QApplication.processEvents()
    assert dock.width() == 350
    assert widget.native.minimumSizeHint().width() <= 350
    assert is_in_sight(start_of(widget), widget.native)
    assert (bar := progress_of(widget)) is None or is_in_sight(bar, widget.native)
    pages = widget.native.findChildren(QTabWidget)
    for area in widget.native.findChildren(QScrollArea):
        area.setVerticalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOn)
    for page in range(max((tabs.count() for tabs in pages), default=1)):
        for tabs in pages:
            tabs.setCurrentIndex(page)
        for _ in range(3):
            QApplication.processEvents()
        for area in (widget.body.parentWidget().parentWidget().parentWidget(), widget[0].native):
            assert area.widget().width() <= area.viewport().width(), "nothing lies to the right of the edge"


def test_the_labels_of_rows_are_aligned(docks, qtbot):
    _, opened = docks(("Objects",), tabbed=False)
    _, widget = opened["Objects"]
    rows = (widget.source, widget.raw, widget.threshold, widget.split, widget.min_diameter, widget.smoothing)
    qtbot.waitUntil(lambda: len({row.native.mapTo(widget.native, QPoint(0, 0)).x() for row in rows}) == 1)


def test_the_table_of_objects_is_in_sight_below_other_docks(docks, qtbot):
    _, opened = docks(("Segment", "Compare with ground truth", "Objects"), tabbed=False)
    _, widget = opened["Objects"]
    mask = np.zeros((4, 40, 40), np.uint8)
    mask[:, 5:30, 5:30] = 1
    widget.viewer.add_labels(mask, scale=(10, 10, 10), units=("nm",) * 3)
    widget.start()
    qtbot.waitUntil(lambda: widget.worker is None and widget.table is not None, timeout=60_000)
    rows = widget.rows.viewport()
    qtbot.waitUntil(lambda: rows.visibleRegion().boundingRect().height() >= 5 * widget.rows.rowHeight(0))


def test_no_row_of_objects_is_cut_in_a_low_window(docks):
    window, opened = docks(("Objects",), tabbed=False)
    window.resize(1000, 700)
    for _ in range(3):
        QApplication.processEvents()
    _, widget = opened["Objects"]
    assert is_in_sight(widget.mode.native, widget.native)
    assert widget.mode.native.visibleRegion().boundingRect().height() == widget.mode.native.height()
