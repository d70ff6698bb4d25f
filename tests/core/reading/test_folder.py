"""Folders of slices, and slices by themselves."""

from __future__ import annotations

import pickle
import random
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image, ImageOps

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


def write(folder: Path, names: list[str], images: list[np.ndarray]) -> Path:
    """Write slices under these names, in another order than theirs."""
    folder.mkdir(exist_ok=True)
    pairs = list(zip(names, images, strict=True))
    random.Random(0).shuffle(pairs)
    for name, image in pairs:
        path = folder / name
        if path.suffix in (".tif", ".tiff"):
            tifffile.imwrite(path, image)
        else:
            Image.fromarray(image).save(path)
    return folder


@pytest.mark.parametrize(
    "names",
    [
        "z-10 z-9 z-1 z0 z1 z2",
        "z_-1.5 z_-1.0 z_-0.5 z_0.0 z_0.5 z_10.0",
        "z=-3 z=-2 z=-1",
        "depth+0.5 depth+1.5 depth+10.5",
        "s-1 s-2 s-9 s-10 s-100",
        "scan-2024-01-05-001 scan-2024-01-05-002 scan-2024-01-05-010",
        "0.25 0.5 0.75 1.0 1.25 10.0",
        "img_1.8 img_1.9 img_1.10 img_1.11",
        "1.2.9 1.2.10 1.3.1",
        "tile - 1 tile - 2 tile - 10".replace(" - ", "~-~"),
        "a1b2 a1b10 a2b1 A2b3",
        "first second third".replace("second", "fourth").replace("third", "sixth"),
        "s001 s002 s010 s0100",
        "20240105123456789 20240105123456790 20240105123456791",
        "slice 1 x,slice 2 x,slice 10 x",
        "断面１ 断面２ 断面９ 断面１０",
        "s١ s٢ s٩ s١٠",
        "ｚ－１．５ ｚ０．０ ｚ２．５ ｚ１０．０",
    ],
)
@pytest.mark.parametrize("suffix", [".tif", ".png"])
def test_order_of_a_person(pixels, tmp_path, names, suffix):
    listed = names.split(",") if "," in names else names.replace("~", " ").split(" ")
    listed = ["tile - 1", "tile - 2", "tile - 10"] if "~" in names else listed
    images = [np.full((5, 6), z, np.uint8) for z in range(len(listed))]
    folder = write(tmp_path / "slices", [f"{name}{suffix}" for name in listed], images)
    assert open_volume(folder)[:, 0, 0].tolist() == list(range(len(listed)))


@pytest.mark.parametrize(
    "pattern", ["{}_mask", "{}_seg", "{}_cp_masks", "{}-labels", "mask_{}", "{}Mask", "gt.{}", "{}_mask2"]
)
@pytest.mark.parametrize("suffix", [".tif", ".png"])
def test_masks_beside_images_are_left_out(pixels, tmp_path, pattern, suffix):
    names = [f"s{z}" for z in range(5)]
    write(tmp_path / "em", [f"{name}.tif" for name in names], list(pixels))
    masks = [(image > 100).astype(np.uint16) for image in pixels[:3]]
    write(tmp_path / "em", [f"{pattern.format(name)}{suffix}" for name in names[:3]], masks)
    volume = open_volume(tmp_path / "em")
    np.testing.assert_array_equal(np.asarray(volume), pixels)
    assert any("3 files" in note and pattern.format("s0") in note for note in volume.notes)
    write(tmp_path / "masks", [f"{pattern.format(name)}{suffix}" for name in names[:3]], masks)
    np.testing.assert_array_equal(np.asarray(open_volume(tmp_path / "masks")), masks)  # by themselves they are slices


def test_the_same_slices_in_two_formats(pixels, tmp_path, fails):
    write(tmp_path / "em", [f"s{z}.png" for z in range(5)], list(255 - pixels))
    write(tmp_path / "em", [f"s{z}.tif" for z in range(5)], list(pixels))
    volume = open_volume(tmp_path / "em")
    np.testing.assert_array_equal(np.asarray(volume), pixels)
    assert any(".tif and .png" in note for note in volume.notes)
    (tmp_path / "em" / "s3.png").unlink()
    fails(tmp_path / "em", "s", "also exists as", "keep one of each")


def test_two_series_are_not_one(pixels, tmp_path, fails):
    write(tmp_path / "em", [f"bse_{z}.tif" for z in range(3)] + [f"se_{z}.tif" for z in range(3)], [*pixels[:3]] * 2)
    fails(tmp_path / "em", "two series", "bse and se")
    write(tmp_path / "b", [f"反射_{z}.tif" for z in range(3)] + [f"二次_{z}.tif" for z in range(3)], [*pixels[:3]] * 2)
    fails(tmp_path / "b", "two series", "反射", "二次")


@pytest.mark.parametrize(
    ("names", "fields", "advice"),
    [
        ([f"EM_ch{c:02}_z{z:03}" for c in (0, 1) for z in range(3)], ("ch (0 to 1)", "z (0 to 2)"), "z ~ ch"),
        ([f"EM_z{z:03}_c{c}" for z in range(3) for c in (0, 1)], ("z (0 to 2)", "c (0 to 1)"), "z ~ c"),
        ([f"t{t}_z{z}" for t in range(4) for z in range(2)], ("t (0 to 3)", "z (0 to 1)"), "z ~ t"),
        ([f"stack{s}_{z:03}" for s in (1, 2) for z in range(1, 4)], ("stack (1 to 2)", "2 (1 to 3)"), "2 ~ stack"),
        ([f"t{t}_z{z}_{z * 50}nm" for t in (0, 1) for z in range(3)], ("t (0 to 1)", "z (0 to 2)"), "z ~ t"),
        ([f"r{r}-c{c}_z{z:03}" for r in (0, 1) for c in (0, 1) for z in (1, 2)], ("z (1 to 2)",), "z ~ r and c"),
        ([f"z{z}_ch{c}_1030{z}{c}" for z in range(3) for c in (0, 1)], ("z (0 to 2)", "ch (0 to 1)"), "z ~ ch"),
        ([f"通道{c}_層{z}" for c in (1, 2) for z in (1, 2)], ("通道 (1 to 2)", "層 (1 to 2)"), "層 ~ 通道"),
    ],
)
def test_every_combination_of_two_numbers_is_refused(tmp_path, fails, names, fields, advice):
    write(tmp_path / "em", [f"{name}.png" for name in names], [np.zeros((5, 6), np.uint8)] * len(names))
    advice = advice.replace("~", "counts the slices, that is a folder for each")
    fails(tmp_path / "em", str(tmp_path / "em"), *fields, "move each series into a folder of its own", advice)


@pytest.mark.parametrize("pattern", ["{:02x}", "{:X}", "s{:04x}", "em_{:02x}_sem"])
@pytest.mark.parametrize("numbers", [range(11), range(8, 18), range(40), [*range(3), *range(4, 10), *range(11, 40)]])
def test_hexadecimal_numbers_are_refused(tmp_path, fails, pattern, numbers):
    """Their order as decimal numbers and letters is another, and some would be left out as having no number."""
    images = [np.zeros((5, 6), np.uint8)] * len(numbers)
    write(tmp_path / "em", [f"{pattern.format(z)}.png" for z in numbers], images)
    fails(tmp_path / "em", str(tmp_path / "em"), "in hexadecimal", "rename them with decimal numbers")


@pytest.mark.parametrize(
    "names",
    ["s8 s9 sa sb sc", "9a 10a 11a 12a", "8 9 10 11 12", "0a1 0a2 0a9 0a10", "c8 c9 c10", "1a2 9e1 20f d00 f3b"],
)
def test_letters_that_are_no_digits_or_make_no_difference(pixels, tmp_path, names):
    listed = names.split()
    write(tmp_path / "em", [f"{name}.tif" for name in listed], list(pixels[: len(listed)]))
    np.testing.assert_array_equal(np.asarray(open_volume(tmp_path / "em")), pixels[: len(listed)])


@pytest.mark.parametrize(
    ("names", "note"),
    [
        ([f"EM_ch{c}_z{z}" for c in (0, 1) for z in range(3)][:-1], "in the order of ch (0 to 1), then z (0 to 2)"),
        ([f"2024-03-{d}_{h}-30-00_SE2" for d, h in ((11, 11), (11, 12), (12, 10), (12, 11))], "in the order of"),
        ([f"2024-03-{10 + z // 2}_{z:03}" for z in range(5)], None),
        ([f"{z:03}_10-0{z}-1{z % 2}" for z in range(5)], None),
        ([f"slice {z} of 5, z={z * 0.05:.2f}um" for z in range(5)], None),
    ],
)
def test_numbers_that_go_along_are_one_stack(pixels, tmp_path, names, note):
    write(tmp_path / "em", [f"{name}.tif" for name in names], list(pixels[: len(names)]))
    volume = open_volume(tmp_path / "em")
    np.testing.assert_array_equal(np.asarray(volume), pixels[: len(names)])
    assert len(volume.notes) == bool(note)
    assert (note or "") in " ".join(volume.notes)


@pytest.mark.parametrize("odd", ["max_projection.png", "preview.tif"])
def test_a_file_without_a_number_is_no_slice(pixels, tmp_path, odd):
    write(tmp_path / "em", [*(f"s{z}.tif" for z in range(4)), odd], list(pixels))
    volume = open_volume(tmp_path / "em")
    np.testing.assert_array_equal(np.asarray(volume), pixels[:4])
    assert volume.notes == (f"left out, as the others have numbers: {odd}",)


def test_a_letter_beside_many_numbers_is_no_hexadecimal_digit(tmp_path):
    images = [np.full((5, 6), z, np.uint8) for z in range(21)]
    write(tmp_path / "em", [*(f"{z}.png" for z in range(1, 21)), "b.png"], images)
    volume = open_volume(tmp_path / "em")
    np.testing.assert_array_equal(np.asarray(volume), np.stack(images[:20]))
    assert volume.notes == ("left out, as the others have numbers: b.png",)


@pytest.mark.parametrize("names", ["em em_1 em_2", "alpha beta c2", "s8 s9 sa sb sc"])
def test_a_slice_without_a_number_among_its_like(pixels, tmp_path, names):
    """It begins a series of the same name, or names are no numbers."""
    listed = names.split()
    write(tmp_path / "em", [f"{name}.tif" for name in listed], list(pixels[: len(listed)]))
    np.testing.assert_array_equal(np.asarray(open_volume(tmp_path / "em")), pixels[: len(listed)])


def test_subfolders_are_said(pixels, tmp_path, fails):
    write(tmp_path / "a", ["1.tif", "2.tif"], list(pixels[:2]))
    write(tmp_path / "a" / "old", ["1.tif"], list(pixels[:1]))
    volume = open_volume(tmp_path / "a")
    assert volume.shape == (2, 37, 53)
    assert volume.notes == ("its folders are left out: old",)
    fails(tmp_path, "empty", "folders a", "give one of them")


def test_a_dangling_link_is_named(pixels, tmp_path, fails):
    write(tmp_path / "a", ["1.tif", "2.tif"], list(pixels[:2]))
    (tmp_path / "a" / "3.tif").symlink_to(tmp_path / "gone.tif")
    fails(tmp_path / "a", "3.tif", "a link to a file that is not there")
    (tmp_path / "raw.tif").symlink_to(tmp_path / "gone.tif")
    fails(tmp_path / "raw.tif", "a link to a file that is not there")


@pytest.mark.parametrize("odd", [0, 2, 4])
@pytest.mark.parametrize("how", ["shape", "dtype"])
def test_the_odd_one_out_is_named(pixels, tmp_path, odd, how, fails):
    images = list(pixels)
    images[odd] = images[odd][1:] if how == "shape" else images[odd].astype(np.uint16)
    write(tmp_path / "a", [f"s{z}.tif" for z in range(5)], images)
    fails(tmp_path / "a", f"s{odd}.tif has shape", "(36, 53)" if how == "shape" else "uint16", "must agree")


@pytest.mark.parametrize("bad", [b"", b"not a picture\n", None])
@pytest.mark.parametrize("suffix", [".tif", ".png", ".jpg"])
def test_a_bad_slice_is_named_and_can_be_skipped(pixels, tmp_path, bad, suffix, fails):
    write(tmp_path / "a", [f"s{z}{suffix}" for z in range(5)], list(pixels))
    file = tmp_path / "a" / f"s3{suffix}"
    file.write_bytes(file.read_bytes()[:30] if bad is None else bad)
    fails(tmp_path / "a", str(file))
    volume = open_volume(tmp_path / "a", on_error="skip")
    assert volume.shape == pixels.shape
    if suffix != ".jpg":
        np.testing.assert_array_equal(volume.read(4), pixels[4])
    fails(lambda: volume.read(3), "z=3", str(file))


def test_indexed_png_gives_grey_values(pixels, tmp_path, fails):
    grey = Image.fromarray(pixels[0])
    palette = [255 - value for value in range(256) for _ in range(3)]
    reverse = Image.fromarray(255 - pixels[0]).convert("P")
    reverse.putpalette(palette)
    few = Image.fromarray(pixels[0] // 64 * 64).convert("RGB").quantize(8)
    for name, image, expected in [
        ("a", grey.convert("P"), pixels[0]),
        ("b", reverse, pixels[0]),
        ("c", few, pixels[0] // 64 * 64),
    ]:
        image.save(tmp_path / f"{name}.png")
        volume = open_volume(tmp_path / f"{name}.png")
        assert volume.dtype == np.uint8
        np.testing.assert_array_equal(volume.read(0), expected)
    colours = grey.convert("P")
    colours.putpalette([value for i in range(256) for value in (i, 255 - i, 0)])
    colours.save(tmp_path / "d.png")
    fails(tmp_path / "d.png", "d.png", "colour image (P)")
    np.testing.assert_array_equal(open_volume(tmp_path / "d.png", channel=1).read(0), 255 - pixels[0])


@pytest.mark.parametrize("suffix", [".tif", ".png"])
def test_a_channel_of_slices_in_colour(pixels, tmp_path, fails, suffix):
    colours = np.stack([pixels, pixels + 1, pixels + 2], -1)
    (tmp_path / "em").mkdir()
    for z, image in enumerate(colours):
        Image.fromarray(image).save(tmp_path / "em" / f"s{z}{suffix}")
    fails(tmp_path / "em", "s0", "choose")
    for channel in range(3):
        np.testing.assert_array_equal(np.asarray(open_volume(tmp_path / "em", channel=channel)), colours[..., channel])
    fails(tmp_path / "em", "s0", "there is no channel 3", channel=3)
    write(tmp_path / "grey", [f"s{z}{suffix}" for z in range(5)], list(pixels))
    fails(tmp_path / "grey", "s0", "there is no channel to choose", channel=1)


def test_jpeg_slices(tmp_path):
    image = np.tile(np.arange(0, 256, 4, dtype=np.uint8), (48, 1))
    write(tmp_path / "a", ["1.jpg", "2.jpeg"], [image, 255 - image])
    volume = open_volume(tmp_path / "a")
    assert (volume.shape, volume.dtype) == ((2, 48, 64), np.uint8)
    assert np.abs(volume.read(1).astype(int) - (255 - image)).max() <= 3


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", [".tif", ".jpg"])
def test_orientation(tmp_path, orientation, suffix):
    """As Pillow turns it, which is what viewers do."""
    image = np.kron(np.arange(20, dtype=np.uint8).reshape(4, 5) * 12, np.ones((8, 8), np.uint8))
    exif = Image.Exif()
    exif[274] = orientation
    plain = Image.fromarray(image)
    plain.getexif()[274] = orientation
    expected = np.asarray(ImageOps.exif_transpose(plain))
    path = tmp_path / f"a{suffix}"
    if suffix == ".tif":
        tag = (274, 3, 1, orientation, True)
        tifffile.imwrite(
            path, np.stack([image, image]), metadata=None, extratags=[tag], resolution=(1e6, 2e6), resolutionunit=3
        )
    else:
        plain.save(path, exif=exif, quality=100)
    volume = open_volume(path)
    assert volume.shape[1:] == expected.shape
    assert np.abs(volume.read(0).astype(int) - expected).max() <= (0 if suffix == ".tif" else 4)
    assert np.abs(volume.read(0, slice(3, 20, 2), slice(5, 9)).astype(int) - expected[3:20:2, 5:9]).max() <= 4
    if suffix == ".tif":
        assert volume.voxel_size[1:] == ((10, 5) if orientation > 4 else (5, 10))


def test_slices_of_different_pixel_sizes(pixels, tmp_path):
    (tmp_path / "a").mkdir()
    for z, size in enumerate((5, 5, 8)):
        tifffile.imwrite(
            tmp_path / "a" / f"{z}.tif", pixels[z], resolution=(1e7 / size,) * 2, resolutionunit="CENTIMETER"
        )
    volume = open_volume(tmp_path / "a")
    assert volume.voxel_size is None
    assert any("its slices state different ones" in note for note in volume.notes)
    (tmp_path / "a" / "2.tif").unlink()
    assert open_volume(tmp_path / "a").voxel_size == (5, 5, 5)


@pytest.mark.parametrize(
    ("names", "extra"),
    [(["s0", "s1", "s2", "s3", "s4"], "s02"), (["s1", "s2", "s3", "s4", "s5"], "s3 (1)"), (list("abcde"), "c - Copy")],
)
def test_a_slice_that_is_there_twice_is_refused(pixels, tmp_path, fails, names, extra):
    for name, image in zip([*names, extra], [*pixels, pixels[2]], strict=True):
        tifffile.imwrite(tmp_path / f"{name}.tif", image)
    fails(tmp_path, f"{extra}.tif", "keep one of them")


def test_numbers_in_brackets_are_no_copies(pixels, tmp_path):
    for z, image in enumerate(pixels):
        tifffile.imwrite(tmp_path / f"stack ({z + 8}).tif", image)
    np.testing.assert_array_equal(np.asarray(open_volume(tmp_path)), pixels)


def test_decimals_of_different_lengths(pixels, tmp_path):
    for name, image in zip(["0.05", "0.10", "0.15", "0.2", "0.25"], pixels, strict=True):
        tifffile.imwrite(tmp_path / f"z{name}um.tif", image)
    np.testing.assert_array_equal(np.asarray(open_volume(tmp_path)), pixels)
