"""Augmentation for the unseen: geometry that keeps labels in place, and appearances of the image alone."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from napari_kdunet.core.data.augmentation import (
    add_noise,
    blank_strips,
    blur,
    change_gamma,
    mix_amplitudes,
    mix_local_contrast,
    warp,
)
from napari_kdunet.core.data.dataset import prepare

CPU = torch.device("cpu")
STILL = {"rotation": 0.0, "scale": 0.0, "elastic": 0.0, "flips": False, "intensity": 0.0}
APPEARANCE = {"gamma": 1.0, "local_contrast": 1.0, "inversion": 0.5, "blur": 2.0, "noise": 1.0, "strips": 0.5}
ALL = {**APPEARANCE, "style": 1.0, "zoom": 2.0}


@pytest.fixture(scope="module")
def patches() -> torch.Tensor:
    """(3, 1, 64, 64) standardised: smooth shapes and noise."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.nn.functional.interpolate(torch.randn(3, 1, 8, 8, generator=generator), (64, 64), mode="bicubic")
    image = coarse.exp() + 0.3 * torch.randn(3, 1, 64, 64, generator=generator)
    return (image - image.mean(dim=(-2, -1), keepdim=True)) / image.std(dim=(-2, -1), keepdim=True)


def each(*values: float) -> torch.Tensor:
    return torch.tensor(values).view(-1, 1, 1, 1)


def batch(volumes, quick, step=0, processes=1, rank=0, **settings):
    config = quick(batch=6 // processes, **settings)
    return prepare(volumes, None, config, CPU, processes=processes).sampler.batch(step, rank=rank)


@pytest.fixture(scope="module")
def volumes(blobs):
    return [blobs((3, 64, 80)), blobs((3, 20, 24), seed=1)]


# ---------------------------------------------------------------- settings


@pytest.mark.parametrize("name", APPEARANCE | {"style": 1.0})
def test_an_appearance_changes_the_image_alone(volumes, quick, name):
    """By the seed, and each patch of a batch in its own way."""
    plain = batch(volumes, quick, patch=48, seed=3)
    changed = batch(volumes, quick, patch=48, seed=3, **{name: ALL[name]})
    assert torch.equal(changed.target, plain.target)
    assert changed.image.isfinite().all()
    differences = (changed.image - plain.image).abs().amax(dim=(1, 2, 3))
    assert (differences > 0.05).sum() >= 2
    assert torch.equal(batch(volumes, quick, patch=48, seed=3, **{name: ALL[name]}).image, changed.image)
    other = batch(volumes, quick, patch=48, seed=3, step=1, **{name: ALL[name]})
    assert not torch.equal(other.image, changed.image)
    assert not (changed.image - plain.image).allclose((changed.image - plain.image)[:1])


def test_processes_share_an_augmented_batch(volumes, quick):
    whole = batch(volumes, quick, **ALL)
    for rank in range(3):
        part = batch(volumes, quick, processes=3, rank=rank, **ALL)
        torch.testing.assert_close(part.image, whole.image[rank::3], atol=1e-5, rtol=1e-5)
        assert torch.equal(part.target, whole.target[rank::3])


def test_training_with_all_of_it(blobs, quick):
    """It learns: what is asked of it is harder, not wrong."""
    from napari_kdunet import core

    mild = {"gamma": 0.5, "local_contrast": 0.5, "blur": 1.0, "noise": 0.3, "strips": 0.2, "style": 0.5, "zoom": 0.5}
    model = core.train(*blobs(), quick(k=4, depth=2, steps=60, batch=4, **mild))
    raw, labels = blobs(seed=9)
    assert core.evaluate(core.predict(model, raw), labels, threshold=model.threshold).iou > 0.6


# ---------------------------------------------------------------- geometry


def test_pixel_size_over_a_factor_of_four(quick):
    """On a ramp the slope of a patch is its pixel size: finer and coarser alike, within the bounds."""
    x = np.arange(400, dtype=np.float32)
    raw = np.broadcast_to(x, (1, 400, 400))
    config = quick(batch=400, zoom=2.0, pixel_size=0.0, **STILL)
    sampler = prepare(raw, (raw > 200).astype(np.uint8), config, CPU).sampler

    def slopes(image):
        return (image[:, :, 1:] - image[:, :, :-1]).abs().flatten(1).median(dim=1).values

    octaves = (slopes(sampler.batch(0).image[:, 0]) / slopes(sampler.labelled[0].image.float())).log2()
    assert -2.05 < octaves.min() < -1.9
    assert 1.9 < octaves.max() < 2.05
    assert abs(octaves.mean()) < 0.2
    quarters = torch.histc(octaves, 4, -2, 2)
    assert quarters.min() > 70  # of 100 each: uniform in octaves


def test_coarse_patches_are_means(patches):
    """White noise that is seen four times coarser is a quarter as strong, rather than every fourth pixel of it."""
    noise = torch.randn(1, 400, 400, generator=torch.Generator().manual_seed(0))
    axis = torch.arange(64.0) - 31.5
    base = torch.stack(torch.meshgrid(axis, axis, indexing="xy"), dim=-1)
    stds = [warp([noise], factor * base, (168, 168)).std().item() for factor in (1, 2, 4)]
    assert stds[0] == pytest.approx(1, abs=0.05)
    assert stds[1] < 0.6
    assert stds[2] < 0.3


def test_coarse_patches_keep_their_place():
    """A disc that is averaged is where the same disc is that is drawn coarse."""
    y, x = torch.meshgrid(torch.arange(300.0), torch.arange(300.0), indexing="ij")
    disc = (((y - 170) ** 2 + (x - 130) ** 2) < 40**2).float()[None]
    axis = torch.arange(64.0) - 31.5
    offset = 3.7 * torch.stack(torch.meshgrid(axis, axis, indexing="xy"), dim=-1)
    seen = warp([disc], offset, (118, 118))[0]
    points = offset + (118 + 31.5)
    drawn = ((points[..., 1] - 170) ** 2 + (points[..., 0] - 130) ** 2 < 40**2).float()
    assert (seen - drawn).abs().mean() < 0.02
    assert abs((seen.nonzero().float() - drawn.nonzero().float().mean(dim=0)).mean()) < 0.3


# ---------------------------------------------------------------- appearances


def test_nothing_of_it_changes_nothing(patches):
    none = each(0.0, 0.0, 0.0)
    close = {"atol": 2e-5, "rtol": 0}
    torch.testing.assert_close(mix_amplitudes(patches, patches.flip(0), none), patches, **close)
    torch.testing.assert_close(change_gamma(patches, none.exp()), patches, **close)
    torch.testing.assert_close(mix_local_contrast(patches, none), patches, **close)
    torch.testing.assert_close(blur(patches, none, 2.0), patches, **close)
    assert torch.equal(add_noise(patches, none, [1, 2, 3]), patches)
    assert torch.equal(blank_strips(patches, none > 0, torch.rand(3, 3, 4)), patches)


def test_gamma_keeps_order_mean_and_deviation(patches):
    changed = change_gamma(patches, each(0.5, 1.0, 2.0))
    for before, after in zip(patches.flatten(1), changed.flatten(1), strict=True):
        assert (after[before.argsort()].diff() >= -1e-4).all()
        assert (after.mean().item(), after.std().item()) == pytest.approx((0, 1), abs=1e-3)
    skew = (changed**3).mean(dim=(1, 2, 3)) - (patches**3).mean(dim=(1, 2, 3))
    assert skew[0] < -0.1 < 0.1 < skew[2]


def test_local_contrast_is_evened_out():
    """Of a patch whose right half is faint."""
    image = torch.randn(1, 1, 256, 256, generator=torch.Generator().manual_seed(0))
    image[..., 128:] *= 0.3
    evened = mix_local_contrast(image, each(1.0))
    left, right = evened[..., :80].std(), evened[..., 176:].std()
    assert right / left > 0.9
    half = mix_local_contrast(image, each(0.5))
    assert 0.4 < half[..., 176:].std() / half[..., :80].std() < 0.9


def test_blur_is_a_gaussian(patches):
    noise = torch.randn(3, 1, 96, 96, generator=torch.Generator().manual_seed(0))
    blurred = blur(noise, each(0.0, 1.0, 2.0), 2.0)
    for patch, sigma in zip(blurred[1:], (1.0, 2.0), strict=True):
        assert patch.std().item() == pytest.approx(1 / (2 * sigma * math.sqrt(math.pi)), rel=0.1)
    spot = torch.zeros(1, 1, 33, 33)
    spot[..., 16, 10] = 1
    seen = blur(spot, each(1.5), 2.0)[0, 0]
    assert seen.sum().item() == pytest.approx(1, abs=1e-3)
    assert divmod(int(seen.argmax()), 33) == (16, 10)


def test_noise_is_as_strong_as_asked_and_of_each_patch(patches):
    added = add_noise(patches, each(0.5, 1.0, 0.0), [5, 6, 7]) - patches
    assert added.std(dim=(1, 2, 3)).tolist() == pytest.approx([0.5, 1.0, 0.0], rel=0.05)
    alone = add_noise(patches[1:2], each(1.0), [6]) - patches[1:2]
    assert torch.equal(alone[0], added[1])


def test_strips_lie_across(patches):
    """Whole rows or columns of one grey value; the rest stays."""
    where = torch.rand(3, 3, 4, generator=torch.Generator().manual_seed(1))
    blanked = blank_strips(patches, each(1, 0, 1) > 0, where)
    assert torch.equal(blanked[1], patches[1])
    for before, after in ((patches[0, 0], blanked[0, 0]), (patches[2, 0], blanked[2, 0])):
        changed = before != after
        rows, columns = changed.all(dim=1), changed.all(dim=0)
        assert rows.any() or columns.any()
        assert not changed[~rows][:, ~columns].any()
        assert changed.float().mean() < 0.25


def test_inversion_of_a_share(volumes, quick):
    still = {**STILL, "batch": 200}
    config = quick(**still)
    plain = prepare(volumes, None, config, CPU).sampler.batch(0).image
    turned = prepare(volumes, None, quick(inversion=0.3, **still), CPU).sampler.batch(0).image
    upside = (turned == -plain).all(dim=3).all(dim=2).all(dim=1)
    assert ((turned == plain).all(dim=3).all(dim=2).all(dim=1) ^ upside).all()
    assert 0.2 < upside.float().mean() < 0.4


def test_style_is_that_of_the_other_and_shapes_stay(patches):
    """Amplitudes are mixed, phases kept."""
    coarse = torch.nn.functional.avg_pool2d(patches, 5, 1, 2).flip(0)
    mixed = mix_amplitudes(patches, coarse, each(1.0, 1.0, 0.5))

    def amplitudes(image):
        return torch.nn.functional.normalize(torch.fft.rfft2(image).abs().flatten(1)[:, 1:])  # without the mean

    likeness = (amplitudes(mixed) * amplitudes(coarse)).sum(dim=1)
    before = (amplitudes(patches) * amplitudes(coarse)).sum(dim=1)
    assert (likeness[:2] > 0.999).all()
    assert before[2] < likeness[2] < 0.999
    turned = (torch.fft.rfft2(mixed) * torch.fft.rfft2(patches).conj()).angle().abs()[:, :, 1:8, 1:8]
    assert (turned < 0.01).float().mean() > 0.95
    assert mixed.std(dim=(1, 2, 3)).tolist() == pytest.approx([1, 1, 1], abs=1e-3)
