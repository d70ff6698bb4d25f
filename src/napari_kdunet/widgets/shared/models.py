"""The models of this session, shared by all panels, and the choice among them."""

from __future__ import annotations

from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any

from magicgui.widgets import Container
from psygnal import Signal
from qtpy.compat import isalive
from qtpy.QtWidgets import QFileDialog, QWidget

from napari_kdunet import core
from napari_kdunet.core.networks.model_file import DamagedError, TensorFile
from napari_kdunet.widgets.notify import reporting
from napari_kdunet.widgets.shared.fields import Choice
from napari_kdunet.widgets.shared.panel import button, in_a_row
from napari_kdunet.widgets.shared.session_folder import SessionFolder
from napari_kdunet.widgets.workers.thread import run

if TYPE_CHECKING:
    from collections.abc import Iterator

    from napari_kdunet.core import Model

__all__ = ["ModelChoice", "ModelStore", "ask_and_save", "models"]

_FILES = "Models (*.safetensors)"
_TIP = "Models trained or opened in this session, those that come with the plugin, and those of earlier sessions."
_PLURALS = {"mitochondrion": "mitochondria", "boundary": "outlines"}


class ModelStore:
    """Models by name: those of this session, the latest first, then the bundled ones, then those of earlier sessions.

    Parameters
    ----------
    session : SessionFolder, optional
        Folder with the models of earlier sessions.
    """

    changed = Signal()

    def __init__(self, session: SessionFolder | None = None) -> None:
        self.session = session or SessionFolder()
        self._models: dict[str, Model] = {}
        self._images: dict[str, str] = {}
        self._controls: set[str] = set()
        self._read: dict[str, Model] = {}
        self._reading = Lock()
        self._headers: dict[str, dict[str, Any]] = {}

    def add(self, name: str, model: Model, image: str = "", *, is_control: bool = False) -> str:
        """Add a model, trained on the image `image`, and return its name: `name`, with a number if that is taken.

        A control (`is_control`) is there only for comparison: it is offered neither as the best model nor as a teacher.
        """
        taken, unique, number = self.names(), name, 2
        while unique in taken:
            unique, number = f"{name} {number}", number + 1
        self._models[unique], self._images[unique] = model, image
        if is_control:
            self._controls.add(unique)
        self.changed.emit()
        return unique

    def update(self, name: str, model: Model) -> None:
        """Replace the model under a name that `add` has returned."""
        self._models[name] = model
        self.changed.emit()

    def session_names(self) -> list[str]:
        """Return the names of the models of this session, the latest first."""
        return list(reversed(self._models))

    def names(self) -> list[str]:
        """Return all names: those of this session, the latest first, the bundled ones, those of earlier sessions."""
        return [*self.session_names(), *self._bundled_names(), *self.session.earlier]

    def get(self, name: str) -> Model:
        """Return the model of this name, reading its file at first use; may be called from any thread.

        Raises
        ------
        ModelError
            If there is no such model, or its file cannot be read.
        """
        if name in self._models:
            return self._models[name]
        with self._reading:  # read once, even if several threads ask: `is_same` compares networks by identity
            if name not in self._read:
                self._read[name] = core.load_model(self.session.earlier.get(name, name))
            return self._read[name]

    def about(self, name: str) -> dict[str, Any]:
        """Return what `Model.describe` returns; for a file it is read from the header, without torch.

        Raises
        ------
        ModelError
            If there is no such model, or its file cannot be read.
        """
        if name in self._models:
            return self._models[name].describe()
        if name not in self._headers:
            path = self.session.earlier.get(name) or core.bundled_models().get(name)
            try:
                self._headers[name] = TensorFile.open(path or Path(name)).metadata
            except DamagedError as error:
                raise core.ModelError(f"the model {name} cannot be read: {error}.") from error
        return self._headers[name]

    def describe(self, name: str) -> str:
        """Return a line with name, classes, size and IoU; of an unread model of an earlier session the name alone."""
        if name in self.session.earlier and name not in self._read:  # there may be many headers to read
            return name
        try:
            about = self.about(name)
        except core.ModelError:
            return name
        found = ", ".join(_PLURALS.get(each, each) for each in about["class_names"][1:])
        parts = [name, found, f"{about['k']}-Unet", f"{_short(about['parameters'])} parameters"]
        iou, where = _score(about), self._images.get(name) or _origin(about)
        if iou is not None:
            parts.append(f"IoU {iou:.2f} on {where}" if where else f"IoU {iou:.2f}")
        return " · ".join(parts)

    def best_for(self, image: str) -> str | None:
        """Return the name of the model for the image `image`: the newest trained on it, else the best bundled one."""
        session = [name for name in self.session_names() if name not in self._controls]
        trained = [name for name in session if image and self._images.get(name) == image]
        bundled = self._bundled_names()
        bundled.sort(key=lambda name: (_sources(self.about(name)), _score(self.about(name)) or 0), reverse=True)
        return next(iter([*trained, *bundled, *session]), None)

    def newest_teacher(self) -> str | None:
        """Return the name of the model to distil: the session's newest that is no student, else the best bundled."""
        apart = self._controls.union(name for name, model in self._models.items() if "teacher" in model.summary)
        teachers = [name for name in self.session_names() if name not in apart]
        return next(iter(teachers), None) or self.best_for("")

    def _bundled_names(self) -> list[str]:
        return [name for name in core.bundled_models() if name not in self._models]

    def clear(self) -> None:
        """Forget the models of this session; those on disk stay."""
        self._models.clear()
        self._images.clear()
        self._controls.clear()
        self.changed.emit()


def _short(number: int) -> str:
    """Return a count in short form: 30,902 is 31 k."""
    for size, unit in ((1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.2g} {unit}" if number < 100 * size else f"{number / size:.0f} {unit}"
    return str(number)


def _score(about: dict[str, Any]) -> float | None:
    """Return the IoU on slices that the model has not learnt from, if there were any."""
    validation = about["summary"].get("validation", {})
    return validation.get("iou") if validation.get("on") in ("held-out slices", "given volume") else None


def _sources(about: dict[str, Any]) -> int:
    """Return the number of volumes a bundled model was trained on: the more, the better it suits other images."""
    return int(about["summary"].get("data", {}).get("sources", 1))


def _origin(about: dict[str, Any]) -> str:
    """Return the volume that a bundled model was trained on, up to the first comma of its description."""
    return str(about["summary"].get("data", {}).get("volume", "")).partition(",")[0]


#: The store that all panels share.
models = ModelStore()


class ModelChoice(Choice):
    """Choice among the models of the session and the bundled ones; its value is a name.

    Parameters
    ----------
    store : ModelStore, optional
        The store to choose from; `models` by default.
    **options
        Options of `Choice`.

    Signals
    -------
    failed : Exception
        Emitted when a file cannot be read as a model, after the user has been notified.
    """

    failed = Signal(Exception)

    def __init__(self, store: ModelStore | None = None, **options: Any) -> None:
        self.store = models if store is None else store
        options = {
            "name": "model",
            "label": "Model",
            "tooltip": _TIP,
            "placeholder": "no model yet: train or open one",
        } | options
        super().__init__(lambda _: [(self.store.describe(name), name) for name in self.store.names()], **options)
        self.store.changed.connect(self._store_changed)

    def model(self) -> Model:
        """Return the chosen model, read if necessary (on other threads use `ModelStore.get`).

        Raises
        ------
        ModelError
            If no model is chosen, or it cannot be read.
        """
        if not self.value:
            raise core.ModelError("no model is chosen: train one, or open one from a file.")
        return self.store.get(self.value)

    def open(self, path: str | Path) -> None:
        """Read a model on a thread, add it to the store and choose it; the user is notified of errors."""

        def load() -> Iterator[Model]:
            yield core.load_model(path)

        def loaded(model: Model) -> None:
            self.value = self.store.add(Path(path).stem, model)

        run(load, on_event=loaded, on_error=self.failed.emit, owner=self.native)

    def with_buttons(self) -> Container:
        """Return the choice, as wide as the panel for its long names, with the buttons to open and save below it."""
        save = button("Save…", "Write the chosen model to a .safetensors file.", self._ask_and_save, "save_model")
        open_ = button("Open…", "Open a model from a .safetensors file.", self._ask_and_open, "open_model")
        buttons = in_a_row(open_, save)
        buttons.name = "model_buttons"
        buttons.native.layout().setStretch(1, 1)
        row = Container(widgets=[self, buttons], labels=False, tooltip=self.tooltip)
        row.margins = (0, 0, 0, 0)
        row.label = self.label
        self.changed.connect(lambda value: setattr(save, "enabled", bool(value)))
        save.enabled = bool(self.value)
        return row

    def _store_changed(self) -> None:
        """Update the choices; emit `changed` in any case, as the model under the chosen name may have been replaced."""
        if not isalive(self.native):
            return
        before = self.value
        self.reset_choices()
        if self.value == before:
            self.changed.emit(self.value)

    def _ask_and_open(self) -> None:
        path, _ = QFileDialog.getOpenFileName(self.native, "Open a model", "", _FILES)
        if path:
            self.open(path)

    def _ask_and_save(self) -> None:
        ask_and_save(self.value, self.store, self.native)


def ask_and_save(name: str, store: ModelStore = models, parent: QWidget | None = None) -> None:
    """Ask for a file and write a model to it; the user is notified of errors, and the model stays in the store."""
    chosen, _ = QFileDialog.getSaveFileName(parent, "Save the model", f"{name}.safetensors", _FILES)
    if chosen:
        path = Path(chosen if chosen.endswith(".safetensors") else f"{chosen}.safetensors")
        with reporting():
            store.get(name).save(path)
