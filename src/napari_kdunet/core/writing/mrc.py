"""MRC2014, https://www.ccpem.ac.uk/mrc_format/mrc2014.php, with the voxel size in its header."""

from __future__ import annotations

import json
import math
import textwrap
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import mrcfile
import numpy as np

from napari_kdunet.core.errors import OutputError
from napari_kdunet.core.writing.spec import OutputSpec, WriteSlice

__all__ = ["mrc_writer"]

_STORED = {"bool": "int8", "uint8": "uint16"}  # MRC has neither
_STORED |= {name: name for name in ("int8", "int16", "uint16", "float16", "float32")}
_LABEL_WIDTH = 79


@contextmanager
def mrc_writer(path: Path, spec: OutputSpec) -> Iterator[WriteSlice]:
    """Write the slices one after the other, with the statistics that the header asks for.

    Boolean becomes int8, and uint8 becomes uint16. The header holds up to 700 characters of the metadata as JSON; the
    longest values are left out until the rest fits.

    Raises
    ------
    OutputError
        MRC has no such dtype.
    """
    if spec.dtype.name not in _STORED:
        raise OutputError(f"cannot write {spec.name}.mrc: MRC holds no {spec.dtype}; write .tif, .zarr or .h5")
    dtype = np.dtype(_STORED[spec.dtype.name])
    statistics = _Statistics()
    header = _header(path, spec, dtype)
    with path.open("wb") as file:  # not through a memory map, which crashes on a full disk
        file.write(header.tobytes())

        def write(z: int, pixels: np.ndarray[Any, Any] | None) -> None:
            stored = np.zeros(spec.shape[1:], dtype) if pixels is None else pixels.astype(dtype, copy=False)
            file.seek(header.nbytes + z * stored.nbytes)
            file.write(np.ascontiguousarray(stored).data)
            statistics.add(stored)

        yield write
        statistics.store(header)
        for line in _lines(spec.full_metadata or {}, len(header.label) - int(header.nlabl)):
            header.label[int(header.nlabl)] = line.encode()
            header.nlabl += 1
        file.seek(0)
        file.write(header.tobytes())


def _lines(metadata: Mapping[str, Any], most: int) -> list[str]:
    """Return metadata as JSON in at most `most` lines, without the longest values if they do not fit."""
    longest_last = sorted(metadata, key=lambda name: len(json.dumps(metadata[name])))
    while True:
        text = json.dumps({name: metadata[name] for name in metadata if name in longest_last})
        lines = textwrap.wrap(text, _LABEL_WIDTH, drop_whitespace=False)
        if len(lines) <= most:
            return lines
        longest_last.pop()


def _header(path: Path, spec: OutputSpec, dtype: np.dtype[Any]) -> Any:
    """Return the header of a volume, as mrcfile makes it: a NumPy record."""
    with mrcfile.new(path, np.zeros((1, 1, 1), dtype), overwrite=True) as mrc:
        header, (z, y, x) = mrc.header.copy(), spec.shape
    header.nx, header.ny, header.nz = header.mx, header.my, header.mz = x, y, z
    if spec.voxel_size is not None:
        header.cella.x, header.cella.y, header.cella.z = (
            10 * size * n
            for size, n in zip(spec.voxel_size[::-1], (x, y, z), strict=True)  # angstrom
        )
    return header


class _Statistics:
    """Running minimum, maximum, mean and standard deviation."""

    def __init__(self) -> None:
        self.low, self.high, self.count, self.total, self.squares = math.inf, -math.inf, 0, 0.0, 0.0

    def add(self, pixels: np.ndarray[Any, Any]) -> None:
        values = pixels.astype(np.float64)
        self.low, self.high = min(self.low, values.min()), max(self.high, values.max())
        self.count += values.size
        self.total += values.sum()
        self.squares += np.square(values).sum()

    def store(self, header: Any) -> None:
        mean = self.total / self.count
        header.dmin, header.dmax, header.dmean = self.low, self.high, mean
        header.rms = math.sqrt(max(self.squares / self.count - mean**2, 0.0))
