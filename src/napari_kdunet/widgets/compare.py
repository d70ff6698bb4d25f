"""The dock widget *Compare with ground truth*: scores, IoU along z, and an overlay of agreement and errors."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from magicgui.widgets import CheckBox, Container
from napari.layers import Image, Layer
from qtpy.compat import isalive
from qtpy.QtWidgets import QFileDialog, QLabel
from superqt.utils import qdebounced, qthrottled

from napari_kdunet.widgets.comparison.comparison import write_csv
from napari_kdunet.widgets.comparison.iou_profile import Profile
from napari_kdunet.widgets.comparison.layer_pair import can_be_compared, default_pair
from napari_kdunet.widgets.comparison.live_comparison import LiveComparison
from napari_kdunet.widgets.comparison.overlay import LEGEND, Overlay
from napari_kdunet.widgets.comparison.score_table import ScoreTable
from napari_kdunet.widgets.shared.fields import threshold_slider
from napari_kdunet.widgets.shared.layers import layer_choice
from napari_kdunet.widgets.shared.panel import Panel, button, in_a_row

if TYPE_CHECKING:
    import napari.viewer

__all__ = ["CompareWidget"]

_REDRAW_MS, _SETTLE_MS = 100, 300


class CompareWidget(Panel):
    """Compare a prediction with labels, or with another prediction.

    Parameters
    ----------
    napari_viewer : napari.viewer.Viewer
        Where the layers are.

    Attributes
    ----------
    prediction, reference : Choice
        The layers.
    sparse, threshold, show_overlay : magicgui widgets
        Whether unpainted voxels count, the threshold of probabilities, and whether to show an overlay.
    live_comparison : LiveComparison
        The voxel counts and the worker that makes them.
    """

    def __init__(self, napari_viewer: napari.viewer.Viewer) -> None:
        self.table, self.profile = ScoreTable(), Profile(napari_viewer)
        self.legend = QLabel(LEGEND)
        start, results = self._buttons()
        super().__init__(
            napari_viewer, self._rows(napari_viewer), [start, self.table, self.profile, results, self.legend]
        )
        self.native.layout().setStretch(self.native.layout().indexOf(self.profile), 2)
        self.live_comparison = LiveComparison(napari_viewer, self.native)
        self.overlay = Overlay(napari_viewer)
        self.draw_soon = qthrottled(self._draw, timeout=_REDRAW_MS, parent=self.native)
        self._start_again_soon = qdebounced(self.start, timeout=_SETTLE_MS, parent=self.native)
        self._connect()
        self._draw()

    def start(self) -> None:
        """Compare the chosen layers."""
        with self.telling():
            ignore = 0 if self.sparse.value else None
            self.live_comparison.start(*self._chosen(), self.threshold.value, ignore)
            self.prediction.held = self.reference.held = True
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
        with self.telling():
            write_csv(path, self.live_comparison.slices)

    def _rows(self, viewer: napari.viewer.Viewer) -> list[Any]:
        some_layer = {"kind": Layer, "accepts": can_be_compared, "sticky": False}
        prediction = layer_choice(
            viewer,
            first=lambda layers: default_pair(layers)[0],
            name="prediction",
            label="Prediction",
            tooltip="Labels, or probabilities (0 to 1) as a floating-point image.",
            **some_layer,
        )
        reference = layer_choice(
            viewer,
            first=lambda layers: default_pair(layers)[1],
            name="reference",
            label="Reference",
            tooltip="What to hold it against: the ground truth, or another prediction.",
            **some_layer,
        )
        sparse = CheckBox(
            name="sparse",
            text="unpainted = not looked at",
            tooltip="Ticked: reference voxels of label 0 do not count; 1 = background, 2 = mitochondrion.\n"
            "Not ticked: 0 = background, anything else = mitochondrion.",
        )
        threshold = threshold_slider("Probability, 0 to 1, above which a voxel is foreground. Of no matter for labels.")
        return [prediction, reference, sparse, threshold]

    def _buttons(self) -> tuple[Container, Container]:
        """The row above the scores, and that below them."""
        overlay = CheckBox(
            value=True,
            name="show_overlay",
            text="Overlay",
            tooltip="Show in colours where the two agree and where not; computed slice by slice.",
        )
        return (
            in_a_row(
                button(
                    "Compare",
                    "Count all slices in the background. Slices painted on later are counted again as you go.",
                    self.start,
                    "start_button",
                ),
                button("Stop", "Count no more slices. What is counted stays.", self.stop, "stop_button"),
            ),
            in_a_row(
                button(
                    "Worst slice",
                    "Go to the slice of the lowest IoU, where the two disagree most.",
                    self.go_to_worst,
                    "worst_button",
                ),
                button("Copy", "Copy the table, for a spreadsheet.", lambda: self.table.copy(), "copy_button"),
                button(
                    "CSV…",
                    "Write scores and voxel counts of every slice to a file.",
                    self._ask_and_export,
                    "csv_button",
                ),
                overlay,
            ),
        )

    def _connect(self) -> None:
        live = self.live_comparison
        for choice in (self.prediction, self.reference):
            choice.changed.connect(self._choice_changed)
        self.threshold.changed.connect(self._setting_changed)
        self.sparse.changed.connect(self._setting_changed)
        self.show_overlay.changed.connect(self._show_overlay)
        self.profile.clicked.connect(live.go_to)
        live.changed.connect(lambda: self.draw_soon())
        live.edited.connect(lambda: self._show_overlay())
        live.replaced.connect(lambda: self._setting_changed())
        self.viewer.layers.events.removed.connect(self._layer_removed)

    def _chosen(self) -> tuple[Layer | None, Layer | None]:
        return self.prediction.value, self.reference.value

    def _choice_changed(self) -> None:
        if self.live_comparison.layers and self._chosen() != self.live_comparison.layers:
            self.overlay.hide()
            self.live_comparison.clear()
        self.draw_soon()

    def _setting_changed(self) -> None:
        if self.live_comparison.comparison is not None:
            self._start_again_soon()

    def _show_overlay(self) -> None:
        live = self.live_comparison
        if self.show_overlay.value and live.comparison is not None:
            self.overlay.show(live.comparison, live.layers[0])
        else:
            self.overlay.hide()

    def _layer_removed(self, event: Any) -> None:
        if isalive(self.native) and self.overlay.layer is not None and event.value == self.overlay.layer:
            self.show_overlay.value = False

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
        self.start_button.enabled = not live.is_running
        self.stop_button.enabled = live.is_running
        for each in (self.worst_button, self.copy_button, self.csv_button):
            each.enabled = bool(counted)
        self.threshold.enabled = any(isinstance(layer, Image) for layer in self._chosen())

    def _ask_and_export(self) -> None:
        path, _ = QFileDialog.getSaveFileName(self.native, "Write the scores", "scores.csv", "CSV (*.csv)")
        if path:
            self.export(path)
