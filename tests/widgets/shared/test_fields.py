"""The widgets of the settings: what the core says is what they show and give back."""

from dataclasses import fields
from types import NoneType

import pytest
from magicgui.widgets import CheckBox, ComboBox, Container, Label
from qtpy.QtCore import QPoint, QPointF, Qt
from qtpy.QtGui import QWheelEvent
from qtpy.QtWidgets import QApplication

from napari_kdunet.core import ConfigError, DistillConfig, TrainConfig
from napari_kdunet.widgets.shared.advice import ADVICE
from napari_kdunet.widgets.shared.fields import (
    Folding,
    restore,
    save,
    setting_widget,
    setting_widgets,
    stored_settings,
)

KINDS = (TrainConfig, DistillConfig)


@pytest.fixture(autouse=True)
def qt(qtbot):
    pass


def group(kind=TrainConfig):
    return Container(widgets=setting_widgets(kind, [spec.name for spec in fields(kind)]))


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_not_touched_is_the_default(kind):
    assert kind(**group(kind).asdict()) == kind()


@pytest.mark.parametrize("kind", KINDS)
def test_each_setting_shows_help_advice_unit_and_bounds(kind):
    for spec in fields(kind):
        widget = setting_widget(spec)
        assert spec.name in ADVICE
        assert widget.label.startswith(ADVICE[spec.name].label)
        for text in (spec.metadata["help"], ADVICE[spec.name].text, spec.metadata["unit"]):
            assert text in widget.tooltip
    rows = group(kind)
    assert "From 0 to 180 degrees." in rows.rotation.tooltip
    assert rows.rotation.label == "Rotation (degrees)"
    assert isinstance(rows.bn, CheckBox)
    assert isinstance(rows.device, ComboBox)
    assert rows.device.choices == ("auto", "cpu", "cuda", "mps")
    assert not ADVICE.keys() - {spec.name for spec in fields(DistillConfig)}


@pytest.mark.parametrize("kind", KINDS)
def test_bounds_of_the_widgets_are_bounds_of_the_settings(kind):
    """Each end of a spin box is a value that the core takes, and what it does not take is refused."""
    free = {"patch", "depth", "class_weights", "classes"}  # have to suit each other
    for widget, spec in zip(group(kind), fields(kind), strict=True):
        if not hasattr(widget, "max") or spec.name in free:
            continue
        for end in (widget.min, widget.max):
            if end == widget.min and NoneType in spec.metadata["types"]:
                widget.value = None
                end = None
            else:
                widget.value = end
            kind(**{spec.name: widget.value})
            assert widget.value == end
        with pytest.raises(ValueError, match="outside"):
            widget.value = widget.max * 2 + 1


@pytest.mark.parametrize(("name", "value"), [("lr", 1e-4), ("minutes", 0.125), ("weight_decay", 1e-2), ("ema", 0.9975)])
def test_small_numbers_are_kept_and_shown(name, value):
    widget = getattr(group(), name)
    widget.value = value
    assert widget.value == pytest.approx(value)
    assert float(widget.native.text()) == pytest.approx(value)


def test_an_optional_number_can_be_empty_and_says_so():
    rows, heard = group(), []
    rows.threads.changed.connect(heard.append)
    assert rows.threads.native.text() == "auto"
    rows.threads.value = 2
    rows.threads.native.setValue(rows.threads.native.minimum())
    assert heard == [2, None]
    rows.minutes.value = 0.5
    assert TrainConfig(**rows.asdict()).budget == (None, 30.0)
    rows.minutes.value = None
    rows.threshold.value = 0.06
    assert rows.asdict()["minutes"] is None
    assert rows.threshold.value == pytest.approx(0.06)


def test_slices_and_class_weights_can_be_typed():
    rows = group()
    rows.slices.native.setText("3, 8, 20:23")
    rows.class_weights.native.setText("1, 4")
    assert rows.slices.value == (3, 8, 20, 21, 22)
    assert rows.class_weights.value == (1.0, 4.0)
    rows.class_weights.value = (1, 2.5)
    assert rows.class_weights.native.text() == "1,2.5"
    rows.slices.native.setText("some")
    with pytest.raises(ConfigError, match="slices"):
        _ = rows.slices.value


def test_values_outlast_the_session_where_they_are_still_valid():
    rows = group(DistillConfig)
    rows.tau.value, rows.mode.value, rows.slices.value, rows.threads.value = 8.0, "soft", (1, 2), 3
    rows.class_weights.native.setText("heavy")
    save("a", rows)
    again = group(DistillConfig)
    restore("a", again)
    expected = DistillConfig(tau=8.0, mode="soft", slices=(1, 2), threads=3)
    assert DistillConfig(**again.asdict()) == expected
    stored_settings().setValue("a", '{"k": 4, "gone": 1, "lr": "abc", "depth": 99, "device": "abacus", "slices": 3}')
    again = group()
    restore("a", again)
    assert TrainConfig(**again.asdict()) == TrainConfig(k=4)
    stored_settings().setValue("a", "no JSON")
    restore("a", again)
    assert again.k.value == 4


def test_scrolling_over_a_panel_changes_nothing(qtbot):
    rows = group()
    qtbot.addWidget(rows.native)
    rows.native.show()
    for widget in (rows.k, rows.device, rows.lr):
        none, up = QPoint(), QPoint(0, 120)
        buttons, keys = Qt.MouseButton.NoButton, Qt.KeyboardModifier.NoModifier
        wheel = QWheelEvent(QPointF(5, 5), QPointF(5, 5), none, up, buttons, keys, Qt.ScrollPhase.NoScrollPhase, False)
        QApplication.sendEvent(widget.native, wheel)
    assert TrainConfig(**rows.asdict()) == TrainConfig()


def test_a_folded_container_is_folded_at_first_and_its_widgets_go_by_name(qtbot):
    panel = Container(widgets=[Folding("Advanced", widgets=[Label(name="word", value="hm")], name="advanced")])
    qtbot.addWidget(panel.native)
    panel.native.show()
    word = panel.advanced.word
    assert word.native.visibleRegion().isEmpty()
    panel.advanced.fold.expand(animate=False)
    qtbot.waitUntil(lambda: not word.native.visibleRegion().isEmpty())
