"""TIFF, OME-TIFF, ImageJ and BigTIFF: pages on demand, completeness at open, and the voxel size."""

from __future__ import annotations

import logging
import math
import os
import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import tifffile

from napari_kdunet.core.errors import VolumeError
from napari_kdunet.core.volumes.sources import (
    AxesView,
    LazyArray,
    Opened,
    SliceStack,
    VoxelSize,
    check_level,
    complete_voxel_size,
    nanometres,
)

__all__ = ["TIFF_ENDINGS", "open_tiff"]

TIFF_ENDINGS = (".tif", ".tiff", ".btf")
_MAX_PIXEL = 1e4  # nm: a resolution tag beyond is for printing (2540 dpi), not for microscopy
_MAX_CHANNELS = 4  # beyond, the "channels" of a TIFF are slices: tifffile calls them so unless told otherwise


@contextmanager
def _hold_log() -> Iterator[None]:
    """Hold back what tifffile logs: dropped where an exception says the same, else logged at the end.

    A filter, as the level of a logger is everybody's; and of this thread alone, as others may use tifffile meanwhile.
    """
    logger, here, held = logging.getLogger("tifffile"), threading.get_ident(), list[logging.LogRecord]()

    def hold(record: logging.LogRecord) -> bool:
        if threading.get_ident() != here:
            return True
        held.append(record)
        return False

    logger.addFilter(hold)
    try:
        yield
    finally:
        logger.removeFilter(hold)
    for record in held:
        logger.handle(record)


class _TiffPages:
    """The pages of a TIFF's first series, decoded by index; pickled as a path."""

    def __init__(self, path: Path, level: int) -> None:
        self.path, self.level = path, level
        self._opened: tuple[int, list[Any]] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_opened": None}

    @_hold_log()
    def __call__(self, z: int) -> np.ndarray[Any, Any]:
        opened = self._opened
        if opened is None or opened[0] != os.getpid():  # a forked process must not share the file's position
            tif = tifffile.TiffFile(self.path)
            weakref.finalize(self, tif.close)
            series = tif.series[0].levels[self.level]
            series.keyframe.init_decode()
            opened = self._opened = (os.getpid(), list(series))
        page = opened[1][z]
        handle = page.parent.filehandle  # another file in a multi-file OME-TIFF
        handle.set_lock(True)
        handle.open()
        image: np.ndarray[Any, Any] = page.asarray()
        return image


@_hold_log()
def open_tiff(path: Path, level: int, name: str) -> Opened:
    """Open one scale level of a TIFF's first series.

    Raises
    ------
    VolumeError
        It is empty, incomplete, in colour or not one stack. A damaged one may raise whatever tifffile raises.
    """
    with tifffile.TiffFile(path) as tif:
        if not tif.pages or not tif.series:
            raise VolumeError(f"{name} is empty: this TIFF has no images")
        pyramid = tif.series[0].levels
        check_level(level, len(pyramid), name)
        series, page = pyramid[level], pyramid[level].keyframe
        extra = {a: n for a, n in zip(series.axes, series.shape, strict=True) if a not in "YXS" and n > 1}
        depth = math.prod(extra.values())
        shape = (depth, page.imagelength, page.imagewidth)
        if not _is_complete(tif, series, depth):
            raise VolumeError(f"{name} is truncated or damaged: slices are missing, copy or export it again")
        if page.samplesperpixel > 1 and page.planarconfig == tifffile.PLANARCONFIG.SEPARATE:  # as tifffile guesses it
            how = f"stored as the {page.samplesperpixel} planes of one colour image"
            raise VolumeError(f"{name} is {how}: if they are slices, save them with photometric='minisblack'")
        if page.samplesperpixel > 1 or page.photometric == tifffile.PHOTOMETRIC.RGB:
            raise VolumeError(f"{name} is a colour (RGB) image: convert it to greyscale, e.g. Image > Type in Fiji")
        if len(extra) > 1 or extra.get("C", math.inf) <= _MAX_CHANNELS or page.imagedepth > 1:
            sizes = ", ".join(f"{a}={n}" for a, n in zip(series.axes, series.shape, strict=True))
            raise VolumeError(f"{name} has axes {sizes}: give one channel and one time point, with axes Z, Y, X")
        if len(tif.series) > 1 and series.kind in ("generic", "uniform", "shaped"):
            raise VolumeError(f"{name} has pages of different shapes or dtypes: keep those of one stack")
        voxel_size = _tiff_voxel_size(tif)
        if voxel_size and level:
            full = pyramid[0].keyframe
            y, x = full.imagelength / page.imagelength, full.imagewidth / page.imagewidth
            voxel_size = (voxel_size[0], voxel_size[1] * y, voxel_size[2] * x)
        if series.dataoffset is None:
            return Opened(SliceStack(_TiffPages(path, level), shape, series.dtype), voxel_size)
        stored = series.dtype.newbyteorder(tif.byteorder)
        opener = partial(np.memmap, path, stored, "r", series.dataoffset, shape)
        return Opened(AxesView(LazyArray(opener), "zyx"), voxel_size)


def _is_complete(tif: tifffile.TiffFile, series: tifffile.TiffPageSeries, depth: int) -> bool:
    """Whether all slices are in the file, by its chain of pages, its metadata and the end of each page."""
    tif.filehandle.seek(tif.pages.next_page_offset or 0)
    if tif.filehandle.read(tif.tiff.offsetsize) != bytes(tif.tiff.offsetsize):
        return False  # the last page that can be found points to another
    if series.kind in ("generic", "uniform") and (tif.is_imagej or tif.is_shaped):
        return False  # tifffile did not find what the metadata promise
    if series.dataoffset is not None:
        return bool(series.dataoffset + depth * series.keyframe.nbytes <= tif.filehandle.size)
    try:
        pages: list[Any] = list(series)
    except IndexError:
        return False
    return len(pages) == depth and all(
        page is not None
        and max(map(sum, zip(page.dataoffsets, page.databytecounts, strict=True))) <= page.parent.filehandle.size
        for page in pages
    )


def _tiff_voxel_size(tif: tifffile.TiffFile) -> VoxelSize | None:
    """Voxel size from OME-XML, ImageJ's description or the resolution tags, whichever is there first."""
    tags = tif.pages.first.tags
    if tif.ome_metadata:
        pixels = ElementTree.fromstring(tif.ome_metadata).find(".//{*}Pixels")
        found = {} if pixels is None else pixels.attrib
        sizes = (nanometres(found.get(f"PhysicalSize{a}"), found.get(f"PhysicalSize{a}Unit", "µm")) for a in "ZYX")
        return complete_voxel_size(*sizes)
    per_unit = [tags[name].value if name in tags else (0, 1) for name in ("YResolution", "XResolution")]
    y, x = (denominator / numerator if numerator else 0 for numerator, denominator in per_unit)
    imagej = tif.imagej_metadata
    if imagej:
        unit = imagej.get("unit")
        return complete_voxel_size(nanometres(imagej.get("spacing"), unit), nanometres(y, unit), nanometres(x, unit))
    unit = tags["ResolutionUnit"].value if "ResolutionUnit" in tags else None
    factor = 25.4e6 if unit == 2 else 1e7 if unit == 3 else 0  # inch, centimetre
    y, x = y * factor, x * factor
    return complete_voxel_size(None, y, x) if all(size == 0 or 0.01 <= size <= _MAX_PIXEL for size in (y, x)) else None
