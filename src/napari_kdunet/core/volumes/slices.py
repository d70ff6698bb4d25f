"""Choice of the slices that stand for a volume."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["spaced"]


def spaced(slices: Sequence[int], most: int) -> tuple[int, ...]:
    """Return at most `most` of the slices, evenly spaced."""
    count = min(len(slices), most)
    return tuple(slices[(2 * i + 1) * len(slices) // (2 * count)] for i in range(count))
