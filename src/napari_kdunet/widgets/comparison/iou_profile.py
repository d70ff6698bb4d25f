"""Plot of the IoU along z; the current slice is marked, and a click goes to a slice."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pyqtgraph as pg
from qtpy.QtCore import QSize, Qt, Signal
from qtpy.QtWidgets import QVBoxLayout, QWidget

from napari_kdunet.widgets.shared.theme import FollowTheme

if TYPE_CHECKING:
    import napari.viewer

__all__ = ["Profile"]

_CURVE, _WORST = "#56B4E9", "#D55E00"  # Okabe and Ito (2008)
_EMPTY = 10  # slices on the axis before there are any


class Profile(QWidget):
    """Plot of the IoU of each slice along z, with a gap where neither segmentation has foreground.

    Parameters
    ----------
    viewer : napari.viewer.Viewer
        Viewer whose theme gives the colours.
    """

    clicked = Signal(int)  # z of the slice nearest to the click

    def __init__(self, viewer: napari.viewer.Viewer) -> None:
        super().__init__()
        self.viewer = viewer
        self.setToolTip("Intersection over union (IoU) of each slice. Click to go to a slice; the worst one has a dot.")
        self.plot = pg.PlotWidget()
        self.plot.setMenuEnabled(False)
        self.plot.hideButtons()
        self.plot.setMouseEnabled(False, False)
        self.plot.setYRange(0, 1, padding=0.04)
        self.plot.setLabel("left", "IoU")
        self.plot.setLabel("bottom", "slice z")
        self.plot.getAxis("bottom").enableAutoSIPrefix(False)
        self.plot.getAxis("left").setWidth(42)
        self.curve = self.plot.plot(pen=pg.mkPen(_CURVE, width=2), connect="finite")
        self.single = self.plot.plot(pen=None, symbol="o", symbolSize=3, symbolPen=None, symbolBrush=_CURVE)
        self.dot = self.plot.plot(pen=None, symbol="o", symbolSize=9, symbolPen=None, symbolBrush=_WORST)
        self.mark = pg.InfiniteLine(0, angle=90)
        self.mean = pg.InfiniteLine(0, angle=0)
        for line in (self.mark, self.mean):
            self.plot.addItem(line)
        self.setMinimumHeight(150)
        layout = QVBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.addWidget(self.plot)
        self.plot.scene().sigMouseClicked.connect(self._clicked)
        self.set([], float("nan"))
        FollowTheme(self, viewer, self.plot, [self.plot], self._draw_lines)

    def sizeHint(self) -> QSize:
        """Small enough for the screen of a laptop; the plot grows with the panel."""
        return QSize(380, 200)

    def set(self, ious: Sequence[float], total: float) -> None:
        """Draw the IoU of each slice (nan: none), and that of the volume, `total`, as a dashed line."""
        values, self.count = np.asarray(ious, float), len(ious)
        z = np.arange(self.count)
        self.curve.setData(z, values)
        self.single.setData(z[np.isfinite(values)], values[np.isfinite(values)])
        worst = [int(np.nanargmin(values))] if np.isfinite(values).any() else []
        self.dot.setData(worst, values[worst])
        self.mean.setVisible(bool(np.isfinite(total)))
        self.mean.setValue(total if np.isfinite(total) else 0)
        self.mark.setVisible(bool(self.count))
        self.plot.setXRange(0, max(self.count - 1, 1) if self.count else _EMPTY, padding=0.02)

    def set_current(self, z: int) -> None:
        """Mark the current slice."""
        self.mark.setValue(z)

    def _clicked(self, event: Any) -> None:
        box = self.plot.getPlotItem().getViewBox()
        if self.count and event.button() == Qt.MouseButton.LeftButton:
            z = round(box.mapSceneToView(event.scenePos()).x())
            self.clicked.emit(min(max(z, 0), self.count - 1))

    def _draw_lines(self, text: str) -> None:
        self.mark.setPen(pg.mkPen(text, width=1))
        self.mean.setPen(pg.mkPen(_CURVE, width=1, style=Qt.PenStyle.DashLine))
