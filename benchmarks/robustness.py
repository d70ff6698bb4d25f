"""What padding, rotation, lost sections and an unknown pixel size do to a mask.

    python benchmarks/robustness.py RAW LABELS [--voxel-size 5,5,5] [--models lucchi-1unet,lucchi-2unet,lucchi-4unet]
                                    [--slices 3] [--threads 1] [--tables outside,size] [--csv FILE]

**Outside the sample.** Evenly spaced slices of a labelled volume are padded, rotated, cut and blanked in memory. The
IoU is that inside the sample, at the model's threshold. Beside it stands the IoU of the same pixels if there is image
everywhere outside: the image itself, or its mirror image beyond its edges. The last column is the share of the pixels
outside that are called foreground, which should be 0.

**Pixel size not stated.** The volume is rescaled, so that its true pixel size is half to twice the given one, and
`core.find_pixel_size` searches for it. Beside the size found stand the IoU there (slices spread over the volume, at the
model's threshold), the IoU at the true size, at the best of five sizes from half to twice the true one, and at the
model's own size, as if the unknown size were that. Rows are added to the file of --csv.
"""

from __future__ import annotations

import argparse
import csv
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from scipy import ndimage

from napari_kdunet import core

Array = NDArray[Any]

SCALES = (1.0, 0.5, 0.7, 1.4, 2.0)
"""Pixels along a side after rescaling, as multiples of those before."""


class Case(NamedTuple):
    """An image (Z, Y, X) with pixels outside the sample, its labels, the sample's mask, and the image without any."""

    name: str
    raw: Array
    labels: Array
    inside: Array
    plain: Array


def padded(raw: Array, labels: Array, share: float, fill: int) -> Case:
    """Return slices in a frame of value `fill` that makes up this share of each."""
    grow = (1 / (1 - share)) ** 0.5
    sides = [(0, 0), *((round(n * (grow - 1) / 2),) * 2 for n in raw.shape[1:])]
    inside = np.pad(np.ones(raw.shape, bool), sides)
    frame = np.pad(raw, sides, constant_values=fill)
    return Case(f"{share:.0%} of {fill}", frame, np.pad(labels, sides), inside, np.pad(raw, sides, mode="reflect"))


def rotated(raw: Array, labels: Array, degrees: float, fill: int) -> Case:
    def turn(image: Array, order: int, **how: Any) -> Array:
        turned: Array = ndimage.rotate(image, degrees, axes=(1, 2), order=order, **how)
        return turned

    inside = turn(np.ones(raw.shape, np.uint8), 0) > 0
    plain = turn(raw, 1, mode="mirror")
    name = f"rotated by {degrees:g}°, corners of {fill}"
    return Case(name, turn(raw, 1, cval=fill), turn(labels, 0), inside, plain)


def cases(raw: Array, labels: Array) -> Iterator[Case]:
    for share in (0.1, 0.25, 0.5):
        for fill in (0, 255):
            yield padded(raw, labels, share, fill)
    for degrees, fill in ((3, 0), (10, 0), (10, 255), (45, 0)):
        yield rotated(raw, labels, degrees, fill)
    inside = np.ones(raw.shape, bool)
    inside[:, :, raw.shape[2] // 2 :] = False
    yield Case("half not acquired, 0", np.where(inside, raw, 0), labels, inside, np.where(inside, raw, raw[:, :, ::-1]))
    inside = np.ones(raw.shape, bool)
    inside[:, 100:300, 200:450] = False
    yield Case("a missing tile of 255", np.where(inside, raw, 255), labels, inside, raw)
    two = padded(raw, labels, 0.25, 0)
    yield two._replace(name="25% of 0, and left of it 90", raw=np.where(np.arange(two.raw.shape[2]) < 40, 90, two.raw))
    inside = np.ones(raw.shape, bool)
    inside[len(raw) // 2] = False
    noise = np.random.default_rng(0).integers(0, 3, raw.shape)
    yield Case("a lost section of 0", np.where(inside, raw, 0), labels, inside, raw)
    yield Case("a lost section of read noise", np.where(inside, raw, noise), labels, inside, raw)


def iou(found: Array, truth: Array) -> float:
    return float((found & truth).sum() / max(1, (found | truth).sum()))


def outside_the_sample(raw: Array, labels: Array, size: tuple[float, float, float], given: argparse.Namespace) -> None:
    print(f"\nOutside the sample: {len(raw)} slices of {given.raw}, {raw.shape[1]}x{raw.shape[2]}\n")
    print("| model | outside | IoU | without | difference | false outside |")
    print("|---|---|---:|---:|---:|---:|")
    for name in given.models.split(","):
        model = core.load_model(name)

        def mask(image: Array, model: core.Model = model) -> Array:
            volume = core.open_volume(image.astype(raw.dtype), voxel_size=size)
            return np.asarray(core.predict(model, volume, output="labels", threads=given.threads)) > 0

        for case in cases(raw, labels):
            found, truth = mask(case.raw), case.labels > 0
            with_, without = (iou(each[case.inside], truth[case.inside]) for each in (found, mask(case.plain)))
            row = f"{with_:.3f} | {without:.3f} | {with_ - without:+.3f} | {found[~case.inside].mean():.4f}"
            print(f"| {name} | {case.name} | {row} |", flush=True)


def rescaled(image: Array, scale: float, mode: str) -> Array:
    """Resample slices (Z, Y, X) to `scale` times as many pixels a side."""
    if scale == 1:
        return image
    smooth = {"antialias": True, "align_corners": False} if mode == "bilinear" else {}
    sides = [round(n * scale) for n in image.shape[1:]]
    slices = F.interpolate(torch.from_numpy(image.astype(np.float32))[:, None], sides, mode=mode, **smooth)
    return slices[:, 0].round().numpy().astype(image.dtype)


def size_not_stated(raw: Array, labels: Array, size: tuple[float, float, float], given: argparse.Namespace) -> None:
    print(f"\nPixel size not stated: {len(raw)} slices of {given.raw}\n")
    print(
        "| model | true size, nm | found | doubt | margin | IoU there | at the true size | best | at the model's | s |"
    )
    print("|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|")
    for scale in SCALES:
        image, truth = rescaled(raw, scale, "bilinear"), rescaled(labels, scale, "nearest-exact") > 0
        for name in given.models.split(","):
            row = search(core.load_model(name), image, truth, size[2] / scale, given.threads)
            row = {"volume": Path(given.raw).stem, "model": name, **row}
            told = [f"{value:.3f}" if isinstance(value, float) else str(value) for value in row.values()]
            print(f"| {' | '.join(told[1:])} |", flush=True)
            if given.csv:
                new = not Path(given.csv).exists()
                with Path(given.csv).open("a", newline="") as file:
                    writer = csv.DictWriter(file, row, lineterminator="\n")
                    writer.writerows([dict(zip(row, row, strict=True))] * new + [dict(zip(row, told, strict=True))])


def search(model: core.Model, image: Array, truth: Array, true: float, threads: int) -> dict[str, Any]:
    begin = time.monotonic()
    found = core.find_pixel_size(model, image, threads=threads)
    seconds = time.monotonic() - begin

    def at(size: float | None, inverted: bool = False) -> float | str:
        if size is None:
            return ""
        volume = core.open_volume(255 - image if inverted else image, voxel_size=(size, size, size))
        return iou(np.asarray(core.predict(model, volume, output="labels", threads=threads)) > 0, truth)

    ious = {factor: at(factor * true) for factor in (0.5, 0.7, 1.0, 1.4, 2.0)}
    told = found.pixel_size or f"none ({found.guess})"
    return {
        "true size": true,
        "found": f"{told}{' inverted' if found.inverted else ''}",
        "doubt": min(each.doubt for each in found.tried if not each.inverted),
        "margin": found.margin,
        "IoU there": at(found.pixel_size or found.guess, found.inverted),
        "at the true size": ious[1.0],
        "best": max(ious.values()),
        "at the model's": at(model.pixel_size),
        "seconds": round(seconds, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("raw", help="8-bit volume")
    parser.add_argument("labels", help="its labels; not 0 is foreground")
    parser.add_argument("--voxel-size", default="5,5,5", help="nm, Z,Y,X")
    parser.add_argument("--models", default="lucchi-1unet,lucchi-2unet,lucchi-4unet")
    parser.add_argument("--slices", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--tables", default="outside,size", help="outside, size, or both")
    parser.add_argument("--csv", help="file that the rows of the second table are added to")
    given = parser.parse_args()
    z, y, x = (float(part) for part in given.voxel_size.split(","))
    volume, truth = core.open_volume(given.raw), core.open_volume(given.labels)
    chosen = [(2 * i + 1) * len(volume) // (2 * given.slices) for i in range(given.slices)]
    raw, labels = (np.stack([each.read(i) for i in chosen]) for each in (volume, truth))
    for table in given.tables.split(","):
        {"outside": outside_the_sample, "size": size_not_stated}[table](raw, labels, (z, y, x), given)


if __name__ == "__main__":
    main()
