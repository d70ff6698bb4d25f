"""Ctrl-C, SIGTERM and SIGHUP end every command in the same way, from its first moment on.

Next to nothing is imported here: until this module is loaded, and while Python itself starts, a Ctrl-C prints a
traceback.
"""

from __future__ import annotations

import os
import signal
from contextlib import contextmanager, suppress

TYPE_CHECKING = False  # not typing's, which takes as long to import as all of this module
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import CodeType, FrameType
    from typing import Any, TypeAlias

    Handler: TypeAlias = Callable[[int, FrameType | None], Any]

__all__ = ["EXIT_CODE", "exit_at_once", "handle", "handling", "ignore_stop_signals", "stop_command"]

EXIT_CODE = 130  # what a shell reports for Ctrl-C

_NUMBERS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]


def _wanted() -> list[signal.Signals]:
    """Return the signals to handle: without SIGHUP if ``nohup`` has it ignored."""
    return [n for n in _NUMBERS if n.name != "SIGHUP" or signal.getsignal(n) is not signal.SIG_IGN]


@contextmanager
def handling(handler: Handler) -> Iterator[None]:
    """Call `handler` for each of the signals inside the context; do nothing in a thread, where none arrive."""
    before = handle(handler)
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)


def handle(handler: Handler) -> dict[signal.Signals, Any]:
    """Call `handler` for each of the signals from now on; return the previous handlers."""
    before: dict[signal.Signals, Any] = {}
    with suppress(ValueError):  # not the main thread
        for number in _wanted():
            before[number] = signal.signal(number, handler)
    return before


def ignore_stop_signals() -> None:
    """Ignore the signals, which are left to the first of several processes."""
    for number in _wanted():
        signal.signal(number, signal.SIG_IGN)


def exit_at_once(number: int, frame: FrameType | None) -> None:
    """End the process, before work has begun (as an import may swallow an exception) or after it is done."""
    if os.environ.get("LOCAL_RANK", "0") == "0":  # the first of several processes speaks for all
        with suppress(OSError):
            os.write(2, b"stopped.\n")
    os._exit(EXIT_CODE)


def stop_command(main: CodeType) -> Handler:
    """Return a handler that raises `KeyboardInterrupt`, or ends the process while `main` is importing something."""

    def stop(number: int, frame: FrameType | None) -> None:
        while frame is not None and frame.f_code is not main:
            if frame.f_code.co_filename.startswith("<frozen importlib"):
                exit_at_once(number, frame)
            frame = frame.f_back
        raise KeyboardInterrupt

    return stop
