"""Turns at the engines of a network: how many tiles there are at a time, and with how many threads each is computed."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from queue import LifoQueue

from napari_kdunet.core.devices import using_threads
from napari_kdunet.core.prediction.engine import Forward

__all__ = ["Turns"]

_forward_lock = threading.Lock()  # one forward at a time of engines that use all threads, or the whole GPU


class Turns:
    """Two tiles at a time, whatever the number of dask's threads.

    With one engine, one tile is read while the other is computed. Of a tiny network there are two engines, and two
    tiles are done sooner side by side, each with half of the threads: those that compute one together wait for each
    other whenever the next is read.

    Parameters
    ----------
    engines : sequence of Forward
        One or two of the same network.
    threads : int
        CPU threads of both together.

    Attributes
    ----------
    forward : Forward
        The first engine.
    """

    def __init__(self, engines: Sequence[Forward], threads: int) -> None:
        self.forward, self.threads, self._is_shared = engines[0], threads, len(engines) == 1
        self._free: LifoQueue[Forward] = LifoQueue()
        for engine in (engines[-1], engines[0]):  # the first is taken first: who is alone always has the same
            self._free.put(engine)

    @contextmanager
    def tile(self) -> Iterator[Forward]:
        """Wait until another tile may be in memory; its engine, to be used in its `turn`."""
        forward = self._free.get()
        try:
            with using_threads(self.threads if self._is_shared else 1):
                yield forward
        finally:
            self._free.put(forward)

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Wait until the engine of a tile may compute, with the threads that another tile leaves to it."""
        if self._is_shared:
            with _forward_lock, using_threads(self.threads):
                yield
        else:
            with using_threads(self.threads if self._free.qsize() else max(1, self.threads // 2)):
                yield
