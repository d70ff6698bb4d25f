"""The live plot of a training: validation IoU above, training loss below, over the same steps."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pyqtgraph as pg
from napari.utils.theme import get_theme
from qtpy.QtCore import QSize, Qt, QTimer, Signal
from qtpy.QtWidgets import QVBoxLayout, QWidget

if TYPE_CHECKING:
    import napari.viewer

__all__ = ["Curves", "Run"]

# Okabe and Ito (2008): told apart by the colour-blind, and on a dark as on a light ground
_COLOURS = ("#E69F00", "#56B4E9", "#CC79A7")
_TEACHER = "#009E73"
_SMOOTH = 0.1  # share of a new loss in the running mean that is drawn
# ms between two drawings, however fast the steps come: for each Qt composes the whole window again, canvas and all,
# while napari holds the interpreter's lock, and the training waits
_REDRAW = 500
_EMPTY = 100  # steps on the axis before there are any
_MOST = 20_000  # values kept of a run, to be drawn quickly; of more, every other one is let go


@dataclass
class Run:
    """The data of one training: what is drawn, and what a test can look at."""

    steps: list[int] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    smooth: list[float] = field(default_factory=list)
    val_steps: list[int] = field(default_factory=list)
    ious: list[float] = field(default_factory=list)


class _LossAxis(pg.AxisItem):
    """A logarithmic axis, labelled at round numbers, as few of them as do."""

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
        del column[: len(column) if len(column) > _MOST else 0 : 2]


class Curves(QWidget):
    """Loss (smoothed; each step faintly behind) and validation IoU of one or more runs, and the teacher's IoU.

    Parameters
    ----------
    viewer : napari.viewer.Viewer
        Whose theme to follow.

    Attributes
    ----------
    runs : dict of str to Run
        The data by the name of the run.
    teacher_iou : float or None
        The line to reach.
    """

    drawing = Signal()  # for what changes as often, to be drawn along

    def __init__(self, viewer: napari.viewer.Viewer) -> None:
        super().__init__()
        self.viewer = viewer
        self.runs: dict[str, Run] = {}
        self.teacher_iou: float | None = None
        self.graphics = pg.GraphicsLayoutWidget()
        self.iou_plot = self.graphics.addPlot(row=0, col=0)
        self.loss_plot = self.graphics.addPlot(row=1, col=0, axisItems={"left": _LossAxis("left")})
        self.loss_plot.setXLink(self.iou_plot)
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
        self.iou_plot.getAxis("bottom").setStyle(showValues=False)  # they are those of the plot below
        self.iou_plot.setXRange(0, _EMPTY, padding=0.02)
        self.legend = self.iou_plot.addLegend(offset=(-4, -4), labelTextSize="9pt")  # where a good curve does not go
        self._items: dict[str, tuple[Any, Any, Any]] = {}
        self._line: Any = None
        self.setMinimumHeight(240)
        layout = QVBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.addWidget(self.graphics)
        self._timer = QTimer(self)
        self._timer.setSingleShot(True)
        self._timer.setInterval(_REDRAW)
        self._timer.timeout.connect(self._draw)
        theme, follow = viewer.events.theme, self._follow_theme
        theme.connect(follow)
        self.destroyed.connect(lambda: theme.disconnect(follow))
        self._follow_theme()

    def sizeHint(self) -> QSize:
        """Small enough for a laptop's screen; the plots take what room there is."""
        return QSize(320, 300)

    def measure(self, what: str) -> None:
        """Say what the upper plot shows."""
        self.iou_plot.setLabel("left", what)

    def begin(self, name: str) -> None:
        """Start a run of this name, in the place of one that has it."""
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
        self._timer.start()

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
        """Tell the loss of a step."""
        run = self.runs[name]
        before = run.smooth[-1] if run.smooth else loss
        run.steps.append(step)
        run.smooth.append(before + max(_SMOOTH, 1 / len(run.steps)) * (loss - before))
        run.losses.append(loss)
        _thin(run.steps, run.losses, run.smooth)
        self._redraw_soon()

    def add_validation(self, name: str, step: int, iou: float) -> None:
        """Tell the validation IoU after a step."""
        run = self.runs[name]
        run.val_steps.append(step)
        run.ious.append(iou)
        _thin(run.val_steps, run.ious)
        self._redraw_soon()

    def set_teacher(self, iou: float | None) -> None:
        """Draw the teacher's IoU as a line to reach, or none."""
        self.teacher_iou = iou
        if self._line is not None:
            self.iou_plot.removeItem(self._line)
            self._line = None
        if iou is not None:
            pen = pg.mkPen(_TEACHER, width=2, style=Qt.PenStyle.DashLine)
            options = {"position": 0.02, "anchors": [(0, 1), (0, 0)], "color": _TEACHER}
            self._line = pg.InfiniteLine(iou, angle=0, pen=pen, label=f"teacher {iou:.3f}", labelOpts=options)
            self.iou_plot.addItem(self._line)

    def drawn(self, name: str) -> list[float]:
        """The validation IoUs of a run as they are drawn by now."""
        _, ious = self._items[name][2].getData()
        return [] if ious is None else list(ious)

    def _redraw_soon(self) -> None:
        if not self._timer.isActive():
            self._timer.start()

    def _draw(self) -> None:
        self.drawing.emit()
        for name, (faint, smooth, iou) in self._items.items():
            run = self.runs[name]
            faint.setData(run.steps, run.losses)
            smooth.setData(run.steps, run.smooth)
            iou.setData(run.val_steps, run.ious)
        last = max((run.steps[-1] for run in self.runs.values() if run.steps), default=_EMPTY)
        self.iou_plot.setXRange(0, last, padding=0.02)

    def _follow_theme(self, event: Any = None) -> None:
        theme = get_theme(self.viewer.theme)
        ground, text = theme.background.as_hex(), theme.text.as_hex()
        self.graphics.setBackground(ground)
        for plot in (self.iou_plot, self.loss_plot):
            for side in ("left", "bottom"):
                plot.getAxis(side).setPen(pg.mkPen(text, width=1))
                plot.getAxis(side).setTextPen(text)
        self.legend.setLabelTextColor(text)
        for _, label in self.legend.items:
            label.setText(label.text, color=text)
