"""The thin layer over the generator worker: each end reaches the GUI, and the generator is closed by then."""

import itertools
import threading

import pytest
from qtpy.QtCore import QThreadPool
from qtpy.QtWidgets import QMainWindow, QWidget

from napari_kdunet.core import LabelsError
from napari_kdunet.widgets.notify import OUT_OF_MEMORY
from napari_kdunet.widgets.workers.thread import run


class Counter:
    """Endless events; knows how many were made, on which thread, and whether it was closed."""

    def __init__(self) -> None:
        self.made, self.closed, self.thread = 0, False, None
        self.may_go = threading.Event()
        self.may_go.set()

    def events(self):
        self.thread = threading.current_thread()
        try:
            for self.made in itertools.count(1):
                self.may_go.wait(0.01)
                yield self.made
        finally:
            self.closed = True


def failing(error):
    def events():
        yield 1
        raise error

    return events


def test_events_are_made_on_a_thread_and_told_on_the_gui_thread(qtbot):
    told, ended = [], []
    worker = run(
        lambda: iter([threading.current_thread()]),
        on_event=lambda event: told.append((event, threading.current_thread())),
        on_done=lambda: ended.append(True),
    )
    qtbot.waitUntil(lambda: bool(ended))
    made, heard = told[0]
    assert made is not heard
    assert heard is threading.main_thread()
    assert not worker.is_running
    assert not worker.stopped


def test_long_work_leaves_room_for_more_on_one_core(qtbot):
    pool = QThreadPool.globalInstance()
    before, counters = pool.maxThreadCount(), [Counter(), Counter(), Counter()]
    pool.setMaxThreadCount(1)
    try:
        workers = [run(counter.events, on_event=lambda _: None) for counter in counters]
        qtbot.waitUntil(lambda: all(counter.made > 2 for counter in counters))
        for worker in workers:
            with qtbot.waitSignal(worker.finished):
                worker.stop()
        assert pool.waitForDone(5000)
        assert pool.activeThreadCount() == 0
    finally:
        pool.setMaxThreadCount(before)


def test_stop_closes_the_generator_before_the_end_is_told(qtbot):
    counter, at_end = Counter(), []
    worker = run(counter.events, on_event=lambda _: None, on_done=lambda: at_end.append(counter.closed))
    qtbot.waitUntil(lambda: counter.made > 2)
    with qtbot.waitSignal(worker.finished):
        worker.stop()
    assert at_end == [True]
    assert worker.stopped


def test_pause_means_no_further_events(qtbot):
    counter, told = Counter(), []
    worker = run(counter.events, on_event=told.append)
    qtbot.waitUntil(lambda: len(told) > 2)
    with qtbot.waitSignal(worker.paused):
        worker.pause()
    made, heard = counter.made, len(told)
    with qtbot.assertNotEmitted(worker.finished, wait=200):
        pass
    assert (counter.made, len(told)) == (made, heard)
    assert worker.is_paused
    with qtbot.waitSignal(worker.resumed):
        worker.resume()
    qtbot.waitUntil(lambda: len(told) > heard)
    with qtbot.waitSignal(worker.finished):
        worker.stop()


def test_a_paused_worker_can_be_stopped(qtbot):
    counter = Counter()
    worker = run(counter.events, on_event=lambda _: None)
    qtbot.waitUntil(lambda: counter.made > 2)
    with qtbot.waitSignal(worker.paused):
        worker.pause()
    with qtbot.waitSignal(worker.finished):
        worker.stop()
    assert counter.closed


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (RuntimeError("a wrong shape"), "a wrong shape"),
        (ValueError("a wrong value"), "a wrong value"),
        (LabelsError("labels hold nothing: paint some."), "labels hold nothing: paint some."),
        (MemoryError("Unable to allocate 9 TiB"), OUT_OF_MEMORY),
        (RuntimeError("CUDA out of memory. Tried to allocate 9 TiB\nand much more"), OUT_OF_MEMORY),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), OUT_OF_MEMORY),
    ],
)
def test_an_error_of_any_type_reaches_the_user_and_the_caller(qtbot, notified, error, message):
    seen, ended = [], []
    worker = run(failing(error), on_event=lambda _: None, on_error=seen.append, on_done=lambda: ended.append(1))
    qtbot.waitUntil(lambda: not worker.is_running)
    assert seen == [error]
    assert not ended
    assert len(notified) == 1
    assert message in notified[0]


def test_an_error_while_making_or_closing_the_events_reaches_the_user_too(qtbot, notified):
    def broken():
        raise RuntimeError("cannot open")

    def spiteful():
        try:
            yield from itertools.count()
        finally:
            raise OSError("cannot save")

    worker = run(broken, on_event=lambda _: None)
    qtbot.waitUntil(lambda: not worker.is_running)
    told = []
    worker = run(spiteful, on_event=told.append)
    qtbot.waitUntil(lambda: len(told) > 1)
    worker.stop()
    qtbot.waitUntil(lambda: not worker.is_running)
    assert [message.splitlines()[-1] for message in notified] == ["cannot open", "cannot save"]


def test_destroying_the_owner_stops_the_work_and_calls_nothing_more(qtbot):
    owner, counter, told = QWidget(), Counter(), []
    run(counter.events, on_event=told.append, on_done=lambda: told.append("done"), owner=owner)
    qtbot.waitUntil(lambda: len(told) > 2)
    owner.deleteLater()
    qtbot.waitUntil(lambda: counter.closed)
    heard = len(told)
    qtbot.wait(50)
    assert len(told) == heard
    assert "done" not in told


def test_taking_the_owner_out_of_its_window_stops_the_work(qtbot):
    window, owner, counter = QMainWindow(), QWidget(), Counter()
    qtbot.addWidget(window)
    window.setCentralWidget(owner)
    worker = run(counter.events, on_event=lambda _: None, owner=owner)
    qtbot.waitUntil(lambda: counter.made > 2)
    with qtbot.waitSignal(worker.finished):
        owner.setParent(None)
    assert counter.closed
    owner.deleteLater()


class Late:
    """Work whose event, and whose end by an error if there is one, come only once the test lets them."""

    def __init__(self, error=None):
        self.error, self.begun, self.may_go = error, threading.Event(), threading.Event()

    def events(self):
        self.begun.set()
        self.may_go.wait(5)
        if self.error is not None:
            raise self.error
        yield "found"


@pytest.mark.parametrize("error", [None, ValueError("a wrong value")])
def test_what_a_removed_owner_would_have_been_told_is_not_told(qtbot, notified, error):
    window, owner, late, told = QMainWindow(), QWidget(), Late(error), []
    qtbot.addWidget(window)
    window.setCentralWidget(owner)
    worker = run(late.events, on_event=told.append, on_done=lambda: told.append(1), on_error=told.append, owner=owner)
    qtbot.waitUntil(late.begun.is_set)
    owner.setParent(None)
    assert worker.stopped
    with qtbot.waitSignal(worker.finished):
        late.may_go.set()
    assert told == []
    owner.deleteLater()


def test_an_event_on_its_way_does_not_reach_a_removed_owner(qtbot):
    """It has left the thread, and waits for the GUI."""
    window, owner, told, sent = QMainWindow(), QWidget(), [], threading.Event()
    qtbot.addWidget(window)
    window.setCentralWidget(owner)

    def events():
        yield "found"
        sent.set()

    worker = run(events, on_event=told.append, on_done=lambda: told.append("done"), owner=owner)
    assert sent.wait(10)
    with qtbot.waitSignal(worker.finished):
        owner.setParent(None)
    assert told == []
    owner.deleteLater()


def test_after_stop_the_event_under_way_is_told_and_after_drop_nothing(qtbot):
    """A training that is stopped in a validation keeps that model."""
    for end, wanted in (("stop", ["found", "done"]), ("drop", [])):
        late, told = Late(), []
        worker = run(late.events, on_event=told.append, on_done=lambda told=told: told.append("done"))
        qtbot.waitUntil(late.begun.is_set)
        getattr(worker, end)()
        with qtbot.waitSignal(worker.finished):
            late.may_go.set()
        assert told == wanted


def test_two_workers_at_once_do_not_mix(qtbot):
    first, second, done = [], [], []
    run(lambda: iter(range(100)), on_event=first.append, on_done=lambda: done.append(1))
    run(lambda: iter(range(100, 200)), on_event=second.append, on_done=lambda: done.append(2))
    qtbot.waitUntil(lambda: len(done) == 2)
    assert first == list(range(100))
    assert second == list(range(100, 200))
