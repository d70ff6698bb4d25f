"""Readers for napari: volumes that it does not open, or opens without their pixel size, and model files.

A plain TIFF is none of them: napari would ask each time which reader to take, and the panels ask the file of a layer.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from napari_kdunet import core

__all__ = ["get_reader"]

LayerData = tuple[Any, ...]


def get_reader(path: str | list[str]) -> Callable[[Any], list[LayerData]] | None:
    """The function that reads a path, for napari; None for several paths at once."""
    if not isinstance(path, str):
        return None
    return _read_model if path.lower().endswith(".safetensors") else _read_volume


def _read_volume(path: str) -> list[LayerData]:
    """An image layer, lazy, with scale in nm and axis labels; errors as of `core.open_volume`."""
    volume = core.open_volume(path)  # MRC, HDF5, N5, OME-Zarr, a folder of slices, ...
    ndim = 3 if len(volume) > 1 else 2
    options: dict[str, Any] = {"name": Path(path).stem, "axis_labels": ("z", "y", "x")[-ndim:]}
    if volume.voxel_size is not None:
        options |= {"scale": volume.voxel_size[-ndim:], "units": ("nm",) * ndim}
    return [(volume.data if ndim == 3 else volume.data[0], options, "image")]


def _read_model(path: str) -> list[LayerData]:
    """Add a model to the list of the panels; no layer. Errors as of `core.load_model`."""
    from napari_kdunet.widgets.shared.models import models

    models.add(Path(path).stem, core.load_model(path))
    return [(None,)]
