"""Conversion of label values to class indices and target probabilities."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from napari_kdunet.core.errors import LabelsError
from napari_kdunet.core.volumes.volume import Volume

__all__ = [
    "OUTLINE",
    "class_index",
    "extremes",
    "is_grey_mask",
    "missing_background",
    "object_ids",
    "outline_targets",
    "predicted_ids",
    "read_classes",
    "target_probabilities",
]

OUTLINE = 2.0  # width of the outline of an object, within it, in working pixels

_OUTSIDE = np.uint64(2**64 - 3)  # background in the volumes of the CREMI challenge
_UNLABELLED = np.uint64(2**64 - 2)  # to some tools, and so is 2^64-1; to others background
_NEAR = 32  # grey values within which black and white stay when a mask is compressed or smoothed
_CROWD = 0.6  # share of the pixels above 0 that are within it in a grey mask; of evenly used ids a quarter are
_UNEVEN = 0.6  # share of neighbouring pairs of grey values that differ: more than among objects of more than 4 pixels
_PAIRS = 32  # least number of such pairs to judge by


def class_index(labels: NDArray[Any], classes: int = 2, ignore: int | None = None, name: str = "") -> NDArray[np.int16]:
    """Return the class index of each pixel, -1 where it is unlabelled.

    With two classes any non-zero label is foreground, so instance ids will do. If `ignore` is 0 (sparse scribbles:
    what is not painted is unlabelled), 1 is the background and 2 the first class. In uint64 labels, 2^64-3 is
    background too.

    Parameters
    ----------
    labels : ndarray
        Integers or bool, any shape.
    classes : int
        Number of classes, background included.
    ignore : int, optional
        Label value of unlabelled pixels. For uint64 labels, -1 stands for 2^64-1.
    name : str
        Name of the volume, for errors.

    Returns
    -------
    ndarray of int16
        Same shape as `labels`; 0 is background.

    Raises
    ------
    LabelsError
        If a label is negative; if it is 2^64-1 or 2^64-2 but not the `ignore` value; if, with more than two classes, it
        is beyond the last class; if `ignore` is not a value of the labels' dtype; or if uint8 labels are a mask in
        grey, as JPEG and smoothing make it.
    """
    values, ignored = _ids(labels, ignore, name)
    if classes == 2:
        values = (values > 0).astype(np.int64)
    elif values.max(initial=0) >= classes:
        raise LabelsError(
            f"{_called(name)} hold the class {values.max()}, but there are {classes} classes: give 0 to {classes - 1}."
        )
    values[ignored] = -1
    return values.astype(np.int16)


def read_classes(
    labels: Volume,
    z: int,
    y: slice = slice(None),
    x: slice = slice(None),
    *,
    classes: int = 2,
    ignore: int | None = None,
) -> NDArray[np.int16]:
    """Read the `class_index` of a window of slice `z`, (Y, X); errors name the volume."""
    return class_index(labels.read(z, y, x), classes, ignore, labels.name)


def object_ids(
    labels: NDArray[Any], ignore: int | None = None, name: str = ""
) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    """Return the ids of objects, 0 in the background and in ignored pixels, and a mask of the ignored pixels.

    Rules, parameters and errors are those of `class_index`. Ids have the dtype of `labels`, or uint8 if that is bool.
    """
    ignored = np.zeros(labels.shape, bool) if ignore is None else labels == _value(ignore, labels.dtype, name)
    values = labels.astype(np.uint8 if labels.dtype.kind == "b" else labels.dtype)
    if labels.dtype == np.uint64:
        unnamed = labels[~ignored & (labels >= _UNLABELLED)]
        if unnamed.size:
            raise LabelsError(
                f"{_called(name)} hold 2^64-{2**64 - int(unnamed[0])}, which some tools write for unlabelled and some "
                "for background: name it as the ignore value, or set it to 0."
            )
        values[labels == _OUTSIDE] = 0
    values[ignored] = 0
    if values.min(initial=0) < 0:
        raise LabelsError(
            f"{_called(name)} hold the negative value {values.min()}: name it as the ignore value or remove it."
        )
    if values.dtype == np.uint8 and is_grey_mask(values):
        raise LabelsError(
            f"{_called(name)} are a mask in grey, from 0 to 255, as JPEG and smoothing make it: set what is above 127 "
            "to 1 and all else to 0, and save it as TIFF or PNG."
        )
    if ignore == 0:
        values[values > 0] -= 1
    return values, ignored


def is_grey_mask(values: NDArray[np.uint8]) -> bool:
    """Whether a slice (Y, X) is a mask of 0 and 255 with grey values between, rather than ids or classes.

    Most pixels above 0 are nearly black or nearly white, there are several grey values below and several above the
    middle, and most neighbouring pixels above 0 differ where one of them is grey, whereas objects and classes are even.
    """
    if values.ndim != 2 or values.max(initial=0) < 128:  # as nearly all labels: their values need not be counted
        return False
    counts = np.bincount(values.ravel(), minlength=256)
    ends = counts[1:_NEAR].sum() + counts[-_NEAR:].sum()
    several = min(np.count_nonzero(counts[1:128]), np.count_nonzero(counts[128:255])) > 1
    if not several or ends < _CROWD * counts[1:].sum():
        return False
    pairs = differ = 0
    for one, other in ((values[:, 1:], values[:, :-1]), (values[1:], values[:-1])):
        among = (one > 0) & (other > 0) & (np.minimum(one, other) < 255)
        pairs += int(np.count_nonzero(among))
        differ += int(np.count_nonzero(among & (one != other)))
    return pairs >= _PAIRS and differ >= _UNEVEN * pairs


def extremes(ids: NDArray[Any]) -> set[int]:
    """Return the lowest and the highest value besides 0: two, one if they are the same, or none."""
    shown = ids[ids != 0]
    return {int(shown.min()), int(shown.max())} if shown.size else set()


def missing_background(name: str, values: set[int], ignore: int | None) -> LabelsError:
    """Return the error for labels of these values, one of which may be the background, as none is 0."""
    simpler = min(values) == 1 and ignore is None
    advice = ", or, if 1 is the background, give 0 as the ignore value" if simpler else ""
    return LabelsError(
        f"{_called(name)} hold values from {min(values)} to {max(values)} and no background of 0: set it to 0{advice}."
    )


def predicted_ids(values: NDArray[Any], name: str) -> NDArray[Any]:
    """Return the values of a predicted mask, classes or instances; in uint64, 2^64-3 is background and becomes 0.

    Raises
    ------
    LabelsError
        If a value is negative.
    """
    if values.dtype.kind == "i" and (lowest := values.min(initial=0)) < 0:
        raise LabelsError(f"{name} holds {lowest}, which is neither background nor an object: set it to 0.")
    return np.where(values == _OUTSIDE, np.uint64(0), values) if values.dtype == np.uint64 else values


def _called(name: str) -> str:
    return f"labels of {name}" if name else "labels"


def _ids(labels: NDArray[Any], ignore: int | None, name: str = "") -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Return what `object_ids` does as int64; ids beyond that become its largest value."""
    values, ignored = object_ids(labels, ignore, name)
    if values.dtype == np.uint64:
        values = np.minimum(values, np.iinfo(np.int64).max)
    return values.astype(np.int64), ignored


def _value(ignore: int, dtype: np.dtype[Any], name: str = "") -> Any:
    """Return the ignore value in the labels' dtype; in uint64, -1 is the largest value, as many tools write it."""
    if dtype == np.uint64 and -3 <= ignore < 0:
        ignore += 2**64
    lowest, highest = (0, 1) if dtype.kind == "b" else (np.iinfo(dtype).min, np.iinfo(dtype).max)
    if not lowest <= ignore <= highest:
        raise LabelsError(
            f"ignore is {ignore}, but {dtype} {_called(name)} are from {lowest} to {highest}: give one of these."
        )
    return dtype.type(ignore)


def target_probabilities(labels: NDArray[Any], classes: int = 2, ignore: int | None = None) -> NDArray[np.float32]:
    """Return one-hot target probabilities (C, Y, X), float32, of a labels slice (Y, X); all 0 where unlabelled."""
    index = class_index(labels, classes, ignore)
    targets: NDArray[np.float32] = (index == np.arange(classes).reshape(-1, 1, 1)).astype(np.float32)
    return targets


def outline_targets(
    labels: NDArray[Any], pixel: tuple[float, float] = (1.0, 1.0), ignore: int | None = None
) -> NDArray[np.float32]:
    """Return target probabilities (3, Y, X) of background, inside of objects and their outlines; 0 where unlabelled.

    The outline of an object consists of its pixels that are nearer than `OUTLINE` to anything else, so it is twice as
    wide where two objects touch. If the nearest such pixel is an ignored one, it is unknown whether the pixel is
    outline: inside and outline get 0.5 each.

    Parameters
    ----------
    labels : ndarray
        (Y, X) integers or bool: each object has its own value, and 0 is background. Errors are as in `class_index`.
    pixel : pair of float
        Sides (Y, X) of a pixel in working pixels.
    ignore : int, optional
        As in `class_index`.
    """
    import edt  # imported here: only needed with torch, while labels are read without torch too

    values, ignored = _ids(labels, ignore)
    parts = np.where(ignored, values.max(initial=0) + 1, values).astype(np.uint64)
    away = edt.edt(parts, anisotropy=pixel, black_border=False)  # from another part, centre to centre
    outline = (values > 0) & (away <= max(OUTLINE, *pixel) + 1e-3)
    targets = np.stack([values == 0, (values > 0) & ~outline, outline]).astype(np.float32)
    if ignored.any():
        unclear = outline & (edt.edt(~ignored, anisotropy=pixel, black_border=False) <= away)
        targets[1:, unclear] = 0.5
        targets[:, ignored] = 0
    return targets
