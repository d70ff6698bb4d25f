"""Corrections of objects in a labels layer; each is one step of napari's own undo and redo."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from itertools import pairwise
from typing import Any

import cc3d
import numpy as np
from napari.layers import Labels
from numpy.typing import NDArray
from scipy import ndimage
from skimage.segmentation import watershed

from napari_kdunet.core import LabelsError, VolumeError
from napari_kdunet.core.volumes.probability import read_probability
from napari_kdunet.widgets.shared.layers import OBJECTS, volume_of, voxel_size_of

__all__ = [
    "add_object",
    "cut_object",
    "delete_objects",
    "fill_between",
    "merge_objects",
    "object_along",
    "smooth_object",
    "split_object",
]

Point = Sequence[float]
Stroke = Sequence[Point]

_REACH = 256  # pixels around a click in which an object is added

NOT_SELECTED = "no object is selected: click on one, or choose it in the table."


def object_along(layer: Labels, stroke: Stroke) -> int:
    """Return the object in which most of a stroke (one point or more) lies; 0 for none."""
    ids = [number for point in _along(layer, stroke) if (number := int(_array(layer)[tuple(point)]))]
    return max(set(ids), key=ids.count) if ids else 0


def merge_objects(layer: Labels, kept: int, other: int) -> None:
    """Make `other` a part of `kept`."""
    if 0 in (kept, other) or kept == other:
        raise LabelsError("to merge, click on two different objects.")
    box, mask = _mask_of(layer, [other])
    _write(layer, _shifted(np.nonzero(mask), box), kept)


def delete_objects(layer: Labels, numbers: Collection[int]) -> None:
    """Make objects background."""
    if not any(numbers):
        raise LabelsError("there is no object at that point: click on the one to delete.")
    box, mask = _mask_of(layer, list(numbers))
    _check_there(mask)
    _write(layer, _shifted(np.nonzero(mask), box), 0)


def split_object(layer: Labels, first: Stroke, second: Stroke) -> int:
    """Split an object between two strokes of one point or more in it; return the id of the part under the second.

    The cut is that of a watershed from both strokes over the distance to the background.
    """
    data = _array(layer)
    number = object_along(layer, first)
    one, other = (
        {tuple(point) for point in _along(layer, stroke).tolist() if data[tuple(point)] == number}
        for stroke in (first, second)
    )
    if not number or not other - one:
        raise LabelsError("to split an object, click or draw in it twice, once on either side of the cut.")
    box, mask = _mask_of(layer, [number])
    markers = np.zeros(mask.shape, np.int32)
    for mark, points in ((1, one), (2, other - one)):
        markers[tuple(np.array(sorted(points)).T - np.array([[part.start] for part in box]))] = mark
    size = voxel_size_of(layer) or (1.0,) * 3
    depth = ndimage.distance_transform_edt(np.pad(mask, 1), sampling=size[-mask.ndim :])
    return _split(layer, box, watershed(-depth[(slice(1, -1),) * mask.ndim], markers, mask=mask))


def cut_object(layer: Labels, line: Stroke) -> int:
    """Split the object in which most of a line lies along that line; return the id of the smaller part.

    The line is drawn right across the object in one slice, where the sizes of the parts are compared. In the other
    slices a voxel goes with the side that is nearer within the object.
    """
    data = _array(layer)
    number, points = object_along(layer, line), _along(layer, line)
    if not number:
        raise LabelsError("to cut an object, draw a line right across it.")
    box, mask = _mask_of(layer, [number])
    inside = points - np.array([part.start for part in box])
    inside = inside[((inside >= 0) & (inside < mask.shape)).all(axis=1)]
    on_line = np.zeros(mask.shape, bool)
    on_line[tuple(inside.T)] = True
    plane = points[0, 0] - box[0].start if data.ndim == 3 else ...
    outline, drawn = mask[plane], on_line[plane]
    sides, _ = ndimage.label(outline & ~drawn)  # 4-connected, so that a diagonal line of pixels separates them
    beside = np.unique(sides[ndimage.binary_dilation(drawn & outline)])
    beside = beside[beside > 0]
    if len(beside) < 2:
        raise LabelsError("the line ends within the object: draw it right across, from outside to outside.")
    sizes = np.bincount(sides.ravel())[beside]
    larger, smaller = beside[np.argsort(-sizes, kind="stable")[:2]]
    markers = np.zeros(mask.shape, np.int32)
    markers[plane][sides == larger] = 1
    markers[plane][sides == smaller] = 2
    return _split(layer, box, watershed(np.zeros(mask.shape, np.uint8), markers, mask=mask))


def _split(layer: Labels, box: tuple[slice, ...], parts: NDArray[np.int32]) -> int:
    """Make part 2 of an object in `box` an object of its own; return its id."""
    new = _free_id(layer)
    _write(layer, _shifted(np.nonzero(parts == 2), box), new)
    return new


def add_object(layer: Labels, source: Any, point: Point, threshold: float) -> int:
    """Add, as a new object, the foreground of `source` (probabilities or labels) connected to a point; return its id.

    Only voxels within 256 pixels of the point, and that are still background in `layer`, are added.
    """
    data, volume = _array(layer), volume_of(source)
    at = [round(float(p)) for p in point]
    if tuple(volume.shape[-data.ndim :]) != data.shape:
        raise VolumeError(
            f"{volume.name} has shape {volume.shape}, but the objects {data.shape}: choose the mask that they are from."
        )
    box = tuple(slice(max(p - _REACH, 0), min(p + _REACH + 1, n)) for p, n in zip(at, data.shape, strict=True))
    z = box[0] if data.ndim == 3 else slice(0, 1)
    probability = np.stack([read_probability(volume, i, *box[-2:]) for i in range(z.start, z.stop)])
    free = (probability > threshold).reshape(data[box].shape) & (data[box] == 0)
    parts = cc3d.connected_components(free, connectivity=26 if data.ndim == 3 else 8)
    number = parts[tuple(p - part.start for p, part in zip(at, box, strict=True))]
    if not number:
        raise LabelsError("there is no foreground at that point: lower the threshold, or paint the object.")
    new = _free_id(layer)
    _write(layer, _shifted(np.nonzero(parts == number), box), new)
    return new


def smooth_object(layer: Labels, number: int) -> None:
    """Smooth the outline of an object by a Gaussian of two pixels (sigma); it grows only over background."""
    data, (box, mask) = _array(layer), _mask_of(layer, [number], 5)
    _check_there(mask)
    size = np.array((voxel_size_of(layer) or (1.0,) * 3)[-data.ndim :])
    smooth = ndimage.gaussian_filter(mask.astype(np.float32), 2 * size[-1] / size, mode="nearest") > 0.5
    if not smooth.any():
        raise LabelsError(f"object {number} is too small or thin to smooth, nothing of it would be left: paint on it.")
    _replace(layer, number, box, smooth & (mask | (data[box] == 0)), mask)


def fill_between(layer: Labels, number: int) -> int:
    """Fill an object in slices where it is missing between two that have it; return the number of slices filled.

    The outline is interpolated by the signed distance to it (Raya & Udupa 1990).
    """
    data, (box, mask) = _array(layer), _mask_of(layer, [number])
    _check_there(mask)
    if data.ndim < 3:
        raise LabelsError("the objects are in a single slice: there are no slices to fill between.")
    there = np.flatnonzero(mask.any(axis=(1, 2)))
    filled, count = mask.copy(), 0
    for below, above in pairwise(there):
        if above - below > 1:
            low, high = (_signed_distance(mask[z]) for z in (below, above))
            for z in range(below + 1, above):
                share = (z - below) / (above - below)
                filled[z] = (1 - share) * low + share * high > 0
                count += 1
    if not count:
        raise LabelsError(f"object {number} is in all slices from its first to its last: there is nothing to fill.")
    _replace(layer, number, box, filled & (mask | (data[box] == 0)), mask)
    return count


def _signed_distance(mask: NDArray[np.bool_]) -> Any:
    padded = np.pad(mask, 1)
    distance = ndimage.distance_transform_edt(padded) - ndimage.distance_transform_edt(~padded)
    return distance[1:-1, 1:-1]


def _along(layer: Labels, stroke: Stroke) -> NDArray[np.intp]:
    """Return the voxels (N, D) of the layer on the lines from point to point of a stroke."""
    corners = np.asarray(stroke, dtype=float)
    lines = [corners[:1]]
    for start, end in pairwise(corners):
        steps = max(math.ceil(np.abs(end - start).max()), 1)  # no pixel is left out in between
        lines.append(start + np.arange(1, steps + 1)[:, None] / steps * (end - start))
    points = np.round(np.concatenate(lines)).astype(np.intp)
    return points[((points >= 0) & (points < _array(layer).shape)).all(axis=1)]


def _array(layer: Labels) -> NDArray[Any]:
    if not isinstance(layer.data, np.ndarray):
        raise LabelsError(
            f"{layer.name} cannot be corrected, as it is not in memory: save it, and open the file as an array."
        )
    return layer.data


def _free_id(layer: Labels) -> int:
    """Return an id above all others, those of checked and deleted objects included, as undo can bring them back."""
    session = layer.metadata.get(OBJECTS)
    kept = () if session is None else (*session.checked, *session.deleted)
    return max(int(_array(layer).max()), *kept, 0) + 1


def _check_there(mask: NDArray[np.bool_]) -> None:
    if not mask.any():
        raise LabelsError(NOT_SELECTED)


def _mask_of(layer: Labels, numbers: Sequence[int], margin: int = 1) -> tuple[tuple[slice, ...], NDArray[np.bool_]]:
    """Return the bounding box of some objects, enlarged by `margin`, and their mask in it; both empty if none exists.

    The volume is searched one slice at a time, as it is large and an object is small.
    """
    data = _array(layer)
    numbers = [number for number in numbers if number]
    rows: list[tuple[int, int]] = []
    columns: list[tuple[int, int]] = []
    there: list[int] = []
    for z, pixels in enumerate(data if data.ndim == 3 else data[None]):
        found = _is_any(pixels, numbers)
        y = np.flatnonzero(found.any(axis=1))
        if len(y):
            x = np.flatnonzero(found[y[0] : y[-1] + 1].any(axis=0))
            there.append(z)
            rows.append((int(y[0]), int(y[-1])))
            columns.append((int(x[0]), int(x[-1])))
    if not there:
        return (slice(0, 0),) * data.ndim, np.zeros((0,) * data.ndim, bool)
    spans = [(there[0], there[-1]), *((min(a for a, _ in each), max(b for _, b in each)) for each in (rows, columns))]
    spans = spans[-data.ndim :]
    box = tuple(slice(max(a - margin, 0), min(b + 1 + margin, n)) for (a, b), n in zip(spans, data.shape, strict=True))
    return box, _is_any(data[box], numbers)


def _is_any(pixels: NDArray[Any], numbers: Sequence[int]) -> NDArray[np.bool_]:
    """Return where the pixels belong to one of some objects."""
    if len(numbers) == 1:
        return np.asarray(pixels == numbers[0])
    return np.isin(pixels, numbers)


def _shifted(indices: tuple[NDArray[Any], ...], box: tuple[slice, ...]) -> tuple[NDArray[Any], ...]:
    return tuple(i + part.start for i, part in zip(indices, box, strict=True))


def _replace(layer: Labels, number: int, box: tuple[slice, ...], new: Any, old: Any) -> None:
    changed = np.nonzero(new != old)
    _write(layer, _shifted(changed, box), np.where(new[changed], number, 0))


def _write(layer: Labels, indices: tuple[NDArray[Any], ...], value: Any) -> None:
    """Write to the layer, as one step of its undo."""
    if not np.can_cast(np.min_scalar_type(int(np.max(value, initial=0))), layer.data.dtype):
        raise LabelsError(
            f"{layer.name} is {layer.data.dtype}, which has no free id left: convert the layer to a larger type."
        )
    layer.data_setitem(indices, value)
