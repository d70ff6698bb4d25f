"""The models of this session, shared by all panels, and the control that chooses among them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from psygnal import Signal as Emitted
from qtpy.QtCore import Signal
from qtpy.QtWidgets import QComboBox, QFileDialog, QHBoxLayout, QPushButton, QWidget

from napari_kdunet import core
from napari_kdunet.widgets.shared.notify import reporting
from napari_kdunet.widgets.shared.thread_worker import run

if TYPE_CHECKING:
    from collections.abc import Iterator

    from napari_kdunet.core import Model

__all__ = ["ModelChooser", "ModelStore", "ask_and_save", "models"]

_FILES = "Models (*.safetensors)"


class ModelStore:
    """Models by name: those trained or opened in this session, the latest first, then the bundled ones."""

    changed = Emitted()

    def __init__(self) -> None:
        self._models: dict[str, Model] = {}
        self._bundled: dict[str, Model] = {}

    def add(self, name: str, model: Model) -> str:
        """Add a model, and return its name: `name`, with a number if that is taken."""
        taken, unique, number = self.names(), name, 2
        while unique in taken:
            unique, number = f"{name} {number}", number + 1
        self._models[unique] = model
        self.changed.emit()
        return unique

    def update(self, name: str, model: Model) -> None:
        """Replace the model of a name that `add` has returned."""
        self._models[name] = model
        self.changed.emit()

    def session_names(self) -> list[str]:
        """Names of the models of this session, the latest first."""
        return list(reversed(self._models))

    def names(self) -> list[str]:
        """All names: those of this session, the latest first, then the bundled ones."""
        return self.session_names() + [name for name in core.bundled_models() if name not in self._models]

    def get(self, name: str) -> Model:
        """The model of this name, from any thread; a bundled one is read at its first use.

        Raises
        ------
        ModelError
            If there is none, or its file cannot be read.
        """
        if name in self._models:
            return self._models[name]
        if name not in self._bundled:
            self._bundled[name] = core.load_model(name)
        return self._bundled[name]

    def clear(self) -> None:
        """Remove the models of this session."""
        self._models.clear()
        self.changed.emit()


#: The store that all panels share.
models = ModelStore()


class ModelChooser(QWidget):
    """Choose a model of the session or a bundled one, open one from a file, save the chosen one.

    Parameters
    ----------
    store : ModelStore, optional
        The store to choose from; `models` by default.
    none : str
        The choice of no model, which comes first; if empty, a model is required.
    parent : QWidget, optional
        Parent widget.
    """

    changed = Signal(str)  # name of the chosen model, or ""; also when a better model has replaced it

    def __init__(self, store: ModelStore | None = None, parent: QWidget | None = None, *, none: str = "") -> None:
        super().__init__(parent)
        self.none = none
        self.store = models if store is None else store
        self.combo = QComboBox()
        self.combo.setToolTip("Models trained or opened in this session, and those that come with the plugin.")
        self.combo.setSizeAdjustPolicy(QComboBox.SizeAdjustPolicy.AdjustToMinimumContentsLengthWithIcon)
        self.combo.setMinimumContentsLength(16)
        self.open_button = QPushButton("Open…")
        self.open_button.setToolTip("Open a model from a .safetensors file.")
        self.save_button = QPushButton("Save…")
        self.save_button.setToolTip("Write the chosen model to a .safetensors file.")
        layout = QHBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.addWidget(self.combo, 1)
        layout.addWidget(self.open_button)
        layout.addWidget(self.save_button)

        self.combo.currentIndexChanged.connect(self._emit_changed)
        self.open_button.clicked.connect(self._ask_and_open)
        self.save_button.clicked.connect(self._ask_and_save)
        store_changed, refresh = self.store.changed, self._refresh
        store_changed.connect(refresh)
        self.destroyed.connect(lambda: store_changed.disconnect(refresh, missing_ok=True))
        self._refresh()

    @property
    def name(self) -> str:
        """Name of the chosen model; empty where there is none."""
        return str(self.combo.currentData() or "")

    @name.setter
    def name(self, name: str) -> None:
        self.combo.setCurrentIndex(self.combo.findData(name))

    def model(self) -> Model:
        """The chosen model, read if necessary (for other threads see `ModelStore.get`).

        Raises
        ------
        ModelError
            If none is chosen, or it cannot be read.
        """
        if not self.name:
            raise core.ModelError("no model is chosen: train one, or open one from a file.")
        return self.store.get(self.name)

    def open(self, path: str | Path) -> None:
        """Read a model on a thread, add it to the store and choose it; errors are notified."""

        def load() -> Iterator[Model]:
            yield core.load_model(path)

        def loaded(model: Model) -> None:
            self.name = self.store.add(Path(path).stem, model)

        run(load, on_event=loaded, owner=self)

    def _refresh(self) -> None:
        before = self.name
        session, names = self.store.session_names(), self.store.names()
        self.combo.blockSignals(True)
        self.combo.clear()
        if self.none:
            self.combo.addItem(self.none, "")
        for name in names:
            self.combo.addItem(name if name in session else f"{name} (bundled)", name)
        if not self.combo.count():
            self.combo.addItem("no model yet: train or open one", "")
        self.combo.setCurrentIndex(max(self.combo.findData(before), 0))
        self.combo.blockSignals(False)
        self._emit_changed()

    def _emit_changed(self) -> None:
        self.save_button.setEnabled(bool(self.name))
        self.changed.emit(self.name)

    def _ask_and_open(self) -> None:
        path, _ = QFileDialog.getOpenFileName(self, "Open a model", "", _FILES)
        if path:
            self.open(path)

    def _ask_and_save(self) -> None:
        ask_and_save(self.name, self.store, self)


def ask_and_save(name: str, store: ModelStore = models, parent: QWidget | None = None) -> None:
    """Ask for a file and write a model to it; errors are notified, and the model stays in the store."""
    chosen, _ = QFileDialog.getSaveFileName(parent, "Save the model", f"{name}.safetensors", _FILES)
    if chosen:
        path = Path(chosen if chosen.endswith(".safetensors") else f"{chosen}.safetensors")
        with reporting():
            store.get(name).save(path)
