"""Pixels, an OME-Zarr, and the one line with which opening fails: what the tests of all readers share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from napari_kdunet.core.errors import VolumeError
from napari_kdunet.core.volumes.volume import open_volume


@pytest.fixture
def pixels() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 200, (5, 37, 53), dtype=np.uint8)


@pytest.fixture(scope="session")
def fails() -> Callable[..., None]:
    return _fails


@pytest.fixture(scope="session")
def ome_zarr() -> Callable[..., Path]:
    return _ome_zarr


def _fails(source: Any, *words: str, error: type[Exception] = VolumeError, **options: Any) -> None:
    """Opening (or calling) fails with one line that holds all the words."""
    with pytest.raises(error) as caught:
        source() if callable(source) else open_volume(source, **options)
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message


def _ome_zarr(path: Path, levels: list[np.ndarray], axes: str = "zyx", version: str = "0.5", **multiscale) -> Path:
    units = {"z": {"unit": "micrometer"}, "y": {"unit": "nanometer"}, "x": {"unit": "nanometer"}}
    kinds = {"t": "time", "c": "channel"}
    scale = {"t": 1.0, "c": 1.0, "z": 0.03, "y": 4.0, "x": 5.0}
    image = {
        "axes": [{"name": axis, "type": kinds.get(axis, "space"), **units.get(axis, {})} for axis in axes],
        "datasets": [
            {
                "path": str(level),
                "coordinateTransformations": [
                    {"type": "scale", "scale": [scale[a] * (2**level if a in "yx" else 1) for a in axes]},
                    {"type": "translation", "translation": [0.5] * len(axes)},
                ],
            }
            for level in range(len(levels))
        ],
        **multiscale,
    }
    group = zarr.open_group(path, mode="w", zarr_format=3 if version == "0.5" else 2)
    group.attrs.update(
        {"ome": {"version": "0.5", "multiscales": [image]}} if version == "0.5" else {"multiscales": [image]}
    )
    for level, array in enumerate(levels):
        group.create_array(str(level), data=array, chunks=tuple(min(n, 16) for n in array.shape))
    return path
