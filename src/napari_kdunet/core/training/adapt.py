"""Adaptation without labels: a teacher predicts parts of a new volume, and a tiny student learns from that.

The teacher predicts as well as it can, with several views of each slice, but only parts that are spread over the
volume. The student learns from those predictions, then from its own, and is fast on the whole volume.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from napari_kdunet.core.config.distillation import ADAPTING, DistillConfig
from napari_kdunet.core.devices import check_default_dtype, training_threads
from napari_kdunet.core.errors import ConfigError
from napari_kdunet.core.networks.bundled import bundled_models
from napari_kdunet.core.networks.model import Model, ModelLike, load_model
from napari_kdunet.core.prediction.predict import predict
from napari_kdunet.core.prediction.statistics import with_statistics
from napari_kdunet.core.training.events import Event
from napari_kdunet.core.training.train import iter_distill, last_model
from napari_kdunet.core.volumes.neighbours import Neighbours
from napari_kdunet.core.volumes.resampling import Grid
from napari_kdunet.core.volumes.slices import spaced
from napari_kdunet.core.volumes.volume import Volume, open_volume, shows_nothing

__all__ = ["PIXELS", "adapt", "begin_as", "bundled_student", "iter_adapt", "lesson"]

PIXELS = 16e6
"""Number of working pixels that a teacher predicts at most, by default."""

_SIDE = 1024  # working pixels: side of a window that is cut out of a larger slice
_GOLDEN = (math.sqrt(5) - 1) / 2  # the fractional parts of its multiples are spread evenly, however many there are
_LEAST = 1e-4  # least distance of probabilities from 0 and 1


class _Part(NamedTuple):
    """A window of a slice that the teacher predicts."""

    z: int
    y: slice
    x: slice


def iter_adapt(
    teacher: ModelLike,
    raw: Any,
    config: DistillConfig | None = None,
    *,
    pixels: float = PIXELS,
    start: ModelLike | None = None,
    out: str | Path | None = None,
) -> Iterator[Event]:
    """Adapt a k-Unet to a volume that nobody has labelled, event by event.

    The teacher predicts slices, or windows of slices, that are spread over the volume, averaging `config.teacher_views`
    views of each. Its probabilities are shifted so that its threshold becomes 0.5, and the student learns from them by
    the soft loss, each pixel weighted by the teacher's confidence (`config.confidence`). On images that neither knows
    it outgrows its teacher: so in the later rounds (`config.rounds`) it learns from its own probabilities instead, and
    its last weights are kept, not those that agree best with the teacher (docs/unseen.md).

    Parameters
    ----------
    teacher : Model, path or str
        A network that knows images of this kind, its file, or the name of a bundled one; it may see neighbouring
        slices, which the student does not.
    raw : volume
        Anything that `open_volume` takes, ZYX, with its voxel size.
    config : DistillConfig, optional
        Settings, without context; those of `DistillConfig.adapting` if None. The minutes include the teacher's
        predictions, which take at most half of them (more only if a single part does); the student trains for the
        rest, at least half.
    pixels : float
        Largest number of pixels, at its working pixel size, that the teacher predicts; it predicts at least one part.
    start : Model, path or str, optional
        Initial weights of the student; see `bundled_student`.
    out : path, optional
        As in `iter_train`, but no state to resume from is kept, because how much the teacher predicts in a given time
        differs from run to run.

    Yields
    ------
    Event
        As in `iter_train`; scores are the agreement with the teacher.

    Raises
    ------
    InputError, DivergedError
        As in `iter_train`.
    """
    config = config or DistillConfig.adapting()
    check_default_dtype()
    if config.context:
        raise ConfigError(
            f"context is {config.context}, but the student of an adaptation sees single slices: leave it at 0."
        )
    if config.boundary or config.classes != 2:
        raise ConfigError("the student of an adaptation learns the foreground alone: leave boundary and classes out.")
    if not 0 < pixels < math.inf:
        raise ConfigError(f"pixels is {pixels}: give a positive number of working pixels.")
    began = time.monotonic()
    teacher, volume = load_model(teacher), open_volume(raw)
    total = config.budget[1]
    until = None if total is None else began + total / 2
    image, probabilities = lesson(teacher, volume, config, pixels, until)
    if start is not None:
        start = with_statistics(load_model(start), volume, "auto", config.device, config.threads)
    config = _remaining(config, time.monotonic() - began)
    probability = open_volume(probabilities, voxel_size=image.voxel_size, name="the teacher's probabilities")
    yield from iter_distill(probability, image, None, config, start=start, out=out, resume=None)


def adapt(
    teacher: ModelLike,
    raw: Any,
    config: DistillConfig | None = None,
    *,
    on_event: Callable[[Event], Any] | None = None,
    **more: Any,
) -> Model:
    """Adapt a k-Unet to a volume that nobody has labelled, and return it; arguments as in `iter_adapt`.

    Raises
    ------
    InputError, DivergedError, CollapsedError
        As in `train`.
    """
    return last_model(iter_adapt(teacher, raw, config, **more), on_event)


def bundled_student(k: int, teacher: Model) -> Model | None:
    """Return the model that a student of `k` channels starts from, or None if there is none.

    It is the teacher itself if that has `k` channels, two classes and no context (the student learns the foreground
    alone, from single slices), else the bundled generalist of `k` channels.
    """
    if teacher.form.get("k") == k and teacher.form["classes"] == 2 and not teacher.context:
        return teacher
    name = f"mito-{k}unet"
    return load_model(name) if name in bundled_models() else None


def begin_as(teacher: Model, config: DistillConfig) -> tuple[Model | None, DistillConfig]:
    """Return the model that an adaptation starts from if the user names none, and the settings with its form.

    The model is that of `bundled_student`, or None if there is none or the settings ask for another form. If the
    settings that describe the form are at their defaults, they take the model's form and pixel size. Without a model
    there is a single round, unless the settings say otherwise: what an untrained network says is no lesson.
    """
    student = bundled_student(config.k, teacher)
    untrained = replace(config, rounds=1) if config.rounds == ADAPTING["rounds"] else config
    if student is None:
        return None, untrained
    usual, form = DistillConfig.adapting(k=config.k), student.form_and_pixel_size
    if all(getattr(config, name) == getattr(usual, name) for name in form):
        return student, replace(config, **form)
    if all(getattr(config, name) == value for name, value in student.form.items()):
        return student, config
    return None, untrained


def lesson(
    teacher: Model,
    volume: Volume,
    config: DistillConfig,
    pixels: float = PIXELS,
    until: float | None = None,
) -> tuple[Volume, NDArray[np.float32]]:
    """Return parts of a volume, as `Volume.extract` gives them, and the teacher's probabilities for them, ZYX.

    Arguments as in `iter_adapt`. The teacher predicts at least one part, and no more than it can before `until`, a time
    of `time.monotonic`. Parts that show no sample are left out.

    Raises
    ------
    VolumeError
        If none of the parts shows any sample.
    """
    threads = training_threads(config.k, config.threads)[1]
    teacher = with_statistics(teacher, volume, "auto", config.device, threads)  # of the volume, not of parts
    reach = Neighbours.between(teacher.context, teacher.context_distance, volume.voxel_size).reach
    parts = _parts(volume, teacher, pixels)
    probabilities: dict[int, NDArray[np.float32]] = {}
    took, middle = 0.0, len(parts) // 2
    for i in sorted(range(len(parts)), key=lambda i: (i - middle) * _GOLDEN % 1):  # the first few are spread, too
        part, began = parts[i], time.monotonic()
        if probabilities and until is not None and began + took > until:
            break
        if not _shows(volume, part):
            continue
        around = range(max(part.z - reach, 0), min(part.z + reach + 1, len(volume)))
        probability = predict(
            teacher,
            volume.extract([(z, part.y, part.x) for z in around]),
            views=config.teacher_views,
            device=config.device,
            threads=threads,
        )
        probabilities[i] = _centred(np.asarray(probability[part.z - around.start]), teacher.threshold)
        took = time.monotonic() - began
    if not probabilities:
        raise shows_nothing(volume, "to learn from", "give another image, or another channel of it")
    asked = sorted(probabilities)
    return volume.extract([parts[i] for i in asked]), np.stack([probabilities[i] for i in asked])


def _shows(volume: Volume, part: _Part) -> bool:
    """Return whether any of the part lies in the sample."""
    outside = volume.outside(*part)
    return outside is None or not outside.all()


def _parts(volume: Volume, teacher: Model, pixels: float) -> list[_Part]:
    """Return evenly spaced slices, each with a window of the same size; the windows are spread over Y and X."""
    count, height, width = volume.shape
    grid = Grid.in_plane(volume.voxel_size, teacher.pixel_size)
    sides = [min(n, math.floor(_SIDE / ratio)) for n, ratio in zip((height, width), grid.ratio, strict=True)]
    of_a_slice = math.prod(grid.working_size((sides[0], sides[1])))
    chosen = spaced(range(count), max(1, int(pixels // of_a_slice)))
    parts = []
    for i, z in enumerate(chosen):
        places = ((i + 0.5) / len(chosen), (0.5 + i * _GOLDEN) % 1)
        y, x = (
            slice(start := round(place * (n - side)), start + side)
            for n, side, place in zip((height, width), sides, places, strict=True)
        )
        parts.append(_Part(z, y, x))
    return parts


def _centred(probability: NDArray[Any], threshold: float) -> NDArray[np.float32]:
    """Return the probabilities shifted so that `threshold` becomes 0.5: its logit is subtracted from their logits."""
    p = probability.astype(np.float32).clip(_LEAST, 1 - _LEAST)
    middle = min(max(threshold, _LEAST), 1 - _LEAST)
    odds = p / (1 - p) * ((1 - middle) / middle)
    centred: NDArray[np.float32] = (odds / (1 + odds)).astype(np.float32)
    return centred


def _remaining(config: DistillConfig, seconds: float) -> DistillConfig:
    """Return the settings with the minutes that are left, at least half of the original ones."""
    total = config.budget[1]
    return config if total is None else replace(config, minutes=max(total - seconds, total / 2) / 60)
