"""Sweeps, to choose k: one teacher, a student for each k, and the cost and scores of each."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from napari_kdunet.core.config.distillation import DistillConfig
from napari_kdunet.core.data.splits import hold_out, labelled_slices
from napari_kdunet.core.data.teachers import teacher_fingerprint
from napari_kdunet.core.errors import ConfigError, UnlabelledError
from napari_kdunet.core.experiments.run_store import check_own, iter_once, load_record, save_record
from napari_kdunet.core.files import make_folder
from napari_kdunet.core.metrics import evaluate
from napari_kdunet.core.networks.model import Model, ModelLike, load_model
from napari_kdunet.core.prediction.predict import predict
from napari_kdunet.core.training.events import Event
from napari_kdunet.core.training.train import iter_distill
from napari_kdunet.core.volumes.fingerprint import data_fingerprint
from napari_kdunet.core.volumes.volume import Volume, open_pair, open_volume

__all__ = ["Tradeoff", "iter_sweep", "score_tradeoff", "smallest_within"]


@dataclass(frozen=True)
class Tradeoff:
    """Cost and scores of a network."""

    name: str
    k: int
    parameters: int
    file_bytes: int
    """Size of the model file."""
    iou: float
    """Foreground IoU over all scored slices at the model's own threshold."""
    ce: float
    """Mean cross entropy over all scored slices, nats a pixel."""
    seconds_per_megapixel: float
    """Seconds of prediction a megapixel, the median over slices, on this machine."""
    notes: str = ""
    """What was assumed of the values when it was scored, as `evaluate` says it; several notes are joined by "; "."""


def score_tradeoff(
    name: str,
    path: Path,
    raw: Any,
    labels: Any,
    *,
    slices: Sequence[int] | None = None,
    ignore: int | None = None,
    device: str = "auto",
    threads: int | None = None,
) -> Tradeoff:
    """Score the model at `path` on a labelled volume (ZYX), or on some slices, and time its prediction of a slice.

    `ignore` is as in `evaluate`.

    Raises
    ------
    InputError
        If the model or a volume cannot be used.
    """
    model, volume, truth = load_model(path), open_volume(raw), open_volume(labels)
    lazy = predict(model, volume, device=device, threads=threads)
    lazy[0].compute()  # the first call sets things up
    seconds = []
    for z in range(min(volume.shape[0], 5)):
        begin = time.perf_counter()
        lazy[z].compute()
        seconds.append(time.perf_counter() - begin)
    if slices is not None:
        lazy, truth = lazy[list(slices)], open_volume(truth.data[list(slices)], name=truth.name)
    scores = evaluate(lazy, truth, threshold=model.threshold, ignore=ignore)
    megapixels = volume.shape[1] * volume.shape[2] / 1e6
    description = model.describe()
    return Tradeoff(
        name,
        description["k"],
        description["parameters"],
        path.stat().st_size,
        scores.iou,
        scores.ce or 0.0,
        statistics.median(seconds) / megapixels,
        "; ".join(scores.notes),
    )


def iter_sweep(
    teacher: ModelLike,
    raw: Any,
    labels: Any,
    ks: Sequence[int],
    config: DistillConfig | None = None,
    *,
    val: tuple[Any, Any] | None = None,
    folder: str | Path,
) -> Iterator[Event | Tradeoff]:
    """Distil `teacher` into a student for each k and score all of them, the teacher first.

    What is done is kept: a sweep that was stopped continues when it is called again with the same `folder`, which holds
    ``teacher.safetensors``, ``2-unet.safetensors`` and so on, and a ``.json`` of each `Tradeoff`.

    Each student's threshold is chosen on a held-out share of the training volume, and never on the slices scored.

    Parameters
    ----------
    teacher, raw, labels
        As in `iter_distill`; the teacher is a `Model`, its file, or the name of a bundled one.
    ks : sequence of int
        The students' k, each once.
    config : DistillConfig, optional
        Settings of each student, except k.
    val : pair of volumes, optional
        Raw and labels to score on, all slices; by default the labelled ones of the last quarter of the slices, which
        are then not trained on.
    folder : path
        Where models and scores are kept.

    Yields
    ------
    Event or Tradeoff
        The events of each distillation, and one `Tradeoff` for each network.

    Raises
    ------
    InputError, DivergedError
        As in `iter_distill`; also `ConfigError` if the folder holds a sweep with other settings.
    """
    if not ks or len(set(ks)) < len(ks):
        raise ConfigError(f"ks is {list(ks)}: give at least one k, and each once.")
    students = [replace(config or DistillConfig(), k=k) for k in ks]
    (raw, labels), test = hold_out(raw, labels) if val is None else (open_pair(raw, labels), open_pair(*val))
    slices = None if val is not None else _labelled(test[1], students[0])
    teacher, folder = load_model(teacher), Path(folder)
    make_folder(folder)
    shared = {"data": data_fingerprint(raw, test[0], labels=(labels, test[1])), "teacher": teacher_fingerprint(teacher)}
    networks: list[tuple[str, DistillConfig | None, dict[str, Any]]] = [("teacher", None, shared)]
    networks += [(f"{student.k}-unet", student, shared | {"settings": student.to_dict()}) for student in students]
    paths = [folder / f"{name}.safetensors" for name, *_ in networks]
    # read all records before the first result is yielded, so that a wrong one is found at once
    results = [load_record(path, metadata, Tradeoff) for path, (*_, metadata) in zip(paths, networks, strict=True)]
    for (name, student, metadata), path, result in zip(networks, paths, results, strict=True):
        if result is None:
            if student is None:
                check_own(path)
                save_record(path, metadata, None)
                teacher.save(path)
            else:
                yield from iter_once(path, metadata, _distilling(teacher, raw, labels, student))
            settings = students[0]
            how: dict[str, Any] = {"slices": slices, "ignore": settings.ignore}
            result = asdict(score_tradeoff(name, path, *test, **how, device=settings.device, threads=settings.threads))
            save_record(path, metadata, result)
        yield Tradeoff(**result)


def _labelled(labels: Volume, config: DistillConfig) -> tuple[int, ...]:
    try:
        return labelled_slices(labels, replace(config, slices="auto"))
    except UnlabelledError as error:
        why = f"{labels.name} has no foreground to score on: give another volume to score on."
        raise UnlabelledError(why, error.missing, error.labels) from None


def _distilling(teacher: Model, raw: Any, labels: Any, config: DistillConfig) -> Any:
    def train(out: Path, resume: bool) -> Iterator[Event]:
        return iter_distill(teacher, raw, labels, config, out=out, resume=resume)

    return train


def smallest_within(students: Sequence[Tradeoff], margin: float = 0.01) -> Tradeoff:
    """Return the student of the smallest k whose IoU is within `margin` of the best student's."""
    ious = [0.0 if math.isnan(student.iou) else student.iou for student in students]  # no foreground, none found
    within = (student for student, iou in zip(students, ious, strict=True) if iou >= max(ious) - margin)
    return min(within, key=lambda student: student.k)
