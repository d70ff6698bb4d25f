"""The table of objects in the panel: sorted by a click, a row selected is an object shown."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from qtpy.QtCore import QSignalBlocker, Qt, Signal
from qtpy.QtWidgets import QAbstractItemView, QTableWidget, QTableWidgetItem

__all__ = ["ObjectTable", "suspicion"]

_COLUMNS = {
    "id": "Id",
    "volume_um3": "Volume (µm³)",
    "surface_um2": "Surface (µm²)",
    "skeleton_length_nm": "Length (nm)",
    "mean_width_nm": "Width (nm)",
    "branches": "Branches",
    "sphericity": "Sphericity",
    "mean_grey": "Grey",
    "touches_border": "Border",
    "checked": "Checked",
}


def suspicion(table: pd.DataFrame) -> pd.Series:
    """How much each object asks to be looked at: small, of an odd shape, or in one slice of several."""
    small = 1 - table["volume_um3"].rank(pct=True)
    odd = 1 - table["sphericity"].rank(pct=True)
    alone = (table["slices"] == 1) & (table["last_slice"].max() > table["first_slice"].min())
    return pd.Series(np.maximum(small, odd) + alone, index=table.index)


class ObjectTable(QTableWidget):
    """The measurements of objects, a row each.

    Signals
    -------
    chosen : int
        The id of the row that the user has selected.
    """

    chosen = Signal(int)

    def __init__(self) -> None:
        super().__init__(0, len(_COLUMNS))
        self.setToolTip("A row an object: click to go there. Click a heading to sort. Export has all columns.")
        self.setHorizontalHeaderLabels(list(_COLUMNS.values()))
        self.setSelectionBehavior(QAbstractItemView.SelectionBehavior.SelectRows)
        self.setSelectionMode(QAbstractItemView.SelectionMode.SingleSelection)
        self.setEditTriggers(QAbstractItemView.EditTrigger.NoEditTriggers)
        self.setMinimumHeight(120)
        self.setSortingEnabled(True)
        self.itemSelectionChanged.connect(self._selected)

    def show_table(self, table: pd.DataFrame) -> None:
        """Show other measurements; the selection stays where its object does."""
        selected = self.selected()
        with QSignalBlocker(self):
            self.setSortingEnabled(False)
            self.setRowCount(len(table))
            for column, name in enumerate(_COLUMNS):
                self.setColumnHidden(column, name not in table)
                for row, value in enumerate(table.get(name, ())):
                    self.setItem(row, column, _cell(value))
            self.setSortingEnabled(True)
        self.select(selected)

    def selected(self) -> int:
        """Id of the row that is selected; 0 for none."""
        items = self.selectedItems()
        item = self.item(items[0].row(), 0) if items else None
        return 0 if item is None else int(item.data(Qt.ItemDataRole.EditRole))

    def select(self, number: int) -> None:
        """Select the row of an object, without a signal."""
        with QSignalBlocker(self):
            self.clearSelection()
            for row in range(self.rowCount()):
                item = self.item(row, 0)
                if item is not None and int(item.data(Qt.ItemDataRole.EditRole)) == number:
                    self.selectRow(row)
                    self.scrollToItem(item)
                    return

    def _selected(self) -> None:
        if number := self.selected():
            self.chosen.emit(number)


def _cell(value: Any) -> QTableWidgetItem:
    """A cell that is sorted by its value."""
    item = QTableWidgetItem()
    if isinstance(value, bool | np.bool_):
        item.setText("yes" if value else "")
    elif isinstance(value, float | np.floating):
        item.setData(Qt.ItemDataRole.EditRole, float(f"{value:.4g}"))
    else:
        item.setData(Qt.ItemDataRole.EditRole, int(value))
    return item
