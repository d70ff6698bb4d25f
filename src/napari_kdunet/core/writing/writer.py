"""Write a ZYX volume slice by slice, to TIFF, OME-Zarr, HDF5 or MRC.

The result appears under its final name when it is complete; what was there before stays untouched until then.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import AbstractContextManager, closing
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import dask.array as da
import numpy as np

from napari_kdunet.core.errors import OutputError, VolumeError, one_line
from napari_kdunet.core.files import is_zarr_name, replacing
from napari_kdunet.core.reading.voxel_size import three_sizes
from napari_kdunet.core.volumes.slice_reader import Slice, iter_slices
from napari_kdunet.core.writing.dask_cluster import Outcome, active_client, iter_write_on_cluster
from napari_kdunet.core.writing.formats import WRITERS
from napari_kdunet.core.writing.lock import TargetLock
from napari_kdunet.core.writing.ome_zarr import incomplete_slices, zarr_writer
from napari_kdunet.core.writing.progress_record import ProgressRecord
from napari_kdunet.core.writing.spec import OmeVersion, OutputSpec, WriteSlice
from napari_kdunet.core.writing.target import check_target

__all__ = ["Written", "iter_write", "write_volume"]

OnError: TypeAlias = Callable[[VolumeError], object]


class Written(NamedTuple):
    """A slice that has been written: its index, and how many are complete, those of an earlier run included."""

    z: int
    done: int


def iter_write(
    volume: Any,
    path: str | Path,
    *,
    shape: tuple[int, int, int] | None = None,
    dtype: Any = None,
    voxel_size: tuple[float, float, float] | None = None,
    metadata: Mapping[str, Any] | None = None,
    labels: bool = False,
    ome_version: OmeVersion = "0.5",
    overwrite: bool = False,
    resume_key: str | None = None,
    on_error: OnError | None = None,
) -> Generator[Written, None, None]:
    """Write a volume as `write_volume` does, but as an iterator over slices; closing it stops the writing.

    Yields
    ------
    Written
        A slice just written or skipped. The result takes its final name after the last one, when the iterator is
        exhausted.
    """
    target = check_target(path, overwrite=overwrite)
    size = tuple(int(n) for n in (volume.shape if shape is None else shape))
    kind = np.dtype(volume.dtype if dtype is None else dtype).newbyteorder("=")
    if len(size) != 3 or 0 in size or kind.kind not in "biuf":
        raise OutputError(f"cannot write {target}: shape {size} and dtype {kind}, give numbers with axes Z, Y, X")
    if ome_version not in ("0.4", "0.5"):
        raise OutputError(f"cannot write OME-Zarr {ome_version}: choose 0.4 or 0.5")
    given = getattr(volume, "voxel_size", None) if voxel_size is None else voxel_size
    voxel_size = three_sizes(given)  # as floats: the text of a NumPy number in a TIFF is not read as one
    if given is not None and not (voxel_size and all(1e-6 < n < 1e9 for n in voxel_size)):
        raise OutputError(f"cannot write {target}: voxel size is {given}, give three positive numbers in nm, Z Y X")
    skipped: list[int] | None = None if on_error is None else []
    spec = OutputSpec(target.stem, size, kind, voxel_size, metadata, skipped, labels, ome_version)
    resumable = resume_key is not None and is_zarr_name(target) and hasattr(volume, "__getitem__")
    key = f"{resume_key} {size} {kind} OME-Zarr {ome_version}" if resumable else None
    return _write_slices(volume, target, spec, key, on_error)


def write_volume(
    volume: Any,
    path: str | Path,
    *,
    shape: tuple[int, int, int] | None = None,
    dtype: Any = None,
    voxel_size: tuple[float, float, float] | None = None,
    metadata: Mapping[str, Any] | None = None,
    labels: bool = False,
    ome_version: OmeVersion = "0.5",
    overwrite: bool = False,
    resume_key: str | None = None,
    on_error: OnError | None = None,
    progress: Callable[[int], object] | None = None,
) -> None:
    """Write a volume, and return when it is complete.

    The result has a temporary name until it is complete. If writing stops or fails, it is removed, or kept for the next
    call if it can be resumed (see `resume_key`). Only one process at a time can write to a name.

    Where a `distributed.Client` is active, the workers of its cluster compute a dask array and write it to a Zarr.

    TIFF is compressed (zlib), with ImageJ's metadata; a Zarr is an OME-Zarr with a pyramid of scale levels; HDF5 has
    one dataset, ``volume``; MRC has no uint8 and no bool, which become uint16 and int8. All state the voxel size.

    Parameters
    ----------
    volume : array-like or iterable
        An array (NumPy, dask, `Volume`, ...) whose ``volume[z]`` is one slice, or an iterable of slices (Y, X), from
        the first to the last. One slice is in memory at a time; for a dask array, up to 32 MiB of the next ones are
        computed in the background.
    path : str or Path
        A name ending in ``.tif``, ``.tiff``, ``.zarr``, ``.h5``, ``.hdf5`` or ``.mrc``. A symbolic link is followed.
    shape : tuple of int, optional
        (Z, Y, X), needed for an iterable only.
    dtype : dtype, optional
        Type to write, that of an array by default; needed for an iterable.
    voxel_size : tuple of float, optional
        Size of a voxel in nm (Z, Y, X); that of a `Volume` by default.
    metadata : mapping, optional
        Anything that JSON can hold; stored under the name ``napari_kdunet``. Entries that are added until the last
        slice is written are stored too.
    labels : bool
        Whether the volume holds labels: OME-Zarr and HDF5 state it, and scale levels are not averaged.
    ome_version : {"0.5", "0.4"}
        Version of OME-Zarr, and with it of Zarr (3, or 2, which older viewers read).
    overwrite : bool
        Whether to replace, at the end, an existing file, or a Zarr that contains only what napari-kdunet has written.
    resume_key : str, optional
        Identifies the result, so that it can be resumed. If a process was killed or stopped while it wrote an array
        to this Zarr with the same key, the slices that it completed are kept and only the missing ones are written.
    on_error : callable, optional
        Called with the `VolumeError` of each slice that cannot be read; the slice is left 0, its index is put into
        the list ``skipped`` of the metadata, and writing continues. By default the error is raised.
    progress : callable, optional
        Called with the index of each slice written. An exception that it raises stops the writing.

    Raises
    ------
    OutputError
        The target cannot be written (at once, see `check_target`), another process is writing it, or writing failed.
    VolumeError
        A slice cannot be read and `on_error` is None, or no slice at all can be read.
    """
    how: dict[str, Any] = {
        "voxel_size": voxel_size,
        "metadata": metadata,
        "labels": labels,
        "ome_version": ome_version,
        "overwrite": overwrite,
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
    with TargetLock(target) as lock, replacing(target) as temporary:
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
        except BaseException:  # stopped, a slice that cannot be read, a full disk, a cluster that is lost
            record.keep()
            raise
        lock.check()
        if is_zarr_name(target):
            record.finish()
            _check_complete(temporary, target, skipped)


def _check_complete(temporary: Path, target: Path, skipped: list[int]) -> None:
    """Check that no slice has been removed from a Zarr while it was written."""
    lost = incomplete_slices(temporary, skipped)
    if lost:
        slices = f"{len(lost)} slices, z={lost[0]} the first, are"
        raise OutputError(f"cannot write {target}: {slices} missing, something else has removed them; start again")


def _writer(path: Path, spec: OutputSpec, resumed: bool) -> AbstractContextManager[WriteSlice]:
    return zarr_writer(path, spec, resumed=True) if resumed else WRITERS[path.suffix.lower()](path, spec)


def _outcomes(
    volume: Any, spec: OutputSpec, indices: list[int], path: Path, write: WriteSlice
) -> Generator[Outcome, None, None]:
    """Write slices, in this process or on a cluster, and yield the outcome of each."""
    client = active_client() if isinstance(volume, da.Array) and is_zarr_name(path) else None
    if client is not None:
        return iter_write_on_cluster(client, volume, path, indices)
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
    """Return an error of reading as a `VolumeError`; `files.replacing` would take an `OSError` for one of writing."""
    if isinstance(error, VolumeError):
        return error
    unreadable = VolumeError(f"cannot read slice z={z} for {target}: {one_line(error)}")
    unreadable.__cause__ = error
    return unreadable
