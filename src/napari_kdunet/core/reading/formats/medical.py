"""NRRD (by pynrrd) and NIfTI (by nibabel): axes X, Y, Z from the fastest on, and sizes with their units."""

from __future__ import annotations

import bz2
import gzip
import math
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from napari_kdunet.core.errors import VolumeError
from napari_kdunet.core.reading.axes import Selection, Stored, axis_letters, check_level
from napari_kdunet.core.reading.sources import LazyArray, RawArray, check_block, check_part
from napari_kdunet.core.reading.voxel_size import Sizes, read_metadata

__all__ = ["nrrd_parts", "open_nifti", "open_nrrd"]

_MOST_SKIPPED = 2**26  # bytes, e.g. of a header of another format, which must be decompressed first


def open_nrrd(path: Path, selection: Selection, name: str) -> Stored:
    """Open an NRRD, attached or detached: raw pixels are read by position, compressed ones are loaded whole."""
    import nrrd

    check_level(selection.level, 1, name)
    with path.open("rb") as file:
        header = nrrd.read_header(file)
        offset = file.tell()
    detached = header.get("data file", header.get("datafile"))
    data = path
    if detached is not None:
        if "%" in detached or detached.upper().startswith("LIST"):
            raise VolumeError(f"{name} is spread over several files: save it as one file")
        data, offset = check_part(path, detached, name), 0
    shape, dtype = tuple(int(n) for n in reversed(header["sizes"])), _nrrd_dtype(header)
    nbytes = math.prod(shape) * dtype.itemsize
    skip = int(header.get("byte skip", header.get("byteskip", 0)))
    if int(header.get("line skip", header.get("lineskip", 0))):
        raise VolumeError(f"{name} skips lines of text before its data: save it without them")
    if header["encoding"] != "raw" and skip > _MOST_SKIPPED:
        raise VolumeError(f"{name} skips {skip:,} bytes before its data: save it without them")
    array: Any
    if header["encoding"] == "raw":
        array = RawArray(data, shape, dtype, data.stat().st_size - nbytes if skip == -1 else offset + skip, name)
    else:
        check_block(nbytes, data.stat().st_size, name, "pixels")
        array = LazyArray(partial(_load_nrrd, data, offset, header["encoding"], max(skip, 0), shape, dtype))
    axes = "" if selection.axes else _nrrd_axes(header, len(shape), name)
    return Stored(array, axes, *read_metadata(lambda: _nrrd_sizes(header, len(shape)), "space directions"))


def nrrd_parts(path: Path) -> set[str]:
    """Return the name of the other file that an NRRD takes its pixels from, if any."""
    import nrrd

    with path.open("rb") as file:
        header = nrrd.read_header(file)
    named = header.get("data file", header.get("datafile"))
    return set() if named is None else {str(named)}


def _nrrd_dtype(header: Any) -> np.dtype[Any]:
    """Return the dtype of an NRRD's type, which may have several names: uchar, unsigned char, uint8, uint8_t."""
    words = str(header["type"]).replace("_t", "").replace("unsigned ", "u").replace("signed ", "").replace(" ", "")
    names = {"float": "f4", "double": "f8"}
    sizes = {"char": 1, "int8": 1, "short": 2, "shortint": 2, "int16": 2, "int": 4, "int32": 4}
    sizes |= {"longlong": 8, "longlongint": 8, "int64": 8}
    kind = names.get(words) or ("u" if words.startswith("u") else "i") + str(sizes[words.removeprefix("u")])
    return np.dtype((">" if header.get("endian") == "big" else "<") + kind)


def _load_nrrd(
    path: Path, offset: int, encoding: str, skip: int, shape: tuple[int, ...], dtype: np.dtype[Any]
) -> np.ndarray[Any, Any]:
    """Decode pixels, and no more of them than the header declares."""
    count = math.prod(shape)
    with path.open("rb") as file:
        file.seek(offset)
        if encoding.lower() in ("ascii", "text", "txt"):
            pixels = np.fromfile(file, dtype, count, sep=" ")
        else:
            stream = bz2.BZ2File(file) if encoding.lower() in ("bzip2", "bz2") else gzip.GzipFile(fileobj=file)
            stream.seek(skip)
            pixels = np.frombuffer(stream.read(count * dtype.itemsize), dtype)
    return pixels.reshape(shape)


def _nrrd_axes(header: Any, ndim: int, name: str) -> str:
    """Return the axes in NumPy's order: by their labels, else X, Y, Z from the fastest on, others by their kind."""
    labels = header.get("labels")
    if labels is not None and (letters := axis_letters(labels, name)):
        return letters[::-1]
    kinds = [str(kind).lower() for kind in header.get("kinds", ["domain"] * ndim)]
    spatial = iter("xyz")
    letters = "".join(
        next(spatial, "?") if kind in ("domain", "space", "none", "???") else {"time": "t"}.get(kind, "c")
        for kind in kinds
    )
    return letters[::-1]


def _nrrd_sizes(header: Any, ndim: int) -> Sizes:
    """Return sizes by the space directions, whose lengths are in space units, or by spacings."""
    axes = _nrrd_axes(header, ndim, "it")[::-1]
    directions = header.get("space directions")
    if directions is not None:
        lengths = [0.0 if row is None else float(np.linalg.norm(row)) for row in directions]
        units = iter(header.get("space units") or [])
        unit_of = {axis: next(units, None) for axis in axes if axis in "xyz"}
        return {a: (n, unit_of[a]) for a, n in zip(axes, lengths, strict=True) if n > 0 and a in "xyz"}
    spacings, own = header.get("spacings"), header.get("units") or [None] * ndim
    if spacings is None:
        return {}
    return {a: (float(n), unit) for a, n, unit in zip(axes, spacings, own, strict=True) if a in "xyz"}


def open_nifti(path: Path, selection: Selection, name: str) -> Stored:
    """Open a NIfTI: one that is neither compressed nor scaled is read by position, all else is loaded whole."""
    import nibabel

    check_level(selection.level, 1, name)
    image: Any = nibabel.load(path)
    header, shape = image.header, tuple(int(n) for n in image.shape)
    dtype = header.get_data_dtype()
    if path.name.lower().endswith(".gz"):
        check_block(math.prod(shape) * dtype.itemsize, path.stat().st_size, name, "pixels")
    axes = "xyztc"[: len(shape)][::-1]
    if path.name.lower().endswith(".gz") or _is_scaled(image.dataobj):
        array: Any = LazyArray(partial(_load_nifti, path))
    else:
        array = RawArray(path, shape[::-1], dtype, image.dataobj.offset, name)
    return Stored(array, axes, *read_metadata(lambda: _nifti_sizes(header), "units"))


def _is_scaled(proxy: Any) -> bool:
    return bool(proxy.slope not in (0, 1) or proxy.inter != 0)


def _nifti_sizes(header: Any) -> Sizes:
    unit = {"mm": "mm", "micron": "µm", "meter": "m"}.get(header.get_xyzt_units()[0])
    return {axis: (float(size), unit) for axis, size in zip("xyz", header.get_zooms(), strict=False)}


def _load_nifti(path: Path) -> Any:
    import nibabel

    image: Any = nibabel.load(path)
    proxy = image.dataobj
    return np.asarray(proxy if _is_scaled(proxy) else proxy.get_unscaled()).T
