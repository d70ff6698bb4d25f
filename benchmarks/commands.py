"""What the accuracy benchmarks share: trainings started from the command line, as by a user, and their scores."""

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
from napari_kdunet.core.data.splits import hold_out
from napari_kdunet.core.training.checkpoint import resume_path

Row = dict[str, Any]


def add_shared(parser: argparse.ArgumentParser, *, or_hold_out: bool = False) -> None:
    """Add the arguments of all: a volume to learn from, one to score on, a folder, seeds, and jobs at a time."""
    parser.add_argument("raw")
    parser.add_argument("labels")
    parser.add_argument("--val-raw", required=not or_hold_out)
    parser.add_argument("--val-labels", required=not or_hold_out)
    if or_hold_out:
        parser.add_argument("--hold-out", type=int, help="score on so many last slices of RAW instead")
    parser.add_argument("--out", required=True)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=2, help="networks at a time, one core each")


def parsed(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """Parse the arguments, make the folder and cut off held-out slices; `size` are options with the voxel size."""
    given = parser.parse_args()
    if not given.hold_out and not (given.val_raw and given.val_labels):
        parser.error("give --val-raw and --val-labels, or --hold-out")
    Path(given.out).mkdir(parents=True, exist_ok=True)
    given.size = []
    if given.hold_out:
        _cut(given)
    return given


def _cut(given: argparse.Namespace) -> None:
    volume = core.open_volume(given.raw)
    if volume.voxel_size:
        given.size = ["--voxel-size", ",".join(map(str, volume.voxel_size))]
    learnt, held_out = hold_out(volume, given.labels, given.hold_out / len(volume))
    for what, part in zip(("raw", "labels", "val_raw", "val_labels"), (*learnt, *held_out), strict=True):
        path = Path(given.out) / f"{what}.npy"
        np.save(path, np.asarray(part))
        setattr(given, what, str(path))


def add_one_volume(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of benchmarks that learn from a volume and score on its first slices."""
    parser.add_argument("raw")
    parser.add_argument("labels")
    parser.add_argument("--voxel-size", required=True, help="nm")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--scored", type=int, default=32, help="slices to score on")
    parser.add_argument("--gap", type=int, default=16, help="slices after those that nothing learns from")


def parsed_one_volume(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """Parse the arguments and make the folder; `val` are files to score on, and `learnt` the slices to learn from."""
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    given.size = ["--voxel-size", given.voxel_size]
    given.learnt = slice(given.scored + given.gap, len(core.open_volume(given.raw)))
    given.val = save_slices(given, "scored", slice(given.scored))
    return given


def save_slices(given: argparse.Namespace, name: str, slices: slice) -> list[str]:
    """Write some slices of image and labels to files with `name` in their names; return their paths."""
    paths = [str(given.out / f"{name}-{what}.npy") for what in ("raw", "labels")]
    for path, volume in zip(paths, (given.raw, given.labels), strict=True):
        np.save(path, core.open_volume(volume)[slices])
    return paths


def told(values: Sequence[float]) -> str:
    """Return mean and standard deviation as text."""
    return f"{fmean(values):.3f}" + (f" ± {stdev(values):.3f}" if len(values) > 1 else "")


def command(*arguments: Any) -> None:
    """Run one of the commands; its error ends the benchmark."""
    line = [sys.executable, "-m", "napari_kdunet", *map(str, arguments)]
    done = subprocess.run(line, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(line)}\n{done.stderr}")


def train(model: Path, *arguments: Any) -> None:
    """Make a model by `train` or `distill` unless it exists; a training that was stopped is resumed."""
    stopped = resume_path(model).exists()
    if stopped or not model.exists():
        command(*arguments, "-o", model, *(["--resume"] if stopped else []))


def score(model: Path, raw: str, labels: str, *options: Any) -> Row:
    """Return scores of a model on a whole volume at its own threshold, and facts from the summary of its training."""
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
    """Return what `measure` gives, from the file `record` if it was measured before."""
    if not record.exists():
        record.write_text(json.dumps(measure()))
    found: Row = json.loads(record.read_text())
    print("  ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in found.items()), flush=True)
    return found


def tabulate(folder: Path, name: str, records: Iterable[Any], table: Callable[[list[Row]], str], kept: str) -> None:
    """Write NAME.csv and NAME.md anew after each of `records`, from all files that match `kept`, also earlier ones."""
    for _ in records:
        rows: list[Row] = [json.loads(path.read_text()) for path in sorted(folder.glob(kept))]
        write_csv(folder / f"{name}.csv", rows)
        (folder / f"{name}.md").write_text(table(rows))
    print((folder / f"{name}.md").read_text())


def write_csv(path: Path, rows: Iterable[Row]) -> None:
    every = list(rows)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(every[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(every)
