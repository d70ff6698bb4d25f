"""HDF5: one dataset ``volume`` with the voxel size as CREMI, Fiji and ilastik store it."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator
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
    ``axistags`` (as ilastik), ``napari_kdunet``, the metadata as JSON, and ``labels``, whether it holds labels.

    Raises
    ------
    OSError
        For example, the disk is full.
    """
    dtype = np.dtype(np.uint8) if spec.dtype == bool else spec.dtype
    chunks = (1, min(spec.shape[1], _CHUNK_SIDE), min(spec.shape[2], _CHUNK_SIDE))
    with _PatientFile(path, "w+") as written, h5py.File(written, "w") as file:
        data = file.create_dataset(DATASET, spec.shape, dtype, chunks=chunks, compression="gzip", compression_opts=4)
        data.attrs["labels"] = spec.labels
        data.attrs["axistags"] = json.dumps({"axes": [{"key": axis, "typeFlags": 2} for axis in "zyx"]})
        if spec.voxel_size is not None:
            data.attrs["resolution"] = np.array(spec.voxel_size, float)
            data.attrs["element_size_um"] = np.array(spec.voxel_size, float) / 1000

        def write(z: int, pixels: np.ndarray[Any, Any] | None) -> None:
            if pixels is not None:
                data[z] = pixels.astype(dtype, copy=False)
                written.check()

        yield write
        data.attrs["napari_kdunet"] = json.dumps(spec.full_metadata or {})
        file.close()
        written.check()


class _PatientFile(io.FileIO):
    """A file that writes all that it is given, or keeps the error for `check`.

    If a write fails, HDF5 cannot close the file, and a segmentation fault ends the process at its exit
    (https://github.com/h5py/h5py/issues/914).
    """

    _error: OSError | None = None

    def check(self) -> None:
        """Raise the first error."""
        if self._error is not None:
            raise self._error

    def write(self, data: Any) -> int:
        """Write all of `data`, or nothing more after an error; return the size of `data`."""
        rest = memoryview(data).cast("B")
        size = len(rest)
        while rest and self._error is None:
            rest = rest[self._tried(super().write, rest) or 0 :]
        return size

    def truncate(self, size: int | None = None) -> int:
        """Set the size of the file."""
        return self._tried(super().truncate, size) or 0

    def _tried(self, method: Callable[..., Any], argument: Any) -> Any:
        try:
            return method(argument)
        except OSError as error:
            self._error = self._error or error
            return None
