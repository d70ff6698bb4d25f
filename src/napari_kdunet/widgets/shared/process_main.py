"""What `apart` starts: a program that does one task, asks the window for what stayed there, and tells of events.

Messages are pickled, on the standard input and output. When its input ends, so does it.
"""

from __future__ import annotations

import os
import pickle
import queue
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any, BinaryIO

import numpy as np

from napari_kdunet.core import TrainingError, Volume

_AHEAD = 2  # events that may be under way: a pause comes so many steps late, a busy window holds up none


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
        parcel = pickle.dumps(message)
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
