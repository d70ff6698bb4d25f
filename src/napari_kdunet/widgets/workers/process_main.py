"""The program that runs one task in a process of its own; `run_in_process` starts it.

Parent and child exchange pickled tuples through the standard input and output of the child. In come the task, the
answers to calls of objects that stayed in the parent, a credit for each event that was consumed, and at last a request
to stop; out go the events, the calls, and at last how it ended. If the input ends without such a request, the parent
has died: the task is closed after the current step, as if it had been asked to stop.
"""

from __future__ import annotations

import atexit
import gc
import io
import os
import pickle
import queue
import signal
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from napari_kdunet.core.errors import TrainingError  # fast to import, unlike `core`: it can stop at once

if TYPE_CHECKING:
    import numpy as np

_PREFETCH_EVENTS = 2  # events sent ahead: a busy GUI delays no step, but a pause comes this many steps late
_EXIT_TIMEOUT = 2.0  # s that the current step may take when asked to stop; the best model is sent by then

Task = tuple[Callable[..., Iterator[Any]], tuple[Any, ...], dict[str, Any]]


class _RemoteObject:
    """Stands for an object that stayed in the parent: its methods are called there."""

    def __init__(self, methods: tuple[str, ...], call: Callable[..., Any]) -> None:
        for name in methods:
            setattr(self, name, lambda *args, name=name: call(name, *args))


class _RemoteSource:
    """Stands for the source of a volume, which stayed in the parent: slices are read there."""

    def __init__(
        self, call: Callable[..., Any], shape: tuple[int, int, int], dtype: np.dtype[Any], chunks: Any
    ) -> None:
        self.shape, self.dtype, self.chunks, self._call = shape, dtype, chunks, call

    def __getitem__(self, key: Any) -> Any:
        return self._call("__getitem__", key)


class _Unpickler(pickle.Unpickler):
    """Puts one stand-in in the place of each object that stayed in the parent."""

    def __init__(self, file: BinaryIO, call: Callable[..., Any]) -> None:
        super().__init__(file)
        self.call = call
        self.stand_ins: dict[int, Any] = {}

    def persistent_load(self, pid: tuple[bool, int, tuple[Any, ...]]) -> Any:
        is_source, index, metadata = pid
        if index not in self.stand_ins:

            def call(method: str, *args: Any) -> Any:
                return self.call(index, method, args)

            self.stand_ins[index] = _RemoteSource(call, *metadata) if is_source else _RemoteObject(metadata, call)
        return self.stand_ins[index]


class _Parent:
    """The connection to the parent process.

    A thread reads the input. It has to end before the interpreter does, which cannot shut down while a thread holds the
    lock of a buffered file: so the parent closes the pipe at the end, and `close` waits for the thread.
    """

    def __init__(self) -> None:
        self._input, self._output = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
        with Path(os.devnull).open() as nothing:
            os.dup2(nothing.fileno(), 0)  # so that nothing else reads the messages
        os.dup2(2, 1)  # so that nothing printed is taken for a message
        self._may_send = threading.Semaphore(_PREFETCH_EVENTS)
        self._tasks: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._answers: queue.SimpleQueue[tuple[Any, Exception | None]] = queue.SimpleQueue()
        self._calling, self._sending = threading.Lock(), threading.Lock()
        self._closed, self._done = threading.Event(), threading.Event()
        self._reader = threading.Thread(target=self._read, name="kdunet-input")
        self._reader.start()

    @property
    def has_task(self) -> bool:
        """Whether a task has arrived, or the parent will send none."""
        return not self._tasks.empty()

    def receive_task(self) -> Task | None:
        """Return the task to run, or None if the parent will send none."""
        task = self._tasks.get()
        if task is None:
            return None
        found: Task = _Unpickler(io.BytesIO(task), self.call).load()
        return found

    def send_event(self, event: Any) -> bool:
        """Send an event once the parent has room for it; return whether the parent wants another one."""
        self._may_send.acquire()
        if not self._closed.is_set():
            self._send(("event", event))
        return not self._closed.is_set()

    def call(self, index: int, method: str, args: tuple[Any, ...]) -> Any:
        """Call a method of an object that stayed in the parent, and return or raise what it does."""
        with self._calling:
            if self._closed.is_set():
                raise EOFError("the parent process is gone")
            self._send(("call", index, method, args))
            answer, error = self._answers.get()
        if error is not None:
            raise error
        return answer

    def close(self, error: Exception | None) -> None:
        """Tell the parent how the task ended, and wait until it has closed the pipe."""
        self._done.set()
        with suppress(OSError):  # the parent is gone
            try:
                self._send(("end", error))
            except OSError:
                raise
            except Exception:  # noqa: BLE001 - an error that cannot be pickled
                self._send(("end", TrainingError(f"{type(error).__name__}: {error}")))
        self._reader.join()
        self._input.close()
        with suppress(OSError):
            self._output.close()

    def _send(self, message: tuple[Any, ...]) -> None:
        pickled = pickle.dumps(message)
        with self._sending:
            self._output.write(pickled)
            self._output.flush()

    def _read(self) -> None:
        stop = self._read_until_closed()
        self._closed.set()
        self._tasks.put(None)
        self._may_send.release()
        self._answers.put((None, EOFError("the parent process is gone")))
        if stop and not self._done.wait(_EXIT_TIMEOUT):
            os._exit(0)

    def _read_until_closed(self) -> bool:
        """Pass messages on until there are no more; return True if the parent has asked to stop, False if it died."""
        with suppress(Exception):  # the pipe is closed, maybe amid a message, or an answer cannot be unpickled
            while True:
                match pickle.load(self._input):
                    case ("task", task):
                        self._tasks.put(task)
                    case ("consumed",):
                        self._may_send.release()
                    case ("answer", answer, error):
                        self._answers.put((answer, error))
                    case ("stop",):
                        return True
        return False


def _warm_up(parent: _Parent) -> None:
    """Import and compile what a training needs, as long as there is no task yet."""
    import numpy as np

    from napari_kdunet import core

    if parent.has_task:  # the task imports what it needs, which may not include torch
        return
    train = core.iter_train
    raw = np.random.default_rng(0).integers(0, 255, (1, 64, 64), np.uint8)
    config = core.TrainConfig(k=1, depth=1, patch=32, batch=1, steps=1, validations=1)
    with suppress(Exception):  # the task will say what is wrong
        events: Any = train(raw, raw > 127, config)
        while not parent.has_task and next(events, None) is not None:
            pass
        events.close()


def _run(parent: _Parent) -> None:
    _warm_up(parent)
    request = parent.receive_task()
    if request is None:
        return
    task, args, kwargs = request
    events: Any = task(*args, **kwargs)
    try:
        for event in events:
            if not parent.send_event(event):
                break
    finally:
        events.close()


def main() -> None:
    """Run the task that the parent sends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl+C reaches the parent too, which decides
    atexit.register(gc.freeze)  # modules are not looked through for garbage when all of them are about to go
    parent, error = _Parent(), None
    try:
        _run(parent)
    except Exception as raised:  # noqa: BLE001 - raised again in the parent
        raised.add_note(traceback.format_exc())
        error = raised
    parent.close(error)


if __name__ == "__main__":
    main()
