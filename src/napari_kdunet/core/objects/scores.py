"""Scores of objects against true objects: found, split and merged ones, from one streaming table of overlaps."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from napari_kdunet.core.errors import LabelsError
from napari_kdunet.core.volumes.labels import object_ids, predicted_ids
from napari_kdunet.core.volumes.slice_reader import read_slices
from napari_kdunet.core.volumes.volume import open_pair

__all__ = ["ObjectError", "ObjectScores", "score_objects"]

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

_THRESHOLDS = tuple(round(0.5 + 0.05 * i, 2) for i in range(10))
_MATCH = 0.5  # IoU above which a predicted and a true object match
_PART = 0.1  # share of the smaller of two objects: a smaller overlap is neither a split nor a merge


class ObjectError(NamedTuple):
    """One error: its kind (split, merge, missed or false), and the ids of the objects concerned."""

    kind: str
    predicted: tuple[int, ...]
    true: tuple[int, ...]


@dataclass(frozen=True)
class ObjectScores:
    """The overlaps of predicted with true objects, and the scores that follow.

    Attributes
    ----------
    predicted, true : (n,) int64 or uint64
        Ids of the two objects of each overlap; 0 is background.
    voxels : (n,) int64
        Size of each overlap.
    notes : tuple of str
        What was assumed of the values, one sentence each.
    """

    predicted: NDArray[Any]
    true: NDArray[Any]
    voxels: Ints
    notes: tuple[str, ...] = ()

    @cached_property
    def _table(self) -> tuple[Any, Any, Any, Any, Any]:
        """Ids of predicted and true objects, their sizes, and rows of overlaps (3, n); all including background."""
        a, rows = np.unique(np.append(self.predicted, np.zeros(1, self.predicted.dtype)), return_inverse=True)
        b, columns = np.unique(np.append(self.true, np.zeros(1, self.true.dtype)), return_inverse=True)
        first, second = (np.bincount(part[:-1], self.voxels, n) for part, n in ((rows, len(a)), (columns, len(b))))
        return a, b, first, second, np.stack([rows[:-1], columns[:-1], self.voxels]).astype(np.float64)

    @cached_property
    def _ious(self) -> tuple[Ints, Ints, Floats]:
        """Pairs of objects that overlap, by index of predicted and true ones, and their IoU."""
        a, b, first, second, overlaps = self._table
        rows, columns, shared = overlaps[0].astype(np.int64), overlaps[1].astype(np.int64), overlaps[2]
        objects = (a[rows] != 0) & (b[columns] != 0)
        rows, columns, shared = rows[objects], columns[objects], shared[objects]
        return rows, columns, shared / (first[rows] + second[columns] - shared)

    @property
    def count(self) -> tuple[int, int]:
        """Number of predicted and of true objects."""
        a, b, first, second, _ = self._table
        return int(((a != 0) & (first > 0)).sum()), int(((b != 0) & (second > 0)).sum())

    def matches(self, threshold: float = 0.5) -> Floats:
        """Return the IoU of the matched pairs: at least `threshold`, or above it if it is 0.5 or less.

        Each object is in one pair at most. Above an IoU of 0.5 no object has two matches (Kirillov et al. 2019, section
        4.1), and at a threshold of 0.5 ties are therefore excluded.
        """
        rows, columns, ious = self._ious
        good = ious > threshold if threshold <= 0.5 else ious >= threshold
        if threshold >= 0.5:
            return ious[good]
        a, i = np.unique(rows[good], return_inverse=True)
        b, j = np.unique(columns[good], return_inverse=True)
        weights = np.zeros((len(a), len(b)))
        weights[i, j] = 1 + ious[good]  # as many pairs as possible, and of these the best
        pairs = linear_sum_assignment(weights, maximize=True)
        chosen = weights[pairs]
        return np.asarray(chosen[chosen > 0] - 1)

    def precision(self, threshold: float = 0.5) -> float:
        """Share of the predicted objects that are matched."""
        return _ratio(len(self.matches(threshold)), self.count[0])

    def recall(self, threshold: float = 0.5) -> float:
        """Share of the true objects that are matched."""
        return _ratio(len(self.matches(threshold)), self.count[1])

    def f1(self, threshold: float = 0.5) -> float:
        """Harmonic mean of precision and recall: 2 TP / (2 TP + FP + FN)."""
        return _ratio(2 * len(self.matches(threshold)), sum(self.count))

    @property
    def mean_matched_iou(self) -> float:
        """Mean IoU of the matched pairs at 0.5: segmentation quality (Kirillov et al. 2019)."""
        matched = self.matches()
        return float(matched.mean()) if len(matched) else math.nan

    def average_precision(self, threshold: float) -> float:
        """TP / (TP + FP + FN) at a threshold: what StarDist and Cellpose call average precision."""
        matched = len(self.matches(threshold))
        return _ratio(matched, sum(self.count) - matched)

    @property
    def mean_average_precision(self) -> float:
        """Mean of `average_precision` at IoU 0.5, 0.55, ... 0.95 (as in the 2018 Data Science Bowl)."""
        return float(np.mean([self.average_precision(t) for t in _THRESHOLDS]))

    @property
    def panoptic_quality(self) -> float:
        """F1 times mean matched IoU at 0.5 (Kirillov et al. 2019, equation 1); 0 where nothing is matched."""
        return self.f1() * self.mean_matched_iou if len(self.matches()) else self.f1()

    @property
    def _entropies(self) -> tuple[float, float]:
        """Conditional entropies (bits) of predicted given true and of true given predicted; background is an object."""
        _, _, first, second, overlaps = self._table
        rows, columns, shared = overlaps[0].astype(np.int64), overlaps[1].astype(np.int64), overlaps[2]
        p = shared / shared.sum()
        split = -float((p * np.log2(shared / second[columns])).sum())
        merge = -float((p * np.log2(shared / first[rows])).sum())
        return max(split, 0.0), max(merge, 0.0)

    @property
    def voi_split(self) -> float:
        """Conditional entropy of the prediction given the truth, bits: what is split (Meila 2007)."""
        return self._entropies[0]

    @property
    def voi_merge(self) -> float:
        """Conditional entropy of the truth given the prediction, bits: what is merged."""
        return self._entropies[1]

    @property
    def variation_of_information(self) -> float:
        """Sum of `voi_split` and `voi_merge`, bits (Meila 2007); background counts as one more object."""
        return sum(self._entropies)

    @property
    def adapted_rand_error(self) -> float:
        """1 - F-score over pairs of voxels of the truth's foreground (Arganda-Carreras et al. 2015)."""
        a, b, _, second, overlaps = self._table
        rows, columns, shared = overlaps[0].astype(np.int64), overlaps[1].astype(np.int64), overlaps[2]
        counted = b[columns] != 0
        within = np.bincount(rows[counted], shared[counted], len(a))
        pairs, first, second = (float((n * (n - 1)).sum()) for n in (shared[counted], within, second[b != 0]))
        whole = first + second
        return 1 - 2 * pairs / whole if whole else math.nan

    @property
    def splits(self) -> int:
        """Number of surplus predicted objects: the parts of each true object beyond the first.

        A part lies mostly in its true object, and their overlap is at least a tenth of the smaller of the two.
        """
        return sum(len(parts) - 1 for parts in self._parts(of_true=True).values())

    @property
    def merges(self) -> int:
        """Number of surplus true objects: the parts of each predicted object beyond the first, as in `splits`."""
        return sum(len(parts) - 1 for parts in self._parts(of_true=False).values())

    def errors(self) -> list[ObjectError]:
        """Return what is wrong, object by object: splits, merges, missed true objects, then false predicted ones.

        An object is missed or false if it has no match above IoU 0.5 and is not part of a split or merge.
        """
        split, merged = self._parts(of_true=True), self._parts(of_true=False)
        found = [ObjectError("split", tuple(parts), (whole,)) for whole, parts in split.items()]
        found += [ObjectError("merge", (whole,), tuple(parts)) for whole, parts in merged.items()]
        a, b, first, second, _ = self._table
        rows, columns, ious = self._ious
        matched = ious > _MATCH
        involved = ({i for error in found for i in error.predicted}, {i for error in found for i in error.true})
        for kind, ids, sizes, hits, known in (
            ("missed", b, second, columns[matched], involved[1]),
            ("false", a, first, rows[matched], involved[0]),
        ):
            free = np.flatnonzero((ids != 0) & (sizes > 0) & ~np.isin(np.arange(len(ids)), hits))
            for number in ids[free].tolist():
                if number not in known:
                    found.append(ObjectError(kind, *(((), (number,)) if kind == "missed" else ((number,), ()))))
        return found

    def _parts(self, *, of_true: bool) -> dict[int, list[int]]:
        """Return the ids of the parts of each true (or predicted) object that has several."""
        a, b, first, second, overlaps = self._table
        rows, columns, shared = overlaps[0].astype(np.int64), overlaps[1].astype(np.int64), overlaps[2]
        objects = (a[rows] != 0) & (b[columns] != 0)
        rows, columns, shared = rows[objects], columns[objects], shared[objects]
        part, whole, size = (rows, columns, first) if of_true else (columns, rows, second)
        inside = (shared > 0.5 * size[part]) & (shared >= _PART * np.minimum(first[rows], second[columns]))
        names, wholes = (a, b) if of_true else (b, a)
        groups: dict[int, list[int]] = {}
        for i, j in zip(whole[inside].tolist(), part[inside].tolist(), strict=True):
            groups.setdefault(int(wholes[i]), []).append(int(names[j]))
        return {number: sorted(parts) for number, parts in sorted(groups.items()) if len(parts) > 1}

    def to_dict(self) -> dict[str, Any]:
        """Return all scores as JSON values; undefined scores are None."""
        predicted, true = self.count
        row: dict[str, Any] = {
            "objects": predicted,
            "true_objects": true,
            "precision": self.precision(),
            "recall": self.recall(),
            "f1": self.f1(),
            "mean_matched_iou": self.mean_matched_iou,
            "ap_50": self.average_precision(0.5),
            "ap_75": self.average_precision(0.75),
            "ap_50_95": self.mean_average_precision,
            "panoptic_quality": self.panoptic_quality,
            "variation_of_information": self.variation_of_information,
            "voi_split": self.voi_split,
            "voi_merge": self.voi_merge,
            "adapted_rand_error": self.adapted_rand_error,
            "splits": self.splits,
            "merges": self.merges,
        }
        return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()}


def _ratio(part: int, whole: int) -> float:
    return part / whole if whole else math.nan


def score_objects(instances: Any, labels: Any, *, ignore: int | None = None) -> ObjectScores:
    """Score objects against true objects, slice by slice.

    Parameters
    ----------
    instances, labels : volume
        Anything that `open_volume` takes, ZYX, of the same shape: integers, one id per object; 0 is background.
    ignore : int, optional
        Value of `labels` at voxels that do not count. For the meaning of other values see `class_index`.

    Raises
    ------
    LabelsError
        If the shapes differ, one is not of integers, no voxel counts, or a value is invalid (see `class_index`).
    VolumeError
        If one of them cannot be read.
    """
    predicted, truth = open_pair(instances, labels)
    if predicted.dtype.kind == "f":
        raise LabelsError(
            f"{predicted.name} has dtype {predicted.dtype}: objects are whole numbers, as `objects` makes"
        )
    pairs: dict[tuple[int, int], int] = {}
    slices = (read_slices(volume, range(len(truth))) for volume in (predicted, truth))
    for first, second in zip(*slices, strict=True):
        true, ignored = object_ids(second, ignore, truth.name)
        one, a = np.unique(predicted_ids(first, predicted.name)[~ignored], return_inverse=True)
        other, b = np.unique(true[~ignored], return_inverse=True)
        both, voxels = np.unique(a * max(len(other), 1) + b, return_counts=True)
        for code, n in zip(both.tolist(), voxels.tolist(), strict=True):
            i, j = divmod(code, len(other))
            key = (int(one[i]), int(other[j]))
            pairs[key] = pairs.get(key, 0) + n
    if not pairs:
        raise LabelsError(f"{truth.name} holds nothing but the ignore value: there is nothing to score.")
    first, second = (
        np.array([pair[i] for pair in sorted(pairs)], np.uint64 if volume.dtype == np.uint64 else np.int64)
        for i, volume in enumerate((predicted, truth))
    )
    voxels = np.array([n for _, n in sorted(pairs.items())], np.int64)
    filled = [volume.name for volume, ids in ((predicted, first), (truth, second)) if ids.all()]
    notes = tuple(
        f"{name} has no background of 0 where it is scored: each of its values is an object, 1 too" for name in filled
    )
    return ObjectScores(first, second, voxels, notes)
