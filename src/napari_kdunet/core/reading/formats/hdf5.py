"""HDF5: a dataset by its path in the file, or the only 3-D one."""

from __future__ import annotations

import itertools
import math
import zlib
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from napari_kdunet.core.errors import ChoiceError, VolumeError
from napari_kdunet.core.reading.axes import Selection, Stored, check_level
from napari_kdunet.core.reading.formats.attributes import axes_and_sizes, own_threshold
from napari_kdunet.core.reading.sources import LazyArray, check_block, check_chunk, check_part

__all__ = ["HDF5_ENDINGS", "dataset_at", "hdf5_parts", "open_hdf5", "split_hdf5"]

HDF5_ENDINGS = (".h5", ".hdf5", ".hdf")
_SHOWN = 6
_MOST_LINKS = 16  # links that are followed within a file, on the way to a dataset
_DEFLATE, _LZF = 1, 32000  # the numbers of these filters in HDF5
_NOT_COMPRESSING = {2, 3}  # shuffle, fletcher32
_OF_CLAIMED_SIZE = (5, 6)  # nbit, scaleoffset: parameters 2 and 4 are the number and the bytes of the values
_LARGE_DEFLATED = 2**18  # bytes, which become 270 MB at most
_LARGE_LZF = 2**16  # bytes; HDF5's time grows with the square of what they become
_CHECKSUM = 4  # bytes that fletcher32 adds


def split_hdf5(source: str) -> tuple[Path, str]:
    """Split ``file.h5:/path`` into the file and the path in it, which is empty where there is none."""
    for ending in HDF5_ENDINGS:
        position = source.lower().find(f"{ending}:")
        if position > 0 and not Path(source).exists():
            end = position + len(ending)
            return Path(source[:end]), source[end + 1 :]
    return Path(source), ""


def open_hdf5(path: Path, selection: Selection, name: str, inside: str = "") -> Stored:
    """Open a dataset of an HDF5 file, with axes and voxel size from the attributes of CREMI, ilastik and others.

    Parameters
    ----------
    path : Path
        The file.
    selection : Selection
        What to take from it.
    name : str
        Name for messages.
    inside : str
        Path of the dataset, or of a group with one; the only 3-D one by default.
    """
    check_level(selection.level, 1, name)
    with h5py.File(path, "r") as file:
        dataset = _find(file, inside.strip("/"), name)
        _check_storage(dataset, path, name)
        attributes = {key: _attribute(dataset, key) for key in dataset.attrs}
        labels = [dimension.label for dimension in dataset.dims]
        if all(labels):
            attributes.setdefault("DIMENSION_LABELS", labels)
        found = axes_and_sizes(attributes, dataset.ndim, selection, name)
        inside = dataset.name
    threshold = own_threshold(attributes.get("napari_kdunet"))
    return Stored(LazyArray(partial(_Dataset, path, inside)), *found, threshold=threshold)


class _Dataset:
    """A dataset whose chunks are checked before they are decompressed: HDF5 decompresses whatever there is."""

    def __init__(self, path: Path, inside: str) -> None:
        self.path = path
        self.dataset: Any = h5py.File(path, "r")[inside]
        self.shape, self.dtype, self.chunks = self.dataset.shape, self.dataset.dtype, self.dataset.chunks
        self._filters = _filters(self.dataset)
        self._sources = self.dataset.virtual_sources() if self.dataset.is_virtual else []

    def __getitem__(self, key: tuple[int | slice, ...]) -> Any:
        ranges = [
            range(n)[k] if isinstance(k, slice) else range(k, k + 1) for k, n in zip(key, self.shape, strict=True)
        ]
        _check_chunks(self.dataset, self._filters, ranges)
        for source in self._sources:
            if _overlaps(source.vspace, ranges):
                self._check_source(source, ranges)
        return self.dataset[key]

    def _check_source(self, source: Any, ranges: list[range]) -> None:
        """Check the chunks that a window of this virtual dataset takes from a source dataset."""
        with h5py.File(self.path if source.file_name == "." else self.path.parent / source.file_name, "r") as file:
            dataset = file[source.dset_name]
            _check_chunks(dataset, _filters(dataset), _window_of(source, ranges, dataset.shape))


def _window_of(source: Any, ranges: list[range], shape: tuple[int, ...]) -> list[range]:
    """Return what a window of a virtual dataset takes from a source: a shifted block, else all that is mapped."""
    low, high = (list(each) for each in source.vspace.get_select_bounds())
    if source.src_space.get_select_type() == h5py.h5s.SEL_ALL:
        bounds = [range(n) for n in shape]
    else:
        bounds = [range(first, last + 1) for first, last in zip(*source.src_space.get_select_bounds(), strict=True)]
    wide = [axis for axis, first in enumerate(low) if high[axis] > first]
    of_source = [axis for axis, taken in enumerate(bounds) if len(taken) > 1]
    lengths = [high[axis] - low[axis] + 1 for axis in wide]
    pixels = source.vspace.get_select_npoints()
    if lengths != [len(bounds[axis]) for axis in of_source] or pixels != math.prod(lengths):
        return bounds
    for axis, other in zip(wide, of_source, strict=True):
        first, last = max(min(ranges[axis]), low[axis]), min(max(ranges[axis]), high[axis])
        start = bounds[other].start - low[axis]
        bounds[other] = range(start + first, start + last + 1)
    return bounds


def _overlaps(space: Any, ranges: list[range]) -> bool:
    """Whether a selection has pixels in a window."""
    bounds = zip(*space.get_select_bounds(), ranges, strict=True)
    return all(r and first <= max(r) and min(r) <= last for first, last, r in bounds)


def _check_chunks(dataset: Any, filters: dict[int, tuple[int, ...]], ranges: list[range]) -> None:
    """Check the chunks of a dataset that a window overlaps."""
    if dataset.chunks and filters:
        starts = [
            range(min(r) // n * n, max(r) + 1, n) if r else range(0)
            for r, n in zip(ranges, dataset.chunks, strict=True)
        ]
        for start in itertools.product(*starts):
            _check_chunk(dataset, filters, start)


def _check_chunk(dataset: Any, filters: dict[int, tuple[int, ...]], start: tuple[int, ...]) -> None:
    """Check that the chunk at `start` does not decompress to more than the size of a chunk."""
    nbytes = math.prod(dataset.chunks) * dataset.dtype.itemsize
    size = dataset.id.get_chunk_info_by_coord(start).size
    if size:  # otherwise the chunk is not stored
        check_chunk(nbytes, size, f"the chunk at {start}")
    bomb = size > 1.1 * nbytes + 4096  # incompressible data takes no more
    for code, large, measure in ((_DEFLATE, _LARGE_DEFLATED, _inflated_size), (_LZF, _LARGE_LZF, _lzf_size)):
        if not bomb and code in filters and size > large:
            skipped, data = dataset.id.read_direct_chunk(start)
            if not skipped >> list(filters).index(code) & 1:  # skipped if a chunk does not compress
                bomb = measure(data, nbytes) > nbytes + _CHECKSUM
    if bomb:
        raise VolumeError(f"the chunk at {start} holds more than {nbytes:,} bytes: it is damaged")


def _inflated_size(data: bytes, nbytes: int) -> int:
    """Return the bytes that deflated data becomes, at most one more than a chunk of `nbytes` and its checksum."""
    with suppress(zlib.error):  # HDF5 will say what is wrong with it
        return len(zlib.decompressobj().decompress(data, nbytes + _CHECKSUM + 1))
    return 0


def _lzf_size(data: bytes, nbytes: int) -> int:
    """Return the bytes that LZF data becomes, counted until they exceed a chunk of `nbytes` and its checksum.

    LZF consists of runs of bytes, and of references to earlier ones.
    """
    size = at = 0
    while at < len(data) and size <= nbytes + _CHECKSUM:
        length, at = data[at] >> 5, at + 1
        if length == 0:  # a run
            count = (data[at - 1] & 31) + 1
            size, at = size + count, at + count
        else:
            if length == 7 and at < len(data):
                length, at = length + data[at], at + 1
            size, at = size + length + 2, at + 1
    return size


def _filters(dataset: Any) -> dict[int, tuple[int, ...]]:
    """Return the filters of a dataset's chunks, by HDF5's numbers, with their parameters."""
    created = dataset.id.get_create_plist()
    return {code: values for code, _, values, _ in map(created.get_filter, range(created.get_nfilters()))}


def _check_storage(dataset: Any, path: Path, name: str, *, virtual: bool = True) -> None:
    """Check where and how the pixels of a dataset are stored, before any is read.

    Chunks must be of a sensible size. Their filters must not claim more, and only one of them may decompress, as each
    can make a thousand times as much. Other files that it takes pixels from must be in its folder or below, and must
    not take theirs from further files.
    """
    if dataset.external or (dataset.is_virtual and not virtual):
        raise VolumeError(f"{name} takes pixels from other files: save it as one file")
    if dataset.chunks:
        nbytes = math.prod(dataset.chunks) * dataset.dtype.itemsize
        check_block(nbytes, dataset.id.get_storage_size(), name, "chunks")
        filters = _filters(dataset)
        count = dataset.id.get_create_plist().get_nfilters()
        claimed = [math.prod(filters[code][2:5:2]) for code in _OF_CLAIMED_SIZE if len(filters.get(code, ())) > 4]
        if count > len(filters) or len(filters.keys() - _NOT_COMPRESSING) > 1 or any(n > nbytes for n in claimed):
            raise VolumeError(f"{name} has chunks that are compressed in an impossible way: it is damaged")
    if dataset.is_virtual:
        for source in {(each.file_name, each.dset_name) for each in dataset.virtual_sources()}:
            _check_source(*source, path, name)


def _check_source(file_name: str, inside: str, path: Path, name: str) -> None:
    """Check a dataset that a virtual one takes pixels from."""
    part = path if file_name == "." else check_part(path, file_name, name)
    if not part.is_file():
        raise VolumeError(f"{name} takes pixels from {file_name}, which is not there: put it into the same folder")
    with h5py.File(part, "r") as file:
        source = _followed(file, inside, name)
        if isinstance(source, h5py.Dataset):
            _check_storage(source, part, name, virtual=False)


def hdf5_parts(path: Path) -> set[str]:
    """Return the names of the other files that the datasets of an HDF5 file take pixels from."""
    names = set[str]()
    with h5py.File(path, "r") as file:
        for dataset in _datasets(file):
            names |= {item[0] for item in dataset.external or []}
            if dataset.is_virtual:
                names |= {source.file_name for source in dataset.virtual_sources()} - {"."}
    return names


def _followed(file: Any, inside: str, name: str) -> Any:
    """Return the object at a path, through links within the file but not to another one; None if there is none."""
    left, at, links = inside.strip("/").split("/"), "/", 0
    while left:
        part = left.pop(0)
        group = file[at]
        link = group.get(part, getlink=True) if isinstance(group, h5py.Group) and part in group.keys() else None  # noqa: SIM118 - `in` follows it
        if isinstance(link, h5py.ExternalLink):
            raise VolumeError(f"{name} links to another file, {link.filename}: give that")
        if isinstance(link, h5py.SoftLink) and (links := links + 1) <= _MOST_LINKS:
            at, left = "/" if link.path.startswith("/") else at, [*link.path.strip("/").split("/"), *left]
        elif isinstance(link, h5py.HardLink):
            at = f"{at.rstrip('/')}/{part}"
        elif part not in ("", "."):
            return None
    return file[at]


def _attribute(dataset: Any, key: str) -> Any:
    try:
        return dataset.attrs[key]
    except (OSError, TypeError, ValueError, KeyError):  # its type is unknown to h5py
        return None


def _find(file: Any, inside: str, name: str) -> Any:
    """Return the dataset at a path, or the only one with three axes (else with two or more) in the group there."""
    node = _followed(file, inside, name)
    if node is None:
        raise VolumeError(f"{name} has no dataset {inside}: it has {_shown(_datasets(file))}")
    if isinstance(node, h5py.Dataset):
        return node
    volumes = _volumes(node)
    if len(volumes) == 1:
        return volumes[0]
    if not volumes:
        raise VolumeError(f"{name} is empty: it has no dataset of numbers with two axes or more")
    choices = [f"{file.filename}:{dataset.name}" for dataset in volumes]
    raise ChoiceError(f"{name} has several volumes, give one as FILE:/PATH: {_shown(volumes)}", "source", choices)


def dataset_at(path: Path, inside: str) -> tuple[str, bool]:
    """Return the path of the dataset that `open_hdf5` opens, and whether we have written it and marked it as labels."""
    with h5py.File(path, "r") as file:
        dataset = _find(file, inside.strip("/"), str(path))
        labels = "napari_kdunet" in dataset.attrs and np.array_equal(_attribute(dataset, "labels"), True)
        return dataset.name, labels


def _volumes(group: Any) -> list[Any]:
    found = _datasets(group)
    return [dataset for dataset in found if dataset.ndim == 3] or found


def _datasets(group: Any) -> list[Any]:
    """Return the datasets of numbers with two axes or more, within the file itself."""
    found: list[Any] = []

    def visit(_: str, node: Any) -> None:
        if isinstance(node, h5py.Dataset) and node.ndim >= 2 and node.dtype.kind in "biuf":
            found.append(node)

    group.visititems(visit)
    return found


def _shown(datasets: list[Any]) -> str:
    names = [dataset.name for dataset in datasets]
    return ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "") if names else "none"
