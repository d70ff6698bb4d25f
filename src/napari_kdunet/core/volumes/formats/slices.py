"""Folders of slices, one file each, and images of a single slice."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, PngImagePlugin

from napari_kdunet.core.errors import VolumeError
from napari_kdunet.core.volumes.formats.tiff import TIFF_ENDINGS, open_tiff
from napari_kdunet.core.volumes.sources import Opened, SliceStack, check_level, one_line

__all__ = ["SLICE_READERS", "open_folder"]


def open_folder(path: Path, level: int, name: str) -> Opened:
    """Open a folder in which every file is one slice, in natural order of their names."""
    check_level(level, 1, name)
    files = [f for f in path.iterdir() if f.suffix.lower() in SLICE_READERS and not f.name.startswith(".")]
    files.sort(
        key=lambda file: [int(part) if part.isdigit() else part.lower() for part in re.split(r"(\d+)", file.name)]
    )
    if not files:
        raise VolumeError(f"{name} is empty: there is no slice ({', '.join(SLICE_READERS)}) in this folder")
    first, voxel_size = _open_slice(files[0])
    for file in files:
        slice_ = _open_slice(file).source
        if slice_.shape[0] != 1:
            raise VolumeError(f"{file} holds {slice_.shape[0]} slices: in a folder every file is one slice")
        if (slice_.shape, slice_.dtype) != (first.shape, first.dtype):
            raise VolumeError(
                f"{file} has shape {slice_.shape[1:]} and dtype {slice_.dtype}, but {files[0].name} has "
                f"{first.shape[1:]} and {first.dtype}: the slices of a folder must agree"
            )
    return Opened(SliceStack(partial(_load_slice, files), (len(files), *first.shape[1:]), first.dtype), voxel_size)


def open_png(path: Path, level: int, name: str) -> Opened:
    """Open a PNG as one slice."""
    check_level(level, 1, name)
    # opened by its plugin, as Image.open refuses the large slices of microscopy as "decompression bombs"
    with PngImagePlugin.PngImageFile(path) as image:
        pixel = np.asarray(Image.new(image.mode, (1, 1)))
        if pixel.ndim != 2:
            raise VolumeError(f"{name} is a colour image ({image.mode}): convert it to greyscale")
        return Opened(SliceStack(partial(_load_png, path), (1, image.height, image.width), pixel.dtype))


SLICE_READERS: dict[str, Callable[[Path, int, str], Opened]] = {
    ".png": open_png,
    **dict.fromkeys(TIFF_ENDINGS, open_tiff),
}
"""What opens a slice of a folder, by its ending."""


def _open_slice(path: Path) -> Opened:
    return SLICE_READERS[path.suffix.lower()](path, 0, str(path))


def _load_slice(files: list[Path], z: int) -> np.ndarray[Any, Any]:
    """Read a whole slice; an error names its file."""
    try:
        return np.array(_open_slice(files[z]).source[0, slice(None), slice(None)])
    except Exception as error:
        raise VolumeError(f"{files[z]}: {one_line(error)}") from error


def _load_png(path: Path, z: int) -> np.ndarray[Any, Any]:
    with PngImagePlugin.PngImageFile(path) as image:
        return np.asarray(image)
