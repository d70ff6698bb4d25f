"""Titles of the columns of measurements in the panel, with units: ``volume_um3`` is "Volume (µm³)"."""

from __future__ import annotations

__all__ = ["USUAL", "title_of"]

#: Columns that come first in the table.
USUAL = (
    "id",
    "checked",
    "volume_um3",
    "surface_um2",
    "skeleton_length_nm",
    "mean_width_nm",
    "branches",
    "sphericity",
    "mean_grey",
    "mean_probability",
    "touches_border",
)

_SHORT = {
    "skeleton_length_nm": "Length (nm)",
    "mean_width_nm": "Width (nm)",
    "mean_grey": "Grey",
    "mean_probability": "Probability",
    "touches_border": "Border",
}
_UNITS = {"nm": "nm", "um2": "µm²", "um3": "µm³"}


def title_of(column: str) -> str:
    """Return the title of a column."""
    if column in _SHORT:
        return _SHORT[column]
    words, _, last = column.rpartition("_")
    unit = f" ({_UNITS[last]})" if last in _UNITS else ""
    return (words if unit else column).replace("_", " ").capitalize() + unit
