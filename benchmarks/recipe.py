"""Where the defaults come from: one setting changed at a time, several seeds; and how often each recipe trains.

    python benchmarks/recipe.py STUDY RAW LABELS --val-raw R --val-labels L --out DIR
                                [--teacher M.safetensors ...] [--k 2] [--seeds 3] [--steps 600] [--jobs 2]
                                [--arms "A;B"]

STUDY is one of
    labels       a k-Unet that learns from all labels, with the earlier defaults and one setting changed
    patches      the same with the present defaults, and with the patches and initialisation that they replaced
    teachers     the same with the present defaults, untaught and taught by each M
    few          a k-Unet that learns from 5 labelled slices, untaught and taught by M on all slices in several ways
    noisy        a k-Unet that learns from labels spoilt on purpose (`noisy-labels-SEED.tif`), untaught and taught by M,
                 or without M by a 16-Unet that has seen no other labels
    sparse       the same from some dabs of a brush on 5 slices (`sparse-labels-SEED.tif`), the rest unlabelled
    contrast     a k-Unet that learns from all labels, each slice standardised by itself or all alike
    reliability  1- and 2-Unets in the paper's setting and with the defaults, from labels and taught by M

Each network is trained on one core. Model and threshold are chosen on held-out slices of RAW, and that model is scored
on the whole of R. Existing results are kept. Written to DIR: `STUDY.csv`, `STUDY.md`, `STUDY.png`, and `runs/`.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from functools import cache
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
from commands import add_shared, told, write_csv
from scipy import ndimage

from napari_kdunet import core
from napari_kdunet.core.volumes.slices import spaced

#: The defaults when the study `labels` was run, which led to the present ones.
EARLIER: dict[str, Any] = {"init": "he", "batch": 8, "patch": 192}

#: What each arm of `labels` changes of the earlier defaults.
LABELS: dict[str, dict[str, Any]] = {
    "earlier defaults": {},
    "ReLU": {"activation": "relu"},
    "PyTorch's initialisation": {"init": "torch"},
    "no prior bias": {"prior_bias": False},
    "no BN": {"bn": False},
    "balanced class weights": {"class_weights": "balanced"},
    "no Dice": {"dice": 0.0},
    "lr 0.003": {"lr": 3e-3},
    "lr 0.03": {"lr": 3e-2},
    "constant lr 0.003": {"lr": 3e-3, "schedule": "constant"},
    "no EMA": {"ema": 0.0},
    "no clipping": {"clip": 0.0},
    "flips only": {"rotation": 0.0, "scale": 0.0, "elastic": 0.0, "intensity": 0.0},
    "no change of intensity": {"intensity": 0.0},
    "5 nm": {"pixel_size": 0.0},
    "15 nm": {"pixel_size": 15.0},
    "18 patches of 128": {"batch": 18, "patch": 128},
    "2 patches of 384": {"batch": 2, "patch": 384},
}

#: What each arm of `patches` changes of the present defaults.
PATCHES: dict[str, dict[str, Any]] = {
    "earlier defaults": EARLIER,
    "8 patches of 192": {"batch": 8, "patch": 192},
    "He initialisation": {"init": "he"},
    "defaults": {},
}

#: What each arm of `few` changes of the distillation's defaults; None is untaught.
FEW: dict[str, dict[str, Any] | None] = {
    "untaught": None,
    "defaults": {},
    "τ = 1": {"tau": 1.0},
    "τ = 2": {"tau": 2.0},
    "τ = 10": {"tau": 10.0},
    "λ = 0.3": {"lam": 0.3},
    "λ = 3": {"lam": 3.0},
    "soft": {"mode": "soft"},
    "soft, τ = 1": {"mode": "soft", "tau": 1.0},
    "sequential": {"mode": "sequential"},
    "labelled slices only": {"unlabelled_share": 0.0},
    "3/4 unlabelled": {"unlabelled_share": 0.75},
    "8 views of the teacher": {"teacher_views": 8},
    "soft, τ = 1, 8 views": {"mode": "soft", "tau": 1.0, "teacher_views": 8},
}

#: Arms of the studies with worse labels.
TAUGHT = {name: FEW[name] for name in ("untaught", "defaults", "τ = 1", "soft, τ = 1")}

#: How labels are spoilt: this share of the objects is left out, and outlines are shifted by smooth noise.
MISSED = 0.25
WANDER = 6.0  # pixels, standard deviation of the shift
WANDER_OVER = 24.0  # pixels, standard deviation of the Gaussian that smooths the noise

#: How labels are thinned out: numbers of dabs of background and of foreground in a slice; the rest is unlabelled.
DABS = (40, 20)
BRUSH = 6  # pixels, radius
UNSEEN = 255

STUDIES = ("labels", "patches", "teachers", "few", "noisy", "sparse", "contrast", "reliability")

SLICES, VOLUME = "each slice by itself", "the whole volume alike"


def runs(given: argparse.Namespace) -> Iterator[core.Run]:
    teacher = Path(given.teacher[0]).stem if given.teacher else ""
    for seed in range(given.seeds):
        shared = {"seed": seed, "steps": given.steps, "threads": 1, "validations": 5}
        if given.study in ("labels", "patches"):
            base, arms = (EARLIER, LABELS) if given.study == "labels" else ({}, PATCHES)
            for arm, own in arms.items():
                yield _run(arm, core.TrainConfig(**{"k": given.k} | shared | base | own))
        elif given.study == "teachers":
            yield _run("untaught", core.TrainConfig(k=given.k, **shared))
            for name in (Path(path).stem for path in given.teacher):
                yield _run(f"taught by {name}", core.DistillConfig(k=given.k, **shared), name)
        elif given.study in ("few", *WORSE):
            if given.study != "noisy":
                shared["slices"] = spaced(range(len(core.open_volume(given.raw))), 5)
            if given.study == "sparse":
                shared["ignore"] = UNSEEN
            if given.study in WORSE and not given.teacher:
                yield (first := _run("teacher, 16-Unet", core.TrainConfig(k=16, precision="bf16-mixed", **shared)))
                teacher = first.name
            for arm, more in (FEW if given.study == "few" else TAUGHT).items():
                if more is None:
                    yield _run(arm, core.TrainConfig(k=given.k, **shared))
                else:
                    yield _run(arm, core.DistillConfig(k=given.k, **shared, **more), teacher)
        elif given.study == "contrast":
            for arm in (SLICES, VOLUME):
                yield _run(arm, core.TrainConfig(k=given.k, **shared))
        else:
            shared |= {"batch": 4, "patch": 128}
            for k in (1, 2):
                yield _run(f"{k}-Unet, paper, labels", core.TrainConfig.paper(k=k, **shared))
                soft = {"mode": "soft", "tau": 5.0}
                yield _run(f"{k}-Unet, paper, soft τ = 5", core.DistillConfig.paper(k=k, **soft, **shared), teacher)
                yield _run(f"{k}-Unet, defaults, labels", core.TrainConfig(k=k, **shared))
                yield _run(f"{k}-Unet, defaults, taught", core.DistillConfig(k=k, **shared), teacher)


def _run(arm: str, config: core.TrainConfig, teacher: str = "") -> core.Run:
    name = "".join(c if c.isalnum() else "-" for c in arm.replace("τ", "tau").replace("λ", "lam"))
    setting = "paper" if "paper" in arm else "ours"
    return core.Run(f"{name}-seed{config.seed}", arm, setting, config, teacher)


class Alike(core.Volume):
    """A volume whose slices are all standardised by the mean and deviation of the whole."""

    def statistics(self, z: int, whole: np.ndarray[Any, Any] | None = None) -> tuple[float, float]:
        del z, whole
        return _whole(self.name)


@cache
def _whole(path: str) -> tuple[float, float]:
    volume = core.open_volume(path)
    means, stds = np.transpose([volume.statistics(z) for z in range(len(volume))])
    return float(means.mean()), float(np.sqrt((stds**2 + (means - means.mean()) ** 2).mean()))


def alike(path: str) -> core.Volume:
    volume = core.open_volume(path)
    return Alike(volume.name, volume.source, volume.voxel_size)


def noisy(true: np.ndarray[Any, Any], seed: int) -> np.ndarray[Any, Any]:
    """Return labels as somebody in haste would paint them: objects left out, and outlines that wander."""
    rng = np.random.default_rng(seed)
    objects, count = ndimage.label(true)
    kept = np.append(False, rng.random(count) >= MISSED)[objects]
    grid = np.indices(true.shape[1:]).astype(float)
    labels = np.empty(true.shape, np.uint8)
    for z, mask in enumerate(kept):
        shift = ndimage.gaussian_filter(rng.standard_normal(grid.shape), (0, WANDER_OVER, WANDER_OVER))
        labels[z] = ndimage.map_coordinates(mask.astype(np.uint8), grid + shift * (WANDER / shift.std()), order=0)
    print(f"{count} objects; IoU with the true labels {(true & labels).sum() / (true | labels).sum():.3f}", flush=True)
    return labels


def sparse(true: np.ndarray[Any, Any], seed: int) -> np.ndarray[Any, Any]:
    """Return labels as dabs of a brush, each inside one class."""
    rng = np.random.default_rng(seed)
    brush = np.hypot(*np.ogrid[-BRUSH : BRUSH + 1, -BRUSH : BRUSH + 1]) <= BRUSH
    labels = np.full(true.shape, UNSEEN, np.uint8)
    for z in spaced(range(len(true)), 5):
        for value, dabs in enumerate(DABS):
            centres = np.argwhere(ndimage.binary_erosion(true[z] == value, brush))
            dots = np.zeros(true.shape[1:], bool)
            dots[tuple(rng.choice(centres, dabs, replace=False).T)] = True
            labels[z][ndimage.binary_dilation(dots, brush)] = value
    print(f"{(labels != UNSEEN).sum() / (5 * true[0].size):.2%} of the pixels of 5 slices", flush=True)
    return labels


#: Studies whose labels are made worse first, anew with each seed.
WORSE = {"noisy": noisy, "sparse": sparse}


def worse_labels(given: argparse.Namespace, seed: int) -> Path:
    return Path(given.out) / f"{given.study}-labels-{seed}.tif"


def do(run: core.Run, given: argparse.Namespace) -> core.RunResult:
    opened = alike if run.label == VOLUME else core.open_volume
    labels = worse_labels(given, run.config.seed) if given.study in WORSE else given.labels
    val = opened(given.val_raw), given.val_labels
    items = core.iter_study([run], opened(given.raw), labels, val=val, folder=Path(given.out) / "runs")
    (found,) = (item for item in items if isinstance(item, core.RunResult))
    print(f"{found.run}  {found.seconds:.0f} s  IoU {found.iou}  {found.outcome}", flush=True)
    return found


def table(results: list[core.RunResult]) -> str:
    """Return mean and standard deviation over the seeds as Markdown, in the order of the arms."""
    lines = ["| | IoU | CE | s | trained |", "|---|---|---|---|---|"]
    for arm in dict.fromkeys(row.label for row in results):
        rows = [row for row in results if row.label == arm]
        ious = [row.iou or 0.0 for row in rows]
        ces = [row.ce for row in rows if row.ce is not None]
        trained = sum(row.outcome == "trained" for row in rows)
        ce, seconds = f"{fmean(ces):.4f}" if ces else "", fmean(row.seconds for row in rows)
        lines.append(f"| {arm} | {told(ious)} | {ce} | {seconds:.0f} | {trained} of {len(rows)} |")
    return "\n".join(lines) + "\n"


def draw(results: list[core.RunResult], path: Path) -> None:
    from matplotlib.figure import Figure

    arms = list(dict.fromkeys(row.label for row in results))
    figure = Figure(figsize=(7, 1 + 0.3 * len(arms)), layout="constrained")
    axis = figure.subplots()
    for y, arm in enumerate(arms):
        ious = [row.iou or 0.0 for row in results if row.label == arm]
        axis.plot(ious, [y] * len(ious), "o", color="#0072B2", ms=5, alpha=0.6)
        axis.plot([fmean(ious)], [y], "|", color="black", ms=14, mew=2)
    axis.set_yticks(range(len(arms)), arms)
    axis.invert_yaxis()
    axis.set_xlabel("IoU of the validation volume; one dot a seed, a bar at the mean")
    axis.grid(axis="x", color="#dddddd")
    axis.set_axisbelow(True)
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", choices=STUDIES)
    add_shared(parser)
    parser.add_argument("--teacher", nargs="+", default=[], help="model file; several for teachers, or else one")
    parser.add_argument("--k", type=int, default=2, help="of the networks; reliability has its own")
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--arms", help="do these alone; with semicolons between")
    given = parser.parse_args()
    wanted = [run for run in runs(given) if not given.arms or run.label in given.arms.split(";")]
    if not wanted:
        parser.error(f"--arms {given.arms}: {given.study} has none of them")
    out = Path(given.out)
    (out / "runs").mkdir(parents=True, exist_ok=True)
    for path in map(Path, given.teacher):
        shutil.copyfile(path, out / "runs" / path.name)
    if given.study in WORSE:
        true = core.open_volume(given.labels)
        for seed in range(given.seeds):
            if not (path := worse_labels(given, seed)).exists():
                worse = WORSE[given.study]((np.asarray(true) > 0).astype(np.uint8), seed)
                core.write_volume(worse, path, voxel_size=true.voxel_size)
    taught_by = {run.teacher for run in wanted}
    results = []
    with ProcessPoolExecutor(given.jobs) as pool:
        for teaches in (True, False):
            some = [run for run in wanted if (run.name in taught_by) is teaches]
            results += pool.map(do, some, [given] * len(some))
    results.sort(key=lambda row: list(dict.fromkeys(run.label for run in wanted)).index(row.label))
    write_csv(out / f"{given.study}.csv", map(asdict, results))
    (out / f"{given.study}.md").write_text(table(results))
    print(table(results))
    draw(results, out / f"{given.study}.png")


if __name__ == "__main__":
    main()
