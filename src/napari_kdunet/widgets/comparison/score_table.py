"""Table of the scores of the volume and of the current slice."""

from __future__ import annotations

from qtpy.QtCore import Qt
from qtpy.QtGui import QGuiApplication, QKeyEvent, QKeySequence
from qtpy.QtWidgets import QAbstractItemView, QHeaderView, QTableWidget, QTableWidgetItem

from napari_kdunet.core import Confusion
from napari_kdunet.widgets.comparison.comparison import SCORES

__all__ = ["ScoreTable"]

_TIPS = {
    "iou": "Intersection over union of the foreground: in both / in either.",
    "dice": "Dice coefficient (F1): 2 × in both / (prediction + reference).",
    "precision": "Share of the predicted foreground that the reference has too.",
    "recall": "Share of the reference's foreground that the prediction has too.",
}


class ScoreTable(QTableWidget):
    """Scores of the volume and of the current slice; Ctrl+C copies them as tab-separated text."""

    def __init__(self) -> None:
        super().__init__(len(SCORES), 2)
        self.setToolTip(
            "Scores from 0 to 1; Ctrl+C copies them. A dash: not defined, as there is no foreground to score."
        )
        self.setVerticalHeaderLabels(list(SCORES.values()))
        self._cells = [[QTableWidgetItem("–") for _ in range(2)] for _ in SCORES]
        for row, name in enumerate(SCORES):
            for column, cell in enumerate(self._cells[row]):
                cell.setTextAlignment(Qt.AlignmentFlag.AlignRight | Qt.AlignmentFlag.AlignVCenter)
                cell.setToolTip(_TIPS[name])
                self.setItem(row, column, cell)
        self.setEditTriggers(QAbstractItemView.EditTrigger.NoEditTriggers)
        self.setVerticalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
        self.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
        above, left = self.horizontalHeader(), self.verticalHeader()
        assert above is not None
        assert left is not None
        above.setSectionResizeMode(QHeaderView.ResizeMode.Stretch)
        self.set(None, "Volume", None, "Slice")
        self.setFixedHeight(left.length() + above.sizeHint().height() + 2 * self.frameWidth())
        left.setSectionResizeMode(QHeaderView.ResizeMode.Stretch)  # themes differ in the height of the header

    def set(self, volume: Confusion | None, volume_title: str, one: Confusion | None, slice_title: str) -> None:
        """Show the scores of the volume and of one slice under these titles."""
        self._titles = [volume_title, slice_title]
        self.setHorizontalHeaderLabels(self._titles)
        for column, counts in enumerate((volume, one)):
            for row, name in enumerate(SCORES):
                text = "–" if counts is None else f"{getattr(counts, name):.4f}".replace("nan", "–")
                self._cells[row][column].setText(text)

    def text(self) -> str:
        """The table as tab-separated lines, with its titles."""
        lines = [["", *self._titles]]
        for name, cells in zip(SCORES.values(), self._cells, strict=True):
            lines.append([name, *(cell.text() for cell in cells)])
        return "\n".join("\t".join(line) for line in lines)

    def copy(self) -> None:
        """Copy the table to the clipboard."""
        clipboard = QGuiApplication.clipboard()
        assert clipboard is not None
        clipboard.setText(self.text())

    def keyPressEvent(self, event: QKeyEvent | None) -> None:
        """Copy on Ctrl+C."""
        if event is not None and event.matches(QKeySequence.StandardKey.Copy):
            self.copy()
        else:
            super().keyPressEvent(event)
