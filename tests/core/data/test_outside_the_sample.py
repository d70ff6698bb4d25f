"""What lies outside the sample is neither learnt nor scored."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from napari_kdunet import core
from napari_kdunet.core.data.dataset import prepare
from napari_kdunet.core.data.patches import TrainingVolume, load_blocks
from napari_kdunet.core.data.splits import hold_out
from napari_kdunet.core.data.teachers import TeacherOutput
from napari_kdunet.core.training.losses import soft_loss

SIDES = ((0, 0), (40, 56), (48, 24))
CPU = torch.device("cpu")


@pytest.fixture
def padded(blobs):
    """Blobs with white around them, whose labels call the white foreground; and where the sample is."""
    raw, labels = blobs()
    inside = np.pad(np.ones(raw.shape, bool), SIDES)
    return np.pad(raw, SIDES, constant_values=255), np.pad(labels, SIDES, constant_values=1), inside


def test_blocks(padded, blobs, quick):
    raw, labels, inside = padded
    blocks, _ = load_blocks(
        TrainingVolume(core.open_volume(raw), core.open_volume(labels), slices=(0, 3)), quick(), 2**30
    )
    alone, _ = load_blocks(TrainingVolume(*map(core.open_volume, blobs()), slices=(0, 3)), quick(), 2**30)
    for block, expected in zip(blocks, alone, strict=True):
        assert np.array_equal(block.inside[0].numpy(), inside[block.z])
        assert not block.target[:, ~inside[block.z]].any()
        assert torch.equal(block.target[:, 40:-56, 48:-24], expected.target)
        near = (block.image - torch.nn.functional.pad(expected.image, (48, 24, 40, 56)))[:, 42:-58, 50:-26]
        assert near.abs().mean() < 0.05  # statistics leave out two pixels at the edge
        assert block.image.abs().max() < 6
        assert block.area == expected.image.numel()


@pytest.mark.parametrize("teacher", [False, True])
def test_batches(padded, quick, teacher):
    raw, labels, inside = padded
    settings = {"mode": "mixed"} if teacher else {}
    config = quick(rotation=0, scale=0, elastic=0, flips=False, intensity=0, batch=8, **settings)
    outside = np.random.default_rng(0).random(raw.shape, np.float32)
    teaching = core.open_volume(np.where(inside, np.float32(0.5), outside)) if teacher else None
    data = prepare(raw, labels, config, CPU, teacher=teaching)
    shares = []
    for step in range(8):
        batch = data.sampler.batch(step, teacher=teacher)
        assert batch.inside.shape == (8, 32, 32)
        assert set(batch.inside.unique().tolist()) <= {0.0, 1.0}
        assert not batch.target.permute(0, 2, 3, 1)[batch.inside == 0].any()
        assert batch.target.permute(0, 2, 3, 1)[batch.inside == 1].sum(dim=1).min() > 0.99
        shares.append(batch.inside.mean().item())
        if teacher:
            assert (batch.teacher_logits.diff(dim=1)[:, 0][batch.inside == 1]).abs().max() < 1e-4
    assert np.mean(shares) > 0.6  # of the slices it is a quarter


def test_where_all_is_sample_nothing_is_counted_apart(blobs, quick):
    data = prepare(*blobs(), quick(), CPU)
    assert data.sampler.batch(0).inside is None
    assert all(block.inside is None and block.sites is None for block in data.sampler.labelled)


def test_lost_slices_are_left_out(blobs, quick):
    raw, labels = blobs()
    raw[1], raw[2] = 0, np.random.default_rng(0).integers(0, 3, raw[2].shape)
    data = prepare(raw, labels, quick(val_share=0.0), CPU)
    assert {block.z for block in data.sampler.labelled} == {0, 3, 4, 5}


def test_validation(padded, quick):
    raw, labels, inside = padded
    (validation,) = prepare(raw, labels, quick(), CPU).validations
    z = validation.slices[0]
    index = validation.truth(z, (0, raw.shape[1]), (0, raw.shape[2]))
    assert np.array_equal(index == -1, ~inside[z])
    truth = core.open_volume(np.where(inside, labels, 0).astype(bool))
    curve = validation.score(truth, "cpu")
    assert curve.pixels == inside[list(validation.slices)].sum()
    assert curve.iou(0.5) == 1
    taught = TeacherOutput(core.Model(core.KUNet(1), 0.0), core.open_volume(raw), "cpu", 1)
    assert not taught.probabilities(0, slice(0, 160), slice(0, 136))[:, ~inside[0]].any()


def test_the_soft_loss_of_what_is_inside():
    generator = torch.Generator().manual_seed(0)
    logits, teacher = torch.randn(2, 3, 2, 8, 9, generator=generator).unbind()
    inside = torch.ones(3, 8, 9)
    inside[0], inside[1, :, 4:] = 0, 0
    for dice in (0.0, 0.7):
        loss = soft_loss(logits, teacher, 2.0, dice, inside=inside)
        kept = (
            torch.stack([x.permute(1, 0, 2, 3)[:, inside == 1] for x in (logits, teacher)])[:, None, :, None]
        ).unbind()
        torch.testing.assert_close(loss, soft_loss(*kept, 2.0, dice))
        torch.testing.assert_close(
            soft_loss(logits, teacher, 2.0, dice, inside=torch.ones(3, 8, 9)), soft_loss(logits, teacher, 2.0, dice)
        )


def test_a_stated_sample_is_held_out_with_its_slices(padded):
    raw, labels, inside = padded
    first, last = hold_out(core.open_volume(raw, sample=inside), labels)
    assert np.array_equal(last[0].outside(0), ~inside[-1])
    assert np.array_equal(first[0].outside(0), ~inside[0])


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["hard", "mixed"])
def test_learning_from_padded_slices(padded, blobs, mode):
    raw, labels, _ = padded
    settings = {"k": 2, "patch": 32, "batch": 4, "threads": 1, "device": "cpu", "pixel_size": 0.0, "steps": 150}
    teacher = core.train(raw, labels, core.TrainConfig(**settings))
    if mode == "mixed":
        teacher = core.distill(teacher, raw, labels, core.DistillConfig(**settings, mode="mixed"))
    new, truth = blobs(seed=5)
    scores = core.evaluate(core.predict(teacher, new), truth, threshold=teacher.threshold)
    assert scores.iou > 0.7
