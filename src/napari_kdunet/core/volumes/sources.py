"""What a `Volume` reads from: pixels as ``source[z, y, x]``, and a voxel size in nm in the order Z, Y, X.

The readers in `readers` and `tiff` wrap whatever they open in one of these.
"""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, TypeAlias

import dask.array as da
import numpy as np

from napari_kdunet.core.errors import VolumeError

__all__ = [
    "Axes",
    "Key",
    "Lazy",
    "Opened",
    "Pages",
    "Source",
    "VoxelSize",
    "check_level",
    "complete_voxel_size",
    "nanometres",
    "one_line",
]

VoxelSize: TypeAlias = tuple[float, float, float]
Key: TypeAlias = tuple[int | slice, slice, slice]

_UNITS = {
    1e-3: "pm picometer picometre",
    0.1: "å angstrom ångström",
    1.0: "nm nanometer nanometre",
    1e3: "μm um micron micrometer micrometre",
    1e6: "mm millimeter millimetre",
    1e7: "cm centimeter centimetre",
    1e9: "m meter metre",
}
_NM = {name: factor for factor, names in _UNITS.items() for name in names.split()}


class Source(Protocol):
    """What a `Volume` reads from: ``source[z, y, x]`` with z an int or a slice, y and x slices.

    `dtype` is in native byte order; what is read may be in another.
    """

    shape: tuple[int, int, int]
    dtype: np.dtype[Any]
    chunks: tuple[int, int, int]

    def __getitem__(self, key: Key, /) -> np.ndarray[Any, Any]: ...


class Lazy:
    """An array that `opener` opens when it is needed; pickled as the opener alone."""

    def __init__(self, opener: Callable[[], Any]) -> None:
        self.opener = opener
        self._array: Any = opener()
        self.shape, self.dtype = self._array.shape, self._array.dtype
        self.chunks = getattr(self._array, "chunks", None)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_array": None}

    def __getitem__(self, key: Any) -> Any:
        if self._array is None:
            self._array = self.opener()
        return self._array[key]


class Axes:
    """An array-like with one-letter axes, seen as ZYX; the axes other than z, y and x have length 1."""

    def __init__(self, array: Any, axes: str) -> None:
        self.array, self.axes, self.dtype = array, axes, np.dtype(array.dtype).newbyteorder("=")
        self.shape: tuple[int, int, int] = self._zyx(array.shape)
        chunks = getattr(array, "chunks", None)
        regular = isinstance(chunks, tuple) and all(isinstance(n, int) for n in chunks)
        self.chunks: tuple[int, int, int] = self._zyx(chunks) if regular else (1, *self.shape[1:])

    def _zyx(self, lengths: Any) -> tuple[int, int, int]:
        by_axis = dict(zip(self.axes, lengths, strict=True))
        return (int(by_axis.get("z", 1)), int(by_axis["y"]), int(by_axis["x"]))

    def lazy(self, key: Key) -> Any:
        """What `key` selects, in the array's own kind: a dask array stays one."""
        z, y, x = key
        block = self.array[tuple({"z": z, "y": y, "x": x}.get(axis, 0) for axis in self.axes)]
        return block if "z" in self.axes else block[None][z]

    def __getitem__(self, key: Key) -> np.ndarray[Any, Any]:
        block = self.lazy(key)
        # on a dask worker the default scheduler would be the cluster itself, and could wait for ever
        return np.asarray(block.compute(scheduler="synchronous") if isinstance(block, da.Array) else block)


class Pages:
    """Images that `load` reads whole, by index. The latest is kept: the tiles of a slice come one by one."""

    def __init__(self, load: Callable[[int], Any], shape: tuple[int, int, int], dtype: Any) -> None:
        self.load, self.shape, self.dtype = load, shape, np.dtype(dtype).newbyteorder("=")
        self.chunks = (1, *shape[1:])
        self._latest: tuple[int, np.ndarray[Any, Any]] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_latest": None}

    def __getitem__(self, key: Key) -> np.ndarray[Any, Any]:
        z, y, x = key
        if isinstance(z, slice):
            return np.stack([self[i, y, x] for i in range(self.shape[0])[z]])
        latest = self._latest
        if latest is None or latest[0] != z:
            latest = self._latest = (z, np.asarray(self.load(z)).reshape(self.shape[1:]))
        return latest[1][y, x]


class Opened(NamedTuple):
    """What a reader returns: where the pixels come from, and the voxel size where it is stated."""

    source: Source
    voxel_size: VoxelSize | None = None


def complete_voxel_size(z: float | None, y: float | None, x: float | None) -> VoxelSize | None:
    """Fill in what is not stated: one in-plane size from the other, and z from the plane."""
    y, x = y or x, x or y
    return (z or x, y, x) if x and y else None


def nanometres(size: Any, unit: Any) -> float | None:
    """Size in nm, or None where the size or its unit means nothing."""
    text = unicodedata.normalize("NFKC", str(unit).replace("\\u00B5", "µ")).strip().lower()
    factor = _NM.get(text, _NM.get(text.removesuffix("s")))
    size = float(size or 0)
    return size * factor if factor and 0 < size < math.inf else None


def check_level(level: int, levels: int, name: str) -> None:
    """Raise `VolumeError` where a pyramid has no such level."""
    if not 0 <= level < levels:
        raise VolumeError(f"{name} has scale levels 0 to {levels - 1}: there is no level {level}")


def one_line(error: Exception) -> str:
    """The message of an exception on one line."""
    return " ".join(str(error).split()) or type(error).__name__
