"""Validation: the slices that a network is scored on, and how."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from napari_kdunet.core.config import TrainConfig
from napari_kdunet.core.data.splits import held_out_slices, labelled_slices, spaced
from napari_kdunet.core.data.teachers import TeacherOutput
from napari_kdunet.core.errors import LabelsError
from napari_kdunet.core.metrics import Curve, read_probability
from napari_kdunet.core.networks.model import Model
from napari_kdunet.core.prediction.tiler import Tiler, foreground
from napari_kdunet.core.volumes.labels import class_index
from napari_kdunet.core.volumes.volume import Volume, open_pair

__all__ = ["Validation", "split"]

Truth = Callable[[int, tuple[int, int], tuple[int, int]], NDArray[np.int16]]


@dataclass(frozen=True)
class Validation:
    """The slices that a network is scored on, at the image's own resolution."""

    raw: Volume
    truth: Truth
    slices: tuple[int, ...]
    kind: str
    """As in `Started.validated_on`."""

    @classmethod
    def against(
        cls, raw: Volume, labels: Volume, slices: Sequence[int], config: TrainConfig, kind: str = "given volume"
    ) -> Validation:
        """Validate against the labels of some slices."""

        def truth(z: int, y: tuple[int, int], x: tuple[int, int]) -> NDArray[np.int16]:
            return class_index(labels.read(z, slice(*y), slice(*x)), config.classes, config.ignore)

        return cls(raw, truth, tuple(slices), kind)

    def prior_ce(self) -> float:
        """Cross entropy of the class prior, the slices' share of foreground, nats a pixel."""
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
            As `as_teacher` gives it; a Volume is its foreground probability of `raw`.
        device : str
            Where a model runs.
        threads : int, optional
            CPU threads for it.
        views : int
            Over how many mirror images and quarter turns of a slice a model is averaged, as in `predict`.

        Yields
        ------
        Curve
            One and the same, after each slice: all slices up to there.
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
        """The scores of all slices; arguments as in `iter_score`."""
        *_, curve = (Curve(), *self.iter_score(source, device, threads, views))
        return curve


def split(
    image: Volume,
    truth: Volume | None,
    labelled: tuple[int, ...],
    config: TrainConfig,
    val: tuple[Any, Any] | None,
    teacher: TeacherOutput | None,
) -> tuple[Validation, frozenset[int]]:
    """Choose the validation slices: those of `val`, else held-out ones, else those that are trained on.

    Parameters
    ----------
    image, truth : Volume
        Image and labels to train on; labels may be None where there is a teacher.
    labelled : tuple of int
        z of the labelled slices.
    config : TrainConfig
        Share and number of slices to validate on.
    val : pair of volumes, optional
        Raw and labels to validate on.
    teacher : TeacherOutput, optional
        Judge of a student that learns without labels.

    Returns
    -------
    Validation
    frozenset of int
        The z of `image` that are held out of the training.

    Raises
    ------
    VolumeError, LabelsError, UnlabelledError
        If `val` cannot be used, or there are neither labels nor a teacher.
    """
    if val is not None:
        given, given_labels = open_pair(*val)
        slices = labelled_slices(given_labels, replace(config, slices="auto"))
        chosen = spaced(slices, config.val_slices)
        return Validation.against(given, given_labels, chosen, config, "given volume"), frozenset()
    if truth is not None:
        held_out = held_out_slices(labelled, config.val_share)
        chosen = spaced(held_out, config.val_slices)
        if any((class_index(truth.read(z), config.classes, config.ignore) > 0).any() for z in chosen):
            return Validation.against(image, truth, chosen, config, "held-out slices"), frozenset(held_out)
        chosen = spaced(labelled, config.val_slices)
        return Validation.against(image, truth, chosen, config, "training slices"), frozenset()
    if teacher is None:
        raise LabelsError(f"{image.name} came without labels and without a teacher: give one of them.")
    every = tuple(range(image.shape[0]))
    held_out = held_out_slices(every, config.val_share)
    chosen = spaced(held_out or every, config.val_slices)
    return Validation(image, _teacher_truth(teacher), chosen, "teacher"), frozenset(held_out)


def _teacher_truth(teacher: TeacherOutput) -> Truth:
    @lru_cache(maxsize=32)  # the same few tiles are asked for at each validation
    def truth(z: int, y: tuple[int, int], x: tuple[int, int]) -> NDArray[np.int16]:
        foreground = teacher.probabilities(z, slice(*y), slice(*x)).sum(dim=0).numpy()
        return (foreground > teacher.threshold).astype(np.int16)

    return truth
