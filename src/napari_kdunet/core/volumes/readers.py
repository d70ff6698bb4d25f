"""The table of readers, by the ending of a path, and how a source finds its reader."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import zarr

from napari_kdunet.core.errors import VolumeError
from napari_kdunet.core.volumes.formats.slices import SLICE_READERS, open_folder
from napari_kdunet.core.volumes.formats.zarr_image import is_zarr, open_zarr, open_zarr_group
from napari_kdunet.core.volumes.sources import LazyArray, Opened, open_array

__all__ = ["READERS", "name_of", "open_source"]

Reader: TypeAlias = Callable[[Path, int, str], Opened]


def _open_npy(path: Path, level: int, name: str) -> Opened:
    return open_array(LazyArray(partial(np.load, path, mmap_mode="r")), level, name)


READERS: dict[str, Reader] = {
    **SLICE_READERS,
    ".npy": _open_npy,
}
"""What opens a file, by its ending: a function of the path, the scale level and the name for messages."""


def open_source(source: Any, level: int, name: str) -> Opened:
    """Open a path, a Zarr group or an array; `name` is for messages.

    Raises
    ------
    VolumeError
        The source is of no kind that is known, or not a volume. A damaged one raises whatever its library raises.
    """
    if isinstance(source, (str, Path)):
        return _open_path(Path(source).absolute(), level, name)  # another process may be elsewhere
    if isinstance(source, zarr.Group):
        return open_zarr_group(source, level, name)
    if all(hasattr(source, attribute) for attribute in ("shape", "dtype", "__getitem__")):
        return open_array(source, level, name)
    raise VolumeError(f"cannot open a {type(source).__name__} as a volume: give a path or an array")


def name_of(source: Any) -> str:
    """Name of a source for messages: its path, or what it is."""
    if isinstance(source, (str, Path)):
        return str(source)
    return str(source.store_path) if isinstance(source, zarr.Group) else f"the {type(source).__name__} array"


def _open_path(path: Path, level: int, name: str) -> Opened:
    if not path.exists():
        raise VolumeError(f"no such file or folder: {name}")
    if path.is_dir():
        return open_zarr(path, level, name) if is_zarr(path) else open_folder(path, level, name)
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        endings = ", ".join(sorted(READERS))
        raise VolumeError(f"{name} has an unknown ending: give {endings}, a Zarr or a folder of slices")
    return reader(path, level, name)
