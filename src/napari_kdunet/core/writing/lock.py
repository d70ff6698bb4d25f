"""One writer per result: a lock file beside it says which process writes it, and is renewed while that process lives.

Processes on one machine see at once whether another is alive. Those on different machines, or in different containers,
cannot: there a holder counts as dead when it has not renewed its lock for some time.
"""

from __future__ import annotations

import json
import logging
import os
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

from napari_kdunet.core.errors import OutputError
from napari_kdunet.core.files import Process, read_json

__all__ = ["TargetLock"]

_log = logging.getLogger(__name__)

_MOST_BYTES = 2**16  # of a lock file
_LONGEST_HOST = 100  # characters of a name that are shown


@dataclass(frozen=True)
class _Holder:
    """Content of a lock file: its process, a token that no other lock has, and when it was renewed (s since 1970)."""

    process: Process
    token: str
    renewed: float


class TargetLock:
    """The right to write one result; use as a context manager.

    Parameters
    ----------
    target : Path
        What is to be written. The lock is the file ``.NAME.lock`` beside it.
    renew_interval : float
        Seconds between two renewals of the lock: its modification time.
    lost_timeout : float
        Seconds without a renewal after which a holder that cannot be seen from here counts as dead.

    Raises
    ------
    OutputError
        On entering: another process that is alive writes the target; the message says which.
    """

    def __init__(self, target: Path, *, renew_interval: float = 5.0, lost_timeout: float = 60.0) -> None:
        final = Path(os.path.realpath(target))
        self.target, self.path = target, final.with_name(f".{final.name}.lock")
        self.renew_interval, self.lost_timeout = renew_interval, lost_timeout
        self._token = uuid.uuid4().hex
        self._released = threading.Event()

    def __enter__(self) -> TargetLock:
        self.acquire()
        return self

    def __exit__(self, *error: object) -> None:
        self.release()

    def acquire(self) -> None:
        """Acquire the lock, as entering the context does."""
        with self._os_errors():
            while not self._create():
                holder = _read(self.path)
                if holder is not None and self._is_held(holder):
                    raise self._refusal(holder)
                self._remove_dead(holder)
        self._renewal = threading.Thread(target=self._renew, name="kdunet-lock", daemon=True)
        self._renewal.start()

    def release(self) -> None:
        """Release the lock, as leaving the context does."""
        self._released.set()
        self._renewal.join()
        with suppress(OSError), _exclusive(self.path.parent):
            if self.is_mine:
                self.path.unlink()

    @property
    def is_mine(self) -> bool:
        """Whether the lock is still this process's: no other has taken this one for dead."""
        holder = _read(self.path)
        return holder is not None and holder.token == self._token

    def check(self) -> None:
        """Raise `OutputError` if another process has taken over, which happens when this one was suspended for long."""
        with self._os_errors():
            if self.is_mine or self._create():  # or the file was removed, and is made again
                return
        holder = _read(self.path)
        name = _name(holder.process) if holder else "another process"
        raise OutputError(
            f"cannot write {self.target}: {name} has taken over, as this process did not respond for long"
        )

    @contextmanager
    def _os_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            reason = error.strerror or str(error)
            raise OutputError(f"cannot write {self.target}: {reason}; make room or choose another folder") from error

    def _create(self) -> bool:
        content = {"token": self._token, "process": Process.current().to_dict()}
        draft = self.path.with_name(f".{uuid.uuid4().hex}.lock")
        try:
            draft.write_text(json.dumps(content))
            with _exclusive(self.path.parent):  # not while another process checks and removes a dead lock
                return _link(draft, self.path)
        finally:
            draft.unlink(missing_ok=True)

    def _is_held(self, holder: _Holder) -> bool:
        """Return whether the process of a lock is alive: wait until that is known, or the lock is gone or another's."""
        alive = holder.process.is_alive
        if alive is not None:
            return alive
        age, begin = max(0.0, self._now() - holder.renewed), time.monotonic()  # clocks differ
        if age < self.lost_timeout:
            _log.warning(
                "%s may be left over of %s: waiting up to %.0f s for a sign of life",
                self.path,
                _name(holder.process),
                self.lost_timeout - age,
            )
        while age + time.monotonic() - begin < self.lost_timeout:
            now = _read(self.path)
            if now is None or now.token != holder.token:
                return False
            if now.renewed != holder.renewed:
                return True
            time.sleep(min(0.1, self.renew_interval))
        return False

    def _now(self) -> float:
        """Return the time (s since 1970) by the clock of the file system, which may be another machine's."""
        probe = self.path.with_name(f".{uuid.uuid4().hex}.lock")
        probe.touch()
        try:
            return probe.stat().st_mtime
        finally:
            probe.unlink()

    def _remove_dead(self, holder: _Holder | None) -> None:
        """Remove the lock of a dead process, unless another process holds it by now."""
        with _exclusive(self.path.parent):
            now = _read(self.path)
            if (now and now.token) == (holder and holder.token):
                self.path.unlink(missing_ok=True)

    def _refusal(self, holder: _Holder) -> OutputError:
        return OutputError(
            f"cannot write {self.target}: {_name(holder.process)} is writing it; wait for it, or choose another name"
        )

    def _renew(self) -> None:
        while not self._released.wait(self.renew_interval):
            if self.is_mine:
                with suppress(OSError):
                    os.utime(self.path)


def _read(path: Path) -> _Holder | None:
    """Return the content of a lock file; None if there is none, or it is not one of ours."""
    try:
        match read_json(path, _MOST_BYTES):
            case {
                "token": str(token),
                "process": {"host": str(host), "pid": int(pid), "start": int(start), "machine": str(machine)},
            } if pid > 0:
                return _Holder(
                    Process(ascii(host)[1:-1][:_LONGEST_HOST], pid, start, machine), token, path.stat().st_mtime
                )
    except (OSError, ValueError):
        pass
    return None


@contextmanager
def _exclusive(folder: Path) -> Iterator[None]:
    """Admit one process at a time to a folder, if the file system can; else `TargetLock.check` finds a clash later."""
    if fcntl is None:
        yield
        return
    with ExitStack() as closed:
        with suppress(OSError):  # a folder that cannot be listed, a file system without such locks
            descriptor = os.open(folder, os.O_RDONLY)
            closed.callback(os.close, descriptor)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield


def _name(process: Process) -> str:
    return f"process {process.pid} on {process.host}"


def _link(source: Path, target: Path) -> bool:
    """Give a file a second name, which appears with its content; False if something has that name already."""
    try:
        os.link(source, target)
    except FileExistsError:
        return False
    except OSError:  # a file system without hard links
        try:
            with target.open("x") as file:
                file.write(source.read_text())
        except FileExistsError:
            return False
    return True
