"""NumPy's .npy files, read by position."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np

from napari_kdunet.core.errors import VolumeError
from napari_kdunet.core.reading.axes import Selection, Stored, check_level
from napari_kdunet.core.reading.sources import LazyArray, RawArray

__all__ = ["open_npy"]

_MAGIC = b"\x93NUMPY"  # with which the format begins


def open_npy(path: Path, selection: Selection, name: str) -> Stored:
    """Open a ``.npy`` file; object arrays, which would run code, are refused by NumPy."""
    check_level(selection.level, 1, name)
    with path.open("rb") as file:
        if file.read(len(_MAGIC)) != _MAGIC:
            raise VolumeError(f"{name} is no NumPy file, whatever its ending says: give it the ending of its format")
    mapped = np.load(path, mmap_mode="r")
    if mapped.ndim < 2 or not mapped.flags.c_contiguous:
        return Stored(LazyArray(partial(np.load, path, mmap_mode="r")))
    return Stored(RawArray(path, mapped.shape, mapped.dtype, mapped.offset, name))
