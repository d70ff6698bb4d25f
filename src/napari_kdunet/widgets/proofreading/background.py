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
"""Progress callback of the work, called with a share from 0 to 1; raises `StoppedError` if the work was stopped."""


class Background:
    """Runs generators on a thread, one at a time.

    Parameters
    ----------
    owner : QWidget
        Widget that owns the work, which ends with it.
    changed : callable
        Called when work has begun or ended, with the error that ended it, or None.

    Attributes
    ----------
    worker : EventWorker or None
        Worker of the running work.
    """

    def __init__(self, owner: QWidget, changed: Callable[[Exception | None], None]) -> None:
        self.owner, self.changed = owner, changed
        self.worker: EventWorker | None = None
        self._on_lost: Callable[[], None] = lambda: None

    def stop(self) -> None:
        """Stop the running work, at its next call of `Check` or after its next event."""
        if self.worker is not None:
            self.worker.stop()

    def abandon(self) -> None:
        """Stop the running work because the owner is closed: `changed` is not called, but `on_lost` is."""
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
        """Run work on a thread; `on_lost` is called if an error or a stop has kept it from its end."""
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
