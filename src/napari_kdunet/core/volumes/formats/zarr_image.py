"""Zarr arrays, and images of OME-Zarr 0.4 and 0.5."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from zarr.storage import LocalStore

from napari_kdunet.core.errors import VolumeError
from napari_kdunet.core.volumes.sources import (
    AxesView,
    LazyArray,
    Opened,
    check_level,
    complete_voxel_size,
    nanometres,
    open_array,
)

__all__ = ["is_zarr", "open_zarr", "open_zarr_group"]


def is_zarr(path: Path) -> bool:
    """Whether a folder is a Zarr array or group."""
    return any((path / entry).exists() for entry in ("zarr.json", ".zarray", ".zgroup"))


def open_zarr(path: Path, level: int, name: str) -> Opened:
    """Open a folder that is a Zarr array, or a group that is an OME-Zarr image."""
    stored = zarr.open(path, mode="r")
    if isinstance(stored, zarr.Group):
        return open_zarr_group(stored, level, name)
    return open_array(_reopened(stored), level, name)


def open_zarr_group(group: zarr.Group, level: int, name: str) -> Opened:
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
    return Opened(AxesView(_reopened(array), letters), complete_voxel_size(size.get("z"), size["y"], size["x"]))


def _reopened(array: Any) -> Any:
    """A Zarr array of a folder, opened again in another process: there, chunks of a missing folder would read as 0."""
    if isinstance(array, zarr.Array) and isinstance(array.store, LocalStore):
        return LazyArray(partial(zarr.open_array, array.store.root.absolute() / array.path, mode="r"))
    return array
