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

from napari_kdunet.core import Confusion, LabelsError, Volume
from napari_kdunet.core.files import replacing
from napari_kdunet.core.volumes.labels import read_classes
from napari_kdunet.core.volumes.probability import is_probability, read_probability

__all__ = ["SCORES", "Comparison", "write_csv"]

#: Scores that are shown: attribute of `Confusion`, and its title.
SCORES = {"iou": "IoU", "dice": "Dice", "precision": "Precision", "recall": "Recall"}
_COUNTS = ("tp", "fp", "fn", "tn")


@dataclass(frozen=True, eq=False)
class Comparison:
    """A prediction and its reference: labels (non-zero is foreground) or probabilities.

    Attributes
    ----------
    prediction, reference : Volume
        ZYX, of the same shape. Floating-point values are probabilities in [0, 1], and so are those integers of the
        prediction that `is_probability` accepts.
    threshold : float
        Probability above which a voxel is foreground.
    ignore : int or None
        Label of reference voxels that are not annotated and do not count. If it is 0, label 1 is the background.

    Raises
    ------
    LabelsError
        If the shapes differ.
    """

    prediction: Volume
    reference: Volume
    threshold: float = 0.5
    ignore: int | None = None

    def __post_init__(self) -> None:
        one, other = self.prediction, self.reference
        if one.shape != other.shape:
            raise LabelsError(
                f"{one.name} has shape {one.shape}, but {other.name} {other.shape}: choose layers of the same shape."
            )

    def __len__(self) -> int:
        return len(self.reference)

    def confusion(self, z: int) -> Confusion:
        """Return the voxel counts of slice `z`; the reference is the truth."""
        return Confusion.of(*self._masks(z))

    def score(self, first: int = 0) -> Iterator[tuple[int, Confusion]]:
        """Yield z and counts of all slices one by one, beginning with the slice `first`."""
        for z in (first, *(z for z in range(len(self)) if z != first)):
            yield z, self.confusion(z)

    def overlay(self) -> da.Array:
        """Return a lazy overlay, ZYX uint8: 1 = both are foreground, 2 = only the prediction, 3 = only the reference.

        All other voxels, and those that do not count, are 0.

        Each call returns an array with a new dask name, so that no cache mistakes it for an earlier one.
        """

        def block(block_info: Any = None) -> NDArray[np.uint8]:
            predicted, truth, counted = self._masks(block_info[None]["array-location"][0][0])
            return np.where(counted, np.where(predicted, np.where(truth, 1, 2), truth * 3), 0).astype(np.uint8)[None]

        z, y, x = self.reference.shape
        lazy: da.Array = da.map_blocks(
            block, chunks=((1,) * z, (y,), (x,)), dtype=np.uint8, meta=np.empty((0, 0, 0), np.uint8)
        )
        return lazy

    def _masks(self, z: int) -> tuple[NDArray[np.bool_], NDArray[np.bool_], NDArray[np.bool_]]:
        """Return the foreground of prediction and reference, and which pixels count, each YX bool."""
        predicted, _ = self._mask(self.prediction, z, None, is_probability(self.prediction))
        truth, counted = self._mask(self.reference, z, self.ignore, self.reference.dtype.kind == "f")
        return predicted, truth, counted

    def _mask(
        self, volume: Volume, z: int, ignore: int | None, soft: bool
    ) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        if not soft:
            index = read_classes(volume, z, ignore=ignore)
            return index > 0, index >= 0
        values = read_probability(volume, z)
        return values > self.threshold, np.ones(values.shape, bool)


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
