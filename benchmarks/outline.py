"""Is it worth weighting the pixels at the outline more, where most errors lie? Networks scored on first slices.

    python benchmarks/outline.py RAW LABELS --voxel-size 5 --out DIR [--k 2] [--weights 1,2,4] [--seeds 3]
                                 [--steps 3000] [--scored 32] [--gap 16]

In the hard loss a labelled pixel within two working pixels of the outline counts WEIGHT times (1 is `core.train` as it
is), relative to the others; the Dice loss and the class weights stay. Each network learns from the slices of RAW from
SCORED + GAP on, of which the middle ones are held out to choose model and threshold. It is scored at that threshold on
the first SCORED slices, without post-processing. One core. Existing results are kept. Written to DIR: models, a JSON
for each, and `outline.csv`.
"""

from __future__ import annotations

import argparse
from itertools import product
from typing import Any

import torch.nn.functional as F
from commands import Row, add_one_volume, once, parsed_one_volume, score, told, write_csv
from torch import Tensor

from napari_kdunet import core
from napari_kdunet.core.training import losses

REACH = 2  # working pixels
as_it_is = losses.hard_loss


def weighted(weight: float) -> Any:
    """Return a hard loss in which pixels at the outline of labelled objects count `weight` times."""

    def hard_loss(logits: Tensor, target: Tensor, class_weights: Any = None, dice: float = 0.0, **how: Any) -> Tensor:
        foreground = target[:, 1:].sum(dim=1, keepdim=True)
        side = 2 * REACH + 1
        largest = F.max_pool2d(foreground, side, stride=1, padding=REACH)
        smallest = -F.max_pool2d(-foreground, side, stride=1, padding=REACH)
        band = 1 + (weight - 1) * (largest - smallest > 0.5)
        entropy = as_it_is(logits, target * band, class_weights, 0.0, **how)
        return entropy + dice * losses.dice_loss(logits, target, **how) if dice else entropy

    return hard_loss


def network(weight: float, seed: int, given: argparse.Namespace) -> Row:
    model = given.out / f"{given.k}unet-outline-{weight:g}-{seed}.safetensors"

    def measure() -> Row:
        losses.hard_loss = as_it_is if weight == 1 else weighted(weight)
        learnt = range(given.learnt.start, given.learnt.stop)
        config = core.TrainConfig(k=given.k, steps=given.steps, seed=seed, threads=1, slices=learnt)
        size = (float(given.voxel_size),) * 3
        raw, labels = (core.open_volume(each, voxel_size=size) for each in (given.raw, given.labels))
        core.train(raw, labels, config).save(model)
        about = {"k": given.k, "outline": weight, "seed": seed, "steps": given.steps}
        return about | score(model, *given.val, *given.size)

    return once(model.with_suffix(".json"), measure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_one_volume(parser)
    parser.add_argument("--k", type=int, default=2)
    parser.add_argument("--weights", default="1,2,4", help="of pixels at the outline, with commas between")
    given = parsed_one_volume(parser)
    weights = [float(each) for each in given.weights.split(",")]
    rows = [network(weight, seed, given) for seed, weight in product(range(given.seeds), weights)]
    write_csv(given.out / "outline.csv", rows)
    for weight in weights:
        print(f"weight {weight:g}: IoU {told([row['iou'] for row in rows if row['outline'] == weight])}")


if __name__ == "__main__":
    main()
