"""Writer for napari: masks and other labels as TIFF or OME-Zarr, with their pixel size."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from napari.utils.notifications import show_warning

from napari_kdunet import core
from napari_kdunet.widgets.shared.layers import RESULT, stretch_of_grid, voxel_size_of_grid

__all__ = ["write_labels"]

_SMALL = (np.uint8, np.uint16, np.uint32)


def write_labels(path: str, data: Any, attributes: dict[str, Any]) -> list[str]:
    """Write a labels layer, for napari; a file of that name is replaced when the new one is complete.

    Parameters
    ----------
    path : str
        Path that ends in ``.tif``, ``.tiff`` or ``.zarr``.
    data : array
        Labels, ZYX or YX, possibly lazy; of a pyramid the finest level is written. They are stored in the smallest
        unsigned type that holds them.
    attributes : dict
        Attributes of the layer: ``scale`` and ``units``, which give the voxel size, ``name`` and ``metadata``. The file
        does not hold the position of the layer; if it is not at the origin, a warning says so.

    Returns
    -------
    list of str
        The path.

    Raises
    ------
    VolumeError, OutputError
        If the layer is no volume, or the file cannot be written.
    """
    if attributes.get("multiscale"):
        data = data[0]
    volume = core.open_volume(data, name=attributes.get("name"))
    scale = np.asarray(attributes["scale"], float)
    whole = np.eye(len(scale) + 1)
    stretch = stretch_of_grid(attributes.get("rotate", whole[1:, 1:]), attributes.get("affine", whole))
    size = voxel_size_of_grid(scale * stretch, attributes["units"])
    result = attributes.get("metadata", {}).get(RESULT)
    metadata = None if result is None else result.about
    core.write_volume(
        volume, path, dtype=_smallest(volume), voxel_size=size, metadata=metadata, labels=True, overwrite=True
    )
    if _is_moved(attributes):
        show_warning(
            f"{Path(path).name} does not store the position of the layer: it will open at the origin, without rotation."
        )
    return [path]


def _is_moved(attributes: dict[str, Any]) -> bool:
    """Return whether a layer lies elsewhere than at the origin, or is rotated or sheared."""
    still: dict[str, Any] = {"translate": 0.0, "shear": 0.0, "rotate": np.eye(len(attributes["scale"]))}
    affine = attributes.get("affine")
    turned = any(not np.allclose(attributes.get(name, rest), rest) for name, rest in still.items())
    return turned or (affine is not None and not np.allclose(affine, np.eye(len(affine))))


def _smallest(volume: core.Volume) -> np.dtype[Any]:
    """Return the smallest unsigned type that holds all labels, or the type of the volume if there is none."""
    if volume.dtype.itemsize == 1 or volume.dtype.kind not in "iu":
        return volume.dtype
    low, high = 0, 0
    for z in range(len(volume)):
        labels = volume.read(z)
        low, high = min(low, int(labels.min())), max(high, int(labels.max()))
    fits = (np.dtype(kind) for kind in _SMALL if low >= 0 and high <= np.iinfo(kind).max)
    return next(fits, volume.dtype)
