"""Batches made ahead: that of the next step is made while this one runs."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

from napari_kdunet.core.data.patches import Batch
from napari_kdunet.core.devices import using_threads

__all__ = ["BatchMaker"]


class BatchMaker:
    """A helper thread that makes the batch of the step after the one asked for.

    A batch depends on nothing but the step, so it does not matter when it is made.

    Parameters
    ----------
    make : callable
        From a step, and whether the teacher is to be heard, to the batch.
    threads : int
        CPU threads to make it with.
    """

    def __init__(self, make: Callable[[int, bool], Batch], threads: int) -> None:
        self._make, self._threads = make, threads
        self._helper = ThreadPoolExecutor(1, "kdunet-batches")
        self._ahead: tuple[tuple[int, bool], Future[Batch]] | None = None

    def batch(self, step: int, soft: bool) -> Batch:
        """The batch of this step, made while the step before was running."""
        if self._ahead is None or self._ahead[0] != (step, soft):
            self._ahead = self._start(step, soft)
        made = self._ahead[1].result()
        self._ahead = self._start(step + 1, soft)
        return made

    def close(self) -> None:
        """Let the helper thread go."""
        self._helper.shutdown(cancel_futures=True)

    def _start(self, step: int, soft: bool) -> tuple[tuple[int, bool], Future[Batch]]:
        def make() -> Batch:
            with using_threads(self._threads):
                return self._make(step, soft)

        return (step, soft), self._helper.submit(make)
