"""Parse input from outside: settings that users type, and JSON files."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from napari_kdunet.core.errors import ConfigError

__all__ = [
    "parse_class_weights",
    "parse_json",
    "parse_slices",
    "parse_volume_weights",
]

_MOST_SLICES = 10**7
_DEEPEST = 64  # levels of nested lists and objects


def parse_slices(text: str) -> str | tuple[int, ...]:
    """Read `slices` as typed: ``auto``, ``all``, or numbers and half-open ranges such as ``3,8,20:30``."""
    if text in ("auto", "all"):
        return text
    found: list[int] = []
    try:
        for part in text.split(","):
            first, colon, last = part.partition(":")
            span = range(int(first), int(last)) if colon else [int(first)]
            if len(span) > _MOST_SLICES:
                raise ConfigError(f"slices is {text!r}: that is more slices than any volume has.")
            found += span
    except ValueError:
        found = []
    if not found:
        raise ConfigError(f"slices is {text!r}: give auto, all, or slice numbers such as 3,8,20:30.")
    return tuple(sorted(set(found)))


def parse_class_weights(text: str) -> str | tuple[float, ...]:
    """Read `class_weights` as typed: ``none``, ``balanced``, or one number a class such as ``1,4``."""
    return _parse_weights("class_weights", text, ("none", "balanced"))


def parse_volume_weights(text: str) -> str | tuple[float, ...]:
    """Read `volume_weights` as typed: ``even``, ``area``, or one number a volume such as ``1,4``."""
    return _parse_weights("volume_weights", text, ("even", "area"))


def _parse_weights(name: str, text: str, words: tuple[str, ...]) -> str | tuple[float, ...]:
    if text in words:
        return text
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise ConfigError(f"{name} is {text!r}: give {', '.join(words)}, or numbers such as 1,4.") from None


def parse_json(text: str | bytes) -> Any:
    """Read JSON from an untrusted source: no repeated names, whole numbers of 20 characters, 64 levels deep at most.

    Raises
    ------
    ValueError
        If the text is not such JSON.
    """
    try:
        value = json.loads(text, object_pairs_hook=_object, parse_int=_int)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    level = [value]
    for _ in range(_DEEPEST):
        level = [x for each in level if isinstance(each, dict | list) for x in _values(each)]
    if level:
        raise ValueError("it is nested too deeply")
    return value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a name is repeated in it")
    return found


def _int(text: str) -> int:
    if len(text) > 20:
        raise ValueError("a number in it is too large")
    return int(text)


def _values(each: dict[str, Any] | list[Any]) -> Iterable[Any]:
    return each.values() if isinstance(each, dict) else each
