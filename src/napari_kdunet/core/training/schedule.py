"""The schedule of a training as pure functions: budget used, learning rate, when to validate, when to stop."""

from __future__ import annotations

import math

from napari_kdunet.core.config.training import TrainConfig

__all__ = ["budget_used", "learning_rate", "stop_reason", "validation_is_due"]

_WARMUP_FLOOR = 0.04  # of the peak learning rate, at the start of the warm-up
_COSINE_FLOOR = 1e-3  # of the peak learning rate, at the end of the cosine


def budget_used(config: TrainConfig, steps: int, seconds: float) -> float:
    """Return the share of the budget, 0 to 1, that is used up after a number of steps and of active seconds."""
    budget_steps, budget_seconds = config.budget
    return min(1.0, steps / budget_steps if budget_steps else seconds / (budget_seconds or 1.0))


def learning_rate(config: TrainConfig, used: float) -> float:
    """Return the learning rate at a used share of the budget: linear warm-up, then a cosine, or constant."""
    if config.schedule == "constant":
        return config.lr
    if used < config.warmup:
        return config.lr * max(used / config.warmup, _WARMUP_FLOOR)
    cosine = 0.5 * (1 + math.cos(math.pi * (used - config.warmup) / (1 - config.warmup)))
    return config.lr * max(cosine, _COSINE_FLOOR)


def validation_is_due(config: TrainConfig, used: float, validated: int) -> bool:
    """Return whether the next of the validations, evenly spaced over the budget, is due after `validated` of them."""
    return validated < config.validations and used >= (validated + 1) / config.validations


def stop_reason(config: TrainConfig, used: float, validated: int, stale: int) -> str:
    """Return why to stop: ``patience`` after too many validations without a better model, ``budget``, or "".

    Parameters
    ----------
    config : TrainConfig
        Budget, number of validations and patience.
    used : float
        Share of the budget that is used up.
    validated : int
        Number of validations done.
    stale : int
        Number of validations since the best one.
    """
    if config.patience and stale >= config.patience:
        return "patience"
    return "budget" if used >= 1 and not validation_is_due(config, used, validated) else ""
