"""Names of a model's classes, background first; torch is not imported, as exported models have them too."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["BOUNDARY_CLASSES", "TWO_CLASSES", "has_boundary"]

TWO_CLASSES = ("background", "mitochondrion")
BOUNDARY_CLASSES = (*TWO_CLASSES, "boundary")


def has_boundary(names: Sequence[object]) -> bool:
    """Return whether the last class is the outlines of objects, a part of the foreground: `TrainConfig.boundary`."""
    return len(names) == len(BOUNDARY_CLASSES) and names[-1] == BOUNDARY_CLASSES[-1]
