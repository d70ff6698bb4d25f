"""Image volumes, lazily sliced: TIFF, OME-TIFF, Zarr, OME-Zarr, NumPy files, folders of slices and arrays.

`open_volume` reads headers only. Every source then looks the same: a `Volume` with axes ZYX, of which
`Volume.read` fetches a window of one slice. Voxel sizes are in nm and in the order Z, Y, X.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from numbers import Real
from typing import Any, Literal

import dask.array as da
import numpy as np

from napari_kdunet.core.errors import ConfigError, LabelsError, VolumeError, one_line
from napari_kdunet.core.files import newest
from napari_kdunet.core.reading.axes import Selection
from napari_kdunet.core.reading.formats.hdf5 import split_hdf5
from napari_kdunet.core.reading.readers import name_of, open_source
from napari_kdunet.core.reading.sources import (
    AxesView,
    Key,
    MappedArray,
    Source,
    check_chunk_count,
    check_memory,
)
from napari_kdunet.core.reading.voxel_size import VoxelSize, is_plausible, three_sizes
from napari_kdunet.core.volumes.padding import Mask
from napari_kdunet.core.volumes.sample import BLURRED, Summary, UnusableError, mirrored, summarise

__all__ = ["Volume", "check_labels", "open_pair", "open_volume", "shows_nothing"]

_CACHED_SUMMARIES = 2**16  # slices
_CACHED_BYTES = 2**26  # bytes of their masks
_ISOTROPIC = 1.05  # largest ratio of the sides of a voxel that counts as isotropic: less than training varies the scale
_UNKNOWN_SIZE = ("pixel size unknown", "slice distance unknown")


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
    fill : float or None
        Value of the pixels outside the sample, if the user has stated it; otherwise padding is detected.
    sample : Volume or None
        Mask of the sample, non-zero within, of the same shape; then `fill` is not used.
    inverted : bool
        Whether bright and dark are exchanged compared with what is stored; so is `fill`.
    notes : tuple of str
        What was assumed on opening, one phrase each: about axes, several images, metadata that make no sense.
    threshold : float
        If the volume holds probabilities, the one above which a voxel is foreground: that of the model if
        napari-kdunet predicted them, else 0.5.
    selection : Selection
        What was taken from a file that may hold more than one volume.
    """

    name: str
    source: Source = field(repr=False)
    voxel_size: VoxelSize | None = None
    notes: tuple[str, ...] = ()
    threshold: float = 0.5
    fill: float | None = field(default=None, kw_only=True)
    sample: Volume | None = field(default=None, kw_only=True, repr=False)
    inverted: bool = field(default=False, kw_only=True)
    selection: Selection = field(default=Selection(), kw_only=True, repr=False)
    _summaries: dict[int, Summary] = field(default_factory=dict, init=False, repr=False)
    _lost: dict[int, bool] = field(default_factory=dict, init=False, repr=False)

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
    def identity(self) -> tuple[Any, ...]:
        """What a result to be resumed depends on: name, date of the file, shape, dtype, sizes, sample; not pixels."""
        date = newest(split_hdf5(self.name)[0])
        sample = (self.fill, self.sample and self.sample.identity, *["inverted"] * self.inverted)
        taken = replace(self.selection, skip_unreadable=False)  # it changes no slice that can be read
        return (self.name, taken, date, self.shape, str(self.dtype), self.voxel_size, sample)

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
            Rows and columns; all by default. For a TIFF the whole page is decoded, for a Zarr the chunks needed.

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
            lengths = [len(range(n)[k]) if isinstance(k, slice) else 1 for k, n in zip(key, self.shape, strict=True)]
            check_memory(math.prod(lengths) * self.dtype.itemsize)
            check_chunk_count(lengths, self.source.chunks)
            block = np.asarray(self.source[key], dtype=self.dtype)
            is_new = getattr(self.source, "fresh", False) and block.flags.writeable
            return block if is_new else block.copy()  # a new block is not copied: it may be large
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
        return self.__dict__ | {"_summaries": {}, "_lost": {}}

    def statistics(self, z: int, whole: np.ndarray[Any, Any] | None = None) -> tuple[float, float]:
        """Return mean and standard deviation of the sample in slice `z`, in the units of the raw values; cached.

        The slice is read for that, unless it is given (Y, X) as `whole`.

        Raises
        ------
        VolumeError
            The slice cannot be read, or its sample holds NaN or infinite values, or values too large or too small.
        """
        summary = self._summary(z, whole)
        return summary.mean, summary.std

    def is_lost(self, z: int) -> bool:
        """Whether slice `z` shows no sample: it is constant, all padding, or only read noise; read it if need be."""
        if z not in self._lost:
            self._summary(z)
        return self._lost[z]

    def lost_slices(self) -> list[int]:
        """Return z of the lost slices, ascending, among those that this process has examined; none is read for this."""
        return sorted(z for z, lost in list(self._lost.items()) if lost)

    def outside(
        self, z: int, y: slice = slice(None), x: slice = slice(None)
    ) -> np.ndarray[Any, np.dtype[np.bool_]] | None:
        """Return which pixels of a window of slice `z` lie outside the sample, (Y, X) bool; None if none do."""
        summary = self._summary(z)
        if summary.lost:
            return np.ones([len(range(n)[part]) for n, part in zip(self.shape[1:], (y, x), strict=True)], bool)
        mask = None if summary.outside is None else summary.outside.window(y, x)
        return mask if mask is not None and mask.any() else None

    def mirrored(self, z: int, y: slice, x: slice, reach: int) -> np.ndarray[Any, Any] | None:
        """Read a window with the image mirrored at the sample's edge for `reach` pixels, and the sample's mean beyond.

        Return None if nothing in the window is outside the sample.
        """
        summary, window = self._summary(z), [part.indices(n) for part, n in zip((y, x), self.shape[1:], strict=True)]
        if summary.outside is None or not summary.outside.window(y, x, grow=BLURRED).any():
            return None
        wide = [slice(max(start - 2 * reach, 0), stop + 2 * reach) for start, stop, _ in window]
        inner = [
            slice(start - part.start, stop - part.start) for (start, stop, _), part in zip(window, wide, strict=True)
        ]
        outside = summary.outside.window(wide[0], wide[1], grow=BLURRED)
        return mirrored(self.read(z, *wide), outside, (inner[0], inner[1]), reach, summary.mean)

    def extract(self, windows: Sequence[tuple[int, slice, slice]]) -> Volume:
        """Return windows as the slices of a volume in memory, which are standardised as their whole slices are.

        Parameters
        ----------
        windows : sequence of (int, slice, slice)
            Slice, rows and columns of each window; all of one shape.
        """
        pixels = np.stack([self.read(*window) for window in windows])
        held = Volume(self.name, AxesView(pixels, "zyx"), self.voxel_size)
        for i, (z, y, x) in enumerate(windows):
            mean, std = self.statistics(z)
            outside = self.outside(z, y, x)
            mask = None
            if outside is not None:
                mask = Mask(pixels.shape[1:])
                mask.add(slice(0, pixels.shape[1]), outside)
            held._lost[i] = self.is_lost(z)
            held._summaries[i] = Summary(mean, std, mask, held._lost[i])
        return held

    def _summary(self, z: int, whole: np.ndarray[Any, Any] | None = None) -> Summary:
        known = self._summaries.get(z)
        if known is not None:
            return known

        def rows(part: slice) -> np.ndarray[Any, Any]:
            return self.read(z, part) if whole is None else whole[part]

        stated = None if self.sample is None else partial(self.sample.read, z)
        try:
            summary = summarise(rows, self.shape[1:], self.fill, stated)
        except UnusableError as error:
            raise VolumeError(f"slice z={z} of {self.name} {error}") from None
        kept = [known.outside.nbytes for known in list(self._summaries.values()) if known.outside is not None]
        if len(self._summaries) >= _CACHED_SUMMARIES or (summary.outside and sum(kept) > _CACHED_BYTES):
            self._summaries.clear()
        self._lost[z], self._summaries[z] = summary.lost, summary  # in this order: who finds a summary reads `_lost`
        return summary


def open_volume(
    source: Any,
    *,
    voxel_size: float | VoxelSize | None = None,
    level: int = 0,
    axes: str | None = None,
    channel: int | None = None,
    time: int | None = None,
    series: int | None = None,
    on_error: Literal["stop", "skip"] = "stop",
    name: str | None = None,
    fill: float | None = None,
    sample: Any = None,
    invert: bool = False,
) -> Volume:
    """Open an image or labels volume lazily: headers are read, pixels are not.

    Parameters
    ----------
    source : str, Path, array-like or Volume
        A file, a folder or an address (``https://``, ``s3://``) in one of the formats of ``docs/formats.md``: TIFF,
        OME-TIFF, Zarr, OME-Zarr, HDF5 (``file.h5:/path``), MRC, NumPy, PNG, JPEG, a folder of slices, ...; anything
        with ``shape``, ``dtype`` and ``__getitem__`` (NumPy, dask, ...), ZYX or YX; or a `Volume`.
    voxel_size : float or tuple of float, optional
        Size of a voxel in nm, Z Y X or one for all three, in place of the one that the source states. Where a source
        states the size in plane only, that size is taken for z too.
    level : int
        Scale level of a pyramid; 0 is full resolution.
    axes : str, optional
        Names of the stored axes, slowest first, in place of those that the source states: letters of Z, Y, X,
        C (channel) and T (time), e.g. ``XYZ`` or ``TCZYX``.
    channel, time, series : int, optional
        Index, from 0, of the channel, of the time point, and of the image in a file with several.
    on_error : {"stop", "skip"}
        Whether a slice of a folder that cannot be opened is an error now (``stop``), or when it is read (``skip``).
    name : str, optional
        Name for messages; the path by default.
    fill : float, optional
        Value of the pixels outside the sample, e.g. 0, or NaN; large constant regions at the borders, missing tiles
        and lost sections are found without it.
    sample : volume, optional
        Mask of the sample, non-zero within: anything that `source` may be, of the same shape.
    invert : bool
        Exchange bright and dark, for a model that knows the opposite contrast: unsigned integers are subtracted from
        the largest value of their dtype, signed ones from -1, and floats are negated.

    Returns
    -------
    Volume
        Axes ZYX; boolean, integer or floating point. Its `notes` say what was assumed.

    Raises
    ------
    VolumeError
        The source is missing, damaged, empty, of an unknown kind, RGB or not a volume, or an argument does not fit it.
    """
    if isinstance(source, Volume):
        chosen = {"level": level or None, "axes": axes, "channel": channel, "time": time, "series": series}
        if given := [name for name, value in chosen.items() if value is not None]:
            raise VolumeError(f"{source.name} is open already, as ZYX: choose {given[0]} where its file is opened")
        volume = source if name in (None, source.name) else replace(source, name=name)
    else:
        selection = Selection(level, axes, channel, time, series, skip_unreadable=on_error == "skip")
        volume = _open(source, selection, name)
    if 0 in volume.shape:
        raise VolumeError(f"{volume.name} is empty, its shape is {volume.shape}: give a volume with pixels")
    if volume.dtype.kind not in "biuf":
        raise VolumeError(f"{volume.name} has dtype {volume.dtype}: convert it to an integer or floating-point type")
    if fill is not None or sample is not None:
        volume = _with_sample(volume, fill, sample)
    if invert:
        volume = _inverted(volume)
    if voxel_size is None:
        return volume
    sizes = three_sizes((voxel_size,) * 3 if isinstance(voxel_size, Real) else voxel_size)
    if sizes is None:
        raise VolumeError(f"voxel size of {volume.name} is {voxel_size}: give three positive numbers in nm, Z Y X")
    if not is_plausible(sizes, level):
        raise VolumeError(
            f"voxel size {sizes} of {volume.name} is under 0.1 or over 500 nm in plane: is it in nm, and Z Y X?"
        )
    notes = tuple(note for note in volume.notes if not note.startswith(_UNKNOWN_SIZE))
    return replace(volume, voxel_size=sizes, notes=notes)


def _with_sample(volume: Volume, fill: float | None, sample: Any) -> Volume:
    if fill is not None and volume.dtype.kind in "iu" and not _holds(volume.dtype, fill):
        raise VolumeError(f"fill is {fill:g}, which no pixel of {volume.name} can be: it has dtype {volume.dtype}")
    mask = None if sample is None else open_volume(sample)
    if mask is not None and mask.shape != volume.shape:
        raise VolumeError(
            f"sample {mask.name} has shape {mask.shape}, {volume.name} {volume.shape}: give one of that shape"
        )
    return replace(volume, fill=fill, sample=mask)


def _holds(dtype: np.dtype[Any], value: float) -> bool:
    """Whether an integer type has this value."""
    limits = np.iinfo(dtype)
    return math.isfinite(value) and value == int(value) and limits.min <= value <= limits.max


def _inverted(volume: Volume) -> Volume:
    fill = volume.fill
    if fill is not None and math.isfinite(fill):
        fill = float(_negative(np.asarray(fill).astype(volume.dtype)))
    source = MappedArray(volume.source, _negative, volume.dtype)
    return replace(volume, source=source, fill=fill, inverted=not volume.inverted)


def _negative(pixels: Any) -> Any:
    return np.negative(pixels) if pixels.dtype.kind == "f" else np.invert(pixels)


def _open(source: Any, selection: Selection, name: str | None) -> Volume:
    name = name or name_of(source)
    try:
        return Volume(name, *open_source(source, selection, name), selection=selection)
    except VolumeError:
        raise
    except PermissionError as error:
        raise VolumeError(f"no permission to read {name}: ask its owner for it") from error
    except Exception as error:
        raise VolumeError(f"cannot read {name}: {one_line(error)}") from error


def check_planes(volume: Volume) -> None:
    """Check that a volume has slices along y and x that are like those along z.

    Raises
    ------
    ConfigError
        If it is a single slice, or its voxels are not isotropic; voxels of unknown size are taken to be.
    """
    if volume.shape[0] == 1:
        raise ConfigError(f"{volume.name} is a single slice: planes zyx need a volume, take planes z.")
    size = volume.voxel_size
    if size is not None and max(size) > _ISOTROPIC * min(size):
        sides = " x ".join(f"{length:g}" for length in size)
        raise ConfigError(
            f"voxels of {volume.name} are {sides} nm (Z, Y, X): planes zyx need isotropic ones, take planes z."
        )


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


def shows_nothing(volume: Volume, where: str, advice: str) -> VolumeError:
    """Return the error of a volume whose slices are all lost (`Volume.is_lost`) where they are needed.

    Parameters
    ----------
    volume : Volume
        The volume.
    where : str
        What the slices are needed for, such as "to learn from".
    advice : str
        What the user can do.
    """
    return VolumeError(f"{volume.name} shows nothing {where}, only constant grey or noise: {advice}.")


def open_pair(raw: Any, labels: Any) -> tuple[Volume, Volume]:
    """Open an image and its labels, and check that they fit; errors as in `open_volume` and `check_labels`."""
    image, truth = open_volume(raw), open_volume(labels)
    check_labels(image, truth)
    return image, truth
