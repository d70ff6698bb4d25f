"""Zarr arrays, and images of OME-Zarr 0.1 to 0.5, in a folder or at an address."""

from __future__ import annotations

import math
import os
from functools import partial
from pathlib import Path
from typing import Any

import zarr
from zarr.storage import LocalStore

from napari_kdunet.core.errors import VolumeError
from napari_kdunet.core.volumes.axes import Selection, Stored, axis_letters, check_level
from napari_kdunet.core.volumes.formats.attributes import axes_and_sizes
from napari_kdunet.core.volumes.sources import LazyArray, check_block, check_compressed, check_regular
from napari_kdunet.core.volumes.voxel_size import Sizes, read_metadata, to_number

__all__ = ["is_zarr", "open_zarr", "open_zarr_node", "open_zarr_url"]

_COMPRESSORS = {"blosc", "bz2", "gzip", "lz4", "lzma", "pcodec", "zfpy", "zlib", "zstd"}
_METADATA = ("zarr.json", ".zarray", ".zgroup")


def is_zarr(path: Path) -> bool:
    """Whether a folder is a Zarr array or group."""
    return any((path / entry).exists() for entry in _METADATA)


class _CheckedFiles(LocalStore):
    """A folder whose files are checked: regular ones, as a FIFO may never end, with chunks that are not too large."""

    stored, nbytes = 0, 0
    """Bytes of a file of chunks at most, and of a chunk; 0 where they are not known yet."""

    async def get(self, key: str, *args: Any, **kwargs: Any) -> Any:
        """Read what is stored under a key."""
        path = self.root / key
        if path.exists():
            check_regular(path, str(path))
        found = await super().get(key, *args, **kwargs)
        if found is not None and self.nbytes and path.name not in (*_METADATA, ".zattrs", ".zmetadata"):
            pixels: Any = found.as_numpy_array()
            check_compressed(memoryview(pixels).cast("B"), self.stored, self.nbytes, str(path))
        return found


def open_zarr(path: Path, selection: Selection, name: str) -> Stored:
    """Open a folder that is a Zarr array, or a group that is an OME-Zarr image."""
    return open_zarr_node(_open_folder(path), selection, name)


def open_zarr_url(url: str, selection: Selection, name: str) -> Stored:
    """Open a Zarr at an address of fsspec, such as https:// or s3://."""
    return open_zarr_node(_open_url(url), selection, name)


def open_zarr_node(node: Any, selection: Selection, name: str) -> Stored:
    """Open a Zarr array, or the image in a Zarr group."""
    if isinstance(node, zarr.Group):
        return _open_group(node, selection, name)
    return _open_array(node, selection, name)


def _open_folder(path: Path) -> Any:
    store = _CheckedFiles(path, read_only=True)
    node = zarr.open(store, mode="r")
    if isinstance(node, zarr.Array):
        node_store: Any = node.store
        node_store.nbytes = math.prod(node.chunks) * node.dtype.itemsize
        node_store.stored = math.prod(node.shards or node.chunks) * node.dtype.itemsize
    return node


def _open_url(url: str) -> Any:
    try:
        store = zarr.storage.FsspecStore.from_url(url, storage_options=_storage_options(url), read_only=True)
    except ImportError:
        raise VolumeError(f'{url} is remote: install what that takes, pip install "napari-kdunet[formats]"') from None
    return zarr.open(store, mode="r")


def _storage_options(url: str) -> dict[str, Any]:
    """Without credentials, what is public on S3 can be read anonymously."""
    known = os.environ.keys() & {"AWS_ACCESS_KEY_ID", "AWS_PROFILE", "AWS_ROLE_ARN", "AWS_WEB_IDENTITY_TOKEN_FILE"}
    anonymous = url.startswith("s3:") and not known and not (Path.home() / ".aws" / "credentials").exists()
    return {"anon": True} if anonymous else {}


def _reopened(array: Any) -> Any:
    """A Zarr array of a folder, opened again in another process: there, chunks of a missing folder would read as 0."""
    if isinstance(array.store, LocalStore):
        return LazyArray(partial(_open_folder, array.store.root.absolute() / array.path))
    return array


def _open_array(array: Any, selection: Selection, name: str) -> Stored:
    check_level(selection.level, 1, name)
    _check_chunks(array, name)
    named = getattr(array.metadata, "dimension_names", None)
    attributes = array.attrs.asdict() | ({"dimension_names": list(named)} if named else {})
    return Stored(_reopened(array), *axes_and_sizes(attributes, array.ndim, selection, name))


def _check_chunks(array: Any, name: str) -> None:
    """Check that no chunk takes more memory than its file can fill or is compressed twice, each time a thousandfold."""
    if _most_compressors(array.metadata.to_dict()) > 1:
        raise VolumeError(f"{name} has chunks that are compressed several times: it is damaged")
    nbytes = math.prod(array.chunks) * array.dtype.itemsize
    if nbytes > 2**29 and isinstance(array.store, LocalStore):
        folder = array.store.root / array.path
        check_block(nbytes, sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()), name, "chunks")


def _most_compressors(metadata: Any) -> int:
    """How many compressors a chunk, or one in a shard, goes through by the metadata of its array."""
    lists = [metadata["codecs"]] if "codecs" in metadata else [[*(metadata.get("filters") or ())]]
    if "codecs" not in metadata and metadata.get("compressor"):
        lists[0].append(metadata["compressor"])
    most = 0
    while lists:
        codecs = [codec if isinstance(codec, dict) else codec.get_config() for codec in lists.pop()]
        names = [str(codec.get("name", codec.get("id"))).removeprefix("numcodecs.") for codec in codecs]
        most = max(most, sum(name in _COMPRESSORS for name in names))
        inner = [codec.get("configuration") or {} for codec in codecs]
        lists += [each[key] for each in inner for key in ("codecs", "index_codecs") if key in each]
    return most


def _open_group(group: zarr.Group, selection: Selection, name: str) -> Stored:
    """Open an image of OME-Zarr, https://ngff.openmicroscopy.org/0.5/."""
    attributes: Any = group.attrs.asdict()
    images = (attributes.get("ome") or attributes).get("multiscales")
    if not images:
        inside = ", ".join(sorted(group.keys())[:9]) or "nothing"
        raise VolumeError(f"{name} is a Zarr group without an OME image: give the path of an array in it ({inside})")
    image = images[selection.series or 0]
    datasets = image["datasets"]
    check_level(selection.level, len(datasets), name)
    array: Any = group[datasets[selection.level]["path"]]
    _check_chunks(array, name)
    named = [axis if isinstance(axis, dict) else {"name": axis} for axis in image.get("axes") or "tczyx"[-array.ndim :]]
    axes = "" if selection.axes else axis_letters([_axis_name(axis) for axis in named], name)
    sizes, notes = read_metadata(lambda: _sizes(named, image, datasets[selection.level]), "transformations")
    if not sizes and not notes and any(axis.get("unit") for axis in named):
        notes = ("pixel size unknown: its axes have a unit, but no scale",)
    return Stored(_reopened(array), axes, sizes, notes)


def _axis_name(axis: dict[str, Any]) -> str:
    return {"time": "t", "channel": "c"}.get(str(axis.get("type")), str(axis.get("name")))


def _sizes(axes: list[dict[str, Any]], image: Any, dataset: Any) -> Sizes:
    """The size and unit of each axis that is scaled: the product of a dataset's scale and the image's."""
    scales = [
        transform["scale"]
        for holder in (dataset, image)
        for transform in holder.get("coordinateTransformations") or []
        if transform.get("type") == "scale"
    ]
    if not scales:
        return {}
    sizes = {}
    for i, axis in enumerate(axes):
        letter = axis_letters([_axis_name(axis)], "an axis")
        if letter and letter in "zyx":
            sizes[letter] = (math.prod(to_number(scale[i]) for scale in scales), axis.get("unit"))
    return sizes
