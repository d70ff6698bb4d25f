"""Batches: what belongs together stays together under augmentation, and a step always gives the same batch."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from napari_kdunet import core
from napari_kdunet.core.data import patches
from napari_kdunet.core.data.patches import PatchSampler, TrainingVolume, load_blocks
from napari_kdunet.core.data.teachers import TeacherOutput

CPU = torch.device("cpu")
NO_WARP = {"rotation": 0.0, "scale": 0.0, "elastic": 0.0, "flips": False, "intensity": 0.0}


def pool(quick, raw, labels=None, teacher=None, unlabelled=None, voxel_size=None, **settings) -> PatchSampler:
    config = quick(**settings)

    def blocks(*volumes):
        raw, labels, said = (None if v is None else core.open_volume(v, voxel_size=voxel_size) for v in volumes)
        teaching = None if said is None else TeacherOutput(said, raw, "cpu", 1)
        return load_blocks(TrainingVolume(raw, labels, teaching, tuple(range(raw.shape[0]))), config, 10**9)[0]

    others = [] if unlabelled is None else blocks(unlabelled, None, None)
    return PatchSampler(blocks(raw, labels, teacher) if labels is not None else [], others, config, CPU)


@pytest.fixture(scope="module")
def smooth() -> np.ndarray:
    """A smooth probability, different everywhere, of which raw, labels and teacher are made."""
    z, y, x = np.indices((3, 80, 96))
    return (0.5 + 0.25 * np.sin((x + 11 * z) / 9) + 0.2 * np.cos((y - 5 * z) / 7)).astype(np.float32)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("form", [{}, {"patch": 64, "elastic": 10.0, "scale": 0.5}, {"patch": 112}, {"zoom": 1.0}])
def test_image_labels_and_teacher_stay_aligned(quick, smooth, seed, form):
    """All three are functions of one another before, and so they must be after the warp."""
    raw = 1000 * smooth
    batch = pool(quick, raw, (smooth > 0.5).astype(np.uint8), smooth, batch=6, seed=seed, intensity=0.0, **form).batch(
        3, teacher=True
    )
    taught = batch.teacher_logits.softmax(dim=1)[:, 1]
    known = batch.target.sum(dim=1)
    torch.testing.assert_close(known, torch.ones_like(known), atol=0.01, rtol=0)
    for n in range(6):
        errors = [
            (batch.image[n, 0] * raw[z].std() + raw[z].mean() - 1000 * taught[n]).abs().max().item() for z in range(3)
        ]
        assert min(errors) < 4  # of 1000: the image is the teacher's, by the statistics of one of the slices
    clear = (taught - 0.5).abs() > 0.05
    assert clear.float().mean() > 0.5
    assert torch.equal((batch.target[:, 1] > 0.5)[clear], (taught > 0.5)[clear])
    assert batch.image.std() > 0.3


def test_logits_of_the_probability(quick, smooth):
    p = pool(quick, smooth, np.ones(smooth.shape, np.uint8), smooth, batch=2, **NO_WARP)
    taught = p.batch(0, teacher=True).teacher_logits.softmax(dim=1)
    assert taught.shape == (2, 2, 32, 32)
    assert smooth.min() - 0.01 < taught[:, 1].min() < taught[:, 1].max() < smooth.max() + 0.01
    hard = pool(quick, smooth, np.ones(smooth.shape, np.uint8), (smooth > 0.5), batch=2, **NO_WARP).batch(
        0, teacher=True
    )
    assert hard.teacher_logits.isfinite().all()  # a mask teaches too
    assert p.batch(0).teacher_logits is None  # not asked for, not computed


@pytest.mark.parametrize("flips", [False, True])
def test_patches_that_are_not_warped_are_cut_as_they_are(quick, flips):
    """Exactly: an interpolation would blur the noise that the network must learn to see through."""
    raw = np.random.default_rng(0).integers(0, 255, (1, 60, 70), dtype=np.uint8)
    labels = (np.random.default_rng(1).random(raw.shape) > 0.5).astype(np.uint8)
    batch = pool(quick, raw, labels, batch=16, **{**NO_WARP, "flips": flips}).batch(0)
    standard = torch.from_numpy((raw[0] - raw.mean()) / raw.std()).float()
    places, turns = set(), set()
    for image, target in zip(batch.image[:, 0], batch.target[:, 1], strict=True):
        for turn in ((), (0,), (1,), (0, 1)):
            differences = (standard.unfold(0, 32, 1).unfold(1, 32, 1) - image.flip(turn)).abs().amax(dim=(-2, -1))
            if differences.min() < 0.01:
                y, x = divmod(int(differences.argmin()), 39)
                places.add((y, x)), turns.add(turn)
                assert torch.equal(
                    target.flip(turn).round(), torch.from_numpy(labels[0, y : y + 32, x : x + 32]).float()
                )
                break
        else:
            pytest.fail("this patch is nowhere in the image")
    assert len(places) > 12
    assert len(turns) == (4 if flips else 1)


def test_a_batch_is_a_function_of_seed_and_step(quick, blobs):
    raw, labels = blobs()
    first = pool(quick, raw, labels, batch=3, seed=5)
    state = torch.random.get_rng_state()
    again = pool(quick, raw, labels, batch=3, seed=5)
    again.batch(0), again.batch(7)  # what was asked for before does not matter
    for step in (4, 0, 900):
        assert torch.equal(first.batch(step).image, again.batch(step).image)
        assert torch.equal(first.batch(step).target, again.batch(step).target)
    assert not torch.equal(first.batch(4).image, first.batch(5).image)
    assert not torch.equal(first.batch(4).image, pool(quick, raw, labels, batch=3, seed=6).batch(4).image)
    assert torch.equal(state, torch.random.get_rng_state())


def test_augmentation_varies_within_a_batch(quick):
    """A ramp along x: its slope in the patch tells rotation, mirroring and size."""
    ramp = np.broadcast_to(np.arange(200.0), (1, 200, 200)).copy()
    labels = np.ones(ramp.shape, np.uint8)

    def slopes(**settings) -> np.ndarray:
        image = pool(quick, ramp, labels, batch=64, **{**NO_WARP, **settings}).batch(0).image[:, 0] * ramp.std()
        return np.stack([image.diff(dim=2).mean(dim=(1, 2)), image.diff(dim=1).mean(dim=(1, 2))], axis=1)

    np.testing.assert_allclose(slopes(), [[1, 0]] * 64, atol=0.02)
    flipped = slopes(flips=True)
    np.testing.assert_allclose(abs(flipped[:, 0]), 1, atol=0.02)
    assert 15 < (flipped[:, 0] > 0).sum() < 49
    turned = slopes(rotation=90.0)
    angles = np.degrees(np.arctan2(turned[:, 1], turned[:, 0]))
    np.testing.assert_allclose(np.hypot(*turned.T), 1, atol=0.1)
    assert abs(angles).max() < 93
    assert angles.min() < -60
    assert angles.max() > 60
    sizes = slopes(scale=0.3)[:, 0]
    assert 0.68 < sizes.min() < 0.8
    assert 1.2 < sizes.max() < 1.32


def test_intensity_bounds(quick, blobs):
    raw, labels = blobs()
    plain = pool(quick, raw, labels, batch=32, **NO_WARP).batch(0).image
    changed = pool(quick, raw, labels, batch=32, **{**NO_WARP, "intensity": 0.25}).batch(0).image
    assert torch.equal(pool(quick, raw, labels, batch=32, **NO_WARP).batch(0).image, plain)
    gains, shifts = [], []
    for before, after in zip(plain, changed, strict=True):
        gain = (after.max() - after.min()) / (before.max() - before.min())
        shift = (after - gain * before).mean()
        torch.testing.assert_close(after, gain * before + shift, atol=1e-4, rtol=0)
        gains.append(gain.item()), shifts.append(shift.item())
    assert 0.7499 < min(gains) < 0.85
    assert 1.15 < max(gains) < 1.2501
    assert -0.2501 < min(shifts) < -0.1
    assert 0.1 < max(shifts) < 0.2501


def test_ignored_pixels_carry_nothing(quick, blobs):
    raw, labels = blobs((4, 64, 64))
    labels[:, :, 20:] = 9
    p = pool(quick, raw, labels, batch=16, ignore=9)
    batch = p.batch(0)
    known = batch.target.sum(dim=1)
    assert 0 < (known > 0.5).float().mean() < 0.8
    assert ((known < 0.01) | (known > 0.99)).float().mean() > 0.85
    share = (labels == 1).sum() / (labels != 9).sum()
    pixels = p.class_pixels()
    assert pixels.sum().item() == pytest.approx((labels != 9).sum(), rel=1e-3)
    assert (pixels[1] / pixels.sum()).item() == pytest.approx(share, rel=1e-3)


def test_patches_are_cut_where_strokes_are(quick):
    """A few strokes in a large slice: each patch holds some of them, and they are not always in its middle."""
    raw = np.random.default_rng(0).integers(0, 255, (3, 300, 400), dtype=np.uint8)
    labels = np.zeros(raw.shape, np.uint8)
    labels[0, 40, 50:60], labels[2, 296:, 390:] = 1, 2  # one pixel wide; in the corner
    p = pool(quick, raw, labels, voxel_size=(5, 5, 5), pixel_size=10.0, batch=64, ignore=0, **NO_WARP)
    assert sorted({block.z for block in p.labelled}) == [0, 2]
    known = p.batch(0).target.sum(dim=1) > 0.2
    assert known.any(dim=(1, 2)).all()
    places = {tuple(k.nonzero()[0].tolist()) for k in known}
    assert len(places) > 20
    everywhere = pool(quick, raw, np.where(labels > 0, labels, 1), batch=64, ignore=0, **NO_WARP)
    assert all(block.sites is None for block in everywhere.labelled)


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 5, 200), (2, 200, 7), (3, 31, 31), (1, 2, 33)])
def test_volumes_smaller_than_a_patch_are_mirrored(quick, shape):
    rng = np.random.default_rng(0)
    raw, labels = rng.integers(0, 255, shape, dtype=np.uint8), rng.integers(0, 2, shape, dtype=np.uint8)
    batch = pool(quick, raw, labels, raw.astype(np.float32) / 255, batch=4, intensity=0.0).batch(0)
    assert batch.image.shape == (4, 1, 32, 32)
    assert batch.image.isfinite().all()
    torch.testing.assert_close(batch.target.sum(dim=1), torch.ones(4, 32, 32), atol=0.02, rtol=0)
    standard = (raw.astype(float) - raw.mean()) / (raw.std() or 1)
    assert batch.image.abs().max() < abs(standard).max() + 2


@pytest.mark.parametrize(
    ("batch", "share", "expected"),
    [
        (8, 0.0, [0, 0, 0, 0]),
        (8, 0.25, [2, 2, 2, 2]),
        (8, 0.5, [4, 4, 4, 4]),
        (8, 1.0, [8, 8, 8, 8]),
        (2, 0.75, [1, 2, 1, 2]),
        (2, 0.125, [0, 0, 0, 1]),
        (1, 0.5, [0, 1, 0, 1]),
    ],
)
def test_unlabelled_share(quick, blobs, batch, share, expected):
    raw, labels = blobs()
    p = pool(quick, raw, labels, unlabelled=255 - raw, batch=batch)
    known = [p.batch(step, share).target.sum(dim=(1, 2, 3)) > 0 for step in range(4)]
    assert [int((~k).sum()) for k in known] == expected


def test_only_one_kind(quick, blobs):
    raw, labels = blobs()
    assert (pool(quick, raw, labels, batch=4).batch(0, 0.5).target.sum(dim=1) > 0.9).all()
    assert not pool(quick, raw, unlabelled=raw, batch=4).batch(0, 0.0).target.any()


def test_working_pixel_size(quick):
    """At 5 nm an image has twice the pixels of a model at 10 nm: a patch shows twice the side, and means of 2 x 2."""
    raw = np.indices((1, 128, 128)).sum(axis=0) % 2 * 100.0  # a chequerboard: gone when averaged
    raw[:, :, 64:] += 500
    labels = (raw > 300).astype(np.uint8)
    p = pool(quick, raw, labels, voxel_size=(40, 5, 5), batch=2, patch=64, pixel_size=10.0, **NO_WARP)
    assert p.labelled[0].image.shape == (1, 64, 64)
    image = p.batch(0).image[0, 0]
    assert torch.allclose(image[:, :31], image[0, 0], atol=1e-2)
    assert torch.allclose(image[:, 33:], image[0, -1], atol=1e-2)
    assert p.class_pixels().tolist() == [2048, 2048]


def test_large_slices_become_blocks_within_the_memory(quick):
    raw = np.zeros((2, 4100, 40), np.uint8)
    raw[:, ::2] = 1
    source = TrainingVolume(core.open_volume(raw), core.open_volume(raw), None, (0, 1))
    whole, sampled = load_blocks(source, quick(), 10**9)
    assert not sampled
    assert [b.image.shape[1] for b in whole] == [2050, 2050] * 2
    some, sampled = load_blocks(source, quick(), 2 * 4 * 2050 * 40)
    assert sampled
    assert len(some) == 2
    assert len(load_blocks(source, quick(), 1)[0]) == 1  # never none


def test_strokes_are_kept_where_not_all_of_the_slices_fit(quick, monkeypatch):
    monkeypatch.setattr(patches, "_SIDE", 64)
    raw = np.random.default_rng(0).integers(0, 255, (10, 512, 512), np.uint8)
    labels = np.zeros_like(raw)
    labels[:, 300:310, 200:250], labels[:, 315:319, 200:250] = 1, 2  # in one window of 64 a slice
    config = quick(ignore=0, patch=32)
    volume = TrainingVolume(core.open_volume(raw), core.open_volume(labels), None, tuple(range(10)))
    blocks, sampled = load_blocks(volume, config, 10**6)
    assert (sorted(block.z for block in blocks), sampled) == (list(range(10)), False)
    assert sum(int(block.target.any(dim=0).sum()) for block in blocks) == np.count_nonzero(labels)
    some, sampled = load_blocks(volume, config, 10**5)
    assert (0 < len(some) < 10, sampled) == (True, True)
