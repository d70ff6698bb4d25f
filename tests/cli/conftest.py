"""Volumes, a teacher and its probabilities for all tests of the command line, which only read them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tifffile

from command_line import SMALL, VOXEL, blobs, run
from napari_kdunet import core


@pytest.fixture(scope="session")
def data(tmp_path_factory) -> Path:
    """A folder of volumes, right and wrong; tests only read it."""
    folder = tmp_path_factory.mktemp("data")
    raw, labels = blobs()
    core.write_volume(raw, folder / "raw.tif", voxel_size=VOXEL)
    core.write_volume(labels, folder / "labels.tif", voxel_size=VOXEL)
    core.write_volume(raw, folder / "unknown.tif")
    core.write_volume(blobs(seed=1)[0], folder / "other.tif", voxel_size=VOXEL)
    core.write_volume(labels[:3], folder / "short.tif")
    core.write_volume(np.zeros_like(labels), folder / "empty.tif")
    core.write_volume(labels.astype(np.float32), folder / "floats.tif")
    core.write_volume(2 * labels.astype(np.float32), folder / "beyond.tif")
    np.save(folder / "nan.npy", np.where(raw > 200, np.nan, raw))
    tifffile.imwrite(folder / "rgb.tif", np.zeros((40, 40, 3), np.uint8), photometric="rgb")
    (folder / "text.tif").write_text("not a TIFF")
    (folder / "text.safetensors").write_text("not a model")
    return folder


@pytest.fixture(scope="session")
def teacher(data, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("teacher") / "teacher.safetensors"
    result = run("train", data / "raw.tif", data / "labels.tif", "-o", path, "--k", 4, "--steps", 40, *SMALL)
    assert result.code == 0, result.err
    return path


@pytest.fixture(scope="session")
def probability(data, teacher, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("probability") / "probability.zarr"
    assert run("predict", teacher, data / "raw.tif", "-o", path, "--probabilities").code == 0
    return path
