"""The work of the panel *Objects* in the background: one piece at a time, which can be stopped."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any, TypeAlias

from qtpy.QtWidgets import QWidget

from napari_kdunet.widgets.workers.stopping import StoppedError
from napari_kdunet.widgets.workers.thread import EventWorker, run_stoppable

__all__ = ["Background", "Check"]

Check: TypeAlias = Callable[[float], None]
"""The progress callback of work: raises where the work has been stopped."""


class Background:
    """Runs generators on a thread, one at a time.

    Parameters
    ----------
    owner : QWidget
        Work ends with it.
    changed : callable
        Called when work has begun or ended, with the error that ended it, or None.

    Attributes
    ----------
    worker : EventWorker or None
        What is under way.
    """

    def __init__(self, owner: QWidget, changed: Callable[[Exception | None], None]) -> None:
        self.owner, self.changed = owner, changed
        self.worker: EventWorker | None = None
        self._on_lost: Callable[[], None] = lambda: None

    def stop(self) -> None:
        """Stop what is under way, at its next call of `Check` or after its next event."""
        if self.worker is not None:
            self.worker.stop()

    def abandon(self) -> None:
        """Stop what is under way as the owner is closed, which hears of its end no more."""
        if self.worker is not None:
            self.worker.drop()
            self.worker = None
            self._on_lost()

    def run(
        self,
        work: Callable[[Check], Iterator[Any]],
        on_event: Callable[[Any], None],
        on_lost: Callable[[], None] = lambda: None,
    ) -> None:
        """Run work; `on_lost` is called where an error or a stop has kept it from its end."""
        self._on_lost = on_lost
        completed = []

        def events(is_stopped: Callable[[], bool]) -> Iterator[Any]:
            def check(_: float = 0) -> None:
                if is_stopped():
                    raise StoppedError

            with suppress(StoppedError):
                yield from work(check)
                completed.append(True)

        def ended(error: Exception | None = None) -> None:
            self.worker = None
            if not completed:
                on_lost()
            self.changed(error)

        self.worker = run_stoppable(events, on_event=on_event, on_done=ended, on_error=ended, owner=self.owner)
        self.changed(None)
