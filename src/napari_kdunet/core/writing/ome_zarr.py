"""OME-Zarr, https://ngff.openmicroscopy.org/: a pyramid of in-plane scale levels, written slice by slice."""

from __future__ import annotations

import json
import math
import uuid
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import zarr
from numpy.typing import NDArray

from napari_kdunet.core.writing.spec import OutputSpec, WriteSlice

__all__ = ["Levels", "find_foreign", "incomplete_slices", "zarr_writer"]

_CHUNK_SIDE = 1024  # pixels; the first level that is no larger is the last
_STRIP_ROWS = 128
_LEVEL = 1  # of Zstandard: the next higher ones take half as long again, and save next to nothing
_FOREGROUND = [86, 180, 233, 255]  # RGBA of the label 1
_METADATA_FILES = {2: {".zgroup", ".zarray", ".zattrs"}, 3: {"zarr.json"}}  # by the version of Zarr
_ATTRIBUTES = {"ome", "multiscales", "image-label", "napari_kdunet"}


@contextmanager
def zarr_writer(path: Path, spec: OutputSpec, resumed: bool = False) -> Iterator[WriteSlice]:
    """Write a new OME-Zarr, or continue the one at `path` if `resumed`; slices may come in any order.

    Each level has half the rows and columns of the one before, down to a chunk of 1024 x 1024 pixels. Its pixels are
    means of 2 x 2 pixels, or for labels every second pixel.
    """
    group = zarr.open_group(path, mode="r+") if resumed else _create(path, spec)
    levels = Levels(path)

    def write(z: int, pixels: NDArray[Any] | None) -> None:
        if pixels is not None:
            levels.write(z, pixels)

    yield write
    group.attrs["napari_kdunet"] = spec.full_metadata or {}  # always written: it tells our Zarrs from others


class Levels:
    """The arrays of an OME-Zarr that `zarr_writer` has made, to write slices to.

    Chunks are compressed and written here, as three quarters of the time that zarr takes for a mask's are overhead.

    Parameters
    ----------
    path : Path
        The OME-Zarr.
    """

    def __init__(self, path: Path) -> None:
        image, self._nearest = _metadata(path)
        self._levels: list[tuple[Path, Any]] = []
        for dataset in image["multiscales"][0]["datasets"]:
            array: Any = zarr.open_array(path / dataset["path"], mode="r")
            self._levels.append((_chunk_folder(path / dataset["path"], array), array))

    def write(self, z: int, pixels: NDArray[Any]) -> None:
        """Write slice `z`, shape (Y, X), to all levels.

        All chunks are written, those of zeros too: a missing chunk means that a slice has been lost.
        """
        for i, (folder, array) in enumerate(self._levels):
            pixels = _halved(pixels, self._nearest) if i else pixels
            _, height, width = array.chunks
            for top, left in product(range(0, len(pixels), height), range(0, pixels.shape[1], width)):
                part = pixels[top : top + height, left : left + width]
                if part.shape != (height, width):  # at the borders; a chunk is always stored whole
                    part = np.pad(part, ((0, height - part.shape[0]), (0, width - part.shape[1])))
                _write_chunk(folder / f"{z}/{top // height}/{left // width}", part.astype(array.dtype, copy=False))


def _chunk_folder(folder: Path, array: Any) -> Path:
    """Return the folder of an array's chunks, in which a chunk is at Z/Y/X."""
    return folder / "c" if array.metadata.zarr_format == 3 else folder


def _write_chunk(path: Path, pixels: NDArray[Any]) -> None:
    """Compress and write a chunk, under a temporary name until whole; `ProgressRecord.finish` removes leftovers."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(f".{uuid.uuid4().hex}.partial")  # as zarr does
    try:
        temporary.write_bytes(imagecodecs.zstd_encode(pixels.tobytes(), level=_LEVEL))
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise


def _metadata(path: Path) -> tuple[dict[str, Any], bool]:
    """Return the OME metadata of an OME-Zarr, and whether it holds labels."""
    attributes: Any = zarr.open_group(path, mode="r").attrs.asdict()
    image = attributes.get("ome", attributes)
    return image, "image-label" in image


def _halved(pixels: NDArray[Any], nearest: bool) -> NDArray[Any]:
    """Return every second pixel, or means of 2 x 2; the last row or column of an odd number counts twice."""
    if nearest or pixels.dtype == bool:
        return pixels[::2, ::2]
    half = np.empty([-(-n // 2) for n in pixels.shape], pixels.dtype)
    for top in range(0, len(half), _STRIP_ROWS):  # a strip at a time, as means take more memory than pixels
        strip = half[top : top + _STRIP_ROWS]
        rows = pixels[2 * top : 2 * (top + len(strip))]
        even = np.pad(rows, [(0, n % 2) for n in rows.shape], mode="edge")
        means = even.reshape(len(strip), 2, -1, 2).mean((1, 3), dtype=np.float64)
        strip[...] = means if pixels.dtype.kind == "f" else np.rint(means)
    return half


def _shapes(spec: OutputSpec) -> list[tuple[int, ...]]:
    shapes = [spec.shape]
    while max(shapes[-1][1:]) > _CHUNK_SIDE:
        depth, height, width = shapes[-1]
        shapes.append((depth, -(-height // 2), -(-width // 2)))
    return shapes


def _create(path: Path, spec: OutputSpec) -> zarr.Group:
    old = spec.ome_version == "0.4"
    shapes = _shapes(spec)
    unit = {} if spec.voxel_size is None else {"unit": "nanometer"}
    image: dict[str, Any] = {
        "name": spec.name,
        "axes": [{"name": axis, "type": "space", **unit} for axis in "zyx"],
        "datasets": [
            {"path": str(i), "coordinateTransformations": _transformations(spec, i)} for i in range(len(shapes))
        ],
        "type": "nearest" if spec.labels else "mean",
    }
    label = {"colors": [{"label-value": 1, "rgba": _FOREGROUND}]}
    version = {"version": spec.ome_version}
    if old:
        attributes: dict[str, Any] = {"multiscales": [image | version]}
        attributes |= {"image-label": label | version} if spec.labels else {}
    else:
        attributes = {"ome": {**version, "multiscales": [image], **({"image-label": label} if spec.labels else {})}}
    group = zarr.open_group(path, mode="w", zarr_format=2 if old else 3)
    group.attrs.update(attributes)
    how: dict[str, Any] = {
        "compressors": {"id": "zstd", "level": _LEVEL}
        if old
        else {"name": "zstd", "configuration": {"level": _LEVEL, "checksum": False}},
        **({"chunk_key_encoding": {"name": "v2", "separator": "/"}} if old else {"dimension_names": list("zyx")}),
    }
    for i, shape in enumerate(shapes):
        chunks = (1, min(shape[1], _CHUNK_SIDE), min(shape[2], _CHUNK_SIDE))
        group.create_array(str(i), shape=shape, dtype=spec.dtype, chunks=chunks, **how)
    return group


def _transformations(spec: OutputSpec, level: int) -> list[dict[str, Any]]:
    """Return the pixel size, and the centre of the first pixel: a mean lies between the pixels that it is taken of."""
    z, y, x = (float(size) for size in spec.voxel_size or (1, 1, 1))
    factor = 2**level
    transformations: list[dict[str, Any]] = [{"type": "scale", "scale": [z, y * factor, x * factor]}]
    if level and not spec.labels:
        shift = (factor - 1) / 2
        transformations.append({"type": "translation", "translation": [0.0, y * shift, x * shift]})
    return transformations


def incomplete_slices(path: Path, skipped: list[int]) -> list[int]:
    """Return the slices of which a chunk is missing at any level, except those in `skipped`."""
    image, _ = _metadata(path)
    missing = set[int]()
    for dataset in image["multiscales"][0]["datasets"]:
        folder = path / dataset["path"]
        array: Any = zarr.open_array(folder, mode="r")
        count = math.prod(-(-n // side) for n, side in zip(array.shape[1:], array.chunks[1:], strict=True))
        chunks = _chunk_folder(folder, array)
        missing |= {z for z in range(array.shape[0]) if sum(1 for _ in (chunks / str(z)).glob("*/[0-9]*")) < count}
    return sorted(missing - set(skipped))


def find_foreign(path: Path) -> str | None:
    """Return something in a Zarr that `zarr_writer` has not written, relative to `path`; None if it is all ours."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it warns of metadata of two versions
            attributes: Any = zarr.open_group(path, mode="r").attrs.asdict()
        datasets = [str(d["path"]) for d in attributes.get("ome", attributes)["multiscales"][0]["datasets"]]
    except (OSError, ValueError, TypeError, LookupError, AttributeError):
        datasets = []
    else:
        if "napari_kdunet" not in attributes:
            return datasets[0] if datasets else "."
        inside = attributes.get("ome", {})
        if foreign := (attributes.keys() - _ATTRIBUTES) | (inside.keys() - _ATTRIBUTES - {"version"}):
            return f"attribute {json.dumps(min(foreign))}"
    kept = _METADATA_FILES[3 if (path / "zarr.json").exists() else 2]
    for entry in sorted(path.iterdir()):
        if entry.name in datasets and entry.is_dir() and not entry.is_symlink():
            foreign_chunk = _foreign_chunk(entry, kept)
            if foreign_chunk is not None:
                return foreign_chunk
        elif entry.name not in kept or not _is_plain_file(entry):
            return entry.name
    return None if datasets else "."


def _foreign_chunk(folder: Path, kept: set[str]) -> str | None:
    """Return something in an array's folder that is neither its metadata nor one of its chunks, e.g. an attribute."""
    array: Any = zarr.open_array(folder, mode="r")
    if attributes := array.attrs.asdict():
        return f"attribute {json.dumps(min(attributes))} of {folder.name}"
    grid = [-(-n // side) for n, side in zip(array.shape, array.chunks, strict=True)]
    for entry in folder.rglob("*"):
        parts = entry.relative_to(folder).parts
        if len(parts) == 1 and parts[0] in kept and _is_plain_file(entry):
            continue
        at = (parts[1:] if parts[0] == "c" else ()) if "zarr.json" in kept else parts
        in_grid = len(at) <= len(grid) and all(i.isdecimal() and int(i[:9]) < n for i, n in zip(at, grid, strict=False))
        whole = _is_plain_file(entry) if len(at) == len(grid) else entry.is_dir() and not entry.is_symlink()
        if not in_grid or not whole or (parts[0] == "c") != ("zarr.json" in kept):
            return str(Path(folder.name, *parts))
    return None


def _is_plain_file(path: Path) -> bool:
    return path.is_file() and not path.is_symlink()
