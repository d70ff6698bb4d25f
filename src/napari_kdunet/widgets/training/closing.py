"""Ask before a window or a dock is closed while a training runs."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

from napari.layers import Layer
from qtpy.compat import isalive
from qtpy.QtCore import QEvent, QObject
from qtpy.QtWidgets import QDockWidget, QMainWindow, QMessageBox

from napari_kdunet.widgets.shared.panel import Panel
from napari_kdunet.widgets.shared.session_folder import KEPT_DAYS

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
        self._watched: list[weakref.ref[Any]] = []  # the image, the window and the dock: none is kept alive by this

    def watch(self, image: Layer) -> None:
        """Ask from now on; `image` is the layer that is trained on."""
        self._watched, parent = [weakref.ref(image)], self.parent()
        close_dock = weakref.WeakMethod(self._close_dock)
        while parent is not None:
            dock: Any = parent
            if isinstance(dock, QDockWidget) and hasattr(dock, "destroyOnClose"):  # napari's dock emits no event
                self._watched.append(weakref.ref(parent))
                dock.destroyOnClose = lambda: (close := close_dock()) and close()
            if isinstance(parent, QMainWindow):
                self._watched.append(weakref.ref(parent))
                parent.installEventFilter(self)
            parent = parent.parent()

    def leave(self) -> None:
        """Stop asking."""
        for watched in self._found():
            if isinstance(watched, QMainWindow):
                watched.removeEventFilter(self)
            elif not isinstance(watched, Layer):
                del watched.destroyOnClose
        self._watched = []

    def _found(self) -> list[Any]:
        """Return the watched objects that still exist."""
        found = [watched() for watched in self._watched]
        return [each for each in found if isinstance(each, Layer) or (each is not None and isalive(each))]

    def eventFilter(self, watched: QObject | None, event: QEvent | None) -> bool:
        """Keep the window open if the user wants that; never asks in ``viewer.close()``, which removes layers first."""
        closing = event is not None and event.type() == QEvent.Type.Close
        learnt_from = any(each in self._panel.viewer.layers for each in self._found() if isinstance(each, Layer))
        if not closing or not learnt_from or self._may_close():
            return False
        assert event is not None
        event.ignore()
        return True

    def _close_dock(self) -> None:
        if self._may_close():
            docks: list[Any] = [each for each in self._found() if isinstance(each, QDockWidget)]
            self.leave()
            for dock in docks:
                dock.destroyOnClose()

    def _may_close(self) -> bool:
        """Ask the user whether to stop; stop if so, and return the answer."""
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
