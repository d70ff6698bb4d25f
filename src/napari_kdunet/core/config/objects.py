"""How objects are made of probabilities: lengths in nm, shares from 0 to 1."""

from __future__ import annotations

from dataclasses import dataclass
from types import NoneType

from napari_kdunet.core.config.setting import check_fields, setting

__all__ = ["ObjectsConfig"]


@dataclass(frozen=True, kw_only=True)
class ObjectsConfig:
    """How a mask or probabilities are split into objects.

    Raises
    ------
    ConfigError
        If a value is out of the bounds in its field's metadata.
    """

    threshold: float | None = setting(
        None,
        "Probability above which a voxel is foreground; empty: the model's own if predict wrote the file, else 0.5.",
        ge=0,
        lt=1,
        types=(float, NoneType),
    )
    split: float = setting(
        0.7,
        "Cut objects at necks thinner than this share of the thinner of the two sides, or where the probability falls "
        "as much; 0 keeps together whatever touches.",
        ge=0,
        le=1,
    )
    min_diameter: float = setting(
        100.0,
        "Leave out objects smaller than a ball (in a single slice: a disc) of this diameter.",
        unit="nm",
        ge=0,
        le=1e6,
    )
    holes: float = setting(50.0, "Width up to which enclosed holes are filled; 0 fills none.", unit="nm", ge=0, le=500)
    smoothing: float = setting(
        0.0, "Smooth the probability by a Gaussian of this standard deviation; 0 is off.", unit="nm", ge=0, le=200
    )
    mode: str = setting(
        "auto",
        "Find objects in 3-D at once (3d), or in each slice and link them along z by overlap (2d); auto: 3d if slices "
        "are at most twice as far apart as pixels.",
        choices=("auto", "2d", "3d"),
    )
    link: float = setting(
        0.3,
        "Overlap (IoU) above which two outlines in neighbouring slices are one object; for mode 2d only.",
        ge=0,
        lt=1,
        advanced=True,
    )

    def __post_init__(self) -> None:
        check_fields(self)
