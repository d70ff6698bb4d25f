"""Which k to take: one teacher, a student for each k, and what each costs and gives."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from napari_kdunet.core.checkpoint import Model, load_model
from napari_kdunet.core.config import DistillConfig
from napari_kdunet.core.errors import ConfigError
from napari_kdunet.core.events import Event
from napari_kdunet.core.files import write_bytes
from napari_kdunet.core.metrics import evaluate
from napari_kdunet.core.prediction import predict
from napari_kdunet.core.training import iter_distill
from napari_kdunet.core.volumes import open_volume

__all__ = ["Tradeoff", "iter_sweep", "measure"]


@dataclass(frozen=True)
class Tradeoff:
    """What a network costs and gives."""

    name: str
    k: int
    parameters: int
    file_bytes: int
    """Size of the model file."""
    iou: float
    """Foreground IoU of the whole scored volume at the model's own threshold."""
    ce: float
    """Mean cross entropy there, nats a pixel."""
    seconds_per_megapixel: float
    """Of prediction, median over slices, on this machine."""


def measure(
    name: str, path: Path, raw: Any, labels: Any, *, device: str = "auto", threads: int | None = None
) -> Tradeoff:
    """Score the model at `path` on a labelled volume (ZYX) and time its prediction, slice by slice.

    Raises
    ------
    InputError
        If the model or a volume cannot be used.
    """
    model, volume = load_model(path), open_volume(raw)
    lazy = predict(model, volume, device=device, threads=threads)
    lazy[0].compute()  # the first call sets things up
    seconds = []
    for z in range(min(volume.shape[0], 5)):
        begin = time.perf_counter()
        lazy[z].compute()
        seconds.append(time.perf_counter() - begin)
    scores = evaluate(lazy, labels, threshold=model.threshold)
    megapixels = volume.shape[1] * volume.shape[2] / 1e6
    about = model.describe()
    return Tradeoff(
        name,
        about["k"],
        about["parameters"],
        path.stat().st_size,
        scores.iou,
        scores.ce or 0.0,
        statistics.median(seconds) / megapixels,
    )


def iter_sweep(
    teacher: Model,
    raw: Any,
    labels: Any,
    ks: Sequence[int],
    config: DistillConfig,
    *,
    val: tuple[Any, Any],
    folder: Path,
    unlabelled: Sequence[Any] = (),
) -> Iterator[Event | Tradeoff]:
    """Distil `teacher` into a student for each k and score all of them, the teacher first.

    What is done stays done: a run that was stopped goes on from where it was when it is called again with the same
    `folder`, which holds ``teacher.safetensors``, ``2-unet.safetensors`` and so on, and a ``.json`` of each `Tradeoff`.

    Parameters
    ----------
    teacher, raw, labels, unlabelled
        As in `iter_distill`; the teacher is a `Model`.
    ks : sequence of int
        The students' k.
    config : DistillConfig
        Settings of each student, but for k.
    val : pair of volumes
        Raw and labels to score on, whole.
    folder : Path
        Where models and scores are kept.

    Yields
    ------
    Event or Tradeoff
        The events of each distillation, and one `Tradeoff` a network.
    """
    if not ks:
        raise ConfigError("ks is empty: give at least one k.")
    for name, k in [("teacher", None), *((f"{k}-unet", k) for k in ks)]:
        path, score = folder / f"{name}.safetensors", folder / f"{name}.json"
        if score.exists():
            yield Tradeoff(**json.loads(score.read_text()))
            continue
        if k is None:
            teacher.save(path)
        elif not path.exists():
            settings = replace(config, k=k)
            resume = path.with_suffix(".resume.safetensors").exists()
            yield from iter_distill(
                teacher, raw, labels, settings, unlabelled=unlabelled, val=val, out=path, resume=resume
            )
        found = measure(name, path, *val, device=config.device, threads=config.threads)
        write_bytes(score, json.dumps(asdict(found)).encode())
        yield found
