"""Checks of an output before any work: that it can be written, and that it replaces nothing of the user's."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

from napari_kdunet.core.errors import OutputError
from napari_kdunet.core.files import check_name, is_zarr_name
from napari_kdunet.core.reading.formats.zarr_image import is_zarr
from napari_kdunet.core.reading.readers import parts_of
from napari_kdunet.core.writing.formats import WRITERS
from napari_kdunet.core.writing.ome_zarr import find_foreign

__all__ = ["check_apart", "check_target"]

_NAME_MARGIN = 64  # characters by which a temporary name is longer
_PATH_MARGIN = 160  # characters by which a path in a Zarr with such a name is longer


def check_target(
    path: str | Path,
    suffixes: Iterable[str] = tuple(WRITERS),
    *,
    inputs: Iterable[str | Path] = (),
    overwrite: bool = False,
) -> Path:
    """Check, before hours of work, that a result can be written.

    Parameters
    ----------
    path : str or Path
        Path of the result.
    suffixes : iterable of str
        The endings to accept, in lower case, with the dot.
    inputs : iterable of str or Path
        What the result is made from: it may not replace, contain or lie in any of them.
    overwrite : bool
        Whether a file, or a Zarr of ours, may be replaced.

    Returns
    -------
    Path
        The same path.

    Raises
    ------
    OutputError
        The ending is unknown, the name is too long, the folder is missing or cannot be written to, or something is
        there that must not be replaced.
    """
    path, suffixes = Path(path), tuple(suffixes)
    check_name(path)
    if path.suffix.lower() not in suffixes:
        raise OutputError(f"cannot write {path}: its name must end in {' or '.join(suffixes)}")
    _check_length(path)
    final = Path(os.path.realpath(path))
    if not _is_folder(final.parent):
        raise OutputError(f"cannot write {path}: there is no folder for it, make that first")
    if not os.access(final.parent, os.W_OK | os.X_OK):
        raise OutputError(f"cannot write {path}: no permission to write in {final.parent}, choose another folder")
    check_apart(path, inputs)
    _check_existing(path, overwrite)
    return path


def check_apart(path: Path, inputs: Iterable[str | Path], *, adds: bool = False) -> None:
    """Check that an output neither is, nor lies in, nor contains an input, links resolved.

    Parameters
    ----------
    path : Path
        The output, a file or a folder.
    inputs : iterable of str or Path
        Files and folders; those that do not exist, such as the name of a bundled model, are left out.
    adds : bool
        Whether the output is a folder to which files are added: then it may contain inputs.

    Raises
    ------
    OutputError
        The output is, lies in or contains an input, or an input takes pixels from it.
    """
    output = _identity(path)
    around_output = _around(path) - {None}
    for given in inputs:
        source = _existing_part(given)
        if source is None:
            continue
        if any(_identity(part) in around_output or output in _around(part) for part in parts_of(source)) and output:
            raise OutputError(f"cannot write {path}: {given} takes pixels from it; choose another name")
        if _identity(source) in around_output or (output and output in _inside(source)):
            relation = "is the input" if _identity(source) == output else "is in the input"
            raise OutputError(f"cannot write {path}: it {relation} {given}; choose another name")
        if not adds and output and output in _around(source):
            raise OutputError(f"cannot write {path}: it contains the input {given}; choose another name")


def _existing_part(given: str | Path) -> Path | None:
    """Return the file or folder that an input is in, for ``file.h5:/dataset`` the file; None if there is none."""
    for name in (str(given), str(given).partition(":/")[0]):
        with suppress(OSError, ValueError):
            if Path(name).exists():
                return Path(name)
    return None


def _identity(path: Path) -> tuple[int, int] | None:
    """Return device and inode, which two names of one file have in common; None if there is nothing."""
    try:
        status = path.stat()
    except (OSError, ValueError):
        return None
    return status.st_dev, status.st_ino


def _with_parents(path: Path) -> Iterator[Path]:
    final = Path(os.path.realpath(path))
    yield from (final, *final.parents)


def _around(path: Path) -> set[tuple[int, int] | None]:
    """Return the identities of a path and of the folders that it is in, links resolved."""
    return {_identity(each) for each in _with_parents(path)}


def _inside(folder: Path) -> set[tuple[int, int] | None]:
    """Return the identities of the entries of a folder of slices, which may be links to files elsewhere."""
    if not folder.is_dir() or is_zarr(folder):
        return set()
    with suppress(OSError):
        return {_identity(entry) for entry in folder.iterdir()} - {None}
    return set()


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except OSError:  # a name on the way is too long
        return False


def _check_length(path: Path) -> None:
    final = Path(os.path.realpath(path))
    name_max, path_max = 255, 4096
    with suppress(OSError, ValueError, AttributeError):
        name_max, path_max = (os.pathconf(final.parent, limit) for limit in ("PC_NAME_MAX", "PC_PATH_MAX"))
    if len(os.fsencode(final.name)) > name_max - _NAME_MARGIN:
        raise OutputError(f"cannot write {path}: its name is longer than {name_max - _NAME_MARGIN} bytes, shorten it")
    if len(os.fsencode(final)) > path_max - _PATH_MARGIN:
        raise OutputError(f"cannot write {path}: the path is longer than {path_max - _PATH_MARGIN} bytes, shorten it")


def _check_existing(path: Path, overwrite: bool) -> None:
    if not os.path.lexists(path) or (path.is_symlink() and not path.exists()):
        return
    if not (path.is_file() or path.is_dir()):
        raise OutputError(f"cannot write {path}: there is a device or a pipe of this name, choose another name")
    if not is_zarr_name(path) and path.is_dir():
        raise OutputError(f"cannot write {path}: there is a folder of this name, choose another name")
    if is_zarr_name(path):
        if not is_zarr(path):
            raise OutputError(f"cannot write {path}: what is there is not a Zarr, choose another name")
        foreign = find_foreign(path)
        if foreign is not None:
            what = "what is in it" if foreign == "." else foreign
            raise OutputError(f"cannot write {path}: napari-kdunet has not written {what} there, choose another name")
    if not overwrite:
        raise OutputError(
            f"cannot write {path}: it exists; to replace it give --overwrite (in Python overwrite=True), "
            "or choose another name"
        )
