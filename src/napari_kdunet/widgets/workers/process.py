"""Run a generator, such as a training, in a process of its own, so that it and napari's GUI do not wait for each other.

Python runs one thread at a time. On a thread beside the GUI the training of a tiny network, whose steps are many short
calls, falls to half its speed while the user scrolls; in its own process it keeps its speed. The settings and models
are sent there, slices are sent when they are read, and the events come back.

The process (`process_main`) is started as a program rather than by `multiprocessing`, which would run the user's script
again.
"""

from __future__ import annotations

import atexit
import io
import os
import pickle
import queue
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, fields
from functools import partial
from subprocess import PIPE, Popen, TimeoutExpired
from typing import Any, BinaryIO

import numpy as np
from napari.utils.notifications import show_warning

from napari_kdunet.core import TrainingError, Volume

__all__ = ["Idle", "prepare", "release", "run_in_process"]

#: Whether to use another process; if not, the task runs on the thread that iterates.
OWN_PROCESS = True

_POLL_INTERVAL = 0.2  # s without an event after which there is an `Idle`
_KILL_TIMEOUT = 10.0  # s that the process may take to end; it ends by itself some 2 s after it is asked to
_NO_WINDOW = getattr(subprocess, "CREATE_NO_WINDOW", 0)  # exists only on Windows
_MAX_REASON = 150  # characters of an error that are shown


@dataclass(frozen=True)
class Idle:
    """No event for a moment: the consumer may stop here."""


def run_in_process(task: Callable[..., Iterator[Any]], *args: Any, **kwargs: Any) -> Iterator[Any]:
    """Yield the events of ``task(*args, **kwargs)``, run in another process; closing the iterator ends that process.

    A task that cannot be pickled (with a network that another program has defined, say) runs on the thread that
    iterates, and the user is told.

    Parameters
    ----------
    task : callable
        A generator function that can be imported by its name.
    *args, **kwargs
        Its arguments, which are pickled, except two kinds of objects that stay in this process: the source of each
        `Volume`, whose slices are sent when they are read, and each object whose class has ``remote_methods``, a tuple
        of the names of methods that can be called from the other process. They are called on the thread that iterates.

    Yields
    ------
    Idle or any
        The events, and `Idle` while there are none, for example while the process starts.

    Raises
    ------
    TrainingError
        If the process dies, for example because memory is out; whatever `task` raises is raised too.
    """
    kept: list[Any] = []
    try:
        pickled = _pickle((task, args, kwargs), kept) if OWN_PROCESS else None
    except (pickle.PickleError, TypeError, AttributeError) as error:
        pickled = None
        _warn_of_fallback(error)
    if pickled is None:
        yield from task(*args, **kwargs)
        return
    with _prepared.take() as process:
        process.send(("task", pickled))
        while True:
            match process.next_message():
                case ("idle",):
                    yield Idle()
                case ("event", event):
                    process.send(("consumed",))
                    yield event
                case ("call", index, method, arguments):
                    process.send(("answer", *_call(kept[index], method, arguments)))
                case ("end", error):
                    if error is not None:
                        raise error
                    return


class _Process:
    """The other process, as its parent sees it."""

    def __init__(self) -> None:
        command = [
            sys.executable,
            "-P",
            "-m",
            "napari_kdunet.widgets.workers.process_main",
        ]  # -P: import nothing from the current folder
        path = os.pathsep.join(each for each in sys.path if each)
        self._process = Popen(
            command,
            stdin=PIPE,
            stdout=PIPE,
            env=os.environ | {"PYTHONPATH": path},
            creationflags=_NO_WINDOW,
        )
        self._messages: queue.SimpleQueue[tuple[Any, ...]] = queue.SimpleQueue()
        self._reader = threading.Thread(target=self._read, name="kdunet-events", daemon=True)
        self._reader.start()
        atexit.register(self._kill)

    @property
    def is_alive(self) -> bool:
        """Whether the process runs."""
        return self._process.poll() is None

    def __enter__(self) -> _Process:
        return self

    def __exit__(self, *_: object) -> None:
        """Ask the process to stop, and wait until it has ended."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self.send(("stop",))
        with suppress(OSError):
            self._process.stdin.close()
        try:
            self._process.wait(_KILL_TIMEOUT)
        except TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._reader.join()
        self._process.stdout.close()
        atexit.unregister(self._kill)

    def _kill(self) -> None:
        """End the task, the process and its reader: a thread that is within torch when Python shuts down aborts it."""
        self._messages.put(("end", None))  # before the reader's error
        self._process.kill()
        self._reader.join()

    def next_message(self) -> tuple[Any, ...]:
        """Return the next message of the process, or ``("idle",)`` if none comes for a moment."""
        try:
            return self._messages.get(timeout=_POLL_INTERVAL)
        except queue.Empty:
            return ("idle",)

    def send(self, message: tuple[Any, ...]) -> None:
        """Send a message; does nothing if the process has died, as `next_message` reports that."""
        pickled = pickle.dumps(message)
        assert self._process.stdin is not None
        with suppress(OSError):
            self._process.stdin.write(pickled)
            self._process.stdin.flush()

    def _read(self) -> None:
        assert self._process.stdout is not None
        try:
            while True:
                self._messages.put(pickle.load(self._process.stdout))
        except EOFError:
            code = self._process.wait()
            error = TrainingError(f"the training process has ended (exit code {code}): perhaps it ran out of memory.")
        except Exception as unreadable:  # noqa: BLE001 - unpickling can raise anything
            error = TrainingError(f"the training process has sent a message that cannot be read: {unreadable}")
        self._messages.put(("end", error))


class _Prepared:
    """The process that waits for the next task, if there is one."""

    def __init__(self) -> None:
        self._process: _Process | None = None
        self._lock = threading.Lock()

    def make(self) -> None:
        with self._lock:
            self._process = _alive(self._process) or _Process()

    def take(self) -> _Process:
        with self._lock:
            process, self._process = self._process, None
        return _alive(process) or _Process()

    def end(self) -> None:
        with self._lock:
            process, self._process = self._process, None
        if process is not None:
            threading.Thread(target=process.__exit__, name="kdunet-end", daemon=True).start()  # it may take 2 s


def _alive(process: _Process | None) -> _Process | None:
    """Return the process if it is alive; else close its pipes and return None."""
    if process is not None and not process.is_alive:
        process.__exit__()
        return None
    return process


_prepared = _Prepared()


def prepare() -> None:
    """Start the process of the next task: it imports and compiles what a training needs while the user makes settings.

    This preparation makes up three quarters of the time to the first step. The process then waits, and takes some
    500 MB, until a task comes, `release` is called or this process ends.
    """
    if OWN_PROCESS:
        _prepared.make()


def release() -> None:
    """End the process that `prepare` has started, if it has not been given a task."""
    _prepared.end()


class _Pickler(pickle.Pickler):
    """Pickles all but the objects that stay in this process, which it appends to `kept`."""

    def __init__(self, file: BinaryIO, kept: list[Any]) -> None:
        super().__init__(file, pickle.HIGHEST_PROTOCOL)
        self.kept = kept
        self.sources: list[Any] = []  # sources of the volumes

    def reducer_override(self, obj: Any) -> Any:
        if not isinstance(obj, Volume):
            return NotImplemented
        self.sources.append(obj.source)  # pickled next
        given = {each.name: getattr(obj, each.name) for each in fields(Volume) if each.init}
        return partial(Volume, **given), ()  # never a subclass, which the other process may be unable to import

    def persistent_id(self, obj: Any) -> Any:
        is_source = any(obj is source for source in self.sources)
        metadata: tuple[Any, ...]
        if is_source:
            metadata = (obj.shape, obj.dtype, obj.chunks)
        elif hasattr(type(obj), "remote_methods"):
            metadata = type(obj).remote_methods
        else:
            return None
        index = next((i for i, each in enumerate(self.kept) if each is obj), len(self.kept))
        if index == len(self.kept):
            self.kept.append(obj)
        return is_source, index, metadata


def _pickle(content: Any, kept: list[Any]) -> bytes:
    pickled = io.BytesIO()
    _Pickler(pickled, kept).dump(content)
    return pickled.getvalue()


def _call(target: Any, method: str, args: tuple[Any, ...]) -> tuple[Any, Exception | None]:
    """Call a method of an object that stayed here; return its result and the error that it raised, one of them None."""
    try:
        found = getattr(target, method)(*args)
        return np.asarray(found) if method == "__getitem__" else found, None
    except Exception as error:  # noqa: BLE001 - raised again in the other process
        return None, error


def _warn_of_fallback(error: Exception) -> None:
    reason = f"{type(error).__name__}: {error}"
    reason = reason if len(reason) <= _MAX_REASON else f"{reason[:_MAX_REASON]}…"
    show_warning(
        f"The training runs within napari, which slows both down, as it cannot be sent to another process: {reason}"
    )
