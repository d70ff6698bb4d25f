"""Compare objects of a prediction with those of a reference: scores, and a table whose rows lead to the errors."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
from qtpy.QtCore import Signal
from qtpy.QtWidgets import QAbstractItemView, QTableWidgetItem, QVBoxLayout, QWidget

from napari_kdunet.core import KDUNetError, ObjectScores, Volume, score_objects
from napari_kdunet.core.objects.scores import ObjectError
from napari_kdunet.widgets.comparison.comparison import notes_text
from napari_kdunet.widgets.shared.panel import list_table, wrapped_label
from napari_kdunet.widgets.workers.stopping import was_stopped

__all__ = ["ObjectComparison", "ObjectErrors", "Place", "find_places", "iter_compare"]

Place = tuple[int, int, int]
"""A voxel (Z, Y, X)."""

_COLUMNS = ("Error", "Prediction", "Reference", "Slice")
_KINDS = {
    "split": ("split", "One object of the reference is several in the prediction."),
    "merge": ("merge", "One object of the prediction is several in the reference."),
    "missed": ("missed", "An object of the reference that no object of the prediction matches (IoU 0.5)."),
    "false": ("false", "An object of the prediction that no object of the reference matches (IoU 0.5)."),
}
_START = "Press Compare objects. Both layers need a number for each object, as in layers made by the panel Objects."
_ONE = "A layer with one number counts as one object: if it is a mask, first find its objects in the panel Objects."


class ObjectComparison(NamedTuple):
    """Scores, and each error with a voxel in which it is seen."""

    scores: ObjectScores
    errors: list[tuple[ObjectError, Place]]


def iter_compare(prediction: Volume, reference: Volume) -> Iterator[ObjectComparison]:
    """Yield the comparison of objects, once; an iterator for a thread. Raises the errors of `core.score_objects`.

    Yields nothing if the volumes are `stoppable` and reading them was stopped.
    """
    try:
        found = _compare(prediction, reference)
    except KDUNetError as error:
        if not was_stopped(error):
            raise
    else:
        yield found


def _compare(prediction: Volume, reference: Volume) -> ObjectComparison:
    scores = score_objects(prediction, reference)
    errors = scores.errors()
    predicted = find_places(prediction, {i for error in errors for i in error.predicted})
    true = find_places(reference, {i for error in errors for i in error.true})
    found = []
    for error in errors:
        of_parts = true if error.kind in ("merge", "missed") else predicted
        parts = error.true if error.kind in ("merge", "missed") else error.predicted
        place, _ = min((of_parts[i] for i in parts), key=lambda each: each[1])  # that of the smallest part
        found.append((error, place))
    return ObjectComparison(scores, found)


def find_places(volume: Volume, ids: Iterable[int]) -> dict[int, tuple[Place, int]]:
    """Return a voxel of each object, and its area in pixels there.

    The voxel is the one nearest to the object's centre in the slice where the area is largest.
    """
    best: dict[int, tuple[int, int]] = {}  # area, z
    wanted = np.array(sorted(ids))
    for z in range(len(volume)):
        present, areas = np.unique(volume.read(z), return_counts=True)
        here = np.isin(present, wanted)
        for number, area in zip(present[here].tolist(), areas[here].tolist(), strict=True):
            if area > best.get(number, (0, 0))[0]:
                best[number] = (area, z)
    places: dict[int, tuple[Place, int]] = {}
    for z in sorted({z for _, z in best.values()}):
        pixels = volume.read(z)
        for number in [i for i, (_, at) in best.items() if at == z]:
            points = np.argwhere(pixels == number)
            y, x = points[((points - points.mean(0)) ** 2).sum(1).argmin()].tolist()
            places[number] = ((z, y, x), best[number][0])
    return places


class ObjectErrors(QWidget):
    """The scores of a comparison of objects, and a table of its errors.

    Signals
    -------
    chosen : ObjectError, tuple of int
        Emitted with the error whose row the user has chosen, and its voxel.
    """

    chosen = Signal(object, object)

    def __init__(self) -> None:
        super().__init__()
        self.comparison: ObjectComparison | None = None
        self.summary = wrapped_label(_START)
        self.table = list_table(*_COLUMNS)
        self.table.setToolTip("One error per row: click to go there.")
        self.table.setSelectionBehavior(QAbstractItemView.SelectionBehavior.SelectRows)
        self.table.setSelectionMode(QAbstractItemView.SelectionMode.SingleSelection)
        layout = QVBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.addWidget(self.summary)
        layout.addWidget(self.table, 1)
        self.table.itemSelectionChanged.connect(self._selected)

    def show_comparison(self, comparison: ObjectComparison | None) -> None:
        """Show a comparison, or that there is none."""
        self.comparison = comparison
        self.table.blockSignals(True)
        self.table.setRowCount(0 if comparison is None else len(comparison.errors))
        for row, (error, place) in enumerate([] if comparison is None else comparison.errors):
            name, tip = _KINDS[error.kind]
            for column, text in enumerate((name, _listed(error.predicted), _listed(error.true), str(place[0]))):
                item = QTableWidgetItem(text)
                item.setToolTip(tip)
                self.table.setItem(row, column, item)
        self.table.clearSelection()
        self.table.blockSignals(False)
        self.summary.setText(_START if comparison is None else _summary(comparison.scores))

    def _selected(self) -> None:
        rows = {item.row() for item in self.table.selectedItems()}
        if self.comparison is not None and rows:
            self.chosen.emit(*self.comparison.errors[rows.pop()])


def _listed(ids: tuple[int, ...]) -> str:
    return ", ".join(map(str, ids)) or "–"


def _summary(scores: ObjectScores) -> str:
    predicted, true = scores.count
    values: dict[str, Any] = scores.to_dict()
    names = {
        "f1": "F1",
        "precision": "precision",
        "recall": "recall",
        "ap_50_95": "AP 0.5–0.95",
        "panoptic_quality": "panoptic quality",
        "mean_matched_iou": "mean matched IoU",
    }
    parts = [f"{name} {'–' if values[key] is None else format(values[key], '.3f')}" for key, name in names.items()]
    sentences = [
        f"{predicted} objects against {true}, at IoU 0.5: {', '.join(parts)}.",
        f"{values['splits']} split, {values['merges']} merged.",
        notes_text(scores.notes),
        _ONE if 1 in scores.count else "",
    ]
    return " ".join(filter(None, sentences))
