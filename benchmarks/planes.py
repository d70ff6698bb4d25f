"""What slices along y and x add to those along z, by how their three predictions are averaged and how many slices.

    python benchmarks/planes.py RAW LABELS --voxel-size 5 --out DIR [--models mito-2unet,lucchi-2unet]
                                [--rows 384] [--columns 512] [--slices 16,32,64,128]

Measured are, on an isotropic volume, IoU at each model's threshold and cross entropy of slices along z, of four views
of them, and of three planes that are averaged as logits (`predict --planes zyx`) and as probabilities; on the middle
SLICES of RAW and on all of them, ROWS by COLUMNS of each. Batch normalisation statistics are those of all slices. One
core. Written to DIR: `planes.csv`.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from commands import Row, write_csv

from napari_kdunet import core

_ORDERS = ((0, 1, 2), (1, 0, 2), (2, 0, 1))


def averages(model: core.Model, pixels: np.ndarray[Any, Any], size: float) -> Iterator[tuple[str, Any]]:
    def predicted(stack: np.ndarray[Any, Any], views: int = 1, **how: Any) -> np.ndarray[Any, Any]:
        volume = core.open_volume(stack, voxel_size=size)
        return core.predict(model, volume, statistics="model", views=views, threads=1, **how).compute()

    turned = [predicted(np.ascontiguousarray(pixels.transpose(order))) for order in _ORDERS]
    yield "z", turned[0]
    yield "z, 4 views", predicted(pixels, views=4)
    yield "zyx, logits", predicted(pixels, planes="zyx")
    planes = (each.transpose(np.argsort(order)) for each, order in zip(turned, _ORDERS, strict=True))
    yield "zyx, probabilities", sum(planes) / len(_ORDERS)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("raw")
    parser.add_argument("labels")
    parser.add_argument("--voxel-size", type=float, required=True, help="nm")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--models", default="mito-2unet,lucchi-2unet", help="with commas between")
    parser.add_argument("--rows", type=int, default=384)
    parser.add_argument("--columns", type=int, default=512)
    parser.add_argument("--slices", default="16,32,64,128")
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    raw, labels = (core.open_volume(path)[:, : given.rows, : given.columns] for path in (given.raw, given.labels))
    rows: list[Row] = []
    for name in given.models.split(","):
        whole = core.open_volume(raw, voxel_size=given.voxel_size)
        model = core.load_model(name)
        model = core.adapt_statistics(model, whole) if model.adapts else model
        for count in (*map(int, given.slices.split(",")), len(raw)):
            middle = slice((len(raw) - count) // 2, (len(raw) - count) // 2 + count)
            for how, probability in averages(model, raw[middle], given.voxel_size):
                scores = core.evaluate(probability, labels[middle], threshold=model.threshold)
                rows.append({"model": name, "slices": count, "average": how, "iou": scores.iou, "ce": scores.ce})
                print("  ".join(map(str, rows[-1].values())), flush=True)
        write_csv(given.out / "planes.csv", rows)


if __name__ == "__main__":
    main()
