"""What outlines as a third class are worth: objects that touch, with and without `train --boundary`.

    python benchmarks/boundary.py [--wider 50] [--seeds 3] [--steps 400] [--k 4] [--csv CSV]

Two synthetic volumes, one to learn from and one to score on, whose mitochondria are drawn so many nm wider, so that
neighbours touch. For each seed two networks learn from their ids, in as many steps: the usual one and one with
`boundary`. Objects are made of the probabilities of both, at the networks' own thresholds, and of the second by the
outlines too; as many of them as can be are also made without splitting. One row a way and seed: IoU of the mask, and of
the objects F1 at an IoU of 0.5, false splits and merges.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from commands import Row, told, write_csv
from skimage.segmentation import expand_labels

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


def measured(given: argparse.Namespace) -> list[Row]:
    volumes = [synthetic_em(seed=seed, instances=True) for seed in (0, 1)]
    (raw, labels), (other, truth) = (
        (core.open_volume(raw, voxel_size=VOXEL_SIZE), expand_labels(ids, given.wider / VOXEL_SIZE[0]))
        for raw, ids in volumes
    )
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
    parser.add_argument("--wider", type=float, default=50, help="nm")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=400)
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
