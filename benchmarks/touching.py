"""Do touching mitochondria come apart? By their shape alone, on the synthetic volume and on sections of real tissue.

    python benchmarks/touching.py --labels vnc-train-labels.tif --raw vnc-train-raw.tif [--figure PNG] [--csv CSV]

True objects are widened until neighbours touch: by 50 nm on the synthetic volume in 3-D, by 55 nm in each section.
Objects are made from the mask of these, without and with splitting, and scored against the widened true ones. One row
for each volume and way: true objects, objects found, F1 at an IoU of 0.5, false splits and merges; for sections these
are sums, and F1 is that of all. The figure shows a slice of the part in which most objects come apart: image, objects
that touch, and objects that have come apart.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
from commands import Row, write_csv
from scipy import ndimage
from skimage.segmentation import expand_labels, find_boundaries

from napari_kdunet import core
from napari_kdunet.sample import VOXEL_SIZE, synthetic_em

WIDER = 50.0, 55.0  # nm
WAYS = {"together": 0.0, "apart": 0.7}  # ObjectsConfig.split


def found(mask: np.ndarray, voxel_size: tuple[float, float, float], split: float) -> np.ndarray:
    config = core.ObjectsConfig(split=split, min_diameter=0.0, holes=0.0)
    return np.asarray(core.instances(mask, config, voxel_size=voxel_size))


def compared(
    name: str, parts: list[tuple[np.ndarray, np.ndarray]], voxel_size: tuple[float, float, float]
) -> tuple[list[Row], list[np.ndarray]]:
    """Return rows of a volume, given as parts (image, true objects), and the images to show of it."""
    rows, merges, pictures = [], [], {}
    for way, split in WAYS.items():
        ids = [found(truth > 0, voxel_size, split) for _, truth in parts]
        scores = [core.score_objects(one, truth) for one, (_, truth) in zip(ids, parts, strict=True)]
        counts = np.array([score.count for score in scores]).sum(0)
        matched = sum(len(score.matches()) for score in scores)
        row: Row = {"volume": name, "way": way, "true": int(counts[1]), "found": int(counts[0])}
        row |= {"f1": 2 * matched / counts.sum(), "splits": sum(score.splits for score in scores)}
        rows.append(row | {"merges": sum(score.merges for score in scores)})
        print(
            "  ".join(f"{k} {v:.3f}" if isinstance(v, float) else f"{k} {v}" for k, v in rows[-1].items()), flush=True
        )
        pictures[way] = ids
        merges.append([score.merges for score in scores])
    part = int(np.argmax(np.subtract(*merges)))  # the one in which most objects come apart
    both = pictures["together"][part], pictures["apart"][part]
    z = max(range(len(both[0])), key=lambda z: len(np.unique(both[1][z])) - len(np.unique(both[0][z])))
    return rows, [parts[part][0][z], both[0][z], both[1][z]]


def drawn(path: Path, shown: dict[str, list[np.ndarray]]) -> None:
    from matplotlib import colormaps
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(len(shown), 3, figsize=(8, 2.9 * len(shown)), layout="constrained")
    titles = ("image", "what touches is one", "apart")
    for row, (name, (image, *ids)) in zip(np.atleast_2d(axes), shown.items(), strict=True):
        for axis, title, labels in zip(row, titles, [None, *ids], strict=True):
            axis.imshow(image, cmap="gray")
            if labels is not None:
                colours = colormaps["cividis"]((labels * 0.618) % 1.0)  # told apart by lightness as well as by hue
                colours[..., 3] = 0.65 * (labels > 0)
                colours[find_boundaries(labels, mode="inner")] = (1, 1, 1, 1)
                axis.imshow(colours, interpolation="nearest")
            axis.set(title=title if labels is None else f"{title}: {len(np.unique(labels)) - 1}", xticks=[], yticks=[])
        row[0].set_ylabel(name)
    figure.savefig(path, dpi=90)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--raw", help="sections, for the figure")
    parser.add_argument("--labels", help="of mitochondria in sections, at 4.6 nm")
    parser.add_argument("--figure", type=Path)
    parser.add_argument("--csv", type=Path)
    given = parser.parse_args()
    raw, truth = synthetic_em(instances=True)
    pixels = round(WIDER[0] / VOXEL_SIZE[-1])
    volumes: dict[str, tuple[Any, tuple[float, float, float]]] = {
        "synthetic volume": ([(raw, expand_labels(truth, pixels))], VOXEL_SIZE)
    }
    if given.labels:
        labels = core.open_volume(given.labels)
        images = labels if given.raw is None else core.open_volume(given.raw)
        pixels = round(WIDER[1] / 4.6)
        parts = [
            (images.read(z)[None], expand_labels(ndimage.label(labels.read(z) > 0)[0], pixels)[None])
            for z in range(len(labels))
        ]
        volumes["sections of a fly"] = parts, (50.0, 4.6, 4.6)
    rows, shown = [], {}
    for name, (parts, voxel_size) in volumes.items():
        more, shown[name] = compared(name, parts, voxel_size)
        rows += more
    if given.csv:
        write_csv(given.csv, rows)
    if given.figure:
        drawn(given.figure, shown)


if __name__ == "__main__":
    main()
