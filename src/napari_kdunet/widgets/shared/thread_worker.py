"""Long work on a thread: a stream of events that the GUI can pause, resume and stop.

A thin layer over superqt's `GeneratorWorker` (which is napari's too). As it comes, a `RuntimeError` in the generator
becomes a warning, after which neither ``errored`` nor ``finished`` is emitted; ``quit()`` leaves the generator open, so
that its ``finally:`` has not run; and each worker swaps the process-wide ``warnings.showwarning``, which two workers
at once restore in the wrong order. All three are mended here. And there are as many threads as cores for all of Qt, so
that on two of them two trainings would leave none for a preview: here work does not count as taking one.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from contextlib import suppress
from typing import Any, ClassVar

from qtpy.QtCore import QEvent, QObject, QThreadPool, Signal
from qtpy.QtWidgets import QWidget
from superqt.utils import GeneratorWorker

from napari_kdunet.widgets.shared.notify import report

__all__ = ["EventWorker", "run"]

MakeEvents = Callable[[], Iterator[Any]]


def _drive(make_events: MakeEvents) -> Generator[Any, None, None]:
    """Make the events where they are consumed, on the thread; closing this closes them."""
    yield from make_events()


class _Thread(GeneratorWorker):
    """The part on the thread: each exception is emitted, and the generator is closed before ``finished`` is."""

    def run(self) -> None:
        """Work, then tell how it ended; called by Qt."""
        pool = QThreadPool.globalInstance()
        assert pool is not None
        pool.releaseThread()  # of as many threads as cores: long work must not keep the next from beginning
        try:
            with suppress(RuntimeError):  # Qt's own half is gone: the application has ended meanwhile
                self._run()
        finally:
            pool.reserveThread()

    def _run(self) -> None:
        self._running = True
        self.started.emit()
        try:
            result = self.work()
        except Exception as error:  # noqa: BLE001 - nothing is swallowed: it goes to the GUI
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
    """A stream of events made on a thread and told on the GUI thread; `run` makes and starts one.

    It belongs to its owner: when that is destroyed, or taken out of the window (the cross of a dock widget), the work
    is stopped, and nothing of the owner is called any more.

    Attributes
    ----------
    stopped : bool
        Whether it was asked to stop before its end.
    """

    _orphans: ClassVar[set[EventWorker]] = set()  # those without an owner to keep them

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
        self._failed = False
        self.stopped = False
        self._alive = True
        self._thread = thread = _Thread(_drive, make_events)
        thread.yielded.connect(self._tell)
        thread.errored.connect(self._fail)
        thread.paused.connect(self.paused)
        thread.resumed.connect(self.resumed)
        thread.finished.connect(self._finish)
        if owner is None:
            self._orphans.add(self)
        else:
            owner.destroyed.connect(thread.quit)
            owner.installEventFilter(self)

    @property
    def is_running(self) -> bool:
        """Whether the end has not been told yet."""
        return self._alive

    @property
    def is_paused(self) -> bool:
        """Whether the thread is waiting to be resumed."""
        return self._alive and bool(self._thread.is_paused)

    def start(self) -> None:
        """Start the thread; `run` has done it."""
        self._thread.start()

    def pause(self) -> None:
        """Ask for no more events, until `resume`; `paused` is emitted when the one under way has come."""
        self._thread.pause()

    def resume(self) -> None:
        """Go on after `pause`."""
        if self._thread.is_paused:
            self._thread.resume()
        else:  # the pause has not begun yet
            self._thread._pause_requested = False

    def stop(self) -> None:
        """Close the generator after the event under way; then `on_done` is called."""
        self.stopped = True
        self._thread.quit()

    def eventFilter(self, watched: QObject | None, event: QEvent | None) -> bool:
        """Stop when the owner is taken out of its window."""
        moved = event is not None and event.type() == QEvent.Type.ParentChange
        if moved and watched is not None and watched.parent() is None:
            self.stop()
        return False

    def _tell(self, event: Any) -> None:
        self._on_event(event)

    def _fail(self, error: Exception) -> None:
        self._failed = True
        report(error)
        if self._on_error is not None:
            self._on_error(error)

    def _finish(self, *_: Any) -> None:
        self._alive = False
        if not self._failed and self._on_done is not None:
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
    """Start long work on a thread.

    Parameters
    ----------
    make_events : callable
        Called on the thread; gives the iterator that does the work between its events. It must touch neither the
        viewer nor a widget: take what is needed of them before.
    on_event : callable
        Told each event, on the GUI thread.
    on_done : callable, optional
        Called once the events have ended or were stopped, and are closed.
    on_error : callable, optional
        Called with the exception instead, of whatever type; the user has been notified.
    owner : QWidget, optional
        Whose work it is; when it goes, the work is stopped and nothing is called any more.

    Returns
    -------
    EventWorker
        To pause, resume and stop it.
    """
    worker = EventWorker(make_events, on_event, on_done, on_error, owner)
    worker.start()
    return worker
