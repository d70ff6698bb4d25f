"""What an interrupted result depends on: never is it gone on with from another input."""

import os

import h5py
import numpy as np
import zarr

from napari_kdunet.core.volumes.volume import open_volume


def later(path) -> None:
    """As if it was written a second later: some disks count no finer."""
    date = path.stat().st_mtime_ns + 10**9
    os.utime(path, ns=(date, date))


def test_what_is_taken_of_a_file_counts(tmp_path):
    np.save(tmp_path / "a.npy", np.zeros((4, 4, 4), np.uint8))
    np.save(tmp_path / "c.npy", np.zeros((2, 2, 8, 8), np.uint8))
    cube = [open_volume(tmp_path / "a.npy", axes=axes) for axes in ("ZYX", "XYZ", "XYZ")]
    parts = [
        open_volume(tmp_path / "c.npy", axes=axes, **{what: index})
        for axes, what in (("CZYX", "channel"), ("TZYX", "time"))
        for index in (0, 1)
    ]
    assert cube[1].identity == cube[2].identity != cube[0].identity
    assert len({volume.identity for volume in parts}) == 4
    skipping = open_volume(tmp_path / "a.npy", axes="ZYX", on_error="skip")
    assert skipping.identity == cube[0].identity


def test_a_file_that_was_written_again_is_another(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("raw", data=np.zeros((2, 8, 8), np.uint8))
        file.create_dataset("more", data=np.zeros((2, 8, 8), np.uint8))
    group = zarr.open_group(tmp_path / "b.zarr", mode="w")
    array = group.create_array("raw", data=np.ones((2, 8, 8), np.uint8), chunks=(1, 8, 8))
    array[1] = 2
    chunk = max(path for path in (tmp_path / "b.zarr").rglob("*") if path.is_file() and "c" in path.parts)
    for source, written in ((f"{tmp_path}/a.h5:/raw", tmp_path / "a.h5"), (tmp_path / "b.zarr" / "raw", chunk)):
        before = open_volume(source).identity
        assert open_volume(source).identity == before
        later(written)
        assert open_volume(source).identity != before


def test_so_does_the_mask_of_the_sample(tmp_path):
    raw, mask = np.zeros((2, 8, 8), np.uint8), tmp_path / "mask.npy"
    np.save(mask, np.ones((2, 8, 8), np.uint8))
    before = open_volume(raw, sample=mask).identity
    later(mask)
    assert open_volume(raw, sample=mask).identity != before
