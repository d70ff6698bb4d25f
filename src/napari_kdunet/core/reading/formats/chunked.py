"""N5 and Neuroglancer precomputed volumes, read by tensorstore."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from napari_kdunet.core.errors import ChoiceError, VolumeError
from napari_kdunet.core.reading.axes import Selection, Stored, axis_letters, check_level
from napari_kdunet.core.reading.sources import LazyArray, check_block, check_chunk, check_part, check_regular
from napari_kdunet.core.reading.voxel_size import Sizes, read_metadata, to_number

__all__ = ["is_n5", "is_precomputed", "open_n5", "open_precomputed"]

ChunkPath: TypeAlias = Callable[[list[range], tuple[int, ...]], str]
"""Function that returns the path of a chunk, from its bounds along each axis and its index in the grid."""


class _TensorStore:
    """A tensorstore array in a folder, which is read when it is indexed; index 0 is its origin."""

    def __init__(self, spec: dict[str, Any], chunk_path: ChunkPath) -> None:
        import tensorstore

        self.folder, self.chunk_path = Path(spec["kvstore"]["path"]), chunk_path
        self.store = tensorstore.open(spec, open=True, read=True).result()
        self.origin = tuple(self.store.domain.origin)
        self.shape, self.dtype = tuple(self.store.shape), np.dtype(self.store.dtype.numpy_dtype)
        self.chunks = tuple(int(n) for n in _chunk_shape(self.store))

    def __getitem__(self, key: tuple[int | slice, ...]) -> np.ndarray[Any, Any]:
        ranges = [
            range(n)[k] if isinstance(k, slice) else range(k, k + 1) for k, n in zip(key, self.shape, strict=True)
        ]
        self._check_chunks(ranges)
        shifted = tuple(
            slice(r.start + o, r.stop + o, r.step) if isinstance(k, slice) else k + o
            for k, r, o in zip(key, ranges, self.origin, strict=True)
        )
        pixels: np.ndarray[Any, Any] = self.store[shifted].read().result()
        return pixels

    def _check_chunks(self, ranges: list[range]) -> None:
        """Check that the files of the chunks to read are regular and of sensible size, which tensorstore does not."""
        spans = [
            range(min(r) // n, max(r) // n + 1) if r else range(0) for r, n in zip(ranges, self.chunks, strict=True)
        ]
        for index in itertools.product(*spans):
            corners = [
                range(i * n, min((i + 1) * n, total))
                for i, n, total in zip(index, self.chunks, self.shape, strict=True)
            ]
            bounds = [range(c.start + o, c.stop + o) for c, o in zip(corners, self.origin, strict=True)]
            path = self.folder / self.chunk_path(bounds, index)
            if path.exists():
                check_regular(path, str(path))
                check_chunk(math.prod(self.chunks) * self.dtype.itemsize, path.stat().st_size, str(path))


def _chunk_shape(store: Any) -> Any:
    return store.chunk_layout.read_chunk.shape


def _n5_chunk(bounds: list[range], index: tuple[int, ...]) -> str:
    return "/".join(map(str, index))


def _precomputed_chunk(key: str, bounds: list[range], index: tuple[int, ...]) -> str:
    return f"{key}/" + "_".join(f"{b.start}-{b.stop}" for b in bounds[:3])


def is_n5(path: Path) -> bool:
    """Whether a folder is an N5 dataset or group."""
    return (path / "attributes.json").exists()


def is_precomputed(path: Path) -> bool:
    """Whether a folder is a Neuroglancer precomputed volume."""
    return (path / "info").exists()


def open_n5(path: Path, selection: Selection, name: str) -> Stored:
    """Open an N5 dataset, or a group with scale levels s0, s1, ... or with a single dataset."""
    group, attributes = dict[str, Any](), _json(path / "attributes.json", name)
    if "dimensions" not in attributes:
        levels = [folder for i in range(99) if is_n5(folder := path / f"s{i}")]
        datasets = [] if levels else _n5_datasets(path, name)
        if levels:
            check_level(selection.level, len(levels), name)
            path = levels[selection.level]
        elif len(datasets) == 1:
            path = datasets[0]
        else:
            if not datasets:
                raise VolumeError(f"{name} is an N5 group without a dataset in it: give the folder of a dataset")
            inside = ", ".join(folder.relative_to(path).as_posix() for folder in datasets[:9])
            message = f"{name} is an N5 group: give the path of a dataset in it ({inside})"
            raise ChoiceError(message, "source", map(str, datasets))
        group, attributes = attributes, _json(path / "attributes.json", name)
    else:
        check_level(selection.level, 1, name)
    array = _open({"driver": "n5", "kvstore": {"driver": "file", "path": str(path)}}, _n5_chunk, name)
    axes = _n5_axes(attributes, len(array.shape), name)
    stated = read_metadata(lambda: _n5_sizes(attributes, group, axes), "resolution")
    return Stored(array, axes, *stated)


def _n5_datasets(path: Path, name: str, depth: int = 4) -> list[Path]:
    """Return the datasets in a group, some folders down: the groups between need not have attributes."""
    found = []
    for folder in sorted(entry for entry in path.iterdir() if entry.is_dir()):
        if is_n5(folder) and "dimensions" in _json(folder / "attributes.json", name):
            found.append(folder)
        elif depth > 1:
            found += _n5_datasets(folder, name, depth - 1)
    return found


def _n5_axes(attributes: dict[str, Any], ndim: int, name: str) -> str:
    """Return the letters of the axes in the order in which N5 lists dimensions, the fastest first."""
    named = attributes.get("axes")
    letters = axis_letters(named, name) if isinstance(named, list) and len(named) == ndim else ""
    return letters or "xyzct"[:ndim]


def _n5_sizes(dataset: dict[str, Any], group: dict[str, Any], axes: str) -> Sizes:
    """Return sizes, ``pixelResolution`` or ``resolution``, of a dataset, or of its group times the downsampling."""
    own = any(key in dataset for key in ("pixelResolution", "resolution"))
    pixel: Any = (dataset if own else group).get("pixelResolution")
    sizes: Any = (dataset if own else group).get("resolution", pixel)
    units: Any = (dataset if own else group).get("units", "nm")
    if isinstance(pixel, dict):
        sizes, units = pixel["dimensions"], pixel.get("unit", "nm")
    if sizes is None:
        return {}
    factors = [1] * len(sizes) if own else dataset.get("downsamplingFactors", [1] * len(sizes))
    units = units if isinstance(units, list) else [units] * len(sizes)
    order = axes if len(sizes) == len(axes) else [axis for axis in axes if axis in "xyz"]
    stated = zip(order, sizes, factors, units, strict=True)
    return {axis: (to_number(size) * factor, unit) for axis, size, factor, unit in stated if axis in "xyz"}


def open_precomputed(path: Path, selection: Selection, name: str) -> Stored:
    """Open a scale level of a precomputed volume; its resolution is in nm."""
    info = _json(path / "info", name)
    scales = info.get("scales")
    if not isinstance(scales, list) or not scales:
        raise VolumeError(f"{name} has an info file without scales: it is no precomputed volume")
    check_level(selection.level, len(scales), name)
    kvstore = {"driver": "file", "path": str(path)}
    spec = {"driver": "neuroglancer_precomputed", "kvstore": kvstore, "scale_index": selection.level}
    scale = scales[selection.level]
    check_part(path / "info", str(scale.get("key")), name)
    if isinstance(scale.get("sharding"), dict):
        for shard in (path / str(scale.get("key"))).glob("*.shard"):
            check_regular(shard, str(shard))
    array = _open(spec, partial(_precomputed_chunk, str(scale.get("key"))), name)
    stated = read_metadata(
        lambda: {a: (n, "nm") for a, n in zip("xyz", scale["resolution"], strict=True)}, "resolution"
    )
    return Stored(array, "xyzc", *stated)


def _open(spec: dict[str, Any], chunk_path: ChunkPath, name: str) -> LazyArray:
    array = LazyArray(partial(_TensorStore, spec, chunk_path))
    nbytes = math.prod(array.chunks or (0,)) * array.dtype.itemsize
    if nbytes > 2**29:
        files = Path(spec["kvstore"]["path"]).rglob("*")
        check_block(nbytes, sum(file.stat().st_size for file in files if file.is_file()), name, "chunks")
    return array


def _json(path: Path, name: str) -> dict[str, Any]:
    check_regular(path, f"{path.name} of {name}")
    found = json.loads(path.read_text())
    if not isinstance(found, dict):
        raise VolumeError(f"{name} has a damaged {path.name}: it holds no attributes")
    return found
