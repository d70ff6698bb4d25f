"""Hard, soft and mixed losses (paper, "The Distillation Procedure").

Targets are *target probabilities*: (N, C, Y, X) float, the share of each class in a pixel. A labelled pixel sums to 1,
an unlabelled one is 0 in all classes and so carries no weight.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["Losses", "dice_loss", "distillation_loss", "hard_loss", "soft_loss"]

Total = Callable[[Tensor], Tensor]


def _identity(part: Tensor) -> Tensor:
    return part


def hard_loss(
    logits: Tensor,
    target: Tensor,
    class_weights: Sequence[float] | Tensor | None = None,
    dice: float = 0.0,
    *,
    total: Total = _identity,
) -> Tensor:
    """Weighted mean cross entropy of the labelled pixels, in nats, plus `dice` times the soft Dice loss.

    Parameters
    ----------
    logits : Tensor
        (N, C, Y, X).
    target : Tensor
        (N, C, Y, X) target probabilities; all-zero pixels are ignored.
    class_weights : sequence of C floats, optional
        Weight of each class; the mean is weighted by them too, as in `torch.nn.functional.cross_entropy`.
    dice : float
        Weight of `dice_loss`.
    total : callable
        Sums a tensor over the processes that share a batch (all-reduce), so that each has the loss of the whole batch;
        the identity for a single one.

    Returns
    -------
    Tensor
        Scalar loss; 0 if no pixel is labelled.
    """
    weighted = target
    if class_weights is not None:
        weighted = target * torch.as_tensor(class_weights, dtype=target.dtype, device=target.device).view(1, -1, 1, 1)
    entropy, weight = total(torch.stack((-(weighted * F.log_softmax(logits, dim=1)).sum(), weighted.sum()))).unbind()
    loss = entropy / weight.clamp_min(1e-6)
    return loss + dice * dice_loss(logits, target, total=total) if dice else loss


def dice_loss(logits: Tensor, target: Tensor, *, total: Total = _identity) -> Tensor:
    """One minus the soft Dice coefficient of the labelled pixels of the batch, averaged over the foreground classes.

    Arguments as in `hard_loss`. For a batch without foreground the coefficient is near 1 if none is predicted.
    """
    foreground = target[:, 1:]
    probability = logits.softmax(dim=1)[:, 1:] * target.sum(dim=1, keepdim=True)
    overlap = (probability * foreground).sum(dim=(0, 2, 3))
    size = probability.sum(dim=(0, 2, 3)) + foreground.sum(dim=(0, 2, 3))
    overlap, size = total(torch.stack((overlap, size))).unbind()
    return (1 - (2 * overlap + 1) / (size + 1)).mean()


def soft_loss(
    logits: Tensor,
    teacher_logits: Tensor,
    tau: float,
    dice: float = 0.0,
    *,
    inside: Tensor | None = None,
    confidence: float = 0.0,
    total: Total = _identity,
) -> Tensor:
    """Cross entropy of the softened student against the softened teacher, times tau squared.

    The loss is ``tau**2 * H(softmax(a_T / tau), softmax(a_S / tau))``, as the weighted mean over the pixels, in nats,
    plus `dice` times the soft Dice loss against the teacher's probabilities at tau = 1. The factor tau squared keeps
    the size of the gradient comparable over tau (Hinton et al. 2015, section 2).

    Parameters
    ----------
    logits, teacher_logits : Tensor
        (N, C, Y, X); no gradient flows into the teacher's.
    tau : float
        Temperature, on both sides.
    dice : float
        Weight of the soft Dice loss.
    inside : Tensor, optional
        (N, Y, X), 1 for the pixels that count and 0 for the others; all pixels count if None.
    confidence : float
        Exponent of the teacher's confidence, by which each pixel is weighted: its largest probability (at tau = 1),
        scaled to 0 where all classes are equally likely and 1 where one is certain. An exponent of 0 weights all alike.
    total : callable
        As in `hard_loss`; all processes must have the same number of pixels.

    Returns
    -------
    Tensor
        Scalar loss.
    """
    teacher_logits = teacher_logits.detach()
    entropy = -((teacher_logits / tau).softmax(dim=1) * F.log_softmax(logits / tau, dim=1)).sum(dim=1)
    if confidence:
        classes = teacher_logits.shape[1]
        largest = teacher_logits.softmax(dim=1).amax(dim=1)
        weight = ((largest - 1 / classes) / (1 - 1 / classes)).clamp_min(0) ** confidence
        inside = weight if inside is None else weight * inside
    share = entropy.new_ones(())
    if inside is not None:
        entropy, share = entropy * inside, inside.mean()
    means, shares = total(torch.stack((entropy.mean(), share))).unbind()
    loss = tau**2 * means / shares.clamp_min(1e-6)
    if not dice:
        return loss
    probability = teacher_logits.softmax(dim=1)
    if inside is not None:
        probability = probability * inside.unsqueeze(1)
    return loss + dice * dice_loss(logits, probability, total=total)


class Losses(NamedTuple):
    """A loss and its parts, each a scalar; a part that is left out is None."""

    total: Tensor
    hard: Tensor | None
    soft: Tensor | None


def distillation_loss(
    logits: Tensor,
    target: Tensor | None,
    teacher_logits: Tensor | None,
    *,
    tau: float = 1.0,
    lam: float = 1.0,
    class_weights: Sequence[float] | Tensor | None = None,
    dice: float = 0.0,
    inside: Tensor | None = None,
    confidence: float = 0.0,
    total: Total = _identity,
) -> Losses:
    """Compute the loss ``hard + lam * soft`` (paper, "The Distillation Procedure", L_KD).

    With `target` None it is the soft loss alone (not weighted by `lam`), with `teacher_logits` None the hard one alone.

    Arguments are as in `hard_loss` and `soft_loss`; `lam` is the weight of the teacher, and pixels of `target` that
    are not `inside` the sample must be 0.

    Raises
    ------
    ValueError
        If both `target` and `teacher_logits` are None.
    """
    hard = soft = None
    if target is not None:
        hard = hard_loss(logits, target, class_weights, dice, total=total)
    if teacher_logits is not None:
        soft = soft_loss(logits, teacher_logits, tau, dice, inside=inside, confidence=confidence, total=total)
    if hard is not None and soft is not None:
        return Losses(hard + lam * soft, hard, soft)
    only = soft if hard is None else hard
    if only is None:
        raise ValueError("neither labels nor teacher: there is nothing to learn from.")
    return Losses(only, hard, soft)
