"""Trainings as a user would start them, from the command line, and their scores: what the accuracy benchmarks share."""

from __future__ import annotations

import argparse
import csv
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import numpy as np

from napari_kdunet import core
from napari_kdunet.core.resume import resume_path
from napari_kdunet.core.splits import hold_out

Row = dict[str, Any]


def add_shared(parser: argparse.ArgumentParser, *, val_required: bool = True) -> None:
    """What all take: a volume to learn from, one to score on, a folder, seeds, and how many at a time."""
    parser.add_argument("raw")
    parser.add_argument("labels")
    parser.add_argument("--val-raw", required=val_required)
    parser.add_argument("--val-labels", required=val_required)
    parser.add_argument("--out", required=True)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=2, help="networks at a time, one core each")


def cut(given: argparse.Namespace) -> None:
    """Cut the last `hold_out` slices off both volumes, to score on; `size` says what these files do not."""
    volume = core.open_volume(given.raw)
    if volume.voxel_size:
        given.size = ["--voxel-size", ",".join(map(str, volume.voxel_size))]
    learnt, held_out = hold_out(volume, given.labels, given.hold_out / len(volume))
    for what, part in zip(("raw", "labels", "val_raw", "val_labels"), (*learnt, *held_out), strict=True):
        path = Path(given.out) / f"{what}.npy"
        np.save(path, np.asarray(part))
        setattr(given, what, str(path))


def told(values: Sequence[float]) -> str:
    """Mean and standard deviation."""
    return f"{fmean(values):.3f}" + (f" ± {stdev(values):.3f}" if len(values) > 1 else "")


def command(*arguments: Any) -> None:
    """Run one of the commands; its error ends the benchmark."""
    line = [sys.executable, "-m", "napari_kdunet", *map(str, arguments)]
    done = subprocess.run(line, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(line)}\n{done.stderr}")


def train(model: Path, *arguments: Any) -> None:
    """Make a model by `train` or `distill` unless it is done; a training that was stopped goes on."""
    stopped = resume_path(model).exists()
    if stopped or not model.exists():
        command(*arguments, "-o", model, *(["--resume"] if stopped else []))


def score(model: Path, raw: str, labels: str, *options: Any) -> Row:
    """Scores of a model on a whole volume at the model's own threshold, and what its training says of itself."""
    kept = core.load_model(model)
    with tempfile.TemporaryDirectory() as folder:
        out = str(Path(folder) / "probability.tif")
        command("predict", model, raw, "-o", out, "--probabilities", "--threads", 1, *options)
        scores = core.evaluate(out, labels, threshold=kept.threshold)
    return {
        "iou": scores.iou,
        "ce": scores.ce,
        "precision": scores.total.precision,
        "recall": scores.total.recall,
        "threshold": kept.threshold,
        "held_out_iou": kept.summary["validation"]["iou"],
        "best_step": kept.summary["validation"]["step"],
        "seconds": kept.summary["seconds"],
    }


def once(record: Path, measure: Callable[[], Row]) -> Row:
    """What `measure` gives, from `record` where it was measured before."""
    if not record.exists():
        record.write_text(json.dumps(measure()))
    found: Row = json.loads(record.read_text())
    print("  ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in found.items()), flush=True)
    return found


def write_csv(path: Path, rows: Iterable[Row]) -> None:
    every = list(rows)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(every[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(every)
