"""An OME-Zarr, which the tests of several readers share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import zarr


@pytest.fixture(scope="session")
def ome_zarr() -> Callable[..., Path]:
    return _ome_zarr


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
