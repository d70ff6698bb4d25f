"""What a killed process left of a Zarr that it was writing, and which slices are whole: so that another can go on."""

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

__all__ = ["Record"]

_NOTE = "kdunet-progress.json"


class Record:
    """Which slices of a Zarr under way are whole: noted in its folder, or in memory only where `key` is None.

    Parameters
    ----------
    folder : Path
        What is being written.
    key : str or None
        Names the result.
    runs : list of list of int
        Starts and stops of the runs of slices that are whole, in order.
    """

    def __init__(self, folder: Path, key: str | None, runs: list[list[int]] | None = None) -> None:
        self.folder, self.key, self.runs = folder, key, runs or []

    @classmethod
    def adopt(cls, target: Path, temporary: Path, key: str | None) -> Record:
        """Move to `temporary` what a process that is no more left of the result `key` at `target`, if there is any.

        `target` and `temporary` are those of `files.replacing`.
        """
        for left in _left(target) if key is not None else ():
            try:
                about = json.loads((left / _NOTE).read_text())
            except (OSError, ValueError):
                continue
            if about["key"] == key:
                left.rename(temporary)
                return cls(temporary, key, about["slices"])
        return cls(temporary, key)

    def __len__(self) -> int:
        return sum(stop - start for start, stop in self.runs)

    def missing(self, depth: int) -> list[int]:
        """The slices of a volume of so many that are not whole."""
        ends = [0, *chain.from_iterable(self.runs), depth]
        return [z for start, stop in zip(ends[::2], ends[1::2], strict=True) for z in range(start, stop)]

    def add(self, z: int) -> None:
        """Remember that slice `z` is whole."""
        runs, i = self.runs, bisect_right(self.runs, [z, math.inf])
        if i and runs[i - 1][1] == z:
            i -= 1
            runs[i][1] += 1
        else:
            runs.insert(i, [z, z + 1])
        if i + 1 < len(runs) and runs[i][1] == runs[i + 1][0]:
            runs[i][1] = runs.pop(i + 1)[1]
        if self.key is not None:
            write_bytes(self.folder / _NOTE, json.dumps({"key": self.key, "slices": runs}).encode())

    def leave(self) -> None:
        """Keep what is there, so that the same result can be gone on with, though `files.replacing` gives it up."""
        if self.key is not None and self.runs:
            stem, _, process = self.folder.stem.rpartition("-")
            self.folder.rename(self.folder.with_name(f"{stem}-left-{process}{self.folder.suffix}"))

    def finish(self) -> None:
        """Remove from a folder that is whole the note, and what processes that were killed left half written."""
        halves = (*self.folder.glob(".*.part-*"), *self.folder.rglob("*.partial"))  # of `write_bytes`, and of zarr
        for left in (self.folder / _NOTE, *halves):
            left.unlink(missing_ok=True)


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
