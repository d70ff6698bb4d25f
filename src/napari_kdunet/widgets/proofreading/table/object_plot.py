"""Histogram or scatter plot of the measurements of objects, in which a lasso or box selects objects."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pyqtgraph as pg
from qtpy.QtCore import QSignalBlocker, QSize, Qt, Signal
from qtpy.QtWidgets import QComboBox, QHBoxLayout, QVBoxLayout, QWidget
from skimage.measure import points_in_poly

from napari_kdunet.widgets.proofreading.table.titles import title_of
from napari_kdunet.widgets.shared.fields import make_narrow
from napari_kdunet.widgets.shared.theme import FollowTheme

if TYPE_CHECKING:
    import napari.viewer

__all__ = ["COUNT", "ObjectPlot"]

#: Choice along y, in place of a measurement, that makes the plot a histogram.
COUNT = "count"

_ALL, _SELECTED = "#56B4E9", "#E69F00"  # Okabe and Ito (2008)
_FIRST = ("volume_um3", COUNT)
_FEW = 5  # objects in the highest bar: below this, the axis would have ticks at halves
_REACH = 12  # pixels from a click to the point that it selects


class _Box(pg.ViewBox):
    """A view box in which a drag draws, rather than moving the plot."""

    drawn = Signal(object, bool)  # points (N, 2), and whether they add to the selection
    drawing = Signal(object)

    def __init__(self) -> None:
        super().__init__(enableMenu=False)
        self._points: list[tuple[float, float]] = []

    def mouseDragEvent(self, event: Any, axis: Any = None) -> None:
        """Collect the points of a drag of the left button."""
        event.accept()
        if event.button() != Qt.MouseButton.LeftButton:
            return
        if event.isStart():
            start = self.mapSceneToView(event.buttonDownScenePos())
            self._points = [(start.x(), start.y())]
        place = self.mapSceneToView(event.scenePos())
        self._points.append((place.x(), place.y()))
        points = np.array(self._points)
        if event.isFinish():
            self.drawn.emit(points, bool(event.modifiers() & Qt.KeyboardModifier.ShiftModifier))
        else:
            self.drawing.emit(points)

    def wheelEvent(self, event: Any, axis: Any = None) -> None:
        """Leave the wheel to the panel."""
        event.ignore()


class ObjectPlot(QWidget):
    """A plot of one measurement (histogram) or two (scatter) of the objects that the table shows.

    Drawing a lasso or a box selects objects, in a histogram drawing a range; with Shift, they add to the selection.

    Parameters
    ----------
    viewer : napari.viewer.Viewer
        Viewer whose theme gives the colours.

    Signals
    -------
    chosen : list of int
        Ids of the objects that the user has selected.
    """

    chosen = Signal(list)

    def __init__(self, viewer: napari.viewer.Viewer) -> None:
        super().__init__()
        self.viewer = viewer
        self.table = pd.DataFrame({"id": np.empty(0, np.int64)})
        self.selected: list[int] = []
        self._values: tuple[Any, Any, Any] = (np.empty(0, np.int64), np.empty(0), None)
        self._at: dict[int, int] = {}  # index of each object in these, by its id
        self._edges = np.array([0.0, 1.0])  # of the bars
        self.along_x, self.along_y, self.shape = QComboBox(), QComboBox(), QComboBox()
        for box, tip in (
            (self.along_x, "Measurement along x."),
            (self.along_y, "Measurement along y; count draws a histogram."),
        ):
            box.setToolTip(tip)
            make_narrow(box)
            box.currentTextChanged.connect(lambda _: self._draw())
        self.shape.addItems(["lasso", "box"])
        self.shape.setToolTip("Shape to draw in the plot to select objects; in a histogram it is always a range.")
        self.box = _Box()
        self.plot = pg.PlotWidget(viewBox=self.box)
        self.plot.setToolTip(
            "Drag around points, or over bars, to select these objects; hold Shift to add to the selection."
        )
        self.plot.hideButtons()
        # otherwise 0.005 µm³ are shown as 5; with data in the plot, this call itself would set such a factor
        for side in ("left", "bottom"):
            self.plot.getAxis(side).enableAutoSIPrefix(False)
        self.bars = pg.BarGraphItem(x=[], height=[], width=1, brush=_ALL, pen=None)
        self.marked = pg.BarGraphItem(x=[], height=[], width=1, brush=_SELECTED, pen=None)
        self.points = pg.ScatterPlotItem(size=7, pen=None, brush=_ALL)
        self.picked = pg.ScatterPlotItem(size=7, pen=None, brush=_SELECTED)
        self.line = pg.PlotCurveItem(pen=pg.mkPen(_SELECTED, width=2))
        for item in (self.bars, self.marked, self.points, self.picked, self.line):
            self.plot.addItem(item)
        self._lay_out()
        self.box.drawing.connect(self._drawing)
        self.box.drawn.connect(self._drawn)
        self.plot.scene().sigMouseClicked.connect(self._clicked)
        FollowTheme(self, viewer, self.plot, [self.plot])

    def sizeHint(self) -> QSize:
        """Return a size like that of the table."""
        return QSize(380, 200)

    def show_table(self, table: pd.DataFrame) -> None:
        """Plot another table; the chosen columns stay, if it has them."""
        self.table = table
        numbers = [name for name in table if name != "id" and table[name].dtype.kind in "iuf"]
        for box, names, first in ((self.along_x, numbers, _FIRST[0]), (self.along_y, [COUNT, *numbers], _FIRST[1])):
            before = box.currentData()
            if [box.itemData(i) for i in range(box.count())] != names:
                with QSignalBlocker(box):
                    box.clear()
                    for name in names:
                        box.addItem(title_of(name), name)
                        box.setItemData(box.count() - 1, name, Qt.ItemDataRole.ToolTipRole)  # the name to filter by
                    box.setCurrentIndex(box.findData(before if before in names else first))
        self._draw()

    def show_columns(self, x: str, y: str) -> None:
        """Plot column `x` of the table against column `y`, or a histogram of it if `y` is `COUNT`."""
        for box, name in ((self.along_x, x), (self.along_y, y)):
            box.setCurrentIndex(box.findData(name))

    def select(self, numbers: Iterable[int]) -> None:
        """Mark objects, without a signal."""
        self.selected = list(numbers)
        self._mark()

    def _lay_out(self) -> None:
        above = QHBoxLayout()
        above.addWidget(self.along_x, 1)
        above.addWidget(self.along_y, 1)
        above.addWidget(self.shape)
        layout = QVBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.addLayout(above)
        layout.addWidget(self.plot)
        self.setMinimumHeight(150)

    def _read(self) -> tuple[Any, Any, Any]:
        """Return ids, x and y (None in a histogram) of the objects that have both."""
        names = [self.along_x.currentData(), self.along_y.currentData()]
        if names[0] not in self.table:
            return np.empty(0, np.int64), np.empty(0), None
        x = self.table[names[0]].to_numpy(dtype=float)
        y = None if names[1] == COUNT else self.table[names[1]].to_numpy(dtype=float)
        there = np.isfinite(x) if y is None else np.isfinite(x) & np.isfinite(y)
        return self.table["id"].to_numpy()[there], x[there], None if y is None else y[there]

    def _draw(self) -> None:
        self._values = ids, x, y = self._read()
        self._at = {number: at for at, number in enumerate(ids.tolist())}
        flat = y is None
        for item, of_bars in ((self.bars, True), (self.marked, True), (self.points, False), (self.picked, False)):
            item.setVisible(flat == of_bars)
        if flat:
            edges = np.histogram_bin_edges(x, "auto") if len(x) else np.array([0.0, 1.0])
            if len(edges) < 6:  # few objects
                edges = np.histogram_bin_edges(x, 8) if len(x) else edges
            self._edges = edges
            self._set_bars(self.bars, x)
        else:
            self.points.setData(x, y)
        self.plot.setLabel("bottom", self.along_x.currentText())
        self.plot.setLabel("left", self.along_y.currentText())
        few = flat and self.bars.opts["height"].max(initial=0) < _FEW
        self.plot.getAxis("left").setTickSpacing(levels=[(1, 0)] if few else None)  # no ticks at half an object
        self._mark()

    def _mark(self) -> None:
        """Mark the selected objects; the others stay as they are drawn, as there may be very many."""
        _, x, y = self._values
        chosen = sorted(self._at[number] for number in {*self.selected} & self._at.keys())
        if y is None:
            self._set_bars(self.marked, x[chosen])
        else:
            self.picked.setData(x[chosen], y[chosen])
        self.plot.enableAutoRange()

    def _set_bars(self, item: Any, values: Any) -> None:
        edges = self._edges
        middles, width = (edges[1:] + edges[:-1]) / 2, 0.95 * (edges[1] - edges[0])
        item.setOpts(x=middles, height=np.histogram(values, edges)[0], width=width)

    def _outline(self, points: Any) -> Any:
        """Return the polygon (N, 2) that a drag draws."""
        if self._values[2] is not None and self.shape.currentText() == "lasso":
            return points
        (left, top), (right, bottom) = points[0], points[-1]
        if self._values[2] is None:
            bottom, top = self.box.viewRange()[1]
        return np.array([(left, top), (right, top), (right, bottom), (left, bottom)])

    def _drawing(self, points: Any) -> None:
        outline = self._outline(points)
        self.plot.disableAutoRange()
        self.line.setData(*np.concatenate([outline, outline[:1]]).T)

    def _drawn(self, points: Any, more: bool) -> None:
        self.line.setData([], [])
        ids, x, y = self._values
        outline = self._outline(points)
        if y is None:
            inside = (x >= outline[:, 0].min()) & (x <= outline[:, 0].max())
        else:
            scale = np.ptp(outline, axis=0)
            scale[scale == 0] = 1
            inside = points_in_poly(np.stack([x, y], 1) / scale, outline / scale)
        self._choose(ids[inside].tolist(), more)

    def _clicked(self, event: Any) -> None:
        """Select the point, or the objects of the bar, that is clicked on."""
        ids, x, y = self._values
        if event.button() != Qt.MouseButton.LeftButton or not len(ids):
            return
        place, pixel = self.box.mapSceneToView(event.scenePos()), self.box.viewPixelSize()
        more = bool(event.modifiers() & Qt.KeyboardModifier.ShiftModifier)
        if y is None:
            middles, half = self.bars.opts["x"], self.bars.opts["width"] / 1.9
            bar = middles[np.argmin(np.abs(middles - place.x()))]
            self._choose(ids[np.abs(x - bar) <= half].tolist(), more)
        else:
            distance = np.hypot((x - place.x()) / pixel[0], (y - place.y()) / pixel[1])
            near = int(distance.argmin())
            self._choose([int(ids[near])] if distance[near] <= _REACH else [], more)

    def _choose(self, numbers: list[int], more: bool) -> None:
        self.selected = sorted({*self.selected, *numbers}) if more else numbers
        self._mark()
        self.chosen.emit(self.selected)
