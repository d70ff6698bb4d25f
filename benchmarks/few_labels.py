"""What a teacher is worth when few slices are labelled: the same student, taught and untaught, in the same time.

    python benchmarks/few_labels.py RAW LABELS --val-raw R --val-labels L --out DIR
                                    [--labelled 1,3,5,10] [--seeds 3] [--teacher-minutes 8] [--minutes 5]
                                    [--val-share 0.15] [--precision 32-true] [--jobs 2]

For each number of labelled slices, evenly spaced in RAW, and for each seed: a 16-Unet is trained on them; then the
student is trained on them alone (untaught), or taught by the 16-Unet on all slices, each for the same wall-clock time.
Each network has one core. The best model and its threshold are chosen as by default: a share of the labelled slices,
those in the middle, is held out for it; where that is less than one slice (by default with fewer than seven labelled
ones) none is held out, and the slices learnt from are used. All are then scored on the whole of R, at their own
threshold. Existing results are kept.

Written to DIR: models, a JSON for each run, `few-labels.csv` and `few-labels.png`.
"""

from __future__ import annotations

import argparse
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path
from statistics import mean

from commands import Row, add_shared, once, score, train, write_csv

from napari_kdunet import core
from napari_kdunet.core.formatting import format_slices
from napari_kdunet.core.volumes.slices import spaced

#: Options of each way in which the student learns; `untaught` learns from the labels alone.
ARMS = {
    "untaught": (),
    "mixed": ("--mode", "mixed"),
    "soft": ("--mode", "soft", "--tau", "1"),
}
COLOURS = {"teacher": "#000000", "untaught": "#D55E00", "mixed": "#0072B2", "soft": "#009E73"}


def job(count: int, seed: int, arm: str, given: argparse.Namespace) -> Row:
    model = Path(given.out) / f"{count}-slices-{arm}-{seed}.safetensors"

    def measure() -> Row:
        learn(model, count, seed, arm, given)
        return {"labelled": count, "arm": arm, "seed": seed} | score(model, given.val_raw, given.val_labels)

    return once(model.with_suffix(".json"), measure)


def learn(model: Path, count: int, seed: int, arm: str, given: argparse.Namespace) -> None:
    depth = core.open_volume(given.raw).shape[0]
    slices = format_slices(spaced(range(depth), count))
    shared = [given.raw, given.labels, "--slices", slices, "--val-share", given.val_share]
    shared += ["--seed", seed, "--threads", 1]
    student = ["--k", given.k, "--minutes", given.minutes]
    if arm == "teacher":
        budget = ["--k", 16, "--minutes", given.teacher_minutes, "--precision", given.precision]
        train(model, "train", *shared, *budget)
    elif arm == "untaught":
        train(model, "train", *shared, *student)
    else:
        teacher = model.with_name(f"{count}-slices-teacher-{seed}.safetensors")
        train(model, "distill", teacher, *shared, *student, *ARMS[arm])


def measured(given: argparse.Namespace) -> list[Row]:
    """Return the rows of all networks; several are trained at a time, the teachers first."""
    counts, seeds = [int(n) for n in given.labelled.split(",")], range(given.seeds)
    with ThreadPoolExecutor(given.jobs) as pool:
        taught = {each: pool.submit(job, *each, "teacher", given) for each in product(counts, seeds)}

        def student(count: int, seed: int, arm: str) -> Row:
            taught[count, seed].result()  # wait for the teacher, which was begun before
            return job(count, seed, arm, given)

        students = [pool.submit(student, *each) for each in product(counts, seeds, ARMS)]
        return [each.result() for each in (*taught.values(), *students)]


def draw(rows: list[Row], path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    axis = figure.subplots()
    for arm, colour in COLOURS.items():
        own = [row for row in rows if row["arm"] == arm]
        counts = sorted({row["labelled"] for row in own})
        ious = [[row["iou"] for row in own if row["labelled"] == n] for n in counts]
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
    add_shared(parser)
    parser.add_argument("--labelled", default="1,3,5,10", help="numbers of labelled slices")
    parser.add_argument("--k", type=int, default=2, help="of the student")
    parser.add_argument("--teacher-minutes", type=float, default=8)
    parser.add_argument("--minutes", type=float, default=5, help="of each student")
    parser.add_argument("--val-share", type=float, default=0.15, help="of the labelled slices, held out; 0 for none")
    parser.add_argument("--precision", default="32-true", help="of the teacher's training")
    given = parser.parse_args()
    out = Path(given.out)
    out.mkdir(parents=True, exist_ok=True)
    rows = measured(given)
    write_csv(out / "few-labels.csv", rows)
    draw(rows, out / "few-labels.png")


if __name__ == "__main__":
    main()
