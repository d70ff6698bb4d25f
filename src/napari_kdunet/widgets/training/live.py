"""Training that goes on while somebody paints: what happens on its thread."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from napari_kdunet import core

if TYPE_CHECKING:
    from napari_kdunet.core import Model, TrainConfig, Volume
    from napari_kdunet.widgets.training.edits import Edits

__all__ = ["Waiting", "iter_live"]

_PATIENCE = 0.2  # s between two looks whether it was stopped meanwhile, or whether something was painted


@dataclass(frozen=True)
class Waiting:
    """The training has not begun, because something is not labelled yet."""

    what: str
    """What is missing, for the user to read."""


def iter_live(raw: Volume, labels: Volume, edits: Edits, config: TrainConfig, start: Model | None) -> Iterator[Any]:
    """Wait until foreground and background are labelled, then train on, slices read again as they are painted.

    Yields `Waiting` while it waits, then the events of `core.iter_train`.
    """
    while True:
        edits.take()
        try:
            events = core.iter_train(raw, labels, config, start=start, edited=_now_and_then(edits.take))
            break
        except core.UnlabelledError as missing:
            yield Waiting(str(missing))
            while not edits.take():
                yield Waiting(str(missing))
                edits.wait(_PATIENCE)
    yield from events


def _now_and_then(take: Callable[[], list[int]]) -> Callable[[], list[int]]:
    """Ask the window not before each step: while it draws, the answer takes its time."""
    latest = time.monotonic()

    def taken() -> list[int]:
        nonlocal latest
        if time.monotonic() - latest < _PATIENCE:
            return []
        latest = time.monotonic()
        return take()

    return taken
