"""Adapting to another volume: what the bundled models, a teacher and one labelled slice are worth there.

    python benchmarks/adapt.py RAW LABELS {--val-raw R --val-labels L | --hold-out N} --out DIR
                               [--seeds 3] [--steps 1000] [--jobs 2] [--arms "A;B"]

2-Unets learn from the middle slice of RAW, from scratch or from the bundled 2-Unet on; without any label from a bundled
4-Unet, which does not know the volume; and on all slices from a 16-Unet that has learnt from the middle slice, or from
the bundled 4-Unet after it has gone on learning there. Each network has one core. All, and the bundled models as they
are, are then scored at their own threshold, on the whole of R or on the last N slices of RAW, which are then not learnt
from. Existing results are kept. Written to DIR: models, a JSON for each, and `adapt.csv`; means and standard deviations
are printed.
"""

from __future__ import annotations

import argparse
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from commands import Row, add_shared, once, parsed, score, told, train, write_csv

from napari_kdunet import core
from napari_kdunet.core.volumes.slices import spaced


class Arm(NamedTuple):
    name: str
    options: tuple[str, ...]
    labels: bool = True
    teacher: str = ""
    """Name of a bundled model, or of another arm."""


#: All arms; those that teach come first.
ARMS = (
    Arm("16-Unet anew", ("--k", "16", "--precision", "bf16-mixed")),
    Arm("4-Unet, from the bundled one", ("--start", "lucchi-4unet")),
    Arm("2-Unet anew", ("--k", "2")),
    Arm("2-Unet, from the bundled one", ("--start", "lucchi-2unet")),
    Arm("2-Unet, no labels, taught by the bundled 4-Unet", ("--tau", "1"), labels=False, teacher="lucchi-4unet"),
    Arm("2-Unet anew, taught by the 16-Unet", ("--tau", "1"), teacher="16-Unet anew"),
    Arm(
        "2-Unet, from the bundled one, taught by the 16-Unet",
        ("--tau", "1", "--start", "lucchi-2unet"),
        teacher="16-Unet anew",
    ),
    Arm(
        "2-Unet, from the bundled one, taught by the 4-Unet",
        ("--tau", "1", "--start", "lucchi-2unet"),
        teacher="4-Unet, from the bundled one",
    ),
)
BUNDLED = ("lucchi-1unet", "lucchi-2unet", "lucchi-4unet")


def path(name: str, seed: int, given: argparse.Namespace) -> Path:
    return Path(given.out) / f"{''.join(c if c.isalnum() else '-' for c in name)}-{seed}.safetensors"


def trained(arm: Arm, seed: int, given: argparse.Namespace) -> Row:
    model = path(arm.name, seed, given)
    others = {each.name for each in ARMS}

    def measure() -> Row:
        how = ["train"]
        if arm.teacher:
            how = ["distill", path(arm.teacher, seed, given) if arm.teacher in others else arm.teacher]
        labels = [given.labels, "--slices", spaced(range(len(core.open_volume(given.raw))), 1)[0]]
        budget = ["--steps", given.steps, "--seed", seed, "--threads", 1]
        train(model, *how, given.raw, *(labels if arm.labels else []), *arm.options, *budget, *given.size)
        return {"network": arm.name, "seed": seed} | score(model, given.val_raw, given.val_labels, *given.size)

    return once(model.with_suffix(".json"), measure)


def bundled(name: str, given: argparse.Namespace) -> Row:
    def measure() -> Row:
        found = score(Path(name), given.val_raw, given.val_labels, *given.size)
        return {"network": f"{name} as it is", "seed": ""} | found

    return once(Path(given.out) / f"{name}.json", measure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_shared(parser, or_hold_out=True)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--arms", help="do these alone; with semicolons between")
    given = parsed(parser)
    wanted = [arm for arm in ARMS if not given.arms or arm.name in given.arms.split(";")]
    if not wanted:
        parser.error(f"--arms {given.arms}: there are none of them")
    rows = [bundled(name, given) for name in BUNDLED]
    taught_by = {arm.teacher for arm in ARMS}
    with ThreadPoolExecutor(given.jobs) as pool:
        for teaches in (True, False):
            some = [arm for arm in wanted if (arm.name in taught_by) is teaches]
            futures = [pool.submit(trained, arm, seed, given) for arm in some for seed in range(given.seeds)]
            rows += [each.result() for each in futures]
    write_csv(Path(given.out) / "adapt.csv", rows)
    for name in dict.fromkeys(row["network"] for row in rows):
        print(f"{name}: IoU {told([row['iou'] for row in rows if row['network'] == name])}")


if __name__ == "__main__":
    main()
