"""Output formats: ImageJ TIFF and OME-Zarr, written slice by slice."""

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

__all__ = ["ARRAY", "OutputSpec", "WriteSlice", "tiff_writer", "zarr_writer"]

ARRAY = "0"
"""Path of the full-resolution array in an OME-Zarr group."""

WriteSlice: TypeAlias = Callable[[int, np.ndarray[Any, Any] | None], None]
"""Writes a slice (Y, X) at index z; None leaves it 0."""

_BIGTIFF_BYTES = 2**31
_CHUNK_SIDE = 1024


@dataclass(frozen=True)
class OutputSpec:
    """What is to be written.

    Attributes
    ----------
    name : str
        Of the image, for its metadata.
    shape : tuple of int
        (Z, Y, X).
    dtype : dtype
        Of a pixel.
    voxel_size : tuple of float or None
        nm (Z, Y, X).
    metadata : mapping or None
        Anything that JSON can hold.
    skipped : list of int or None
        Slices that could not be read and are 0, filled while writing; None where such a slice is an error.
    """

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    voxel_size: tuple[float, float, float] | None
    metadata: Mapping[str, Any] | None
    skipped: list[int] | None

    @property
    def full_metadata(self) -> dict[str, Any] | None:
        """The metadata with the list of skipped slices; None where there is neither."""
        skipped = {} if self.skipped is None else {"skipped": sorted(self.skipped)}
        return None if self.metadata is None and not skipped else {**(self.metadata or {}), **skipped}


@contextmanager
def tiff_writer(path: Path, spec: OutputSpec) -> Iterator[WriteSlice]:
    """Write a TIFF page by page, in order, with ImageJ's metadata, which Fiji, napari and tifffile read."""
    dtype = np.dtype(np.uint8) if spec.dtype == bool else spec.dtype
    options: dict[str, Any] = {"compression": "zlib", "photometric": "minisblack", "metadata": None}
    if spec.voxel_size is not None:
        _, y, x = spec.voxel_size
        options |= {"resolution": (1 / x, 1 / y), "resolutionunit": "NONE"}
    nbytes = math.prod(spec.shape) * dtype.itemsize
    first = _description(spec)
    with tifffile.TiffWriter(path, bigtiff=nbytes > _BIGTIFF_BYTES) as tif:

        def write(z: int, block: np.ndarray[Any, Any] | None) -> None:
            page = np.zeros(spec.shape[1:], dtype) if block is None else block.astype(dtype, copy=False)
            tif.write(page, description=None if z else first, **options)

        yield write
    if (last := _description(spec)) != first:  # slices were skipped, or the metadata has been added to
        tifffile.tiffcomment(path, last.encode())


def _description(spec: OutputSpec) -> str:
    depth = spec.shape[0]
    lines = ["ImageJ=1.54f", f"images={depth}", f"slices={depth}", "loop=false"]
    if spec.voxel_size is not None:
        lines += ["unit=nm", f"spacing={spec.voxel_size[0]!r}"]
    if spec.full_metadata is not None:
        lines.append(f"napari_kdunet={json.dumps(spec.full_metadata)}")
    return "\n".join([*lines, ""])


@contextmanager
def zarr_writer(path: Path, spec: OutputSpec, resumed: bool) -> Iterator[WriteSlice]:
    """Write OME-Zarr 0.5 (https://ngff.openmicroscopy.org/0.5/) with one scale level, or into the `resumed` one."""
    group = zarr.open_group(path, mode="r+") if resumed else _create_zarr(path, spec)
    array: Any = group[ARRAY]

    def write(z: int, block: np.ndarray[Any, Any] | None) -> None:
        if block is not None:
            array[z] = block

    yield write
    if spec.full_metadata is not None:
        group.attrs["napari_kdunet"] = spec.full_metadata


def _create_zarr(path: Path, spec: OutputSpec) -> zarr.Group:
    unit = {} if spec.voxel_size is None else {"unit": "nanometer"}
    scale = [float(size) for size in spec.voxel_size or (1, 1, 1)]
    image: dict[str, Any] = {
        "name": spec.name,
        "axes": [{"name": axis, "type": "space", **unit} for axis in "zyx"],
        "datasets": [{"path": ARRAY, "coordinateTransformations": [{"type": "scale", "scale": scale}]}],
    }
    group = zarr.open_group(path, mode="w", zarr_format=3)
    group.attrs["ome"] = {"version": "0.5", "multiscales": [image]}
    chunks = (1, min(spec.shape[1], _CHUNK_SIDE), min(spec.shape[2], _CHUNK_SIDE))
    group.create_array(ARRAY, shape=spec.shape, dtype=spec.dtype, chunks=chunks, dimension_names=list("zyx"))
    return group
