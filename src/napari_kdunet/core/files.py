"""Files and folders appear under their name whole or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from napari_kdunet.core.errors import OutputError

__all__ = ["is_zarr_name", "make_folder", "replacing", "write_bytes"]


def is_zarr_name(path: Path) -> bool:
    """Whether what is written under this name is a Zarr."""
    return path.suffix.lower() == ".zarr"


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a temporary name beside `path` to write a file or folder at; at the end it takes the place of `path`.

    If the block fails or is given up, the temporary is removed and what was at `path` stays as it was. A folder takes
    the place of a folder only, and a file that of a file.

    Parameters
    ----------
    path : Path
        The final name.

    Yields
    ------
    Path
        The temporary name, hidden and with the ending of `path`, for libraries that go by it.

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
    """Make a folder, and those above it, where there is none; `OutputError` where that cannot be."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"cannot make the folder {path}: {error.strerror}. Choose another.") from error


def write_bytes(path: Path, data: bytes) -> None:
    """Write `data` to `path`, whole or not at all; errors as in `replacing`."""
    with replacing(path) as temporary, temporary.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _swap(new: Path, path: Path) -> None:
    """Put the folder `new` in the place of the folder `path`, which no system does in one step."""
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
    """Remove a file, a folder or nothing; what cannot be removed stays, and is no error."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink(missing_ok=True)
