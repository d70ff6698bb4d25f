"""Which slice to label next: what suggested slices are worth beside evenly spaced and random ones.

    python benchmarks/next_slice.py RAW LABELS --voxel-size 5,5,5 --out DIR
                                    [--more 1,3,5] [--seeds 3] [--steps 300] [--hold-out 32] [--between 16]
                                    [--ways suggested,even,random]

The first --hold-out slices of RAW are scored on, and the next --between slices are left out. Of the rest, the middle
one is labelled first, and a 2-Unet is trained on it; then 1, 3 and 5 more are labelled (2, 4 and 6 in all):

- `suggested`: those whose cells the last model is most unsure of, weighted by how unlike all labelled cells they look;
  after 1 and after 3 more a new model is trained, which suggests the next
- `unsure`: the same by the model's doubt alone, without slices within 10 of a labelled one
- `even`: all evenly spaced, the first one too
- `random`: the first, and others at random

Each network is trained from scratch for --steps steps, and scored on the held-out slices at a threshold of 0.5.
Existing results are kept. One core; written to DIR: a JSON for each run, and `next-slice.csv`.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from commands import Row, once, told, write_csv
from scipy.spatial.distance import cdist

from napari_kdunet import core
from napari_kdunet.core.volumes.slices import spaced

CELL = 64  # side of a cell, pixels
NEAR = 10  # slices


def cells(model: core.Model, raw: core.Volume) -> tuple[np.ndarray, np.ndarray]:
    """Return entropies (Z, N) in bits of the cells of each slice, and their looks (Z, N, 4) in standard deviations."""
    unsure, looks = [], []
    probability = core.predict(model, raw, threads=1)
    for z in range(len(raw)):
        p = np.asarray(probability[z]).clip(1e-6, 1 - 1e-6)
        mean, std = raw.statistics(z)
        image = (raw.read(z).astype(np.float32) - mean) / std
        down, right = np.gradient(image)
        parts = [pooled(a) for a in (image, image**2, np.hypot(down, right), p)]
        parts[1] = np.sqrt(np.maximum(parts[1] - parts[0] ** 2, 0))
        looks.append(np.stack(parts, axis=-1))
        unsure.append(pooled(-p * np.log2(p) - (1 - p) * np.log2(1 - p)))
    found = np.stack(looks)
    return np.stack(unsure), found / found.std(axis=(0, 1))


def pooled(image: np.ndarray) -> np.ndarray:
    y, x = (n // CELL for n in image.shape)
    return image[: y * CELL, : x * CELL].reshape(y, CELL, x, CELL).mean(axis=(1, 3)).ravel()


def suggested(model: core.Model, raw: core.Volume, labelled: list[int], count: int, *, alike: bool) -> list[int]:
    """Return `count` slices to label next, each chosen as if the ones before it were labelled."""
    unsure, looks = cells(model, raw)
    known, new = list(labelled), []
    for _ in range(count):
        if alike:
            near = np.full(unsure.shape, np.inf)
            for z in known:
                near = np.minimum(near, cdist(looks.reshape(-1, looks.shape[-1]), looks[z]).min(1).reshape(near.shape))
            worth = (unsure * near).mean(1)
        else:
            worth = unsure.mean(1)
            for z in known:
                worth[max(0, z - NEAR) : z + NEAR + 1] = -1
        worth[known] = -1
        new.append(int(worth.argmax()))
        known.append(new[-1])
    return new


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("raw")
    parser.add_argument("labels")
    parser.add_argument("--voxel-size", required=True, help="nm, Z,Y,X")
    parser.add_argument("--out", required=True)
    parser.add_argument("--more", default="1,3,5", help="numbers of further slices")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--hold-out", type=int, default=32)
    parser.add_argument("--between", type=int, default=16)
    parser.add_argument("--ways", default="suggested,even,random", help="of suggested, unsure, even, random")
    given = parser.parse_args()
    ways = given.ways.split(",")
    out = Path(given.out)
    out.mkdir(parents=True, exist_ok=True)
    size = tuple(map(float, given.voxel_size.split(",")))
    pixels, truth = (np.asarray(core.open_volume(path).data) for path in (given.raw, given.labels))
    cut = given.hold_out + given.between
    raw, labels = core.open_volume(pixels[cut:], voxel_size=size), truth[cut:]
    held, held_truth = core.open_volume(pixels[: given.hold_out], voxel_size=size), truth[: given.hold_out]

    def learn(name: str, slices: list[int], seed: int, way: str) -> Row:
        """Train and keep a model of these slices, and return its score."""

        def measure() -> Row:
            config = core.TrainConfig(
                k=2, steps=given.steps, patch=256, slices=slices, val_share=0, val_slices=1, validations=1,
                threshold=0.5, seed=seed, threads=1,
            )  # fmt: skip
            try:
                model = core.train(raw, labels, config)
            except core.CollapsedError as error:  # the collapsed model is scored
                model = error.model
            model.save(out / f"{name}.safetensors")
            scores = core.evaluate(core.predict(model, held, threads=1), held_truth, threshold=0.5)
            return {"way": way, "more": len(slices) - 1, "seed": seed, "slices": slices, "iou": scores.iou}

        return once(out / f"{name}.json", measure)

    counts = [int(n) for n in given.more.split(",")]
    (first,) = spaced(range(len(raw)), 1)
    rows: list[Row] = []
    for seed in range(given.seeds):
        rows.append(learn(f"first-{seed}", [first], seed, "first"))
        shuffled = np.random.default_rng(seed).permutation([z for z in range(len(raw)) if z != first]).tolist()
        known, last = {way: [first] for way in ways}, dict.fromkeys(ways, f"first-{seed}")
        for more in counts:
            known["even"] = list(spaced(range(len(raw)), more + 1))
            known["random"] = [first, *shuffled[:more]]
            for way in ways:
                name = f"{way}-{more}-{seed}"
                if way in ("suggested", "unsure") and not (out / f"{name}.json").exists():
                    model = core.load_model(out / f"{last[way]}.safetensors")
                    missing = more + 1 - len(known[way])
                    more_slices = suggested(model, raw, known[way], missing, alike=way == "suggested")
                    known[way] = [*known[way], *more_slices]
                rows.append(learn(name, known[way], seed, way))
                known[way], last[way] = rows[-1]["slices"], name
        write_csv(out / "next-slice.csv", rows)
    for way in ("first", *ways):
        own = [row for row in rows if row["way"] == way]
        for more in sorted({row["more"] for row in own}):
            print(way, more, told([row["iou"] for row in own if row["more"] == more]))


if __name__ == "__main__":
    main()
