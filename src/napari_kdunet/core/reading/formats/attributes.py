"""Axes and voxel sizes in the attributes of Zarr and HDF5 arrays, by the conventions of EM, and our own metadata."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from napari_kdunet.core.reading.axes import Selection, axis_letters
from napari_kdunet.core.reading.voxel_size import Sizes, read_metadata

__all__ = ["axes_and_sizes", "own_threshold"]

_AXES_KEYS = ("_ARRAY_DIMENSIONS", "dimension_names", "axis_names", "axes", "DIMENSION_LABELS")
_SIZE_KEYS = {"resolution": "nm", "voxel_size": "nm", "element_size_um": "µm"}


def axes_and_sizes(
    attributes: Mapping[str, Any], ndim: int, selection: Selection, name: str
) -> tuple[str, Sizes, tuple[str, ...]]:
    """Return axes, sizes with units, and notes, from the attributes of an array of `ndim` axes.

    Axes: ilastik's ``axistags``, xarray's ``_ARRAY_DIMENSIONS``, ``axis_names``, ``axes``, HDF5's ``DIMENSION_LABELS``.
    Sizes, in the order of the axes: ``resolution`` or ``voxel_size`` (of CREMI and others; nm unless ``units`` says
    otherwise), ``element_size_um``.
    """
    axes = ""
    if selection.axes is None:
        names = _axistags(attributes.get("axistags"))
        named = [names, *(_sequence(attributes.get(key)) for key in _AXES_KEYS)]
        axes = axis_letters(next((words for words in named if len(words) == ndim), []), name)
    order = (selection.axes or axes or "zyx"[-ndim:]).lower()
    return axes, *read_metadata(lambda: _sizes(attributes, order), "attributes")


def own_threshold(metadata: Any) -> float:
    """Return the threshold of the model if a file holds probabilities that we have written, else 0.5.

    Parameters
    ----------
    metadata : any
        Value that a file has under ``napari_kdunet``, where `write_volume` puts the metadata: a mapping, or JSON.
    """
    try:
        found = metadata if isinstance(metadata, Mapping) else json.loads(_text(metadata))
        threshold = float(found["threshold"]) if found["output"] == "probability" else 0.5
    except (TypeError, ValueError, KeyError, RecursionError):
        return 0.5
    return threshold if 0 <= threshold < 1 else 0.5


def _sizes(attributes: Mapping[str, Any], order: str) -> Sizes:
    for key, default in _SIZE_KEYS.items():
        values = _sequence(attributes.get(key))
        units = _sequence(attributes.get("units", attributes.get("unit"))) or [default]
        for letters in (order, [axis for axis in order if axis in "zyx"]):
            if len(values) == len(letters):
                units = units * len(values) if len(units) == 1 else units
                return {a: (v, u) for a, v, u in zip(letters, values, units, strict=True) if a in "zyx"}
    return {}


def _axistags(value: Any) -> list[str]:
    """Return ilastik's axes, JSON in an attribute; its resolutions are not used: without a unit, and usually 0."""
    try:
        return [str(tag["key"]) for tag in json.loads(_text(value))["axes"]]
    except (TypeError, ValueError, KeyError):
        return []


def _text(value: Any) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def _sequence(value: Any) -> list[Any]:
    """Return as a list an attribute that may be an array, a list, a number or a text, such as ``zyx``."""
    if value is None:
        return []
    if isinstance(value, (str, bytes)):
        text = _text(value)
        return list(text) if set(text) <= set("tczyx") else [text]
    values = list(value) if isinstance(value, Sequence) else getattr(value, "tolist", list)()
    return [_text(v) if isinstance(v, bytes) else v for v in values] if isinstance(values, list) else [values]
