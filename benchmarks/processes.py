"""Training in several processes beside one process with as many times the batch: how far apart their losses are.

    python benchmarks/processes.py [--devices 2] [--k 2] [--steps 60] [--batch 4] [--device cpu]

Both train on a synthetic volume, without and with batch normalisation, on patches of 64 pixels at the image's own pixel
size and otherwise by default settings. Printed are the differences between the losses of the same step, the first and
the last loss, and the seconds a step.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from statistics import mean, median

import torch
from machine import cpu_name, versions

from napari_kdunet import core
from napari_kdunet.core.training.distributed import launch
from napari_kdunet.sample import synthetic_em


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    for name, default in (("devices", 2), ("k", 2), ("steps", 60), ("batch", 4)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--device", default="cpu")
    given = parser.parse_args()
    config = core.TrainConfig(
        k=given.k, steps=given.steps, batch=given.batch, device=given.device, pixel_size=0, patch=64, validations=1
    )
    configs = [replace(config, bn=bn) for bn in (False, True)]
    raw, labels = synthetic_em((16, 128, 128))
    with launch(config, given.devices) as fabric:
        together = [list(steps(core.iter_train(raw, labels, each, fabric=fabric))) for each in configs]
        if not fabric.is_global_zero:
            return
    print(f"{cpu_name()}, {os.cpu_count()} cores; {versions('torch', 'lightning-fabric')}")
    print(f"{given.devices} processes of {given.batch} patches, {given.k}-Unet, {torch.get_num_threads()} threads")
    for each, found in zip(configs, together, strict=True):
        larger = replace(each, batch=given.batch * given.devices)
        alone = list(steps(core.iter_train(raw, labels, larger)))
        apart = [abs(a.loss - b.loss) for a, b in zip(alone, found, strict=True)]
        print(
            f"BN {'on ' if each.bn else 'off'}  largest difference {max(apart):.2g}, mean {mean(apart):.2g};  "
            f"loss {alone[0].loss:.3f} to {alone[-1].loss:.3f};  "
            f"seconds a step: together {typical(found):.3f}, alone {typical(alone):.3f}"
        )


def steps(events: Iterator[core.Event]) -> Iterator[core.Stepped]:
    return (event for event in events if isinstance(event, core.Stepped))


def typical(found: list[core.Stepped]) -> float:
    return median(b.seconds - a.seconds for a, b in pairwise(found))


if __name__ == "__main__":
    main()
