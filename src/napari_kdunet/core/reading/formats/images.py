"""PNG and JPEG: images of one slice, as grey values."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageFile, ImageOps, JpegImagePlugin, PngImagePlugin

from napari_kdunet.core.errors import VolumeError
from napari_kdunet.core.reading.axes import Selection, Stored, check_level
from napari_kdunet.core.reading.sources import PagedArray, check_block

__all__ = ["open_image"]

# opened by their plugins, as Image.open refuses the large slices of microscopy as "decompression bombs"
_PLUGINS: dict[str, type[ImageFile.ImageFile]] = {
    ".png": PngImagePlugin.PngImageFile,
    ".jpg": JpegImagePlugin.JpegImageFile,
    ".jpeg": JpegImagePlugin.JpegImageFile,
}
_ORIENTATION = 274  # tag of EXIF
_TURNED = range(5, 9)  # orientations that include a quarter turn


def open_image(path: Path, selection: Selection, name: str) -> Stored:
    """Open a PNG or JPEG as one slice; `selection.channel` chooses a colour.

    Raises
    ------
    VolumeError
        It is in colour and no channel is chosen, or its header declares more than its file can hold.
    """
    check_level(selection.level, 1, name)
    with _open(path) as image:
        width, height = image.size
        colours = _is_colour(image)
        dtype = np.asarray(Image.new("L" if image.mode == "P" else image.mode, (1, 1))).dtype
        samples = 3 if image.mode == "P" else len(image.getbands())
        check_block(width * height * samples * dtype.itemsize, path.stat().st_size, name, "pixels")
        if colours and selection.channel is None:
            raise VolumeError(f"{name} is a colour image ({image.mode}): convert it to greyscale, or choose a channel")
        turned = _orientation(image) > 1
        if _orientation(image) in _TURNED:
            width, height = height, width
    shape, axes = ((height, width, samples), "yxc") if colours else ((height, width), "yx")
    array = PagedArray(partial(_load, path, colours, turned), (), shape, dtype)
    return Stored(array, axes)


def _open(path: Path) -> ImageFile.ImageFile:
    with path.open("rb") as file:
        if not file.read(1):
            raise VolumeError(f"{path} is empty: it has no bytes")
    return _PLUGINS[path.suffix.lower()](path)


def _is_colour(image: Image.Image) -> bool:
    """Whether an image has more than grey values; for an indexed one, whether its palette has."""
    if image.mode != "P":
        return len(image.getbands()) > 1
    palette = image.palette.getdata()[1] if image.palette else b""
    channels = len(image.palette.mode) if image.palette else 3
    values = np.frombuffer(palette, np.uint8)
    colours = values[: len(values) // channels * channels].reshape(-1, channels)[:, :3]
    return not bool((colours == colours[:, :1]).all())


def _orientation(image: Image.Image) -> int:
    """Return the orientation by the EXIF before the pixels; a PNG may have it after them, where viewers do not look."""
    value = image.getexif().get(_ORIENTATION, 1) if image.info.get("exif") else 1
    return value if isinstance(value, int) else 1


def _load(path: Path, colours: bool, turned: bool, index: int) -> np.ndarray[Any, Any]:
    with _open(path) as image:
        image.load()
        upright = ImageOps.exif_transpose(image) if turned else image
        return np.asarray(upright.convert("RGB" if colours else "L") if upright.mode == "P" else upright)
