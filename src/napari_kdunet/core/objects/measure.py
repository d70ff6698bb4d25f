"""Measurements of objects, as a table with one row per object."""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from napari_kdunet.core.errors import ConfigError, LabelsError, OutputError
from napari_kdunet.core.files import replacing
from napari_kdunet.core.objects.contacts import find_contacts, margin_of
from napari_kdunet.core.objects.foreground import Window
from napari_kdunet.core.objects.instances import known_voxel_size
from napari_kdunet.core.objects.shape import find_length, make_mesh, thinning
from napari_kdunet.core.reading.voxel_size import VoxelSize
from napari_kdunet.core.volumes.labels import predicted_ids
from napari_kdunet.core.volumes.probability import above, is_probability
from napari_kdunet.core.volumes.slice_reader import read_slices
from napari_kdunet.core.volumes.volume import Volume, open_volume

__all__ = ["check_table", "measure", "open_beside", "remeasure", "write_table"]

Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]

_AXES, _LENGTHS = ("z", "y", "x"), ("major", "middle", "minor")


def measure(
    instances: Any,
    raw: Any = None,
    *,
    voxel_size: VoxelSize | None = None,
    contacts: Any = None,
    within: float = 30.0,
    progress: Callable[[float], object] | None = None,
) -> pd.DataFrame:
    """Measure objects, in nm.

    For round bodies at least 10 voxels thick (counted along the longest side of a voxel; 16 if voxels are cubic),
    length, axes and volume are within 2 %, and the surface within 3 %, of those of the body that the voxels show. For
    smaller bodies it is chance which voxels have their centre inside: volume and axes of a ball 6 voxels wide are up to
    9 % off.

    The volume is read twice, slice by slice. Memory holds the box of one object and, in compressed form, the boxes of
    the other objects in the slice.

    Parameters
    ----------
    instances : volume
        Anything that `open_volume` takes, ZYX: integers, one id per object; 0 is background.
    raw : volume, optional
        Image of the same shape, for the mean grey value.
    voxel_size : tuple of float, optional
        nm (Z, Y, X), in place of the one that the instances state.
    contacts : volume, optional
        Mask of another structure (reticulum, membrane, nucleus) of the same shape, non-zero inside.
    within : float
        Distance in nm up to which the surface of an object counts as in contact with that structure.
    progress : callable, optional
        Called with the share of the work done, from 0 to 1. An exception that it raises stops the work.

    Returns
    -------
    pandas.DataFrame
        One row per object, ordered by id. Columns: `id`; `first_slice`, `last_slice`, `slices`; `voxels`;
        `volume_um3`; `field_fraction` (share of the volume of the whole image); `surface_um2` (area of a mesh, closed
        at the edge of the image); `sphericity` (1 for a ball; Wadell 1932); `centroid_*_nm` and `box_*_nm` (faces of
        the bounding box), both from the corner of the volume; `axis_major_nm`, `axis_middle_nm`, `axis_minor_nm` (full
        lengths of the axes of the ellipsoid with the same second moments) and `direction_*` (unit vector of the major
        axis); `elongation` (major over middle axis); `skeleton_length_nm` (from tip to tip, along all branches, as in
        TEASAR, Sato et al. 2000, whose paths end at the surface: for a ball its diameter, where the medial axis of Blum
        1967 is a point; for any ellipsoid its major axis); `mean_width_nm` (width of a tube with round ends that has
        this length and the object's volume), both measured in plane if the object lies in a single slice; `branches`
        (for an object that is flat along an axis, branches and length are those of its outline); `mean_grey` (with
        `raw`); `touches_border`; `nearest_neighbour_nm` (between centroids). With `contacts`: `contact_area_um2`,
        `contact_fraction` (share of the surface) and `contacts` (number of connected patches).

    Raises
    ------
    LabelsError
        The instances are not integers or some are negative, or another volume has another shape.
    VolumeError
        A volume cannot be read, or the voxel size is not known.
    ConfigError
        `within` is not a finite number above 0.
    """
    labels = open_volume(instances, voxel_size=voxel_size)
    size = known_voxel_size(labels)
    _check_labels(labels)
    image, other = open_beside(labels, raw, contacts, within)
    depth, height, width = labels.shape
    whole = _Part(labels, (slice(0, depth), slice(0, height), slice(0, width)), None)
    return _measure(whole, image, other, size, within, progress or (lambda share: None))


def remeasure(
    table: pd.DataFrame,
    instances: Any,
    ids: Collection[int],
    window: Window,
    raw: Any = None,
    *,
    voxel_size: VoxelSize | None = None,
    progress: Callable[[float], object] | None = None,
) -> pd.DataFrame:
    """Measure some objects of a volume again and update their table; the numbers equal those of `measure`.

    Parameters
    ----------
    table : pandas.DataFrame
        Result of `measure` with the same arguments, without contacts, before the objects changed. Additional columns
        are dropped.
    instances, raw, voxel_size, progress
        As in `measure`.
    ids : collection of int
        Ids of the objects to measure; objects that no longer exist lose their row, new objects get one.
    window : tuple of slice
        Window (Z, Y, X) that contains these objects.

    Returns
    -------
    pandas.DataFrame
        One row per object, ordered by id, with the columns of `measure`.

    Raises
    ------
    LabelsError, VolumeError
        As in `measure`.
    """
    labels = open_volume(instances, voxel_size=voxel_size)
    _check_labels(labels)
    image, _ = open_beside(labels, raw)
    wanted = np.array(sorted(ids), dtype=labels.dtype)
    part = _Part(labels, window, wanted)
    new = _measure(part, image, None, known_voxel_size(labels), 1.0, progress or (lambda share: None))
    kept = table.loc[~table["id"].isin(wanted), list(new.columns)]
    both = pd.concat([each for each in (kept, new) if len(each)] or [new])
    both = both.sort_values("id", ignore_index=True)
    both["nearest_neighbour_nm"] = _nearest(both[[f"centroid_{axis}_nm" for axis in _AXES]].to_numpy(dtype=float))
    return both


def _measure(
    part: _Part,
    image: Volume | None,
    other: Volume | None,
    size: VoxelSize,
    within: float,
    progress: Callable[[float], object],
) -> pd.DataFrame:
    """Measure the objects in a part of a volume, as `measure` describes."""
    first, last = part.window[0].start, part.window[0].stop
    moments = _Moments(size, part.labels.shape)
    for z, ids, grey in part.read(image):
        moments.add(z, ids, grey, part.corner)
        progress(0.2 * (z + 1 - first) / (last - first))
    table = moments.table(image is not None)
    rows = table.set_index("id")[["volume_um3", *(f"axis_{name}_nm" for name in _LENGTHS)]].to_dict("index")
    shapes: dict[int, dict[str, float]] = {}
    for z, found in _iter_boxes(part, other, moments, 0.0 if other is None else within):
        for box in found:
            shapes[box.id] = _shape(box, size, within, rows[box.id])
        progress(0.2 + 0.8 * (z + 1 - first) / (last - first))
    more = pd.DataFrame([shapes[i] for i in table["id"]], columns=list(_shape_columns(other is not None)))
    return _ordered(pd.concat([table, more], axis=1), image is not None)


def _check_labels(labels: Volume) -> None:
    if labels.dtype.kind == "f":
        raise LabelsError(
            f"{labels.name} has dtype {labels.dtype}: objects are whole numbers, see the command objects."
        )


def open_beside(
    labels: Volume, raw: Any = None, contacts: Any = None, within: float = 30.0
) -> tuple[Volume | None, Volume | None]:
    """Open and check the image and the other mask of `measure`, and check the distance; raises the same errors."""
    volumes = [None if given is None else open_volume(given) for given in (raw, contacts)]
    if volumes[1] is not None and is_probability(volumes[1]):
        volumes[1] = above(volumes[1])
    for volume in volumes:
        if volume is not None and volume.shape != labels.shape:
            raise LabelsError(
                f"{volume.name} has shape {volume.shape}, {labels.name} {labels.shape}: give one of the same shape"
            )
    if not (math.isfinite(within) and within > 0):
        raise ConfigError(f"within is {within}: give a distance in nm, more than 0.")
    return volumes[0], volumes[1]


@dataclass(frozen=True)
class _Part:
    """Part of a volume to measure: a window, and in it all objects or only those with the given ids."""

    labels: Volume
    window: Window
    ids: NDArray[Any] | None

    @property
    def corner(self) -> tuple[int, int]:
        """Row and column of the volume at which the window begins."""
        return self.window[1].start, self.window[2].start

    def read(self, *others: Volume | None) -> Iterator[Any]:
        """Yield, for each slice of the window, its z in the volume, the ids (Y, X), and the other volumes' slices."""
        volumes, every = (self.labels, *others), range(self.window[0].start, self.window[0].stop)
        streams = [None if volume is None else read_slices(volume, every, *self.window[1:]) for volume in volumes]
        for z in every:
            parts: list[Any] = [None if stream is None else next(stream) for stream in streams]
            ids, *rest = parts
            ids = predicted_ids(ids, self.labels.name)
            yield (z, ids if self.ids is None else np.where(np.isin(ids, self.ids), ids, 0), *rest)


class _Moments:
    """Sums over the voxels of each object, collected slice by slice."""

    def __init__(self, size: VoxelSize, shape: tuple[int, int, int]) -> None:
        self.size, self.shape = np.array(size), shape
        self.index: dict[int, int] = {}
        self.sums = np.zeros((0, 11))  # voxels; z, y, x; zz, yy, xx, zy, zx, yx; grey
        self.low, self.high = np.zeros((0, 3), np.int64), np.zeros((0, 3), np.int64)
        self.slices = np.zeros(0, np.int64)

    def add(self, z: int, ids: NDArray[Any], grey: NDArray[Any] | None, corner: tuple[int, int]) -> None:
        """Add slice `z`, or the window of it that begins at `corner` (row, column)."""
        inside = np.flatnonzero(ids)
        if not len(inside):
            return
        present, part = np.unique(ids.ravel()[inside], return_inverse=True)
        rows = np.array([self.index.setdefault(int(i), len(self.index)) for i in present])
        self._grow(len(self.index))
        y, x = (at + start for at, start in zip(np.divmod(inside, ids.shape[1]), corner, strict=True))
        at = np.stack([np.full(len(inside), z), y, x]) + 0.5
        nm = at * self.size[:, None]
        values = np.zeros(len(inside)) if grey is None else grey.ravel()[inside].astype(np.float64)
        terms = [np.ones(len(inside)), *nm, *(nm[i] * nm[j] for i, j in _PAIRS), values]
        for column, term in enumerate(terms):
            self.sums[rows, column] += np.bincount(part, term, len(present))
        self.slices[rows] += 1
        self.high[rows, 0] = z + 1
        self.low[rows, 0] = np.minimum(self.low[rows, 0], z)
        for axis, place in ((1, y), (2, x)):
            low, high = np.full(len(present), 2**62), np.full(len(present), -1)
            np.minimum.at(low, part, place)
            np.maximum.at(high, part, place)
            self.low[rows, axis] = np.minimum(self.low[rows, axis], low)
            self.high[rows, axis] = np.maximum(self.high[rows, axis], high + 1)

    def _grow(self, count: int) -> None:
        more = count - len(self.sums)
        if more:
            self.sums = np.concatenate([self.sums, np.zeros((more, self.sums.shape[1]))])
            self.low = np.concatenate([self.low, np.full((more, 3), 2**62)])
            self.high = np.concatenate([self.high, np.full((more, 3), -1)])
            self.slices = np.concatenate([self.slices, np.zeros(more, np.int64)])

    def table(self, grey: bool) -> pd.DataFrame:
        """Return the measurements that follow from the sums alone."""
        ids = np.array(sorted(self.index), dtype=np.uint64)
        rows = np.array([self.index[int(i)] for i in ids], np.int64)
        sums, low, high = self.sums[rows], self.low[rows], self.high[rows]
        voxels, volume = sums[:, 0], math.prod(self.size)
        centre = sums[:, 1:4] / np.maximum(voxels, 1)[:, None]
        lengths, direction = self._axes(sums, centre)
        border = (low == 0) | (high == self.shape)
        border = border[:, 1:] if self.shape[0] == 1 else border
        columns: dict[str, Any] = {
            "id": ids,
            "first_slice": low[:, 0],
            "last_slice": high[:, 0] - 1,
            "slices": self.slices[rows],
            "voxels": voxels.astype(np.int64),
            "volume_um3": voxels * volume / 1e9,
            "field_fraction": voxels / math.prod(self.shape),
            **{f"centroid_{axis}_nm": centre[:, i] for i, axis in enumerate(_AXES)},
            **{f"box_{axis}_min_nm": low[:, i] * self.size[i] for i, axis in enumerate(_AXES)},
            **{f"box_{axis}_max_nm": high[:, i] * self.size[i] for i, axis in enumerate(_AXES)},
            **{f"axis_{name}_nm": lengths[:, i] for i, name in enumerate(_LENGTHS)},
            **{f"direction_{axis}": direction[:, i] for i, axis in enumerate(_AXES)},
            "elongation": lengths[:, 0] / lengths[:, 1] if len(ids) else np.empty(0),
            "mean_grey": sums[:, 10] / np.maximum(voxels, 1) if grey else np.full(len(ids), np.nan),
            "touches_border": border.any(1),
            "nearest_neighbour_nm": _nearest(centre),
        }
        return pd.DataFrame(columns)

    def _axes(self, sums: Floats, centre: Floats) -> tuple[Floats, Floats]:
        """Return the full lengths (n, 3) of the axes, longest first, and the direction (n, 3) of the longest."""
        if not len(sums):
            return np.empty((0, 3)), np.empty((0, 3))
        matrix = np.zeros((len(sums), 3, 3))
        for column, (i, j) in enumerate(_PAIRS):
            value = sums[:, 4 + column] / sums[:, 0] - centre[:, i] * centre[:, j]
            matrix[:, i, j] = matrix[:, j, i] = value + (self.size[i] ** 2 / 12 if i == j else 0)  # moment of a voxel
        values, vectors = np.linalg.eigh(matrix)
        lengths = 2 * np.sqrt(5 * np.maximum(values[:, ::-1], 0))
        direction = vectors[:, :, 2]
        sign = np.sign(np.take_along_axis(direction, np.abs(direction).argmax(1)[:, None], 1))
        return lengths, direction * sign


def _nearest(centre: Floats) -> Floats:
    """Return the distance (n,) of each point (n, 3) to the nearest other point; NaN for a single point."""
    return cKDTree(centre).query(centre, k=2)[0][:, 1] if len(centre) > 1 else np.full(len(centre), np.nan)


_PAIRS = ((0, 0), (1, 1), (2, 2), (0, 1), (0, 2), (1, 2))


@dataclass
class _Box:
    """Box with the mask of an object, and the other mask in it, that is collected slice by slice.

    If the box is too large to work on, only every `step`-th voxel along each axis is taken. Slices are kept compressed,
    because many boxes are open at once, and the box of an object that extends everywhere is as large as the volume.
    """

    id: int
    low: NDArray[np.int64]
    high: NDArray[np.int64]
    step: int = field(init=False)
    _slices: list[tuple[bytes, bytes]] = field(default_factory=list, init=False)

    def __post_init__(self) -> None:
        self.step = thinning(self.high - self.low)

    def add(self, z: int, ids: NDArray[Any], other: NDArray[Any] | None, corner: tuple[int, int]) -> None:
        """Store the part of slice `z` inside the box; `ids` and `other` begin at `corner` (row, column)."""
        if (z - self.low[0]) % self.step:
            return
        ends = zip(self.low[1:], self.high[1:], corner, strict=True)
        window = tuple(slice(a - start, b - start, self.step) for a, b, start in ends)
        self._slices.append((_packed(ids[window] == self.id), b"" if other is None else _packed(other[window] != 0)))

    def masks(self) -> tuple[Mask, Mask | None]:
        """Return the masks of the object and, if there is one, of the other structure in the box."""
        _, height, width = (-(-(b - a) // self.step) for a, b in zip(self.low, self.high, strict=True))
        shape = (int(height), int(width))
        own, others = zip(*self._slices, strict=True)
        other = np.stack([_unpacked(bits, shape) for bits in others]) if others[0] else None
        return np.stack([_unpacked(bits, shape) for bits in own]), other


def _packed(mask: Mask) -> bytes:
    return zlib.compress(np.packbits(mask).tobytes(), 1)


def _unpacked(bits: bytes, shape: tuple[int, int]) -> Mask:
    values = np.unpackbits(np.frombuffer(zlib.decompress(bits), np.uint8), count=math.prod(shape))
    return values.reshape(shape).view(bool)


def _iter_boxes(
    part: _Part, other: Volume | None, moments: _Moments, within: float
) -> Iterator[tuple[int, list[_Box]]]:
    """Read the volume again; yield each z with the boxes that are complete after it."""
    around = margin_of(within, moments.size) if within else np.zeros(3, np.int64)
    begins: dict[int, list[tuple[int, NDArray[np.int64], NDArray[np.int64]]]] = {}
    for i, row in moments.index.items():
        low = np.maximum(moments.low[row] - around, 0)
        high = np.minimum(moments.high[row] + around, moments.shape)
        begins.setdefault(int(low[0]), []).append((i, low, high))
    active: list[_Box] = []
    for z, ids, second in part.read(other):
        active += [_Box(*plan) for plan in begins.pop(z, [])]
        for box in active:
            box.add(z, ids, second, part.corner)
        yield z, [box for box in active if box.high[0] == z + 1]
        active = [box for box in active if box.high[0] > z + 1]


def _shape_columns(contacts: bool) -> tuple[str, ...]:
    shape = ("surface_um2", "sphericity", "skeleton_length_nm", "mean_width_nm", "branches")
    return shape + (("contact_area_um2", "contact_fraction", "contacts") if contacts else ())


def _shape(box: _Box, size: VoxelSize, within: float, row: dict[str, float]) -> dict[str, float]:
    mask, other = box.masks()
    if not mask.any():  # a few voxels far apart, none of which is left after thinning so large a box
        return dict.fromkeys(_shape_columns(contacts=other is not None), math.nan)
    step = (size[0] * box.step, size[1] * box.step, size[2] * box.step)
    mesh = make_mesh(mask, step)
    volume = row["volume_um3"] * 1e9
    skeleton, width = find_length(mask, step, volume, mesh.area, [row[f"axis_{name}_nm"] for name in _LENGTHS])
    found: dict[str, float] = {
        "surface_um2": mesh.area / 1e6,
        "sphericity": min(math.pi ** (1 / 3) * (6 * volume) ** (2 / 3) / mesh.area, 1.0),
        "skeleton_length_nm": skeleton.length,
        "mean_width_nm": width,
        "branches": skeleton.branches,
    }
    if other is not None:
        found |= find_contacts(mesh, volume, other, step, within)
    return found


def _ordered(table: pd.DataFrame, grey: bool) -> pd.DataFrame:
    """Return the table with the shape columns after those of the volume, and `mean_grey` only if wanted."""
    names = list(table.columns)
    for i, name in enumerate(("surface_um2", "sphericity")):
        names.remove(name)
        names.insert(names.index("field_fraction") + 1 + i, name)
    if not grey:
        names.remove("mean_grey")
    return table[names]


def check_table(path: str | Path) -> None:
    """Check that a table can be written to a path with this ending; raises `OutputError` if not."""
    ending = Path(path).suffix.lower()
    if ending not in (".csv", ".parquet"):
        raise OutputError(f"cannot write {path}: the name of a table must end in .csv or .parquet.")
    if ending == ".parquet" and find_spec("pyarrow") is None:
        raise OutputError(
            f"cannot write {path}: Parquet needs pyarrow, pip install 'napari-kdunet[parquet]', or give a .csv"
        )


def write_table(table: pd.DataFrame, path: str | Path) -> None:
    """Write a table to a ``.csv`` or a ``.parquet`` file; it appears whole or not at all.

    Raises
    ------
    OutputError
        The file cannot be written or has another ending, or pyarrow, which Parquet needs, is not installed.
    """
    target = Path(path)
    check_table(target)
    with replacing(target) as temporary:
        if target.suffix.lower() == ".parquet":
            table.to_parquet(temporary, index=False)
        else:
            table.to_csv(temporary, index=False, float_format="%.7g")
