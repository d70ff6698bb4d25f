"""The settings of a training as rows: a choice of quality in sight, the rest folded away."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from typing import Any

from magicgui.widgets import ComboBox

from napari_kdunet.core.config.distillation import DistillConfig
from napari_kdunet.core.config.training import TrainConfig
from napari_kdunet.widgets.shared.fields import Folding, restore, save, setting_widgets, without_wheel
from napari_kdunet.widgets.shared.panel import button

__all__ = ["Settings"]

#: Settings that each quality sets. A student's k is chosen apart, as a small k is what distillation is for.
_TRAIN = {
    "quick": {"minutes": 1.0, "k": 4},
    "good": {"minutes": 5.0, "k": 16},
    "best": {"minutes": 30.0, "k": 16},
}
_DISTIL = {name: {"minutes": each["minutes"]} for name, each in _TRAIN.items()}
_STUDENT = ("k", "tau", "lam", "bn")
_FIRST = ("minutes", "steps", "k", "bn", "mode")  # among the folded settings
_OF_THE_IMAGE = ("slices",)  # holds for one image, and is easily overlooked for the next: not stored between sessions
_HIDDEN = ("ignore", "volume_weights")  # `sparse` sets ignore; a panel trains on one image


class Settings:
    """The settings of a kind of training as rows of a panel.

    Parameters
    ----------
    kind : type
        `TrainConfig` or `DistillConfig`.

    Attributes
    ----------
    quality : ComboBox
        quick, good or best; custom if a setting that it sets has another value.
    student, advanced : Folding or None
        Groups of the other rows; only a distillation has a student.
    widgets : dict of str to magicgui widget
        Widget of each setting, by the name of its field.
    """

    def __init__(self, kind: type[TrainConfig]) -> None:
        self.kind = kind
        distil = issubclass(kind, DistillConfig)
        self._presets: dict[str, dict[str, Any]] = _DISTIL if distil else _TRAIN
        student = _STUDENT if distil else ()
        names = [spec.name for spec in fields(kind) if spec.name not in _HIDDEN]
        folded = [name for name in names if name not in student]
        folded.sort(key=lambda name: _FIRST.index(name) if name in _FIRST else len(_FIRST))
        self.widgets = {each.name: each for each in setting_widgets(kind, [*student, *folded])}
        self.quality = self._make_quality(distil)
        self.student = self._fold("Student", student) if distil else None
        if self.student is not None:
            self.student.fold.expand(animate=False)
        self.advanced = self._fold("Advanced", folded)
        self.advanced.append(button("Reset to defaults", "Set all settings to their defaults.", self.reset))
        self.reset()
        self._kept = [widget for name, widget in self.widgets.items() if name not in _OF_THE_IMAGE]
        restore(kind.__name__, self._kept)
        self._edited()
        for widget in self.widgets.values():
            widget.changed.connect(self._edited)
        self.quality.changed.connect(self._take_preset)

    @property
    def rows(self) -> list[Any]:
        """Rows of the panel: quality, the student if there is one, and the folded settings."""
        return [row for row in (self.quality, self.student, self.advanced) if row is not None]

    def config(self, **overrides: Any) -> Any:
        """Return the settings, validated; the steps count if they are given, else the minutes.

        Raises
        ------
        ConfigError
            If a setting is out of bounds, or cannot be parsed; the message names it.
        """
        values = {name: widget.value for name, widget in self.widgets.items()}
        if values["steps"] is not None:
            values["minutes"] = None
        return self.kind(**{**values, **overrides})

    def reset(self) -> None:
        """Set all settings to their defaults."""
        for spec in fields(self.kind):
            if spec.name in self.widgets:
                self.widgets[spec.name].value = spec.default
        self._take_preset("good")

    def set_enabled(self, names: Sequence[str], enabled: bool) -> None:
        """Enable or disable the widgets of some settings."""
        for name in names:
            self.widgets[name].enabled = enabled

    def _make_quality(self, distil: bool) -> Any:
        sets = "budget" if distil else "budget and k"
        words = ", ".join(
            f"{name} {' and '.join(f'{key} {value:g}' for key, value in preset.items())}"
            for name, preset in self._presets.items()
        )
        return without_wheel(
            ComboBox(
                name="quality",
                label="Quality",
                choices=(*self._presets, "custom"),
                value="good",
                tooltip=f"Sets the {sets}: {words}; custom is what you set under Advanced.\nQuick shows whether it "
                "works at all; longer is better, with less and less to gain.",
            )
        )

    def _fold(self, title: str, names: Sequence[str]) -> Folding:
        return Folding(title, widgets=[self.widgets[name] for name in names], name=title.lower(), label="")

    def _take_preset(self, quality: str) -> None:
        for name, value in self._presets.get(quality, {}).items():
            self.widgets[name].value = value
        if quality in self._presets:
            self.widgets["steps"].value = None

    def _edited(self) -> None:
        """Store the values, and show the quality that they amount to."""
        save(self.kind.__name__, self._kept)
        values = {name: self.widgets[name].value for name in ("minutes", "k", "steps")}
        fits = [
            quality
            for quality, preset in self._presets.items()
            if all(values[name] == value for name, value in preset.items()) and values["steps"] is None
        ]
        self.quality.value = next(iter(fits), "custom")
