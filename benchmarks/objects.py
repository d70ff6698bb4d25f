"""Objects and measurements against plain scikit-image: seconds and memory of each, in a process of its own.

python benchmarks/objects.py --voxels 0.1 1 3.4 [--only instances measure skimage] [--folder /somewhere]

The volume is made of a synthetic mask at 5 nm (made at 10), tiled and mirrored, as uint8 in a file; 3.4 gigavoxels are
1065 x 2048 x 1536. scikit-image (`label` and `regionprops_table` with the columns that it has) needs it in memory.
Memory is the most that a process had of its own: pages of the mapped file, which the system can reclaim, do not count.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np

SHAPES = {0.01: (64, 400, 400), 0.1: (160, 800, 800), 1.0: (480, 1440, 1440), 3.4: (1065, 2048, 1536)}
SIZE = (5.0, 5.0, 5.0)


def make(path: Path, shape: tuple[int, int, int]) -> None:
    from napari_kdunet.sample import synthetic_em

    tile = synthetic_em((64, 128, 128))[1].repeat(2, 0).repeat(2, 1).repeat(2, 2) * np.uint8(255)
    volume = np.lib.format.open_memmap(path, "w+", np.uint8, shape)
    flips = [np.flip(tile, axes) for axes in ((), (0,), (1,), (2,), (0, 1), (0, 2), (1, 2), (0, 1, 2))]
    for i, z in enumerate(range(0, shape[0], tile.shape[0])):
        for j, y in enumerate(range(0, shape[1], tile.shape[1])):
            for k, x in enumerate(range(0, shape[2], tile.shape[2])):
                part = volume[z : z + 128, y : y + 256, x : x + 256]
                flip = flips[(0, 3, 2, 6, 1, 5, 4, 7)[4 * (i % 2) + 2 * (j % 2) + k % 2]]  # neighbours meet mirrored
                part[:] = flip[tuple(map(slice, part.shape))]
    volume.flush()


def instances(path: Path, out: Path) -> str:
    from napari_kdunet import core

    found = core.instances(path, voxel_size=SIZE, scratch=out.parent)
    core.write_volume(found, out, voxel_size=SIZE, labels=True)
    return ""


def measure(path: Path, out: Path) -> str:
    from napari_kdunet import core

    table = core.measure(out, voxel_size=SIZE)
    return f"{len(table)} objects"


def skimage(path: Path, out: Path) -> str:
    from skimage.measure import label, regionprops_table

    ids = label(np.load(path) > 0)
    names = ("label", "area", "bbox", "centroid", "axis_major_length", "axis_minor_length")
    return f"{len(regionprops_table(ids, properties=names, spacing=SIZE)['label'])} objects"


class OwnMemory(threading.Thread):
    """Thread that records the peak of this process's anonymous memory, GB, looking twenty times a second."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.peak = 0.0
        self.start()

    def run(self) -> None:
        while True:
            status = Path("/proc/self/status").read_text()
            self.peak = max(self.peak, int(status.split("RssAnon:")[1].split()[0]) / 2**20)
            time.sleep(0.05)


WORK = {"instances": instances, "measure": measure, "skimage": skimage}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--voxels", type=float, nargs="+", default=[0.1, 1.0], help="gigavoxels: 0.01, 0.1, 1 or 3.4")
    parser.add_argument("--only", nargs="+", choices=list(WORK), default=list(WORK))
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--run", nargs=3, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.run:
        begin, memory = time.perf_counter(), OwnMemory()
        text = WORK[given.run[0]](Path(given.run[1]), Path(given.run[2]))
        cpu = sum(resource.getrusage(resource.RUSAGE_SELF)[:2])
        print(f"{time.perf_counter() - begin:8.1f} s  {cpu:8.1f} s of CPU  {memory.peak:6.2f} GB  {text}", flush=True)
        return
    with tempfile.TemporaryDirectory(dir=given.folder) as folder:
        for size in given.voxels:
            path, out = Path(folder) / f"{size}.npy", Path(folder) / f"{size}.zarr"
            make(path, SHAPES[size])
            for name in given.only:
                print(f"{size:5} gigavoxels  {name:10}", end="", flush=True)
                subprocess.run([sys.executable, __file__, "--run", name, path, out], check=False)


if __name__ == "__main__":
    main()
