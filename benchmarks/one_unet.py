"""The 1-Unet taught softly by a 4-Unet at high temperatures, in the paper's setting and with our defaults.

    python benchmarks/one_unet.py RAW LABELS --val-raw VAL_RAW --val-labels VAL_LABELS --voxel-size 5 --out DIR
                                  [--budget 4] [--taus 5,20,25,30,50] [--seeds 3]

The paper says that it reaches a test loss of 0.255 at a temperature over 20 and that nothing else trains it. DIR may be
the folder of `napari-kdunet study`, at the same budget: the teacher is then the one of its tables. One core. Existing
results are kept. Written to DIR: `one-unet.csv`, and a model and a record for each run.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict, replace
from pathlib import Path

from commands import told, write_csv

from napari_kdunet import core


def runs_of(given: argparse.Namespace, setting: str) -> list[core.Run]:
    """Return the runs of the teacher of table 2, and of its students by soft distillation alone."""
    shared = core.study_runs("temperature", settings=[setting], budget=given.budget, seeds=1, threads=1)
    teacher, runs = shared[0], [shared[0]]
    for tau in given.taus.split(","):
        for seed in range(given.seeds):
            config = replace(shared[1].config, k=1, tau=float(tau), seed=seed)
            name = f"{setting}-1-unet-soft-tau{tau}-from-4-unet-seed{seed}"
            runs.append(core.Run(name, tau, setting, config, teacher.name))
    return runs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("raw")
    parser.add_argument("labels")
    parser.add_argument("--val-raw", required=True)
    parser.add_argument("--val-labels", required=True)
    parser.add_argument("--voxel-size", type=float, required=True, help="nm")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--budget", type=float, default=4, help="1 is 500 steps")
    parser.add_argument("--taus", default="5,20,25,30,50")
    parser.add_argument("--seeds", type=int, default=3)
    given = parser.parse_args()
    raw, scored = (core.open_volume(path, voxel_size=given.voxel_size) for path in (given.raw, given.val_raw))
    rows: list[core.RunResult] = []
    for setting in ("paper", "ours"):
        runs = runs_of(given, setting)
        val = (scored, given.val_labels)
        for item in core.iter_study(runs, raw, given.labels, val=val, folder=given.out / "runs"):
            if isinstance(item, core.RunResult):
                rows.append(item)
                write_csv(given.out / "one-unet.csv", [asdict(row) for row in rows])
                print(item.run, item.outcome, item.paper_test_loss, item.iou, flush=True)
    for setting in ("paper", "ours"):
        for tau in given.taus.split(","):
            found = [row for row in rows if (row.setting, row.label) == (setting, tau)]
            losses = told([row.paper_test_loss for row in found if row.paper_test_loss is not None])
            ious = told([row.iou or 0.0 for row in found])
            print(f"{setting}, temperature {tau}: paper test loss {losses}, IoU {ious}")


if __name__ == "__main__":
    main()
