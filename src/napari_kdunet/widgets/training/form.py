"""A form of the core's settings, made from their fields: types, bounds, units, choices and help."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import Field, fields
from typing import Any

from qtpy.QtCore import QSettings, Signal
from qtpy.QtWidgets import QFormLayout, QLabel, QPushButton, QWidget
from superqt import QCollapsible

from napari_kdunet.core.config import TrainConfig
from napari_kdunet.core.errors import ConfigError
from napari_kdunet.widgets.training.controls import Budget, Control, control_for

__all__ = ["SettingsForm", "stored_settings"]

_LABELS = {
    "k": "Channels k",
    "bn": "Batch normalisation",
    "lr": "Learning rate",
    "ema": "Weight averaging",
    "clip": "Gradient clipping",
    "dice": "Dice weight",
    "prior_bias": "Bias from prior",
    "init": "Initial weights",
    "val_share": "Validation share",
    "val_slices": "Validation slices",
    "batch": "Batch size",
    "patch": "Patch side",
    "tau": "Temperature τ",
    "lam": "Teacher weight λ",
    "memory": "Memory for slices",
    "slices": "Labelled slices",
}
_BUDGET = (
    "How long to train, in minutes of computing (pauses do not count) or in steps of one batch each.\n"
    "Longer is better, with less and less to gain."
)
_MAIN = ("k", "bn", "class_weights", "budget", "val_share", "device")


def stored_settings() -> QSettings:
    """The storage of the settings, which outlasts the session."""
    return QSettings(QSettings.Format.IniFormat, QSettings.Scope.UserScope, "napari-kdunet", "napari-kdunet")


class SettingsForm(QWidget):
    """Form of the settings of a kind of training, with a collapsible group of advanced settings.

    Parameters
    ----------
    kind : type
        `TrainConfig` or `DistillConfig`.
    main : sequence of str
        The settings above the advanced ones, in this order; ``budget`` stands for steps and minutes.
    hidden : sequence of str
        Settings that are not in the form.
    settings : QSettings, optional
        Where the values persist; `stored_settings` by default.
    """

    changed = Signal()

    def __init__(
        self,
        kind: type[TrainConfig] = TrainConfig,
        *,
        main: tuple[str, ...] = _MAIN,
        hidden: tuple[str, ...] = (),
        settings: QSettings | None = None,
    ) -> None:
        super().__init__()
        self.kind = kind
        self.settings = stored_settings() if settings is None else settings
        self.controls: dict[str, Control] = {}
        self.advanced = QCollapsible("Advanced", expandedIcon="▾", collapsedIcon="▸")
        self.advanced.setDuration(0)
        reset = QPushButton("Reset to defaults")
        reset.setToolTip("Set all settings, folded ones too, to their defaults.")
        reset.clicked.connect(self.reset)

        specs = {spec.name: spec for spec in fields(kind)}
        folded = [name for name in specs if name not in (*main, *hidden, "steps", "minutes")]
        inside = QWidget()
        self._add_rows(QFormLayout(inside), folded, specs).addRow(reset)
        self._rows = self._add_rows(QFormLayout(self), main, specs)
        self._rows.addRow(self.advanced)
        self.advanced.setContent(inside)
        self.advanced.collapse(animate=False)
        self.restore()

    def insert_rows(self, rows: Mapping[str, QWidget]) -> None:
        """Insert rows of other controls above the settings."""
        for place, (label, widget) in enumerate(rows.items()):
            words = QLabel(label)
            words.setToolTip(widget.toolTip())
            self._rows.insertRow(place, words, widget)

    def set_enabled(self, names: Iterable[str], enabled: bool) -> None:
        """Enable or disable the controls of some settings."""
        for name in self.controls.keys() & set(names):
            self.controls[name].widget.setEnabled(enabled)

    def values(self) -> dict[str, Any]:
        """The values of the controls, by field.

        Raises
        ------
        ConfigError
            If a typed value cannot be parsed.
        """
        values = {name: control.get() for name, control in self.controls.items()}
        budget = values.pop("budget", {})
        return {**values, **budget}

    def config(self, **overrides: Any) -> TrainConfig:
        """The settings, validated.

        Parameters
        ----------
        **overrides
            Settings that are not taken from the form.

        Raises
        ------
        ConfigError
            If one is out of bounds; the message names it.
        """
        return self.kind(**{**self.values(), **overrides})

    def reset(self) -> None:
        """Set all settings to their defaults."""
        for spec in fields(self.kind):
            if spec.name in self.controls:
                self.controls[spec.name].set(spec.default)
        if "budget" in self.controls:
            self.controls["budget"].set({"minutes": 5.0})

    def save(self) -> None:
        """Store the values for the next session, except typed ones that cannot be parsed."""
        kept = {}
        for name, control in self.controls.items():
            with suppress(ConfigError):
                kept[name] = control.get()
        self.settings.setValue(self.kind.__name__, json.dumps(kept))

    def restore(self) -> None:
        """Load the values of the last session, those that are still valid."""
        try:
            kept = dict(json.loads(self.settings.value(self.kind.__name__, "{}")))
        except (TypeError, ValueError):
            return
        for name in kept.keys() & self.controls.keys():
            with suppress(AttributeError, TypeError, ValueError):
                self.controls[name].set(kept[name])

    def _add_rows(self, rows: QFormLayout, names: Iterable[str], specs: dict[str, Field[Any]]) -> QFormLayout:
        rows.setContentsMargins(0, 0, 0, 0)
        rows.setFieldGrowthPolicy(QFormLayout.FieldGrowthPolicy.AllNonFixedFieldsGrow)
        for name in names:
            self._add_row(rows, name, specs.get(name))
        return rows

    def _add_row(self, rows: QFormLayout, name: str, spec: Field[Any] | None) -> None:
        if spec is None:
            budget = Budget()
            budget.setToolTip(_BUDGET)
            control = Control(budget, budget.get, budget.set, budget.changed)
        else:
            control = control_for(spec)
        label = QLabel(_LABELS.get(name, name.replace("_", " ").capitalize()))
        label.setToolTip(control.widget.toolTip())
        rows.addRow(label, control.widget)
        self.controls[name] = control
        control.changed.connect(lambda *_: self._edited())

    def _edited(self) -> None:
        self.save()
        self.changed.emit()
