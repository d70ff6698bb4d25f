"""A record, kept in an unfinished Zarr, of the slices that are complete, so that a killed writing can be resumed."""

from __future__ import annotations

import glob
import json
import math
import os
from bisect import bisect_right
from collections.abc import Iterator
from contextlib import suppress
from itertools import chain
from pathlib import Path

from napari_kdunet.core.files import write_bytes

__all__ = ["ProgressRecord"]

_RECORD_NAME = "kdunet-progress.json"


class ProgressRecord:
    """Which slices of an unfinished Zarr are complete: kept in its folder, or only in memory where `key` is None.

    Parameters
    ----------
    folder : Path
        The unfinished Zarr.
    key : str or None
        Identifies the result: only a writing with the same key is resumed.
    runs : list of list of int
        Starts and stops of the runs of complete slices, ascending.
    """

    def __init__(self, folder: Path, key: str | None, runs: list[list[int]] | None = None) -> None:
        self.folder, self.key, self.runs = folder, key, runs or []

    @classmethod
    def adopt(cls, target: Path, temporary: Path, key: str | None) -> ProgressRecord:
        """Move the unfinished Zarr that a dead process left of the result `key` to `temporary`, if there is one.

        `target` and `temporary` are those of `files.replacing`.
        """
        for left in _unfinished(target) if key is not None else ():
            try:
                record = json.loads((left / _RECORD_NAME).read_text())
            except (OSError, ValueError):
                continue
            if record["key"] == key:
                left.rename(temporary)
                return cls(temporary, key, record["slices"])
        return cls(temporary, key)

    def __len__(self) -> int:
        return sum(stop - start for start, stop in self.runs)

    def missing(self, depth: int) -> list[int]:
        """Indices of the slices, of `depth` in all, that are not complete."""
        ends = [0, *chain.from_iterable(self.runs), depth]
        return [z for start, stop in zip(ends[::2], ends[1::2], strict=True) for z in range(start, stop)]

    def add(self, z: int) -> None:
        """Record that slice `z` is complete."""
        runs, i = self.runs, bisect_right(self.runs, [z, math.inf])
        if i and runs[i - 1][1] == z:
            i -= 1
            runs[i][1] += 1
        else:
            runs.insert(i, [z, z + 1])
        if i + 1 < len(runs) and runs[i][1] == runs[i + 1][0]:
            runs[i][1] = runs.pop(i + 1)[1]
        if self.key is not None:
            write_bytes(self.folder / _RECORD_NAME, json.dumps({"key": self.key, "slices": runs}).encode())

    def keep(self) -> None:
        """Rename the unfinished Zarr so that `files.replacing` does not remove it and a later writing can resume it."""
        if self.key is not None and self.runs:
            stem, _, process = self.folder.stem.rpartition("-")
            self.folder.rename(self.folder.with_name(f"{stem}-left-{process}{self.folder.suffix}"))

    def finish(self) -> None:
        """Remove the record and the temporary files of killed processes from a complete Zarr."""
        temporaries = (*self.folder.glob(".*.part-*"), *self.folder.rglob("*.partial"))  # of `write_bytes`, and of zarr
        for left in (self.folder / _RECORD_NAME, *temporaries):
            left.unlink(missing_ok=True)


def _unfinished(target: Path) -> Iterator[Path]:
    """Temporaries of `files.replacing` whose process is dead, or had the PID of this one."""
    for path in sorted(target.parent.glob(f".{glob.escape(target.stem)}.part-*{glob.escape(target.suffix)}")):
        with suppress(ValueError):
            process = int(path.name.removesuffix(target.suffix).rpartition("-")[2])
            if process == os.getpid() or not _is_alive(process):
                yield path


def _is_alive(process: int) -> bool:
    if os.name != "posix":  # on Windows signal 0 ends the process
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True
