"""The row that chooses a teacher file of another tool, and asks before opening one that can run code."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from magicgui.widgets import Container
from qtpy.QtWidgets import QFileDialog, QMessageBox

from napari_kdunet.widgets.shared.panel import button, in_a_row, note

__all__ = ["TeacherFile"]

_FILES = "Networks of other tools (*.onnx *.pt *.pth *.ts)"
_NONE = "none: take the model"
_QUESTION = (
    "“{name}” is a TorchScript file, and such a file is a program: it can run code on your computer, and change or "
    "damage any file that you have access to.\n\nOpen it only if you made it or trust its maker. A network as .onnx is "
    "safe to take from anybody.\n\nDo you trust this file?"
)


class TeacherFile(Container):
    """Row to choose an ONNX or TorchScript file that teaches in the place of a model.

    Parameters
    ----------
    **options
        Name and label of the row.

    Attributes
    ----------
    path : Path or None
        The chosen file.
    trusted : bool
        Whether the user has said that its maker is trusted; asked only for TorchScript files.
    """

    def __init__(self, **options: Any) -> None:
        self.path: Path | None = None
        self.trusted = False
        self.file_name = note("file_name")
        self.open_button = button(
            "Open…",
            "Use a network of another tool: ONNX (safe to take from others) or TorchScript (a program: you are "
            "asked first).",
            self._ask_and_open,
        )
        self.clear_button = button("Clear", "Use the model under Teacher again.", self.clear)
        buttons = in_a_row(self.open_button, self.clear_button)
        super().__init__(widgets=[self.file_name, buttons], labels=False, **options)
        self.margins = (0, 0, 0, 0)
        self.clear()

    def open(self, path: str | Path) -> None:
        """Choose a file; for a TorchScript file the user is asked first, and after No nothing changes."""
        from napari_kdunet.core.data.teachers import is_torchscript

        path, trusted = Path(path), False
        if is_torchscript(path):
            buttons = QMessageBox.StandardButton
            answer = QMessageBox.warning(
                self.native,
                "Can this file be trusted?",
                _QUESTION.format(name=path.name),
                buttons.Yes | buttons.No,
                buttons.No,
            )
            trusted = answer == buttons.Yes
            if not trusted:
                return
        self._choose(path, trusted)

    def clear(self) -> None:
        """Choose no file."""
        self._choose(None, False)

    def _choose(self, path: Path | None, trusted: bool) -> None:
        self.path, self.trusted = path, trusted
        self.file_name.value = _NONE if path is None else path.name
        self.file_name.tooltip = "" if path is None else str(path)
        self.clear_button.enabled = path is not None
        self.changed.emit(self)

    def _ask_and_open(self) -> None:
        path, _ = QFileDialog.getOpenFileName(self.native, "Open a teacher", "", _FILES)
        if path:
            self.open(path)
