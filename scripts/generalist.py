"""Train the bundled generalists, `mito-*`, on all sources, and put them into the package.

    python scripts/generalist.py DATA --out DIR [--seed 0] [--bundle]

DATA is a folder as `benchmarks/generality.py` takes it. A 16-Unet learns from the labels of all three sources in the
stages of `STAGES`, each of which starts from the best model of the one before; from the third on it also learns from a
family of synthetic tissues. The students learn from this teacher alone (`--mode soft --tau 1`), while labels choose
model and threshold. They are taught by the teacher of the fifth stage: being taught by that of the last one made them
no better on slices that had chosen nothing. At last each model, in half precision, goes on from labels with stronger
changes of the images, and its weights are the mean of those before and after: it knows more of microscopes that it has
not seen so (docs/unseen.md). One core. Trainings are resumed where they were stopped, and existing models are kept.
With --bundle the models are put into the package.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from napari_kdunet import core

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT / "benchmarks"))
from bundle import PACKAGE, scored  # noqa: E402
from generality import AFTER, ARMS, SBEM, SOURCES, calibrated, halfway, learnt_from, trained  # noqa: E402  (those of the benchmark)


@dataclass(frozen=True)
class Stage:
    """A training of the teacher, or the last one of a student."""

    name: str
    steps: int
    lr: float
    change: dict[str, Any]  # settings of augmentation, as in an arm of the benchmark
    validations: int
    synthetic: float = 0.0  # how often a patch is of the synthetic family, relative to a source
    sbem: float = SBEM  # assumed pixel size of sbem, nm: by two of these its mitochondria are of two sizes
    seed: int = 0  # added to --seed, so that a stage like the one before sees other patches
    precision: str = core.TrainConfig.precision


TEACHER_K, FAMILY = 16, 48
SHARP = ARMS["mild"] | {"blur": 0.7, "noise": 0.3}
STAGES = (
    Stage("first", 3000, 1e-2, ARMS["appearance, zoom 1"], 20, sbem=10.0),
    Stage("second", 3500, 3e-3, ARMS["mild"], 10, sbem=10.0),
    Stage("third", 4200, 6e-3, ARMS["appearance"] | {"zoom": 0.7}, 12, synthetic=0.6, sbem=10.0),
    Stage("fourth", 3000, 4e-3, SHARP, 8, synthetic=0.4),
    Stage("fifth", 5000, 6e-3, SHARP, 20, synthetic=0.5, seed=1),
    Stage(f"mito-{TEACHER_K}unet", 12000, 6e-3, SHARP, 20, synthetic=0.5, seed=2, precision="bf16-mixed"),
)
VIEWS = 4  # that a student averages over; for the slow teacher they are worth little (docs/unseen.md)
TEACHES, STUDENTS = "fifth", {2: 20000, 4: 16000, 1: 20000}  # stage whose model teaches, and steps of each student
LAST_STEPS = {16: 4000, 4: 3000, 2: 3000, 1: 3000}  # of each model, by its k, with stronger changes of the images
DATA = {
    "volume": "EPFL CVLab hippocampus, FIB-SEM, 5 nm: z 48 to 164 of the public training volume; "
    "groundtruth-drosophila-vnc stack 1, ssTEM, 4.6 nm; the mitochondria training sample of CDeep3M, SBEM of brain, "
    "taken as 7 nm; and 48 synthetic tissues",
    "citation": "Lucchi et al., IEEE TMI 31 (2012); Gerhard et al., figshare 10.6084/m9.figshare.856713 (2013); "
    "Haberl et al., Nature Methods 15:677 (2018)",
    "licence": "RESEARCH ONLY, not commercial: CC BY-NC-SA 3.0 (vnc); non-commercial research and education (CDeep3M); "
    "the terms of EPFL's volume are not stated where it is found",
    "sources": len(SOURCES),
    "card": "napari_kdunet/models/README.md",
}


def name_of(k: int) -> str:
    return f"mito-{k}unet"


def halved(model: core.Model) -> core.Model:
    """Return `model` as it is stored: its convolutions in half precision, and settings of how it is to be applied."""
    net = model.net
    for weight in net.parameters():
        if weight.dim() == 4:
            weight.data = weight.data.half()
    said = replace(model, net=net, summary=model.summary | {"data": DATA, "statistics": "volume"})
    return said.with_views(VIEWS) if net.k < TEACHER_K else said


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--bundle", action="store_true", help="put them into the package")
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    settings = {"batch": 2, "patch": 256, "threads": 1, "seed": given.seed}
    models: dict[int, core.Model] = {}
    for stage in STAGES:
        models[TEACHER_K] = taught(given, stage, models.get(TEACHER_K), settings)
        if stage.name == TEACHES:
            models |= taught_students(given, stage, models[TEACHER_K], settings)
    _, held = learnt_from(SOURCES, given)
    for k, model in models.items():
        before = core.load_model(halved(model).save(given.out / f"{name_of(k)}-half-precision.safetensors"))
        model = halved(halfway(before, taught(given, last_stage(k), before, settings, k)))
        if given.bundle:
            path = calibrated(scored(model, held), held).save(PACKAGE / f"{name_of(k)}.safetensors")
            print(f"{path.name}  {path.stat().st_size:,} bytes")


def last_stage(k: int) -> Stage:
    precision = STAGES[-1].precision if k == TEACHER_K else core.TrainConfig.precision
    change, seed = ARMS["appearance, zoom 0.5"], STAGES[-1].seed + 1
    return Stage(
        f"{name_of(k)}-last", LAST_STEPS[k], change=change, **AFTER, synthetic=0.5, seed=seed, precision=precision
    )


def taught(
    given: argparse.Namespace,
    stage: Stage,
    start: core.Model | None,
    settings: dict[str, Any],
    k: int = TEACHER_K,
) -> core.Model:
    """Return a model after a stage."""
    given.synthetic = FAMILY if stage.synthetic else 0
    pairs, held = learnt_from(SOURCES, given, sbem=stage.sbem)
    config = core.TrainConfig(
        k=k,
        steps=stage.steps,
        lr=stage.lr,
        validations=stage.validations,
        volume_weights=weights(stage) if stage.synthetic else "even",
        precision=stage.precision,
        **{**settings, **stage.change, "seed": given.seed + stage.seed},
    )
    path = given.out / f"{stage.name}.safetensors"
    return trained(path, pairs, held, config, start=start)


def taught_students(
    given: argparse.Namespace, stage: Stage, teacher: core.Model, settings: dict[str, Any]
) -> dict[int, core.Model]:
    """Return the students of a teacher, by their k."""
    pairs, held = learnt_from(SOURCES, given)
    settings = settings | {"volume_weights": weights(stage), "validations": 20, **SHARP}
    configs = {
        k: core.DistillConfig(mode="soft", tau=1.0, k=k, steps=steps, **settings) for k, steps in STUDENTS.items()
    }
    return {
        k: trained(given.out / f"{name_of(k)}.safetensors", pairs, held, config, teacher=teacher)
        for k, config in configs.items()
    }


def weights(stage: Stage) -> tuple[float, ...]:
    return (*(1.0 for _ in SOURCES), stage.synthetic)


if __name__ == "__main__":
    main()
