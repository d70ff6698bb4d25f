"""Write files and folders atomically: they appear under their final name complete, or not at all.

Until then they have a temporary name that identifies the process writing them. A process that is killed leaves its
temporaries behind; the next one that writes the same name removes them. JSON files are read with limits.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import socket
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

from napari_kdunet.core.errors import OutputError
from napari_kdunet.core.parsing import parse_json

__all__ = [
    "Process",
    "check_name",
    "is_file",
    "is_zarr_name",
    "make_folder",
    "newest",
    "read_json",
    "remove",
    "replacing",
    "scratch_folder",
    "temporaries",
    "write_bytes",
]

_MAX_AGE = 24 * 3600.0  # s without a write to a temporary, after which its process on another machine counts as dead


def is_file(path: Path) -> bool:
    """Return whether there is a regular file of this name; no name, however odd or long, is an error."""
    try:
        return path.is_file()
    except (OSError, ValueError):  # the name is too long, or there is no permission to look
        return False


def newest(path: Path) -> int:
    """Return when a file, or the last one changed in a folder, was changed, in ns since 1970; 0 if there is none."""
    date = 0
    for at in (path, *(Path(folder, name) for folder, _, names in os.walk(path) for name in names)):
        with suppress(OSError, ValueError):
            date = max(date, at.stat().st_mtime_ns)
    return date


def is_zarr_name(path: Path) -> bool:
    """Return whether an output of this name is a Zarr, which its ending says."""
    return path.suffix.lower() == ".zarr"


@dataclass(frozen=True)
class Process:
    """The identity of a process, unlike that of any other, past or present, on any machine and in any container.

    Attributes
    ----------
    host : str
        Name of its machine or container, for messages.
    pid : int
        Process id; processes on other machines, in other containers or at other times may have the same.
    start : int
        When the process started, in clock ticks since the boot; 0 where the system does not say.
    machine : str
        Digest of the host, its boot and its PID namespace: two processes that agree on it can see each other's PIDs.
    """

    host: str
    pid: int
    start: int
    machine: str

    @classmethod
    def current(cls) -> Process:
        """Return the calling process."""
        return _identify(os.getpid())  # cached by PID, because a fork is another process

    def to_dict(self) -> dict[str, Any]:
        """Return the attributes as JSON values."""
        return asdict(self)

    @property
    def is_alive(self) -> bool | None:
        """Whether the process still runs; None if that cannot be seen from here."""
        if self.machine != Process.current().machine or os.name != "posix":  # on Windows signal 0 ends a process
            return None
        try:
            os.kill(self.pid, 0)
        except (ProcessLookupError, OverflowError):
            return False
        except PermissionError:
            pass
        start = _start_time(self.pid)
        return start == self.start if start and self.start else None


@cache
def _identify(pid: int) -> Process:
    host = socket.gethostname()
    boot = namespace = ""
    with suppress(OSError):  # not Linux
        boot = Path("/proc/sys/kernel/random/boot_id").read_text()
        namespace = str(Path("/proc/self/ns/pid").readlink())
    machine = hashlib.sha256(repr((host, boot, namespace)).encode()).hexdigest()[:8]
    return Process(host, pid, _start_time(pid), machine)


def _start_time(pid: int) -> int:
    """Return field 22 of Linux' ``/proc/PID/stat``, counted after the name, which may hold anything; 0 if unknown."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()[19])
    except (OSError, ValueError, IndexError):
        return 0


def check_name(path: Path) -> None:
    """Check that a path can be the name of a file here: it has no null character and can be encoded.

    Raises
    ------
    OutputError
        If it cannot.
    """
    try:
        possible = b"\0" not in os.fsencode(path)
    except UnicodeEncodeError:
        possible = False
    if not possible:
        raise OutputError(f"cannot write {path}: there is a character in its name that no file can have")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Write a file or folder under a temporary name beside `path`; at the end of the block it replaces `path`.

    If the block raises, the temporary is removed and what was at `path` stays as it was. A folder replaces a folder
    only, and a file a file. A symbolic link is followed. Temporaries that dead processes left of `path` are removed.

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
    check_name(path)
    temporary: Path | None = None
    try:
        final = Path(os.path.realpath(path))
        _remove_leftovers(final)
        temporary = _temporary_name(final)
        yield temporary
        if temporary.is_dir() and final.is_dir():
            _swap(temporary, final)
        else:
            temporary.replace(final)
    except OSError as error:
        reason = " ".join((error.strerror or str(error)).split())
        raise OutputError(f"cannot write {path}: {reason}; make room or choose another folder") from error
    finally:
        if temporary is not None:
            remove(temporary)


def scratch_folder(within: Path) -> Path:
    """Make a hidden folder for intermediate results, and remove those that dead processes left there.

    Raises
    ------
    OSError
        If it cannot be made.
    """
    name = within / "kdunet-scratch"
    for left, process in temporaries(name):
        if process and _is_dead(process, left):
            remove(left)
    folder = _temporary_name(name)
    folder.mkdir(mode=0o700)
    return folder


def _temporary_name(path: Path) -> Path:
    process = Process.current()
    owner = f"{process.pid}-{process.start:x}-{process.machine}-{uuid.uuid4().hex[:6]}"
    return path.with_name(f".{path.stem}.part-{owner}{path.suffix}")


def temporaries(path: Path) -> Iterator[tuple[Path, Process | None]]:
    """Yield each temporary of `path` with the process that writes or wrote it, or with None if it is to be kept."""
    stem, suffix = re.escape(path.stem), re.escape(path.suffix)
    name = re.compile(rf"\.{stem}\.part-(kept-)?(\d+)-([0-9a-f]+)-([0-9a-f]{{8}})-[0-9a-f]{{6}}{suffix}")
    try:
        entries = sorted(entry.name for entry in os.scandir(path.parent))
    except OSError:
        return
    for entry in entries:
        if match := name.fullmatch(entry):
            kept, pid, start, machine = match.groups()
            yield path.with_name(entry), None if kept else Process("", int(pid[:19]), int(start[:19], 16), machine)


def _remove_leftovers(path: Path) -> None:
    """Remove files that dead processes left when they wrote `path`, and restore what one was about to replace."""
    for temporary, process in temporaries(path):
        if process and not temporary.is_dir() and _is_dead(process, temporary):  # an unfinished Zarr may be resumed
            remove(temporary)
    old = _old_name(path)
    if old.is_dir() and not path.exists():
        with suppress(OSError):
            old.rename(path)
    remove(old)


def _is_dead(process: Process, temporary: Path) -> bool:
    """Return whether the process that made a temporary is gone; if that cannot be seen, the temporary's age decides."""
    if process.is_alive is not None:
        return not process.is_alive
    try:
        return time.time() - temporary.stat().st_mtime > _MAX_AGE
    except OSError:
        return False


def make_folder(path: Path) -> None:
    """Make a folder and its parents if it does not exist; raise `OutputError` if that fails."""
    check_name(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"cannot make the folder {path}: {error.strerror}. Choose another.") from error


def write_bytes(path: Path, *parts: bytes | memoryview, sync: bool = True) -> None:
    """Write `parts`, one after the other, to `path` atomically; errors as in `replacing`.

    With `sync` they are on the disk before the file gets its name, so that it is complete even if the machine crashes.
    """
    with replacing(path) as temporary, temporary.open("wb") as file:
        file.writelines(parts)
        file.flush()
        if sync:
            os.fsync(file.fileno())


def read_json(path: Path, most: int) -> Any:
    """Read a JSON file of at most `most` bytes, as `parse_json` does.

    Raises
    ------
    ValueError
        If the file cannot be read, is longer, or is not JSON that `parse_json` accepts.
    """
    try:
        if not path.is_file() or path.stat().st_size > most:
            raise ValueError("it is not a file, or too long")
        return parse_json(path.read_bytes())
    except OSError as error:
        raise ValueError(error.strerror or "it cannot be read") from error


def _old_name(path: Path) -> Path:
    return path.with_name(f".{path.name}.old-kdunet")


def _swap(new: Path, path: Path) -> None:
    """Replace the folder `path` by the folder `new`, which takes two renames."""
    old = _old_name(path)
    try:
        path.rename(old)
        new.rename(path)
    except BaseException:
        if not path.exists():
            old.rename(path)
        raise
    remove(old)


def remove(path: Path) -> None:
    """Remove a file or folder if it exists; one that cannot be removed stays, without an error."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink(missing_ok=True)
