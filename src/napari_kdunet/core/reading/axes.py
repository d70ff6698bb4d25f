"""Views with axes ZYX of arrays with whatever axes a file has, or an error that says in one line what to choose."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, NamedTuple

from napari_kdunet.core.errors import ChoiceError, VolumeError
from napari_kdunet.core.reading.sources import AxesView, PagedArray, Source
from napari_kdunet.core.reading.voxel_size import Stated, VoxelSize, read_voxel_size

__all__ = ["Opened", "Selection", "Stored", "axis_letters", "check_level", "pick", "view_zyx"]

_NAMES = {
    "z": "z depth plane planes slice slices section sections layer",
    "y": "y row rows height h",
    "x": "x col column columns width w",
    "c": "c ch channel channels band s sample samples",
    "t": "t time times frame frames timepoint timepoints",
}
_LETTER = {name: letter for letter, names in _NAMES.items() for name in names.split()}
_CALLED = {"c": "channel", "s": "channel", "t": "time"}
_COLOURS, _SMALL = (3, 4), 32


@dataclass(frozen=True)
class Selection:
    """What to take from a file that may hold more than one volume.

    Attributes
    ----------
    level : int
        Scale level of a pyramid; 0 is full resolution.
    axes : str, optional
        Names of the stored axes, slowest first, in place of those that the file states, e.g. ``XYZ`` or ``TCZYX``.
    channel, time, series : int, optional
        Index of the channel, the time point, and the image of a file that holds several.
    skip_unreadable : bool
        Whether slices of a folder that cannot be opened stay in the volume, to fail when they are read.
    """

    level: int = 0
    axes: str | None = None
    channel: int | None = None
    time: int | None = None
    series: int | None = None
    skip_unreadable: bool = False


class Stored(NamedTuple):
    """What a reader finds in a file: an array-like, and what the file states about it."""

    array: Any
    axes: str = ""
    """A letter for each axis (z, y, x, c channel, s sample, t time, others unknown); empty where none are named."""
    stated: Stated = MappingProxyType({})
    """Size and unit of an axis, as they stand in the file."""
    notes: tuple[str, ...] = ()
    reversed_axes: str = ""
    """Axes that are stored in the opposite direction."""
    threshold: float = 0.5
    """Probability above which a voxel is foreground, if the array holds probabilities."""
    chosen: str = ""
    """Letters of the axes that the reader has chosen from already, so that the array has them no more."""


class Opened(NamedTuple):
    """What `open_source` returns: a view with axes ZYX, the voxel size (nm, ZYX) if known, and what was assumed."""

    source: Source
    voxel_size: VoxelSize | None = None
    notes: tuple[str, ...] = ()
    threshold: float = 0.5


def view_zyx(stored: Stored, selection: Selection, name: str) -> Opened:
    """View a stored array with axes ZYX; nothing is read, and axes are transposed lazily.

    Raises
    ------
    VolumeError
        It is unclear which axis is which; a `ChoiceError` if one of several channels or time points must be chosen.
    """
    shape = tuple(int(n) for n in stored.array.shape)
    if selection.axes is not None:
        axes = _given_axes(selection.axes, shape, name)
    else:
        axes = stored.axes or _default_axes(shape, name)
    if len(set(axes) - {"-"}) + axes.count("-") < len(axes) or not {"y", "x"} <= set(axes) or len(axes) != len(shape):
        raise VolumeError(f"{name} has {_shown(axes, shape)}: name them with axes, e.g. ZYX")
    fixed = {}
    for axis, length in zip(axes, shape, strict=True):
        if axis not in "zyx":
            fixed[axis] = _chosen(axis, length, selection, f"{name} has {_shown(axes, shape)}")
    for argument, letters in (("channel", "cs"), ("time", "t")):
        if getattr(selection, argument) and not set(letters) & set(axes + stored.chosen):
            raise VolumeError(f"{name} has {_shown(axes, shape)}: there is no {argument} to choose")
    try:
        view = AxesView(stored.array, axes, fixed, stored.reversed_axes)
    except TypeError:
        raise VolumeError(f"{name} has dtype {stored.array.dtype}: convert it to a NumPy array") from None
    if isinstance(stored.array, PagedArray) and "z" in axes[len(stored.array.pages) :]:
        stored.array.keep()
    voxel_size, notes = read_voxel_size(stored.stated, level=selection.level)
    return Opened(view, voxel_size, (*stored.notes, *notes), stored.threshold)


def axis_letters(names: Sequence[Any], name: str) -> str:
    """Return the letters of axes that a file names in words; empty if it names none, or only numbers them."""
    words = ["" if n is None else str(n).strip().lower() for n in names]
    letters = [_LETTER.get(word, "") for word in words]
    if not any(letters) and all(not word or word.strip("dimaxs_-").isdigit() for word in words):
        return ""  # dim_0, dim_1, as xarray names them
    if not all(letters) or len(set(letters)) < len(letters):
        raise VolumeError(f"{name} has axes {', '.join(words)}: name them with axes, e.g. ZYX")
    return "".join(letters)


def pick(index: int | None, count: int, what: str, name: str) -> int:
    """Return `index`, 0 if it is None; `VolumeError` if there is no such item among `count`."""
    if not 0 <= (index or 0) < count:
        raise VolumeError(f"{name} has {what}s 0 to {count - 1}: there is no {what} {index}")
    return index or 0


def check_level(level: int, levels: int, name: str) -> None:
    """Check that a pyramid has this scale level; `VolumeError` if not."""
    if not 0 <= level < levels:
        raise VolumeError(f"{name} has scale levels 0 to {levels - 1}: there is no level {level}")


def _given_axes(given: str, shape: tuple[int, ...], name: str) -> str:
    """Return the axes that the user names; those of length 1 may be left out, and become ``-``."""
    axes = given.lower()
    if len(axes) != len(set(axes)) or not set(axes) <= set("zyxcts") or not {"y", "x"} <= set(axes):
        raise VolumeError(f"axes is {given!r}: give one letter of Z, Y, X, C, T for each axis, e.g. ZYX or CZYX")
    if len(axes) == len(shape):
        return axes
    if len(axes) != sum(n > 1 for n in shape):
        raise VolumeError(f"axes {given!r} name {len(axes)} axes, but {name} has {len(shape)} axes, shape {shape}")
    letters = iter(axes)
    return "".join(next(letters) if n > 1 else "-" for n in shape)


def _default_axes(shape: tuple[int, ...], name: str) -> str:
    """Return the axes of an array that names none."""
    if len(shape) not in (2, 3):
        raise VolumeError(f"{name} has {len(shape)} axes, shape {shape}: give ZYX or YX, or name them with axes")
    if len(shape) == 3 and shape[2] in _COLOURS and min(shape[:2]) > _SMALL:
        raise VolumeError(f"{name} has shape {shape}, which looks like a colour image: name its axes, e.g. YXC")
    return "zyx"[-len(shape) :]


def _chosen(axis: str, length: int, selection: Selection, having: str) -> int:
    """Return the index along an axis other than z, y and x."""
    called = _CALLED.get(axis)
    index = getattr(selection, called) if called else None
    if index is None and length > 1:
        if called is None:
            raise VolumeError(f"{having}: name them with axes, e.g. ZYX")
        raise ChoiceError(f"{having}: choose one {called}, 0 to {length - 1}", called, range(length))
    if not 0 <= (index or 0) < length:
        raise VolumeError(f"{having}: there is no {called} {index}")
    return index or 0


def _shown(axes: str, shape: tuple[int, ...]) -> str:
    named = [f"{axis.upper()}={n}" if axis != "-" else str(n) for axis, n in zip(axes, shape, strict=False)]
    return f"axes {', '.join(named)}"
