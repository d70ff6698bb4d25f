"""Image volumes, lazily sliced: TIFF, OME-TIFF, Zarr, OME-Zarr, NumPy files, folders of slices and arrays.

`open_volume` reads headers only. Every source then looks the same: a `Volume` with axes ZYX, of which
`Volume.read` fetches a window of one slice. Voxel sizes are in nm and in the order Z, Y, X.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any

import dask.array as da
import numpy as np

from napari_kdunet.core.errors import LabelsError, VolumeError
from napari_kdunet.core.volumes.readers import name_of, open_source
from napari_kdunet.core.volumes.sources import AxesView, Key, Source, VoxelSize, one_line

__all__ = ["Volume", "VoxelSize", "check_labels", "open_pair", "open_volume"]

_STRIP_ROWS = 1024
_AT_ONCE = 2**15  # pixels that are float64 at a time: few enough for the cache
_CACHED_STATISTICS = 4096


@dataclass(frozen=True, eq=False)
class Volume:
    """A lazily sliced volume with axes ZYX; use `open_volume` to get one.

    It can be sliced like an array, and pickled: no file stays open in its pickled state.

    Attributes
    ----------
    name : str
        The path, or another name for messages.
    voxel_size : tuple of float or None
        Size of a voxel in nm (Z, Y, X); None where the source does not state it.
    """

    name: str
    source: Source = field(repr=False)
    voxel_size: VoxelSize | None = None
    _statistics: dict[int, tuple[float, float]] = field(default_factory=dict, init=False, repr=False)

    ndim = 3

    @property
    def shape(self) -> tuple[int, int, int]:
        """Number of slices, rows and columns."""
        return self.source.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of a pixel, in native byte order."""
        return self.source.dtype

    @property
    def data(self) -> da.Array:
        """The volume as a lazy dask array, ZYX, in the chunks in which it is stored."""
        data: da.Array
        if isinstance(self.source, AxesView) and isinstance(self.source.array, da.Array):
            data = self.source.select((slice(None),) * 3)
        else:
            meta = np.empty((0, 0, 0), self.dtype)
            data = da.from_array(self, chunks=self.source.chunks, name=False, meta=meta)
        return data

    def read(self, z: int, y: slice = slice(None), x: slice = slice(None)) -> np.ndarray[Any, Any]:
        """Read a window of one slice.

        Parameters
        ----------
        z : int
            Index of the slice, from 0.
        y, x : slice
            Rows and columns; all by default. Of a TIFF the page is decoded, of a Zarr the chunks needed.

        Returns
        -------
        ndarray, shape (Y, X)
            A new array of the volume's dtype.

        Raises
        ------
        VolumeError
            There is no such slice, or it cannot be read.
        """
        if not 0 <= z < self.shape[0]:
            raise VolumeError(f"{self.name} has slices 0 to {self.shape[0] - 1}: there is no slice z={z}")
        return self._read((int(z), y, x))

    def _read(self, key: Key) -> np.ndarray[Any, Any]:
        try:
            return np.array(self.source[key], dtype=self.dtype)
        except Exception as error:
            z = key[0] if isinstance(key[0], int) else "{}-{}".format(*key[0].indices(self.shape[0]))
            raise VolumeError(f"cannot read slice z={z} of {self.name}: {one_line(error)}") from error

    def __getitem__(self, key: Any) -> np.ndarray[Any, Any]:
        z, y, x = (*(key if isinstance(key, tuple) else (key,)), slice(None), slice(None))[:3]
        return self._read((z if isinstance(z, slice) else range(self.shape[0])[z], y, x))

    def __len__(self) -> int:
        return self.shape[0]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray[Any, Any]:
        return np.asarray(self[:], dtype)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_statistics": {}}

    def statistics(self, z: int, whole: np.ndarray[Any, Any] | None = None) -> tuple[float, float]:
        """Mean and standard deviation of slice `z`, in the units of the raw values; remembered.

        It is read for that, unless it has been and is given (Y, X) as `whole`.

        Raises
        ------
        VolumeError
            The slice cannot be read, or it holds NaN or infinite values.
        """
        known = self._statistics.get(z)
        if known is not None:
            return known
        strips = []
        for top in range(0, self.shape[1], _STRIP_ROWS):
            rows = slice(top, top + _STRIP_ROWS)
            strip = self.read(z, rows) if whole is None else whole[rows]
            if not np.isfinite(strip).all():
                raise VolumeError(
                    f"slice z={z} of {self.name} holds NaN or infinite values: replace them, e.g. by numpy.nan_to_num"
                )
            for part in np.array_split(strip.reshape(-1), -(-strip.size // _AT_ONCE)):
                values = part.astype(np.float64)
                mean = values.mean()
                values -= mean
                np.square(values, out=values)  # not values @ values: the threads of a BLAS take a core to wait for more
                strips.append((values.size, mean, values.mean()))
        size, means, variances = np.array(strips).T
        mean = float(np.average(means, weights=size))
        std = math.sqrt(np.average(variances + (means - mean) ** 2, weights=size))
        if len(self._statistics) >= _CACHED_STATISTICS:
            self._statistics.clear()
        self._statistics[z] = (mean, std)
        return mean, std


def open_volume(source: Any, *, voxel_size: VoxelSize | None = None, level: int = 0, name: str | None = None) -> Volume:
    """Open an image or labels volume lazily: headers are read, pixels are not.

    Parameters
    ----------
    source : str, Path, array-like or Volume
        A TIFF (multi-page, OME, ImageJ, BigTIFF), a PNG, a folder of TIFF or PNG slices (natural order), a ``.npy``
        file, a Zarr array or OME-Zarr image (folder or opened by zarr), anything with ``shape``, ``dtype`` and
        ``__getitem__`` (NumPy, dask, ...), or a `Volume`. Axes are ZYX; YX is one slice. In a TIFF the only other
        axis longer than 1 is taken as z, whatever its name, unless it is 2 to 4 channels.
    voxel_size : tuple of float, optional
        Size of a voxel in nm (Z, Y, X), in place of the one that the source states. Where a source
        states the size in plane only, that size is taken for z too.
    level : int
        Scale level of a pyramid (OME-Zarr, OME-TIFF); 0 is full resolution.
    name : str, optional
        Name for messages; the path by default.

    Returns
    -------
    Volume
        Axes ZYX; boolean, integer or floating point.

    Raises
    ------
    VolumeError
        The source is missing, damaged, empty, of an unknown kind, RGB or not a volume.
    """
    volume = replace(source, name=name or source.name) if isinstance(source, Volume) else _open(source, level, name)
    if 0 in volume.shape:
        raise VolumeError(f"{volume.name} is empty, its shape is {volume.shape}: give a volume with pixels")
    if volume.dtype.kind not in "biuf":
        raise VolumeError(f"{volume.name} has dtype {volume.dtype}: convert it to an integer or floating-point type")
    if voxel_size is None:
        return volume
    if len(voxel_size) != 3 or not all(0 < size < math.inf for size in voxel_size):
        raise VolumeError(f"voxel size {voxel_size} of {volume.name}: give three positive numbers, nm, Z Y X")
    return replace(volume, voxel_size=(float(voxel_size[0]), float(voxel_size[1]), float(voxel_size[2])))


def _open(source: Any, level: int, name: str | None) -> Volume:
    name = name or name_of(source)
    try:
        return Volume(name, *open_source(source, level, name))
    except VolumeError:
        raise
    except Exception as error:
        raise VolumeError(f"cannot read {name}: {one_line(error)}") from error


def check_labels(raw: Volume, labels: Volume) -> None:
    """Check that labels are whole numbers on the grid of their image.

    Raises
    ------
    LabelsError
        The labels have a floating-point dtype, or another shape than the image.
    """
    if labels.dtype.kind == "f":
        raise LabelsError(
            f"labels {labels.name} {labels.shape} of {raw.name} {raw.shape} have dtype {labels.dtype}: "
            "labels are whole numbers, convert them, e.g. by astype('uint16')"
        )
    if labels.shape != raw.shape:
        raise LabelsError(
            f"labels {labels.name} have shape {labels.shape}, but their image {raw.name} has shape {raw.shape}: "
            "give labels of the same shape (Z, Y, X)"
        )


def open_pair(raw: Any, labels: Any) -> tuple[Volume, Volume]:
    """Open an image and its labels, and check that they fit; errors as in `open_volume` and `check_labels`."""
    image, truth = open_volume(raw), open_volume(labels)
    check_labels(image, truth)
    return image, truth
