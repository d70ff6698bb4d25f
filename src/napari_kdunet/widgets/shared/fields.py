"""magicgui widgets for the core's settings, built from the metadata of the dataclass fields and the advice.

The docstring of each subclass says what magicgui's own widget lacks.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import Field, fields
from types import NoneType
from typing import Any

from magicgui.widgets import ComboBox, Container, FloatSlider, FloatSpinBox, LineEdit, SpinBox, create_widget
from magicgui.widgets.bases import ValueWidget, Widget
from qtpy.QtCore import QEvent, QObject, QSettings, Qt
from qtpy.QtWidgets import (
    QComboBox,
    QCompleter,
    QHBoxLayout,
    QLabel,
    QStyle,
    QStyleOptionComboBox,
    QStylePainter,
    QWidget,
)
from superqt import QCollapsible

from napari_kdunet.core.config.distillation import DistillConfig
from napari_kdunet.core.config.training import TrainConfig
from napari_kdunet.core.errors import ConfigError
from napari_kdunet.core.parsing import parse_class_weights, parse_slices
from napari_kdunet.widgets.shared.advice import advice_for

__all__ = [
    "AlignedLabels",
    "Choice",
    "Folding",
    "Number",
    "OptionalNumber",
    "make_narrow",
    "restore",
    "save",
    "setting_widget",
    "setting_widgets",
    "stored_settings",
    "threshold_slider",
    "without_wheel",
]

_PARSERS: dict[str, Callable[[str], Any]] = {"slices": parse_slices, "class_weights": parse_class_weights}
_LARGEST = 2**31 - 1  # largest value of a Qt spin box
_MOST_DECIMALS = 9
_TEXT_MARGIN = 4  # pixels beside the text of a combo box
_NARROW = 80  # pixels: least width of a combo box


class Number(FloatSpinBox):
    """FloatSpinBox that shows as many decimals as its value needs; magicgui's shows 1e-5 as 0.0."""

    def set_value(self, value: Any) -> None:
        """Set the value; raises the same errors as magicgui's `set_value`."""
        number = float(value)
        needed = next((n for n in range(_MOST_DECIMALS) if math.isclose(round(number, n), number)), _MOST_DECIMALS)
        self.native.setDecimals(max(needed, self.native.decimals()))
        super().set_value(number)


class OptionalNumber(Number):
    """Number whose minimum stands for None; magicgui's ``nullable`` spin boxes cannot be empty."""

    def __init__(self, value: Any = None, *, whole: bool = False, empty: str = "auto", **options: Any) -> None:
        self._whole = whole
        super().__init__(value=value, **options)
        self.native.setSpecialValueText(empty)
        self.value = value

    def get_value(self) -> Any:
        """Return the number, or None at the minimum."""
        value = super().get_value()
        if value == self.min:
            return None
        return int(value) if self._whole else value

    def set_value(self, value: Any) -> None:
        """Set a number or None."""
        super().set_value(self.min if value is None else value)
        if self._whole:
            self.native.setDecimals(0)

    def _on_value_change(self, value: Any = None) -> None:
        self.changed.emit(self.get_value())


class Typed(LineEdit):
    """LineEdit for a word or numbers (``auto`` or ``3, 8, 20:23``); magicgui's combo boxes take only their choices."""

    def __init__(self, parse: Callable[[str], Any], words: Sequence[str], **options: Any) -> None:
        self._parse = parse
        super().__init__(**options)
        self.native.setCompleter(QCompleter(list(words), self.native))

    def get_value(self) -> Any:
        """Return the typed text, parsed; raises `ConfigError` if it cannot be parsed."""
        return self._parse(super().get_value().replace(" ", ""))

    def set_value(self, value: Any) -> None:
        """Set a word, or numbers."""
        super().set_value(value if isinstance(value, str) else ",".join(f"{number:g}" for number in value))


class Choice(ComboBox):
    """ComboBox that keeps its value when the text of a choice changes; magicgui's then falls back to the first choice.

    Parameters
    ----------
    choices : callable
        Called with this widget; returns the values, or (text, value) pairs.
    first : callable, optional
        Called with the offered values as long as neither the user nor a script has chosen; returns the value to select,
        or None. The first offered value by default.
    sticky : bool
        Whether a value selected by `first` is kept when the choices change, rather than asking `first` again.
    none : str
        Text of the choice None, which is listed first; if empty, None cannot be chosen.
    placeholder : str
        Text shown while there is nothing to choose.
    **options
        Options of magicgui's `ComboBox`.

    Attributes
    ----------
    held : bool
        Whether the user or a script has chosen.
    """

    def __init__(
        self,
        choices: Callable[[Any], Any],
        *,
        first: Callable[[list[Any]], Any] | None = None,
        sticky: bool = True,
        none: str = "",
        placeholder: str = "",
        **options: Any,
    ) -> None:
        self.held, self.sticky, self.null_string = False, sticky, none
        self.first = first or (lambda offered: offered[0] if offered else None)
        super().__init__(choices=choices, nullable=bool(none), **options)
        self.native.setPlaceholderText(placeholder)
        self.native.activated.connect(self._chosen)
        make_narrow(self.native)
        without_wheel(self)

    def set_value(self, value: Any) -> None:
        """Choose a value."""
        self.held = True
        super().set_value(value)

    def reset_choices(self, *_: Any) -> None:
        """Update the choices; the chosen value stays if it is still offered."""
        before = self.value
        with self.changed.blocked():
            self.native.clear()  # otherwise magicgui appends new choices after the old ones
            super().reset_choices()
            offered = [value for value in self.choices if value is not None]
            stays = before in offered if before is not None else self._nullable
            self.held = self.held and stays  # a chosen value that is no longer offered is forgotten
            kept = stays and (self.held or (self.sticky and before is not None))
            super().set_value(before if kept else self.first(offered))
        if self.value != before:
            self.changed.emit(self.value)

    def _chosen(self, *_: Any) -> None:
        self.held = True


def make_narrow(box: QComboBox) -> None:
    """Let a combo box elide long texts rather than widen the panel."""
    box.setSizeAdjustPolicy(QComboBox.SizeAdjustPolicy.AdjustToMinimumContentsLengthWithIcon)
    box.setMinimumContentsLength(8)
    box.setMinimumWidth(_NARROW)
    box.installEventFilter(_Elided(box))


class _Elided(QObject):
    """Paints a combo box with its text elided; under napari's style sheet Qt cuts the text off in mid-letter."""

    def eventFilter(self, watched: QObject | None, event: QEvent | None) -> bool:
        box = self.parent()
        if event is None or event.type() != QEvent.Type.Paint or not isinstance(box, QComboBox):
            return False
        style, option = box.style(), QStyleOptionComboBox()
        box.initStyleOption(option)
        text = option.currentText or box.placeholderText()
        assert style is not None
        parts = QStyle.ComplexControl.CC_ComboBox, option, QStyle.SubControl.SC_ComboBoxEditField, box
        room = style.subControlRect(*parts).width() - _TEXT_MARGIN
        option.currentText = box.fontMetrics().elidedText(text, Qt.TextElideMode.ElideRight, room)
        painter = QStylePainter(box)
        painter.drawComplexControl(QStyle.ComplexControl.CC_ComboBox, option)
        painter.drawControl(QStyle.ControlElement.CE_ComboBoxLabel, option)
        painter.end()
        return True


class AlignedLabels(QObject):
    """Gives the row labels of several containers one width.

    magicgui aligns the labels of each container by itself, and before it knows their font.

    Parameters
    ----------
    shown : QWidget
        Widget that holds the containers.
    containers : sequence of Container
        Containers whose row labels are aligned.
    """

    def __init__(self, shown: QWidget, containers: Sequence[Container]) -> None:
        super().__init__(shown)
        self._containers = containers
        for each in (shown, *(container.native for container in containers)):
            each.installEventFilter(self)

    def eventFilter(self, watched: QObject | None, event: QEvent | None) -> bool:
        """Make the labels as wide as the widest."""
        if event is not None and event.type() in (QEvent.Type.Show, QEvent.Type.LayoutRequest):
            labels = [label for container in self._containers for row in container if (label := _label_of(row))]
            widest = max((label.sizeHint().width() for label in labels), default=0)
            for label in labels:
                if label.minimumWidth() != widest:
                    label.setMinimumWidth(widest)
        return False


def _label_of(row: Widget) -> QLabel | None:
    """Return the label that magicgui has put to the left of a row, or None."""
    holder = row.native.parentWidget()
    layout = None if holder is None else holder.layout()
    first = layout.itemAt(0) if isinstance(layout, QHBoxLayout) else None
    label = None if first is None else first.widget()
    return label if isinstance(label, QLabel) and label is not row.native else None


class Folding(Container):
    """Container that folds away under a title, by superqt; magicgui has none."""

    def __init__(self, title: str, *, tooltip: str = "", **options: Any) -> None:
        super().__init__(**options)
        self.margins = (12, 0, 0, 0)
        AlignedLabels(super().native, [self])
        self.fold = QCollapsible(title, expandedIcon="▾", collapsedIcon="▸")
        self.fold.setDuration(0)
        self.fold.setToolTip(tooltip)
        self.fold.setContent(super().native)
        self.fold.collapse(animate=False)

    @property
    def native(self) -> Any:
        """Collapsible widget: the title and the rows that it folds away."""
        return self.__dict__.get("fold") or super().native


class _WheelGuard(QObject):
    """Ignores the mouse wheel on a control without focus, so that scrolling through a panel changes no value."""

    def eventFilter(self, watched: QObject | None, event: QEvent | None) -> bool:
        if event is None or event.type() != QEvent.Type.Wheel:
            return False
        event.ignore()  # so that the scroll area above takes it
        return isinstance(watched, QWidget) and not watched.hasFocus()


def without_wheel(widget: Widget) -> Any:
    """Let the mouse wheel change a widget only while it has focus, and return it; else scrolling a panel changes it."""
    for native in (widget.native, *widget.native.findChildren(QWidget)):
        native.setFocusPolicy(Qt.FocusPolicy.StrongFocus)
        native.installEventFilter(_WheelGuard(native))
    return widget


def threshold_slider(tooltip: str) -> FloatSlider:
    """Return a slider for the foreground probability above which a voxel is foreground."""
    slider = FloatSlider(value=0.5, min=0.01, max=0.99, step=0.01, name="threshold", label="Threshold", tooltip=tooltip)
    slider.native.setToolTip(tooltip)  # the number beside the slider needs it too
    without_wheel(slider)
    return slider


def setting_widget(spec: Field[Any], *, distil: bool = False) -> ValueWidget[Any]:
    """Return the widget for one field of the settings, set to its default.

    Parameters
    ----------
    spec : dataclasses.Field
        Field of `TrainConfig` or `DistillConfig`.
    distil : bool
        Whether the advice is for a distillation.
    """
    meta, types, advice = spec.metadata, spec.metadata["types"], advice_for(spec.name, distil=distil)
    options: dict[str, Any] = {"tooltip": _tooltip(spec, advice.text)}
    kind: Any = None
    if spec.name in _PARSERS:
        kind, options = Typed, options | {"parse": _PARSERS[spec.name], "words": meta["choices"]}
    elif meta["choices"]:
        kind, options = ComboBox, options | {"choices": meta["choices"]}
    elif bool not in types:
        whole, optional = int in types, NoneType in types
        kind = OptionalNumber if optional else SpinBox if whole else Number
        options |= _bounds(meta, advice.step, whole=whole, optional=optional)
        options |= {"whole": whole} if optional else {}
    unit = f" ({meta['unit']})" if meta["unit"] and meta["unit"] != spec.name else ""
    widget = create_widget(
        spec.default, bool, name=spec.name, label=advice.label + unit, widget_type=kind, options=options
    )
    if kind is ComboBox:
        make_narrow(widget.native)
    return without_wheel(widget)


def setting_widgets(kind: type[TrainConfig], names: Iterable[str]) -> list[ValueWidget[Any]]:
    """Return the widgets for the fields `names` of a settings class, in this order."""
    specs = {spec.name: spec for spec in fields(kind)}
    return [setting_widget(specs[name], distil=issubclass(kind, DistillConfig)) for name in names]


def stored_settings() -> QSettings:
    """Return the storage of settings that persist between sessions."""
    return QSettings(QSettings.Format.IniFormat, QSettings.Scope.UserScope, "napari-kdunet", "napari-kdunet")


def save(key: str, widgets: Iterable[ValueWidget[Any]]) -> None:
    """Store the values of widgets under `key` for the next session, except typed ones that cannot be parsed."""
    kept = {}
    for widget in widgets:
        with suppress(ConfigError):
            kept[widget.name] = widget.value
    stored_settings().setValue(key, json.dumps(kept))


def restore(key: str, widgets: Iterable[ValueWidget[Any]]) -> None:
    """Set widgets to the values stored under `key`, as far as these are still valid."""
    try:
        kept = dict(json.loads(stored_settings().value(key, "{}")))
    except (TypeError, ValueError):
        return
    for widget in widgets:
        if widget.name in kept:
            with suppress(TypeError, ValueError):
                widget.value = kept[widget.name]


def _bounds(meta: Any, step: float, *, whole: bool, optional: bool) -> dict[str, Any]:
    """Return bounds and step of a spin box; the minimum of an optional one lies below its lowest value, for None."""
    above = 1 if whole else 10.0 ** -max(2, math.ceil(-math.log10(step)))
    low = meta["gt"] + above if "gt" in meta else meta.get("ge", -_LARGEST)
    high = meta["lt"] - above if "lt" in meta else meta.get("le", _LARGEST)
    return {"min": max(low - above * optional, -_LARGEST), "max": min(high, _LARGEST), "step": step}


def _tooltip(spec: Field[Any], advice: str) -> str:
    """Return a setting's help, advice, unit and bounds as rich text, which Qt wraps to a readable width."""
    meta = spec.metadata
    words = {"ge": "from", "gt": "above", "le": "to", "lt": "below"}
    bounds = " ".join(f"{word} {meta[name]:,.10g}" for name, word in words.items() if name in meta)
    unit = f" {meta['unit']}" if meta["unit"] else ""
    lines = [meta["help"], advice]
    if bounds:
        lines.append(f"{bounds[0].upper()}{bounds[1:]}{unit}.")
    elif unit:
        lines.append(f"In{unit}.")
    return "".join(f"<p>{line}</p>" for line in lines if line)
