"""Write a ZYX volume slice by slice, to TIFF or OME-Zarr.

What stands under the final name is complete, and whatever stood there before is untouched until then: see `files`.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import dask.array as da
import numpy as np
import tifffile
import zarr

from napari_kdunet.core.errors import OutputError, VolumeError
from napari_kdunet.core.files import replacing
from napari_kdunet.core.partial import adopt, finish, note
from napari_kdunet.core.readers import is_zarr
from napari_kdunet.core.slabs import by_slabs
from napari_kdunet.core.sources import one_line

__all__ = ["check_target", "iter_write", "write_volume"]

_Write: TypeAlias = Callable[[int, np.ndarray[Any, Any]], None]

_SUFFIXES = (".tif", ".tiff", ".zarr")
_BIG = 2**31
_AHEAD = 2**25  # bytes of slices that are computed while others are written
_TOGETHER = 0.5  # seconds
_TILE = 1024


def check_target(path: str | Path, suffixes: tuple[str, ...] = _SUFFIXES) -> Path:
    """Check that a result can be written, before hours of work.

    Parameters
    ----------
    path : str or Path
        Where the result shall go.
    suffixes : tuple of str
        The endings to accept, in lower case, with the dot.

    Returns
    -------
    Path
        The same path.

    Raises
    ------
    OutputError
        The ending is unknown, the folder is missing or cannot be written to, or something stands
        there that must not be replaced.
    """
    path = Path(path)
    if path.suffix.lower() not in suffixes:
        raise OutputError(f"cannot write {path}: its name must end in {' or '.join(suffixes)}")
    if not path.parent.is_dir():
        raise OutputError(f"cannot write {path}: there is no folder {path.parent}, make it first")
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise OutputError(f"cannot write {path}: no permission to write in {path.parent}, choose another folder")
    if path.suffix.lower() != ".zarr" and path.is_dir():
        raise OutputError(f"cannot write {path}: there is a folder of this name, choose another name")
    if path.suffix.lower() == ".zarr" and path.exists() and not is_zarr(path):
        raise OutputError(f"cannot write {path}: what stands there is not a Zarr, choose another name")
    return path


def iter_write(
    volume: Any,
    path: str | Path,
    *,
    shape: tuple[int, int, int] | None = None,
    dtype: Any = None,
    voxel_size: tuple[float, float, float] | None = None,
    metadata: Mapping[str, Any] | None = None,
    resume_key: str | None = None,
) -> Generator[int, None, None]:
    """Write a volume slice by slice; the consumer drives, and `close` of the generator gives it up.

    TIFF is compressed (zlib), with ImageJ's metadata, and a BigTIFF from 2 GiB on; boolean becomes uint8. Zarr is
    OME-Zarr 0.5 with one scale level. `open_volume` reads both back, with the voxel size.

    Parameters
    ----------
    volume : array-like or iterable
        An array (NumPy, dask, `Volume`, ...) whose ``volume[z]`` is one slice, or an iterable of slices (Y, X), from
        the first to the last. One slice is held in memory at a time; of a dask array the next ones, up to 32 MiB, are
        computed meanwhile.
    path : str or Path
        A name ending in ``.tif``, ``.tiff`` or ``.zarr``. What stands there is replaced at the end.
    shape : tuple of int, optional
        (Z, Y, X), needed for an iterable only.
    dtype : dtype, optional
        Type to write, that of an array by default; needed for an iterable.
    voxel_size : tuple of float, optional
        Size of a voxel in nm (Z, Y, X); that of a `Volume` by default.
    metadata : mapping, optional
        Anything that JSON can hold; stored under the name ``napari_kdunet``.
    resume_key : str, optional
        Names this very result, where it is to outlive its process. If a process was killed while it wrote an array
        to this Zarr under the same key, its slices are kept and writing goes on after them.

    Yields
    ------
    int
        Index of the slice just written. The file takes its final name after the last one, when the
        generator is exhausted.

    Raises
    ------
    OutputError
        The target cannot be written (at once, see `check_target`), or writing failed: no temporary file is left.
    VolumeError
        A slice cannot be read.
    """
    target = check_target(path)
    size = tuple(int(n) for n in (volume.shape if shape is None else shape))
    kind = np.dtype(volume.dtype if dtype is None else dtype)
    if len(size) != 3 or 0 in size or kind.kind not in "biuf":
        raise OutputError(f"cannot write {target}: shape {size} and dtype {kind}, give numbers with axes Z, Y, X")
    voxel_size = voxel_size or getattr(volume, "voxel_size", None)
    key = resume_key if target.suffix.lower() == ".zarr" and hasattr(volume, "__getitem__") else None
    return _write_slices(volume, target, _Layout(target.stem, size, kind, voxel_size, metadata, key))


def write_volume(
    volume: Any,
    path: str | Path,
    *,
    shape: tuple[int, int, int] | None = None,
    dtype: Any = None,
    voxel_size: tuple[float, float, float] | None = None,
    metadata: Mapping[str, Any] | None = None,
    progress: Callable[[int], object] | None = None,
) -> None:
    """Write a volume and wait for it; the parameters and errors are those of `iter_write`.

    Parameters
    ----------
    volume, path, shape, dtype, voxel_size, metadata
        See `iter_write`.
    progress : callable, optional
        Called with the index of each slice written. What it raises gives the writing up.
    """
    written = iter_write(volume, path, shape=shape, dtype=dtype, voxel_size=voxel_size, metadata=metadata)
    try:
        for z in written:
            if progress is not None:
                progress(z)
    finally:
        written.close()


@dataclass(frozen=True)
class _Layout:
    name: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    voxel_size: tuple[float, float, float] | None
    metadata: Mapping[str, Any] | None
    key: str | None


def _write_slices(volume: Any, target: Path, layout: _Layout) -> Generator[int, None, None]:
    with replacing(target) as temporary:
        start = adopt(target, temporary, layout.key) if layout.key else 0
        into_zarr = target.suffix.lower() == ".zarr"
        slices = _slices(volume, layout, start) if hasattr(volume, "__getitem__") else volume
        with _zarr_sink(temporary, layout, start) if into_zarr else _tiff_sink(temporary, layout) as write:
            for z, block in enumerate(_blocks(slices, target, layout, start), start):
                write(z, block)
                if layout.key:
                    note(temporary, layout.key, z + 1)
                yield z
        if layout.key:
            finish(temporary)


def _slices(volume: Any, layout: _Layout, start: int) -> Iterator[Any]:
    todo = range(start, layout.shape[0])
    if not isinstance(volume, da.Array):
        return (volume[z] for z in todo)
    if max(volume.chunks[0]) > 1:
        return by_slabs(volume, start)
    most = _AHEAD // math.prod((*layout.shape[1:], layout.dtype.itemsize))
    return _ahead(volume, most, start) if most else (_assemble(volume, z) for z in todo)


def _assemble(volume: da.Array, z: int) -> np.ndarray[Any, Any]:
    """A large slice of a lazy array, by rows of chunks: computed at once it would be in memory twice."""
    slice_ = np.empty(volume.shape[1:], volume.dtype)
    bottom = 0
    for rows in volume.chunks[1]:
        top, bottom = bottom, bottom + rows
        slice_[top:bottom] = volume[z, top:bottom]
    return slice_


def _ahead(volume: da.Array, most: int, begin: int) -> Iterator[np.ndarray[Any, Any]]:
    """The slices of a lazy array from `begin` on; up to `most` are computed together while those before are written.

    Together, as a scheduler may take as long to begin as a tiny network for a slice; but not for long, so that the
    consumer can stop.
    """

    def compute(start: int, stop: int) -> tuple[Iterable[np.ndarray[Any, Any]], float]:
        clock = time.perf_counter()
        try:
            return np.asarray(volume[start:stop]), time.perf_counter() - clock
        except OSError:  # one by one, so that it comes at the slice that it is of
            return (np.asarray(volume[z]) for z in range(start, stop)), math.inf

    count = len(volume)
    with ThreadPoolExecutor(1, "kdunet-ahead") as pool:
        start, stop = begin, begin + 1
        if start < count:
            running = pool.submit(compute, start, stop)
        while start < count:
            slices, seconds = running.result()
            together = stop - start
            together = min(2 * together, most) if seconds < _TOGETHER / 2 else together if seconds < _TOGETHER else 1
            start, stop = stop, min(stop + together, count)
            if start < count:
                running = pool.submit(compute, start, stop)
            yield from slices


def _blocks(slices: Iterable[Any], target: Path, layout: _Layout, z: int) -> Iterator[np.ndarray[Any, Any]]:
    """The slices from `z` on as arrays, as many and as large as the layout says."""
    try:
        for block in map(np.asarray, slices):
            if z >= layout.shape[0] or block.shape != layout.shape[1:]:
                raise OutputError(f"cannot write {target}: slice z={z}, {block.shape}, is not in {layout.shape}")
            yield block.astype(layout.dtype, copy=False)
            z += 1
    except OSError as error:  # of reading: `replacing` would take it for one of writing
        raise VolumeError(f"cannot read slice z={z} for {target}: {one_line(error)}") from error
    if z < layout.shape[0]:
        raise OutputError(f"cannot write {target}: only {z} of {layout.shape[0]} slices came")


@contextmanager
def _tiff_sink(path: Path, layout: _Layout) -> Iterator[_Write]:
    """Write pages with the metadata of ImageJ, which Fiji, napari and tifffile know."""
    dtype = np.dtype(np.uint8) if layout.dtype == bool else layout.dtype
    depth = layout.shape[0]
    lines = ["ImageJ=1.54f", f"images={depth}", f"slices={depth}", "loop=false"]
    options: dict[str, Any] = {"compression": "zlib", "photometric": "minisblack", "metadata": None}
    if layout.voxel_size is not None:
        z, y, x = layout.voxel_size
        lines += ["unit=nm", f"spacing={z!r}"]
        options |= {"resolution": (1 / x, 1 / y), "resolutionunit": "NONE"}
    if layout.metadata is not None:
        lines.append(f"napari_kdunet={json.dumps(layout.metadata)}")
    description = "\n".join([*lines, ""])
    nbytes = math.prod(layout.shape) * dtype.itemsize
    with tifffile.TiffWriter(path, bigtiff=nbytes > _BIG) as tif:

        def write(z: int, block: np.ndarray[Any, Any]) -> None:
            tif.write(block.astype(dtype, copy=False), description=None if z else description, **options)

        yield write


@contextmanager
def _zarr_sink(path: Path, layout: _Layout, start: int) -> Iterator[_Write]:
    """Write OME-Zarr 0.5 with one scale level, https://ngff.openmicroscopy.org/0.5/; go on with it from slice 1 up."""
    array: Any = zarr.open_array(path / "0", mode="r+") if start else _create_zarr(path, layout)

    def write(z: int, block: np.ndarray[Any, Any]) -> None:
        array[z] = block

    yield write


def _create_zarr(path: Path, layout: _Layout) -> Any:
    unit = {} if layout.voxel_size is None else {"unit": "nanometer"}
    scale = [float(size) for size in layout.voxel_size or (1, 1, 1)]
    image: dict[str, Any] = {
        "name": layout.name,
        "axes": [{"name": axis, "type": "space", **unit} for axis in "zyx"],
        "datasets": [{"path": "0", "coordinateTransformations": [{"type": "scale", "scale": scale}]}],
    }
    group = zarr.open_group(path, mode="w", zarr_format=3)
    group.attrs["ome"] = {"version": "0.5", "multiscales": [image]}
    if layout.metadata is not None:
        group.attrs["napari_kdunet"] = dict(layout.metadata)
    chunks = (1, min(layout.shape[1], _TILE), min(layout.shape[2], _TILE))
    return group.create_array("0", shape=layout.shape, dtype=layout.dtype, chunks=chunks, dimension_names=list("zyx"))
