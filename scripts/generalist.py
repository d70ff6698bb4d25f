"""Train the bundled generalists, `mito-*`, on all sources, and put them into the package.

    python scripts/generalist.py DATA --out DIR [--teacher-steps 3000,3500] [--students 2:6000,4:4000,1:6000]
                                 [--seed 0] [--bundle]

DATA is a folder as `benchmarks/generality.py` takes it. A 16-Unet learns from the labels of all three sources: first
each patch strongly changed in appearance and by up to an octave in pixel size, then, at a lower rate, less. The
students learn from it alone (`--mode soft --tau 1`), the labels choosing model and threshold. One core. Trainings go on
where they were stopped; what is done is not done again. With --bundle the models are put into the package, in half
precision.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from napari_kdunet import core
from napari_kdunet.core.training.checkpoint import resume_path

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT / "benchmarks"))
from bundle import PACKAGE, scored  # noqa: E402
from generality import ARMS, SOURCES, volumes  # noqa: E402  (the sources and the settings are those of the benchmark)

TEACHER_K = 16
STRONG, MILD = ARMS["appearance, zoom 1"], ARMS["mild"]
DATA = {
    "volume": "EPFL CVLab hippocampus, FIB-SEM, 5 nm: z 48 to 164 of the public training volume; "
    "groundtruth-drosophila-vnc stack 1, ssTEM, 4.6 nm; the mitochondria training sample of CDeep3M, SBEM of brain, "
    "taken as 10 nm",
    "citation": "Lucchi et al., IEEE TMI 31 (2012); Gerhard et al., figshare 10.6084/m9.figshare.856713 (2013); "
    "Haberl et al., Nature Methods 15:677 (2018)",
    "licence": "RESEARCH ONLY, not commercial: CC BY-NC-SA 3.0 (vnc); non-commercial research and education (CDeep3M); "
    "the terms of EPFL's volume are not stated where it is found",
    "sources": len(SOURCES),
    "card": "napari_kdunet/models/README.md",
}


def name_of(k: int) -> str:
    return f"mito-{k}unet"


def trained(path: Path, start: Callable[[bool], Iterator[Any]]) -> core.Model:
    """The model at `path`, or that of the training that `start(resume)` begins or goes on with."""
    resume = resume_path(path).exists()
    if path.exists() and not resume:
        return core.load_model(path)
    for event in start(resume):
        if isinstance(event, core.Validated):
            print(f"{path.stem}  step {event.step:,}  IoU {event.iou:.3f}", flush=True)
        elif isinstance(event, core.Done):
            model = event.model
    return model


def halved(model: core.Model) -> core.Model:
    """`model` with its convolutions in half precision, as it is stored; statistics and biases stay as they are."""
    net = model.net
    for weight in net.parameters():
        if weight.dim() == 4:
            weight.data = weight.data.half()
    return replace(model, net=net, summary=model.summary | {"data": DATA, "statistics": "volume"})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--teacher-steps", default="3000,3500", help="strongly and mildly augmented")
    parser.add_argument("--students", default="2:6000,4:4000,1:6000", help="K:STEPS with commas between")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--bundle", action="store_true", help="put them into the package")
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    pairs = [volumes(name, given, first) for name, (_, _, first) in SOURCES.items()]
    settings = {"batch": 2, "patch": 256, "threads": 1, "seed": given.seed, "validations": 20}

    strong, mild = map(int, given.teacher_steps.split(","))
    broad = teacher(pairs, given.out / "broad.safetensors", None, steps=strong, **settings, **STRONG)
    path = given.out / f"{name_of(TEACHER_K)}.safetensors"
    models = {TEACHER_K: teacher(pairs, path, broad, steps=mild, lr=3e-3, **{**settings, **MILD, "validations": 10})}
    for k, steps in (map(int, each.split(":")) for each in given.students.split(",") if each):
        path = given.out / f"{name_of(k)}.safetensors"
        models[k] = student(models[TEACHER_K], pairs, path, k=k, steps=steps, **settings, **MILD)
    for k, model in models.items() if given.bundle else ():
        path = scored(halved(model), pairs).save(PACKAGE / f"{name_of(k)}.safetensors")
        print(f"{path.name}  {path.stat().st_size:,} bytes")


def teacher(pairs: list[Any], path: Path, start: core.Model | None, **settings: Any) -> core.Model:
    config = core.TrainConfig(k=TEACHER_K, **settings)
    return trained(path, lambda resume: core.iter_train(pairs, config=config, out=path, resume=resume, start=start))


def student(by: core.Model, pairs: list[Any], path: Path, **settings: Any) -> core.Model:
    config = core.DistillConfig(mode="soft", tau=1.0, **settings)
    return trained(path, lambda resume: core.iter_distill(by, pairs, None, config, out=path, resume=resume))


if __name__ == "__main__":
    main()
