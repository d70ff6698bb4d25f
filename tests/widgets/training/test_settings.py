"""The settings of a training as rows: quality, groups, the budget, and what outlasts a session."""

import os
import sys
from subprocess import run

import pytest
from magicgui.widgets import Container

from napari_kdunet.core import ConfigError, DistillConfig, TrainConfig
from napari_kdunet.widgets.training.settings import Settings

KINDS = (TrainConfig, DistillConfig)


@pytest.fixture
def settings(qtbot):
    def make(kind=TrainConfig):
        made = Settings(kind)
        made.container = Container(widgets=made.rows)
        qtbot.addWidget(made.container.native)
        return made

    return make


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_not_touched_is_good_and_the_default(settings, kind):
    made = settings(kind)
    assert made.config() == kind(minutes=5.0)
    assert made.quality.value == "good"
    assert "ignore" not in made.widgets
    assert made.config(ignore=0).ignore == 0


def test_quality_sets_budget_and_k(settings):
    made = settings()
    made.quality.value = "quick"
    assert made.config() == TrainConfig(minutes=1.0, k=4)
    made.quality.value = "best"
    assert made.config() == TrainConfig(minutes=30.0, k=16)
    made.widgets["k"].value = 5
    assert made.quality.value == "custom"
    assert made.config() == TrainConfig(minutes=30.0, k=5)
    made.quality.value = "good"
    assert made.config() == TrainConfig(minutes=5.0)
    made.widgets["steps"].value = 12
    assert made.quality.value == "custom"
    assert made.config() == TrainConfig(steps=12)
    made.quality.value = "quick"
    assert made.config().budget == (None, 60.0)


def test_the_students_k_is_chosen_apart(settings):
    made = settings(DistillConfig)
    made.widgets["k"].value = 3
    made.quality.value = "quick"
    assert made.config() == DistillConfig(minutes=1.0, k=3)
    assert made.quality.value == "quick"


def test_the_student_is_in_sight_and_the_rest_is_folded(settings):
    made = settings(DistillConfig)
    assert [widget.name for widget in made.student] == ["k", "tau", "lam", "bn"]
    assert made.student.fold.isExpanded()
    assert not made.advanced.fold.isExpanded()
    assert settings(TrainConfig).student is None


def test_what_cannot_be_used_names_the_setting(settings):
    made = settings()
    made.widgets["patch"].value = 100
    with pytest.raises(ConfigError, match="patch is 100"):
        made.config()
    made.reset()
    made.widgets["class_weights"].value = "heavy"
    with pytest.raises(ConfigError, match="class_weights"):
        made.config()


def test_values_persist_by_kind_and_can_be_reset(settings):
    made = settings(DistillConfig)
    made.widgets["tau"].value, made.widgets["slices"].value, made.widgets["steps"].value = 8.0, (1, 2), 77
    again = settings(DistillConfig)
    assert again.config() == DistillConfig(tau=8.0, steps=77), "slices are of one image"
    assert again.quality.value == "custom"
    assert settings().config() == TrainConfig(minutes=5.0), "each kind has its own"
    again.reset()
    assert settings(DistillConfig).config() == DistillConfig(minutes=5.0)


def test_settings_and_the_list_of_models_do_not_need_torch(tmp_path):
    """It takes seconds to import, for which the window would stand still as a panel is opened."""
    code = (
        "import sys, napari_kdunet.widgets.training.settings\n"
        "from napari_kdunet.widgets.shared.models import models\n"
        "assert models.best_for('') == models.newest_teacher() in models.names()\n"
        "assert 'Unet' in models.describe(models.best_for(''))\n"
        "sys.exit('torch' in sys.modules)"
    )
    home = {**os.environ, "XDG_DATA_HOME": str(tmp_path)}
    assert run([sys.executable, "-c", code], env=home, check=False).returncode == 0
