"""Losses against values computed by hand, with numpy and the definition."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from napari_kdunet import core


def by_hand_soft(student, teacher, tau: float) -> float:
    """``tau^2 * mean over pixels of -sum_c softmax(t/tau) log softmax(s/tau)`` on (N, C, Y, X) arrays."""

    def softmax(a):
        e = np.exp(a / tau)
        return e / e.sum(axis=1, keepdims=True)

    return float(tau**2 * -(softmax(teacher) * np.log(softmax(student))).sum(axis=1).mean())


def shares(index, classes: int = 2) -> torch.Tensor:
    """One-hot class shares of a class index; 0 throughout where it is -1."""
    return torch.stack([(index == c).to(torch.float64) for c in range(classes)], dim=1)


@pytest.fixture
def random():
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(2, 3, 4, 5, dtype=torch.float64, generator=generator)
    teacher = 3 * torch.randn(2, 3, 4, 5, dtype=torch.float64, generator=generator)
    index = torch.randint(-1, 3, (2, 4, 5), generator=generator)
    return logits, teacher, index


LOGITS = torch.tensor([[math.log(3.0), 0.0, 5.0], [0.0, math.log(4.0), -7.0]], dtype=torch.float64).view(1, 2, 1, 3)
TARGET = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]], dtype=torch.float64).view(1, 2, 1, 3)  # the third is ignored


def test_hard_by_hand():
    # the right class has probability 3/4 in the first pixel, 4/5 in the second
    assert core.hard_loss(LOGITS, TARGET).item() == pytest.approx((math.log(4 / 3) + math.log(5 / 4)) / 2)
    weighted = (1 * math.log(4 / 3) + 3 * math.log(5 / 4)) / 4
    assert core.hard_loss(LOGITS, TARGET, (1, 3)).item() == pytest.approx(weighted)


def test_dice_by_hand():
    # foreground probabilities 1/4 and 4/5, truth 0 and 1; 1 is added above and below
    expected = 1 - (2 * 0.8 + 1) / (0.25 + 0.8 + 1 + 1)
    assert core.dice_loss(LOGITS, TARGET).item() == pytest.approx(expected)
    total = core.hard_loss(LOGITS, TARGET, dice=0.5).item()
    assert total == pytest.approx(core.hard_loss(LOGITS, TARGET).item() + 0.5 * expected)


def test_dice_is_a_mean_over_the_foreground_classes(random):
    logits, _, index = random
    target = shares(index, 3)
    p = logits.softmax(1).numpy() * (index >= 0).numpy()[:, None]
    t = target.numpy()
    each = [1 - (2 * (p[:, c] * t[:, c]).sum() + 1) / (p[:, c].sum() + t[:, c].sum() + 1) for c in (1, 2)]
    assert core.dice_loss(logits, target).item() == pytest.approx(np.mean(each))


def test_dice_of_nothing_found_where_nothing_is():
    silent = torch.tensor([30.0, -30.0]).view(1, 2, 1, 1).expand(1, 2, 4, 4)
    nothing = shares(torch.zeros(1, 4, 4)).float()
    assert core.dice_loss(silent, nothing).item() == pytest.approx(0, abs=1e-6)
    assert core.dice_loss(-silent, nothing).item() > 0.9


@pytest.mark.parametrize("weights", [None, (1.0, 2.0, 0.5)])
def test_hard_agrees_with_torch(random, weights):
    logits, _, index = random
    given = None if weights is None else torch.tensor(weights, dtype=torch.float64)
    expected = F.cross_entropy(logits, index, weight=given, ignore_index=-1)
    assert core.hard_loss(logits, shares(index, 3), weights).item() == pytest.approx(expected.item())


@pytest.mark.parametrize("dice", [0.0, 1.0])
def test_nothing_labelled(dice):
    logits = torch.randn(2, 2, 4, 4, requires_grad=True)
    loss = core.hard_loss(logits, torch.zeros(2, 2, 4, 4), (1, 4), dice)
    loss.backward()
    assert loss.item() == 0
    assert not logits.grad.any()


def test_ignored_pixels_pull_nowhere():
    logits = LOGITS.clone().requires_grad_()
    core.hard_loss(logits, TARGET, (1, 3), dice=1.0).backward()
    assert not logits.grad[..., 2].any()
    assert logits.grad[..., :2].all()


@pytest.mark.parametrize("tau", [0.5, 1.0, 2.0, 5.0, 20.0])
def test_soft_by_hand(random, tau):
    student, teacher, _ = random
    assert core.soft_loss(student, teacher, tau).item() == pytest.approx(
        by_hand_soft(student.numpy(), teacher.numpy(), tau)
    )


def test_soft_of_one_pixel():
    """Teacher 9:1, student even: at tau 2 the teacher is 3:1, and an even student costs ln 2 whoever teaches."""
    teacher, even = torch.tensor([0.0, math.log(9.0)]).view(1, 2, 1, 1), torch.zeros(1, 2, 1, 1)
    assert core.soft_loss(even, teacher, 2.0).item() == pytest.approx(4 * math.log(2))
    itself = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    assert core.soft_loss(teacher, teacher, 2.0).item() == pytest.approx(4 * itself)


def test_tau_is_on_both_sides(random):
    """The student that copies the teacher is the best one at any tau; with tau on one side it is not."""
    _, teacher, _ = random
    for tau in (1.0, 4.0):
        student = teacher.clone().requires_grad_()
        core.soft_loss(student, teacher, tau).backward()
        assert student.grad.abs().max() < 1e-12


def test_tau_squared_keeps_gradients_comparable(random):
    """At high tau the gradient tends to (s - t) / C of centred logits, whatever tau (Hinton et al. 2015)."""
    student, teacher, _ = random
    sizes = []
    for tau in (20.0, 200.0):
        leaf = student.clone().requires_grad_()
        core.soft_loss(leaf, teacher, tau).backward()
        sizes.append(leaf.grad)
    difference = (student - student.mean(1, True)) - (teacher - teacher.mean(1, True))
    pixels = student.numel() // 3
    torch.testing.assert_close(sizes[1], difference / 3 / pixels, rtol=0.1, atol=1e-3)
    assert sizes[0].norm() == pytest.approx(sizes[1].norm().item(), rel=0.1)


def test_no_gradient_into_the_teacher(random):
    student, teacher, _ = random
    teacher.requires_grad_()
    core.soft_loss(student.requires_grad_(), teacher, 2.0, dice=1.0).backward()
    assert teacher.grad is None


def test_soft_dice_is_at_tau_one(random):
    student, teacher, _ = random
    extra = core.soft_loss(student, teacher, 7.0, dice=2.0) - core.soft_loss(student, teacher, 7.0)
    assert extra.item() == pytest.approx(2 * core.dice_loss(student, teacher.softmax(1)).item())


@pytest.mark.parametrize("tau", [1.0, 4.0])
@pytest.mark.parametrize("lam", [0.0, 0.3, 1.0, 5.0])
def test_mixed(random, tau, lam):
    student, teacher, index = random
    losses = core.distillation_loss(
        student, shares(index, 3), teacher, tau=tau, lam=lam, class_weights=(1.0, 2.0, 4.0), dice=0.0
    )
    weight = torch.tensor((1.0, 2.0, 4.0), dtype=torch.float64)
    hard = F.cross_entropy(student, index, weight=weight, ignore_index=-1).item()
    soft = by_hand_soft(student.numpy(), teacher.numpy(), tau)  # over all pixels, the ignored ones too
    assert losses.hard.item() == pytest.approx(hard)
    assert losses.soft.item() == pytest.approx(soft)
    assert losses.total.item() == pytest.approx(hard + lam * soft)


def test_one_part_alone(random):
    student, teacher, index = random
    soft = core.distillation_loss(student, None, teacher, tau=3.0, lam=0.1)
    assert soft.hard is None
    assert soft.total.item() == pytest.approx(by_hand_soft(student.numpy(), teacher.numpy(), 3.0))  # lam is no factor
    hard = core.distillation_loss(student, shares(index, 3), None, tau=3.0, lam=9.0)
    assert hard.soft is None
    assert hard.total.item() == pytest.approx(F.cross_entropy(student, index, ignore_index=-1).item())
    with pytest.raises(ValueError, match="nothing to learn"):
        core.distillation_loss(student, None, None)


def test_confidence_by_hand():
    # the teacher's probabilities are 3/4, 1/2 and 1/10: a confidence of 1/2, 0 and 4/5
    p = torch.tensor([0.75, 0.5, 0.1], dtype=torch.float64)
    teacher = torch.stack((torch.zeros_like(p), (p / (1 - p)).log())).view(1, 2, 1, 3)
    q = torch.tensor([0.6, 0.9, 0.3], dtype=torch.float64)
    student = torch.stack((torch.zeros_like(q), (q / (1 - q)).log())).view(1, 2, 1, 3)
    entropy = -(p * q.log() + (1 - p) * (1 - q).log())
    for power, weights in ((1.0, (0.5, 0.0, 0.8)), (2.0, (0.25, 0.0, 0.64))):
        weight = torch.tensor(weights, dtype=torch.float64)
        expected = (weight * entropy).sum() / weight.sum()
        assert core.soft_loss(student, teacher, 1.0, confidence=power).item() == pytest.approx(expected.item())
    inside = torch.tensor([[[1.0, 1.0, 0.0]]], dtype=torch.float64)
    outside_left_out = core.soft_loss(student, teacher, 1.0, confidence=1.0, inside=inside).item()
    assert outside_left_out == pytest.approx(entropy[0].item())
