"""The command line in this process, and what several of its tests start from."""

from __future__ import annotations

import io
import sys
from contextlib import redirect_stderr, redirect_stdout
from typing import NamedTuple
from unittest import mock

import numpy as np
import pytest
from scipy import ndimage

from napari_kdunet.cli import main

SHAPE, VOXEL = (8, 70, 60), (30.0, 10.0, 10.0)
SMALL = ("--depth", "2", "--patch", "32", "--batch", "4", "--validations", "2", "--threads", "1")
MODULE = (sys.executable, "-m", "napari_kdunet")


class Result(NamedTuple):
    code: int
    out: str
    err: str

    @property
    def lines(self) -> list[str]:
        return self.err.splitlines()


def run(*argv) -> Result:
    """The console entry in this process."""
    out, err = io.StringIO(), io.StringIO()
    argv = ["napari-kdunet", *map(str, argv)]
    with (
        mock.patch.object(sys, "argv", argv),
        redirect_stdout(out),
        redirect_stderr(err),
        pytest.raises(SystemExit) as told,
    ):
        main()
    return Result(int(told.value.code or 0), out.getvalue(), err.getvalue())


def blobs(shape=SHAPE, seed=0) -> tuple[np.ndarray, np.ndarray]:
    """Bright blobs on a dark noisy ground, and their labels."""
    rng = np.random.default_rng(seed)
    labels = (ndimage.gaussian_filter(rng.standard_normal(shape), (1, 5, 5)) > 0.03).astype(np.uint8)
    raw = 60 + 110 * ndimage.gaussian_filter(labels.astype(float), (0, 1, 1)) + rng.normal(0, 12, shape)
    return raw.clip(0, 255).astype(np.uint8), labels
