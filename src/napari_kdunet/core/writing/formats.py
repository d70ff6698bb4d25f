"""The output formats: a table from file endings to writers."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol

from napari_kdunet.core.writing.hdf5 import hdf5_writer
from napari_kdunet.core.writing.mrc import mrc_writer
from napari_kdunet.core.writing.ome_zarr import zarr_writer
from napari_kdunet.core.writing.spec import OutputSpec, WriteSlice
from napari_kdunet.core.writing.tiff import tiff_writer

__all__ = ["WRITERS", "Writer"]


class Writer(Protocol):
    """Opens a new file or folder, as an `OutputSpec` describes it, to which slices are written in order."""

    def __call__(self, path: Path, spec: OutputSpec, /) -> AbstractContextManager[WriteSlice]:
        """Open `path`; it is complete when the context ends."""


WRITERS: dict[str, Writer] = {
    ".tif": tiff_writer,
    ".tiff": tiff_writer,
    ".zarr": zarr_writer,
    ".h5": hdf5_writer,
    ".hdf5": hdf5_writer,
    ".mrc": mrc_writer,
}
