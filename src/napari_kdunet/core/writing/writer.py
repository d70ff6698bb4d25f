"""Write a ZYX volume slice by slice, to TIFF or OME-Zarr.

The result appears under its final name when it is complete; what was there before stays untouched until then.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import AbstractContextManager, closing
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import dask.array as da
import numpy as np

from napari_kdunet.core.errors import OutputError, VolumeError
from napari_kdunet.core.files import is_zarr_name, replacing
from napari_kdunet.core.volumes.formats.zarr_image import is_zarr
from napari_kdunet.core.volumes.sources import one_line
from napari_kdunet.core.writing.dask_cluster import ClusterLostError, Outcome, active_client, iter_write_on_cluster
from napari_kdunet.core.writing.formats import ARRAY, OutputSpec, WriteSlice, tiff_writer, zarr_writer
from napari_kdunet.core.writing.progress_record import ProgressRecord
from napari_kdunet.core.writing.slices import Slice, iter_slices

__all__ = ["Written", "check_target", "iter_write", "write_volume"]

OnError: TypeAlias = Callable[[VolumeError], object]

_SUFFIXES = (".tif", ".tiff", ".zarr")


class Written(NamedTuple):
    """A slice that has been written: its index, and how many are complete, those of an earlier run included."""

    z: int
    done: int


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
    if not is_zarr_name(path) and path.is_dir():
        raise OutputError(f"cannot write {path}: there is a folder of this name, choose another name")
    if is_zarr_name(path) and path.exists() and not is_zarr(path):
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
    on_error: OnError | None = None,
) -> Generator[Written, None, None]:
    """Write a volume slice by slice, as an iterator; closing it stops the writing and removes what was written.

    Where a `distributed.Client` is active, the workers of its cluster compute a dask array and write it to a Zarr.

    TIFF is compressed (zlib), with ImageJ's metadata, and a BigTIFF from 2 GiB on; boolean becomes uint8. Zarr is
    OME-Zarr 0.5 with one scale level. `open_volume` reads both back, with the voxel size.

    Parameters
    ----------
    volume : array-like or iterable
        An array (NumPy, dask, `Volume`, ...) whose ``volume[z]`` is one slice, or an iterable of slices (Y, X), from
        the first to the last. One slice is in memory at a time; of a dask array up to 32 MiB of the next ones are
        computed in the background.
    path : str or Path
        A name ending in ``.tif``, ``.tiff`` or ``.zarr``. What is there is replaced at the end.
    shape : tuple of int, optional
        (Z, Y, X), needed for an iterable only.
    dtype : dtype, optional
        Type to write, that of an array by default; needed for an iterable.
    voxel_size : tuple of float, optional
        Size of a voxel in nm (Z, Y, X); that of a `Volume` by default.
    metadata : mapping, optional
        Anything that JSON can hold; stored under the name ``napari_kdunet``. What is added to it up to the last slice
        is stored too.
    resume_key : str, optional
        Identifies the result, so that it can be resumed. If a process was killed while it wrote an array to this
        Zarr with the same key, the slices that it completed are kept and only the missing ones are written.
    on_error : callable, optional
        Called with the `VolumeError` of each slice that cannot be read; the slice is left 0, its index is put into
        the list ``skipped`` of the metadata, and writing continues. By default the error is raised.

    Yields
    ------
    Written
        A slice just written or skipped. The result takes its final name after the last one, when the iterator is
        exhausted.

    Raises
    ------
    OutputError
        The target cannot be written (at once, see `check_target`), or writing failed: no temporary file is left.
    VolumeError
        A slice cannot be read, or none at all.
    """
    target = check_target(path)
    size = tuple(int(n) for n in (volume.shape if shape is None else shape))
    kind = np.dtype(volume.dtype if dtype is None else dtype)
    if len(size) != 3 or 0 in size or kind.kind not in "biuf":
        raise OutputError(f"cannot write {target}: shape {size} and dtype {kind}, give numbers with axes Z, Y, X")
    voxel_size = voxel_size or getattr(volume, "voxel_size", None)
    key = resume_key if is_zarr_name(target) and hasattr(volume, "__getitem__") else None
    spec = OutputSpec(target.stem, size, kind, voxel_size, metadata, None if on_error is None else [])
    return _write_slices(volume, target, spec, key, on_error)


def write_volume(
    volume: Any,
    path: str | Path,
    *,
    shape: tuple[int, int, int] | None = None,
    dtype: Any = None,
    voxel_size: tuple[float, float, float] | None = None,
    metadata: Mapping[str, Any] | None = None,
    resume_key: str | None = None,
    on_error: OnError | None = None,
    progress: Callable[[int], object] | None = None,
) -> None:
    """Write a volume and return when it is complete; parameters and errors are those of `iter_write`.

    Parameters
    ----------
    volume, path, shape, dtype, voxel_size, metadata, resume_key, on_error
        See `iter_write`.
    progress : callable, optional
        Called with the index of each slice written. An exception that it raises stops the writing.
    """
    how: dict[str, Any] = {
        "voxel_size": voxel_size,
        "metadata": metadata,
        "resume_key": resume_key,
        "on_error": on_error,
    }
    with closing(iter_write(volume, path, shape=shape, dtype=dtype, **how)) as slices:
        for slice_ in slices:
            if progress is not None:
                progress(slice_.z)


def _write_slices(
    volume: Any, target: Path, spec: OutputSpec, key: str | None, on_error: OnError | None
) -> Generator[Written, None, None]:
    depth, skipped = spec.shape[0], [] if spec.skipped is None else spec.skipped
    with replacing(target) as temporary:
        record = ProgressRecord.adopt(target, temporary, key)
        missing = record.missing(depth)
        try:
            with (
                _writer(temporary, spec, resumed=bool(record.runs)) as write,
                closing(_outcomes(volume, spec, missing, temporary, write)) as outcomes,
            ):
                for z, error in outcomes:
                    if error is None:
                        record.add(z)
                    else:
                        unreadable = _as_volume_error(error, z, target)
                        if on_error is None or len(skipped) == depth - 1:
                            raise unreadable
                        skipped.append(z)
                        on_error(unreadable)
                    yield Written(z, len(record) + len(skipped))
        except ClusterLostError:
            record.keep()
            raise
        if is_zarr_name(target):
            record.finish()


def _writer(path: Path, spec: OutputSpec, resumed: bool) -> AbstractContextManager[WriteSlice]:
    return zarr_writer(path, spec, resumed) if is_zarr_name(path) else tiff_writer(path, spec)


def _outcomes(
    volume: Any, spec: OutputSpec, indices: list[int], path: Path, write: WriteSlice
) -> Generator[Outcome, None, None]:
    """Write slices, in this process or on a cluster, and yield the outcome of each."""
    client = active_client() if isinstance(volume, da.Array) and is_zarr_name(path) else None
    if client is not None:
        return iter_write_on_cluster(client, volume, path / ARRAY, spec.dtype, indices)
    return _write_in_process(iter_slices(volume, indices), spec, len(indices), write)


def _write_in_process(
    slices: Iterable[Slice], spec: OutputSpec, count: int, write: WriteSlice
) -> Generator[Outcome, None, None]:
    received = 0
    for z, pixels in slices:
        if isinstance(pixels, Exception):
            write(z, None)
            yield z, pixels
        elif z >= spec.shape[0] or pixels.shape != spec.shape[1:]:
            raise OutputError(f"cannot write {spec.name}: slice z={z}, {pixels.shape}, is not in {spec.shape}")
        else:
            write(z, pixels.astype(spec.dtype, copy=False))
            yield z, None
        received += 1
    if received < count:
        raise OutputError(f"cannot write {spec.name}: only {received} of {count} slices came")


def _as_volume_error(error: OSError | VolumeError, z: int, target: Path) -> VolumeError:
    """An error of reading: as an `OSError`, `files.replacing` would take it for one of writing."""
    if isinstance(error, VolumeError):
        return error
    unreadable = VolumeError(f"cannot read slice z={z} for {target}: {one_line(error)}")
    unreadable.__cause__ = error
    return unreadable
