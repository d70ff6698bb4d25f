"""The control that chooses a teacher's file of another tool, and asks before one that can run code."""

from __future__ import annotations

from pathlib import Path

from qtpy.QtWidgets import QFileDialog, QHBoxLayout, QLabel, QMessageBox, QPushButton, QWidget

__all__ = ["TeacherFile"]

_FILES = "Networks of other tools (*.onnx *.pt *.pth *.ts)"
_NONE = "none: take the model"
_QUESTION = (
    "“{name}” is a TorchScript file, and such a file is a program: it can run code on your computer, and change or "
    "damage any file that you can.\n\nOpen it only if you made it or trust its maker. A network as .onnx is safe to "
    "take from anybody.\n\nDo you trust this file?"
)


class TeacherFile(QWidget):
    """Choose an ONNX or TorchScript file that teaches in the place of a model.

    Attributes
    ----------
    path : Path or None
        The chosen file.
    trusted : bool
        Whether the user has said that its maker is trusted; asked of TorchScript alone.
    """

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.path: Path | None = None
        self.trusted = False
        self.label = QLabel(_NONE)
        self.open_button, self.clear_button = QPushButton("Open…"), QPushButton("Clear")
        self.open_button.setToolTip(
            "A network of another tool, as ONNX (safe to take from others) or TorchScript (a program: you are asked)."
        )
        self.clear_button.setToolTip("Take the model again.")
        layout = QHBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.addWidget(self.label, 1)
        layout.addWidget(self.open_button)
        layout.addWidget(self.clear_button)
        self.open_button.clicked.connect(self._ask_and_open)
        self.clear_button.clicked.connect(self.clear)
        self.clear()

    def open(self, path: str | Path) -> None:
        """Choose a file; of a TorchScript file the user is asked first, and with No nothing is chosen."""
        from napari_kdunet.core.data.teachers import is_torchscript

        path, trusted = Path(path), False
        if is_torchscript(path):
            buttons = QMessageBox.StandardButton
            answer = QMessageBox.warning(
                self,
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
        """Choose none."""
        self._choose(None, False)

    def _choose(self, path: Path | None, trusted: bool) -> None:
        self.path, self.trusted = path, trusted
        self.label.setText(_NONE if path is None else path.name)
        self.label.setToolTip("" if path is None else str(path))
        self.clear_button.setEnabled(path is not None)

    def _ask_and_open(self) -> None:
        path, _ = QFileDialog.getOpenFileName(self, "Open a teacher", "", _FILES)
        if path:
            self.open(path)
