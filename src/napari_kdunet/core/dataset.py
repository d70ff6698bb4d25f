"""What a training learns from and what it is judged by: which slices are labelled, held out, or only taught."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from napari_kdunet.core.checkpoint import Model
from napari_kdunet.core.config import TrainConfig
from napari_kdunet.core.errors import ConfigError, LabelsError, UnlabelledError, VolumeError
from napari_kdunet.core.labels import class_index
from napari_kdunet.core.metrics import Curve
from napari_kdunet.core.patches import Pool, Source, load_blocks, read_probability
from napari_kdunet.core.prediction import Tiler, foreground
from napari_kdunet.core.volumes import Volume, check_labels, open_volume

__all__ = ["Dataset", "Validation", "prepare"]

Truth = Callable[[int, tuple[int, int], tuple[int, int]], NDArray[np.int16]]


@dataclass(frozen=True)
class Validation:
    """The slices that a network is scored on, at the image's own resolution."""

    raw: Volume
    truth: Truth
    slices: tuple[int, ...]
    kind: str
    """As in `Started.validated_on`."""

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


@dataclass
class Dataset:
    """All that a training reads."""

    pool: Pool
    validation: Validation
    labelled_slices: tuple[int, ...]
    unlabelled_slices: int
    pixel_size: float
    """The image's own, nm; 0 where it is not known."""
    image: Volume
    labels: Volume | None
    held_out: frozenset[int]
    notes: tuple[str, ...] = field(default=())

    def read_again(self, z: int) -> None:
        """Take slice `z` as it is labelled by now; one that is held out is judged by it, not learnt from."""
        config = self.pool.config
        if self.labels is None or z in self.held_out or not 0 <= z < self.labels.shape[0]:
            return
        counts, _ = _labelled(self.labels, z, config)
        source = Source(self.image, self.labels, slices=(z,) if counts else ())
        self.pool.replace(z, load_blocks(source, config, int(config.memory * 1e9))[0])
        if self.validation.kind == "training slices":
            slices = tuple(sorted({block.z for block in self.pool.labelled}))
            self.validation = replace(self.validation, slices=_spaced(slices, config.val_slices))


def prepare(
    raw: Any,
    labels: Any | None,
    config: TrainConfig,
    device: torch.device,
    *,
    val: tuple[Any, Any] | None = None,
    teacher: Model | Volume | None = None,
    unlabelled: Sequence[Any] = (),
) -> Dataset:
    """Open, check, split and load everything.

    Parameters
    ----------
    raw, labels : volume
        ZYX; labels may be None where there is a teacher.
    config : TrainConfig
        Which slices, which share to hold out, how much memory.
    device : torch.device
        Where the batches go.
    val : pair of volumes, optional
        Raw and labels to validate on instead of a held-out share.
    teacher : Model or Volume, optional
        With a teacher the slices that are not labelled are learnt from too; a Volume is its probability of `raw`.
    unlabelled : sequence of volumes
        More raw volumes that only the teacher speaks of.

    Raises
    ------
    VolumeError, LabelsError, ConfigError
        If something cannot be used.
    """
    image = open_volume(raw)
    truth = None if labels is None else open_volume(labels)
    if truth is not None:
        check_labels(image, truth)
    if isinstance(teacher, Volume) and (teacher.shape != image.shape or unlabelled):
        why = "volumes without its probability were given" if unlabelled else f"its shape is {teacher.shape}"
        raise VolumeError(f"{teacher.name} cannot teach on {image.name}, shape {image.shape}: {why}.")
    found = () if truth is None else labelled_slices(truth, config)
    validation, held_out = _split(image, truth, found, config, val, teacher, device)
    for z in validation.slices:
        validation.raw.statistics(z)  # a bad slice is found now rather than after the first part of the training
    learnt = tuple(z for z in found if z not in held_out)
    others = tuple(z for z in range(image.shape[0]) if z not in found and z not in held_out) if teacher else ()
    probability = teacher if isinstance(teacher, Volume) else None
    labelled = [Source(image, truth, probability, learnt)] if learnt else []
    taught = [Source(image, None, probability, others)] if others else []
    taught += [Source(more, slices=tuple(range(more.shape[0]))) for more in map(open_volume, unlabelled)]
    used = dict.fromkeys((image, validation.raw, *(source.raw for source in taught)))
    notes = [note for volume in used for note in _pixel_size_notes(volume, config)]
    pool, sampled = _load(labelled, taught, config, device)
    if sampled:
        notes.append(f"the slices need more than {config.memory:g} GB: an even sample of them is trained on.")
    taught_values = [b.taught.max().item() for b in (*pool.labelled, *pool.unlabelled) if b.taught is not None]
    if probability is not None and probability.dtype == "uint8" and max(taught_values) < 1.5 / 255:
        raise VolumeError(f"{probability.name} is uint8, but holds only 0 and 1: give a mask as bool, or times 255.")
    if truth is not None:
        _check_both(truth, pool)
    own = image.voxel_size[-1] if image.voxel_size else 0.0
    unlabelled_slices = sum(len(source.slices) for source in taught)
    return Dataset(pool, validation, learnt, unlabelled_slices, own, image, truth, held_out, tuple(notes))


def _check_both(labels: Volume, pool: Pool) -> None:
    """Check that there is foreground and background to learn from."""
    background, *others = pool.class_pixels().tolist()
    for name, pixels in (("foreground", sum(others)), ("background", background)):
        if not pixels:
            where = "in the slices to train on"
            raise UnlabelledError(f"{labels.name} has no {name} {where}: label some or name others.")


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
        counts, positive = _labelled(labels, z, config)
        foreground_seen = foreground_seen or positive
        if counts:
            found.append(z)
    if not found and config.ignore is not None:
        raise UnlabelledError(f"{labels.name} holds nothing but the ignore value {config.ignore}: label some pixels.")
    if not foreground_seen:
        raise UnlabelledError(f"{labels.name} has no foreground: label some before training.")
    return tuple(found)


def _labelled(labels: Volume, z: int, config: TrainConfig) -> tuple[bool, bool]:
    """Whether a slice counts as labelled, and whether it has foreground.

    With slices="auto" and no ignore value, one without foreground may be one that nobody has looked at.
    """
    index = class_index(labels.read(z), config.classes, config.ignore)
    known, positive = bool((index >= 0).any()), bool((index > 0).any())
    return (known if config.slices != "auto" or config.ignore is not None else positive), positive


def _pixel_size_notes(image: Volume, config: TrainConfig) -> list[str]:
    if image.voxel_size is None and config.pixel_size:
        return [f"the pixel size of {image.name} is not known: taken as the working {config.pixel_size:g} nm."]
    return []


def _split(
    image: Volume,
    truth: Volume | None,
    found: tuple[int, ...],
    config: TrainConfig,
    val: tuple[Any, Any] | None,
    teacher: Model | Volume | None,
    device: torch.device,
) -> tuple[Validation, frozenset[int]]:
    """The validation, and which slices of `image` must not be learnt from."""
    if val is not None:
        given, given_labels = open_volume(val[0]), open_volume(val[1])
        check_labels(given, given_labels)
        slices = labelled_slices(given_labels, replace(config, slices="auto"))
        return _against_labels(given, given_labels, slices, config, "given volume"), frozenset()
    if truth is not None:
        held_out = _held_out(found, config.val_share)
        judged = _spaced(held_out, config.val_slices)
        if any((class_index(truth.read(z), config.classes, config.ignore) > 0).any() for z in judged):
            return _against_labels(image, truth, held_out, config, "held-out slices"), frozenset(held_out)
        return _against_labels(image, truth, found, config, "training slices"), frozenset()
    if teacher is None:
        raise LabelsError(f"{image.name} came without labels and without a teacher: give one of them.")
    every = tuple(range(image.shape[0]))
    held_out = _held_out(every, config.val_share)
    truth_of = _teacher_truth(image, teacher, device)
    return Validation(image, truth_of, _spaced(held_out or every, config.val_slices), "teacher"), frozenset(held_out)


def _against_labels(raw: Volume, labels: Volume, slices: tuple[int, ...], config: TrainConfig, kind: str) -> Validation:
    def truth(z: int, y: tuple[int, int], x: tuple[int, int]) -> NDArray[np.int16]:
        return class_index(labels.read(z, slice(*y), slice(*x)), config.classes, config.ignore)

    return Validation(raw, truth, _spaced(slices, config.val_slices), kind)


def _teacher_truth(raw: Volume, teacher: Model | Volume, device: torch.device) -> Truth:
    @lru_cache(maxsize=32)  # the same few tiles are asked for at each validation
    def truth(z: int, y: tuple[int, int], x: tuple[int, int]) -> NDArray[np.int16]:
        if isinstance(teacher, Volume):
            probability = read_probability(teacher, z, slice(*y), slice(*x))
            return (probability > 0.5).astype(np.int16)
        tiler = Tiler.of(teacher, raw, device.type)
        return (foreground(tiler.logits(raw, z, y, x)) > teacher.threshold).astype(np.int16)

    return truth


def _held_out(slices: tuple[int, ...], share: float) -> tuple[int, ...]:
    """The last of the slices, about `share` of them; none of three or fewer, and never all."""
    count = min(max(1, round(len(slices) * share)), len(slices) - 1) if len(slices) > 3 and share else 0
    return slices[len(slices) - count :]


def _spaced(slices: tuple[int, ...], most: int) -> tuple[int, ...]:
    """At most `most` of the slices, evenly spaced."""
    count = min(len(slices), most)
    return tuple(slices[(2 * i + 1) * len(slices) // (2 * count)] for i in range(count))


def _load(labelled: list[Source], taught: list[Source], config: TrainConfig, device: torch.device) -> tuple[Pool, bool]:
    """Load both kinds of sources, each within its share of the memory."""
    limit = int(config.memory * 1e9 / max(1, len(labelled) + len(taught)))
    loaded = [[load_blocks(source, config, limit) for source in kind] for kind in (labelled, taught)]
    blocks = [[block for found, _ in kind for block in found] for kind in loaded]
    sampled = any(cut for kind in loaded for _, cut in kind)
    return Pool(blocks[0], blocks[1], config, device), sampled
