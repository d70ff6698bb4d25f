"""Live training: keep training while the user paints labels."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from napari_kdunet import core
from napari_kdunet.core.formatting import format_slices

if TYPE_CHECKING:
    from napari_kdunet.core import Model, TrainConfig, Volume
    from napari_kdunet.widgets.shared.edited_slices import EditedSlices

__all__ = ["Waiting", "iter_live"]

_POLL_INTERVAL = 0.2  # s between two checks for a stop, or for painted slices


@dataclass(frozen=True)
class Waiting:
    """The training cannot begin yet, because labels are missing."""

    what: str
    """Which labels are missing, as a message to the user."""


def iter_live(
    raw: Volume, labels: Volume, edits: EditedSlices, config: TrainConfig, start: Model | None, keep: bool
) -> Iterator[Any]:
    """Wait until foreground and background are labelled, then train, and read slices again when they are painted on.

    Yields `Waiting` while it waits, then the events of `core.iter_train`.
    """
    while True:
        edits.take()
        try:
            events = core.iter_train(raw, labels, config, start=start, keep=keep, edited=_throttled(edits.take))
            break
        except core.UnlabelledError as missing:
            waiting = Waiting(_what_to_paint(config, missing))
            yield waiting
            while not edits.take():
                yield waiting
                edits.wait(_POLL_INTERVAL)
    yield from events


def _what_to_paint(config: TrainConfig, error: core.UnlabelledError) -> str:
    """Return a message on which labels to paint; 0 means unlabelled if it is the ignore value, else background."""
    where = f" at z = {format_slices(error.slices)}" if error.slices else ""
    none = "nothing is painted" if error.missing == "both" else f"there is no {error.missing}"
    so_far = f"{none} yet on {error.labels}{where}"
    if config.ignore != 0:
        return f"paint a mitochondrion with any label but 0, which is background ({so_far})."
    other = "2 in a mitochondrion" if config.label_classes == 2 else "2 and up in the other classes"
    return f"paint label 1 on background and {other} ({so_far})."


def _throttled(take: Callable[[], list[int]]) -> Callable[[], list[int]]:
    """Limit `take` to one call per `_POLL_INTERVAL`: a call from another process waits for the GUI thread."""
    latest = time.monotonic()

    def throttled() -> list[int]:
        nonlocal latest
        if time.monotonic() - latest < _POLL_INTERVAL:
            return []
        latest = time.monotonic()
        return take()

    return throttled
