"""Work on a thread of which only the latest request counts, such as the slice that is on screen by now."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

from qtpy.QtWidgets import QWidget

from napari_kdunet.core import KDUNetError
from napari_kdunet.widgets.notify import report
from napari_kdunet.widgets.workers.thread import EventWorker, run

__all__ = ["LatestRequest", "Work"]

Work: TypeAlias = tuple[Callable[[], Iterator[Any]], Callable[[Any], Any]]
"""The arguments ``make_events`` and ``on_event`` of `run`."""


class LatestRequest:
    """Does one piece of work at a time; of what is asked for meanwhile, only the latest is done.

    Parameters
    ----------
    owner : QWidget, optional
        Widget that owns the work, which ends with it.
    on_error : callable, optional
        Called with an error of the work, after the user has been notified of it. A request that waits is done then too.
    """

    def __init__(self, owner: QWidget | None, on_error: Callable[[Exception], Any] | None = None) -> None:
        self.owner, self._on_error = owner, on_error
        self._worker: EventWorker | None = None
        self._waiting: Callable[[], Work] | None = None

    @property
    def is_busy(self) -> bool:
        """Whether work is being done."""
        return self._worker is not None and self._worker.is_running

    @property
    def is_waiting(self) -> bool:
        """Whether a request waits until the work that is being done has ended; may be read on its thread."""
        return self._waiting is not None

    def ask(self, begin: Callable[[], Work]) -> None:
        """Do some work now, or once the running work has ended unless something else is asked for until then.

        Parameters
        ----------
        begin : callable
            Called when the work begins, on the GUI thread, so that it sees the state of that moment; returns the work.

        Raises
        ------
        KDUNetError
            If `begin` raises it at once; later on the user is notified of it, as of an error of the work.
        """
        if self.is_busy:
            self._waiting = begin
            return
        make_events, on_event = begin()
        self._worker = run(make_events, on_event=on_event, on_done=self._ended, on_error=self._ended, owner=self.owner)

    def drop(self) -> None:
        """Forget what is running and what waits: nothing of it is shown."""
        self._waiting = None
        if self._worker is not None:
            self._worker.drop()
            self._worker = None

    def _ended(self, error: Exception | None = None) -> None:
        self._worker = None
        if error is not None:
            self._failed(error)
        begin, self._waiting = self._waiting, None
        if begin is not None:
            try:
                self.ask(begin)
            except KDUNetError as wrong:
                report(wrong)
                self._failed(wrong)

    def _failed(self, error: Exception) -> None:
        if self._on_error is not None:
            self._on_error(error)
