"""What is to be written: the shape, type, voxel size and metadata that every format stores in its own way."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

__all__ = ["OmeVersion", "OutputSpec", "WriteSlice"]

WriteSlice: TypeAlias = Callable[[int, np.ndarray[Any, Any] | None], None]
"""Function that writes a slice (Y, X) at index z; None leaves it 0."""

OmeVersion: TypeAlias = str
"""Version of the OME-Zarr specification, "0.4" or "0.5"."""


@dataclass(frozen=True)
class OutputSpec:
    """Description of the volume that is to be written.

    Attributes
    ----------
    name : str
        Name of the image, for its metadata.
    shape : tuple of int
        Shape of the volume (Z, Y, X).
    dtype : dtype
        Dtype of a pixel.
    voxel_size : tuple of float or None
        Size of a voxel in nm (Z, Y, X).
    metadata : mapping or None
        Anything that JSON can hold.
    skipped : list of int or None
        Slices that could not be read and are 0, filled while writing; None where such a slice is an error.
    labels : bool
        Whether the pixels are labels, not intensities.
    ome_version : {"0.5", "0.4"}
        Version of an OME-Zarr.
    """

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    voxel_size: tuple[float, float, float] | None = None
    metadata: Mapping[str, Any] | None = None
    skipped: list[int] | None = None
    labels: bool = False
    ome_version: OmeVersion = "0.5"

    @property
    def full_metadata(self) -> dict[str, Any] | None:
        """The metadata with the list of skipped slices; None if there is neither."""
        skipped = {} if self.skipped is None else {"skipped": sorted(self.skipped)}
        return None if self.metadata is None and not skipped else {**(self.metadata or {}), **skipped}
