"""The paper's minima of windowed means."""

from __future__ import annotations

import math

import pytest

from napari_kdunet.core.experiments.history import History, crossing, lowest_mean
from napari_kdunet.core.training.events import Stepped


@pytest.mark.parametrize(
    ("values", "window", "lowest", "at"),
    [
        ([5.0, 1.0, 4.0, 3.0], 1, 1.0, 1),
        ([5.0, 1.0, 4.0, 3.0], 2, 2.5, 2),
        ([5.0, 1.0, 4.0, 3.0], 3, 8 / 3, 3),
        ([5.0, 1.0, 4.0, 3.0], 4, 3.25, 3),
        ([5.0, 1.0], 3, 3.0, 1),  # fewer than a window: their mean
        ([2.0, 2.0, 2.0], 2, 2.0, 1),
    ],
)
def test_lowest_mean(values, window, lowest, at):
    assert lowest_mean(values, window) == (pytest.approx(lowest), at)


def test_nothing_has_no_lowest_mean():
    assert lowest_mean([], 3) == (None, -1)


def stepped(step: int, loss: float, hard: float, soft: float) -> Stepped:
    return Stepped(step, step / 4, 0.5 * step, loss, hard, soft, 0.01, 0.0)


@pytest.fixture
def history() -> History:
    made = History(parameters=7)
    for step, loss, hard, soft in ((1, 4.0, math.nan, 4.0), (2, 2.0, math.nan, 2.0), (3, 5.0, 5.0, math.nan),
                                   (4, 1.0, 1.0, math.nan)):  # fmt: skip
        made.add(stepped(step, loss, hard, soft))
        made.tests.append((step, loss / 10))
    return made


def test_each_part_has_its_own_minimum(history):
    assert history.train_loss(1, 2) == 3.0
    assert history.train_loss(2, 2) == 3.0
    assert history.train_loss(3, 1) == 2.0
    assert history.train_loss(3, 9) == 3.0
    assert History().train_loss(1, 2) is None


def test_read_again_and_cut(history, tmp_path):
    path = tmp_path / "h.json"
    assert History.load(path) == History()
    history.save(path)
    again = History.load(path)
    assert [tuple(entry) for entry in again.steps] == history.steps
    assert [tuple(entry) for entry in again.tests] == history.tests
    assert (again.parameters, again.seconds) == (7, 2.0)
    again.cut(2)
    assert [entry[0] for entry in again.steps] == [1, 2] == [entry[0] for entry in again.tests]


def test_the_averaged_test_loss_stands_at_the_last_test_of_its_window(history):
    assert history.test_curve(3) == [(3, pytest.approx(1.1 / 3)), (4, pytest.approx(0.8 / 3))]
    assert history.test_curve(9) == [(4, pytest.approx(0.3))]
    assert History().test_curve(3) == []


@pytest.mark.parametrize(
    ("lower", "upper", "step"),
    [
        ([1.0, 1.0, 1.0], [2.0, 2.0, 2.0], 10),
        ([3.0, 1.0, 1.0], [2.0, 2.0, 2.0], 20),
        ([1.0, 3.0, 1.0], [2.0, 2.0, 2.0], 30),  # the last time that it goes below
        ([1.0, 1.0, 2.0], [2.0, 2.0, 2.0], None),
    ],
)
def test_crossing(lower, upper, step):
    curves = ([*zip((10, 20, 30), losses, strict=True)] for losses in (lower, upper))
    assert crossing(*curves) == step
