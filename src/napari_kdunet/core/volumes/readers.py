"""Open anything that holds a volume: arrays, NumPy files, Zarr, OME-Zarr, folders of slices, and TIFF by `tiff`."""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from PIL import Image, PngImagePlugin
from zarr.storage import LocalStore

from napari_kdunet.core.errors import VolumeError
from napari_kdunet.core.volumes.sources import (
    Axes,
    Lazy,
    Opened,
    Pages,
    check_level,
    complete_voxel_size,
    nanometres,
    one_line,
)
from napari_kdunet.core.volumes.tiff import TIFF_SUFFIXES, open_tiff

__all__ = ["is_zarr", "name_of", "open_source"]


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
        return _open_group(source, level, name)
    if all(hasattr(source, attribute) for attribute in ("shape", "dtype", "__getitem__")):
        return _open_array(source, level, name)
    raise VolumeError(f"cannot open a {type(source).__name__} as a volume: give a path or an array")


def name_of(source: Any) -> str:
    """Name of a source for messages: its path, or what it is."""
    if isinstance(source, (str, Path)):
        return str(source)
    return str(source.store_path) if isinstance(source, zarr.Group) else f"the {type(source).__name__} array"


def is_zarr(path: Path) -> bool:
    """Tell whether a folder is a Zarr array or group."""
    return any((path / entry).exists() for entry in ("zarr.json", ".zarray", ".zgroup"))


def _open_path(path: Path, level: int, name: str) -> Opened:
    if not path.exists():
        raise VolumeError(f"no such file or folder: {name}")
    suffix = path.suffix.lower()
    if path.is_dir() and is_zarr(path):
        stored = zarr.open(path, mode="r")
        return _open_group(stored, level, name) if isinstance(stored, zarr.Group) else _open_array(stored, level, name)
    if path.is_dir() or suffix == ".png":
        return _open_slices(path, level, name)
    if suffix in TIFF_SUFFIXES:
        return open_tiff(path, level, name)
    if suffix == ".npy":
        return _open_array(Lazy(partial(np.load, path, mmap_mode="r")), level, name)
    raise VolumeError(f"{name} has an unknown ending: give .tif, .tiff, .npy, .png, a Zarr or a folder of slices")


def _open_array(array: Any, level: int, name: str) -> Opened:
    check_level(level, 1, name)
    if len(array.shape) not in (2, 3):
        raise VolumeError(f"{name} has {len(array.shape)} axes, shape {tuple(array.shape)}: give ZYX or YX")
    try:
        return Opened(Axes(_anew(array), "zyx"[-len(array.shape) :]))
    except TypeError:
        raise VolumeError(f"{name} has dtype {array.dtype}: convert it to a NumPy array") from None


def _open_group(group: zarr.Group, level: int, name: str) -> Opened:
    """Open an image of OME-Zarr 0.4 or 0.5 (or older), https://ngff.openmicroscopy.org/0.5/."""
    attributes: Any = group.attrs.asdict()
    scales = attributes.get("ome", attributes).get("multiscales")
    if not scales:
        inside = ", ".join(sorted(group.keys())[:9]) or "nothing"
        raise VolumeError(f"{name} is a Zarr group without an OME image: give the path of an array in it ({inside})")
    datasets = scales[0]["datasets"]
    check_level(level, len(datasets), name)
    array: Any = group[datasets[level]["path"]]
    axes = [axis if isinstance(axis, dict) else {"name": axis} for axis in scales[0].get("axes") or "tczyx"]
    kinds = {"time": "t", "channel": "c"}
    letters = "".join(kinds.get(str(axis.get("type")), str(axis["name"]).lower()[:1]) for axis in axes)
    for letter, length in zip(letters, array.shape, strict=True):
        if letter not in "zyx" and length != 1:
            raise VolumeError(f"{name} has {length} along axis {letter}: give one of them as a ZYX array")
    if "".join(letter for letter in letters if letter in "zyx") not in ("zyx", "yx"):
        raise VolumeError(f"{name} has axes {letters}: give a volume with axes z, y, x in this order")
    scale = np.ones(len(axes))
    for transform in datasets[level].get("coordinateTransformations", []) + scales[0].get(
        "coordinateTransformations", []
    ):
        if transform["type"] == "scale":
            scale = scale * transform["scale"]
    size = {letter: nanometres(n, axis.get("unit")) for letter, n, axis in zip(letters, scale, axes, strict=True)}
    return Opened(Axes(_anew(array), letters), complete_voxel_size(size.get("z"), size["y"], size["x"]))


def _anew(array: Any) -> Any:
    """A Zarr array of a folder so that another process opens it anew: chunks of one not there would read as 0."""
    if isinstance(array, zarr.Array) and isinstance(array.store, LocalStore):
        return Lazy(partial(zarr.open_array, array.store.root.absolute() / array.path, mode="r"))
    return array


def _open_slices(path: Path, level: int, name: str) -> Opened:
    """Open a folder of TIFF or PNG slices, or one PNG."""
    check_level(level, 1, name)
    files = [path] if path.is_file() else [file for file in path.iterdir() if not file.name.startswith(".")]
    files = [file for file in files if file.suffix.lower() in (*TIFF_SUFFIXES, ".png")]
    files.sort(
        key=lambda file: [int(part) if part.isdigit() else part.lower() for part in re.split(r"(\d+)", file.name)]
    )
    if not files:
        raise VolumeError(f"{name} is empty: there is no .tif or .png slice in this folder")
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
    return Opened(Pages(partial(_load_slice, files), (len(files), *first.shape[1:]), first.dtype), voxel_size)


def _open_slice(path: Path) -> Opened:
    return _open_png(path) if path.suffix.lower() == ".png" else open_tiff(path, 0, str(path))


def _load_slice(files: list[Path], z: int) -> np.ndarray[Any, Any]:
    """Read a slice whole; where that fails, say which file it is."""
    try:
        return np.array(_open_slice(files[z]).source[0, slice(None), slice(None)])
    except Exception as error:
        raise VolumeError(f"{files[z]}: {one_line(error)}") from error


def _open_png(path: Path) -> Opened:
    # opened by its plugin, as Image.open refuses the large slices of microscopy as "decompression bombs"
    with PngImagePlugin.PngImageFile(path) as image:
        pixel = np.asarray(Image.new(image.mode, (1, 1)))
        if pixel.ndim != 2:
            raise VolumeError(f"{path} is a colour image ({image.mode}): convert it to greyscale")
        return Opened(Pages(partial(_load_png, path), (1, image.height, image.width), pixel.dtype))


def _load_png(path: Path, z: int) -> np.ndarray[Any, Any]:
    with PngImagePlugin.PngImageFile(path) as image:
        return np.asarray(image)
