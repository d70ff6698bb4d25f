"""Which slices are labelled, which are held out, and how a network is judged by those."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from napari_kdunet.core.config import TrainConfig
from napari_kdunet.core.data.teachers import Teaching
from napari_kdunet.core.errors import ConfigError, LabelsError, UnlabelledError, VolumeError
from napari_kdunet.core.metrics import Curve
from napari_kdunet.core.networks.model import Model
from napari_kdunet.core.prediction.tiler import Tiler, foreground
from napari_kdunet.core.volumes.labels import class_index
from napari_kdunet.core.volumes.volume import Volume, check_labels, open_volume

__all__ = ["Validation", "held_out_slices", "hold_out", "is_labelled", "labelled_slices", "spaced", "split"]

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
        """Some slices of a labelled volume."""

        def truth(z: int, y: tuple[int, int], x: tuple[int, int]) -> NDArray[np.int16]:
            return class_index(labels.read(z, slice(*y), slice(*x)), config.classes, config.ignore)

        return cls(raw, truth, tuple(slices), kind)

    def prior_ce(self) -> float:
        """Cross entropy of always answering the slices' share of foreground, nats a pixel."""
        curve, (_, height, width) = Curve(), self.raw.shape
        for z in self.slices:
            index = self.truth(z, (0, height), (0, width))
            curve.add(np.zeros(index.shape, np.float32), index)
        return curve.prior_ce

    def score(self, model: Model, device: str, threads: int | None = None) -> Curve:
        """Score a model, tile by tile."""
        tiler, curve = Tiler.of(model, self.raw, device, threads), Curve()
        for z in self.slices:
            for y, x in tiler.windows(self.raw.shape):
                curve.add(foreground(tiler.logits(self.raw, z, y, x)), self.truth(z, y, x))
        return curve


def labelled_slices(labels: Volume, config: TrainConfig) -> tuple[int, ...]:
    """The z of the slices to learn from, as `config.slices` names them.

    Raises
    ------
    UnlabelledError
        If nothing is labelled, or nothing as foreground.
    ConfigError
        If a named slice does not exist.
    """
    if isinstance(config.slices, tuple):
        if max(config.slices) >= labels.shape[0]:
            last = labels.shape[0] - 1
            raise ConfigError(f"slices names z={max(config.slices)}, but {labels.name} has slices 0 to {last}.")
        candidates: Sequence[int] = sorted(set(config.slices))
    else:
        candidates = range(labels.shape[0])
    found, foreground_seen = [], False
    for z in candidates:
        counts, positive = is_labelled(labels, z, config)
        foreground_seen = foreground_seen or positive
        if counts:
            found.append(z)
    if not found and config.ignore is not None:
        raise UnlabelledError(f"{labels.name} holds nothing but the ignore value {config.ignore}: label some pixels.")
    if not foreground_seen:
        raise UnlabelledError(f"{labels.name} has no foreground: label some before training.")
    return tuple(found)


def is_labelled(labels: Volume, z: int, config: TrainConfig) -> tuple[bool, bool]:
    """Whether a slice counts as labelled, and whether it has foreground.

    With slices="auto" and no ignore value, one without foreground may be one that nobody has looked at.
    """
    index = class_index(labels.read(z), config.classes, config.ignore)
    known, positive = bool((index >= 0).any()), bool((index > 0).any())
    return (known if config.slices != "auto" or config.ignore is not None else positive), positive


def split(
    image: Volume,
    truth: Volume | None,
    found: tuple[int, ...],
    config: TrainConfig,
    val: tuple[Any, Any] | None,
    teaching: Teaching | None,
) -> tuple[Validation, frozenset[int]]:
    """The validation, and which slices of `image` must not be learnt from."""
    if val is not None:
        given, given_labels = open_volume(val[0]), open_volume(val[1])
        check_labels(given, given_labels)
        slices = labelled_slices(given_labels, replace(config, slices="auto"))
        judged = spaced(slices, config.val_slices)
        return Validation.against(given, given_labels, judged, config, "given volume"), frozenset()
    if truth is not None:
        held_out = held_out_slices(found, config.val_share)
        judged = spaced(held_out, config.val_slices)
        if any((class_index(truth.read(z), config.classes, config.ignore) > 0).any() for z in judged):
            return Validation.against(image, truth, judged, config, "held-out slices"), frozenset(held_out)
        judged = spaced(found, config.val_slices)
        return Validation.against(image, truth, judged, config, "training slices"), frozenset()
    if teaching is None:
        raise LabelsError(f"{image.name} came without labels and without a teacher: give one of them.")
    every = tuple(range(image.shape[0]))
    held_out = held_out_slices(every, config.val_share)
    judged = spaced(held_out or every, config.val_slices)
    return Validation(image, _teacher_truth(teaching), judged, "teacher"), frozenset(held_out)


def _teacher_truth(teaching: Teaching) -> Truth:
    @lru_cache(maxsize=32)  # the same few tiles are asked for at each validation
    def truth(z: int, y: tuple[int, int], x: tuple[int, int]) -> NDArray[np.int16]:
        foreground = teaching.probabilities(z, slice(*y), slice(*x)).sum(dim=0).numpy()
        return (foreground > teaching.threshold).astype(np.int16)

    return truth


def held_out_slices(slices: tuple[int, ...], share: float) -> tuple[int, ...]:
    """The middle of the slices, about `share` of them; none where that is less than one, and never all.

    The middle is like the rest, where the ends of a stack often are not: cut, bent or noisy. Of few slices each is
    worth more to learn from than to judge by.
    """
    count = min(round(len(slices) * share), len(slices) - 1) if len(slices) * share >= 1 else 0
    first = (len(slices) - count) // 2
    return slices[first : first + count]


def spaced(slices: Sequence[int], most: int) -> tuple[int, ...]:
    """At most `most` of the slices, evenly spaced."""
    count = min(len(slices), most)
    return tuple(slices[(2 * i + 1) * len(slices) // (2 * count)] for i in range(count))


def hold_out(raw: Any, labels: Any, share: float = 0.25) -> tuple[tuple[Volume, Volume], tuple[Volume, Volume]]:
    """Split a labelled volume in z: one part to train on, and its last slices to score on.

    Parameters
    ----------
    raw, labels : volume
        Anything that `open_volume` takes, ZYX.
    share : float
        About this share of the slices is held out, at least one.

    Returns
    -------
    pair, pair of Volume
        Raw and labels of the first part, and of the last.

    Raises
    ------
    VolumeError, LabelsError
        If the volumes cannot be used, or there is but one slice.
    """
    volumes = open_volume(raw), open_volume(labels)
    check_labels(*volumes)
    count = volumes[0].shape[0]
    if count < 2:
        raise VolumeError(
            f"{volumes[0].name} is one slice, of which nothing can be held out: give a volume to score on."
        )
    cut = count - max(1, round(share * count))

    def part(volume: Volume, first: int, last: int) -> Volume:
        name = f"{volume.name}[{first}:{last}]"
        return open_volume(volume.data[first:last], voxel_size=volume.voxel_size, name=name)

    first, last = ((part(volumes[0], *z), part(volumes[1], *z)) for z in ((0, cut), (cut, count)))
    return first, last
