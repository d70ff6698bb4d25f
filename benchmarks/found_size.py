"""What it is worth to smooth the doubts of a search for the pixel size, rather than take the surest size.

    python benchmarks/found_size.py DATA --out OUT [--models mito-2unet,lucchi-2unet] [--left-out DIR] [--slices 4]

DATA is a folder as `benchmarks/generality.py` takes it. Each model searches each of its three volumes (of EPFL z = 0 to
47) for the pixel size. It segments slices of the volume at the surest size that was tried, at the size that
`core.find_pixel_size` derives from the doubts around that, and at five sizes from half to twice the true one. With
--left-out, the networks in the folder of `benchmarks/generality.py` do the same on the source that they have not seen,
with statistics of the image. If no size is found, the one of least doubt counts as the surest, as in `predict`. Written
to OUT: `found-size.csv`, with a line for each model and volume; existing results are kept.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from commands import Row, once, write_csv
from generality import FACTORS, SOURCES, THRESHOLD, only, predicted_curve, volumes

from napari_kdunet import core


def iou(model: core.Model, raw: core.Volume, labels: core.Volume, size: float, slices: int) -> float:
    """Return the IoU at an assumed pixel size in nm."""
    sizes = (SOURCES[raw.name][1][0], size, size)
    return predicted_curve(model, core.open_volume(raw, voxel_size=sizes), labels, slices).iou(model.threshold)


def measured(model: core.Model, name: str, source: str, given: argparse.Namespace) -> Row:
    raw, labels = volumes(source, given)
    _, (_, _, true), learnt = SOURCES[source]
    if learnt:  # the source is learnt from that slice on
        raw, labels = only(raw, range(learnt)), only(labels, range(learnt))
    search = core.find_pixel_size(model, raw, invert=False, threads=1)
    found = search.guess
    assert found, f"{name} sees nothing in {source}"
    smaller = sorted(search.tried, key=lambda each: each.pixel_size)[:-1]  # the largest only serves as a neighbour
    surest = search.best or min(smaller, key=lambda each: each.doubt)
    sizes = {"surest": surest.pixel_size, "smoothed": found}
    row: Row = {"model": name, "volume": source, "found": search.pixel_size is not None}
    row |= {f"{which} / true": size / true for which, size in sizes.items()}
    row |= {which: iou(model, raw, labels, size, given.slices) for which, size in sizes.items()}
    return row | {"best of five": max(iou(model, raw, labels, factor * true, given.slices) for factor in FACTORS)}


def networks(given: argparse.Namespace) -> Iterator[tuple[str, core.Model, tuple[str, ...]]]:
    """Yield name and model of each network, and the volumes that it is tried on."""
    for name in given.models.split(",") if given.models else ():
        yield name, core.load_model(name), tuple(SOURCES)
    for path in sorted(given.left_out.glob("*.safetensors")) if given.left_out else ():
        unseen = tuple(source for source in SOURCES if f"-{source}-" not in path.stem)
        model = core.load_model(path)
        model = replace(model, threshold=THRESHOLD, summary=model.summary | {"statistics": "volume"})
        if len(unseen) == 1:
            yield path.stem, model, unseen


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--models", default="", help="names of bundled ones, with commas between")
    parser.add_argument("--left-out", type=Path)
    parser.add_argument("--slices", type=int, default=4)
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    rows: list[Any] = []
    for name, model, sources in networks(given):
        for source in sources:
            make = partial(measured, model, name, source, given)
            rows.append(once(given.out / f"{name}-{source}.json", make))
            write_csv(given.out / "found-size.csv", rows)


if __name__ == "__main__":
    main()
