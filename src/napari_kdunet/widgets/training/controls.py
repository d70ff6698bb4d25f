"""Qt controls for the kinds of settings, each with a getter, a setter and a signal of its changes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import Field
from types import NoneType
from typing import Any

from qtpy.QtCore import QEvent, QObject, Qt, Signal
from qtpy.QtWidgets import QAbstractSpinBox, QCheckBox, QComboBox, QDoubleSpinBox, QHBoxLayout, QSpinBox, QWidget

from napari_kdunet.core.parsing import parse_class_weights, parse_slices

__all__ = ["Budget", "Control", "control_for", "tooltip"]

_PARSERS: dict[str, Callable[[str], Any]] = {"slices": parse_slices, "class_weights": parse_class_weights}
_DECIMALS = 6


class Control:
    """The control of one setting in a form.

    Attributes
    ----------
    widget : QWidget
        The Qt control.
    get, set : callable
        Read and write its value, as the setting's type.
    changed : SignalInstance
        Emitted by the control when its value changes.
    """

    def __init__(self, widget: QWidget, get: Callable[[], Any], set: Callable[[Any], Any], changed: Any) -> None:
        self.widget, self.get, self.set, self.changed = widget, get, set, changed


class _Float(QDoubleSpinBox):
    """Spin box without trailing zeros (0.01, 0.995), whose step adapts to the value."""

    def __init__(self) -> None:
        super().__init__()
        self.setDecimals(_DECIMALS)
        self.setStepType(QAbstractSpinBox.StepType.AdaptiveDecimalStepType)

    def textFromValue(self, v: float) -> str:
        return f"{v:.{_DECIMALS}f}".rstrip("0").rstrip(".")


class _WheelGuard(QObject):
    """Ignores the mouse wheel on a control without focus, so that scrolling through a form changes no value."""

    def eventFilter(self, watched: QObject | None, event: QEvent | None) -> bool:
        if event is None or event.type() != QEvent.Type.Wheel:
            return False
        event.ignore()  # so that the scroll area above takes it
        return isinstance(watched, QWidget) and not watched.hasFocus()


def _guard(widget: QWidget) -> None:
    widget.setFocusPolicy(Qt.FocusPolicy.StrongFocus)
    widget.installEventFilter(_WheelGuard(widget))


class Budget(QWidget):
    """How long to train: a number of minutes or of steps. Its value is ``{"minutes": 5.0}`` or ``{"steps": 500}``."""

    changed = Signal()

    def __init__(self) -> None:
        super().__init__()
        self._kept = {"minutes": 5.0, "steps": 500.0}
        self.number, self.unit = _Float(), QComboBox()
        self.number.setStepType(QAbstractSpinBox.StepType.DefaultStepType)
        self.unit.addItems(list(self._kept))
        layout = QHBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.addWidget(self.number, 1)
        layout.addWidget(self.unit)
        _guard(self.number)
        _guard(self.unit)
        self._switch()
        self.unit.currentTextChanged.connect(self._switch)
        self.number.valueChanged.connect(self._keep)

    def get(self) -> dict[str, float]:
        """Minutes or steps, by name."""
        unit = self.unit.currentText()
        return {unit: int(self.number.value()) if unit == "steps" else self.number.value()}

    def set(self, value: dict[str, float]) -> None:
        """Set minutes or steps, as `get` returns them."""
        ((unit, number),) = value.items()
        self._kept[unit] = float(number)
        self.unit.setCurrentText(unit)
        self.number.setValue(self._kept[unit])

    def _switch(self) -> None:
        steps = self.unit.currentText() == "steps"
        self.number.blockSignals(True)
        self.number.setDecimals(0 if steps else 2)
        self.number.setRange(1 if steps else 0.1, 10_000_000)
        self.number.setSingleStep(100 if steps else 1)
        self.number.setValue(self._kept[self.unit.currentText()])
        self.number.blockSignals(False)
        self.changed.emit()

    def _keep(self, number: float) -> None:
        self._kept[self.unit.currentText()] = number
        self.changed.emit()


def tooltip(spec: Field[Any]) -> str:
    """The setting's help, unit, bounds and choices."""
    meta = spec.metadata
    words = {"ge": "from", "gt": "above", "le": "to", "lt": "below"}
    bounds = " ".join(f"{word} {meta[name]:,.10g}" for name, word in words.items() if name in meta)
    unit = f" {meta['unit']}" if meta["unit"] else ""
    lines = [meta["help"]]
    if bounds:
        lines.append(f"{bounds[0].upper()}{bounds[1:]}{unit}.")
    elif unit:
        lines.append(f"In{unit}.")
    return "\n".join(lines)


def control_for(spec: Field[Any]) -> Control:
    """The control for one field of the settings, at its default, with its bounds, unit and tooltip."""
    meta, types = spec.metadata, spec.metadata["types"]
    if meta["choices"]:
        control = _choice(spec)
    elif bool in types:
        box = QCheckBox()
        control = Control(box, box.isChecked, box.setChecked, box.toggled)
    else:
        control = _number(spec, whole=int in types, optional=NoneType in types)
    control.set(spec.default)
    control.widget.setToolTip(tooltip(spec))
    control.widget.setObjectName(spec.name)
    _guard(control.widget)
    return control


def _choice(spec: Field[Any]) -> Control:
    """A combo box; where more than the choices is allowed (slice numbers, class weights) it can be typed into."""
    box, parse = QComboBox(), _PARSERS.get(spec.name, type(spec.default))
    box.addItems([str(choice) for choice in spec.metadata["choices"]])
    box.setEditable(spec.name in _PARSERS)
    box.setInsertPolicy(QComboBox.InsertPolicy.NoInsert)

    def put(value: Any) -> None:
        box.setCurrentText(str(value) if isinstance(value, str | int) else ",".join(f"{v:g}" for v in value))

    return Control(box, lambda: parse(box.currentText().replace(" ", "")), put, box.currentTextChanged)


def _number(spec: Field[Any], *, whole: bool, optional: bool) -> Control:
    """A spin box; the lowest value of an optional number stands for None."""
    meta, step = spec.metadata, 1 if whole else 10.0**-_DECIMALS
    box: Any = QSpinBox() if whole else _Float()
    low = meta["gt"] + step if "gt" in meta else meta.get("ge", -(2**31))
    high = meta["lt"] - step if "lt" in meta else meta.get("le", 2**31 - 1)
    box.setRange(max(low - optional, -(2**31)), min(high, 2**31 - 1))
    if meta["unit"]:
        box.setSuffix(f" {meta['unit']}")
    if optional:
        box.setSpecialValueText("(empty)")

    def get() -> Any:
        return None if optional and box.value() == box.minimum() else box.value()

    return Control(box, get, lambda value: box.setValue(box.minimum() if value is None else value), box.valueChanged)
