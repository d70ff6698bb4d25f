"""Turns at the engines of a network: how many tiles are in memory at a time, and how many threads compute each."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from queue import LifoQueue

from napari_kdunet.core.devices import using_threads
from napari_kdunet.core.prediction.engine import Forward

__all__ = ["Turns"]

_forward_lock = threading.Lock()  # engines that use all threads, or the whole GPU, compute one at a time


class Turns:
    """Admits two tiles at a time, whatever the number of dask's threads.

    With one engine, one tile is read while the other is computed. A tiny network has two engines: two tiles side by
    side, each with half of the threads, are finished sooner, as threads that compute one tile together wait for each
    other whenever the next tile is read.

    Parameters
    ----------
    engines : sequence of Forward
        One or two engines of the same network.
    threads : int
        CPU threads of all engines together.

    Attributes
    ----------
    forward : Forward
        The first engine.
    """

    def __init__(self, engines: Sequence[Forward], threads: int) -> None:
        self.forward, self.threads, self._is_shared = engines[0], threads, len(engines) == 1
        self._free: LifoQueue[Forward] = LifoQueue()
        for engine in (engines[-1], engines[0]):  # the first is taken first: a single caller always gets it
            self._free.put(engine)

    @contextmanager
    def tile(self) -> Iterator[Forward]:
        """Wait until another tile may be in memory; yield its engine, to be used within `turn`."""
        forward = self._free.get()
        try:
            with using_threads(self.threads if self._is_shared else 1):
                yield forward
        finally:
            self._free.put(forward)

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Wait until the engine of a tile may compute, and give it the threads that another tile does not use."""
        if self._is_shared:
            with _forward_lock, using_threads(self.threads):
                yield
        else:
            with using_threads(self.threads if self._free.qsize() else max(1, self.threads // 2)):
                yield
