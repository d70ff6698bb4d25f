"""Prefetching: the next batch is made on a helper thread while this step runs."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait

from napari_kdunet.core.data.patches import Batch
from napari_kdunet.core.devices import using_threads

__all__ = ["Prefetcher"]


class Prefetcher:
    """Makes the batch of the next step on a helper thread.

    A batch is a function of its step alone, so it does not matter when it is made.

    Parameters
    ----------
    make : callable
        Makes the batch, given the step and whether the teacher's logits are needed.
    threads : int
        CPU threads for making it.
    """

    def __init__(self, make: Callable[[int, bool], Batch], threads: int) -> None:
        self._make, self.threads = make, threads
        self._helper = ThreadPoolExecutor(1, "kdunet-batches")
        self._next: tuple[tuple[int, bool], Future[Batch]] | None = None

    def batch(self, step: int, teacher: bool) -> Batch:
        """Return the batch of this step, which was prefetched during the step before."""
        if self._next is None or self._next[0] != (step, teacher):
            self._next = self._submit(step, teacher)
        batch = self._next[1].result()
        self._next = self._submit(step + 1, teacher)
        return batch

    def forget(self) -> None:
        """Drop the batch that was prefetched, once it is made: what batches are made of is about to change."""
        if self._next is not None:
            wait([self._next[1]])
        self._next = None

    def close(self) -> None:
        """End the helper thread."""
        self._helper.shutdown(cancel_futures=True)

    def _submit(self, step: int, teacher: bool) -> tuple[tuple[int, bool], Future[Batch]]:
        def make() -> Batch:
            with using_threads(self.threads):
                return self._make(step, teacher)

        return (step, teacher), self._helper.submit(make)
