"""Write files and folders atomically: they appear under their final name complete, or not at all. Read JSON files."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from napari_kdunet.core.errors import OutputError
from napari_kdunet.core.parsing import parse_json

__all__ = ["is_zarr_name", "make_folder", "read_json", "replacing", "write_bytes"]


def is_zarr_name(path: Path) -> bool:
    """Whether an output of this name is a Zarr: by its ending."""
    return path.suffix.lower() == ".zarr"


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Write a file or folder under a temporary name beside `path`; at the end of the block it replaces `path`.

    If the block raises, the temporary is removed and what was at `path` stays as it was. A folder replaces a folder
    only, and a file a file.

    Parameters
    ----------
    path : Path
        The final name.

    Yields
    ------
    Path
        The temporary name, hidden and with the suffix of `path`, from which libraries choose a format.

    Raises
    ------
    OutputError
        For any `OSError` in the block (the disk is full, the folder is missing or may not be written to, ...): read
        input outside of it, or turn its errors into others. All other exceptions pass as they are.
    """
    temporary = path.with_name(f".{path.stem}.part-{os.getpid()}{path.suffix}")
    try:
        yield temporary
        if temporary.is_dir() and path.is_dir():
            _swap(temporary, path)
        else:
            temporary.replace(path)
    except OSError as error:
        reason = " ".join((error.strerror or str(error)).split())
        raise OutputError(f"cannot write {path}: {reason}; make room or choose another folder") from error
    finally:
        _remove(temporary)


def make_folder(path: Path) -> None:
    """Make a folder and its parents if it does not exist; raise `OutputError` if that fails."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"cannot make the folder {path}: {error.strerror}. Choose another.") from error


def write_bytes(path: Path, *parts: bytes | memoryview) -> None:
    """Write `parts`, one after the other, to `path` atomically; errors as in `replacing`."""
    with replacing(path) as temporary, temporary.open("wb") as file:
        file.writelines(parts)
        file.flush()
        os.fsync(file.fileno())


def read_json(path: Path, most: int) -> Any:
    """Read a JSON file of at most `most` bytes, as `parse_json` does.

    Raises
    ------
    ValueError
        If it is anything else, or cannot be read.
    """
    try:
        if not path.is_file() or path.stat().st_size > most:
            raise ValueError("it is not a file, or too long")
        return parse_json(path.read_bytes())
    except OSError as error:
        raise ValueError(error.strerror or "it cannot be read") from error


def _swap(new: Path, path: Path) -> None:
    """Replace the folder `path` by the folder `new`, which takes two renames."""
    old = path.with_name(f".{path.name}.old-{os.getpid()}")
    try:
        path.rename(old)
        new.rename(path)
    except BaseException:
        if not path.exists():
            old.rename(path)
        raise
    _remove(old)


def _remove(path: Path) -> None:
    """Remove a file or folder if it exists; one that cannot be removed stays, without an error."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink(missing_ok=True)
