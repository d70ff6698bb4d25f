"""Folders of slices, and slices by themselves."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import tifffile
from PIL import Image

from napari_kdunet.core.volumes.volume import open_volume


@pytest.mark.parametrize("suffix", [".tif", ".png"])
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "bool"])
def test_folder_in_natural_order(pixels, tmp_path, suffix, dtype):
    array = (pixels > 100) if dtype == "bool" else pixels.astype(dtype)
    for z, name in enumerate(["s1", "s2", "s9", "s10", "s100"]):
        path = tmp_path / f"{name}{suffix}"
        tifffile.imwrite(path, array[z]) if suffix == ".tif" else Image.fromarray(array[z]).save(path)
    (tmp_path / f".hidden{suffix}").write_bytes(b"resource fork")
    (tmp_path / "notes.txt").write_text("not a slice")
    volume = pickle.loads(pickle.dumps(open_volume(tmp_path)))
    assert volume.dtype == dtype
    np.testing.assert_array_equal(np.asarray(volume), array)
    np.testing.assert_array_equal(volume.read(3, slice(0, 4), slice(5, 9)), array[3, :4, 5:9])


def test_large_png_is_no_decompression_bomb(tmp_path):
    Image.new("1", (14_000, 14_000)).save(tmp_path / "large.png")  # Image.open refuses more than 179 megapixels
    assert open_volume(tmp_path / "large.png").shape == (1, 14_000, 14_000)


def test_folders_that_do_not_fit(pixels, tmp_path, fails):
    tifffile.imwrite(tmp_path / "1.tif", pixels[0])
    tifffile.imwrite(tmp_path / "2.tif", pixels[0, 1:])
    fails(tmp_path, str(tmp_path / "2.tif"), "(36, 53)", "1.tif", "(37, 53)")
    tifffile.imwrite(tmp_path / "2.tif", pixels[0].astype(np.uint16))
    fails(tmp_path, str(tmp_path / "2.tif"), "uint16")
    tifffile.imwrite(tmp_path / "2.tif", pixels)
    fails(tmp_path, str(tmp_path / "2.tif"), "5 slices")


def test_a_slice_of_a_folder_that_goes_bad_is_named(pixels, tmp_path, fails):
    for z, image in enumerate(pixels):
        tifffile.imwrite(tmp_path / f"{z}.tif", image)
    volume = open_volume(tmp_path)
    (tmp_path / "3.tif").write_bytes(b"gone")
    np.testing.assert_array_equal(volume.read(2), pixels[2])
    fails(lambda: volume.read(3), f"cannot read slice z=3 of {tmp_path}: {tmp_path / '3.tif'}: ")


def test_empty_folder(tmp_path, fails):
    fails(tmp_path, str(tmp_path), "empty")


def test_colour_png_is_refused(tmp_path, fails):
    for mode in ("RGB", "RGBA", "LA"):
        Image.new(mode, (4, 4)).save(tmp_path / "d.png")
        fails(tmp_path / "d.png", "d.png", mode, "greyscale")


def test_truncated_png(pixels, tmp_path, fails):
    Image.fromarray(pixels[0]).save(tmp_path / "a.png")
    (tmp_path / "a.png").write_bytes((tmp_path / "a.png").read_bytes()[:-500])
    volume = open_volume(tmp_path / "a.png")
    fails(lambda: volume.read(0), "cannot read slice z=0 of", str(tmp_path / "a.png"))
