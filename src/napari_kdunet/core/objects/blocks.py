"""Volumes in blocks: how they are cut, read as probabilities, and where intermediate labels are kept."""

from __future__ import annotations

import itertools
import math
import shutil
import tempfile
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.codecs import BloscCodec

from napari_kdunet.core.errors import OutputError
from napari_kdunet.core.files import scratch_folder
from napari_kdunet.core.objects.foreground import Window
from napari_kdunet.core.reading.sources import AxesView, RawArray
from napari_kdunet.core.volumes.labels import predicted_ids
from napari_kdunet.core.volumes.probability import kind_of, read_probability
from napari_kdunet.core.volumes.slice_reader import read_slices
from napari_kdunet.core.volumes.volume import Volume

__all__ = ["Probability", "Scratch", "cut_blocks", "iter_windows"]

_VOXELS = 3 * 2**24  # voxels of a block with its halo
_IN_MEMORY = 2**28  # bytes up to which intermediate results are kept in memory
_CHUNK = (4, 256, 256)  # chunk of a `Scratch`: whole slices are read together, so only a few as they are large
_DEPTH = 16  # the depth of a block is a multiple of this number of slices
_SLAB = 16  # slices of a volume that are staged at a time


class Scratch:
    """An array of zeros to write to: in memory if it is small, or else compressed in a temporary folder.

    The folder is removed with the last reference to the array, or at the end of the process.
    """

    def __init__(self, shape: tuple[int, int, int], dtype: Any, folder: Path | None = None) -> None:
        self.shape, self.dtype, self.ndim = shape, np.dtype(dtype), 3
        self.chunks = tuple(map(min, _CHUNK, shape))
        self._array: Any
        if math.prod(shape) * self.dtype.itemsize <= _IN_MEMORY:
            self._array = np.zeros(shape, dtype)
            return
        try:
            path = scratch_folder(folder or Path(tempfile.gettempdir()))
        except OSError as error:
            raise OutputError(f"cannot write to {folder or tempfile.gettempdir()}: {error.strerror}") from error
        weakref.finalize(self, shutil.rmtree, path, ignore_errors=True)
        codec = BloscCodec(cname="lz4", clevel=3)
        self._array = zarr.create_array(path, shape=shape, dtype=dtype, chunks=self.chunks, compressors=codec)

    def __getitem__(self, key: Any) -> NDArray[Any]:
        return np.asarray(self._array[key])

    def __setitem__(self, key: Any, value: NDArray[Any]) -> None:
        try:
            self._array[key] = value
        except OSError as error:
            raise OutputError(f"cannot keep intermediate results: {error.strerror or error}") from error


class Probability:
    """Prediction that is read in windows: bool for a mask, float32 or unsigned integers for probabilities.

    A volume that can only be read in whole slices (TIFF, a lazy prediction) is read once into a `Scratch`, from which
    the windows are taken.
    """

    def __init__(self, volume: Volume, folder: Path | None, progress: Callable[[float], object]) -> None:
        self.volume, self.shape, self.kind = volume, volume.shape, kind_of(volume)
        self._staged = self._stage(folder, progress) if _is_read_by_slices(volume) else None

    def _stage(self, folder: Path | None, progress: Callable[[float], object]) -> Scratch:
        depth = self.shape[0]
        kept = Scratch(self.shape, np.bool_ if self.kind != "probability" else self.volume.dtype, folder)
        slab: list[NDArray[Any]] = []
        for z, pixels in enumerate(read_slices(self.volume, range(depth))):
            slab.append(self._checked(pixels, z))
            if len(slab) == _SLAB or z == depth - 1:
                kept[z + 1 - len(slab) : z + 1] = np.stack(slab)
                slab.clear()
                progress((z + 1) / depth)
        return kept

    def read(self, window: Window) -> NDArray[Any]:
        """Return a window as a new array; raises `VolumeError` where it cannot be read or is not in [0, 1]."""
        if self._staged is not None:
            return self._staged[window].copy()
        return self._checked(self.volume[window], window[0].start)

    def _checked(self, values: NDArray[Any], z: int) -> NDArray[Any]:
        if self.kind != "probability":
            return np.asarray(predicted_ids(values, self.volume.name) != 0)
        if values.dtype.kind == "f":
            values = values.astype(np.float32)
            if not (values.min() >= 0 and values.max() <= 1):
                for inside in range(z, min(z + len(values) if values.ndim == 3 else z + 1, self.shape[0])):
                    read_probability(self.volume, inside)  # raises, naming the slice
        return values


def _is_read_by_slices(volume: Volume) -> bool:
    source = volume.source
    array = source.array if isinstance(source, AxesView) else source
    if isinstance(array, da.Array):
        return True
    whole = tuple(source.chunks[1:]) == tuple(volume.shape[1:])
    return whole and not isinstance(array, np.ndarray | RawArray | Scratch)


def cut_blocks(
    shape: tuple[int, ...], halo: tuple[int, ...], block: tuple[int, int, int] | None = None
) -> tuple[tuple[int, ...], list[list[slice]]]:
    """Cut a volume into blocks.

    Parameters
    ----------
    shape, halo : tuple of int
        Shape of the volume and halo that is read around a block, in voxels, ZYX.
    block : tuple of int, optional
        Shape of a block, ZYX; by default as large as memory allows and made of whole chunks of a `Scratch`.

    Returns
    -------
    sides : tuple of int
        Shape of a block, ZYX, at most that of the volume.
    cuts : list of list of slice
        Slices that cut the volume, one list for each of the axes Z, Y and X.
    """
    if block is None:
        area = [n if n <= 1.5 * chunk else chunk for n, chunk in zip(shape[1:], _CHUNK[1:], strict=True)]
        around = [min(n + 2 * h, m) for n, h, m in zip(area, halo[1:], shape[1:], strict=True)]
        depth = _VOXELS // math.prod(around) - 2 * halo[0]
        block = (max(_DEPTH, depth // _DEPTH * _DEPTH), area[0], area[1])
    sides = tuple(map(min, block, shape))
    cuts = [[slice(a, min(a + side, n)) for a in range(0, n, side)] for n, side in zip(shape, sides, strict=True)]
    return sides, cuts


def iter_windows(cuts: list[list[slice]], z: slice) -> Iterator[Window]:
    """Return an iterator over the blocks in the layer of slices `z`."""
    return ((z, y, x) for y, x in itertools.product(cuts[1], cuts[2]))
