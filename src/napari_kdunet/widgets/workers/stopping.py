"""Stop work on a thread between two of its events: the next read of its volume raises an error.

The events alone would not do: reading all of a large slice, for its mean, takes many seconds.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from numpy.typing import NDArray

from napari_kdunet.core import Volume
from napari_kdunet.core.reading.sources import MappedArray

__all__ = ["StoppedError", "stoppable", "was_stopped"]


class StoppedError(Exception):
    """The work has been stopped; raised instead of returning what was read."""


def stoppable(volume: Volume, is_stopped: Callable[[], bool]) -> Volume:
    """Return the volume, made to raise an error (see `was_stopped`) at the next read once `is_stopped` returns True."""

    def unless_stopped(pixels: NDArray[Any]) -> NDArray[Any]:
        if is_stopped():
            raise StoppedError
        return pixels

    return replace(volume, source=MappedArray(volume.source, unless_stopped, volume.dtype))


def was_stopped(error: BaseException | None) -> bool:
    """Return whether an error is, or was caused by, a `StoppedError`."""
    while error is not None:
        if isinstance(error, StoppedError):
            return True
        error = error.__cause__
    return False
