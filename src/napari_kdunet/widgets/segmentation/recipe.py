"""How images are segmented: what *Segment* is set to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

if TYPE_CHECKING:
    from napari_kdunet.core import Model

__all__ = ["Planes", "Recipe", "is_same"]

Planes: TypeAlias = Literal["z", "zyx"]
"""Along which axes the slices are: as of `core.predict`."""


def is_same(one: Model, other: Model) -> bool:
    """Whether two models are one, but for the views that they are averaged over."""
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
