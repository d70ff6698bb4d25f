"""Put models of `epfl-training` into the package, each with its data named in its metadata.

python scripts/bundle.py DIR RAW LABELS [--seed 0] [--ks 1,2,4]

DIR holds `KUNET-SEED.safetensors`, e.g. `2unet-0.safetensors`. They are scored again on the slices that were held out.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from napari_kdunet import core
from napari_kdunet.core.data.validation import Validation
from napari_kdunet.core.metrics import MeanCurve

PACKAGE = Path(__file__).parents[1] / "src" / "napari_kdunet" / "models"
DATA = {
    "volume": "EPFL CVLab hippocampus, CA1, FIB-SEM, 5 nm: the public training volume, 165 slices of 768 x 1024",
    "citation": "Lucchi, Li & Fua, CVPR 2013; Lucchi et al., IEEE TMI 31 (2012)",
    "licence": "terms of the volume are not stated where it is found: cite it; research use",
    "card": "napari_kdunet/models/README.md",
}
MOST_BYTES = 600_000


def scored(model: core.Model, pairs: list[Any]) -> core.Model:
    """Return `model` with its validation computed anew on the slices that were held out of each volume.

    The validation holds its scores, and the foreground's share and its doubt, with which `core.find_pixel_size`
    compares.
    """
    known = model.summary["validation"]
    slices: list[list[int]] = []
    for z in known["slices"]:  # those of one volume after another, ascending in each
        if not slices or z <= slices[-1][-1]:
            slices.append([])
        slices[-1].append(z)
    config = core.TrainConfig(**model.form_and_pixel_size)
    curves = tuple(
        Validation.against(core.open_volume(raw), core.open_volume(labels), at, config).score(model, "cpu", 1)
        for (raw, labels), at in zip(pairs, slices, strict=True)
    )
    return replace(model, summary=model.summary | {"validation": known | MeanCurve(curves).summary(model.threshold)})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("raw")
    parser.add_argument("labels")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--ks", default="1,2,4")
    given = parser.parse_args()
    torch.set_num_threads(1)
    pair = core.open_volume(given.raw, voxel_size=(5.0, 5.0, 5.0)), given.labels
    for k in given.ks.split(","):
        model = core.load_model(given.folder / f"{k}unet-{given.seed}.safetensors")
        model = scored(replace(model, summary=model.summary | {"data": DATA}), [pair])
        path = model.save(PACKAGE / f"lucchi-{k}unet.safetensors")
        if path.stat().st_size > MOST_BYTES:
            parser.error(f"{path} has {path.stat().st_size:,} bytes: at most {MOST_BYTES:,} go into the package.")
        print(f"{path.name}  {path.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
