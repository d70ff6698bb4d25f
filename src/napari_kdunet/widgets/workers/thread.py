"""Run a generator of events on a thread; the GUI can pause, resume and stop it.

A thin layer over superqt's `GeneratorWorker` (which is napari's too) that mends four things. There, a `RuntimeError` in
the generator becomes a warning, after which neither ``errored`` nor ``finished`` is emitted; ``quit()`` does not close
the generator, so that its ``finally:`` does not run; each worker replaces the global ``warnings.showwarning``, which
two workers at once restore in the wrong order; and Qt's thread pool has as many threads as there are cores, so that two
trainings on two cores would leave none for a preview: here a worker does not count as taking one.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from contextlib import suppress
from typing import Any, ClassVar

from qtpy.QtCore import QEvent, QObject, QThreadPool, Signal
from qtpy.QtWidgets import QWidget
from superqt.utils import GeneratorWorker

from napari_kdunet.widgets.notify import report

__all__ = ["EventWorker", "run", "run_stoppable"]

MakeEvents = Callable[[], Iterator[Any]]


def _drive(make_events: MakeEvents) -> Generator[Any, None, None]:
    """Make the events on the thread that consumes them; closing this generator closes them."""
    yield from make_events()


class _Thread(GeneratorWorker):
    """The worker in the thread pool: emits each exception, and closes the generator before it emits ``finished``."""

    def run(self) -> None:
        """Run the generator, and emit how it ended; called by Qt."""
        pool = QThreadPool.globalInstance()
        assert pool is not None
        pool.releaseThread()  # so that another worker can start, however few cores there are
        try:
            with suppress(RuntimeError):  # the Qt object is deleted: the application has ended
                self._run()
        finally:
            pool.reserveThread()

    def _run(self) -> None:
        self._running = True
        self.started.emit()
        try:
            result = self.work()
        except Exception as error:  # noqa: BLE001 - emitted, for the GUI to show
            self.errored.emit(error)
        else:
            if not self.abort_requested:
                self.returned.emit(result)
        self._running = False
        self.finished.emit()
        self._finished.emit(self)

    def work(self) -> Any:
        """Run the generator to its end or until asked to quit, and close it."""
        try:
            result = super().work()
        finally:
            self._gen.close()
        if isinstance(result, Exception):  # how the base class hands a RuntimeError back
            raise result
        return result


class EventWorker(QObject):
    """Runs a generator on a thread and handles its events on the GUI thread; `run` makes and starts one.

    It belongs to its owner: when that is destroyed or removed from its window (a dock widget that is closed), the
    worker is stopped, and no callback is called any more.
    """

    _orphans: ClassVar[set[EventWorker]] = set()  # workers without an owner, to keep them alive

    paused = Signal()
    resumed = Signal()
    finished = Signal()  # after on_done or on_error; the generator is closed

    def __init__(
        self,
        make_events: MakeEvents,
        on_event: Callable[[Any], Any],
        on_done: Callable[[], Any] | None,
        on_error: Callable[[Exception], Any] | None,
        owner: QWidget | None,
    ) -> None:
        super().__init__(owner)
        self._on_event, self._on_done, self._on_error = on_event, on_done, on_error
        self._failed = self._dropped = False
        self._alive = True
        self._thread = thread = _Thread(_drive, make_events)
        thread.yielded.connect(self._handle_event)
        thread.errored.connect(self._handle_error)
        thread.paused.connect(self.paused)
        thread.resumed.connect(self.resumed)
        thread.finished.connect(self._handle_end)
        if owner is None:
            self._orphans.add(self)
        else:
            owner.destroyed.connect(thread.quit)
            owner.installEventFilter(self)

    @property
    def stopped(self) -> bool:
        """Whether the worker was told to stop, or its owner is gone; may be read on the worker's thread."""
        return bool(self._thread.abort_requested)

    @property
    def is_running(self) -> bool:
        """Whether the worker has neither ended, as seen on the GUI thread, nor been dropped."""
        return self._alive and not self._dropped

    @property
    def is_paused(self) -> bool:
        """Whether the worker is paused."""
        return self._alive and bool(self._thread.is_paused)

    def start(self) -> None:
        """Start the thread; `run` and `run_stoppable` do this."""
        self._thread.start()

    def pause(self) -> None:
        """Pause after the current event, until `resume`; then `paused` is emitted."""
        self._thread.pause()

    def resume(self) -> None:
        """Continue after `pause`."""
        if self._thread.is_paused:
            self._thread.resume()
        else:  # the pause has not begun yet
            self._thread._pause_requested = False

    def stop(self) -> None:
        """Close the generator after the current event, which is still handled; then `on_done` is called."""
        self._thread.quit()

    def drop(self) -> None:
        """Stop, and call no further callbacks: the results are no longer wanted."""
        self._dropped = True
        self.stop()

    def eventFilter(self, watched: QObject | None, event: QEvent | None) -> bool:
        """Drop the work when the owner is removed from its window."""
        moved = event is not None and event.type() == QEvent.Type.ParentChange
        if moved and watched is not None and watched.parent() is None:
            self.drop()
        return False

    def _handle_event(self, event: Any) -> None:
        if not self._dropped:
            self._on_event(event)

    def _handle_error(self, error: Exception) -> None:
        self._failed = True
        report(error)
        if self._on_error is not None and not self._dropped:
            self._on_error(error)

    def _handle_end(self, *_: Any) -> None:
        self._alive = False
        if not self._failed and self._on_done is not None and not self._dropped:
            self._on_done()
        self.finished.emit()
        self._orphans.discard(self)
        self.deleteLater()


def run(
    make_events: MakeEvents,
    *,
    on_event: Callable[[Any], Any],
    on_done: Callable[[], Any] | None = None,
    on_error: Callable[[Exception], Any] | None = None,
    owner: QWidget | None = None,
) -> EventWorker:
    """Run a generator on a thread.

    Parameters
    ----------
    make_events : callable
        Called on the thread; returns the iterator of events. It must access neither the viewer nor a widget: read
        what it needs of them before.
    on_event : callable
        Called with each event, on the GUI thread.
    on_done : callable, optional
        Called when the generator has ended or was stopped, and is closed.
    on_error : callable, optional
        Called instead of `on_done` with an exception of any type, after the user has been notified of it.
    owner : QWidget, optional
        Widget that owns the worker: when it is removed, the generator is stopped and no callback is called any more.

    Returns
    -------
    EventWorker
        The running worker, to pause, resume and stop it.
    """
    return run_stoppable(lambda _: make_events(), on_event=on_event, on_done=on_done, on_error=on_error, owner=owner)


def run_stoppable(
    make_events: Callable[[Callable[[], bool]], Iterator[Any]],
    *,
    on_event: Callable[[Any], Any],
    on_done: Callable[[], Any] | None = None,
    on_error: Callable[[Exception], Any] | None = None,
    owner: QWidget | None = None,
) -> EventWorker:
    """Run a generator on a thread as `run` does; `make_events` is given a function that returns whether to stop."""
    worker = EventWorker(lambda: make_events(lambda: worker.stopped), on_event, on_done, on_error, owner)
    worker.start()  # only now, as the work asks `worker`
    return worker
