"""What lies outside the sample is found, and does not count in the statistics."""

from __future__ import annotations

import io
import math

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy import ndimage

from napari_kdunet import core
from napari_kdunet.core.volumes import sample
from napari_kdunet.core.volumes.padding import find_regions
from napari_kdunet.core.volumes.volume import open_volume

DTYPES = ["uint8", "uint16", "int16", "int32", "float32", "float64"]


def texture(shape, seed: int = 0) -> np.ndarray:
    """Grey values from 1 to 254, neighbours alike, as in a micrograph."""
    image = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=shape), 1.5, mode="wrap")
    return (127.5 + 40 * image / image.std()).clip(1, 254).round()


def moments_inside(image, outside) -> tuple[float, float]:
    """Mean and standard deviation, without the two pixels next to what is outside."""
    values = image[~ndimage.binary_dilation(outside, np.ones((5, 5)))]
    return values.mean(), values.std()


def frame(shape, sides) -> np.ndarray:
    top, bottom, left, right = sides
    outside = np.ones(shape, bool)
    outside[top : shape[0] - bottom, left : shape[1] - right] = False
    return outside


def corners(shape, degrees: float) -> np.ndarray:
    return ndimage.rotate(np.ones(shape), degrees, order=0, reshape=False) == 0


@settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(
    shape=st.tuples(st.integers(160, 220), st.integers(160, 220)),
    outline=st.one_of(
        st.tuples(*[st.sampled_from([0, 0, 12, 30])] * 4).map(lambda sides: lambda shape: frame(shape, sides)),
        st.sampled_from([10, 45, -20]).map(lambda degrees: lambda shape: corners(shape, degrees)),
    ),
    fill=st.sampled_from([0, 255, 128, 3]),
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 99),
)
def test_padding_of_any_kind(shape, outline, fill, dtype, seed):
    outside, image = outline(shape), texture(shape, seed).astype(dtype)
    expected = np.where(outside, np.asarray(fill, dtype), image)
    volume = open_volume(expected[None])
    found = volume.outside(0)
    if not outside.any():
        assert found is None
        assert volume.statistics(0) == pytest.approx((image.mean(dtype=float), image.std(dtype=float)), rel=1e-9)
        return
    assert outside[found].mean() > 0.99  # a pixel of the sample that happens to have that value, and touches it
    assert (found & outside).sum() == outside.sum()
    assert volume.statistics(0) == pytest.approx(moments_inside(expected.astype(float), found), rel=1e-9)
    assert (
        np.array_equal(volume.outside(0, slice(7, 50), slice(9, 61)), found[7:50, 9:61]) or not found[7:50, 9:61].any()
    )
    assert not volume.is_lost(0)


def test_several_fill_values_and_a_missing_tile():
    image = texture((300, 400))
    image[:40], image[:, 370:], image[150:220, 100:190] = 0, 255, 77
    found = open_volume(image.astype(np.uint8)).outside(0)
    expected = np.zeros(image.shape, bool)
    expected[:40] = expected[:, 370:] = expected[150:220, 100:190] = True
    assert (found ^ expected).sum() <= 4


@pytest.mark.parametrize("fill", [0, 255])
@pytest.mark.parametrize("turn", range(4))
@pytest.mark.parametrize(("width", "slope"), [(5, 0.4), (12, 0.0), (12, 0.1), (20, 0.7)])
def test_a_crack_or_a_seam_is_found(fill, turn, width, slope):
    """Though too narrow for a run of 32 pixels at the border; one that ends within the slice too."""
    y, x = np.mgrid[:300, :260]
    outside = (np.abs(x - 130 - slope * (y - 150) - 8 * np.sin(y / 40)) <= width / 2) & (y < 220)
    image, outside = np.rot90(texture((300, 260)), turn), np.rot90(outside, turn)
    found = open_volume(np.where(outside, fill, image).astype(np.uint8)).outside(0)
    assert (found ^ outside).sum() <= 8


@pytest.mark.parametrize("share", [2, 10, 20])
def test_saturated_membranes_that_run_through_a_slice_are_no_crack(share):
    ridges = np.abs(ndimage.gaussian_filter(np.random.default_rng(0).normal(size=(300, 300)), 12))
    image = ridges / ridges.std() * 60 + 0.4 * texture((300, 300), 1)
    low, high = np.percentile(image, [share, 99])
    assert open_volume(((image - low) / (high - low) * 255).clip(0, 255).astype(np.uint8)).outside(0) is None


def much_contrast(share: int) -> np.ndarray:
    """Dark bodies of some 60 pixels, with texture, of which this share of the pixels is clipped to 0."""
    bodies = ndimage.gaussian_filter(np.random.default_rng(0).normal(size=(400, 500)), 14)
    image = bodies / bodies.std() * 60 + texture((400, 500), 1)
    low, high = np.percentile(image, [share, 99.9])
    return ((image - low) / (high - low) * 255).clip(0, 255).astype(np.uint8)


@pytest.mark.parametrize("white", [False, True])
@pytest.mark.parametrize("share", [10, 20, 30])
def test_bodies_that_are_clipped_to_black_or_white_are_no_padding(share, white):
    image = much_contrast(share)
    assert ndimage.label(image == 0)[1] > 1
    assert open_volume(255 - image if white else image).outside(0) is None


@pytest.mark.parametrize("share", [10, 20])
@pytest.mark.parametrize("order", [0, 1])
def test_padding_is_told_from_what_is_clipped_to_the_same_value(share, order):
    image = ndimage.rotate(much_contrast(share), 7, order=order)
    outside = ndimage.rotate(np.ones((400, 500)), 7, order=0) == 0
    found = open_volume(image).outside(0)
    assert found[outside].mean() > 0.99
    assert found[~outside].mean() < 0.015
    strips = find_regions(image.__getitem__, image.shape, 0, stated=False, pixels_at_once=60 * image.shape[1])
    np.testing.assert_array_equal(strips.window(), found)


def test_what_is_saturated_within_the_sample_belongs_to_it():
    y, x = np.ogrid[:300, :300]
    image = np.where((y - 150) ** 2 + (x - 140) ** 2 < 50**2, 255, texture((300, 300))).astype(np.uint8)
    image[100, 20:80] = 0
    volume = open_volume(image)
    assert volume.outside(0) is None
    assert volume.statistics(0) == pytest.approx((image.mean(), image.std()), rel=1e-12)


def test_lines_and_ramps_are_no_padding():
    image = texture((200, 210)).astype(np.uint8)
    image[0], image[:, -1] = 0, 255
    assert open_volume(image).outside(0) is None
    ramp = np.broadcast_to(np.arange(200.0), (1, 200, 200))
    assert open_volume(ramp).outside(0) is None
    image[:3] = 0
    assert np.array_equal(open_volume(image).outside(0), np.arange(200)[:, None] < np.full(210, 3))


def test_nan_around_the_sample_is_padding_and_elsewhere_an_error(fails):
    image = ndimage.rotate(texture((200, 260)), 12, order=1, cval=math.nan).astype(np.float32)
    volume = open_volume(image, name="rotated.npy")
    assert np.array_equal(volume.outside(0), np.isnan(image))
    assert volume.statistics(0) == pytest.approx(moments_inside(image, np.isnan(image)), rel=1e-6)
    assert open_volume(np.full((1, 40, 40), math.nan)).is_lost(0)
    image[110, 130] = math.nan
    fails(lambda: open_volume(image, name="rotated.npy").statistics(0), "z=0 of rotated.npy", "NaN")
    assert open_volume(image, fill=math.nan).outside(0)[110, 130]
    image[110, 130] = math.inf
    fails(lambda: open_volume(image, name="rotated.npy").statistics(0), "infinite")


def test_a_blurred_edge_does_not_count():
    inside = ndimage.rotate(np.ones((200, 260)), 7, order=1, mode="grid-constant")
    image = ndimage.rotate(texture((200, 260)), 7, order=1, mode="grid-constant").round().astype(np.uint8)
    mean, std = open_volume(image).statistics(0)
    expected = image[inside > 0.999]
    assert (mean, std) == pytest.approx((expected.mean(), expected.std()), rel=0.01)


@pytest.mark.parametrize("quality", [60, 75, 95])
def test_padding_of_a_jpeg(quality):
    image = np.pad(texture((300, 300)).astype(np.uint8), ((35, 60), (50, 43)))
    file = io.BytesIO()
    Image.fromarray(image).save(file, "jpeg", quality=quality)
    stored = np.asarray(Image.open(file))
    expected = image[35:-60, 50:-43]
    assert open_volume(stored).statistics(0) == pytest.approx((expected.mean(), expected.std()), rel=0.03)


@pytest.mark.parametrize("at_once", [1500, 2000, 5000])
def test_slices_larger_than_what_is_labelled_at_a_time(at_once):
    image = texture((250, 170))
    image[corners(image.shape, 20)] = 0
    image[60:140, 60:110] = 9  # a tile over several strips
    image[:, 130] = 0  # joins the corners above and below
    image = image.astype(np.uint8)
    found = np.zeros(image.shape, bool)
    for value in (0, 9):
        whole, in_strips = (
            find_regions(image.__getitem__, image.shape, value, stated=False, **strips).window()
            for strips in ({}, {"pixels_at_once": at_once})
        )
        np.testing.assert_array_equal(in_strips, whole)
        found |= whole
    assert found[60:140, 60:110].all()
    assert found[corners(image.shape, 20)].all()
    np.testing.assert_array_equal(open_volume(image).outside(0), found)


@pytest.mark.parametrize("dtype", DTYPES)
def test_lost_slices(dtype):
    rng = np.random.default_rng(4)
    image = np.stack([texture((90, 100), seed) for seed in range(5)]).astype(dtype)
    image[1], image[2], image[3] = 0, 200, rng.integers(0, 3, image[3].shape)
    image[4, :, :30] = 0
    image[4, :, 30:] = 8
    volume = open_volume(image)
    assert volume.lost_slices() == [], "as none has been looked at"
    assert [volume.is_lost(z) for z in range(5)] == [False, True, True, True, True]
    assert volume.lost_slices() == [1, 2, 3, 4]
    assert volume.outside(2, slice(0, 7), slice(90, None)).shape == (7, 10)
    assert volume.outside(2).all()
    assert volume.statistics(2) == (200.0, 0.0)


def test_an_image_of_few_grey_levels_is_not_lost():
    image = (texture((100, 100)) // 64).astype(np.uint8)
    assert len(np.unique(image)) == 4
    assert not open_volume(image).is_lost(0)


def test_a_stated_fill_value():
    image = texture((120, 140)).astype(np.uint8)
    image[50:60, 50:60] = 30  # too small to be found
    image[80, 80] = 30
    assert open_volume(image).outside(0) is None
    volume = open_volume(image, fill=30)
    expected = np.zeros(image.shape, bool)
    expected[50:60, 50:60] = True
    assert (volume.outside(0) ^ expected).sum() < 9
    assert open_volume(volume, voxel_size=(5, 5, 5)).outside(0) is not None
    assert open_volume(image, fill=0).outside(0) is None


def test_a_mask_of_the_sample(fails):
    image = texture((2, 60, 70)).astype(np.uint16)
    mask = np.zeros(image.shape, np.uint8)
    mask[0, 10:50, 20:60] = 255
    volume = open_volume(image, sample=mask)
    assert np.array_equal(volume.outside(0), mask[0] == 0)
    assert volume.statistics(0) == pytest.approx(moments_inside(image[0], mask[0] == 0))
    assert volume.is_lost(1)
    fails(lambda: open_volume(image, sample=mask[:1], name="raw.tif"), "sample", "(1, 60, 70)", "raw.tif")


def test_the_values_of_a_slice_may_be_of_any_size(fails):
    image = texture((40, 50))
    for scaled in (image * 1e-100, image * 1e100, image + 1e12):
        mean, std = open_volume(scaled).statistics(0)
        assert mean == pytest.approx(scaled.mean())
        assert std == pytest.approx(scaled.std(), rel=1e-6)
    fails(lambda: open_volume(image * 1e200, name="a.npy").statistics(0), "z=0 of a.npy", "too large")
    fails(lambda: open_volume(image * 1e-200, name="a.npy").statistics(0), "z=0 of a.npy", "too small")
    assert open_volume(np.full((9, 9), 1e10 + 0.3)).statistics(0) == (1e10 + 0.3, 0.0)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", ">u2"])
def test_statistics_of_unsigned_integers_are_exact(dtype):
    highest = np.iinfo(dtype).max
    image = np.random.default_rng(0).integers(highest - 9, highest, (300, 400), endpoint=True).astype(dtype)
    image[:, ::2] -= 4  # what is side by side is alike, so this is no noise
    wide = image.astype(np.longdouble)
    assert open_volume(image[None]).statistics(0) == pytest.approx((float(wide.mean()), float(wide.std())), rel=1e-12)


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
@pytest.mark.parametrize("values", ["all", "ends"])
def test_statistics_of_extreme_unsigned_integers(dtype, values):
    """The squares of a slice take more than 32 bits."""
    random, highest = np.random.default_rng(0), np.iinfo(dtype).max
    image = random.integers(0, highest, (1500, 1300), dtype, endpoint=True)
    if values == "ends":
        image = np.where(image > highest // 2, highest, 0).astype(dtype)
    image = image[:, ::-1]  # not in one piece
    mean = int(image.sum(dtype=np.uint64)) / image.size
    deviation = math.sqrt(np.square(image.astype(np.float64) - mean).mean())
    assert open_volume(image[None]).statistics(0) == pytest.approx((mean, deviation), rel=1e-9)


@pytest.mark.parametrize("scale", [1e-30, 1, 1e15])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_statistics_of_extreme_floats(dtype, scale):
    image = ((texture((400, 300)) + 1000) * scale).astype(dtype)
    exact = image.astype(np.longdouble)
    expected = (float(exact.mean()), float(exact.std()))
    assert open_volume(image[None]).statistics(0) == pytest.approx(expected, rel=1e-9)


PADS = [((0, 0), (0, 0)), ((4, 0), (0, 7)), ((16, 9), (5, 16)), ((50, 40), (60, 70))]


@pytest.mark.parametrize("pads", PADS)
@pytest.mark.parametrize(
    "dtype", ["bool", "int8", "uint8", "int16", "uint16", "int32", "uint64", "float16", "float32", "float64"]
)
def test_standardising_is_the_same_to_the_bit_as_by_numpy(dtype, pads):
    random = np.random.default_rng(1)
    pixels = random.normal(3e4, 2e4, (37, 41)).clip(0, 65_000)
    pixels[0, :3] = 0, 65_000, 1
    pixels = pixels.astype(dtype)
    mean, std = 101.3, 17.7
    mirrored = np.pad(pixels, pads, mode="reflect")
    if pixels.dtype.itemsize <= 2:
        expected = (mirrored.astype(np.float32) - np.float32(mean)) / np.float32(std)
    else:
        expected = ((mirrored.astype(np.float64) - mean) / std).astype(np.float32)
    frozen = pixels.copy()
    frozen.flags.writeable = False
    for image in (pixels, frozen, np.repeat(pixels, 2, axis=1)[:, ::2], np.asfortranarray(pixels)):
        found = sample.standardised(image, mean, std, pads)
        assert found.dtype == np.float32
        assert np.array_equal(found, expected)
    assert np.array_equal(sample.standardised(pixels, mean, 0.0), sample.standardised(pixels, mean, 1.0))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_standardising_keeps_nan_and_infinity(dtype):
    pixels = np.array([[np.nan, 1, np.inf], [2, 3, -np.inf]], dtype)
    found = sample.standardised(pixels, 1.0, 2.0, ((1, 1), (1, 1)))
    assert np.array_equal(found, np.pad((pixels - 1) / 2, 1, mode="reflect").astype(np.float32), equal_nan=True)


def test_masks_are_small_and_not_pickled():
    import pickle

    image = np.zeros((3, 200, 200), np.uint8)
    image[:, 50:150, 50:150] = texture((3, 100, 100))
    volume = core.open_volume(image)
    before = len(pickle.dumps(volume))
    volume.outside(1)
    assert len(pickle.dumps(volume)) == before


@pytest.mark.parametrize("legs", [(18, 18), (24, 17), (31, 20)])
@pytest.mark.parametrize("turn", range(4))
def test_corners_of_a_rotation_by_little_are_found(legs, turn):
    y, x = np.mgrid[:200, :260]
    outside = y / legs[0] + x / legs[1] < 1
    raw, outside = (np.rot90(each, turn) for each in (np.where(outside, 0, texture((200, 260))), outside))
    volume = open_volume(raw.astype(np.uint8))
    assert volume.outside(0) is not None
    assert np.array_equal(volume.outside(0), outside)


@pytest.mark.parametrize("fill", [-math.inf, np.finfo("float32").min, np.finfo("float32").max])
def test_padding_of_infinite_and_extreme_values(fill):
    inside = texture((90, 100)).astype(np.float32)
    volume = open_volume(np.pad(inside, 40, constant_values=fill)[None])
    outside = volume.outside(0)
    assert outside is not None
    assert np.array_equal(outside, frame(outside.shape, (40,) * 4))


def test_a_frame_of_two_pixels():
    outside = open_volume(np.pad(texture((90, 100)), 2)[None]).outside(0)
    assert outside is not None
    assert np.array_equal(outside, frame(outside.shape, (2,) * 4))


@pytest.mark.parametrize("fill", [300, -1, 0.5, math.nan, math.inf])
def test_a_fill_value_that_no_pixel_can_have(fill, fails):
    fails(np.ones((1, 40, 40), np.uint8), "fill is", "uint8", fill=fill)


@pytest.mark.parametrize(
    ("dtype", "value"), [("uint16", 65535), ("int16", -9999), ("float32", -9999), ("float64", 1e6)]
)
def test_single_pixels_far_beyond_all_others_do_not_count(dtype, value):
    """Hot pixels of a detector, or a code for no data."""
    rng, image = np.random.default_rng(0), 300 + texture((256, 256)).astype(dtype)
    hot = np.zeros(image.shape, bool)
    hot.reshape(-1)[rng.choice(image.size, 40, replace=False)] = True
    spoilt = np.where(hot, np.array(value, dtype), image)
    volume = open_volume(spoilt[None])
    assert not volume.is_lost(0)
    np.testing.assert_array_equal(volume.outside(0), hot)
    assert volume.statistics(0) == pytest.approx(moments_inside(image, hot))
    filled = volume.mirrored(0, slice(None), slice(None), 8)
    assert filled[hot].min() >= image.min()
    assert filled[hot].max() <= image.max()
    assert open_volume(image[None]).outside(0) is None


def test_bright_specks_belong_to_the_sample():
    """As gold beads, three times as far from the mean as the image reaches, in a hundredth of a thousandth."""
    image = texture((256, 256)).astype(np.float32)
    image[[20, 90], [30, 200]] = 800
    volume = open_volume(image[None])
    assert volume.outside(0) is None
    assert volume.statistics(0) == pytest.approx((image.mean(dtype=float), image.std(dtype=float)))


def test_padding_of_a_boolean_image():
    image = np.random.default_rng(0).random((256, 256)) < texture((256, 256)) / 255
    image[:, :60] = False
    volume = open_volume(image[None])
    outside = volume.outside(0)
    assert outside[:, :60].all()
    filled = volume.mirrored(0, slice(None), slice(None), 8)
    assert filled.dtype == bool
    inside = ~ndimage.binary_dilation(outside, np.ones((5, 5)))
    assert np.count_nonzero(inside) > image.size / 4
    np.testing.assert_array_equal(filled[inside], image[inside])
    assert filled[:, 50:60].any(), "mirrored"
