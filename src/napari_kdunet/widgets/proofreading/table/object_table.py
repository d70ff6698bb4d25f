"""The table of objects in the panel: a click on a heading sorts it, and selecting rows selects objects."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import pandas as pd
from qtpy.QtCore import (
    QAbstractTableModel,
    QItemSelection,
    QItemSelectionModel,
    QModelIndex,
    QSignalBlocker,
    Qt,
    Signal,
)
from qtpy.QtWidgets import QAbstractItemView, QTableView

from napari_kdunet.widgets.proofreading.table.titles import USUAL, title_of

__all__ = ["ObjectTable", "features_of", "suspicion"]

_DENSE = 100_000  # rows that features may have beyond twice the number of objects
_NONE = QModelIndex()


def suspicion(table: pd.DataFrame) -> pd.Series:
    """Return how suspicious each object is: small, of an odd shape, doubtful, or in one slice of several."""
    small = 1 - table["volume_um3"].rank(pct=True)
    odd = 1 - table["sphericity"].rank(pct=True)
    most = np.maximum(small, odd)
    if "mean_probability" in table:
        most = np.maximum(most, 1 - table["mean_probability"].rank(pct=True))
    alone = (table["slices"] == 1) & (table["last_slice"].max() > table["first_slice"].min())
    return pd.Series(most + alone, index=table.index)


def features_of(table: pd.DataFrame) -> pd.DataFrame:
    """Return a table as the features of a labels layer, with the row of each object at the position of its id.

    napari's own table goes by the position. If ids are much higher than the number of objects, the rows stay as they
    are, and napari goes by the column ``index`` alone.
    """
    ids = table["id"].to_numpy(dtype=np.int64)
    if not len(ids) or ids.max() > 2 * len(ids) + _DENSE:
        return table.assign(index=ids)
    rows = table.set_axis(ids, axis=0).reindex(range(int(ids.max()) + 1))
    kinds = {name: kind for name, kind in table.dtypes.items() if kind.kind in "biu"}
    rows = rows.astype(dict.fromkeys(kinds, object)).fillna(dict.fromkeys(kinds, 0)).astype(kinds)
    there = np.isin(rows.index, ids)
    return rows.assign(index=np.where(there, rows.index, -1))


class _Measurements(QAbstractTableModel):
    """A pandas table for Qt, sorted by the value in a column.

    Attributes
    ----------
    frame : pandas.DataFrame
        The table as it is shown.
    row_of : dict
        Row of each object in it, by its id, in order.
    """

    def __init__(self) -> None:
        super().__init__()
        self.frame = pd.DataFrame({"id": np.empty(0, np.int64)})
        self.row_of: dict[int, int] = {}
        self._order: tuple[str, bool] | None = None  # column, ascending

    def rowCount(self, parent: QModelIndex = _NONE) -> int:
        """Return the number of objects."""
        return 0 if parent.isValid() else len(self.frame)

    def columnCount(self, parent: QModelIndex = _NONE) -> int:
        """Return the number of measurements."""
        return 0 if parent.isValid() else len(self.frame.columns)

    def data(self, index: QModelIndex, role: int = Qt.ItemDataRole.DisplayRole) -> Any:
        """Return the text of a cell."""
        if role != Qt.ItemDataRole.DisplayRole or not index.isValid():
            return None
        value = self.frame.iat[index.row(), index.column()]
        if isinstance(value, bool | np.bool_):
            return "yes" if value else ""
        return f"{value:.4g}" if isinstance(value, float | np.floating) else str(value)

    def headerData(self, section: int, orientation: Qt.Orientation, role: int = Qt.ItemDataRole.DisplayRole) -> Any:
        """Return the title of a column; as its tooltip, the name to filter by."""
        if orientation != Qt.Orientation.Horizontal or section >= len(self.frame.columns):
            return None
        name = self.frame.columns[section]
        if role == Qt.ItemDataRole.ToolTipRole:
            return name
        return title_of(name) if role == Qt.ItemDataRole.DisplayRole else None

    def show(self, table: pd.DataFrame) -> None:
        """Show another table, the usual columns first."""
        self.beginResetModel()
        usual = [name for name in USUAL if name in table]
        self.frame = table[[*usual, *(name for name in table if name not in USUAL)]]
        self._sort()
        self.endResetModel()

    def sort(self, column: int, order: Qt.SortOrder = Qt.SortOrder.AscendingOrder) -> None:
        """Sort by a column."""
        if 0 <= column < len(self.frame.columns):
            self.layoutAboutToBeChanged.emit()
            before, ids = self.persistentIndexList(), list(self.row_of)
            self._order = (self.frame.columns[column], order == Qt.SortOrder.AscendingOrder)
            self._sort()
            after = [self.index(self.row_of[ids[index.row()]], index.column()) for index in before]
            self.changePersistentIndexList(before, after)  # the selection follows these
            self.layoutChanged.emit()

    def _sort(self) -> None:
        if self._order is not None and self._order[0] in self.frame:
            name, ascending = self._order
            self.frame = self.frame.sort_values(name, ascending=ascending, kind="stable")
        self.row_of = {number: row for row, number in enumerate(self.frame["id"].tolist())}


class ObjectTable(QTableView):
    """Table of the measurements of objects, a row each.

    Signals
    -------
    chosen : list of int
        Ids of the rows that the user has selected.
    """

    chosen = Signal(list)

    def __init__(self) -> None:
        super().__init__()
        self.measurements = _Measurements()
        self.setModel(self.measurements)
        self.setToolTip(
            "One object per row: click to go there, with Ctrl or Shift to select several. Click a heading to sort."
        )
        self.setSelectionBehavior(QAbstractItemView.SelectionBehavior.SelectRows)
        self.setSelectionMode(QAbstractItemView.SelectionMode.ExtendedSelection)
        self.setMinimumHeight(120)
        below = self.verticalHeader()
        assert below is not None
        below.hide()
        below.setDefaultSectionSize(22)
        self.setSortingEnabled(True)
        self.sortByColumn(0, Qt.SortOrder.AscendingOrder)
        self._selection.selectionChanged.connect(lambda *_: self._selected())

    @property
    def ids(self) -> list[int]:
        """Ids of the rows, from the top."""
        return list(self.measurements.row_of)

    @property
    def _selection(self) -> QItemSelectionModel:
        found = self.selectionModel()
        assert found is not None
        return found

    def show_table(self, table: pd.DataFrame) -> None:
        """Show another table; selected objects that it still has stay selected."""
        selected = self.selected()
        with QSignalBlocker(self):
            self.measurements.show(table)
        self.select(selected)

    def selected(self) -> list[int]:
        """Return the ids of the selected rows, from the top."""
        ids = self.measurements.frame["id"]
        chosen: Any = self._selection.selection()
        ranges = (range(part.top(), part.bottom() + 1) for part in chosen)
        return [int(ids.iat[row]) for row in sorted({row for rows in ranges for row in rows})]

    def select(self, numbers: Iterable[int]) -> None:
        """Select the rows of some objects, without a signal."""
        row_of = self.measurements.row_of
        rows = np.array(sorted(row_of[number] for number in {*numbers} & row_of.keys()), np.int64)
        last = self.measurements.columnCount() - 1
        chosen = QItemSelection()
        runs = np.split(rows, np.flatnonzero(np.diff(rows) > 1) + 1)  # a range for each row takes long
        for run in runs if len(rows) else ():
            chosen.select(self.measurements.index(int(run[0]), 0), self.measurements.index(int(run[-1]), last))
        with QSignalBlocker(self):
            self._selection.select(chosen, QItemSelectionModel.SelectionFlag.ClearAndSelect)
            if len(rows):
                self.scrollTo(self.measurements.index(int(rows[0]), 0))

    def _selected(self) -> None:
        if numbers := self.selected():
            self.chosen.emit(numbers)
