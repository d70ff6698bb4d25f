"""Where slices are written to: pages of a TIFF, or an OME-Zarr."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import tifffile
import zarr

__all__ = ["ARRAY", "Layout", "Write", "tiff_sink", "zarr_sink"]

ARRAY = "0"
"""Where in an OME-Zarr its pixels are."""

Write: TypeAlias = Callable[[int, np.ndarray[Any, Any] | None], None]
"""Writes slice z, or leaves it 0 where there is None."""

_BIG = 2**31
_TILE = 1024


@dataclass(frozen=True)
class Layout:
    """What is written, and what is told about it; `skipped` is still filled while it is written."""

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    voxel_size: tuple[float, float, float] | None
    metadata: Mapping[str, Any] | None
    skipped: list[int] | None

    @property
    def about(self) -> dict[str, Any] | None:
        """The metadata, with the slices skipped where they may be."""
        told = {} if self.skipped is None else {"skipped": sorted(self.skipped)}
        return None if self.metadata is None and not told else {**(self.metadata or {}), **told}


@contextmanager
def tiff_sink(path: Path, layout: Layout) -> Iterator[Write]:
    """Write pages, in order, with the metadata of ImageJ, which Fiji, napari and tifffile know."""
    dtype = np.dtype(np.uint8) if layout.dtype == bool else layout.dtype
    options: dict[str, Any] = {"compression": "zlib", "photometric": "minisblack", "metadata": None}
    if layout.voxel_size is not None:
        _, y, x = layout.voxel_size
        options |= {"resolution": (1 / x, 1 / y), "resolutionunit": "NONE"}
    nbytes = math.prod(layout.shape) * dtype.itemsize
    with tifffile.TiffWriter(path, bigtiff=nbytes > _BIG) as tif:

        def write(z: int, block: np.ndarray[Any, Any] | None) -> None:
            page = np.zeros(layout.shape[1:], dtype) if block is None else block.astype(dtype, copy=False)
            tif.write(page, description=None if z else _description(layout), **options)

        yield write
    if layout.skipped:  # which the first page could not know
        tifffile.tiffcomment(path, _description(layout).encode())


def _description(layout: Layout) -> str:
    depth = layout.shape[0]
    lines = ["ImageJ=1.54f", f"images={depth}", f"slices={depth}", "loop=false"]
    if layout.voxel_size is not None:
        lines += ["unit=nm", f"spacing={layout.voxel_size[0]!r}"]
    if layout.about is not None:
        lines.append(f"napari_kdunet={json.dumps(layout.about)}")
    return "\n".join([*lines, ""])


@contextmanager
def zarr_sink(path: Path, layout: Layout, going_on: bool) -> Iterator[Write]:
    """Write OME-Zarr 0.5 with one scale level, https://ngff.openmicroscopy.org/0.5/, or go on with the one there is."""
    group = zarr.open_group(path, mode="r+") if going_on else _create_zarr(path, layout)
    array: Any = group[ARRAY]

    def write(z: int, block: np.ndarray[Any, Any] | None) -> None:
        if block is not None:
            array[z] = block

    yield write
    if layout.about is not None:
        group.attrs["napari_kdunet"] = layout.about


def _create_zarr(path: Path, layout: Layout) -> zarr.Group:
    unit = {} if layout.voxel_size is None else {"unit": "nanometer"}
    scale = [float(size) for size in layout.voxel_size or (1, 1, 1)]
    image: dict[str, Any] = {
        "name": layout.name,
        "axes": [{"name": axis, "type": "space", **unit} for axis in "zyx"],
        "datasets": [{"path": ARRAY, "coordinateTransformations": [{"type": "scale", "scale": scale}]}],
    }
    group = zarr.open_group(path, mode="w", zarr_format=3)
    group.attrs["ome"] = {"version": "0.5", "multiscales": [image]}
    chunks = (1, min(layout.shape[1], _TILE), min(layout.shape[2], _TILE))
    group.create_array(ARRAY, shape=layout.shape, dtype=layout.dtype, chunks=chunks, dimension_names=list("zyx"))
    return group
