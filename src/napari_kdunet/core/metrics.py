"""Scores of a segmentation against labels, from one streaming confusion matrix."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

import numpy as np
from numpy.typing import NDArray

from napari_kdunet.core.errors import LabelsError
from napari_kdunet.core.volumes.labels import extremes, missing_background, object_ids, predicted_ids
from napari_kdunet.core.volumes.probability import kind_of, read_probability
from napari_kdunet.core.volumes.volume import Volume, open_pair

__all__ = ["Confusion", "Curve", "MeanCurve", "Scores", "Scoring", "SliceScore", "evaluate"]

_BINS = 512
_ALIKE = 0.002  # difference in IoU within which a threshold is as good as the best


@dataclass(frozen=True)
class Confusion:
    """Counts of pixels, foreground against background.

    A score whose denominator is 0 (nothing to find and nothing found) is nan.
    """

    tp: int = 0
    fp: int = 0
    fn: int = 0
    tn: int = 0

    @classmethod
    def of(
        cls, predicted: NDArray[np.bool_], truth: NDArray[np.bool_], counted: NDArray[np.bool_] | None = None
    ) -> Confusion:
        """Compare two masks of the same shape in the pixels where `counted` is True (all if None)."""
        code = 2 * truth.astype(bool) + predicted.astype(bool)
        tn, fp, fn, tp = np.bincount((code if counted is None else code[counted]).ravel(), minlength=4).tolist()
        return cls(tp, fp, fn, tn)

    def __add__(self, other: Confusion) -> Confusion:
        return Confusion(self.tp + other.tp, self.fp + other.fp, self.fn + other.fn, self.tn + other.tn)

    @property
    def iou(self) -> float:
        """Foreground intersection over union."""
        return _ratio(self.tp, self.tp + self.fp + self.fn)

    @property
    def dice(self) -> float:
        """Foreground Dice coefficient (F1)."""
        return _ratio(2 * self.tp, 2 * self.tp + self.fp + self.fn)

    @property
    def precision(self) -> float:
        """Share of the predicted foreground that is true."""
        return _ratio(self.tp, self.tp + self.fp)

    @property
    def recall(self) -> float:
        """Share of the true foreground that is found."""
        return _ratio(self.tp, self.tp + self.fn)


def _ratio(part: int, whole: int) -> float:
    return part / whole if whole else math.nan


@dataclass(frozen=True)
class Scores:
    """Scores of a volume.

    Attributes
    ----------
    total : Confusion
        Counts over the whole volume.
    slices : tuple of Confusion
        Counts of each slice.
    ce : float or None
        Mean cross entropy of a pixel in nats if probabilities were scored, else None.
    notes : tuple of str
        What was assumed of the values, one sentence each.
    """

    total: Confusion
    slices: tuple[Confusion, ...]
    ce: float | None = None
    notes: tuple[str, ...] = ()

    @property
    def iou(self) -> float:
        """Foreground IoU of the whole volume."""
        return self.total.iou

    @property
    def paper_ce(self) -> float | None:
        """Cross entropy as the paper counts it: summed over both softmax channels, twice `ce`."""
        return None if self.ce is None else 2 * self.ce

    def to_dict(self) -> dict[str, Any]:
        """Return all scores as JSON values; an undefined one is None."""
        names = ("iou", "dice", "precision", "recall", "tp", "fp", "fn", "tn")
        row = {name: getattr(self.total, name) for name in names}
        if self.ce is not None:
            row |= {"ce": self.ce, "paper_ce": self.paper_ce}
        row["iou_per_slice"] = [_defined(s.iou) for s in self.slices]
        return {name: _defined(value) if isinstance(value, float) else value for name, value in row.items()}


def _defined(value: float) -> float | None:
    return value if math.isfinite(value) else None


@dataclass(frozen=True)
class SliceScore:
    """What scoring a slice has found.

    Attributes
    ----------
    counts : Confusion
        Counts of its pixels.
    entropy : float
        Cross entropy of its pixels in nats, summed; 0 of a mask.
    predicted, true : frozenset of int
        Lowest and highest value besides 0 of a predicted mask, and of the labels that were scored.
    """

    counts: Confusion
    entropy: float = 0.0
    predicted: frozenset[int] = frozenset()
    true: frozenset[int] = frozenset()


@dataclass(frozen=True, eq=False)
class Scoring:
    """A prediction that is scored slice by slice against a reference of the same shape, and what is assumed of both.

    `evaluate` scores all slices in order, the panel *Compare* those that are painted on again.

    Attributes
    ----------
    prediction : Volume
        ZYX; what its values mean is told by `kind_of`.
    reference : Volume
        ZYX: labels, whose non-zero values are foreground, or probabilities as floats: another prediction.
    threshold : float or None
        Probability above which a pixel is foreground; None: that of the prediction's model.
    ignore : int or None
        Value of the reference's pixels that are not scored. If it is 0, label 1 is the background.
    image : Volume or None
        The image that was segmented: pixels outside its sample are not scored.
    """

    prediction: Volume
    reference: Volume
    threshold: float | None = None
    ignore: int | None = None
    image: Volume | None = None

    @property
    def level(self) -> float:
        """Probability above which a pixel is foreground."""
        return self.prediction.threshold if self.threshold is None else self.threshold

    def masks(self, z: int) -> tuple[NDArray[np.bool_], NDArray[np.bool_], NDArray[np.bool_]]:
        """Return the foreground of prediction and reference in slice `z`, and which pixels are scored, each YX bool."""
        values, ids, counted = self._read(z)
        return self._foreground(values), ids > 0, counted

    def score(self, z: int) -> SliceScore:
        """Score slice `z`.

        Raises
        ------
        InputError
            As in `evaluate`.
        """
        values, ids, counted = self._read(z)
        counts = Confusion.of(self._foreground(values), ids > 0, counted)
        true = frozenset(extremes(ids[counted]))
        if self._is_soft:
            return SliceScore(counts, float(cross_entropy(values[counted], ids[counted] > 0).sum()), true=true)
        return SliceScore(counts, predicted=frozenset(extremes(values)), true=true)

    def check_background(self, slices: Sequence[SliceScore]) -> None:
        """Check that a value is known to be the background if the labels of all `slices` have several.

        Raises
        ------
        LabelsError
            If none is.
        """
        true = frozenset[int]().union(*(each.true for each in slices))
        if len(true) > 1 and self.ignore != 0 and not _has_background(slices):
            raise missing_background(self.reference.name, set(true), self.ignore)

    def notes(self, slices: Sequence[SliceScore]) -> tuple[str, ...]:
        """Return what was assumed of the values in `slices`, one sentence each."""
        notes, name = [], self.prediction.name
        found = frozenset[int]().union(*(each.predicted for each in slices))
        if self._is_soft and self.prediction.dtype.kind == "u":
            most = np.iinfo(self.prediction.dtype).max
            notes.append(f"the values of {name} are taken as probabilities from 0 to {most}")
        if len(found) > 1:
            notes.append(
                f"the values of {name}, {min(found)} to {max(found)}, are taken as classes or objects: "
                "all but 0 is foreground"
            )
        if not _has_background(slices):
            notes.append(f"{self.reference.name} has no background where it is scored: all of it is foreground")
        return tuple(notes)

    @property
    def _is_soft(self) -> bool:
        return kind_of(self.prediction) == "probability"

    def _foreground(self, values: NDArray[Any]) -> NDArray[np.bool_]:
        foreground: NDArray[np.bool_] = values > self.level if self._is_soft else values != 0
        return foreground

    def _read(self, z: int) -> tuple[NDArray[Any], NDArray[Any], NDArray[np.bool_]]:
        """Return values of the prediction, ids of the reference, and which pixels are scored."""
        if self.reference.dtype.kind == "f":
            ids: NDArray[Any] = (read_probability(self.reference, z) > self.level).astype(np.uint8)
            counted = np.ones(ids.shape, bool)
        else:
            ids, ignored = object_ids(self.reference.read(z), self.ignore, self.reference.name)
            counted = ~ignored
        prediction = self.prediction
        values = (
            read_probability(prediction, z) if self._is_soft else predicted_ids(prediction.read(z), prediction.name)
        )
        outside = None if self.image is None else self.image.outside(z)
        return values, ids, counted if outside is None else counted & ~outside


def _has_background(slices: Sequence[SliceScore]) -> bool:
    return any(each.counts.fp or each.counts.tn for each in slices)


def evaluate(
    prediction: Any, labels: Any, *, threshold: float | None = None, ignore: int | None = None, raw: Any = None
) -> Scores:
    """Score a prediction against labels, slice by slice.

    Parameters
    ----------
    prediction : volume
        Anything that `open_volume` takes, ZYX. Floats are probabilities in [0, 1], and so are uint8 and uint16 that
        look like probabilities (0 to 255, 0 to 65535; the rule is in `core.volumes.probability`): they are scored at
        `threshold`, and their cross entropy is taken. In other integers and bool, non-zero is foreground, with a note
        if there are several values.
    labels : volume
        Integers or bool of the same shape; non-zero is foreground.
    threshold : float, optional
        Probability above which a pixel is foreground; by default that of the prediction's model, if `predict` wrote it
        to the file, else 0.5.
    ignore : int, optional
        Label value of pixels that are not scored.
    raw : volume, optional
        The image that was segmented, of the same shape: pixels outside its sample are not scored.

    Raises
    ------
    LabelsError
        If the shapes differ, the labels are not integers, no pixel is left to score, the labels have several values
        and no background, or a label is invalid (see `class_index`).
    VolumeError
        If one of them cannot be read, a probability is not in [0, 1], or integers have no background.
    """
    predicted, truth = open_pair(prediction, labels)
    image = None if raw is None else open_pair(raw, truth)[0]
    scoring = Scoring(predicted, truth, threshold, ignore, image)
    slices = [scoring.score(z) for z in range(truth.shape[0])]
    total = sum((each.counts for each in slices), Confusion())
    pixels = total.tp + total.fp + total.fn + total.tn
    if not pixels:
        raise LabelsError(f"{truth.name} holds nothing but the ignore value: there is nothing to score.")
    scoring.check_background(slices)
    ce = sum(each.entropy for each in slices) / pixels if kind_of(predicted) == "probability" else None
    return Scores(total, tuple(each.counts for each in slices), ce, scoring.notes(slices))


def binary_entropy(probability: NDArray[Any]) -> NDArray[np.float64]:
    """Return the entropy of each pixel's foreground probability in nats; probabilities are kept 1e-7 off 0 and 1."""
    p = np.clip(probability.astype(np.float64), 1e-7, 1 - 1e-7)
    entropy: NDArray[np.float64] = -(p * np.log(p) + (1 - p) * np.log1p(-p))
    return entropy


def cross_entropy(probability: NDArray[Any], truth: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Return the binary cross entropy of each pixel in nats; probabilities are kept 1e-7 off 0 and 1."""
    right = np.where(truth, probability, 1 - probability).astype(np.float64)
    return -np.log(np.clip(right, 1e-7, 1))


@dataclass
class Curve:
    """Scores at all thresholds at once, from histograms of the probability in true foreground and in true background.

    They tell which threshold gives the best IoU, and whether the network has collapsed.
    """

    positive: NDArray[np.int64] = field(default_factory=lambda: np.zeros(_BINS, np.int64))
    negative: NDArray[np.int64] = field(default_factory=lambda: np.zeros(_BINS, np.int64))
    entropy: float = 0.0
    moments: NDArray[np.float64] = field(default_factory=lambda: np.zeros(2))
    uncertainty: float = 0.0

    def add(self, probability: NDArray[np.float32], index: NDArray[np.int16]) -> None:
        """Count the pixels of a slice or tile: its foreground probability and its `class_index`, both (Y, X).

        Pixels with a negative index are left out.
        """
        counted = index >= 0
        values, truth = probability[counted], index[counted] > 0
        bins = np.minimum((values * _BINS).astype(np.int64), _BINS - 1)
        self.positive += np.bincount(bins[truth], minlength=_BINS)
        self.negative += np.bincount(bins[~truth], minlength=_BINS)
        self.entropy += float(cross_entropy(values, truth).sum())
        self.moments += (float(values.sum(dtype=np.float64)), float(np.square(values, dtype=np.float64).sum()))
        self.uncertainty += float(binary_entropy(values).sum())

    @property
    def pixels(self) -> int:
        """Number of pixels counted."""
        return int(self.positive.sum() + self.negative.sum())

    @property
    def ce(self) -> float:
        """Mean cross entropy, nats a pixel."""
        return self.entropy / max(self.pixels, 1)

    @property
    def foreground(self) -> float:
        """Share of the counted pixels that are foreground in the truth."""
        return float(self.positive.sum() / max(self.pixels, 1))

    @property
    def prior_ce(self) -> float:
        """Cross entropy of predicting the foreground's share everywhere, nats a pixel."""
        return float(-sum(p * math.log(p) for p in (self.foreground, 1 - self.foreground) if p > 0))

    @property
    def spread(self) -> float:
        """Standard deviation of the probability over the pixels."""
        mean, square = self.moments / max(self.pixels, 1)
        return math.sqrt(max(square - mean**2, 0.0))

    @property
    def doubt(self) -> float:
        """Mean entropy of the pixels' probabilities relative to the entropy of their mean; 0 is sure of every pixel."""
        mean = float(self.moments[0]) / max(self.pixels, 1)
        return self.uncertainty / max(self.pixels * float(binary_entropy(np.array(mean))), 1e-12)

    def iou(self, threshold: float) -> float:
        """Return the foreground IoU of ``probability > threshold``, to the width of a histogram's bin (1/512)."""
        return float(self.ious()[round(threshold * _BINS)])

    def best_threshold(self) -> float:
        """Return the threshold nearest to 0.5 of those whose IoU is within 0.002 of the best.

        On a few slices the very best threshold is often an extreme one, better by a hair, and worse on other slices.
        """
        return _best_threshold(self.ious())

    @property
    def collapsed(self) -> bool:
        """Whether the output is nearly constant, or hardly better than calling everything foreground."""
        everything = self.foreground
        return self.spread < 0.01 or self.iou(self.best_threshold()) <= everything + 0.05 * (1 - everything)

    def ious(self) -> NDArray[np.float64]:
        """Return the IoU (513,) at the thresholds 0, 1/512, ... 1; the last is 0, as nothing is foreground there."""
        tp = np.append(np.cumsum(self.positive[::-1])[::-1], 0)
        fp = np.append(np.cumsum(self.negative[::-1])[::-1], 0)
        ious: NDArray[np.float64] = tp / np.maximum(self.positive.sum() + fp, 1)
        return ious


def _best_threshold(ious: NDArray[np.float64]) -> float:
    """Return the threshold of `Curve.best_threshold`, given the IoU at each edge of the bins."""
    inner = ious[1:-1]
    good = (np.flatnonzero(inner >= inner.max() - _ALIKE) + 1) / _BINS
    return float(good[np.abs(good - 0.5).argmin()])


@dataclass(frozen=True)
class MeanCurve:
    """The scores of one network on several volumes, and their means, in which each volume counts alike.

    Attributes
    ----------
    curves : tuple of Curve
        One for each volume, at least one.
    """

    curves: tuple[Curve, ...]

    @property
    def ce(self) -> float:
        """Cross entropy, averaged over the volumes, nats a pixel."""
        return fmean(curve.ce for curve in self.curves)

    @property
    def prior_ce(self) -> float:
        """`Curve.prior_ce`, averaged over the volumes, nats a pixel."""
        return fmean(curve.prior_ce for curve in self.curves)

    def summary(self, threshold: float) -> dict[str, Any]:
        """Return the validation scores for a model's file, with the foreground's share and doubt, as JSON values."""
        scores: dict[str, Any] = {"iou": self.iou(threshold), "ce": self.ce, "prior_ce": self.prior_ce}
        if len(self.curves) > 1:
            scores["volume_ious"] = [each.iou(threshold) for each in self.curves]
        return scores | {name: fmean(getattr(each, name) for each in self.curves) for name in ("foreground", "doubt")}

    def iou(self, threshold: float) -> float:
        """Return the foreground IoU at a threshold, averaged over the volumes."""
        return fmean(curve.iou(threshold) for curve in self.curves)

    def best_threshold(self) -> float:
        """Return one threshold for all volumes: that of `Curve.best_threshold` for their mean IoU."""
        return _best_threshold(np.mean([curve.ious() for curve in self.curves], axis=0))

    @property
    def collapsed(self) -> bool:
        """Whether the output is nearly constant on every volume."""
        return all(curve.collapsed for curve in self.curves)
