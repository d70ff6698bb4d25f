"""What outlines as a third class are worth: objects that touch, with and without `train --boundary`.

    python benchmarks/boundary.py [--strip 48] [--seeds 3] [--steps 300] [--k 4] [--csv CSV]

Two synthetic volumes, one to learn from and one to score on, are cut into strips, and each strip is followed by its
mirror image, with a membrane of 20 nm between them. Mitochondria touch there with their whole width, so that their
shape does not tell them apart. For each seed two networks learn from the ids, in the same number of steps: the usual
one and one with `boundary`. Objects are made from the probabilities of both, at the networks' own thresholds: for the
first also without splitting, for the second with and without the outlines. One row for each way and seed: IoU of the
mask, and F1 at an IoU of 0.5, false splits and merges of the objects.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import cc3d
import numpy as np
from commands import Row, told, write_csv

from napari_kdunet import core
from napari_kdunet.sample import VOXEL_SIZE, synthetic_em


def scored(way: str, seed: int, probability: object, truth: np.ndarray, threshold: float, **how: object) -> Row:
    split = how.pop("split", 0.7)
    config = core.ObjectsConfig(threshold=threshold, split=split)
    found = core.instances(probability, config, voxel_size=VOXEL_SIZE, **how)
    scores = core.score_objects(np.asarray(found), truth)
    iou = core.evaluate(probability, truth, threshold=threshold).iou
    row = {"way": way, "seed": seed, "iou": iou, "f1": scores.f1(), "splits": scores.splits, "merges": scores.merges}
    print("  ".join(f"{k} {v:.3f}" if isinstance(v, float) else f"{k} {v}" for k, v in row.items()), flush=True)
    return row


def crowded(seed: int, strip: int) -> tuple[core.Volume, np.ndarray]:
    """Return the synthetic volume in strips along x, each with its mirror image, and the ids of its mitochondria."""
    raw, ids = synthetic_em((32, 192, 192), seed=seed, instances=True)
    images, numbers = [], []
    for i, left in enumerate(range(0, raw.shape[2], strip)):
        for turn in (1, -1):
            part, own = raw[..., left : left + strip][..., ::turn].copy(), ids[..., left : left + strip][..., ::turn]
            part[..., [0, -1]] = (0.35 * part[..., [0, -1]]).astype(np.uint8)  # as dark as a membrane
            images.append(part)
            numbers.append(np.where(own, own.astype(np.uint32) + 1000 * (2 * i + (turn < 0)), 0))
    labels = cc3d.connected_components(np.concatenate(numbers, axis=2), connectivity=6)
    return core.open_volume(np.concatenate(images, axis=2), voxel_size=VOXEL_SIZE), labels


def measured(given: argparse.Namespace) -> list[Row]:
    (raw, labels), (other, truth) = (crowded(seed, given.strip) for seed in (0, 1))
    rows = []
    for seed in range(given.seeds):
        for boundary in (False, True):
            config = core.TrainConfig(
                k=given.k, steps=given.steps, patch=128, batch=8, seed=seed, boundary=boundary, threads=given.threads
            )
            model = core.train(raw, labels, config)
            probability = core.predict(model, other).compute()
            if boundary:
                outlines = core.predict(model, other, output="boundary").compute()
                rows.append(scored("outlines", seed, probability, truth, model.threshold, boundary=outlines))
                rows.append(scored("outlines unused", seed, probability, truth, model.threshold))
            else:
                rows.append(scored("two classes", seed, probability, truth, model.threshold))
                rows.append(scored("two classes, no split", seed, probability, truth, model.threshold, split=0.0))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--strip", type=int, default=48, help="pixels")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--k", type=int, default=4)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--csv", type=Path)
    given = parser.parse_args()
    rows = measured(given)
    for way in dict.fromkeys(row["way"] for row in rows):
        own = [row for row in rows if row["way"] == way]
        print(f"{way}: " + ", ".join(f"{name} {told([row[name] for row in own])}" for name in list(own[0])[2:]))
    if given.csv:
        write_csv(given.csv, rows)


if __name__ == "__main__":
    main()
