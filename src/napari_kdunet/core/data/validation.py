"""Validation: which slices are held out of training, and how a network is scored on them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from napari_kdunet.core.config.training import TrainConfig
from napari_kdunet.core.data.patches import TrainingVolume
from napari_kdunet.core.data.splits import held_out_slices, labelled_slices
from napari_kdunet.core.data.teachers import TeacherOutput
from napari_kdunet.core.metrics import Curve
from napari_kdunet.core.networks.model import Model
from napari_kdunet.core.prediction.tiler import Tiler, foreground
from napari_kdunet.core.volumes.labels import read_classes
from napari_kdunet.core.volumes.probability import read_probability
from napari_kdunet.core.volumes.slices import spaced
from napari_kdunet.core.volumes.volume import Volume, open_pair

__all__ = ["Split", "Validation", "given_validation", "split"]

Truth = Callable[[int, tuple[int, int], tuple[int, int]], NDArray[np.int16]]


@dataclass(frozen=True)
class Validation:
    """The slices that a network is scored on, at the image's own resolution."""

    raw: Volume
    truth: Truth
    """Returns class indices (Y, X) of a window, given z and the ranges of rows and columns; -1 is not scored."""
    slices: tuple[int, ...]
    kind: str
    """What the validation is against, in the words of `Started.validated_on`."""
    labels: Volume | None = None
    """Labels to score against; None if the teacher is scored against."""

    @classmethod
    def against(
        cls, raw: Volume, labels: Volume, slices: Sequence[int], config: TrainConfig, kind: str = "given volume"
    ) -> Validation:
        """Make a validation against the labels of some slices."""

        def truth(z: int, y: tuple[int, int], x: tuple[int, int]) -> NDArray[np.int16]:
            window = slice(*y), slice(*x)
            index = read_classes(labels, z, *window, classes=config.label_classes, ignore=config.ignore)
            return _without_outside(index, raw, z, y, x)

        return cls(raw, truth, tuple(slices), kind, labels)

    def prior_ce(self) -> float:
        """Return the cross entropy of the class prior, the slices' share of foreground, nats a pixel."""
        curve, (_, height, width) = Curve(), self.raw.shape
        for z in self.slices:
            index = self.truth(z, (0, height), (0, width))
            curve.add(np.zeros(index.shape, np.float32), index)
        return curve.prior_ce

    def iter_score(
        self, source: Model | Volume, device: str, threads: int | None = None, views: int = 1
    ) -> Iterator[Curve]:
        """Score a model or a probability volume, slice by slice.

        Parameters
        ----------
        source : Model or Volume
            A model, or a volume of foreground probabilities for `raw`.
        device : str
            Device that a model runs on.
        threads : int, optional
            CPU threads for a model.
        views : int
            Number of views (mirror images and quarter turns) of a slice over which a model is averaged, as in
            `predict`.

        Yields
        ------
        Curve
            The same object after each slice, with the scores of all slices so far.
        """
        curve, (_, height, width) = Curve(), self.raw.shape
        tiler = Tiler.of(source, self.raw, device, threads, views) if isinstance(source, Model) else None
        for z in self.slices:
            for y, x in [((0, height), (0, width))] if tiler is None else tiler.windows(self.raw.shape):
                if isinstance(source, Volume):
                    probability = read_probability(source, z)
                else:
                    assert tiler is not None
                    probability = foreground(tiler.logits(self.raw, z, y, x))
                curve.add(probability, self.truth(z, y, x))
            yield curve

    def score(self, source: Model | Volume, device: str, threads: int | None = None, views: int = 1) -> Curve:
        """Return the scores of all slices; arguments as in `iter_score`."""
        *_, curve = (Curve(), *self.iter_score(source, device, threads, views))
        return curve


def given_validation(raw: Any, labels: Any, config: TrainConfig) -> Validation:
    """Make a validation on a volume that is given for it.

    Raises
    ------
    VolumeError, LabelsError, UnlabelledError
        If image and labels do not fit, or nothing is labelled.
    """
    given, given_labels = open_pair(raw, labels)
    slices = labelled_slices(given_labels, replace(config, slices="auto"))
    return Validation.against(given, given_labels, spaced(slices, config.val_slices), config)


@dataclass(frozen=True)
class Split:
    """The slices of a volume, split into those with labels, those with the teacher alone, and those for validation."""

    labelled: TrainingVolume
    unlabelled: TrainingVolume
    validation: Validation | None
    usable: tuple[int, ...]
    """z of all slices that are not held out."""

    def taught_by(self, teacher: TeacherOutput) -> Split:
        """Return the same split, with a teacher for the labelled slices."""
        return replace(self, labelled=replace(self.labelled, teacher=teacher))


def split(volume: TrainingVolume, config: TrainConfig, validated: bool) -> Split:
    """Split the slices of a volume into those to train on and those to validate on.

    Parameters
    ----------
    volume : TrainingVolume
        The volume; its labels or its teacher may be None, not both.
    config : TrainConfig
        Settings: which slices count as labelled, and the share and number of those to validate on.
    validated : bool
        Whether to validate on this volume: on held-out slices, else on those that are trained on.

    Raises
    ------
    VolumeError, LabelsError, UnlabelledError
        If the labels cannot be used.
    """
    every = tuple(range(volume.raw.shape[0]))
    labelled = () if volume.labels is None else labelled_slices(volume.labels, config)
    validation, held_out = _hold_out(volume, labelled or every, config) if validated else (None, frozenset[int]())
    usable = tuple(z for z in every if z not in held_out)
    learnt = tuple(z for z in labelled if z not in held_out)
    others = tuple(z for z in usable if z not in labelled) if volume.teacher is not None else ()
    without = replace(volume, labels=None, slices=others)
    return Split(replace(volume, slices=learnt), without, validation, usable)


def _hold_out(
    volume: TrainingVolume, slices: tuple[int, ...], config: TrainConfig
) -> tuple[Validation, frozenset[int]]:
    """Return the validation on a share of the slices, and the z of those that are held out for it."""
    raw, labels = volume.raw, volume.labels
    held_out = held_out_slices(slices, config.val_share)
    chosen = spaced(held_out or slices, config.val_slices)
    if labels is None:
        assert volume.teacher is not None
        return Validation(raw, _teacher_truth(volume.teacher), chosen, "teacher"), frozenset(held_out)
    of_both = chosen if held_out else ()
    index = [read_classes(labels, z, classes=config.label_classes, ignore=config.ignore) for z in of_both]
    if any((each > 0).any() for each in index) and any((each == 0).any() for each in index):
        return Validation.against(raw, labels, chosen, config, "held-out slices"), frozenset(held_out)
    chosen = spaced(slices, config.val_slices)
    return Validation.against(raw, labels, chosen, config, "training slices"), frozenset()


def _teacher_truth(teacher: TeacherOutput) -> Truth:
    @lru_cache(maxsize=32)  # the same few tiles are asked for at each validation
    def truth(z: int, y: tuple[int, int], x: tuple[int, int]) -> NDArray[np.int16]:
        foreground = teacher.probabilities(z, slice(*y), slice(*x)).sum(dim=0).numpy()
        return _without_outside((foreground > teacher.threshold).astype(np.int16), teacher.raw, z, y, x)

    return truth


def _without_outside(
    index: NDArray[np.int16], raw: Volume, z: int, y: tuple[int, int], x: tuple[int, int]
) -> NDArray[np.int16]:
    """Return the class indices of a window, -1 outside the sample, where nothing is scored."""
    outside = raw.outside(z, slice(*y), slice(*x))
    return index if outside is None else np.where(outside, np.int16(-1), index)
