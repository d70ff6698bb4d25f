"""Zarr arrays, and images of OME-Zarr 0.1 to 0.5, in a folder or at an address."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from zarr.abc.store import RangeByteRequest
from zarr.storage import FsspecStore, LocalStore

from napari_kdunet.core.errors import ChoiceError, VolumeError
from napari_kdunet.core.reading.axes import Selection, Stored, axis_letters, check_level, pick
from napari_kdunet.core.reading.formats.attributes import axes_and_sizes, own_threshold
from napari_kdunet.core.reading.formats.zarr_chunks import PlainChunks
from napari_kdunet.core.reading.sources import LazyArray, check_block, check_chunk, check_compressed, check_regular
from napari_kdunet.core.reading.voxel_size import Sizes, read_metadata, to_number

__all__ = ["is_label_image", "is_zarr", "open_zarr", "open_zarr_node", "open_zarr_url"]

_COMPRESSORS = {"blosc", "bz2", "gzip", "lz4", "lzma", "pcodec", "zfpy", "zlib", "zstd"}
_OF_OBJECTS = {"pickle", "json2", "msgpack2", "vlen-utf8", "vlen-bytes", "vlen-array", "categorize"}
_METADATA = ("zarr.json", ".zarray", ".zgroup")


def is_zarr(path: Path) -> bool:
    """Whether a folder is a Zarr array or group; False if it may not be looked into."""
    with suppress(PermissionError):  # another reader will say so
        return any((path / entry).exists() for entry in _METADATA)
    return False


def is_label_image(path: Path) -> bool:
    """Whether a folder is an OME-Zarr that states that its image holds labels."""
    if not is_zarr(path):
        return False
    node = _open_folder(path)
    attributes: Any = node.attrs.asdict() if isinstance(node, zarr.Group) else {}
    return "image-label" in (attributes.get("ome") or attributes)


class _CheckedChunks:
    """Mixin of a store that checks the bytes it reads of an array: no chunk may become (much) more than its size."""

    nbytes, stored, in_shard, index_first = 0, 0, 0, False
    """Bytes of a decoded chunk, and of a file, both 0 without an array; chunks per shard; is its index at the start?"""

    def of_array(self, array: Any) -> None:
        """Check the chunks of this array from now on."""
        self.nbytes = math.prod(array.chunks) * array.dtype.itemsize
        self.stored = math.prod(array.shards or array.chunks) * array.dtype.itemsize
        self.in_shard = math.prod(array.shards) // math.prod(array.chunks) if array.shards else 0
        codecs = array.metadata.to_dict().get("codecs", ())
        self.index_first = any(_configuration(codec).get("index_location") == "start" for codec in codecs)

    async def get(self, key: str, prototype: Any = None, byte_range: Any = None) -> Any:
        """Read what is stored under a key."""
        found = await super().get(key, prototype, byte_range)  # type: ignore[misc]
        if found is not None and self.nbytes and key.rpartition("/")[2] not in (*_METADATA, ".zattrs", ".zmetadata"):
            self.check(memoryview(found.as_numpy_array()).cast("B"), key, byte_range)
        return found

    def check(self, data: memoryview, key: str, byte_range: Any = None) -> None:
        """Check what has been read under the key of a chunk or of a shard."""
        name = f"{self}/{key}".removeprefix("file://")
        if len(data) > 1.1 * self.stored + 4096 + self._index_size:
            raise VolumeError(f"{name} holds more than a chunk of {self.nbytes:,} bytes: it is damaged")
        for chunk in self._chunks(data, byte_range):
            check_compressed(chunk, self.nbytes, name)
            check_chunk(self.nbytes, len(chunk), name)

    @property
    def _index_size(self) -> int:
        """Bytes of the index of a shard: 16 per chunk, and a checksum of 4."""
        return 16 * self.in_shard + 4 if self.in_shard else 0

    def _chunks(self, data: memoryview, byte_range: Any) -> Iterator[memoryview]:
        """Yield the chunks in the data read, which is a chunk's file, a whole shard, or a chunk or the index of one."""
        if not self.in_shard:
            yield data
        elif byte_range is None:
            table = data[: self._index_size - 4] if self.index_first else data[-self._index_size : -4]
            if len(table) == 16 * self.in_shard:
                for start, length in np.frombuffer(table, "<u8").reshape(-1, 2).tolist():
                    if start < len(data):  # otherwise there is no such chunk
                        yield data[start : start + length]
        elif isinstance(byte_range, RangeByteRequest) and not (self.index_first and byte_range.start == 0):
            yield data


class _CheckedFiles(_CheckedChunks, LocalStore):
    """A store in a folder that reads regular files only, as reading a FIFO may never end."""

    async def get(self, key: str, prototype: Any = None, byte_range: Any = None) -> Any:
        """Read what is stored under a key."""
        path = self.root / key
        if path.exists():
            check_regular(path, str(path))
        return await super().get(key, prototype, byte_range)

    def chunk(self, key: str) -> bytes | None:
        """Read a chunk in this thread; None where there is none."""
        path = self.root / key
        try:
            check_regular(path, str(path))
            data = path.read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return None
        self.check(memoryview(data), key)
        return data


class _CheckedAddress(_CheckedChunks, FsspecStore):
    """A store at an fsspec address."""


def open_zarr(path: Path, selection: Selection, name: str) -> Stored:
    """Open a folder that is a Zarr array, or a group that is an OME-Zarr image."""
    return open_zarr_node(_open_folder(path), selection, name)


def open_zarr_url(url: str, selection: Selection, name: str) -> Stored:
    """Open a Zarr at an fsspec address, such as https:// or s3://."""
    return open_zarr_node(_open_url(url), selection, name)


def open_zarr_node(node: Any, selection: Selection, name: str) -> Stored:
    """Open a Zarr array, or the image in a Zarr group."""
    if isinstance(node, zarr.Group):
        return _open_group(node, selection, name)
    return _open_array(node, selection, name)


def _open_folder(path: Path) -> Any:
    return zarr.open(_CheckedFiles(path, read_only=True), mode="r")


def _open_url(url: str) -> Any:
    try:
        store: Any = _CheckedAddress.from_url(url, storage_options=_storage_options(url), read_only=True)
    except ImportError:
        raise VolumeError(f'{url} is remote: install what that takes, pip install "napari-kdunet[formats]"') from None
    return zarr.open(store, mode="r")


def _storage_options(url: str) -> dict[str, Any]:
    """Return options for fsspec: without credentials, public data on S3 is read anonymously."""
    known = os.environ.keys() & {"AWS_ACCESS_KEY_ID", "AWS_PROFILE", "AWS_ROLE_ARN", "AWS_WEB_IDENTITY_TOKEN_FILE"}
    anonymous = url.startswith("s3:") and not known and not (Path.home() / ".aws" / "credentials").exists()
    return {"anon": True} if anonymous else {}


def _reopened(array: Any) -> Any:
    """Return an array whose chunks are checked as they are read.

    Other processes reopen one in a folder; merely unpickled, it would read a missing folder as 0.
    """
    if isinstance(array.store, LocalStore):
        return LazyArray(partial(_open_chunks, array.store.root.absolute() / array.path), fresh=True)
    if isinstance(array.store, _CheckedAddress):
        array.store.of_array(array)
    return array


def _open_chunks(path: Path) -> Any:
    array = _open_folder(path)
    array.store.of_array(array)
    return PlainChunks.of(array, array.store.chunk)


def _open_array(array: Any, selection: Selection, name: str) -> Stored:
    check_level(selection.level, 1, name)
    _check_chunks(array, name)
    named = getattr(array.metadata, "dimension_names", None)
    attributes = array.attrs.asdict() | ({"dimension_names": list(named)} if named else {})
    return Stored(_reopened(array), *axes_and_sizes(attributes, array.ndim, selection, name))


def _check_chunks(array: Any, name: str) -> None:
    """Check that no chunk is larger than its file can fill, or compressed twice, each time perhaps a thousandfold."""
    if _most_compressors(array.metadata.to_dict(), name) > 1:
        raise VolumeError(f"{name} has chunks that are compressed several times: it is damaged")
    nbytes = math.prod(array.chunks) * array.dtype.itemsize
    if nbytes > 2**29 and isinstance(array.store, LocalStore):
        folder = array.store.root / array.path
        check_block(nbytes, sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()), name, "chunks")


def _most_compressors(metadata: Any, name: str) -> int:
    """Return how many compressors a chunk goes through, by its array's metadata; a shard in a shard counts as two."""
    codecs = metadata["codecs"] if "codecs" in metadata else [*(metadata.get("filters") or ())]
    if "codecs" not in metadata and metadata.get("compressor"):
        codecs.append(metadata["compressor"])
    names = [str(codec.get("name", codec.get("id"))).removeprefix("numcodecs.") for codec in map(_described, codecs)]
    inner = [_configuration(codec) for codec in codecs]
    if objects := _OF_OBJECTS.intersection(names):
        raise VolumeError(f"{name} has chunks of text or objects, by {min(objects)}: give an array of numbers")
    nested = [each[key] for each in inner for key in ("codecs", "index_codecs") if each.get(key)]
    found = sum(each in _COMPRESSORS for each in names)
    found += max((_most_compressors({"codecs": codecs}, name) for codecs in nested), default=0)
    return found + 2 * sum("codecs" in _configuration(codec) for each in inner for codec in each.get("codecs") or ())


def _described(codec: Any) -> dict[str, Any]:
    described: dict[str, Any] = codec if isinstance(codec, dict) else codec.get_config()
    return described


def _configuration(codec: Any) -> dict[str, Any]:
    return _described(codec).get("configuration") or {}


def _open_group(group: zarr.Group, selection: Selection, name: str) -> Stored:
    """Open an image of OME-Zarr, https://ngff.openmicroscopy.org/0.5/."""
    attributes: Any = group.attrs.asdict()
    images = (attributes.get("ome") or attributes).get("multiscales")
    if not images:
        keys = sorted(group.keys())
        inside = ", ".join(keys[:9]) or "nothing"
        message = f"{name} is a Zarr group without an OME image: give the path of an array in it ({inside})"
        if keys and isinstance(group.store, LocalStore):
            raise ChoiceError(message, "source", [str(group.store.root / group.path / key) for key in keys])
        raise VolumeError(message)
    image = images[pick(selection.series, len(images), "image", name)]
    datasets = image.get("datasets")
    if not datasets:
        raise VolumeError(f"{name} has OME metadata without an array: give the path of an array in it")
    check_level(selection.level, len(datasets), name)
    array: Any = group.get(datasets[selection.level]["path"])
    if not isinstance(array, zarr.Array):
        path = str(datasets[selection.level]["path"])[:40]
        raise VolumeError(f"{name} has no array {path}, which its OME metadata name: copy or export it again")
    _check_chunks(array, name)
    named = [axis if isinstance(axis, dict) else {"name": axis} for axis in image.get("axes") or "tczyx"[-array.ndim :]]
    axes = "" if selection.axes else axis_letters([_axis_name(axis) for axis in named], name)
    sizes, notes = read_metadata(lambda: _sizes(named, image, datasets[selection.level]), "transformations")
    if not sizes and not notes and any(axis.get("unit") for axis in named):
        notes = ("pixel size unknown: its axes have a unit, but no scale",)
    return Stored(_reopened(array), axes, sizes, notes, threshold=own_threshold(attributes.get("napari_kdunet")))


def _axis_name(axis: dict[str, Any]) -> str:
    return {"time": "t", "channel": "c"}.get(str(axis.get("type")), str(axis.get("name")))


def _sizes(axes: list[dict[str, Any]], image: Any, dataset: Any) -> Sizes:
    """Return size and unit of each axis; the size is the product of the dataset's scale and the image's."""
    scales = [
        transform["scale"]
        for holder in (dataset, image)
        for transform in holder.get("coordinateTransformations") or []
        if transform.get("type") == "scale"
    ]
    if not scales:
        return {}
    if any(len(scale) != len(axes) for scale in scales):
        raise ValueError(f"{len(scales[0])} numbers for {len(axes)} axes")
    sizes = {}
    for i, axis in enumerate(axes):
        letter = axis_letters([_axis_name(axis)], "an axis")
        if letter and letter in "zyx":
            sizes[letter] = (math.prod(to_number(scale[i]) for scale in scales), axis.get("unit"))
    return sizes
