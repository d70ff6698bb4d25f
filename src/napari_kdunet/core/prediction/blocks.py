"""What all blocks of a lazy result have in common: one node of its graph, made anew in each process that computes."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, TypeAlias

from numpy.typing import NDArray

__all__ = ["Blocks", "Computation", "one_block"]

Computation: TypeAlias = tuple[tuple[int, int, int], Callable[..., NDArray[Any]]]
"""Sides of a block (Z, Y, X), and what computes one from its spans, each a start and a stop, in Z, Y and X."""

_make_lock = threading.Lock()  # one computation a process


class Blocks:
    """The blocks of a ZYX array.

    Pickled as what makes them: another process makes its own when it computes its first block, for the device,
    threads and compiled kernels that it has.

    Parameters
    ----------
    make : callable
        What it returns holds what cannot be sent: engines, locks. Called now too, as what it is made of may change.
    shape : tuple of int
        Of the array.
    """

    def __init__(self, make: Callable[[], Computation], shape: tuple[int, int, int]) -> None:
        self.make, self.shape = make, shape
        self.sides, computation = make()
        self._compute: Callable[..., NDArray[Any]] | None = computation

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_compute": None}

    def __call__(self, block_id: tuple[int, int, int]) -> NDArray[Any]:
        """Compute one, by its indices."""
        with _make_lock:
            compute = self._compute = self._compute or self.make()[1]
        starts = (i * side for i, side in zip(block_id, self.sides, strict=True))
        return compute(*((a, min(a + side, n)) for a, side, n in zip(starts, self.sides, self.shape, strict=True)))


def one_block(blocks: Blocks, block_id: tuple[int, int, int] = (0, 0, 0)) -> NDArray[Any]:
    """For `dask.array.map_blocks`."""
    return blocks(block_id)
