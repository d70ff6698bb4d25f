"""Chunks of a Zarr in a folder, read and decoded in the calling thread.

zarr passes each chunk through a thread of its own and one of a pool. While all cores are busy, that takes as long as a
tiny network takes for a slice.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import product
from typing import Any, TypeAlias

import numcodecs
import numpy as np
from numpy.typing import NDArray

from napari_kdunet.core.errors import VolumeError

__all__ = ["PlainChunks"]

ReadChunk: TypeAlias = Callable[[str], bytes | None]
"""Function that returns what is stored under a key; None if there is nothing."""

_MOST_BYTES = 2**23  # of several chunks, decoded; more are left to zarr, which decodes several at a time
_COMPRESSORS = {"blosc": numcodecs.Blosc, "gzip": numcodecs.GZip, "zlib": numcodecs.Zlib, "zstd": numcodecs.Zstd}


class PlainChunks:
    """An array whose chunks are pixels in C order, compressed once or not at all; made by `of`.

    Blocks with steps, or of many chunks, are left to zarr.
    """

    def __init__(self, array: Any, read: ReadChunk, stored: np.dtype[Any], compressor: Any) -> None:
        self.array, self.read, self.stored, self.compressor = array, read, stored, compressor
        self.shape, self.dtype, self.chunks = array.shape, np.dtype(array.dtype), array.chunks

    @classmethod
    def of(cls, array: Any, read: ReadChunk) -> Any:
        """Return a zarr array with its chunks read by `read` if they are stored in so plain a way; else as it is."""
        described = array.metadata.to_dict()
        if array.shards or array.dtype.kind not in "biuf":
            return array
        if described["zarr_format"] == 2:
            compressor = (described["compressor"] or {}).get("id")
            plain, stored = described["order"] == "C" and not described["filters"], np.dtype(described["dtype"])
        else:
            first, *others = described["codecs"]
            order = ">" if first.get("configuration", {}).get("endian") == "big" else "<"
            compressor = others[0]["name"] if others else None
            plain, stored = first["name"] == "bytes" and len(others) < 2, array.dtype.newbyteorder(order)
        if not plain or not (compressor is None or compressor in _COMPRESSORS):
            return array
        return cls(array, read, stored, compressor and _COMPRESSORS[compressor]())

    def __getitem__(self, key: tuple[int | slice, ...]) -> NDArray[Any]:
        wanted = [range(n)[k] for k, n in zip(key, self.shape, strict=True)]
        ranges = [r if isinstance(r, range) else range(r, r + 1) for r in wanted]
        parts = [_parts(r, n) for r, n in zip(ranges, self.chunks, strict=True)]
        if any(r.step != 1 for r in ranges) or self._is_large(math.prod(map(len, parts))):
            left: NDArray[Any] = self.array[key]
            return left
        block = np.empty([len(r) for r in ranges], self.dtype)
        for chosen in product(*parts):
            index, there, here = zip(*chosen, strict=True)
            chunk = self._chunk(index)
            block[there] = self.array.fill_value or 0 if chunk is None else chunk[here]
        return block[tuple(slice(None) if isinstance(r, range) else 0 for r in wanted)]

    def _is_large(self, count: int) -> bool:
        return count > 1 and count * math.prod(self.chunks) * self.stored.itemsize > _MOST_BYTES

    def _chunk(self, index: tuple[int, ...]) -> NDArray[Any] | None:
        key = self.array.metadata.encode_chunk_key(index)
        data = self.read(key)
        if data is None:
            return None
        pixels = np.frombuffer(data if self.compressor is None else self.compressor.decode(data), self.stored)
        if pixels.size != math.prod(self.chunks):
            raise VolumeError(f"chunk {key} has {pixels.size:,} pixels, not {math.prod(self.chunks):,}: it is damaged")
        return pixels.reshape(self.chunks)


def _parts(wanted: range, side: int) -> list[tuple[int, slice, slice]]:
    """Return the chunks along an axis that hold `wanted`: index, and its slices in the result and in the chunk."""
    parts = []
    for i in range(wanted.start // side, -(-wanted.stop // side)) if wanted else ():
        first, stop = max(wanted.start, i * side), min(wanted.stop, (i + 1) * side)
        parts.append((i, slice(first - wanted.start, stop - wanted.start), slice(first - i * side, stop - i * side)))
    return parts
