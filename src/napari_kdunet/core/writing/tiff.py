"""TIFF with ImageJ's metadata, which Fiji, napari and tifffile read."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import tifffile

from napari_kdunet.core.writing.spec import OutputSpec, WriteSlice

__all__ = ["tiff_writer"]

_BIGTIFF_BYTES = 2**31
_STRIP_BYTES = 2**18


@contextmanager
def tiff_writer(path: Path, spec: OutputSpec) -> Iterator[WriteSlice]:
    """Write a TIFF page by page, in order, compressed (zlib), a BigTIFF from 2 GiB on; boolean becomes uint8.

    Labels are compressed by zlib-ng, in a quarter of the time that libdeflate takes for them, to a few kB more. Other
    pixels are compressed by libdeflate at its lowest level: the next ones take up to half as long again, to save a
    thousandth.
    """
    dtype = np.dtype(np.uint8) if spec.dtype == bool else spec.dtype
    options: dict[str, Any] = {"compression": "zlib", "photometric": "minisblack", "metadata": None}
    if spec.voxel_size is not None:
        _, y, x = spec.voxel_size
        options |= {"resolution": (1 / x, 1 / y), "resolutionunit": "NONE"}
    rows = max(1, _STRIP_BYTES // (spec.shape[2] * dtype.itemsize))
    nbytes = math.prod(spec.shape) * dtype.itemsize
    first = _description(spec)
    with tifffile.TiffWriter(path, bigtiff=nbytes > _BIGTIFF_BYTES) as tif:

        def write(z: int, pixels: np.ndarray[Any, Any] | None) -> None:
            page = np.zeros(spec.shape[1:], dtype) if pixels is None else pixels.astype(dtype, copy=False)
            described = options | {"description": None if z else first}
            if spec.labels:
                encode: Any = imagecodecs.zlibng_encode
                strips = (encode(page[i : i + rows].tobytes(), level=2) for i in range(0, len(page), rows))
                tif.write(strips, shape=page.shape, dtype=dtype, rowsperstrip=rows, **described)
            else:
                tif.write(page, compressionargs={"level": 1}, **described)

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
