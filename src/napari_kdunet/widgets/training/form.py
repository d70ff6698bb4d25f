"""A form made from the settings of the core: what the core knows of a field is what the user sees of it."""

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
    """Where the settings persist from one launch of napari to the next."""
    return QSettings(QSettings.Format.IniFormat, QSettings.Scope.UserScope, "napari-kdunet", "napari-kdunet")


class SettingsForm(QWidget):
    """The settings of one kind of training as a form; the lesser ones are folded away.

    Parameters
    ----------
    kind : type
        `TrainConfig` or `DistillConfig`.
    main : sequence of str
        The settings that are always in sight, in this order; ``budget`` stands for steps and minutes.
    hidden : sequence of str
        Those that are not in the form, because something else decides them.
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

    def put_on_top(self, rows: Mapping[str, QWidget]) -> None:
        """Put other controls above the settings, in line with them."""
        for place, (label, widget) in enumerate(rows.items()):
            words = QLabel(label)
            words.setToolTip(widget.toolTip())
            self._rows.insertRow(place, words, widget)

    def let_change(self, names: Iterable[str], yes: bool) -> None:
        """Let some settings be changed, or not because something else decides them for now."""
        for name in self.controls.keys() & set(names):
            self.controls[name].widget.setEnabled(yes)

    def values(self) -> dict[str, Any]:
        """What stands in the form, by field.

        Raises
        ------
        ConfigError
            If something typed cannot be read.
        """
        values = {name: control.get() for name, control in self.controls.items()}
        budget = values.pop("budget", {})
        return {**values, **budget}

    def config(self, **overrides: Any) -> TrainConfig:
        """The settings, validated.

        Parameters
        ----------
        **overrides
            Settings that do not come from the form.

        Raises
        ------
        ConfigError
            If one is out of bounds; the message names it.
        """
        return self.kind(**{**self.values(), **overrides})

    def reset(self) -> None:
        """Set all to the defaults."""
        for spec in fields(self.kind):
            if spec.name in self.controls:
                self.controls[spec.name].set(spec.default)
        if "budget" in self.controls:
            self.controls["budget"].set({"minutes": 5.0})

    def save(self) -> None:
        """Keep the values for the next launch, but for what cannot be read as typed."""
        kept = {}
        for name, control in self.controls.items():
            with suppress(ConfigError):
                kept[name] = control.get()
        self.settings.setValue(self.kind.__name__, json.dumps(kept))

    def restore(self) -> None:
        """Take the values of the last launch, those of them that can still be used."""
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
