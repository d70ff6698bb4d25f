"""The plots of a training."""

import pytest
from napari.components import ViewerModel

from napari_kdunet.widgets.training.curves import Curves


@pytest.fixture
def curves(qtbot):
    curves = Curves(ViewerModel())
    qtbot.addWidget(curves)
    return curves


def test_they_follow_the_theme(curves):
    def ground():
        return curves.graphics.backgroundBrush().color().lightness()

    dark = ground()
    curves.viewer.theme = "light"
    assert ground() > dark


def test_those_of_a_long_run_are_thinned(curves):
    curves.begin("training")
    for step in range(1, 20_002):  # the last one is that which thins them
        curves.add_step("training", step, 1 / step)
    run = curves.runs["training"]
    assert len(run.steps) == len(run.losses) == len(run.smooth) < 20_000
    assert run.steps == sorted(run.steps)
    assert run.steps[-1] == 20_001
    assert run.losses == [1 / step for step in run.steps]
