"""Where a mask is wrong: how much of it lies along the annotated boundary, and which objects are missed or made up.

    python benchmarks/errors.py MASK LABELS [--radii 1,2,3,4,6]

For each radius, in pixels, the pixels within it of a boundary of the labels are left out, slice by slice. Printed are
their share of the wrong pixels, and the IoU of the remaining ones. An object is missed if no more than half of it is
found, and made up if none of it is labelled.
"""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from napari_kdunet import core
from napari_kdunet.core.metrics import Confusion

Mask = NDArray[np.bool_]


def beside_boundary(truth: Mask, radius: int) -> Mask:
    """Return which pixels (Z, Y, X) are within `radius` steps along Y and X of a boundary."""
    steps: Any = ndimage.generate_binary_structure(2, 1)[None]
    grown = ndimage.binary_dilation(truth, steps, iterations=radius)
    return grown & ~ndimage.binary_erosion(truth, steps, iterations=radius, border_value=1)


def unmet(objects: Mask, other: Mask, share: float) -> tuple[int, int, int]:
    """Return how many objects have at most `share` in the other mask, of how many, and the voxels of the former."""
    numbers, count = ndimage.label(objects)
    sizes, met = (np.bincount(numbers[where], minlength=count + 1)[1:] for where in (objects, objects & other))
    alone = met <= share * sizes
    return int(alone.sum()), count, int(sizes[alone].sum())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("mask")
    parser.add_argument("labels")
    parser.add_argument("--radii", default="1,2,3,4,6")
    given = parser.parse_args()
    mask, truth = (core.open_volume(path)[:] > 0 for path in (given.mask, given.labels))
    whole = Confusion.of(mask, truth)
    print(f"IoU {whole.iou:.4f}\n\n| within, pixels | of what is wrong | IoU of the rest |\n|---:|---:|---:|")
    for radius in map(int, given.radii.split(",")):
        rest = Confusion.of(mask, truth, ~beside_boundary(truth, radius))
        near = 1 - (rest.fp + rest.fn) / (whole.fp + whole.fn)
        print(f"| {radius} | {near:.1%} | {rest.iou:.4f} |")
    print()
    for name, (some, of, voxels) in {"missed": unmet(truth, mask, 0.5), "made up": unmet(mask, truth, 0.0)}.items():
        print(f"{name}: {some} of {of} objects, {voxels / truth.sum():.2%} of the foreground")


if __name__ == "__main__":
    main()
