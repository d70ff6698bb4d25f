"""How images are segmented: the settings of *Segment*."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

if TYPE_CHECKING:
    from napari_kdunet.core import Model

__all__ = ["Planes", "Recipe", "is_same"]

Planes: TypeAlias = Literal["z", "zyx"]
"""Axes along which slices are predicted, as in `core.predict`."""


def is_same(one: Model, other: Model) -> bool:
    """Return whether two models are the same, apart from the number of views that they are averaged over."""
    return one.net is other.net and one.threshold == other.threshold


@dataclass(frozen=True)
class Recipe:
    """A model, and how it is applied; the same for all images of a batch."""

    model: Model
    model_name: str
    threshold: float
    inverted: bool = False
    """Whether bright and dark are exchanged for the model."""
    planes: Planes = "z"
