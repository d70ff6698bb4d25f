"""Show errors to the user as napari notifications, those of known causes in one line."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from napari.utils.notifications import notification_manager, show_error

from napari_kdunet.core.errors import KDUNetError, is_out_of_memory

__all__ = ["OUT_OF_MEMORY", "line_of", "report", "reporting"]

OUT_OF_MEMORY = (
    "Out of memory: lower k, the batch or the patch (under Advanced), close other programs, or choose the device cpu."
)


def line_of(error: BaseException) -> str:
    """Return the message for a `KDUNetError` or lack of memory; empty for an error of unknown cause."""
    if isinstance(error, KDUNetError):
        return str(error)
    return OUT_OF_MEMORY if is_out_of_memory(error) else ""


def report(error: BaseException) -> None:
    """Show an error as a notification: in one line where the cause is known, else with the traceback."""
    if line := line_of(error):
        show_error(line)
    else:
        notification_manager.receive_error(type(error), error, error.__traceback__)


@contextmanager
def reporting() -> Iterator[None]:
    """Show a `KDUNetError` that the block raises, instead of raising it."""
    try:
        yield
    except KDUNetError as error:
        report(error)
