"""A training in a process of its own, so that it and the window do not wait for each other.

Python lets one thread run at a time. On a thread beside napari's a training of a tiny network, whose steps are many
short calls, falls to half its speed while somebody scrolls; in its own process it keeps it. Only what has to travels:
the settings and models are sent, slices are asked for when they are read, and the events come back.

The process (`process`) is started as a program, not by `multiprocessing`, which would run the user's script again.
"""

from __future__ import annotations

import io
import os
import pickle
import queue
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np

from napari_kdunet.core import TrainingError, Volume

__all__ = ["Quiet", "apart"]

#: Whether there is another process at all; off, everything happens on the thread that iterates.
OWN_PROCESS = True

_QUIET = 0.2  # s without news after which there is a `Quiet`
_PATIENCE = 2.0  # s that the process may take to end by itself


@dataclass(frozen=True)
class Quiet:
    """Nothing has come for a moment; whoever iterates can stop."""


def apart(task: Callable[..., Iterator[Any]], *args: Any, **more: Any) -> Iterator[Any]:
    """The events of ``task(*args, **more)``, computed in another process; closing this ends it.

    What cannot be sent there (a network by another program, say) is computed here, on the thread that iterates.

    Parameters
    ----------
    task : callable
        A generator function that can be imported.
    *args, **more
        What it takes. Each `Volume` stays here, and so does each object whose class has a tuple `served` of the names
        of methods: the other process has a stand-in that asks, and is answered while this is iterated.

    Yields
    ------
    Quiet or any
        The events, and a `Quiet` now and then where there are none, as while the process starts.

    Raises
    ------
    TrainingError
        If the process dies, as when memory is out; and whatever `task` raises.
    """
    kept: list[Any] = []
    try:
        parcel = _packed((task, args, more), kept) if OWN_PROCESS else None
    except Exception:  # noqa: BLE001 - pickle raises anything
        parcel = None
    if parcel is None:
        yield from task(*args, **more)
        return
    with _Process(parcel) as process:
        while True:
            kind, *content = process.next_message()
            if kind == "quiet":
                yield Quiet()
            elif kind == "event":
                process.send(("more",))
                yield content[0]
            elif kind == "ask":
                process.send(_answer(kept, *content))
            elif content[0] is not None:
                raise content[0]
            else:
                return


class _Process:
    """The other process, from the side of the window."""

    def __init__(self, parcel: bytes) -> None:
        line = [sys.executable, "-m", "napari_kdunet.widgets.shared.process_main"]
        path = os.pathsep.join(each for each in sys.path if each)
        self._process = subprocess.Popen(
            line,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=os.environ | {"PYTHONPATH": path},
            creationflags=getattr(subprocess, "CREATE_NO_WINDOW", 0),
        )
        self._messages: queue.SimpleQueue[tuple[Any, ...]] = queue.SimpleQueue()
        self._reader = threading.Thread(target=self._read, name="kdunet-apart", daemon=True)
        self._reader.start()
        self._write(parcel)

    def __enter__(self) -> _Process:
        return self

    def __exit__(self, *_: object) -> None:
        """Closing its input asks it to stop."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with suppress(OSError):
            self._process.stdin.close()
        try:
            self._process.wait(_PATIENCE)
        except subprocess.TimeoutExpired:  # in a long step: what it found so far has been told
            self._process.kill()
            self._process.wait()
        self._reader.join()
        self._process.stdout.close()

    def next_message(self) -> tuple[Any, ...]:
        try:
            return self._messages.get(timeout=_QUIET)
        except queue.Empty:
            return ("quiet",)

    def send(self, message: tuple[Any, ...]) -> None:
        self._write(pickle.dumps(message))

    def _write(self, parcel: bytes) -> None:
        assert self._process.stdin is not None
        with suppress(OSError):  # it is gone, which the reader tells
            self._process.stdin.write(parcel)
            self._process.stdin.flush()

    def _read(self) -> None:
        assert self._process.stdout is not None
        try:
            while True:
                self._messages.put(pickle.load(self._process.stdout))
        except EOFError:
            code = self._process.wait()
            error = TrainingError(f"the training's process has ended (exit code {code}): is memory out?")
        except Exception as broken:  # noqa: BLE001 - pickle raises anything
            error = TrainingError(f"the training's process has told something that cannot be read: {broken}")
        self._messages.put(("end", error))


def _answer(kept: list[Any], index: int, method: str, args: tuple[Any, ...]) -> tuple[Any, ...]:
    try:
        target = kept[index]
        if isinstance(target, Volume):
            return ("answer", np.asarray(target.source[args[0]]), None)
        return ("answer", getattr(target, method)(*args), None)
    except Exception as error:  # noqa: BLE001 - raised over there
        return ("answer", None, error)


def _packed(content: Any, kept: list[Any]) -> bytes:
    """What the process begins with; what stays here is left in `kept`."""
    parcel = io.BytesIO()
    _Pickler(parcel, kept).dump(content)
    return parcel.getvalue()


class _Pickler(pickle.Pickler):
    """Leaves in `kept` what stays here."""

    def __init__(self, file: BinaryIO, kept: list[Any]) -> None:
        super().__init__(file, pickle.HIGHEST_PROTOCOL)
        self.kept = kept

    def persistent_id(self, obj: Any) -> Any:
        about: tuple[Any, ...]
        if isinstance(obj, Volume):
            source = obj.source
            about = (obj.name, obj.voxel_size, source.shape, source.dtype, source.chunks)
        elif hasattr(type(obj), "served"):
            about = type(obj).served
        else:
            return None
        index = next((i for i, each in enumerate(self.kept) if each is obj), len(self.kept))
        if index == len(self.kept):
            self.kept.append(obj)
        return type(obj) is Volume, index, about
