"""Open many damaged files of one format, seeded: each gives pixels or one KDUNetError, in bounded time and memory.

Run by itself: ``python mutate.py FORMAT[,FORMAT...] COUNT FOLDER``; `test_mutated.py` does so, as a file may end it.
"""

from __future__ import annotations

import json
import logging
import random
import resource
import shutil
import signal
import sys
import time
import warnings
from pathlib import Path

import h5py
import mrcfile
import nibabel
import nrrd
import numpy as np
import tensorstore
import tifffile
import zarr
from PIL import Image

from napari_kdunet.core import KDUNetError, open_volume

SECONDS, MEGABYTES = 2.0, 500
PIXELS = np.random.default_rng(0).integers(0, 200, (4, 40, 48), dtype=np.uint8)
WORDS = [b"0", b"-1", b"99999999", b"1e400", b"null", b"[]", b"{}", b'"', b"NaN", b"\xff\xfe", b"..", b"/dev/zero"]


def make(kind: str, folder: Path) -> tuple[Path, list[Path]]:
    """Write a sound volume: what to open, and the files of it to damage."""
    path = folder / {"ome-tiff": "a.ome.tif", "tiff-zlib": "a.tif", "imagej": "a.tif", "gz": "a.nii.gz"}.get(
        kind, f"a.{kind}"
    )
    if kind in ("tif", "tiff-zlib"):
        options = {"compression": "zlib"} if kind == "tiff-zlib" else {}
        tifffile.imwrite(path, PIXELS, photometric="minisblack", resolution=(2e6, 2e6), resolutionunit=3, **options)
    elif kind == "ome-tiff":
        metadata = {"axes": "ZYX", "PhysicalSizeX": 5, "PhysicalSizeXUnit": "nm"}
        tifffile.imwrite(path, PIXELS, ome=True, metadata=metadata, compression="lzw")
    elif kind == "imagej":
        tifffile.imwrite(path, PIXELS, imagej=True, resolution=(0.2, 0.2), metadata={"unit": "nm", "axes": "ZYX"})
    elif kind in ("png", "jpg"):
        Image.fromarray(PIXELS[0]).save(path)
    elif kind == "npy":
        np.save(path, PIXELS)
    elif kind == "mrc":
        with mrcfile.new(path) as file:
            file.set_data(PIXELS.astype(np.int16))
            file.voxel_size = 50
    elif kind == "h5":
        with h5py.File(path, "w") as file:
            file.create_dataset("em", data=PIXELS, chunks=(1, 16, 16), compression="gzip").attrs["resolution"] = [
                40,
                5,
                5,
            ]
    elif kind == "nrrd":
        nrrd.write(str(path), PIXELS.T, {"spacings": [4.0, 5.0, 40.0], "units": ["nm"] * 3})
    elif kind in ("nii", "gz"):
        nibabel.save(nibabel.Nifti1Image(PIXELS.T, np.eye(4)), path)
    elif kind == "zarr":
        group = zarr.open_group(path, mode="w")
        group.create_array("0", data=PIXELS, chunks=(1, 20, 20), dimension_names=["z", "y", "x"])
        scale = {"type": "scale", "scale": [40, 5, 5]}
        axes = [{"name": axis, "type": "space", "unit": "nanometer"} for axis in "zyx"]
        image = {"axes": axes, "datasets": [{"path": "0", "coordinateTransformations": [scale]}]}
        group.attrs["ome"] = {"version": "0.5", "multiscales": [image]}
    elif kind == "n5":
        metadata = {
            "dimensions": PIXELS.T.shape, "blockSize": [16, 16, 2], "dataType": "uint8",
            "compression": {"type": "gzip"}, "units": ["nm"] * 3, "resolution": [4, 5, 40],
        }  # fmt: skip
        spec = {"driver": "n5", "kvstore": {"driver": "file", "path": str(path)}, "create": True, "metadata": metadata}
        tensorstore.open(spec).result()[...] = PIXELS.T
    elif kind == "precomputed":
        spec = {
            "driver": "neuroglancer_precomputed", "kvstore": {"driver": "file", "path": str(path)}, "create": True,
            "multiscale_metadata": {"data_type": "uint8", "num_channels": 1, "type": "image"},
            "scale_metadata": {
                "size": PIXELS.T.shape, "encoding": "raw", "chunk_size": [16, 16, 2], "resolution": [4, 5, 40],
            },
        }  # fmt: skip
        tensorstore.open(spec).result()[...] = PIXELS.T[..., None]
    else:
        raise ValueError(kind)
    files = [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file())
    described = [file for file in files if file.suffix == ".json" or file.name == "info"]
    return path, described * 5 + files if described else files


def damage(data: bytes, rng: random.Random) -> bytes:
    """Flip bits, cut, double, overwrite with extremes or words; mostly in the first part, where headers are."""
    changed = bytearray(data)
    for _ in range(rng.choice([1, 1, 1, 2, 4, 16])):
        if not changed:
            break
        at = int(len(changed) * rng.random() ** rng.choice([1, 3, 8]))
        how = rng.randrange(7)
        if how == 0:
            changed[at] ^= 1 << rng.randrange(8)
        elif how == 1:
            changed[at] = rng.choice([0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)])
        elif how == 2:
            del changed[at:]
        elif how == 3:
            del changed[at : at + rng.randrange(1, 9)]
        elif how == 4:
            changed[at : at + 4] = rng.choice([b"\xff\xff\xff\xff", b"\xff\xff\xff\x7f", b"\0\0\0\0", b"\0\0\0\x80"])
        elif how == 5:
            changed[at:at] = changed[at : at + rng.randrange(1, 64)]
        else:
            digits = [i for i, byte in enumerate(changed[:4000]) if chr(byte).isdigit()]
            at = rng.choice(digits) if digits and rng.random() < 0.7 else at
            changed[at : at + rng.randrange(3)] = rng.choice(WORDS)
    return bytes(changed)


def attempt(path: Path) -> str:
    """Open a volume and read two slices of it; what is wrong with how that ends."""
    try:
        volume = open_volume(path)
        volume.read(0)
        volume.read(volume.shape[0] - 1)
        assert volume.shape[0] > 0
    except KDUNetError as error:
        message = str(error)
        if len(message) >= 300 or not message.isprintable():
            return f"message of {len(message)}: {message!r}"
    except Exception as error:  # noqa: BLE001 - which is what must not happen
        return f"{type(error).__name__}: {error}"
    return ""


def peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def faults_of(kind: str, count: int, folder: Path) -> list[tuple[str, int, str]]:
    """What was wrong with how `count` damaged files were met, by format and seed."""
    path, files = make(kind, folder)
    attempt(path)
    sound, faults, before = {file: file.read_bytes() for file in set(files)}, [], peak()
    for seed in range(count):
        rng = random.Random(seed)
        file = rng.choice(files)
        file.write_bytes(damage(sound[file], rng))
        (folder / "seed").write_text(f"{kind} {seed}")
        signal.alarm(20)  # what hangs ends the process, and the seed is known
        started = time.process_time()
        wrong = attempt(path)
        seconds, memory = time.process_time() - started, peak()
        signal.alarm(0)
        if seconds > SECONDS:
            wrong += f" took {seconds:.1f} s"
        if memory - before > MEGABYTES:
            wrong += f" took {memory - before:.0f} MB"
        before = memory
        if wrong:
            faults.append((kind, seed, wrong[:400]))
        file.write_bytes(sound[file])
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()
    return faults


if __name__ == "__main__":
    warnings.simplefilter("error")
    logging.disable()
    kinds, number, where = sys.argv[1].split(","), int(sys.argv[2]), Path(sys.argv[3])
    print(json.dumps([fault for kind in kinds for fault in faults_of(kind, number, where)]))
