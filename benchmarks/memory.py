"""Peak memory of `predict`, from OME-Zarr to OME-Zarr, on volumes of growing size and on one huge slice.

    python benchmarks/memory.py [--gigabytes 1,4,16] [--side 2048] [--huge 20000]
                                [--model lucchi-2unet] [--raw RAW] [--folder DIR]

The volumes are made of one image, turned and shifted from slice to slice, and deleted when they have been predicted:
DIR needs free space of twice the largest. The peak is that of the whole process as the system counts it; "above
start-up" is its excess over the peak for a volume of one 64 x 64 slice, which loads the same libraries.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from napari_kdunet import core
from napari_kdunet.sample import synthetic_em

MEGA = 2**20
VOXEL_NM = 5.0


def make(path: Path, shape: tuple[int, int, int], image: NDArray[np.uint8]) -> None:
    """Write an OME-Zarr of `image`, enlarged by repetition, in which each slice is unlike the one before."""
    slices = (np.resize(np.roll(np.rot90(image, z % 4), 37 * z, axis=z % 2), shape[1:]) for z in range(shape[0]))
    core.write_volume(slices, path, shape=shape, dtype=np.uint8, voxel_size=(VOXEL_NM,) * 3, overwrite=True)


def peak(volume: Path, model: str) -> tuple[float, float]:
    """Return the peak memory of predicting a volume in MiB, and the seconds that it took."""
    out = volume.with_name(f"{volume.stem}-mask.zarr")
    line = [sys.executable, "-m", "napari_kdunet", "predict", model, str(volume), "-o", str(out)]
    begin = time.perf_counter()
    process = subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - begin
    if status:
        sys.exit(f"{' '.join(line)} failed")
    shutil.rmtree(out)
    return usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024) / MEGA, seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", default="1,4,16", help="sizes with commas between; may be empty")
    parser.add_argument("--side", type=int, default=2048, help="of a slice of these, pixels")
    parser.add_argument("--huge", type=int, default=20_000, help="side of a single slice; 0 for none")
    parser.add_argument("--model", default="lucchi-2unet")
    parser.add_argument("--raw", help="volume whose first slice is repeated; a synthetic one if not given")
    parser.add_argument("--folder", help="where the volumes are made; a temporary folder if not given")
    given = parser.parse_args()
    image = core.open_volume(given.raw).read(0) if given.raw else synthetic_em((1, 768, 768))[0][0]
    side, sizes = given.side, [float(size) for size in given.gigabytes.split(",") if size]
    shapes = [(1, 64, 64), *((max(1, round(size * 2**30 / side**2)), side, side) for size in sizes)]
    if given.huge:
        shapes.append((1, given.huge, given.huge))
    print("| volume, uint8 | GB | seconds | peak, MiB | above start-up, MiB |\n|---|---:|---:|---:|---:|")
    start_up = 0.0
    for shape in shapes:
        with tempfile.TemporaryDirectory(dir=given.folder) as folder:
            volume = Path(folder) / "volume.zarr"
            make(volume, shape, image)
            most, seconds = peak(volume, given.model)
        start_up = start_up or most
        cells = "x".join(map(str, shape)), f"{np.prod(shape) / 2**30:.2f}"
        print(f"| {' | '.join(cells)} | {seconds:.0f} | {most:.0f} | {most - start_up:.0f} |", flush=True)


if __name__ == "__main__":
    main()
