"""HDF5: a dataset by its path in the file, or the only 3-D one."""

from __future__ import annotations

import itertools
import math
from functools import partial
from pathlib import Path
from typing import Any

import h5py

from napari_kdunet.core.errors import VolumeError
from napari_kdunet.core.volumes.axes import Selection, Stored, check_level
from napari_kdunet.core.volumes.formats.attributes import axes_and_sizes
from napari_kdunet.core.volumes.sources import LazyArray, check_block, check_regular

__all__ = ["HDF5_ENDINGS", "open_hdf5", "split_hdf5"]

HDF5_ENDINGS = (".h5", ".hdf5", ".hdf")
_SHOWN = 6


def split_hdf5(source: str) -> tuple[Path, str]:
    """Split ``file.h5:/path`` into the file and the path in it, which is empty where there is none."""
    for ending in HDF5_ENDINGS:
        position = source.lower().find(f"{ending}:")
        if position > 0 and not Path(source).exists():
            end = position + len(ending)
            return Path(source[:end]), source[end + 1 :]
    return Path(source), ""


def open_hdf5(path: Path, selection: Selection, name: str, inside: str = "") -> Stored:
    """Open a dataset of an HDF5 file, with what CREMI and ilastik say of it in attributes.

    Parameters
    ----------
    path : Path
        The file.
    selection : Selection
        What to take of it.
    name : str
        For messages.
    inside : str
        Path of the dataset, or of a group with one; the only 3-D one by default.
    """
    check_level(selection.level, 1, name)
    with h5py.File(path, "r") as file:
        dataset = _find(file, inside.strip("/"), name)
        _check_files(dataset, path, name)
        if dataset.chunks:
            nbytes = math.prod(dataset.chunks) * dataset.dtype.itemsize
            check_block(nbytes, dataset.id.get_storage_size(), name, "chunks")
        attributes = {key: _attribute(dataset, key) for key in dataset.attrs}
        labels = [dimension.label for dimension in dataset.dims]
        if all(labels):
            attributes.setdefault("DIMENSION_LABELS", labels)
        found = axes_and_sizes(attributes, dataset.ndim, selection, name)
        inside = dataset.name
    return Stored(LazyArray(partial(_Dataset, path, inside)), *found)


class _Dataset:
    """A dataset whose chunks are checked before they are decompressed."""

    def __init__(self, path: Path, inside: str) -> None:
        self.dataset: Any = h5py.File(path, "r")[inside]
        self.shape, self.dtype, self.chunks = self.dataset.shape, self.dataset.dtype, self.dataset.chunks

    def __getitem__(self, key: tuple[int | slice, ...]) -> Any:
        if self.chunks and self.dataset.compression:
            self._check_chunks(key)
        return self.dataset[key]

    def _check_chunks(self, key: tuple[int | slice, ...]) -> None:
        """Check that no stored chunk is larger than a decoded one: it would become far more."""
        nbytes = math.prod(self.chunks) * self.dtype.itemsize
        ranges = [
            range(n)[k] if isinstance(k, slice) else range(k, k + 1) for k, n in zip(key, self.shape, strict=True)
        ]
        starts = [
            range(min(r) // n * n, max(r) + 1, n) if r else range(0) for r, n in zip(ranges, self.chunks, strict=True)
        ]
        for start in itertools.product(*starts):
            if self.dataset.id.get_chunk_info_by_coord(start).size > 1.1 * nbytes + 4096:
                raise VolumeError(f"the chunk at {start} holds more than {nbytes:,} bytes: it is damaged")


def _attribute(dataset: Any, key: str) -> Any:
    try:
        return dataset.attrs[key]
    except (OSError, TypeError, ValueError, KeyError):  # of a type that h5py does not know
        return None


def _find(file: Any, inside: str, name: str) -> Any:
    """The dataset at a path, or the only one of three axes (else of two or more) there."""
    if inside and inside not in file:
        raise VolumeError(f"{name} has no dataset {inside}: it has {_shown(_datasets(file))}")
    node = file[inside] if inside else file
    if isinstance(node, h5py.Dataset):
        return node
    found = _datasets(node)
    volumes = [dataset for dataset in found if dataset.ndim == 3] or found
    if len(volumes) == 1:
        return volumes[0]
    if not volumes:
        raise VolumeError(f"{name} is empty: it has no dataset of numbers with two axes or more")
    raise VolumeError(f"{name} has several volumes, give one as FILE:/PATH: {_shown(volumes)}")


def _datasets(group: Any) -> list[Any]:
    """Datasets of numbers with two axes or more, within the file itself."""
    found: list[Any] = []

    def visit(_: str, node: Any) -> None:
        if isinstance(node, h5py.Dataset) and node.ndim >= 2 and node.dtype.kind in "biuf":
            found.append(node)

    group.visititems(visit)
    return found


def _shown(datasets: list[Any]) -> str:
    names = [dataset.name for dataset in datasets]
    return ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "") if names else "none"


def _check_files(dataset: Any, path: Path, name: str) -> None:
    """Check that other files that a dataset takes its pixels from are regular ones."""
    others = [item[0] for item in dataset.external or []]
    if dataset.is_virtual:
        others += [source.file_name for source in dataset.virtual_sources() if source.file_name != "."]
    if Path(dataset.file.filename) != path:
        others.append(dataset.file.filename)
    for other in others:
        if (path.parent / other).exists():
            check_regular(path.parent / other, f"{other}, of which {name} takes pixels,")
