"""When adapting saves time: teacher on a share of a volume, training, and student on all of it, or teacher on all.

    python benchmarks/adapt_time.py RAW --voxel-size 5 [--teacher mito-16unet] [--student mito-2unet] [--slices 40]
                                    [--threads 1] [--minutes 5]

Printed are the seconds per megavoxel, from an array to a mask on the first SLICES of RAW, of the teacher as it is, of
the teacher as `adapt` asks it (by four views), and of the student; and from these the size of a volume in megavoxels
above which `adapt`, which takes MINUTES for any volume, and the student together need less time than the teacher alone.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import numpy as np
import torch

from napari_kdunet import core


def seconds(call: Callable[[], object], rounds: int = 3) -> float:
    """Return the least time of some calls, after one that warms up."""
    call()
    times = []
    for _ in range(rounds):
        began = time.perf_counter()
        call()
        times.append(time.perf_counter() - began)
    return min(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("raw")
    parser.add_argument("--voxel-size", type=float, required=True, help="nm")
    parser.add_argument("--teacher", default="mito-16unet")
    parser.add_argument("--student", default="mito-2unet")
    parser.add_argument("--slices", type=int, default=40)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--minutes", type=float, default=5)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    stored = core.open_volume(given.raw)
    pixels = np.stack([stored.read(z) for z in range(min(given.slices, len(stored)))])
    volume = core.open_volume(pixels, voxel_size=(given.voxel_size,) * 3)

    def rate(name: str, rounds: int = 3, views: int = 1) -> float:
        predicted = core.predict(core.load_model(name), volume, output="labels", threads=given.threads, views=views)
        found = seconds(lambda: predicted.compute(scheduler="synchronous"), rounds) / (pixels.size / 1e6)
        print(f"{name}, views {views}: {found:.4f} s a megavoxel on {given.threads} thread(s)", flush=True)
        return found

    teacher, best, student = rate(given.teacher), rate(given.teacher, 1, views=4), rate(given.student)
    for name, alone in (("as it is", teacher), ("as adapt asks it", best)):
        print(f"adapt pays beside the teacher {name} from {60 * given.minutes / (alone - student):,.0f} megavoxels on")


if __name__ == "__main__":
    main()
