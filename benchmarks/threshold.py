"""Which threshold a network should have on a microscope that it has not seen, and what several views of a slice bring.

    python benchmarks/threshold.py DATA --models DIR --out OUT [--slices 6] [--views 1,4]

DIR is the folder of `benchmarks/generality.py`. Each network there that has learnt from two sources and been scored on
the third predicts slices of the third again, with statistics of the image and at the pixel size that it found, averaged
over --views views of a slice. Written to OUT: `threshold.csv`, with a line for each: the threshold that is best on the
held-out slices of its own sources, the one with the largest expected IoU if probabilities are taken at face value, the
best there is, and the IoU at each of these and at some thresholds that are the same for all.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from commands import Row, write_csv
from generality import SOURCES, curve_of, learnt_from, volumes
from numpy.typing import NDArray

from napari_kdunet import core
from napari_kdunet.core.volumes.slices import spaced

SAME = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)  # for all networks
BINS = 100  # of the probabilities' histogram


def ious(probability: NDArray[Any], truth: NDArray[np.bool_]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return at each threshold n / `BINS` the IoU, and that expected if a share p of the pixels of p is foreground."""
    found = np.clip((probability * BINS).astype(int), 0, BINS - 1).ravel()
    above, sure, right = (
        np.bincount(found, weights.ravel().astype(float), BINS)[::-1].cumsum()[::-1]
        for weights in (np.ones_like(probability), probability, truth)
    )
    return right / (above + right[0] - right), sure / (above + sure[0] - sure)


def row(scored: Path, views: int, given: argparse.Namespace) -> Row:
    """Return the line of a network, given by the record of its score."""
    record = json.loads(scored.read_text())
    model = core.load_model(scored.with_name(scored.stem.rsplit("-on-", 1)[0] + ".safetensors"))
    model = replace(model, summary=model.summary | {"views": views})
    raw, labels = volumes(record["left out"], given)
    z, y, x = SOURCES[record["left out"]][1]
    assumed = replace(raw, voxel_size=(z, record["found"] * y, record["found"] * x))
    slices = spaced(range(len(raw)), given.slices)
    predicted = core.predict(model, assumed, statistics="volume", threads=1)
    probability = np.stack([np.asarray(predicted[at], np.float32) for at in slices])
    real, expected = ious(probability, np.stack([labels.read(at) > 0 for at in slices]))
    named = {
        "own": round(BINS * curve_of(model, learnt_from(record["learnt from"].split("+"), given)[1]).best_threshold()),
        "expected": int(expected[1:].argmax()) + 1,
        "best": int(real.argmax()),
    }
    about = {name: record[name] for name in ("arm", "k", "learnt from", "left out", "seed")} | {"views": views}
    about |= {name: at / BINS for name, at in named.items()}
    about |= {f"IoU at {name}": float(real[at]) for name, at in named.items()}
    return about | {f"IoU at {at:g}": float(real[round(BINS * at)]) for at in SAME}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("--models", required=True, type=Path, help="the folder of generality.py")
    parser.add_argument("--out", required=True, type=Path)
    parser.add_argument("--slices", type=int, default=6, help="of each source that is scored on")
    parser.add_argument("--views", default="1", help="of a slice, with commas between")
    given = parser.parse_args()
    given.synthetic = 0
    given.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    every = [int(views) for views in given.views.split(",")]
    rows = [row(scored, views, given) for scored in sorted(given.models.glob("*-on-*.json")) for views in every]
    write_csv(given.out / "threshold.csv", rows)
    for views in every:
        of = [each for each in rows if each["views"] == views]
        print(f"{views} views, mean over {len(of)} networks")
        for name in [name for name in rows[0] if name.startswith("IoU")]:
            print(f"{name}  {np.mean([each[name] for each in of]):.3f}")


if __name__ == "__main__":
    main()
