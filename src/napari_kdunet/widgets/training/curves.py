"""Live plots of a training over its steps: the validation IoU above, the training loss below."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pyqtgraph as pg
from qtpy.QtCore import QSize, Qt, Signal
from qtpy.QtWidgets import QVBoxLayout, QWidget
from superqt.utils import qthrottled

from napari_kdunet.widgets.shared.theme import FollowTheme

if TYPE_CHECKING:
    import napari.viewer

__all__ = ["Curves", "Run"]

# Okabe and Ito (2008): safe for the colour-blind, on dark and light backgrounds
_COLOURS = ("#E69F00", "#56B4E9", "#CC79A7")
_TEACHER = "#009E73"
_SMOOTH = 0.1  # share of a new loss in the running mean that is drawn
# ms between two redraws, however fast the steps are: at each, Qt composes the whole window, canvas included, while it
# holds the global interpreter lock, so that a training in this process waits
_REDRAW = 500
_EMPTY = 100  # steps on the axis before there are any
_MAX_VALUES = 20_000  # values of a run, so that drawing stays fast; beyond that every other value is dropped
_UNBOUNDED = 1e6  # pixels: a height without limit


@dataclass
class Run:
    """The data of one training run."""

    steps: list[int] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    smooth: list[float] = field(default_factory=list)
    val_steps: list[int] = field(default_factory=list)
    ious: list[float] = field(default_factory=list)


class _LossAxis(pg.AxisItem):
    """Logarithmic axis with ticks at few round numbers."""

    def tickValues(self, minVal: float, maxVal: float, size: float) -> list[tuple[float, list[float]]]:
        decades = 10.0 ** np.arange(np.floor(minVal), np.ceil(maxVal) + 1)[:, None]
        for ladder in ((1,), (1, 3), (1, 2, 5), (1, 1.5, 2, 3, 4, 5, 6, 8)):
            ticks = np.log10(decades * ladder).ravel()
            ticks = ticks[(ticks >= minVal) & (ticks <= maxVal)]
            if len(ticks) > 2:
                break
        return [(1.0, ticks.tolist())]

    def tickStrings(self, values: list[float], scale: float, spacing: float) -> list[str]:
        return [f"{10**value:.2g}" for value in values]


def _thin(*columns: list[Any]) -> None:
    for column in columns:
        if len(column) > _MAX_VALUES:
            del column[-2::-2]  # the newest value stays


class Curves(QWidget):
    """Plots of training loss (smoothed, and raw in a faint colour) and validation IoU of one or more runs.

    The IoU of a teacher is a horizontal line.

    Parameters
    ----------
    viewer : napari.viewer.Viewer
        Viewer whose theme gives the colours.

    Attributes
    ----------
    runs : dict of str to Run
        The data of each run, by its name.
    teacher_iou : float or None
        The IoU of the teacher, if there is one.
    """

    drawing = Signal()  # at each redraw, so that other displays are updated at the same rate

    def __init__(self, viewer: napari.viewer.Viewer) -> None:
        super().__init__()
        self.viewer = viewer
        self.runs: dict[str, Run] = {}
        self.teacher_iou: float | None = None
        self.graphics = pg.GraphicsLayoutWidget()
        self.iou_plot = self.graphics.addPlot(row=0, col=0)
        self.loss_plot = self.graphics.addPlot(row=1, col=0, axisItems={"left": _LossAxis("left")})
        self.measure("validation IoU")
        self.loss_plot.setLabel("left", "training loss")
        self.loss_plot.setLabel("bottom", "step")
        self.iou_plot.setYRange(0, 1, padding=0.02)
        for plot in (self.iou_plot, self.loss_plot):
            plot.setMenuEnabled(False)
            plot.hideButtons()
            plot.setMouseEnabled(False, False)
            plot.getAxis("left").setWidth(66)  # a loss may be 0.0001
            plot.getAxis("bottom").enableAutoSIPrefix(False)
            plot.setDownsampling(auto=True, mode="subsample")
        self.loss_plot.setLogMode(y=True)
        self.iou_plot.getAxis("bottom").setStyle(showValues=False)  # same as in the plot below
        self.iou_plot.setXRange(0, _EMPTY, padding=0.02)
        self.legend = self.iou_plot.addLegend(offset=(-4, -4), labelTextSize="9pt")  # good curves avoid this corner
        self._items: dict[str, tuple[Any, Any, Any]] = {}
        self._line: Any = None
        self.setMinimumHeight(110)
        layout = QVBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.addWidget(self.graphics)
        self._draw_soon = qthrottled(self._draw, timeout=_REDRAW, leading=False, parent=self)
        FollowTheme(self, viewer, self.graphics, (self.iou_plot, self.loss_plot), self._draw_legend)

    def sizeHint(self) -> QSize:
        """Small enough for the screen of a laptop; the plots grow with the panel."""
        return QSize(320, 240)

    def measure(self, what: str, *, shown: bool = True) -> None:
        """Set the label of the upper plot, and whether the plot is shown."""
        self.iou_plot.setLabel("left", what)
        self.iou_plot.setVisible(shown)
        self.graphics.ci.layout.setRowMaximumHeight(0, _UNBOUNDED if shown else 0)
        self.loss_plot.setXLink(self.iou_plot if shown else None)  # so that their axes are aligned

    def begin(self, name: str) -> None:
        """Start a run; an earlier one of the same name is replaced."""
        self.runs[name] = Run()
        if name not in self._items:
            colour = _COLOURS[len(self._items) % len(_COLOURS)]
            faint = pg.mkColor(colour)
            faint.setAlpha(90)
            pen = pg.mkPen(colour, width=2)
            dots = {"symbol": "o", "symbolSize": 6, "symbolBrush": colour, "symbolPen": None}
            self._items[name] = (
                self.loss_plot.plot(pen=pg.mkPen(faint, width=1)),
                self.loss_plot.plot(pen=pen),
                self.iou_plot.plot(pen=pen, name=name, **dots),
            )
        self._draw_soon()

    def clear(self) -> None:
        """Remove all runs and the teacher's line."""
        for name, (faint, smooth, iou) in self._items.items():
            self.loss_plot.removeItem(faint)
            self.loss_plot.removeItem(smooth)
            self.iou_plot.removeItem(iou)
            self.runs.pop(name, None)
        self._items.clear()
        self.set_teacher(None)

    def add_step(self, name: str, step: int, loss: float) -> None:
        """Add the loss of a step."""
        run = self.runs[name]
        before = run.smooth[-1] if run.smooth else loss
        run.steps.append(step)
        run.smooth.append(before + max(_SMOOTH, 1 / len(run.steps)) * (loss - before))
        run.losses.append(loss)
        _thin(run.steps, run.losses, run.smooth)
        self._draw_soon()

    def add_validation(self, name: str, step: int, iou: float) -> None:
        """Add the validation IoU after a step."""
        run = self.runs[name]
        run.val_steps.append(step)
        run.ious.append(iou)
        _thin(run.val_steps, run.ious)
        self._draw_soon()

    def set_teacher(self, iou: float | None) -> None:
        """Set the IoU of the teacher, drawn as a dashed line; None removes it."""
        self.teacher_iou = iou
        if self._line is not None:
            self.iou_plot.removeItem(self._line)
            self._line = None
        if iou is not None:
            pen = pg.mkPen(_TEACHER, width=2, style=Qt.PenStyle.DashLine)
            side = 0 if iou > 0.5 else 1  # below the line of a good teacher, to stay within the plot
            options = {"position": 0.02, "anchors": [(0, side), (0, side)], "color": _TEACHER}
            self._line = pg.InfiniteLine(iou, angle=0, pen=pen, label=f"teacher {iou:.3f}", labelOpts=options)
            self.iou_plot.addItem(self._line)

    def drawn(self, name: str) -> list[float]:
        """Return the validation IoUs of a run that are drawn, which may be fewer than were added."""
        _, ious = self._items[name][2].getData()
        return [] if ious is None else list(ious)

    def _draw(self) -> None:
        self.drawing.emit()
        for name, (faint, smooth, iou) in self._items.items():
            run = self.runs[name]
            faint.setData(run.steps, run.losses)
            smooth.setData(run.steps, run.smooth)
            iou.setData(run.val_steps, run.ious)
        last = max((run.steps[-1] for run in self.runs.values() if run.steps), default=_EMPTY)
        for plot in (self.iou_plot, self.loss_plot):
            plot.setXRange(0, last, padding=0.02)

    def _draw_legend(self, text: str) -> None:
        self.legend.setLabelTextColor(text)
        for _, label in self.legend.items:
            label.setText(label.text, color=text)
