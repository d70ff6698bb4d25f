"""Ctrl-C, SIGTERM and SIGHUP end every command in the same way, from its first moment on.

Next to nothing is imported here: until this is there, and while Python itself starts, a Ctrl-C is a traceback.
"""

from __future__ import annotations

import os
import signal
from contextlib import contextmanager, suppress

TYPE_CHECKING = False  # as typing has it, which takes as long to import as all of this
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import CodeType, FrameType
    from typing import Any, TypeAlias

    Handler: TypeAlias = Callable[[int, FrameType | None], Any]

__all__ = ["EXIT_CODE", "exit_at_once", "handle", "handling", "ignore_stop_signals", "stop_command"]

EXIT_CODE = 130  # as a shell gives it for Ctrl-C

_NUMBERS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]


def _wanted() -> list[signal.Signals]:
    """The signals to handle: not a SIGHUP that ``nohup`` has had ignored."""
    return [n for n in _NUMBERS if n.name != "SIGHUP" or signal.getsignal(n) is not signal.SIG_IGN]


@contextmanager
def handling(handler: Handler) -> Iterator[None]:
    """Have `handler` called for each of the signals inside; in a thread, where none arrive, do nothing."""
    before = handle(handler)
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)


def handle(handler: Handler) -> dict[signal.Signals, Any]:
    """Have `handler` called for each of the signals from now on; returns the handlers before."""
    before: dict[signal.Signals, Any] = {}
    with suppress(ValueError):  # not the main thread
        for number in _wanted():
            before[number] = signal.signal(number, handler)
    return before


def ignore_stop_signals() -> None:
    """Leave the signals to the first of several processes."""
    for number in _wanted():
        signal.signal(number, signal.SIG_IGN)


def exit_at_once(number: int, frame: FrameType | None) -> None:
    """End the process: where nothing has begun, as an import may swallow an exception, or where all is done."""
    if os.environ.get("LOCAL_RANK", "0") == "0":  # the first of several processes speaks for all
        with suppress(OSError):
            os.write(2, b"stopped.\n")
    os._exit(EXIT_CODE)


def stop_command(main: CodeType) -> Handler:
    """A handler that raises `KeyboardInterrupt`, or ends the process where `main` is importing something."""

    def stop(number: int, frame: FrameType | None) -> None:
        while frame is not None and frame.f_code is not main:
            if frame.f_code.co_filename.startswith("<frozen importlib"):
                exit_at_once(number, frame)
            frame = frame.f_back
        raise KeyboardInterrupt

    return stop
