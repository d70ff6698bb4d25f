"""What `test_processes.py` does in two processes: a script that Lightning Fabric starts again for the second of them.

    python two_processes.py FOLDER

FOLDER holds ``raw.npy`` and ``labels.npy``; each process writes what it saw of each training to ``seen-RANK.json``.
"""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from numpy.typing import NDArray

from napari_kdunet import core
from napari_kdunet.core.data.patches import Batch, PatchSampler
from napari_kdunet.core.training.distributed import launch

#: Of one process on the whole batch; two have half of it each.
PLAIN = core.TrainConfig(
    k=2,
    bn=False,
    depth=2,
    steps=20,
    batch=8,
    patch=32,
    threads=1,
    validations=2,
    device="cpu",
    class_weights=(1.0, 3.0),
)
TAUGHT = core.DistillConfig(**{**PLAIN.to_dict(), "class_weights": "none", "steps": 6, "slices": (0, 1, 2, 3), "k": 1})
NORMALISED = replace(PLAIN, bn=True, k=8, steps=6, validations=3)
#: Of strokes, going on from `teacher`, which teaches the pixels between them.
KEPT = replace(PLAIN, class_weights="none", steps=6, ignore=0)
TIMED = replace(PLAIN, steps=None, minutes=0.01)


def trace(events: Iterator[core.Event]) -> Iterator[list[Any]]:
    """What matters of the events; a training error at last, if there is one."""
    try:
        for e in events:
            if isinstance(e, core.Stepped):
                yield ["step", e.step, e.loss]
            elif isinstance(e, core.Validated):
                yield ["validated", e.step, e.ce, e.iou, e.threshold, e.best]
            elif isinstance(e, core.Done):
                yield ["done", e.step, e.iou, weights(e.model)]
    except core.TrainingError as error:
        yield [type(error).__name__, str(error)]


def weights(model: core.Model) -> list[float]:
    """All weights and statistics."""
    return torch.cat([value.double().ravel() for value in model.net.state_dict().values()]).tolist()


def teacher() -> core.Model:
    """One with random weights."""
    torch.manual_seed(0)
    return core.Model(core.KUNet(2, False, depth=2), pixel_size=0.0)


def strokes(labels: NDArray[Any]) -> NDArray[Any]:
    """Every eighth row of labels, from 1 up; 0 is unlabelled."""
    painted = np.zeros_like(labels)
    painted[:, ::8] = labels[:, ::8] + 1
    return painted


def half(config: core.TrainConfig) -> core.TrainConfig:
    """For one of two processes."""
    return replace(config, batch=config.batch // 2)


def stopped(events: Iterator[core.Event], after: int, rank: int) -> list[list[Any]]:
    """The trace of a training that the first process stops after so many steps; the other goes on until told."""
    seen = []
    for each in trace(events):
        seen.append(each)
        if rank == 0 and each[:2] == ["step", after]:
            events.close()
            break
    return seen


@contextmanager
def at_step(step: int, do: Callable[[Batch], Batch] | None) -> Iterator[None]:
    """Do something to the batch of a step of this process."""
    honest = PatchSampler.batch

    def batch(pool: PatchSampler, at: int, *args: Any, **more: Any) -> Batch:
        made = honest(pool, at, *args, **more)
        return do(made) if do and at == step else made

    with mock.patch.object(PatchSampler, "batch", batch):
        yield


def spoil(batch: Batch) -> Batch:
    return replace(batch, image=batch.image * math.nan)


def die(batch: Batch) -> Batch:
    os._exit(0)


def tell(folder: Path, rank: int, seen: dict[str, Any]) -> None:
    (folder / f"seen-{rank}.json").write_text(json.dumps(seen))


def main(folder: Path) -> None:
    raw, labels = np.load(folder / "raw.npy"), np.load(folder / "labels.npy")
    with launch(PLAIN, devices=2) as fabric:
        rank, more = fabric.global_rank, {"fabric": fabric}
        out = folder / "stopped.safetensors"
        seen = {
            "plain": list(trace(core.iter_train(raw, labels, half(PLAIN), out=folder / "plain.safetensors", **more))),
            "taught": list(trace(core.iter_distill(teacher(), raw, labels, half(TAUGHT), **more))),
            "kept": list(trace(core.iter_train(raw, strokes(labels), half(KEPT), start=teacher(), **more))),
            "timed": list(trace(core.iter_train(raw, labels, half(TIMED), **more))),
            "whole": list(trace(core.iter_train(raw, labels, NORMALISED, **more))),
            "stopped": stopped(core.iter_train(raw, labels, NORMALISED, out=out, **more), 3, rank),
        }
        fabric.barrier()
        seen["files"] = sorted(path.name for path in folder.glob("*.safetensors"))
        seen["resumed"] = list(trace(core.iter_train(raw, labels, NORMALISED, out=out, resume=True, **more)))
        with at_step(3, spoil if rank else None):
            seen["diverged"] = list(trace(core.iter_train(raw, labels, half(PLAIN), **more)))
        tell(folder, rank, seen)
        with at_step(3, die if rank else None):
            seen["left alone"] = list(trace(core.iter_train(raw, labels, half(PLAIN), **more)))
        tell(folder, rank, seen)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
