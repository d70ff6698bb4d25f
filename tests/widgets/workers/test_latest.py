"""Of what is asked for while work is being done, only the latest is done."""

import threading

import pytest

from napari_kdunet import core
from napari_kdunet.widgets.workers.latest import LatestRequest


@pytest.fixture
def latest(qtbot):
    """Make a `LatestRequest`; gives it, and the list of the errors that it has told."""
    from qtpy.QtWidgets import QWidget

    owner, errors = QWidget(), []
    qtbot.addWidget(owner)
    return LatestRequest(owner, errors.append), errors


def work(name, done, *, until=None, error=None):
    """Work that notes its name, once the event `until` is set."""

    def events():
        if until is not None:
            until.wait(10)
        if error is not None:
            raise error
        yield name

    return lambda: (events, done.append)


def test_only_the_latest_of_those_that_wait_is_done(latest, qtbot):
    request, errors = latest
    done, go = [], threading.Event()
    request.ask(work("first", done, until=go))
    for name in ("second", "third", "fourth"):
        request.ask(work(name, done))
    assert (request.is_busy, request.is_waiting) == (True, True)
    go.set()
    qtbot.waitUntil(lambda: not request.is_busy)
    assert done == ["first", "fourth"]
    assert errors == []
    assert not request.is_waiting
    request.ask(work("fifth", done))
    qtbot.waitUntil(lambda: not request.is_busy)
    assert done[-1] == "fifth"


def test_what_is_dropped_is_neither_shown_nor_followed(latest, qtbot):
    request, _ = latest
    done, go = [], threading.Event()
    request.ask(work("first", done, until=go))
    request.ask(work("second", done))
    request.drop()
    assert (request.is_busy, request.is_waiting) == (False, False)
    request.ask(work("third", done))
    go.set()
    qtbot.waitUntil(lambda: not request.is_busy)
    assert done == ["third"]


def test_after_an_error_the_request_that_waits_is_done(latest, qtbot, notified):
    request, errors = latest
    done, go, wrong = [], threading.Event(), core.VolumeError("the slice is damaged")
    request.ask(work("first", done, until=go, error=wrong))
    request.ask(work("second", done))
    go.set()
    qtbot.waitUntil(lambda: bool(done))
    assert done == ["second"]
    assert errors == [wrong]
    assert notified == ["the slice is damaged"]


def test_what_cannot_begin_is_raised_at_once_and_told_later(latest, qtbot, notified):
    request, errors = latest
    wrong = core.VolumeError("no volume")

    def refuse():
        raise wrong

    with pytest.raises(core.VolumeError):
        request.ask(refuse)
    done, go = [], threading.Event()
    request.ask(work("first", done, until=go))
    request.ask(refuse)
    go.set()
    qtbot.waitUntil(lambda: bool(errors))
    assert (errors, notified, done) == ([wrong], ["no volume"], ["first"])
    assert not request.is_busy
