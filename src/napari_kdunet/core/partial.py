"""What a killed process left of a Zarr that it was writing, and how far it had come: so that another can go on."""

from __future__ import annotations

import glob
import json
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from napari_kdunet.core.files import write_bytes

__all__ = ["adopt", "finish", "note"]

_NOTE = "kdunet-progress.json"


def adopt(target: Path, temporary: Path, key: str) -> int:
    """Move to `temporary` what a process that is no more left of `target`, if it was the same result.

    Parameters
    ----------
    target, temporary : Path
        As in `files.replacing`.
    key : str
        Names the result; see `note`.

    Returns
    -------
    int
        How many slices are there, from the first; 0 if there is nothing to go on with.
    """
    for left in _left(target):
        try:
            about = json.loads((left / _NOTE).read_text())
        except (OSError, ValueError):
            continue
        if about["key"] == key:
            left.rename(temporary)
            for half in (*temporary.rglob("*.partial"), *temporary.glob(".*.part-*")):  # of zarr, and of `note`
                half.unlink()
            return int(about["slices"])
    return 0


def note(temporary: Path, key: str, slices: int) -> None:
    """Remember in a folder under way that its first `slices` slices of the result called `key` are whole."""
    write_bytes(temporary / _NOTE, json.dumps({"key": key, "slices": slices}).encode())


def finish(temporary: Path) -> None:
    """Remove the note of a folder that is whole."""
    (temporary / _NOTE).unlink(missing_ok=True)


def _left(target: Path) -> Iterator[Path]:
    """Temporaries of `files.replacing` whose process is no more, or had our own number."""
    for path in sorted(target.parent.glob(f".{glob.escape(target.stem)}.part-*{glob.escape(target.suffix)}")):
        with suppress(ValueError):
            process = int(path.name.removesuffix(target.suffix).rpartition("-")[2])
            if process == os.getpid() or not _is_alive(process):
                yield path


def _is_alive(process: int) -> bool:
    if os.name != "posix":  # there asking would end it
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True
