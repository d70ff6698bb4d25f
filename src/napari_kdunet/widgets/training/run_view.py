"""What one sees of a training: its buttons, progress, status and curves. It knows nothing of threads or layers."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from qtpy.QtCore import QSize, Qt, Signal
from qtpy.QtWidgets import (
    QFrame,
    QHBoxLayout,
    QLabel,
    QProgressBar,
    QPushButton,
    QScrollArea,
    QSizePolicy,
    QVBoxLayout,
    QWidget,
)

from napari_kdunet.core.parsing import clock
from napari_kdunet.widgets.training.curves import Curves

if TYPE_CHECKING:
    import napari.viewer

    from napari_kdunet.core import Started, Stepped, Validated

__all__ = ["RunView", "UpDownScroll"]

_PER_MILLE = 1000


class UpDownScroll(QScrollArea):
    """Scrolls up and down only: it is as wide as what is in it needs."""

    def __init__(self, content: QWidget) -> None:
        super().__init__()
        self.setWidgetResizable(True)
        self.setFrameShape(QFrame.Shape.NoFrame)
        self.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
        self.setWidget(content)

    def minimumSizeHint(self) -> QSize:
        """Wide enough for the content and the scroll bar."""
        content, bar = self.widget(), self.verticalScrollBar()
        if content is None or bar is None:
            return super().minimumSizeHint()
        return QSize(content.minimumSizeHint().width() + bar.sizeHint().width(), 200)


class RunView(QWidget):
    """Start, Pause / Resume, Stop and Save; a progress bar with the time left; what happens in words; the curves.

    Parameters
    ----------
    viewer : napari.viewer.Viewer
        Whose theme the curves follow.
    start : str
        What the start button says.
    """

    pause_clicked = Signal()
    stop_clicked = Signal()
    save_clicked = Signal()

    def __init__(self, viewer: napari.viewer.Viewer, start: str) -> None:
        super().__init__()
        self.start_button = _button(start, "Begin, with the settings above.")
        self.pause_button = _button("Pause", "Wait after this step, or go on; pauses do not count.", self.pause_clicked)
        self.stop_button = _button("Stop", "End after this step; the best model so far is kept.", self.stop_clicked)
        self.save_button = _button("Save…", "Write the best model to a .safetensors file.", self.save_clicked)
        self._starters: list[QPushButton] = []
        self.buttons, self._lines = QHBoxLayout(), QVBoxLayout()
        for button in (self.start_button, self.pause_button, self.stop_button, self.save_button):
            self.buttons.addWidget(button, 1)
        self.bar = QProgressBar()
        self.bar.setRange(0, _PER_MILLE)
        self.bar.setToolTip("Share of the budget that is used up, and the time that is left.")
        self.status, self.score, self.notes = _words(), _words(), _words()
        self.notes.hide()
        self.curves = Curves(viewer)
        layout = QVBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.addLayout(self.buttons)
        layout.addWidget(self.bar)
        for label in (self.status, self.score, self.notes):
            self._lines.addWidget(label)
        layout.addLayout(self._lines)
        layout.addWidget(self.curves, 1)
        self._best, self._endless = math.nan, False
        self._latest: Stepped | None = None
        self.curves.drawing.connect(self._show_step)
        self._run, self._kind, self._validated_on = "", "", ""
        self.ended("Ready.")
        self.save_button.setEnabled(False)

    def add_starter(self, button: QPushButton) -> None:
        """Let a button that starts a run, wherever it is, be usable when nothing runs."""
        self._starters.append(button)

    def add_line(self, label: QLabel) -> None:
        """Put a line of words under the score."""
        self._lines.addWidget(label)

    def preparing(self, run: str, endless: bool = False) -> None:
        """A run of this name was asked for, with a budget or not; its slices are being read."""
        self._run, self._endless = run, endless
        self.curves.begin(run)
        self._set_running(True)
        self.bar.setRange(0, 0)
        self.status.setText("Preparing: reading the slices…")
        self.score.clear()
        self.notes.hide()
        self._best = math.nan

    def waiting(self, what: str) -> None:
        """Say what has to be painted before training can begin."""
        self.status.setText(f"Waiting: {what}")

    def started(self, event: Started) -> None:
        """Show what is trained on."""
        self.bar.setRange(0, _PER_MILLE)
        self.bar.setValue(0)
        where = f"{event.parameters:,} parameters on {event.device}"
        self.status.setText(f"{where}: {len(event.labelled_slices)} labelled slices")
        if event.unlabelled_slices:
            self.status.setText(f"{self.status.text()}, {event.unlabelled_slices} without labels")
        plural = "" if len(event.val_slices) == 1 else "s"
        kinds = {
            "held-out slices": f"{len(event.val_slices)} held-out slice{plural}",
            "training slices": "of the labels that it learns from, none held out",
            "given volume": f"{len(event.val_slices)} earlier slice{plural}",
            "teacher": "agreement with the teacher",
        }
        self._validated_on = kinds.get(event.validated_on, event.validated_on)
        self._kind = "training" if event.validated_on == "training slices" else "validation"
        self.curves.measure(f"{self._kind} IoU")
        self.notes.setText("Note: " + " ".join(event.notes))
        self.notes.setVisible(bool(event.notes))

    def stepped(self, event: Stepped) -> None:
        """Show how far it is, when the curves are drawn."""
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
        """Show the score."""
        self.curves.add_validation(self._run, event.step, event.iou)
        self._best = event.iou if math.isnan(self._best) else max(self._best, event.iou)
        kind = self._kind.capitalize()
        self.score.setText(f"{kind} IoU {event.iou:.3f} · best {self._best:.3f} · {self._validated_on}")

    def paused(self, yes: bool) -> None:
        """Show whether it waits."""
        self._show_step()
        self.pause_button.setText("Resume" if yes else "Pause")
        if yes:
            self.status.setText(f"Paused. {self.status.text()}")

    def ended(self, text: str) -> None:
        """Say how it ended; the buttons are as before the start."""
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
    if clicked is not None:
        button.clicked.connect(lambda: clicked.emit())
    return button


def _words() -> QLabel:
    label = QLabel()
    label.setWordWrap(True)
    label.setSizePolicy(QSizePolicy.Policy.Ignored, QSizePolicy.Policy.Minimum)
    return label
