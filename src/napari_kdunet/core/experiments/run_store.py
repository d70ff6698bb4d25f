"""What is done once: a training that goes on from where it was stopped, and the record of what was measured.

A sweep and a study are many trainings in one folder. Called again with the same folder they do what is missing.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

from napari_kdunet.core.errors import ConfigError, ModelError
from napari_kdunet.core.files import write_bytes
from napari_kdunet.core.training.events import Done, Event, Started
from napari_kdunet.core.training.resume import other_settings, resume_path
from napari_kdunet.core.volumes.volume import Volume

__all__ = ["fingerprint", "forget_partial", "iter_once", "recall", "remember"]


def iter_once(path: Path, about: dict[str, Any], train: Callable[[Path, bool], Iterator[Event]]) -> Iterator[Event]:
    """Train a model to `path`, unless it is there.

    The training writes ``NAME.partial.safetensors`` and its state to resume from, so that a model under the final name
    is one whose budget is used up. It is kept even where it collapsed. Once it has started, there is a record of what
    it is of: stopped, it is not gone on with as another.

    Parameters
    ----------
    path : Path
        The model's final name.
    about : dict
        What it is of, as in `recall`.
    train : callable
        Gives the events of the training, from where to write and whether to resume.

    Yields
    ------
    Event
        Those of the training; nothing where there is nothing to do.
    """
    if path.exists():
        return
    partial = _partial(path)
    with closing(train(partial, resume_path(partial).exists())) as events:  # type: ignore[type-var]
        for event in events:
            if isinstance(event, Started):
                remember(path, about, None)
            elif isinstance(event, Done):
                event = replace(event, path=event.model.save(path))
                forget_partial(path)
            yield event


def _partial(path: Path) -> Path:
    return path.with_suffix(".partial.safetensors")


def forget_partial(path: Path) -> None:
    """Remove what a training to `path` keeps until it is done."""
    for leftover in (_partial(path), resume_path(_partial(path))):
        leftover.unlink(missing_ok=True)


def remember(path: Path, about: dict[str, Any], found: dict[str, Any] | None) -> None:
    """Write what was measured of the model at `path`, None if nothing yet, to ``NAME.json``; JSON values.

    Parameters
    ----------
    path : Path
        The model's final name.
    about : dict
        What it is of: settings of the training under ``settings``, and whatever else must be the same.
    found : dict or None
        What was measured.
    """
    write_bytes(path.with_suffix(".json"), json.dumps({"about": about, "found": found}, indent=1).encode())


def recall(path: Path, about: dict[str, Any]) -> dict[str, Any] | None:
    """What was measured of the model at `path`; None if nothing was.

    Raises
    ------
    ConfigError
        If the record is of something else than `about`: other settings, other volumes.
    ModelError
        If it is not a record.
    """
    record = path.with_suffix(".json")
    if not record.exists():
        return None
    try:
        written = json.loads(record.read_text())
        before, found = written["about"], written["found"]
    except (ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{record} is damaged: remove it to measure again.") from error
    now = json.loads(json.dumps(about))
    other = other_settings(_flat(before), _flat(now))
    if other:
        raise ConfigError(f"{record} is of other settings: {other}. Give the same, or choose another folder.")
    return None if found is None else dict(found)


def _flat(about: dict[str, Any]) -> dict[str, Any]:
    """The settings one level down stand among the others."""
    settings: dict[str, Any] = about.get("settings", {})
    return {name: value for name, value in about.items() if name != "settings"} | settings


def fingerprint(*volumes: Volume) -> str:
    """What tells volumes from others at the cost of one slice each: shapes, and a checksum of the middle slices."""
    checks = (zlib.crc32(volume.read(volume.shape[0] // 2).tobytes()) for volume in volumes)
    return " ".join(f"{'x'.join(map(str, v.shape))}:{check:08x}" for v, check in zip(volumes, checks, strict=True))
