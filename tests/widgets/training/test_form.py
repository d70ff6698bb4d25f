"""The form shows what the core's settings say, and gives them back validated."""

import sys
from dataclasses import fields
from subprocess import run

import pytest
from qtpy.QtWidgets import QCheckBox, QComboBox

from napari_kdunet.core import ConfigError, DistillConfig, TrainConfig
from napari_kdunet.widgets.training.form import SettingsForm, stored_settings


@pytest.fixture
def make_form(qtbot):
    def make(kind=TrainConfig, **more):
        form = SettingsForm(kind, **more)
        qtbot.addWidget(form)
        return form

    return make


@pytest.mark.parametrize("kind", [TrainConfig, DistillConfig])
def test_an_untouched_form_gives_the_defaults(make_form, kind):
    assert make_form(kind).config() == kind(minutes=5.0)


@pytest.mark.parametrize("kind", [TrainConfig, DistillConfig])
def test_each_setting_has_a_control_with_its_help_unit_and_bounds(make_form, kind):
    form = make_form(kind)
    for spec in fields(kind):
        if spec.name in ("steps", "minutes"):
            continue
        tip = form.controls[spec.name].widget.toolTip()
        assert spec.metadata["help"] in tip
        assert spec.metadata["unit"] in tip
    assert "From 0 to 180 degrees." in form.controls["rotation"].widget.toolTip()
    assert "minutes" in form.controls["budget"].widget.toolTip()
    assert isinstance(form.controls["bn"].widget, QCheckBox)
    device = form.controls["device"].widget
    assert isinstance(device, QComboBox)
    assert [device.itemText(i) for i in range(device.count())] == ["auto", "cpu", "cuda", "mps"]
    if kind is DistillConfig:
        views = form.controls["teacher_views"].widget
        assert [views.itemText(i) for i in range(views.count())] == ["1", "2", "4", "8"]


def test_lesser_settings_are_folded_away_at_first(make_form):
    form = make_form()
    form.show()
    assert not form.advanced.isExpanded()
    assert form.controls["k"].widget.isVisible()
    form.advanced.expand(animate=False)
    assert form.controls["lr"].widget.isVisible()


def test_small_numbers_are_shown_as_they_are(make_form):
    form = make_form()
    assert form.controls["lr"].widget.text() == "0.01"
    form.controls["lr"].set(1e-4)
    assert form.controls["lr"].widget.text() == "0.0001"
    assert form.config().lr == pytest.approx(1e-4)


def test_budget_is_minutes_or_steps(make_form):
    form = make_form()
    budget = form.controls["budget"].widget
    budget.number.setValue(2.5)
    assert form.config().budget == (None, 150.0)
    budget.unit.setCurrentText("steps")
    budget.number.setValue(42)
    assert form.config().budget == (42, None)
    budget.unit.setCurrentText("minutes")
    assert budget.number.value() == 2.5, "each unit keeps its number"


def test_optional_numbers_can_be_empty(make_form):
    form = make_form()
    form.controls["threads"].set(2)
    assert form.config().threads == 2
    form.controls["threads"].set(None)
    assert form.config().threads is None


def test_slices_and_class_weights_can_be_typed(make_form):
    form = make_form()
    form.controls["slices"].widget.setCurrentText("3, 8, 20:23")
    form.controls["class_weights"].widget.setCurrentText("1, 4")
    config = form.config()
    assert config.slices == (3, 8, 20, 21, 22)
    assert config.class_weights == (1.0, 4.0)


@pytest.mark.parametrize(("name", "text"), [("slices", "some"), ("class_weights", "heavy"), ("class_weights", "1,2,3")])
def test_what_cannot_be_read_names_the_setting(make_form, name, text):
    form = make_form()
    form.controls[name].widget.setCurrentText(text)
    with pytest.raises(ConfigError, match=name):
        form.config()


def test_settings_that_do_not_fit_together_name_the_setting(make_form):
    form = make_form()
    form.controls["patch"].set(100)
    with pytest.raises(ConfigError, match="patch is 100"):
        form.config()


def test_overrides_come_from_elsewhere(make_form):
    form = make_form(hidden=("ignore",))
    assert "ignore" not in form.controls
    assert form.config(ignore=0).ignore == 0


def test_values_persist_and_can_be_reset(make_form):
    form = make_form(DistillConfig)
    form.controls["tau"].set(8.0)
    form.controls["mode"].set("soft")
    form.controls["slices"].set((1, 2))
    form.controls["threads"].set(3)
    form.controls["teacher_views"].set(4)
    form.controls["budget"].set({"steps": 77})
    again = make_form(DistillConfig)
    expected = DistillConfig(tau=8.0, mode="soft", slices=(1, 2), threads=3, teacher_views=4, steps=77)
    assert again.config() == expected
    assert make_form(TrainConfig).config() == TrainConfig(minutes=5.0), "each kind has its own"
    again.reset()
    assert make_form(DistillConfig).config() == DistillConfig(minutes=5.0)


def test_kept_values_that_no_longer_fit_are_let_go(make_form):
    stored_settings().setValue("TrainConfig", '{"k": 4, "gone": 1, "lr": "abc", "budget": 7, "bn": null}')
    form = make_form()
    assert form.config(bn=True) == TrainConfig(k=4, minutes=5.0)
    stored_settings().setValue("TrainConfig", "no JSON")
    assert make_form().config() == TrainConfig(minutes=5.0)


def test_scrolling_over_the_form_changes_nothing(make_form):
    from qtpy.QtCore import QPoint, QPointF, Qt
    from qtpy.QtGui import QWheelEvent
    from qtpy.QtWidgets import QApplication

    form = make_form()
    form.show()
    for name in ("k", "device", "budget"):
        control = form.controls[name]
        target = getattr(control.widget, "number", control.widget)
        none, up = QPoint(), QPoint(0, 120)
        buttons, keys = Qt.MouseButton.NoButton, Qt.KeyboardModifier.NoModifier
        wheel = QWheelEvent(QPointF(5, 5), QPointF(5, 5), none, up, buttons, keys, Qt.ScrollPhase.NoScrollPhase, False)
        QApplication.sendEvent(target, wheel)
    assert form.config() == TrainConfig(minutes=5.0)


def test_the_form_does_not_need_torch():
    code = "import sys, napari_kdunet.widgets.training.form; sys.exit('torch' in sys.modules)"
    assert run([sys.executable, "-c", code], check=False).returncode == 0
