"""What a k-Unet gains by learning from its own averages, over views and over planes, so that one look is as good.

    python benchmarks/own_views.py RAW LABELS --voxel-size 5 --out DIR [--ks 1,2] [--seeds 3] [--steps 3000]
                                   [--more 1000] [--arms labels,itself,views,planes,both] [--scored 32] [--gap 16]
                                   [--teacher MODEL --arms labels,taught,asked]

A network learns for STEPS steps from the slices of RAW from SCORED + GAP on, and then goes on for MORE steps in each
arm: from the labels alone; from the labels and its own prediction, as it is (itself), averaged over 8 views (views),
over slices along z, y and x (planes), or over both; or from the labels and MODEL at a temperature of 1, which is asked
about the labelled slices alone (taught), or also about the first SCORED slices without their labels (asked: the network
then learns from what is to be segmented). Model and threshold are chosen on the middle ones of its slices. It is scored
at that threshold on the first SCORED slices, without post-processing; before it goes on, also with each kind of
average. One core. Existing results are kept. Written to DIR: models, a JSON for each, and `own-views.csv`.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from itertools import product
from pathlib import Path

from commands import (
    Row,
    add_one_volume,
    command,
    once,
    parsed_one_volume,
    save_slices,
    score,
    told,
    train,
    write_csv,
)

#: Options of `predict` for each kind of average.
AVERAGES = {
    "itself": [],
    "views": ["--views", 8],
    "planes": ["--planes", "zyx"],
    "both": ["--views", 8, "--planes", "zyx"],
}

BY_TEACHER = ("taught", "asked")


def rows_of(k: int, seed: int, given: argparse.Namespace) -> Iterator[Row]:
    """Yield scores of the network with each kind of average, and after each arm."""
    base = given.out / f"{k}unet-{seed}.safetensors"
    options = [*given.size, "--k", k, "--seed", seed, "--threads", 1]
    train(base, "train", *given.taught, *options, "--steps", given.steps)
    for average, how in AVERAGES.items():
        about = {"k": k, "seed": seed, "steps": given.steps, "taught_by": "", "predicted_with": average}
        record = base.with_name(f"{base.stem}-seen-{average}.json")
        yield once(record, lambda about=about, how=how: about | score(base, *given.val, *given.size, *how))
    for arm in given.arms.split(","):
        yield going_on(base, arm, options, given, {"k": k, "seed": seed, "steps": given.steps + given.more})


def going_on(base: Path, arm: str, options: list[object], given: argparse.Namespace, about: Row) -> Row:
    model = base.with_name(f"{base.stem}-by-{arm}.safetensors")

    def measure() -> Row:
        how: list[object] = ["train"]
        more: list[object] = []
        if arm in BY_TEACHER:
            how, more = ["distill", given.teacher], ["--tau", 1]
            more += ["--unlabelled", given.val[0], *given.size] if arm == "asked" else []
        elif arm != "labels":
            averaged = base.with_name(f"{base.stem}-{arm}.tif")
            if not averaged.exists():
                asked = ["--probabilities", "--threads", 1, *given.size, *AVERAGES[arm]]
                command("predict", base, given.taught[0], "-o", averaged, *asked)
            how = ["distill", averaged]
        train(model, *how, *given.taught, *options, "--start", base, "--steps", given.more, *more)
        return about | {"taught_by": arm, "predicted_with": "itself"} | score(model, *given.val, *given.size)

    return once(model.with_suffix(".json"), measure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_one_volume(parser)
    parser.add_argument("--ks", default="1,2")
    parser.add_argument("--more", type=int, default=1000)
    parser.add_argument("--arms", default="labels,itself,views,planes,both")
    parser.add_argument("--teacher", type=Path, help="another network, for the arms taught and asked")
    given = parsed_one_volume(parser)
    if given.teacher is None and set(BY_TEACHER) & set(given.arms.split(",")):
        parser.error("the arms taught and asked need --teacher")
    given.taught = save_slices(given, "learnt", given.learnt)  # planes must not see the slices that are scored
    ks = [int(k) for k in given.ks.split(",")]
    rows = []
    for seed, k in product(range(given.seeds), ks):
        rows += rows_of(k, seed, given)
        write_csv(given.out / "own-views.csv", rows)
    for found in dict.fromkeys((row["k"], row["steps"], row["taught_by"], row["predicted_with"]) for row in rows):
        k, steps, by, how = found
        ious = [r["iou"] for r in rows if (r["k"], r["steps"], r["taught_by"], r["predicted_with"]) == found]
        print(f"{k}-Unet, {steps} steps, taught by {by or 'labels'}, predicted with {how}: IoU {told(ious)}")


if __name__ == "__main__":
    main()
