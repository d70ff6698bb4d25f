"""What padding, rotation and lost sections do to a mask: IoU beside that of the image as it is.

    python benchmarks/robustness.py RAW LABELS [--voxel-size 5,5,5] [--models lucchi-1unet,lucchi-2unet,lucchi-4unet]
                                    [--slices 3] [--threads 1]

**Outside the sample.** Evenly spaced slices of a labelled volume are padded, rotated, cut and blanked in memory. The
IoU is that inside the sample, at the model's threshold; beside it stands the IoU of the same pixels where the rest is
what lies there: the image itself, or its mirror image where a rotation turns in from outside. The last column is the
share of the pixels outside that are called foreground, which should be 0.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from napari_kdunet import core

Array = NDArray[Any]


class Case(NamedTuple):
    """An image (Z, Y, X) with pixels outside the sample, its labels, where the sample is, and the image without."""

    name: str
    raw: Array
    labels: Array
    inside: Array
    plain: Array


def padded(raw: Array, labels: Array, share: float, fill: int) -> Case:
    """With a frame that is this share of the slice."""
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("raw", help="8-bit volume")
    parser.add_argument("labels", help="its labels; not 0 is foreground")
    parser.add_argument("--voxel-size", default="5,5,5", help="nm, Z,Y,X")
    parser.add_argument("--models", default="lucchi-1unet,lucchi-2unet,lucchi-4unet")
    parser.add_argument("--slices", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    z, y, x = (float(part) for part in given.voxel_size.split(","))
    volume, truth = core.open_volume(given.raw), core.open_volume(given.labels)
    chosen = [(2 * i + 1) * len(volume) // (2 * given.slices) for i in range(given.slices)]
    raw, labels = (np.stack([each.read(i) for i in chosen]) for each in (volume, truth))
    outside_the_sample(raw, labels, (z, y, x), given)


if __name__ == "__main__":
    main()
