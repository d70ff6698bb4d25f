"""Array-likes that a `Volume` reads from, with axes ZYX, and voxel sizes in nm in the same order.

The readers of `formats` wrap whatever they open in one of these.
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
    "AxesView",
    "Key",
    "LazyArray",
    "Opened",
    "SliceStack",
    "Source",
    "VoxelSize",
    "check_level",
    "complete_voxel_size",
    "nanometres",
    "one_line",
    "open_array",
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
    """A read-only array-like with axes ZYX: ``source[z, y, x]`` with z an int or a slice, y and x slices.

    `dtype` is in native byte order; blocks may come in another.
    """

    shape: tuple[int, int, int]
    dtype: np.dtype[Any]
    chunks: tuple[int, int, int]

    def __getitem__(self, key: Key, /) -> np.ndarray[Any, Any]: ...


class LazyArray:
    """An array that `opener` opens on first use in each process; pickled as the opener alone."""

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


class AxesView:
    """A ZYX view of an array-like with one-letter axes; the axes other than z, y and x have length 1."""

    def __init__(self, array: Any, axes: str) -> None:
        self.array, self.axes, self.dtype = array, axes, np.dtype(array.dtype).newbyteorder("=")
        self.shape: tuple[int, int, int] = self._zyx(array.shape)
        chunks = getattr(array, "chunks", None)
        regular = isinstance(chunks, tuple) and all(isinstance(n, int) for n in chunks)
        self.chunks: tuple[int, int, int] = self._zyx(chunks) if regular else (1, *self.shape[1:])

    def _zyx(self, lengths: Any) -> tuple[int, int, int]:
        by_axis = dict(zip(self.axes, lengths, strict=True))
        return (int(by_axis.get("z", 1)), int(by_axis["y"]), int(by_axis["x"]))

    def select(self, key: Key) -> Any:
        """Index with (z, y, x) without computing: the result is of the array's own type, dask stays dask."""
        z, y, x = key
        block = self.array[tuple({"z": z, "y": y, "x": x}.get(axis, 0) for axis in self.axes)]
        return block if "z" in self.axes else block[None][z]

    def __getitem__(self, key: Key) -> np.ndarray[Any, Any]:
        block = self.select(key)
        # on a dask worker the default scheduler would be the cluster itself, and could wait for ever
        return np.asarray(block.compute(scheduler="synchronous") if isinstance(block, da.Array) else block)


class SliceStack:
    """A stack of slices that `load` decodes whole, by index; the last one is cached for its other tiles."""

    def __init__(self, load: Callable[[int], Any], shape: tuple[int, int, int], dtype: Any) -> None:
        self.load, self.shape, self.dtype = load, shape, np.dtype(dtype).newbyteorder("=")
        self.chunks = (1, *shape[1:])
        self._cached: tuple[int, np.ndarray[Any, Any]] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_cached": None}

    def __getitem__(self, key: Key) -> np.ndarray[Any, Any]:
        z, y, x = key
        if isinstance(z, slice):
            return np.stack([self[i, y, x] for i in range(self.shape[0])[z]])
        cached = self._cached
        if cached is None or cached[0] != z:
            cached = self._cached = (z, np.asarray(self.load(z)).reshape(self.shape[1:]))
        return cached[1][y, x]


class Opened(NamedTuple):
    """What a reader returns: the array, and the voxel size (nm, ZYX) where the file states it."""

    source: Source
    voxel_size: VoxelSize | None = None


def complete_voxel_size(z: float | None, y: float | None, x: float | None) -> VoxelSize | None:
    """Fill in sizes that are not stated: y and x from each other, z from the plane."""
    y, x = y or x, x or y
    return (z or x, y, x) if x and y else None


def nanometres(size: Any, unit: Any) -> float | None:
    """Convert a size to nm; None where it is not a positive number or its unit is not one of length."""
    text = unicodedata.normalize("NFKC", str(unit).replace("\\u00B5", "µ")).strip().lower()
    factor = _NM.get(text, _NM.get(text.removesuffix("s")))
    size = float(size or 0)
    return size * factor if factor and 0 < size < math.inf else None


def open_array(array: Any, level: int, name: str) -> Opened:
    """Open an array-like with axes ZYX or YX.

    Raises
    ------
    VolumeError
        It has another number of axes, or a dtype that NumPy does not know.
    """
    check_level(level, 1, name)
    if len(array.shape) not in (2, 3):
        raise VolumeError(f"{name} has {len(array.shape)} axes, shape {tuple(array.shape)}: give ZYX or YX")
    try:
        return Opened(AxesView(array, "zyx"[-len(array.shape) :]))
    except TypeError:
        raise VolumeError(f"{name} has dtype {array.dtype}: convert it to a NumPy array") from None


def check_level(level: int, levels: int, name: str) -> None:
    """Check that a pyramid has this scale level; `VolumeError` if not."""
    if not 0 <= level < levels:
        raise VolumeError(f"{name} has scale levels 0 to {levels - 1}: there is no level {level}")


def one_line(error: Exception) -> str:
    """The message of an exception on one line."""
    return " ".join(str(error).split()) or type(error).__name__
