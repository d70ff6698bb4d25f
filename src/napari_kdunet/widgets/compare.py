"""The dock widget *Compare with ground truth*: scores, IoU along z, and an overlay of agreement and errors."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from qtpy.QtCore import QTimer
from qtpy.QtWidgets import QCheckBox, QFileDialog, QFormLayout, QHBoxLayout, QLabel, QPushButton, QWidget
from superqt import QLabeledDoubleSlider

from napari_kdunet.widgets.comparison.comparison import write_csv
from napari_kdunet.widgets.comparison.iou_profile import Profile
from napari_kdunet.widgets.comparison.layer_pair import LayerPair
from napari_kdunet.widgets.comparison.live_comparison import LiveComparison
from napari_kdunet.widgets.comparison.overlay import LEGEND, Overlay
from napari_kdunet.widgets.comparison.score_table import ScoreTable
from napari_kdunet.widgets.shared.notify import reporting

if TYPE_CHECKING:
    import napari.viewer

__all__ = ["CompareWidget"]

_REDRAW_MS, _SETTLE_MS = 100, 300


class CompareWidget(QWidget):
    """Compare a prediction with labels, or with another prediction.

    Parameters
    ----------
    napari_viewer : napari.viewer.Viewer
        Where the layers are.

    Attributes
    ----------
    live_comparison : LiveComparison
        The voxel counts and the worker that makes them.
    """

    def __init__(self, napari_viewer: napari.viewer.Viewer) -> None:
        super().__init__()
        self.viewer = napari_viewer
        self.pair = LayerPair(napari_viewer, self)
        self.live_comparison = LiveComparison(napari_viewer, self)
        self.overlay = Overlay(napari_viewer)
        self._redraw = self._timer(_REDRAW_MS, self._draw)
        self._restart = self._timer(_SETTLE_MS, self.start)
        self._build()
        self._connect()
        self._draw()

    def start(self) -> None:
        """Compare the chosen layers."""
        ignore = 0 if self.sparse.isChecked() else None
        self.pair.hold = True
        with reporting():
            self.live_comparison.start(*self.pair.layers, self.threshold.value(), ignore)
        self._draw()  # not soon: a short comparison can be stopped from its first moment

    def stop(self) -> None:
        """Stop counting; the slices counted so far stay."""
        self.live_comparison.stop()

    def go_to_worst(self) -> None:
        """Go to the slice of the lowest IoU."""
        if self.live_comparison.worst is not None:
            self.live_comparison.go_to(self.live_comparison.worst)

    def export(self, path: str) -> None:
        """Write the scores of all slices to a CSV file."""
        with reporting():
            write_csv(path, self.live_comparison.slices)

    def _build(self) -> None:
        self.threshold = QLabeledDoubleSlider()
        self.threshold.setRange(0.01, 0.99)
        self.threshold.setValue(0.5)
        self.threshold.setDecimals(2)
        self.threshold.setToolTip("Probability, 0 to 1, above which a voxel is foreground. Of no matter for labels.")
        self.sparse = QCheckBox("unpainted = not looked at")
        self.sparse.setToolTip(
            "Ticked: reference voxels of label 0 do not count; 1 = background, 2 = mitochondrion.\n"
            "Not ticked: 0 = background, anything else = mitochondrion."
        )
        tips = {
            "Compare": "Count all slices in the background. Slices painted on later are counted again as you go.",
            "Stop": "Count no more slices. What is counted stays.",
            "Worst slice": "Go to the slice of the lowest IoU, where the two disagree most.",
            "Copy": "Copy the table, for a spreadsheet.",
            "CSV…": "Write scores and voxel counts of every slice to a file.",
        }
        buttons = {text: QPushButton(text) for text in tips}
        for text, button in buttons.items():
            button.setToolTip(tips[text])
        self.start_button, self.stop_button, self.worst_button, self.copy_button, self.csv_button = buttons.values()
        self.show_overlay = QCheckBox("Overlay")
        self.show_overlay.setChecked(True)
        self.show_overlay.setToolTip("Show in colours where the two agree and where not; computed slice by slice.")
        self.table, self.profile, self.legend = ScoreTable(), Profile(self.viewer), QLabel(LEGEND)
        form = QFormLayout(self)
        form.setFieldGrowthPolicy(QFormLayout.FieldGrowthPolicy.AllNonFixedFieldsGrow)
        form.addRow("Prediction", self.pair.prediction)
        form.addRow("Reference", self.pair.reference)
        form.addRow("", self.sparse)
        form.addRow("Threshold", self.threshold)
        form.addRow(_row(self.start_button, self.stop_button, stretch=1))
        form.addRow(self.table)
        form.addRow(self.profile)
        form.addRow(_row(self.worst_button, self.copy_button, self.csv_button))
        form.addRow(self.show_overlay)
        form.addRow(self.legend)

    def _connect(self) -> None:
        self.pair.changed.connect(self._choice_changed)
        self.threshold.valueChanged.connect(self._setting_changed)
        self.sparse.toggled.connect(self._setting_changed)
        self.start_button.clicked.connect(self.start)
        self.stop_button.clicked.connect(self.stop)
        self.worst_button.clicked.connect(self.go_to_worst)
        self.copy_button.clicked.connect(self.table.copy)
        self.csv_button.clicked.connect(self._ask_and_export)
        self.show_overlay.toggled.connect(self._show_overlay)
        self.profile.clicked.connect(self.live_comparison.go_to)
        self.live_comparison.changed.connect(self._draw_soon)
        self.live_comparison.edited.connect(self._show_overlay)
        self.live_comparison.replaced.connect(self._setting_changed)
        removed, gone = self.viewer.layers.events.removed, self._layer_removed
        removed.connect(gone)
        self.destroyed.connect(lambda: removed.disconnect(gone))

    def _timer(self, interval: int, call: Callable[[], None]) -> QTimer:
        timer = QTimer(self)
        timer.setSingleShot(True)
        timer.setInterval(interval)
        timer.timeout.connect(call)
        return timer

    def _choice_changed(self) -> None:
        if self.live_comparison.layers and self.pair.layers != self.live_comparison.layers:
            self.overlay.hide()
            self.live_comparison.clear()
        self._draw_soon()

    def _setting_changed(self) -> None:
        if self.live_comparison.comparison is not None:
            self._restart.start()

    def _show_overlay(self) -> None:
        live = self.live_comparison
        if self.show_overlay.isChecked() and live.comparison is not None:
            self.overlay.show(live.comparison, live.layers[0])
        else:
            self.overlay.hide()

    def _layer_removed(self, event: Any) -> None:
        if self.overlay.layer is not None and event.value == self.overlay.layer:
            self.show_overlay.setChecked(False)

    def _draw_soon(self) -> None:
        if not self._redraw.isActive():
            self._redraw.start()

    def _draw(self) -> None:
        live = self.live_comparison
        counted, z, total = [s for s in live.slices if s is not None], live.z, live.total
        part = f" ({len(counted)} of {len(live.slices)})" if len(counted) < len(live.slices) else ""
        current = live.slices[z] if live.slices else None
        self.table.set(
            total if counted else None,
            f"Volume{part}",
            current,
            f"Slice {z}" if live.slices else "Slice on screen",
        )
        self.profile.set(live.ious, total.iou)
        self.profile.set_current(z)
        self.start_button.setEnabled(not live.is_running)
        self.stop_button.setEnabled(live.is_running)
        for button in (self.worst_button, self.copy_button, self.csv_button):
            button.setEnabled(bool(counted))
        self.threshold.setEnabled(self.pair.has_probability)

    def _ask_and_export(self) -> None:
        path, _ = QFileDialog.getSaveFileName(self, "Write the scores", "scores.csv", "CSV (*.csv)")
        if path:
            self.export(path)


def _row(*widgets: QWidget, stretch: int = 0) -> QHBoxLayout:
    row = QHBoxLayout()
    for i, widget in enumerate(widgets):
        row.addWidget(widget, stretch * (i == 0))
    return row
