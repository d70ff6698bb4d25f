"""Array-likes that readers make of files: read by position, by page or by a library, and reopened in each process."""

from __future__ import annotations

import bz2
import lzma
import math
import os
import stat
import zlib
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import dask.array as da
import numpy as np

from napari_kdunet.core.errors import VolumeError

__all__ = [
    "AxesView",
    "Key",
    "LazyArray",
    "MappedArray",
    "PagedArray",
    "RawArray",
    "Source",
    "check_block",
    "check_chunk",
    "check_chunk_count",
    "check_compressed",
    "check_memory",
    "check_part",
    "check_regular",
]

Key: TypeAlias = tuple[int | slice, slice, slice]

_LARGEST_BLOCK = 2**29  # bytes that must be decoded at once, of a chunk or an image
_LARGEST_CHUNK = 2**27  # bytes of a chunk, which is in memory beside the pixels that are taken from it
_MOST_CHUNKS = 2**18  # at once, each of which takes some 0.1 ms
_DEFLATE, _ZSTD_HEADER = 1032, 18  # largest ratio of deflate, and bytes of a header of Zstandard
_LZMA_MEMORY = 2**27  # bytes, twice what its highest setting takes
_IN_MEMORY = 2**30  # bytes of pages that are decoded once and cached if every slice takes a line of each


class Source(Protocol):
    """A read-only array-like with axes ZYX: ``source[z, y, x]`` with z an int or a slice, y and x slices.

    `dtype` is in native byte order, but blocks may be in another.
    """

    shape: tuple[int, int, int]
    dtype: np.dtype[Any]
    chunks: tuple[int, int, int]

    def __getitem__(self, key: Key, /) -> np.ndarray[Any, Any]: ...


class LazyArray:
    """An array that `opener` opens once in each process; it is pickled without the open array.

    `fresh` says that each block read from it is a new array, which nothing else refers to.
    """

    def __init__(self, opener: Callable[[], Any], *, fresh: bool = False) -> None:
        self.opener, self.fresh = opener, fresh
        array = opener()
        self._opened: tuple[int, Any] | None = (os.getpid(), array)
        self.shape, self.dtype = tuple(array.shape), np.dtype(array.dtype)
        self.chunks = getattr(array, "chunks", None)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_opened": None}

    def __getitem__(self, key: Any) -> Any:
        opened = self._opened
        if opened is None or opened[0] != os.getpid():  # a forked process must not share the position in a file
            opened = self._opened = (os.getpid(), self.opener())
        return opened[1][key]


class PagedArray:
    """An array of any number of axes, of which the last ones form pages; `load` decodes a page by its index (C order).

    The last page is cached for the other tiles of a slice. If slices run across the pages (`keep`), all are cached, up
    to 1 GB.
    """

    def __init__(self, load: Callable[[int], Any], pages: tuple[int, ...], page: tuple[int, ...], dtype: Any) -> None:
        self.load, self.pages, self.page = load, pages, page
        self.shape, self.dtype = (*pages, *page), np.dtype(dtype)
        self.chunks = ((1,) * len(pages)) + page
        self._cached: dict[int, np.ndarray[Any, Any]] = {}
        self._keep = False

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_cached": {}}

    def keep(self) -> None:
        """Cache all pages if they fit in memory."""
        self._keep = math.prod(self.shape) * self.dtype.itemsize <= _IN_MEMORY

    def __getitem__(self, key: tuple[int | slice, ...]) -> np.ndarray[Any, Any]:
        outer, inner = key[: len(self.pages)], key[len(self.pages) :]
        for axis, (wanted, length) in enumerate(zip(outer, self.pages, strict=True)):
            if isinstance(wanted, slice):
                blocks = [self[(*key[:axis], i, *key[axis + 1 :])] for i in range(length)[wanted]]
                return np.stack(blocks) if blocks else np.empty((0, *self[(*key[:axis], 0, *key[axis + 1 :])].shape))
        indices: Any = outer
        return self._read(int(np.ravel_multi_index(indices, self.pages)) if outer else 0, inner)

    def _read(self, index: int, key: tuple[int | slice, ...]) -> np.ndarray[Any, Any]:
        page: np.ndarray[Any, Any] | None = self._cached.get(index)
        if page is None:
            page = np.asarray(self.load(index)).reshape(self.page)
            self._cached = {**self._cached, index: page} if self._keep else {index: page}
        window: np.ndarray[Any, Any] = page[key]
        return window


class RawArray(PagedArray):
    """Pixels that are stored uncompressed in a file, in C order; only the rows asked for are read.

    It is as lazy as a memory map, but a file that is cut short meanwhile raises an error, and does not end the process.
    """

    def __init__(self, path: Path, shape: tuple[int, ...], dtype: Any, offset: int, name: str) -> None:
        super().__init__(self._never, shape[:-2], shape[-2:], dtype)
        self.path, self.offset, self.name = path, offset, name
        if path.stat().st_size < offset + math.prod(shape) * self.dtype.itemsize:
            raise VolumeError(f"{name} is truncated or damaged: pixels are missing, copy or export it again")

    @staticmethod
    def _never(index: int) -> Any:
        raise NotImplementedError

    def keep(self) -> None:
        """Do nothing: the system caches what is read."""

    def _read(self, index: int, key: tuple[int | slice, ...]) -> np.ndarray[Any, Any]:
        rows, columns = self.page
        wanted = range(rows)[key[0]] if isinstance(key[0], slice) else range(key[0], key[0] + 1)
        first, stop = (min(wanted), max(wanted) + 1) if wanted else (0, 0)
        start = self.offset + (index * rows + first) * columns * self.dtype.itemsize
        count = (stop - first) * columns
        block: np.ndarray[Any, Any] = np.fromfile(self.path, self.dtype, count, offset=start)
        if block.size < count:
            raise VolumeError(f"{self.name} was cut short while it was read")
        picked: np.ndarray[Any, Any] = block.reshape(-1, columns)[:, key[1]]
        if wanted.step != 1:
            picked = picked[[row - first for row in wanted]]
        return picked if isinstance(key[0], slice) else np.asarray(picked[0])


class MappedArray:
    """An array-like that applies `function`, pixel by pixel, to each block that is read."""

    def __init__(self, array: Any, function: Callable[[Any], Any], dtype: Any) -> None:
        self.array, self.function, self.dtype = array, function, np.dtype(dtype)
        self.shape, self.chunks = array.shape, array.chunks

    def __getitem__(self, key: Any) -> Any:
        return self.function(self.array[key])


class AxesView:
    """A ZYX view of an array-like whose axes have one-letter names.

    Parameters
    ----------
    array : array-like
        Anything with `shape` and `dtype` that takes an index for each axis.
    axes : str
        Names of its axes, with y and x among them.
    fixed : mapping
        Index along each axis other than z, y and x; 0 where none is given.
    reversed_axes : str
        Axes that are stored in the opposite direction.
    """

    def __init__(self, array: Any, axes: str, fixed: dict[str, int] | None = None, reversed_axes: str = "") -> None:
        self.array, self.axes, self.fixed, self.reversed_axes = array, axes, fixed or {}, reversed_axes
        self.dtype, self.fresh = np.dtype(array.dtype).newbyteorder("="), bool(getattr(array, "fresh", False))
        self.shape: tuple[int, int, int] = self._zyx(array.shape)
        chunks = getattr(array, "chunks", None)
        regular = isinstance(chunks, tuple) and all(isinstance(n, int) for n in chunks)
        self.chunks: tuple[int, int, int] = self._zyx(chunks) if regular else (1, *self.shape[1:])

    def _zyx(self, lengths: Any) -> tuple[int, int, int]:
        by_axis = dict(zip(self.axes, lengths, strict=True))
        return (int(by_axis.get("z", 1)), int(by_axis["y"]), int(by_axis["x"]))

    def select(self, key: Key) -> Any:
        """Index with (z, y, x) without computing: the result is of the array's own type, dask stays dask."""
        wanted: dict[str, int | slice] = dict(zip("zyx", key, strict=True))
        stored, backwards = [], []
        for axis, length in zip(self.axes, self.array.shape, strict=True):
            item = wanted.get(axis, self.fixed.get(axis, 0))
            item, turned = _ascending(item, int(length), axis in self.reversed_axes)
            stored.append(item)
            backwards += [axis] if turned else []
        block = self.array[tuple(stored)]
        left = [axis for axis in self.axes if isinstance(wanted.get(axis), slice)]
        block = block[tuple(slice(None, None, -1 if axis in backwards else 1) for axis in left)] if backwards else block
        order = [left.index(axis) for axis in "zyx" if axis in left]
        block = block if order == sorted(order) else block.transpose(order)
        return block if "z" in self.axes else block[None][key[0]]

    def __getitem__(self, key: Key) -> np.ndarray[Any, Any]:
        block = self.select(key)
        # on a dask worker the default scheduler would be the cluster itself, and could wait for ever
        return np.asarray(block.compute(scheduler="synchronous") if isinstance(block, da.Array) else block)


def _ascending(item: int | slice, length: int, backwards: bool) -> tuple[int | slice, bool]:
    """Return an ascending item, which no library refuses, and whether what it selects has to be reversed."""
    if not isinstance(item, slice):
        return length - 1 - item if backwards else item, False
    if not backwards and (item.step or 1) > 0:
        return item, False
    wanted = range(length)[item]
    if backwards:
        wanted = range(length - 1 - wanted.start, length - 1 - wanted.stop, -wanted.step)
    if not wanted:
        return slice(0, 0), False
    low, high = sorted((wanted[0], wanted[-1]))
    return slice(low, high + 1, abs(wanted.step)), wanted.step < 0


def check_regular(path: Path, name: str) -> None:
    """Check that a path is a regular file, before it is opened: reading from a FIFO or a device may never end."""
    mode = path.stat().st_mode
    if not stat.S_ISREG(mode):
        raise VolumeError(f"{name} is {'a folder' if stat.S_ISDIR(mode) else 'no regular file'}: give a file")


def check_part(path: Path, other: str, name: str) -> Path:
    """Check that a file which another names as a part is a regular one, in the same folder or below; return its path.

    A stranger's file could name any other, whose bytes would become pixels. Symbolic links are followed.

    Parameters
    ----------
    path : Path
        File that names the other.
    other : str
        Name of the other, as that file states it.
    name : str
        Name of the first file, for messages.
    """
    part = path.parent / other
    if part.exists() and not part.is_dir():
        check_regular(part, f"{other}, from which {name} takes pixels,")
    if not Path(os.path.normpath(part)).is_relative_to(os.path.normpath(path.parent)):
        raise VolumeError(
            f"{name} takes pixels from {other}, outside of its folder: put that into it, or save it as one"
        )
    return part


def check_block(nbytes: int, stored: int, name: str, what: str) -> None:
    """Check, by what a header states, that a block which must be decoded at once is of a sensible size.

    Parameters
    ----------
    nbytes : int
        Bytes when it is decoded.
    stored : int
        Bytes in the file: images never compress to a thousandth, and large ones rarely to a hundredth.
    name, what : str
        For the message, e.g. ``raw.zarr`` and ``chunks``.
    """
    if nbytes > _memory():
        raise VolumeError(f"{name} has {what} of {nbytes / 1e9:,.1f} GB, more than the memory here: store smaller ones")
    if nbytes > _LARGEST_BLOCK and nbytes > 100 * stored:
        raise VolumeError(f"{name} has {what} of {nbytes / 1e9:.1f} GB in a file of {stored:,} bytes: it is damaged")


def check_chunk(nbytes: int, stored: int, name: str) -> None:
    """Check a chunk before it is decoded, by the bytes that are stored and those that it is to become.

    This is stricter than `check_block` for all chunks together: a volume may be of any size, but chunks that are large
    and compress to next to nothing can be stored as smaller ones.
    """
    if nbytes > _LARGEST_CHUNK and nbytes > 100 * stored:
        claim = f"{name} becomes {nbytes / 1e9:.1f} GB from {stored:,} bytes"
        raise VolumeError(f"{claim}: it is damaged, or store its volume in smaller chunks")
    check_block(nbytes, stored, name, "pixels")


def _memory() -> float:
    """Return the bytes of this machine's memory; infinite if the system does not tell."""
    try:
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):  # not on Windows
        return math.inf
    return memory if memory > 0 else math.inf


def check_memory(nbytes: int) -> None:
    """Check that a block fits in the machine's memory: a damaged shape may claim any size."""
    if nbytes > _memory():
        raise VolumeError(f"{nbytes / 1e9:,.1f} GB at once are more than the memory here: read a part")


def check_chunk_count(lengths: Sequence[int], chunks: Sequence[int]) -> None:
    """Check that a window of these lengths does not have so many chunks that it takes hours: a chunk may be a pixel."""
    count = math.prod(length // max(1, chunk) for length, chunk in zip(lengths, chunks, strict=True))
    if count > _MOST_CHUNKS:
        raise VolumeError(f"{count:,} chunks at once are too many: store it in larger ones, or read a part")


def check_compressed(data: memoryview, nbytes: int, name: str) -> None:
    """Check that a compressed chunk does not decompress to more than the size of a chunk.

    Parameters
    ----------
    data : memoryview
        The chunk as it is stored. Zstandard and Blosc state the size; zlib, bzip2 and xz are decompressed, up to
        `nbytes`, if they could become too large.
    nbytes : int
        Bytes of a decoded chunk.
    name : str
        For the message.
    """
    claimed, head = 0, bytes(data[:_ZSTD_HEADER])
    if head.startswith((b"\x1f\x8b", b"\x78", b"BZh", b"\xfd7zXZ")):
        claimed = _decompressed_size(data, nbytes)
    elif head.startswith(b"\x28\xb5\x2f\xfd") and len(head) == _ZSTD_HEADER:
        claimed = _zstd_size(head)
    elif len(head) == _ZSTD_HEADER and int.from_bytes(data[12:16], "little") == len(data):  # Blosc
        claimed = int.from_bytes(data[4:8], "little")
    if claimed > nbytes:
        raise VolumeError(f"{name} holds more than a chunk of {nbytes:,} bytes: it is damaged")


def _decompressed_size(data: memoryview, nbytes: int) -> int:
    """Return the bytes that a chunk of zlib, gzip, bzip2 or xz becomes, at most `nbytes` + 1; 0 if it is harmless."""
    kind = bytes(data[:1])
    with suppress(zlib.error, OSError, EOFError, lzma.LZMAError):  # pixels may begin with the same bytes
        if kind == b"B":
            return len(bz2.BZ2Decompressor().decompress(data, nbytes + 1))
        if kind == b"\xfd":
            return len(lzma.LZMADecompressor(memlimit=_LZMA_MEMORY).decompress(data, nbytes + 1))
        if len(data) * _DEFLATE > _LARGEST_BLOCK // 2:
            return len(zlib.decompressobj(47).decompress(data, nbytes + 1))  # zlib or gzip
    return 0


def _zstd_size(data: bytes) -> int:
    """Return the size that a Zstandard frame declares (RFC 8878, 3.1.1.1); 0 if it declares none."""
    flag, single, dictionary = data[4] >> 6, data[4] >> 5 & 1, (0, 1, 2, 4)[data[4] & 3]
    start, length = 6 - single + dictionary, (single, 2, 4, 8)[flag]
    return int.from_bytes(data[start : start + length], "little") + (256 if flag == 1 else 0)
