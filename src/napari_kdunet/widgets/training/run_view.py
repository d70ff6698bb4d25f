"""The display of a training run: buttons, progress, status and curves. It knows of neither threads nor layers."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from qtpy.QtCore import Signal
from qtpy.QtWidgets import QHBoxLayout, QLabel, QProgressBar, QPushButton, QVBoxLayout, QWidget

from napari_kdunet.core.formatting import clock, counted
from napari_kdunet.widgets.shared.panel import wrapped_label
from napari_kdunet.widgets.training.check import STROKES
from napari_kdunet.widgets.training.curves import Curves

if TYPE_CHECKING:
    import napari.viewer

    from napari_kdunet.core import Started, Stepped, Validated

__all__ = ["RunView"]

_PER_MILLE = 1000
_NO = (
    "no slice is held out, and it is soon near 1, however good or bad the model is elsewhere. Label a few more slices; "
    "or paint at least three strokes of each class, of which one in five is kept aside as a check."
)


class RunView(QWidget):
    """The status and the curves of a run, and its `controls`.

    Parameters
    ----------
    viewer : napari.viewer.Viewer
        Viewer whose theme gives the colours of the curves.
    start : str
        Text of the start button.

    Attributes
    ----------
    controls : QWidget
        Buttons to start, pause, stop and save, and a progress bar with the remaining time.
    """

    pause_clicked = Signal()
    stop_clicked = Signal()
    save_clicked = Signal()

    def __init__(self, viewer: napari.viewer.Viewer, start: str) -> None:
        super().__init__()
        self.start_button = _button(start, "Start with the settings above.")
        self.pause_button = _button(
            "Pause", "Pause after the current step, or resume; pauses do not count.", self.pause_clicked
        )
        self.stop_button = _button(
            "Stop", "Stop after the current step; the best model so far is kept.", self.stop_clicked
        )
        self.save_button = _button("Save…", "Write the best model to a .safetensors file.", self.save_clicked)
        self._starters: list[QPushButton] = []
        self.buttons, self._lines = QHBoxLayout(), QVBoxLayout()
        for button in (self.start_button, self.pause_button, self.stop_button, self.save_button):
            self.buttons.addWidget(button, 1)
        self.bar = QProgressBar()
        self.bar.setRange(0, _PER_MILLE)
        self.bar.setToolTip("Share of the budget that is used up, and the time that is left.")
        self.status, self.score, self.notes = wrapped_label(), wrapped_label(), wrapped_label()
        self.notes.hide()
        self.curves = Curves(viewer)
        self.curves.hide()  # before the first run, the settings have the room
        self.controls = QWidget()
        controls = QVBoxLayout(self.controls)
        controls.setContentsMargins(0, 0, 0, 0)
        controls.addLayout(self.buttons)
        controls.addWidget(self.bar)
        layout = QVBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        for label in (self.status, self.score, self.notes):
            self._lines.addWidget(label)
        self._lines.setSpacing(2)
        layout.addLayout(self._lines)
        layout.addWidget(self.curves, 1)
        self._best, self._endless = math.nan, False
        self._latest: Stepped | None = None
        self.curves.drawing.connect(self._show_step)
        self._run, self._kind, self._validated_on = "", "", ""
        self.ended("Ready.")
        self.save_button.setEnabled(False)

    def add_starter(self, button: QPushButton) -> None:
        """Enable this button, which starts a run, only while none is running."""
        self._starters.append(button)

    def add_line(self, label: QLabel) -> None:
        """Add a label below the score."""
        self._lines.addWidget(label)

    def preparing(self, run: str, endless: bool = False) -> None:
        """Show that the run `run` is being prepared; an endless one has no budget."""
        self._run, self._endless = run, endless
        self.curves.begin(run)
        self.curves.show()
        self._set_running(True)
        self.pause_button.setEnabled(False)  # a pause would not hold a teacher that is asked first, and its time counts
        self.bar.setRange(0, 0)
        asked = ", asking the teacher" if run == "student" else ""  # can take a minute where nothing is labelled
        self.status.setText(f"Preparing: reading the slices{asked}…")
        self.score.clear()
        self.notes.hide()
        self._best = math.nan

    def waiting(self, what: str) -> None:
        """Show which labels are missing before the training can begin."""
        self.status.setText(f"Waiting: {what}")

    def started(self, event: Started) -> None:
        """Show the data and the device of the training, which can be paused from now on, unless it is being stopped."""
        self.pause_button.setEnabled(self.stop_button.isEnabled())
        self.bar.setRange(0, _PER_MILLE)
        self.bar.setValue(0)
        where = f"{event.parameters:,} parameters on {event.device}"
        self.status.setText(f"{where}: {counted(len(event.labelled_slices), 'labelled slice')}")
        if event.unlabelled_slices:
            self.status.setText(f"{self.status.text()}, {event.unlabelled_slices} without labels")
        shown = {
            "held-out slices": counted(len(event.val_slices), "held-out slice"),
            "training slices": "training slices, none held out",
            "given volume": counted(len(event.val_slices), "earlier slice"),
            "teacher": "with the teacher; the latest model is kept",
            STROKES: STROKES,
        }
        self._validated_on = shown.get(event.validated_on, event.validated_on)
        kinds = {"training slices": "training", STROKES: "check", "teacher": "agreement"}
        self._kind = kinds.get(event.validated_on, "validation")
        self.curves.measure(f"{self._kind} IoU", shown=self._kind != "training")  # that of training slices is no score
        self.notes.setText("Note: " + " ".join(event.notes))
        self.notes.setVisible(bool(event.notes))

    def stepped(self, event: Stepped) -> None:
        """Show the progress at the next redraw of the curves."""
        self._latest = event
        self.curves.add_step(self._run, event.step, event.loss)

    def _show_step(self) -> None:
        event, self._latest = self._latest, None
        if event is None:
            return
        if self._endless:
            self.bar.setFormat(f"live for {clock(event.seconds)}")
        else:
            left = clock(event.seconds * (1 - event.fraction) / max(event.fraction, 1e-6))
            self.bar.setValue(round(event.fraction * _PER_MILLE))
            self.bar.setFormat(f"%p% · {left} left")
        rate = event.step / max(event.seconds, 1e-6)
        self.status.setText(f"Step {event.step:,} · {rate:.3g} steps/s · loss {event.loss:.3f}")

    def validated(self, event: Validated) -> None:
        """Show the validation score."""
        self.curves.add_validation(self._run, event.step, event.iou)
        self._best = event.iou if math.isnan(self._best) else max(self._best, event.iou)
        if self._kind == "training":
            self.score.setText(
                f"Agreement with the labels that it learns from: {event.iou:.3f}. This is no score: {_NO}"
            )
        else:
            best = "" if self._kind == "agreement" else f"best {self._best:.3f} · "
            self.score.setText(f"{self._kind.capitalize()} IoU {event.iou:.3f} · {best}{self._validated_on}")

    def show_agreement(self, iou: float) -> None:
        """Show how much two passes of the model agree, where nothing was kept aside to score it."""
        self.score.setText(
            f"Check: the masks of a slice and of its mirror image agree with an IoU of {iou:.3f}. A low IoU means that "
            "the model is unsure; a high one does not mean that it is right."
        )

    @property
    def has_score(self) -> bool:
        """Whether the IoU is measured on slices that are not learnt from, rather than being a mere check."""
        return self._kind == "validation"

    def paused(self, is_paused: bool) -> None:
        """Show whether the run is paused."""
        self._show_step()
        self.pause_button.setText("Resume" if is_paused else "Pause")
        if is_paused:
            self.status.setText(f"Paused. {self.status.text()}")

    def ended(self, text: str) -> None:
        """Show how the run ended, and enable the buttons for the next one."""
        self._set_running(False)
        self._show_step()
        if self.bar.maximum() == 0:
            self.bar.setRange(0, _PER_MILLE)
            self.bar.reset()
        self.bar.setFormat("%p%")
        self.paused(False)
        self.status.setText(text)

    def _set_running(self, running: bool) -> None:
        for button in self._starters:
            button.setEnabled(not running)
        self.pause_button.setEnabled(running)
        self.stop_button.setEnabled(running)


def _button(text: str, tip: str, clicked: Any = None) -> QPushButton:
    button = QPushButton(text)
    button.setToolTip(tip)
    button.setMinimumWidth(40)
    if clicked is not None:
        button.clicked.connect(lambda: clicked.emit())
    return button
