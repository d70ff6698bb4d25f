"""Table and plot of the measurements, side by side as tabs: both show the same objects and the same selection."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, TypeVar

import pandas as pd
from qtpy.compat import isalive
from qtpy.QtCore import QSize, Qt, QTimer
from qtpy.QtWidgets import QDockWidget, QMainWindow, QScrollArea, QTabWidget, QWidget

from napari_kdunet.widgets.proofreading.table.object_plot import ObjectPlot
from napari_kdunet.widgets.proofreading.table.object_table import ObjectTable

if TYPE_CHECKING:
    import napari.viewer

__all__ = ["TableViews"]

W = TypeVar("W", bound=QWidget)
_LEAST, _ROOM = 188, 420  # pixels: least height of the tabs, and height of a panel in which they are in sight


class TableViews(QTabWidget):
    """Tabs with the table, `rows`, and the plot, `plot`."""

    def __init__(self, viewer: napari.viewer.Viewer) -> None:
        super().__init__()
        self.rows, self.plot = ObjectTable(), ObjectPlot(viewer)
        self.setToolTip("The measurements, as a table or plotted.")
        self.setDocumentMode(True)
        self.addTab(self.rows, "Table")
        self.addTab(self.plot, "Plot")
        self.setMinimumHeight(_LEAST)

    def sizeHint(self) -> QSize:
        """Return a low height, so that the rows below are in sight on a laptop; the tabs grow with the room."""
        return QSize(super().sizeHint().width(), _LEAST)

    def show_table(self, table: pd.DataFrame) -> None:
        """Show measurements, a row an object."""
        self.rows.show_table(table)
        self.plot.show_table(table)

    def select(self, numbers: Sequence[int]) -> None:
        """Select objects by their ids."""
        self.rows.select(numbers)
        self.plot.select(numbers)

    def make_room(self, panel: QWidget) -> None:
        """Bring the tabs into sight in a panel that several docks above each other leave low."""
        dock = _around(panel, QDockWidget)
        window = None if dock is None or dock.isFloating() else _around(dock, QMainWindow)
        if dock is not None and window is not None and panel.height() < _ROOM:
            window.resizeDocks([dock], [_ROOM], Qt.Orientation.Vertical)
            QTimer.singleShot(0, self._scroll_to)

    def _scroll_to(self) -> None:
        if isalive(self) and (area := _around(self, QScrollArea)) is not None:
            area.ensureWidgetVisible(self, 0, 0)


def _around(widget: QWidget, kind: type[W]) -> W | None:
    """Return the innermost widget of a kind around another widget."""
    parent = widget.parentWidget()
    while parent is not None and not isinstance(parent, kind):
        parent = parent.parentWidget()
    return parent
