"""Probability maps and masks: one rule for what the values of a prediction, by any tool, mean.

- Floating point: probabilities of the foreground, from 0 to 1.
- bool, or integers with a single value besides 0: a mask.
- uint8 and uint16 that look like probabilities, from 0 to 255 or to 65535. Either neighbouring pixels differ by little,
  and at least half of the pairs that differ are both above 0 or a quarter of all pairs differ; or no pixel is 0, and
  some are above half of the dtype's largest value; or, in uint8, it is a mask in many greys, as JPEG and smoothing
  make it.
- Other integers: classes or instances; non-zero is foreground. In uint64, 2^64-3 is background too, as in CREMI's data.

The values of wider and of signed integers are examined only to tell a mask from classes or instances.

These are refused:

- Negative integers.
- Integers without a 0, as they have no background.
- uint8 or uint16 of few values, some of which are above half of the dtype's largest value: they may be classes or
  instances of one tool, or coarse probabilities of another.
- uint8 or uint16 that look like probabilities on a smaller scale than that of their dtype: per cent in uint8; up to
  255, 1000 or 4095 in uint16.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from functools import partial
from typing import Any, Literal, TypeAlias
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from napari_kdunet.core.errors import VolumeError
from napari_kdunet.core.reading.sources import MappedArray
from napari_kdunet.core.volumes.labels import extremes, is_grey_mask, predicted_ids
from napari_kdunet.core.volumes.slices import spaced
from napari_kdunet.core.volumes.volume import Volume

__all__ = ["above", "is_probability", "kind_of", "read_probability"]

_SMALL_INTEGERS = (np.uint8, np.uint16)  # dtypes that may hold probabilities
_SLICES = 8  # slices that are examined
_LEVELS = 16  # most distinct values of classes, or of instances with small ids
_NOISY = 1 / 4  # share of neighbouring pairs that differ: far more than in masks and labels
_SMALLEST_SCALE = 0.02  # share of a dtype's largest value; a scale up to it is another one: 255 or 1000 in 16 bits
_SCALES = (100, 255, 1000, 4095, 10_000)  # of probabilities, besides the largest value of a dtype
_COARSE = 20  # most steps of a coarse scale: the ids of instances are hardly all multiples of so large a step
_STEP = 1 / 4  # of the highest value: neighbours in a map of instances differ by more

Kind: TypeAlias = Literal["probability", "mask", "labels"]

_known: WeakKeyDictionary[Volume, Kind] = WeakKeyDictionary()


def is_probability(volume: Volume) -> bool:
    """Whether the values of a volume are probabilities, according to `kind_of`; otherwise non-zero is foreground."""
    return (volume.dtype.kind == "f" or volume.dtype in _SMALL_INTEGERS) and kind_of(volume) == "probability"


def kind_of(volume: Volume) -> Kind:
    """Return what the values of a volume mean; up to eight slices of integers are examined, and the result is cached.

    Raises
    ------
    VolumeError
        If it is not clear what the values mean, or they cannot be read.
    """
    if volume.dtype.kind in "fb":
        return "probability" if volume.dtype.kind == "f" else "mask"
    if volume not in _known:
        chosen = map(volume.read, spaced(range(len(volume)), _SLICES))
        _known[volume] = (
            _kind_by_values([*chosen], volume.name)
            if volume.dtype in _SMALL_INTEGERS
            else _mask_or_labels((predicted_ids(each, volume.name) for each in chosen), volume.name)
        )
    return _known[volume]


def _mask_or_labels(slices: Iterable[NDArray[Any]], name: str) -> Kind:
    """Return ``mask`` if there is a single value besides 0, else ``labels``."""
    values, has_background = set[int](), False
    for each in slices:
        values |= extremes(each)
        has_background |= not each.all()
    if len(values) > 1 and not has_background:
        raise _no_background(name, min(values), max(values))
    return "mask" if len(values) == 1 and has_background else "labels"


def _no_background(name: str, lowest: int, highest: int) -> VolumeError:
    return VolumeError(
        f"{name} has values from {lowest} to {highest} and no background of 0: give a mask, or probabilities."
    )


def _kind_by_values(slices: list[NDArray[Any]], name: str) -> Kind:
    levels = np.unique(np.concatenate([np.unique(each) for each in slices]))
    highest, half = int(levels[-1]), np.iinfo(levels.dtype).max // 2
    if len(levels) == 1 or (len(levels) == 2 and levels[0] == 0):
        return "labels" if len(levels) == 1 else "mask"
    if levels[0] > 0 and highest > half:
        return "probability"
    if levels.dtype == np.uint8 and len(levels) > _LEVELS and any(map(is_grey_mask, slices)):
        return "probability"
    pairs = [np.stack((each[:, 1:].ravel(), each[:, :-1].ravel())).astype(np.int32) for each in slices]
    one, other = np.concatenate(pairs, axis=1)
    differ, inside = one != other, (one != other) & (one > 0) & (other > 0)
    # noise around 0 is clipped: half of it is 0
    many = differ.any() and (2 * inside.sum() >= differ.sum() or differ.mean() >= _NOISY)
    gradual = many and np.median(np.abs(one - other)[differ]) <= _STEP * highest
    scales = [scale for scale in _SCALES if scale <= half and scale / 2 < highest <= scale]
    if gradual and len(levels) > _LEVELS and (scales or highest <= _SMALLEST_SCALE * 2 * half):
        raise VolumeError(
            f"{name} has values from {levels[0]} to {highest}, like probabilities of another scale than "
            f"{levels.dtype}: give a mask, or probabilities as floats from 0 to 1."
        )
    if gradual and (len(levels) > _LEVELS or highest > half):
        return "probability"
    if levels[0] > 0:
        raise _no_background(name, int(levels[0]), highest)
    coarse = len(levels) > 4 and highest in scales and np.gcd.reduce(levels) * _COARSE >= highest
    if coarse or (len(levels) <= _LEVELS and highest > half):
        raise VolumeError(
            f"{name} has {len(levels)} values from 0 to {highest}, of classes or of probabilities: give a mask, or "
            "probabilities as floats from 0 to 1."
        )
    return "labels"


def above(volume: Volume) -> Volume:
    """Return the bool mask of where a volume of probabilities is above its threshold, as lazy as the volume."""
    scale = np.iinfo(volume.dtype).max if volume.dtype.kind == "u" else 1
    source = MappedArray(volume.source, partial(_exceeds, level=volume.threshold * scale), bool)
    return replace(volume, source=source)


def _exceeds(values: NDArray[Any], level: float) -> NDArray[np.bool_]:
    return np.asarray(values > level)


def read_probability(volume: Volume, z: int, y: slice = slice(None), x: slice = slice(None)) -> NDArray[np.float32]:
    """Read a YX window of a prediction as float32 foreground probabilities in [0, 1]; those of a mask are 0 and 1.

    Raises
    ------
    VolumeError
        If a value is outside [0, 1], or the volume has no background.
    """
    values = volume.read(z, y, x)
    if not is_probability(volume):
        values = predicted_ids(values, volume.name) != 0
    probability: NDArray[np.float32] = values.astype(np.float32)
    if values.dtype.kind == "u":
        probability /= np.iinfo(values.dtype).max
    elif not (values.min() >= 0 and values.max() <= 1):  # also False for nan
        raise VolumeError(
            f"{volume.name} is not a probability: slice z={z} leaves [0, 1]. Give foreground probabilities from 0 to "
            "1, or as uint8 from 0 to 255."
        )
    return probability
