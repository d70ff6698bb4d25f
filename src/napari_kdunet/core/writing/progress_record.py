"""A record, kept in an unfinished Zarr, of the slices that are complete, so that a killed writing can be resumed."""

from __future__ import annotations

import json
import math
import os
from bisect import bisect_right
from itertools import chain
from pathlib import Path
from typing import Any

from napari_kdunet.core.files import read_json, remove, temporaries, write_bytes

__all__ = ["ProgressRecord"]

_RECORD_NAME = "kdunet-progress.json"
_MOST_BYTES = 2**24


class ProgressRecord:
    """Record of the complete slices of an unfinished Zarr, kept in its folder, or only in memory if `key` is None.

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
        """Move an unfinished Zarr with this `key`, left by a dead process, to `temporary`; return its record.

        If there is none, return a new record. Whatever else dead processes left of `target` is removed, except
        unfinished Zarrs of other keys. The caller holds the `TargetLock`; `target` and `temporary` are those of
        `files.replacing`.
        """
        best = cls(temporary, key)
        for left, process in temporaries(Path(os.path.realpath(target))):
            if left == temporary or (process is not None and process.is_alive) or left.is_symlink():
                continue
            record = None if _has_links(left) else _load(left)
            if record is None:
                remove(left)  # a file, or a Zarr without complete slices
            elif record.key is not None and record.key == key:
                best, worse = (record, best) if len(record) > len(best) else (best, record)
                if worse.folder != temporary:
                    remove(worse.folder)
        if best.folder != temporary:
            best.folder.rename(temporary)
            best.folder = temporary
        return best

    def __len__(self) -> int:
        return sum(stop - start for start, stop in self.runs)

    def missing(self, depth: int) -> list[int]:
        """Return the indices of the slices, of `depth` in all, that are not complete."""
        if self.runs and self.runs[-1][1] > depth:  # the record is of another volume, or damaged
            self.runs = []
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
            record = json.dumps({"key": self.key, "slices": runs}).encode()
            # not synced, as the chunks that it lists are not: waiting for a disk can take longer than a slice
            write_bytes(self.folder / _RECORD_NAME, record, sync=False)

    def keep(self) -> None:
        """Rename the unfinished Zarr so that `files.replacing` does not remove it and a later writing can resume it."""
        if self.key is not None and self.runs:
            stem, _, owner = self.folder.stem.partition(".part-")
            self.folder.rename(self.folder.with_name(f"{stem}.part-kept-{owner}{self.folder.suffix}"))

    def finish(self) -> None:
        """Remove the record and the temporary files of killed processes from a complete Zarr."""
        temporaries = (*self.folder.glob(".*.part-*"), *self.folder.rglob("*.partial"))  # of records, and of chunks
        for left in (self.folder / _RECORD_NAME, *temporaries):
            left.unlink(missing_ok=True)


def _load(folder: Path) -> ProgressRecord | None:
    """Return the record of an unfinished Zarr; None if there is none, or it is not one that `add` has written."""
    try:
        match read_json(folder / _RECORD_NAME, _MOST_BYTES):
            case {"key": str(key), "slices": [*runs]} if all(_is_run(run) for run in runs):
                ends = list(chain.from_iterable(runs))
                return ProgressRecord(folder, key, runs) if ends == sorted(set(ends)) else None
    except ValueError:
        pass
    return None


def _has_links(folder: Path) -> bool:
    """Whether there are links in a folder, through which chunks would be written elsewhere; we make none."""
    return any(Path(at, name).is_symlink() for at, folders, files in os.walk(folder) for name in (*folders, *files))


def _is_run(run: Any) -> bool:
    return isinstance(run, list) and len(run) == 2 and all(type(end) is int and end >= 0 for end in run)
