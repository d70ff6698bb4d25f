"""The plan of a training over its budget: what is used, how fast it learns, when it validates and when it ends."""

from __future__ import annotations

import pytest

from napari_kdunet import core
from napari_kdunet.core.training.schedule import budget_used, learning_rate, stop_reason, validation_is_due


def test_budget_used():
    steps, minutes = core.TrainConfig(steps=40), core.TrainConfig(minutes=0.5)
    assert [budget_used(steps, n, 1e6) for n in (0, 10, 40, 41)] == [0, 0.25, 1, 1]
    assert [budget_used(minutes, 10**6, s) for s in (0, 15, 30, 31)] == [0, 0.5, 1, 1]
    assert budget_used(core.TrainConfig(), 10**6, 150) == 0.5  # five minutes by default


def test_one_cycle():
    config = core.TrainConfig(lr=0.02, warmup=0.2)
    assert learning_rate(config, 0.0) == pytest.approx(0.02 * 0.04)
    assert learning_rate(config, 0.1) == pytest.approx(0.01)
    assert learning_rate(config, 0.2) == pytest.approx(0.02)
    assert learning_rate(config, 0.6) == pytest.approx(0.01)
    assert learning_rate(config, 1.0) == pytest.approx(0.02 * 1e-3)
    rates = [learning_rate(config, i / 100) for i in range(101)]
    assert rates[4:21] == sorted(rates[4:21])
    assert rates[20:] == sorted(rates[20:], reverse=True)


def test_other_schedules():
    constant = core.TrainConfig(lr=0.02, schedule="constant")
    assert {learning_rate(constant, i / 10) for i in range(11)} == {0.02}
    assert learning_rate(core.TrainConfig(lr=0.02, warmup=0.0), 0.0) == 0.02  # no warm-up to divide by


def test_validations_are_evenly_spaced():
    config, validated, at = core.TrainConfig(steps=40, validations=4), 0, []
    for step in range(41):
        while validation_is_due(config, budget_used(config, step, 0.0), validated):
            validated += 1
            at.append(step)
    assert at == [10, 20, 30, 40]
    assert not validation_is_due(config, 1.0, 4)


def test_stop_reason():
    config = core.TrainConfig(steps=10, validations=2, patience=2)
    assert stop_reason(config, 0.9, 1, 1) == ""
    assert stop_reason(config, 0.5, 1, 2) == "patience"
    assert stop_reason(config, 1.0, 1, 0) == ""  # the last validation comes first
    assert stop_reason(config, 1.0, 2, 0) == "budget"
    assert stop_reason(core.TrainConfig(steps=10, validations=2), 0.5, 1, 99) == ""
