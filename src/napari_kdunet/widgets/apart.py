"""A training in a process of its own, so that it and the window do not wait for each other.

Python lets one thread run at a time. On a thread beside napari's a training of a tiny network, whose steps are many
short calls, falls to half its speed while somebody scrolls; in its own process it keeps it. Only what has to travels:
the settings and models are sent, slices are asked for when they are read, and the events come back.

The process is started as a program, not by `multiprocessing`, which would run the user's script again.
"""

from __future__ import annotations

import io
import os
import pickle
import queue
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np

from napari_kdunet.core import TrainingError, Volume

__all__ = ["Quiet", "apart"]

#: Whether there is another process at all; off, everything happens on the thread that iterates.
OWN_PROCESS = True

_AHEAD = 2  # events that may be under way: a pause comes so many steps late, a busy window holds up none
_QUIET = 0.2  # s without news after which there is a `Quiet`
_PATIENCE = 2.0  # s that the process may take to end by itself

_MORE = ("more",)


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
                process.send(_MORE)
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
        line = [sys.executable, "-m", "napari_kdunet.widgets.apart"]
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
        self._write(_packed(message))

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


def _packed(content: Any, kept: list[Any] | None = None) -> bytes:
    parcel = io.BytesIO()
    _Pickler(parcel, [] if kept is None else kept).dump(content)
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


# ---------------------------------------------------------------- in the other process


class _Asking:
    """What stands for an object that stayed: its methods ask."""

    def __init__(self, methods: tuple[str, ...], ask: Callable[..., Any]) -> None:
        for name in methods:
            setattr(self, name, lambda *args, name=name: ask(name, *args))


class _Source:
    """What stands for the pixels of a volume that stayed."""

    def __init__(self, shape: tuple[int, int, int], dtype: np.dtype[Any], chunks: Any, ask: Callable[..., Any]) -> None:
        self.shape, self.dtype, self.chunks, self._ask = shape, dtype, chunks, ask

    def __getitem__(self, key: Any) -> Any:
        return self._ask("read", key)


class _Unpickler(pickle.Unpickler):
    """Gives each object that stayed one stand-in."""

    def __init__(self, file: BinaryIO, ask: Callable[..., Any]) -> None:
        super().__init__(file)
        self.ask = ask
        self.made: dict[int, Any] = {}

    def persistent_load(self, pid: tuple[bool, int, tuple[Any, ...]]) -> Any:
        is_volume, index, about = pid
        if index not in self.made:

            def ask(method: str, *args: Any) -> Any:
                return self.ask(index, method, args)

            if is_volume:
                name, voxel_size, shape, dtype, chunks = about
                self.made[index] = Volume(name, _Source(shape, dtype, chunks, ask), voxel_size)
            else:
                self.made[index] = _Asking(about, ask)
        return self.made[index]


class _Window:
    """The window's side, from within the other process."""

    def __init__(self) -> None:
        self._out = os.fdopen(os.dup(1), "wb")
        os.dup2(2, 1)  # what anything prints is no message
        self._may_send = threading.Semaphore(_AHEAD)
        self._answers: queue.SimpleQueue[tuple[Any, Any]] = queue.SimpleQueue()
        self._asking, self._sending = threading.Lock(), threading.Lock()
        self._gone = False

    def task(self) -> tuple[Callable[..., Iterator[Any]], tuple[Any, ...], dict[str, Any]]:
        """What is to be done; from then on the window is listened to."""
        found: Any = _Unpickler(sys.stdin.buffer, self.ask).load()
        threading.Thread(target=self._listen, daemon=True).start()
        task, args, more = found
        return task, args, more

    def tell(self, event: Any) -> bool:
        """Send an event once there is room; whether the window is still there."""
        self._may_send.acquire()
        if not self._gone:
            self._send(("event", event))
        return not self._gone

    def end(self, error: Exception | None) -> None:
        """Send the last message."""
        try:
            self._send(("end", error))
        except Exception:  # noqa: BLE001 - an error that cannot be sent, or nobody to hear of it
            with suppress(OSError):
                self._send(("end", TrainingError(f"{type(error).__name__}: {error}")))

    def ask(self, index: int, method: str, args: tuple[Any, ...]) -> Any:
        """What an object that stayed says."""
        with self._asking:
            self._send(("ask", index, method, args))
            answer, error = self._answers.get()
        if error is not None:
            raise error
        return answer

    def _send(self, message: tuple[Any, ...]) -> None:
        parcel = _packed(message)
        with self._sending:
            self._out.write(parcel)
            self._out.flush()

    def _listen(self) -> None:
        with suppress(EOFError, OSError):
            while True:
                kind, *content = pickle.load(sys.stdin.buffer)
                if kind == "more":
                    self._may_send.release()
                else:
                    self._answers.put((content[0], content[1]))
        self._gone = True
        self._may_send.release()
        self._answers.put((None, EOFError("the window is gone")))


def _main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the window gets it too, and decides
    window, error = _Window(), None
    try:
        task, args, more = window.task()
        events: Any = task(*args, **more)
        try:
            for event in events:
                if not window.tell(event):
                    break
        finally:
            events.close()
    except Exception as raised:  # noqa: BLE001 - raised over there
        raised.add_note(traceback.format_exc())
        error = raised
    window.end(error)


if __name__ == "__main__":
    _main()
