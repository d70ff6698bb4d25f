"""The dock widget *Compare with ground truth*: scores, IoU along z, an overlay, and errors of objects."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from magicgui.widgets import CheckBox, Container
from napari.layers import Image, Layer
from qtpy.compat import isalive
from qtpy.QtWidgets import QFileDialog, QLabel, QTabWidget, QVBoxLayout, QWidget
from superqt.utils import qdebounced, qthrottled

from napari_kdunet.core import KDUNetError, LabelsError
from napari_kdunet.core.objects.scores import ObjectError
from napari_kdunet.widgets.comparison.comparison import notes_text, write_csv
from napari_kdunet.widgets.comparison.iou_profile import Profile
from napari_kdunet.widgets.comparison.layer_pair import can_be_compared, default_pair
from napari_kdunet.widgets.comparison.live_comparison import LiveComparison
from napari_kdunet.widgets.comparison.object_errors import ObjectErrors, Place, iter_compare
from napari_kdunet.widgets.comparison.overlay import LEGEND, Overlay
from napari_kdunet.widgets.comparison.score_table import ScoreTable
from napari_kdunet.widgets.shared.layers import (
    IGNORE_UNLABELLED,
    chosen_layer,
    go_to,
    layer_choice,
    sparse_box,
    threshold_row,
    volume_of,
    warn_if_apart,
)
from napari_kdunet.widgets.shared.panel import Panel, button, in_a_row, wrapped_label
from napari_kdunet.widgets.workers.stopping import stoppable
from napari_kdunet.widgets.workers.thread import EventWorker, run_stoppable

if TYPE_CHECKING:
    import napari.viewer

__all__ = ["CompareWidget"]

_REDRAW_MS, _SETTLE_MS = 100, 300


class CompareWidget(Panel):
    """Compare a prediction with labels, or with another prediction.

    Parameters
    ----------
    napari_viewer : napari.viewer.Viewer
        Viewer of the layers.

    Attributes
    ----------
    prediction, reference : Choice
        Choices of the two layers.
    sparse, threshold, show_overlay : magicgui widgets
        Whether unlabelled voxels are ignored, the threshold of probabilities, and whether to show an overlay.
    live_comparison : LiveComparison
        The voxel counts and the worker that makes them.
    notes : QLabel
        What was assumed of the values, as `core.evaluate` says it.
    """

    def __init__(self, napari_viewer: napari.viewer.Viewer) -> None:
        self.table, self.profile, self.objects = ScoreTable(), Profile(napari_viewer), ObjectErrors()
        self.legend, self.notes = QLabel(LEGEND), wrapped_label()
        self.object_worker: EventWorker | None = None
        self._compared: tuple[Any, ...] = ()
        self.pages = QTabWidget()
        start, results, objects = self._buttons()
        super().__init__(napari_viewer, self._rows(napari_viewer), [results, objects, self.pages], [start])
        self._fill_pages(results, objects)
        self.live_comparison = LiveComparison(napari_viewer, self.native, on_error=self._failed)
        self.overlay = Overlay(napari_viewer)
        self.draw_soon = qthrottled(self._draw, timeout=_REDRAW_MS, parent=self.native)
        self._show_overlay_soon = qthrottled(self._show_overlay, timeout=_REDRAW_MS, parent=self.native)
        self._start_again_soon = qdebounced(self.start, timeout=_SETTLE_MS, parent=self.native)
        self._connect()
        self._draw()

    def start(self) -> None:
        """Compare the chosen layers."""
        with self.telling():
            ignore, chosen, before = 0 if self.sparse.value else None, self._chosen(), self.live_comparison.layers
            try:
                self.live_comparison.start(*chosen, self.threshold.value, ignore)
            except KDUNetError:
                self.overlay.hide()
                self.live_comparison.clear()  # the scores shown are of layers that were compared before
                raise
            if chosen != before:  # no warning at each new threshold
                warn_if_apart(*self.live_comparison.layers)
            self.prediction.held = self.reference.held = True
        self._draw()  # at once: a short comparison can be stopped from its first moment

    def compare_objects(self) -> None:
        """Score the objects of the chosen layers, and list those that are split, merged, missed or false."""
        with self.telling():
            layers = self._chosen()
            if None in layers or layers[0] is layers[1]:
                raise LabelsError("choose two different layers to compare: labels with a number for each object.")
            if self.sparse.value:
                raise LabelsError(f"objects are compared in whole slices: untick “{IGNORE_UNLABELLED}”.")
            volumes = [volume_of(chosen_layer(choice)) for choice in (self.prediction, self.reference)]
            warn_if_apart(*layers)
            self._stop_objects()
            self._compared = layers
            self.object_worker = run_stoppable(
                lambda is_stopped: iter_compare(*(stoppable(volume, is_stopped) for volume in volumes)),
                on_event=self.objects.show_comparison,
                on_done=self._objects_ended,
                on_error=self._objects_ended,
                owner=self.native,
            )
        self._draw()

    def dock_closed(self) -> None:
        """Stop what is running, and discard the comparison."""
        self.live_comparison.clear()
        self._stop_objects()

    def go_to_error(self, error: ObjectError, place: Place) -> None:
        """Go to an error of objects, and select the first object concerned in each layer."""
        for layer, ids in zip(self._compared, (error.predicted, error.true), strict=True):
            if ids and layer in self.viewer.layers:
                layer.selected_label = ids[0]
        go_to(self.viewer, self._compared[1], place)

    def stop(self) -> None:
        """Stop counting; the slices counted so far stay."""
        self.live_comparison.stop()
        self._stop_objects()
        self._draw()

    def go_to_worst(self) -> None:
        """Go to the slice with the lowest IoU."""
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
            tooltip="Layer to compare the prediction with: the ground truth, or another prediction.",
            **some_layer,
        )
        return [prediction, reference, sparse_box(), threshold_row(prediction, reference)]

    def _buttons(self) -> tuple[Container, Container, Container]:
        """Return the rows that start and stop, that go below the scores, and that go above the errors of objects."""
        overlay = CheckBox(
            value=True,
            name="show_overlay",
            text="Overlay",
            tooltip="Show in colours where the two layers agree and where they differ; computed slice by slice.",
        )
        return (
            in_a_row(
                button(
                    "Compare",
                    "Compare all slices in the background. Slices that you paint on later are compared again.",
                    self.start,
                    "start_button",
                ),
                button(
                    "Stop", "Stop comparing. The scores of the slices compared so far stay.", self.stop, "stop_button"
                ),
            ),
            in_a_row(
                button(
                    "Worst slice",
                    "Go to the slice with the lowest IoU, where the two layers differ most.",
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
            in_a_row(
                button(
                    "Compare objects",
                    "Score the predicted objects, and list those that are split, merged, missed or false compared with "
                    "the reference.",
                    self.compare_objects,
                    "objects_button",
                )
            ),
        )

    def _fill_pages(self, results: Container, objects: Container) -> None:
        """Fill one page with the comparison voxel by voxel, and one with that object by object."""
        self.pages.setDocumentMode(True)
        self.pages.setToolTip("The comparison voxel by voxel, or object by object.")
        for title, parts in (
            ("Voxels", (self.table, self.notes, self.profile, results.native, self.legend)),
            ("Objects", (objects.native, self.objects)),
        ):
            page = QWidget()
            layout = QVBoxLayout(page)
            layout.setContentsMargins(0, 4, 0, 0)
            for part in parts:
                layout.addWidget(part, int(part in (self.profile, self.objects)))
            self.pages.addTab(page, title)
        self.give_room_to(self.pages)

    def _failed(self, error: Exception) -> None:
        self.show_error(error)
        if isinstance(error, LabelsError):  # of labels that cannot be scored no score is right
            self.overlay.hide()
            self.live_comparison.clear()

    def _objects_ended(self, error: Exception | None = None) -> None:
        if error is not None:
            self.show_error(error)
        self.object_worker = None
        self._draw()

    def _stop_objects(self) -> None:
        if self.object_worker is not None:
            self.object_worker.drop()
            self.object_worker = None

    def _connect(self) -> None:
        self.objects.chosen.connect(self.go_to_error)
        live = self.live_comparison
        for choice in (self.prediction, self.reference):
            choice.changed.connect(self._choice_changed)
        self.threshold.changed.connect(self._setting_changed)
        self.sparse.changed.connect(self._setting_changed)
        self.show_overlay.changed.connect(self._show_overlay)
        self.profile.clicked.connect(live.go_to)
        live.changed.connect(lambda: self.draw_soon())
        live.edited.connect(lambda: self._show_overlay_soon())
        live.moved.connect(lambda: self._show_overlay_soon())
        live.replaced.connect(lambda: self._setting_changed())
        self.viewer.layers.events.removed.connect(self._layer_removed)

    def _chosen(self) -> tuple[Layer | None, Layer | None]:
        return self.prediction.value, self.reference.value

    def _choice_changed(self) -> None:
        if self.live_comparison.layers and self._chosen() != self.live_comparison.layers:
            self.overlay.hide()
            self.live_comparison.clear()
        if self._compared and self._chosen() != self._compared:
            self._stop_objects()
            self._compared = ()
            self.objects.show_comparison(None)
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
        if event.value in self._chosen():  # the choices are updated next: the layer that is left may change sides
            self.prediction.held = self.reference.held = False
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
        self.notes.setText(notes_text(live.notes))
        self.notes.setVisible(bool(live.notes))
        self.profile.set(live.ious, total.iou)
        self.profile.set_current(z)
        self.start_button.enabled = not live.is_running
        self.objects_button.enabled = self.object_worker is None
        self.stop_button.enabled = live.is_running or self.object_worker is not None
        for each in (self.worst_button, self.copy_button, self.csv_button):
            each.enabled = bool(counted)
        self.threshold.enabled = any(isinstance(layer, Image) for layer in self._chosen())

    def _ask_and_export(self) -> None:
        path, _ = QFileDialog.getSaveFileName(self.native, "Write the scores", "scores.csv", "CSV (*.csv)")
        if path:
            self.export(path)
