"""Compare two segmentations of one volume slice by slice: voxel counts, and an overlay of agreement and errors."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from napari_kdunet.core import Confusion, LabelsError
from napari_kdunet.core.files import replacing
from napari_kdunet.core.metrics import Scoring, SliceScore

__all__ = ["SCORES", "Comparison", "notes_text", "write_csv"]

#: Scores that are shown: attribute of `Confusion`, and its title.
SCORES = {"iou": "IoU", "dice": "Dice", "precision": "Precision", "recall": "Recall"}
_COUNTS = ("tp", "fp", "fn", "tn")


@dataclass(frozen=True, eq=False)
class Comparison(Scoring):
    """A prediction and its reference, labels or probabilities, as the core scores them; see `Scoring`.

    Raises
    ------
    LabelsError
        If the shapes differ.
    """

    def __post_init__(self) -> None:
        one, other = self.prediction, self.reference
        if one.shape != other.shape:
            raise LabelsError(
                f"{one.name} has shape {one.shape}, but {other.name} {other.shape}: choose layers of the same shape."
            )

    def __len__(self) -> int:
        return len(self.reference)

    def score_all(self, first: int = 0) -> Iterator[tuple[int, SliceScore]]:
        """Yield z and score of all slices one by one, beginning with the slice `first`.

        Raises
        ------
        InputError
            As in `core.evaluate`; labels without a background are told once all slices are read.
        """
        scores = []
        for z in (first, *(z for z in range(len(self)) if z != first)):
            scores.append(self.score(z))
            yield z, scores[-1]
        self.check_background(scores)

    def overlay(self) -> da.Array:
        """Return a lazy overlay, ZYX uint8: 1 = both are foreground, 2 = only the prediction, 3 = only the reference.

        All other voxels, and those that do not count, are 0.

        Each call returns an array with a new dask name, so that no cache mistakes it for an earlier one.
        """

        def block(block_info: Any = None) -> NDArray[np.uint8]:
            predicted, truth, counted = self.masks(block_info[None]["array-location"][0][0])
            return np.where(counted, np.where(predicted, np.where(truth, 1, 2), truth * 3), 0).astype(np.uint8)[None]

        z, y, x = self.reference.shape
        lazy: da.Array = da.map_blocks(
            block, chunks=((1,) * z, (y,), (x,)), dtype=np.uint8, meta=np.empty((0, 0, 0), np.uint8)
        )
        return lazy


def notes_text(notes: Iterable[str]) -> str:
    """Return the notes that go with scores as sentences for the panel; empty if there are none."""
    return " ".join(f"Note: {note}." for note in notes)


def write_csv(path: str | Path, slices: Iterable[Confusion | None]) -> None:
    """Write scores and counts as CSV: one row for each slice that has been counted, and one for all of them.

    Raises
    ------
    OutputError
        If the file cannot be written.
    """
    known = {z: counts for z, counts in enumerate(slices) if counts is not None}
    rows: list[tuple[Any, Confusion]] = [*known.items(), ("all", sum(known.values(), Confusion()))]
    table = pd.DataFrame(
        [{"z": z} | {name: getattr(counts, name) for name in (*SCORES, *_COUNTS)} for z, counts in rows]
    )
    with replacing(Path(path)) as temporary:
        table.to_csv(temporary, index=False, float_format="%.6f")
