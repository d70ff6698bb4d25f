"""HDF5: one dataset ``volume`` with the voxel size as CREMI, Fiji and ilastik store it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from napari_kdunet.core.writing.spec import OutputSpec, WriteSlice

__all__ = ["DATASET", "hdf5_writer"]

DATASET = "volume"
_CHUNK_SIDE = 1024


@contextmanager
def hdf5_writer(path: Path, spec: OutputSpec) -> Iterator[WriteSlice]:
    """Write a chunked dataset, compressed (gzip); boolean becomes uint8.

    Its attributes: ``resolution`` (nm, as CREMI), ``element_size_um`` (µm, as Fiji), both in the order Z, Y, X,
    ``axistags`` (as ilastik), and ``napari_kdunet``, the metadata as JSON.
    """
    dtype = np.dtype(np.uint8) if spec.dtype == bool else spec.dtype
    chunks = (1, min(spec.shape[1], _CHUNK_SIDE), min(spec.shape[2], _CHUNK_SIDE))
    with h5py.File(path, "w") as file:
        data = file.create_dataset(DATASET, spec.shape, dtype, chunks=chunks, compression="gzip", compression_opts=4)
        data.attrs["axistags"] = json.dumps({"axes": [{"key": axis, "typeFlags": 2} for axis in "zyx"]})
        if spec.voxel_size is not None:
            data.attrs["resolution"] = np.array(spec.voxel_size, float)
            data.attrs["element_size_um"] = np.array(spec.voxel_size, float) / 1000

        def write(z: int, pixels: np.ndarray[Any, Any] | None) -> None:
            if pixels is not None:
                data[z] = pixels.astype(dtype, copy=False)

        yield write
        data.attrs["napari_kdunet"] = json.dumps(spec.full_metadata or {})
