"""Settings as fields of a dataclass, declared with unit, bounds and one sentence of help, and checked against them.

Forms and command lines are built from the fields' metadata, so that they cannot drift from what the core does.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterable
from dataclasses import Field, field, fields
from types import NoneType
from typing import Any

from napari_kdunet.core.errors import ConfigError

__all__ = ["check_field", "check_fields", "setting"]


def setting(
    default: Any,
    help: str,
    *,
    unit: str = "",
    ge: float | None = None,
    gt: float | None = None,
    le: float | None = None,
    lt: float | None = None,
    choices: tuple[str, ...] | tuple[int, ...] = (),
    types: tuple[type, ...] = (),
    advanced: bool = False,
) -> Any:
    """Declare one field: default, help, unit, bounds (greater/less or equal), choices and allowed types.

    If no types are given, the type of the default is the only one; an int is allowed wherever a float is.
    """
    bounds = {"ge": ge, "gt": gt, "le": le, "lt": lt}
    return field(
        default=default,
        metadata={
            "help": help,
            "unit": unit,
            "choices": choices,
            "types": types or (type(default),),
            "advanced": advanced,
            **{name: bound for name, bound in bounds.items() if bound is not None},
        },
    )


_BOUNDS: dict[str, tuple[str, Callable[[Any, Any], bool]]] = {
    "ge": ("at least", operator.ge),
    "gt": ("greater than", operator.gt),
    "le": ("at most", operator.le),
    "lt": ("less than", operator.lt),
}


def check_fields(settings: Any) -> None:
    """Check each field of a frozen dataclass of settings.

    NumPy's numbers become Python's, and lists, ranges and arrays become tuples.

    Raises
    ------
    ConfigError
        If a field does not allow its value.
    """
    for spec in fields(settings):
        value = getattr(settings, spec.name)
        value = value.tolist() if hasattr(value, "tolist") else value
        if tuple in spec.metadata["types"] and isinstance(value, Iterable) and not isinstance(value, str):
            value = tuple(value)
        object.__setattr__(settings, spec.name, value)
        check_field(spec, value)


def check_field(spec: Field[Any], value: Any) -> None:
    """Raise `ConfigError` if the field `spec` does not allow `value`."""
    meta, types = spec.metadata, spec.metadata["types"]
    if value is None and NoneType in types:
        return
    if meta["choices"]:
        several = isinstance(value, tuple) and value and tuple in types
        if (value not in meta["choices"] or isinstance(value, bool)) and not several:
            raise ConfigError(f"{spec.name} is {value!r}: choose one of {', '.join(map(str, meta['choices']))}.")
        return
    if bool in types:
        if not isinstance(value, bool):
            raise ConfigError(f"{spec.name} is {value!r}: give True or False.")
        return
    bounds = {name: meta[name] for name in _BOUNDS if name in meta}
    if not bounds:
        return
    if isinstance(value, float) and not math.isfinite(value):
        raise ConfigError(f"{spec.name} is {value}: give a number.")
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ConfigError(f"{spec.name} is {value!r}: give a number.")
    if float not in types and not isinstance(value, int):
        raise ConfigError(f"{spec.name} is {value!r}: give a whole number.")
    for name, bound in bounds.items():
        words, holds = _BOUNDS[name]
        if not holds(value, bound):
            raise ConfigError(f"{spec.name} is {value}: it must be {words} {bound} {meta['unit']}".rstrip() + ".")
