"""NumPy files."""

from __future__ import annotations

import pickle

import numpy as np
import tifffile

from napari_kdunet.core.volumes.volume import open_volume


def test_sparse_npy_opens_at_once(tmp_path):
    shape = (500, 20_000, 20_000)
    with (tmp_path / "big.npy").open("wb") as file:
        np.lib.format.write_array_header_2_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})
        start = file.tell()
        file.seek(start + 499 * 20_000**2)
        file.write(b"\x07\x09")
        file.truncate(start + 500 * 20_000**2)  # 200 GB that are not there
    volume = open_volume(tmp_path / "big.npy")
    assert len(pickle.dumps(volume)) < 10_000
    np.testing.assert_array_equal(volume.read(499, slice(0, 1), slice(0, 3)), [[7, 9, 0]])


def test_empty_npy(tmp_path, fails):
    np.save(tmp_path / "c.npy", np.zeros((0, 4, 4)))
    fails(tmp_path / "c.npy", str(tmp_path / "c.npy"), "empty")


def test_another_format_named_npy(pixels, tmp_path, fails):
    tifffile.imwrite(tmp_path / "a.tif", pixels)
    (tmp_path / "a.tif").rename(tmp_path / "a.npy")
    fails(tmp_path / "a.npy", str(tmp_path / "a.npy"), "no NumPy file", "give it the ending of its format")


def test_truncated_npy(pixels, tmp_path, fails):
    np.save(tmp_path / "a.npy", pixels)
    (tmp_path / "a.npy").write_bytes((tmp_path / "a.npy").read_bytes()[:-100])
    fails(tmp_path / "a.npy", str(tmp_path / "a.npy"))
