"""Prediction where a slice does not show the sample everywhere: padding, missing tiles, lost sections."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy import ndimage

from napari_kdunet import core

DATA = os.environ.get("KDUNET_DATA")


def texture(shape, seed: int = 0) -> np.ndarray:
    image = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=shape), (0, 1.5, 1.5), mode="wrap")
    return (127.5 + 40 * image / image.std()).clip(1, 254).astype(np.uint8)


def corners(shape, degrees: float) -> np.ndarray:
    return ndimage.rotate(np.ones(shape), degrees, order=0, reshape=False) == 0


def volume(raw, size: float = 0.0) -> core.Volume:
    return core.open_volume(raw, voxel_size=(size, size, size) if size else None)


@settings(max_examples=12, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(
    shape=st.tuples(st.just(1), st.integers(120, 160), st.integers(120, 160)),
    tile=st.integers(12, 70),
    size=st.sampled_from([0.0, 4.6, 8.0, 20.0]),
    degrees=st.sampled_from([10, 30, 45]),
    fill=st.sampled_from([0, 255]),
    depth=st.integers(1, 2),
    seed=st.integers(0, 99),
)
def test_tiled_equals_untiled(model, shape, tile, size, degrees, fill, depth, seed):
    raw = texture(shape, seed)
    raw[:, corners(shape[1:], degrees)] = fill
    raw[:, :5, : shape[2] // 2] = 77
    made = model(1, depth=depth, pixel_size=10.0, seed=seed)
    tiled = core.predict(made, volume(raw, size), tile=tile).compute()
    whole = core.predict(made, volume(raw, size), tile=10_000).compute()
    np.testing.assert_allclose(tiled, whole, atol=2e-5)
    outside = volume(raw).outside(0)
    assert outside.sum() > 500
    assert not whole[0, outside].any()
    assert whole[0, ~outside].min() > 0


@pytest.mark.parametrize("fill", [0, 255])
@pytest.mark.parametrize("output", ["probability", "labels"])
@pytest.mark.parametrize("classes", [2, 3])
def test_padding_hardly_changes_what_is_predicted_inside(model, fill, output, classes):
    """But for the pixels along the edge, where one image is mirrored at its border and the other 2 pixels inside."""
    raw, made = texture((1, 120, 130)), model(2, depth=2, classes=classes)
    padded = np.pad(raw, ((0, 0), (64, 36), (40, 52)), constant_values=fill)
    expected = core.predict(made, raw, output=output).compute()[0].astype(float)
    result = core.predict(made, padded, output=output).compute()[0].astype(float)
    inside = result[64:-36, 40:-52]
    assert result.sum() == inside.sum()
    assert np.abs(inside - expected)[20:-20, 20:-20].mean() < 0.01
    assert np.abs(inside - expected).mean() < 0.05


@pytest.mark.parametrize("planes", ["z", "zyx"])
@pytest.mark.parametrize("dtype", ["uint8", "float32"])
def test_lost_slices_are_background(model, planes, dtype):
    raw = texture((12, 64, 66)).astype(dtype)
    raw[3], raw[7] = 200, np.random.default_rng(0).integers(0, 3, (64, 66))
    made = model(1, depth=2)
    for output in ("probability", "labels"):
        result = core.predict(made, raw, planes=planes, output=output, threshold=0.0).compute()
        assert [bool(section.any()) for section in result] == [z not in (3, 7) for z in range(12)]


def test_three_planes_of_a_padded_volume(model):
    raw, made = texture((16, 60, 60)), model(2, depth=1)
    padded = np.pad(raw, ((0, 0), (40, 36), (36, 40)), constant_values=255)
    padded[5] = 0
    result = core.predict(made, padded, planes="zyx").compute()
    tiled = core.predict(made, padded, planes="zyx", tile=32).compute()
    np.testing.assert_allclose(tiled, result, atol=2e-5)
    inside = result[:, 40:-36, 36:-40]
    assert result.sum() == pytest.approx(inside.sum())
    raw[5] = raw[4]  # as the lost slice is filled
    expected = core.predict(made, raw, planes="zyx").compute()
    kept = np.arange(16) != 5
    assert np.abs(inside - expected)[kept, 12:-12, 12:-12].mean() < 0.02
    assert not result[5].any()


def test_a_stated_sample(model):
    raw, made = texture((2, 80, 90)), model()
    mask = np.zeros(raw.shape, bool)
    mask[:, 20:60, 10:70] = True
    result = core.predict(made, core.open_volume(raw, sample=mask)).compute()
    assert not result[~mask].any()
    assert result[mask].min() > 0
    same = np.where(mask, raw, np.random.default_rng(1).integers(0, 255, raw.shape, dtype=np.uint8))
    np.testing.assert_array_equal(core.predict(made, core.open_volume(same, sample=mask)).compute(), result)


def iou(a, b) -> float:
    return float((a & b).sum() / (a | b).sum())


@pytest.mark.data
@pytest.mark.skipif(DATA is None, reason="KDUNET_DATA is not set")
@pytest.mark.parametrize("fill", [0, 255])
def test_half_of_a_real_slice_is_padding(fill):
    raw = core.open_volume(Path(DATA) / "lucchi-val-raw.tif")[30:31]
    labels = core.open_volume(Path(DATA) / "lucchi-val-labels.tif")[30] > 0
    made = core.load_model("lucchi-2unet")
    padded = np.pad(raw, ((0, 0), (106, 106), (212, 212)), constant_values=fill)
    assert raw.size / padded.size < 0.51
    expected = core.predict(made, volume(raw, 5.0), output="labels").compute()[0] > 0
    result = core.predict(made, volume(padded, 5.0), output="labels").compute()[0] > 0
    assert result.sum() == result[106:-106, 212:-212].sum()
    assert iou(result[106:-106, 212:-212], labels) > iou(expected, labels) - 0.02


@pytest.mark.parametrize("dtype", ["uint64", "int64"])
def test_the_largest_numbers_of_64_bits(model, dtype):
    """As of labels that were given for an image: their mean is beyond the type once it is rounded."""
    raw = np.zeros((2, 64, 64), dtype)
    raw[:, 20:40, 20:40] = np.iinfo(dtype).max
    probability = core.predict(model(1, depth=2), core.open_volume(raw, voxel_size=(10,) * 3)).compute()
    assert np.isfinite(probability).all()
