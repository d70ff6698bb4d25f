"""Patches of networks that see neighbouring slices: channels that belong together, and are augmented alike."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch

from napari_kdunet import core
from napari_kdunet.core.data.dataset import prepare

CPU = torch.device("cpu")
STILL = {"rotation": 0.0, "scale": 0.0, "elastic": 0.0, "flips": False, "intensity": 0.0, "patch": 64}
APPEARANCE = {"gamma": 1.0, "local_contrast": 1.0, "inversion": 0.5, "blur": 2.0, "noise": 1.0, "strips": 1.0}


def noise(depth: int = 6) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 255, (depth, 64, 64), dtype=np.uint8)


def data(quick, raw, size: float = 10.0, **settings):
    volume = core.open_volume(raw, voxel_size=(size, 10.0, 10.0))
    labels = np.asarray(raw) > 200
    config = quick(**{"batch": 12, "val_share": 0.0, **STILL, **settings})
    return prepare(volume, core.open_volume(labels.astype(np.uint8)), config, CPU)


@pytest.mark.parametrize(
    ("context", "distance", "offsets"), [(0, 0.0, [0]), (1, 0.0, [-1, 0, 1]), (1, 20.0, [-2, 0, 2])]
)
def test_the_channels_are_the_slice_between_its_neighbours(quick, context, distance, offsets):
    raw = noise()
    made = data(quick, raw, context=context, context_distance=distance)
    batch, mirrored = made.sampler.batch(0), np.pad(np.arange(6), 2, mode="reflect")
    standard = (raw - raw.mean(axis=(1, 2), keepdims=True)) / raw.std(axis=(1, 2), keepdims=True)
    seen = set()
    for image, target in zip(batch.image.numpy(), batch.target.numpy(), strict=True):
        (z,) = (z for z in range(6) if np.abs(image[context] - standard[z]).max() < 0.01)
        np.testing.assert_allclose(image, standard[mirrored[[z + 2 + each for each in offsets]]], atol=0.01)
        assert np.array_equal(target[1] > 0.5, raw[z] > 200)
        seen.add(z)
    assert len(seen) > 3


def test_neighbours_are_held_once(quick):
    blocks = data(quick, noise(), context=1).sampler.labelled
    for below, above in pairwise(blocks):
        assert below.images[2] is above.image
        assert above.images[0] is below.image


def test_without_a_distance_it_is_the_largest_of_the_volumes(quick):
    raw = noise()
    assert data(quick, raw, size=35.0, context=1).config.context_distance == 35.0
    assert data(quick, raw, size=35.0, context=1, context_distance=50.0).config.context_distance == 50.0
    assert data(quick, raw, size=35.0).config.context_distance == 0.0
    labels = (raw > 200).astype(np.uint8)
    pairs = [(core.open_volume(raw, voxel_size=(size, 10.0, 10.0)), labels) for size in (10.0, 30.0, 20.0)]
    several = prepare([*pairs, (raw, labels)], None, quick(context=1, val_share=0.0, **STILL), CPU)
    assert several.config.context_distance == 30.0
    assert several.sampler.labelled[0].images[2] is several.sampler.labelled[3].image  # three slices of 10 nm on
    unknown = prepare(raw, labels, quick(context=1, pixel_size=0.0, **STILL), CPU)
    assert (unknown.config.context_distance, unknown.notes) == (0.0, ())
    (note,) = prepare(raw, labels, quick(context=1, context_distance=20.0, pixel_size=0.0, **STILL), CPU).notes
    assert "distance of the slices" in note


def test_a_stack_is_mirrored_in_z_as_in_y_and_x(quick):
    """Slices are told by how rare their bright pixels are, which no flip changes."""
    share = np.array([0.5, 0.3, 0.2, 0.1, 0.05])
    raw = noise(5) // 3
    raw[np.random.default_rng(1).random(raw.shape) < share[:, None, None]] = 255
    labels = np.ones_like(raw)
    labels[:, :8] = 0
    levels = torch.tensor((255 - raw.mean(axis=(1, 2))) / raw.std(axis=(1, 2)))
    orders = set()
    config = quick(**{**STILL, "flips": True, "batch": 40, "context": 1, "val_share": 0.0})
    for image in prepare(raw, labels, config, CPU).sampler.batch(0).image:
        below, z, above = (int((levels - channel.max()).abs().argmin()) for channel in image)
        if z in (1, 2, 3):
            assert {below, above} == {z - 1, z + 1}
            orders.add(below < above)
    assert orders == {True, False}


def test_brightness_and_contrast_change_alike(quick):
    raw = noise()
    plain = data(quick, raw, context=1).sampler.batch(0).image.flatten(2)
    changed = data(quick, raw, context=1, intensity=0.5).sampler.batch(0).image.flatten(2)
    gain = changed.std(dim=-1) / plain.std(dim=-1)
    shift = changed.mean(dim=-1) - gain * plain.mean(dim=-1)
    for each in (gain, shift):
        torch.testing.assert_close(each, each[:, :1].expand_as(each), atol=1e-3, rtol=0)
        assert each[:, 0].std() > 0.05


@pytest.mark.parametrize("name", [*APPEARANCE, "style"])
def test_each_appearance_of_several_channels(quick, name):
    """The slice itself changes as it does without neighbours, but for noise, of which each channel has its own."""
    raw, setting = noise(), {name: APPEARANCE.get(name, 1.0)}
    alone, beside = (data(quick, raw, context=context, **setting).sampler.batch(0).image for context in (0, 1))
    assert beside.shape == (12, 3, 64, 64)
    assert beside.isfinite().all()
    plain = data(quick, raw, context=1).sampler.batch(0).image
    assert ((beside - plain).abs().amax(dim=(-2, -1)) > 1e-3).any(dim=0).all()
    if name != "noise":
        torch.testing.assert_close(beside[:, 1:2], alone, atol=1e-4, rtol=1e-4)


def test_a_sample_where_the_channels_need_more_memory(quick):
    raw = noise()
    alone = sum(block.image.nbytes + block.target.nbytes for block in data(quick, raw).sampler.labelled)
    beside = data(quick, raw, context=2, memory=alone / 1e9).sampler.labelled
    assert len(beside) < 6
    assert sum(image.nbytes for block in beside for image in block.images) <= alone
