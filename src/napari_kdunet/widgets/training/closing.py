"""Ask before a window or a dock is closed with a training under way."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from napari.layers import Layer
from qtpy.QtCore import QEvent, QObject
from qtpy.QtWidgets import QDockWidget, QMainWindow, QMessageBox

from napari_kdunet.widgets.shared.panel import Panel
from napari_kdunet.widgets.shared.session import KEPT_DAYS

__all__ = ["CloseGuard"]


class CloseGuard(QObject):
    """Asks, while a training runs, before napari or the dock of its panel is closed: stop and keep, or go on.

    Parameters
    ----------
    panel : Panel
        The panel that trains.
    model_name : callable
        Returns the name of the best model so far; empty if there is none.
    stop : callable
        Stops the training.
    """

    def __init__(self, panel: Panel, model_name: Callable[[], str], stop: Callable[[], None]) -> None:
        super().__init__(panel.native)
        self._panel, self._model_name, self._stop = panel, model_name, stop
        self._image: Layer | None = None
        self._window: QObject | None = None
        self._dock: Any = None

    def watch(self, image: Layer) -> None:
        """Ask from now on; `image` is what is trained on."""
        self._image, parent = image, self.parent()
        while parent is not None:
            if isinstance(parent, QDockWidget) and hasattr(parent, "destroyOnClose"):  # napari's, which has no event
                self._dock = parent
                self._dock.destroyOnClose = self._close_dock
            if isinstance(parent, QMainWindow):
                self._window = parent
                parent.installEventFilter(self)
            parent = parent.parent()

    def leave(self) -> None:
        """Ask no more."""
        if self._window is not None:
            self._window.removeEventFilter(self)
        if self._dock is not None:
            del self._dock.destroyOnClose
        self._window = self._dock = self._image = None

    def eventFilter(self, watched: QObject | None, event: QEvent | None) -> bool:
        """Keep the window open if the user wants that; a script's ``viewer.close()`` has removed the layers before."""
        closing = event is not None and event.type() == QEvent.Type.Close
        if not closing or self._image not in self._panel.viewer.layers or self._may_close():
            return False
        assert event is not None
        event.ignore()
        return True

    def _close_dock(self) -> None:
        if self._may_close():
            dock = self._dock
            self.leave()
            dock.destroyOnClose()

    def _may_close(self) -> bool:
        """Ask; whether to stop."""
        name = self._model_name()
        kept = (
            f"Its best model so far, “{name}”, is kept: it is in the list of models for {KEPT_DAYS} days."
            if name
            else "There was no validation yet, so there is no model to keep."
        )
        box = QMessageBox(self._panel.native)
        box.setIcon(QMessageBox.Icon.Question)
        box.setWindowTitle("A training is under way")
        box.setText(f"A training is under way. {kept}")
        stop = box.addButton("Stop and keep" if name else "Stop", QMessageBox.ButtonRole.AcceptRole)
        stay = box.addButton("Go on training", QMessageBox.ButtonRole.RejectRole)
        box.setDefaultButton(stay)
        box.exec()
        chosen = box.clickedButton()
        box.deleteLater()
        if chosen is stop:
            self._stop()
        return chosen is stop
