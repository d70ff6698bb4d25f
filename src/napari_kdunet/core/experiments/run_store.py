"""The store of runs: each is trained once, resumed where it was stopped, and has a record of its measurements.

A sweep and a study are many trainings in one folder. Called again with the same folder, they do only what is missing.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import MISSING, fields, replace
from pathlib import Path
from typing import Any, get_type_hints

from napari_kdunet.core.errors import ConfigError, ModelError, OutputError
from napari_kdunet.core.files import read_json, write_bytes
from napari_kdunet.core.training.checkpoint import other_settings, resume_path
from napari_kdunet.core.training.events import Done, Event, Started

__all__ = ["check_own", "forget_partial", "iter_once", "load_record", "save_record"]

_MOST_BYTES = 2**24  # of a record


def iter_once(path: Path, metadata: dict[str, Any], train: Callable[[Path, bool], Iterator[Event]]) -> Iterator[Event]:
    """Train a model to `path`, unless there is one already.

    The training writes ``NAME.partial.safetensors`` and its resume state, so that a model under the final name is one
    whose training is done. The model is kept even if it collapsed. A record of the metadata is written at the start, so
    that a stopped training cannot be resumed with other settings.

    Parameters
    ----------
    path : Path
        The model's final name.
    metadata : dict
        As in `save_record`.
    train : callable
        Called with the path to write to and whether to resume; returns the events of the training.

    Yields
    ------
    Event
        The events of the training; none if the model is there.

    Raises
    ------
    OutputError
        If the model is there but has no record.
    """
    check_own(path)
    if path.exists():
        return
    partial = _partial(path)
    with closing(train(partial, resume_path(partial).exists())) as events:  # type: ignore[type-var]
        for event in events:
            if isinstance(event, Started):
                save_record(path, metadata, None)
            elif isinstance(event, Done):
                event = replace(event, path=event.model.save(path))
                forget_partial(path)
            yield event


def check_own(path: Path) -> None:
    """Check that a model at `path` was made by a run of this folder, so that a user's own is neither used nor lost.

    Raises
    ------
    OutputError
        If there is a model without the record of a run.
    """
    if path.exists() and not path.with_suffix(".json").exists():
        raise OutputError(
            f"{path} exists already, without the record of a run ({path.stem}.json): move it away, or choose another "
            "folder."
        )


def _partial(path: Path) -> Path:
    return path.with_suffix(".partial.safetensors")


def forget_partial(path: Path) -> None:
    """Remove the files that a training to `path` keeps until it is done."""
    for leftover in (_partial(path), resume_path(_partial(path))):
        leftover.unlink(missing_ok=True)


def save_record(path: Path, metadata: dict[str, Any], result: dict[str, Any] | None) -> None:
    """Write the record of the model at `path` to ``NAME.json``.

    Parameters
    ----------
    path : Path
        The model's final name.
    metadata : dict
        What identifies the run, as JSON values: settings of the training under ``settings``, and whatever else must be
        the same.
    result : dict or None
        Measurements, as JSON values; None if there are none yet.
    """
    record = {"about": metadata, "found": result}  # existing files have these names
    write_bytes(path.with_suffix(".json"), json.dumps(record, indent=1).encode())


def load_record(
    path: Path, metadata: dict[str, Any], kind: type[Any], without: tuple[str, ...] = ()
) -> dict[str, Any] | None:
    """Return the measurements of the model at `path`; None if there are none.

    Parameters
    ----------
    path, metadata
        As in `save_record`.
    kind : dataclass
        Class whose fields the measurements must be; those with a default may be missing, as in earlier records.
    without : tuple of str
        Fields of `kind` that are not measurements.

    Raises
    ------
    ConfigError
        If the record has other `metadata`: other settings or other volumes.
    ModelError
        If the file is not a record.
    """
    record = path.with_suffix(".json")
    if not record.exists():
        return None
    damaged = ModelError(f"{record} is damaged: remove it and {path.name}, and the run is done again.")
    try:
        written = read_json(record, _MOST_BYTES)
    except ValueError as error:
        raise damaged from error
    match written:
        case {"about": {**before}, "found": (None | dict()) as result} if isinstance(before.get("settings", {}), dict):
            pass
        case _:
            raise damaged
    other = other_settings(_flat(before), _flat(json.loads(json.dumps(metadata))))
    if other:
        raise ConfigError(f"{record} was made with other settings: {other}. Give the same, or choose another folder.")
    types = {name: hint for name, hint in get_type_hints(kind).items() if name not in without}
    needed = {field.name for field in fields(kind) if field.default is MISSING} - set(without)
    if result is not None and not (
        needed <= result.keys() <= types.keys() and all(_is(value, types[name]) for name, value in result.items())
    ):
        raise damaged
    return result


def _is(value: Any, hint: Any) -> bool:
    """Return whether a JSON value is of the type `hint`; a float may be written as a whole number."""
    return isinstance(value, hint) or (type(value) is int and abs(value) < 2**53 and isinstance(float(value), hint))


def _flat(metadata: dict[Any, Any]) -> dict[str, Any]:
    """Return the metadata with the settings moved one level up."""
    settings: dict[str, Any] = metadata.get("settings", {})
    return {name: value for name, value in metadata.items() if name != "settings"} | settings
