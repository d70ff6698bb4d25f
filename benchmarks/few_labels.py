"""What a teacher is worth when few slices are labelled: the same student, taught and untaught, in the same time.

    python benchmarks/few_labels.py RAW LABELS --val-raw R --val-labels L --out DIR
                                    [--labelled 1,3,5,10] [--seeds 3] [--teacher-minutes 8] [--minutes 5] [--jobs 2]

For each number of labelled slices, evenly spaced in RAW, and for each seed: a 16-Unet is trained on them; then the
student is trained on them alone (untaught), or taught by the 16-Unet on all slices, each for the same wall-clock time
on one core. Validation for the best model and its threshold are as by default: the middle of the labelled slices, one
of five, is held out. All are then scored on the whole of R, at their own threshold. What is done is not done again.

Written to DIR: models, a JSON a run, `few-labels.csv` and `few-labels.png`.
"""

from __future__ import annotations

import argparse
import csv
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import mean

from napari_kdunet import core

#: How the student learns; `untaught` from the labels alone.
ARMS = {
    "untaught": None,
    "mixed": ("--mode", "mixed"),
    "soft": ("--mode", "soft", "--tau", "1"),
}
COLOURS = {"teacher": "#000000", "untaught": "#D55E00", "mixed": "#0072B2", "soft": "#009E73"}


def run(arguments: list[str]) -> None:
    command = [sys.executable, "-m", "napari_kdunet", *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(command)}\n{done.stderr}")


def score(model: Path, given: argparse.Namespace) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        out = str(Path(folder) / "p.tif")
        run(["predict", str(model), given.val_raw, "-o", out, "--probabilities", "--threads", "1"])
        kept = core.load_model(model)
        scores = core.evaluate(out, given.val_labels, threshold=kept.threshold)
    training = kept.summary
    return {
        "iou": scores.iou,
        "ce": scores.ce or 0.0,
        "threshold": kept.threshold,
        "validation_iou": training["validation"]["iou"],
        "seconds": training["seconds"],
    }


def job(count: int, seed: int, arm: str, given: argparse.Namespace) -> dict[str, object]:
    """One run, or what is known of it."""
    name = Path(given.out) / f"{count}-slices-{arm}-{seed}"
    known, model = name.with_suffix(".json"), name.with_suffix(".safetensors")
    if not known.exists():
        depth = core.open_volume(given.raw).shape[0]
        slices = ",".join(str((2 * i + 1) * depth // (2 * count)) for i in range(count))
        shared = ["-o", str(model), "--slices", slices, "--seed", str(seed)]
        student = [*shared, "--k", str(given.k), "--minutes", str(given.minutes), "--threads", "1"]
        if arm == "teacher":
            run(["train", given.raw, given.labels, *shared, "--k", "16", "--minutes", str(given.teacher_minutes)])
        elif arm == "untaught":
            run(["train", given.raw, given.labels, *student])
        else:
            teacher = model.with_name(f"{count}-slices-teacher-{seed}.safetensors")
            run(["distill", str(teacher), given.raw, given.labels, *student, *(ARMS[arm] or ())])
        found = score(model, given)
        known.write_text(json.dumps({"labelled": count, "arm": arm, "seed": seed, **found}))
    return dict(json.loads(known.read_text()))


def jobs(given: argparse.Namespace) -> Iterator[dict[str, object]]:
    """Teachers one by one, as each takes all cores; the students several at a time."""
    counts, seeds = [int(n) for n in given.labelled.split(",")], range(given.seeds)
    for count in counts:
        for seed in seeds:
            yield job(count, seed, "teacher", given)
        with ThreadPoolExecutor(given.jobs) as pool:
            arms = [(count, seed, arm, given) for seed in seeds for arm in ARMS]
            yield from pool.map(job, *zip(*arms, strict=True))


def draw(rows: list[dict[str, object]], path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    axis = figure.subplots()
    for arm, colour in COLOURS.items():
        own = [row for row in rows if row["arm"] == arm]
        counts = sorted({int(str(row["labelled"])) for row in own})
        ious = [[float(str(row["iou"])) for row in own if row["labelled"] == n] for n in counts]
        axis.plot(counts, [mean(each) for each in ious], color=colour, label=arm, ls="--" if arm == "teacher" else "-")
        for n, each in zip(counts, ious, strict=True):
            axis.plot([n] * len(each), each, "o", color=colour, ms=4)
    axis.set(xscale="log", xlabel="labelled slices", ylabel="IoU of the validation volume")
    axis.set_xticks(counts, [str(n) for n in counts], minor=False)
    axis.minorticks_off()
    axis.legend(frameon=False)
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("raw")
    parser.add_argument("labels")
    parser.add_argument("--val-raw", required=True)
    parser.add_argument("--val-labels", required=True)
    parser.add_argument("--out", required=True)
    parser.add_argument("--labelled", default="1,3,5,10", help="numbers of labelled slices")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--k", type=int, default=2, help="of the student")
    parser.add_argument("--teacher-minutes", type=float, default=8)
    parser.add_argument("--minutes", type=float, default=5, help="of each student")
    parser.add_argument("--jobs", type=int, default=2, help="students at a time, one core each")
    given = parser.parse_args()
    out = Path(given.out)
    out.mkdir(parents=True, exist_ok=True)
    rows = []
    for row in jobs(given):
        rows.append(row)
        print(
            "  ".join(
                f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}" for name, value in row.items()
            ),
            flush=True,
        )
        with (out / "few-labels.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, list(row))
            writer.writeheader()
            writer.writerows(rows)
    draw(rows, out / "few-labels.png")


if __name__ == "__main__":
    main()
