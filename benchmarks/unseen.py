"""On a microscope that no network has seen: what a teacher is worth to a 2-Unet, by how much is labelled.

    python benchmarks/unseen.py DATA --models DIR --out OUT [--left-out epfl] [--labels "none;strokes;1;5;all"]
                                [--teachers "none;forgets"] [--minutes 2] [--seeds 3] [--slices 6]

DIR is the folder of `benchmarks/generality.py`, with a 16-Unet of seed 0 and a 2-Unet of each seed (`--arm`) that have
learnt from the other two sources; they are the generalists here, applied with statistics of the image. Networks learn
from the first 70 % of the source that was left out, labelled or not. They are scored on slices spread over its last
25 %, at its true pixel size, each at its own threshold. In each cell a 2-Unet has `--minutes` on one core in all, and
goes on from the generalist 2-Unet:

    teacher             what is done with the time
    none                it learns from the labels, from strokes keeping what it knows; without labels it stays as it is
    forgets             with strokes only: the same, without keeping what it knows
    same labels         a 16-Unet learns from the labels for half of the time and then teaches (mixed, as by default)
    generalist          the 16-Unet teaches, mixed with the labels; without labels as in `core.adapt`
    generalist, soft    the same, from the teacher alone at a temperature of 1; the labels choose model and threshold
    generalist adapted  the 16-Unet goes on learning from the labels for half of the time and then teaches, mixed
    adapted, soft       the same, from the teacher alone at a temperature of 1

Labels are strokes on four slices (`strokes.py`), 1 or 5 slices evenly spaced, or all. Existing results are kept.
Written to OUT: models, a JSON for each cell, `unseen.csv` and `unseen.md`.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from commands import Row, once, tabulate, told
from generality import SOURCES, calibrated, learnt_from, only, volumes
from strokes import painted

from napari_kdunet import core
from napari_kdunet.core.volumes.slices import spaced

LEARNT, SCORED = 0.7, 0.25  # shares of the slices, the first and the last
TEACHERS = ("none", "forgets", "same labels", "generalist", "generalist, soft", "generalist adapted", "adapted, soft")
ALONE = ("none", "forgets")
TEACHER, STUDENT = 16, 2  # k
PIXELS = 1.6e6  # working pixels a minute that a teacher is asked about without labels
SOFT: dict[str, Any] = {"mode": "soft", "tau": 1.0}


class Source:
    """The source that was left out, what is labelled of it, and the generalists that have not seen it."""

    def __init__(self, name: str, seed: int, given: argparse.Namespace) -> None:
        self.name, self.seed, self.given = name, seed, given
        raw, labels = volumes(name, given)
        learnt = range(round(LEARNT * len(raw)))
        self.raw, self.labels = only(raw, learnt), only(labels, learnt)
        scored = spaced(range(len(raw) - round(SCORED * len(raw)), len(raw)), given.slices)
        self.test = only(raw, scored), only(labels, scored)

    def generalist(self, k: int) -> core.Model:
        """Return the generalist k-Unet, applied with statistics of the image and at the threshold for these."""
        others = [name for name in SOURCES if name != self.name]
        seed = self.seed if k == STUDENT else 0
        name = f"{self.given.arm}-{k}-{'-'.join(others)}-{seed}"
        kept = Path(self.given.out) / f"{name}.safetensors"
        if not kept.exists():
            model = core.load_model(Path(self.given.models) / kept.name)
            model = replace(model, summary=model.summary | {"statistics": "volume"})
            calibrated(model, learnt_from(others, self.given)[1]).save(kept)
        return core.load_model(kept)

    def labelled(self, amount: str) -> tuple[core.Volume, dict[str, Any]]:
        """Return labels of the slices that are learnt from, and the settings that say which of them count."""
        every = range(len(self.raw))
        if amount != "strokes":
            return self.labels, {"slices": "all" if amount == "all" else spaced(every, int(amount))}
        slices = spaced(every, 4)
        marks = painted(np.asarray(self.labels.data), slices, self.seed)
        return core.open_volume(marks, voxel_size=self.raw.voxel_size), {"slices": slices, "ignore": 0}

    def learn(self, amount: str, teacher: str) -> core.Model:
        """Return the 2-Unet of a cell, trained in the time that it has."""
        begin, minutes = time.monotonic(), self.given.minutes
        start, shared = self.generalist(STUDENT), {"threads": 1, "seed": self.seed, "batch": 2, "patch": 256}
        if (amount, teacher) == ("none", "none"):
            return start
        if amount == "none":
            config = core.DistillConfig.adapting(k=STUDENT, minutes=minutes, **shared)
            return core.adapt(self.generalist(TEACHER), self.raw, config, start=start, pixels=PIXELS * minutes)
        labels, which = self.labelled(amount)
        shared |= which
        if teacher in ALONE:
            config = core.TrainConfig(k=STUDENT, minutes=minutes, **shared)
            return learnt(core.iter_train(self.raw, labels, config, start=start, keep=teacher == "none"))
        by = None if teacher == "same labels" else self.generalist(TEACHER)
        if teacher not in ("generalist", "generalist, soft"):
            config = core.TrainConfig(k=TEACHER, minutes=minutes / 2, **shared)
            by = learnt(core.iter_train(self.raw, labels, config, start=by, keep=False))
        left = max(minutes - (time.monotonic() - begin) / 60, minutes / 4)
        student = core.DistillConfig(k=STUDENT, minutes=left, **shared, **(SOFT if teacher.endswith("soft") else {}))
        return learnt(core.iter_distill(by, self.raw, labels, student, start=start))

    def score(self, model: core.Model, **how: Any) -> float:
        """Return the IoU on the slices that are kept for scoring, at the model's threshold."""
        raw, labels = self.test
        return core.evaluate(core.predict(model, raw, threads=1, **how), labels, threshold=model.threshold).iou


def learnt(events: Iterator[Any]) -> core.Model:
    """Return the model of the last event of a training, even if it has collapsed."""
    *_, last = events
    model: core.Model = last.model
    return model


def cells(given: argparse.Namespace) -> Iterator[Row]:
    """Make the record of each cell; all cells of a seed come before the next seed."""
    out = Path(given.out)
    for seed, name in product(range(given.seeds), given.left_out.split(",")):
        source = Source(name, seed, given)
        about = {"minutes": given.minutes, "left out": name, "seed": seed}

        def as_it_is(source: Source = source, about: Row = about) -> Row:
            model = source.generalist(TEACHER)
            views = source.score(model, views=8)
            cell = {"labels": "none", "teacher": "16-Unet as it is", "IoU": source.score(model)}
            return {**about, **cell, "with 8 views": views, "best step": "", "seconds": ""}

        teachers = given.teachers.split(";")
        if not set(teachers) <= set(ALONE):
            yield once(out / f"{name}-16-{seed}.json", as_it_is)
        for amount, teacher in product(given.labels.split(";"), teachers):
            if amount == "none" and teacher not in ("none", "generalist"):
                continue
            if teacher == "forgets" and amount != "strokes":
                continue
            file = out / f"{name}-{amount}-{teacher}-{seed}".replace(", ", "-").replace(" ", "-")

            def cell(
                source: Source = source,
                about: Row = about,
                amount: str = amount,
                teacher: str = teacher,
                file: Path = file,
            ) -> Row:
                begin = time.monotonic()
                model = source.learn(amount, teacher)
                seconds = round(time.monotonic() - begin, 1)
                model.save(file.with_suffix(".safetensors"))
                row = {**about, "labels": amount, "teacher": teacher}
                steps = model.summary["validation"]["step"] if (amount, teacher) != ("none", "none") else 0
                return row | {"IoU": source.score(model), "with 8 views": "", "best step": steps, "seconds": seconds}

            yield once(file.with_suffix(".json"), cell)


def table(rows: list[Row]) -> str:
    """Return a line for each source and amount of labels, a column for each teacher: mean and deviation over seeds."""
    lines = [
        f"| left out | labels | {' | '.join(TEACHERS)} | seeds |",
        "|---|---" + "|---:" * (len(TEACHERS) + 1) + "|",
    ]
    for name, amount in dict.fromkeys((row["left out"], row["labels"]) for row in rows):
        some = [row for row in rows if (row["left out"], row["labels"]) == (name, amount)]
        found = [[row["IoU"] for row in some if row["teacher"] == teacher] for teacher in TEACHERS]
        told_of = [told(ious) if ious else "" for ious in found]
        lines.append(f"| {name} | {amount} | {' | '.join(told_of)} | {len({row['seed'] for row in some})} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("--models", required=True, help="the folder of generality.py")
    parser.add_argument("--arm", default="mild-synthetic", help="as its files are named")
    parser.add_argument("--out", required=True)
    parser.add_argument("--left-out", default="epfl", help="with commas between")
    parser.add_argument("--labels", default="none;strokes;1;5;all")
    parser.add_argument("--teachers", default=";".join(TEACHERS), help="with semicolons between")
    parser.add_argument("--minutes", type=float, default=2.0)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--slices", type=int, default=6, help="that are scored")
    given = parser.parse_args()
    if unknown := set(given.teachers.split(";")) - set(TEACHERS):
        parser.error(f"no teacher {', '.join(unknown)}: choose of {'; '.join(TEACHERS)}")
    given.synthetic = 0
    folder = Path(given.out)
    folder.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    tabulate(folder, "unseen", cells(given), table, "*.json")


if __name__ == "__main__":
    main()
