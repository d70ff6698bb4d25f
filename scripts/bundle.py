"""Put students that `benchmarks/accuracy.py` trained into the package, each with its data named in its metadata.

python scripts/bundle.py DIR [--seed 0] [--ks 1,2,4]
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

from napari_kdunet import core

PACKAGE = Path(__file__).parents[1] / "src" / "napari_kdunet" / "models"
DATA = {
    "volume": "EPFL CVLab hippocampus, CA1, FIB-SEM, 5 nm: the public testing volume, 165 slices of 768 x 1024",
    "citation": "Lucchi, Li & Fua, CVPR 2013; Lucchi et al., IEEE TMI 31 (2012)",
    "licence": "terms of the volume are not stated where it is found: cite it; research use",
    "card": "napari_kdunet/models/README.md",
}
MOST_BYTES = 600_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--ks", default="1,2,4")
    given = parser.parse_args()
    PACKAGE.mkdir(exist_ok=True)
    for k in given.ks.split(","):
        model = core.load_model(given.folder / f"{k}unet-{given.seed}.safetensors")
        path = replace(model, summary=model.summary | {"data": DATA}).save(PACKAGE / f"lucchi-{k}unet.safetensors")
        if path.stat().st_size > MOST_BYTES:
            parser.error(f"{path} has {path.stat().st_size:,} bytes: at most {MOST_BYTES:,} go into the package.")
        print(f"{path.name}  {path.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
