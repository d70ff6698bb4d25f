"""Format numbers for reading."""

from __future__ import annotations

from collections.abc import Iterable

__all__ = ["clock", "counted", "format_slices"]


def counted(number: int, what: str) -> str:
    """Say how many: ``1 slice``, ``2 slices``."""
    return f"{number:,} {what}" if number == 1 else f"{number:,} {what}s"


def format_slices(slices: Iterable[int]) -> str:
    """Format slice numbers, each once, as `parse_slices` reads them, with half-open ranges: ``3,8,20:30``."""
    spans: list[list[int]] = []
    for z in sorted(set(slices)):
        if spans and z == spans[-1][1]:
            spans[-1][1] += 1
        else:
            spans.append([z, z + 1])
    return ",".join(f"{first}:{stop}" if stop > first + 1 else str(first) for first, stop in spans)


def clock(seconds: float) -> str:
    """Format a time in seconds as ``m:ss``, or ``h:mm:ss``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
