"""Damaged files of every format: pixels or one line, within 2 s and 500 MB, whatever stands in them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

KINDS = ["tif", "tiff-zlib", "ome-tiff", "imagej", "png", "jpg", "npy", "mrc", "h5", "nrrd", "nii", "gz"]
KINDS += ["zarr", "n5", "precomputed"]


def faults(kinds: list[str], count: int, folder: Path) -> list[tuple[str, int, str]]:
    """What was wrong with how `count` damaged files of each format were met, by format and seed."""
    script = Path(__file__).with_name("mutate.py")
    ended = subprocess.run(
        [sys.executable, str(script), ",".join(kinds), str(count), str(folder)],
        capture_output=True,
        text=True,
        check=False,
    )
    seed = (folder / "seed").read_text() if (folder / "seed").exists() else "none"
    assert ended.returncode == 0, f"ended with {ended.returncode} at {seed}: {ended.stderr[-2000:]}"
    found: list[tuple[str, int, str]] = json.loads(ended.stdout.splitlines()[-1])
    return found


def test_damaged_files(tmp_path):
    assert faults(KINDS, 50, tmp_path) == []


@pytest.mark.exhaustive
@pytest.mark.parametrize("kind", KINDS)
def test_many_damaged_files(kind, tmp_path):
    assert faults([kind], 1000, tmp_path) == []
