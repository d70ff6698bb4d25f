"""The voxel size that a file states, in whatever form and unit, as nm along Z, Y and X, or as unknown with a note."""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

from napari_kdunet.core.errors import one_line

__all__ = [
    "Sizes",
    "Stated",
    "VoxelSize",
    "is_plausible",
    "nanometres",
    "read_metadata",
    "read_voxel_size",
    "three_sizes",
    "to_number",
]

VoxelSize: TypeAlias = tuple[float, float, float]
Sizes: TypeAlias = dict[str, tuple[Any, Any]]
Stated: TypeAlias = Mapping[str, tuple[Any, Any]]
"""Size and unit of each axis (z, y, x), as they stand in the file: text, a number or anything else."""

_UNITS = {
    1e-3: "pm picometer picometre",
    0.1: "å a ang angstrom ångström ångstrom",
    1.0: "nm nanometer nanometre",
    1e3: "μm um micron micrometer micrometre âμm �m",  # the last two: UTF-8 and Latin-1 taken for each other
    1e6: "mm millimeter millimetre",
    1e7: "cm centimeter centimetre",
    25.4e6: "in inch inche",
    1e9: "m meter metre",
}
_NM = {name: factor for factor, names in _UNITS.items() for name in names.split()}
_NO_UNIT = ("", "none", "null", "pixel", "px", "voxel", "unknown")
_SMALLEST, _LARGEST = 0.1, 500.0  # nm: pixels of volume EM are within this range
_MOST_UNLIKE = 100  # times that slices are rarely farther apart, or nearer, than pixels


def to_number(value: Any) -> float:
    """Read a number that may be text, with a decimal comma, or a rational; NaN if it is not a number."""
    if isinstance(value, bytes):
        value = value.decode("latin-1")
    if isinstance(value, str):
        value = value.strip().replace("\xa0", "").replace(" ", "")
        if re.fullmatch(r"[-+]?\d*(\.\d{3})*,\d+([eE][-+]?\d+)?", value):
            value = value.replace(".", "").replace(",", ".")  # 1.234,5
        elif re.fullmatch(r"[-+]?\d{1,3}(,\d{3})+\.\d*([eE][-+]?\d+)?", value):
            value = value.replace(",", "")  # 1,234.5
    try:
        if isinstance(value, (tuple, list)) and len(value) == 2:  # a rational of a TIFF tag
            return float(value[0]) / float(value[1])
        return float(value[0] if isinstance(value, (tuple, list)) and len(value) == 1 else value)
    except (TypeError, ValueError, OverflowError, ArithmeticError):
        return math.nan


def three_sizes(given: Any) -> VoxelSize | None:
    """Return sizes along Z, Y and X as floats, whatever numbers they are; None if they are not three positive ones."""
    try:
        z, y, x = (float(size) for size in ("" if isinstance(given, str) else given))
    except (TypeError, ValueError, OverflowError):
        return None
    return (z, y, x) if all(0 < size < math.inf for size in (z, y, x)) else None


def nanometres(size: Any, unit: Any) -> float | None:
    """Convert a size to nm; None if it is 0, infinite or not a number, or its unit is not one of length."""
    text = _unit_text(unit)
    factor = _NM.get(text, _NM.get(text.removesuffix("s")))
    size = abs(to_number(size))
    return size * factor if factor and 0 < size < math.inf else None


def read_voxel_size(stated: Stated, *, level: int = 0) -> tuple[VoxelSize | None, tuple[str, ...]]:
    """Return the voxel size (nm, ZYX) that a file states, None if unknown, and notes on what makes no sense in it.

    Sizes that are not stated are filled in: y and x from each other, z from x. A pixel under 0.1 or over 500 nm in
    plane (at the full resolution of a pyramid) counts as unknown: its unit is another one, or it is meant for printing.
    A distance of slices over 100 times the pixel size, or under a hundredth of it, is taken as stated, with a note.

    Parameters
    ----------
    stated : mapping
        Size and unit of each axis, as they stand in the file.
    level : int
        Scale level of a pyramid.
    """
    sizes = {axis: nanometres(*stated[axis]) for axis in stated}
    odd = {axis: _as_stated(*stated[axis]) for axis, size in sizes.items() if size is None}
    y, x = sizes.get("y") or sizes.get("x"), sizes.get("x") or sizes.get("y")
    if not (x and y):
        text = next(filter(None, map(odd.get, "xyz")), None)
        return None, (f"pixel size unknown: it is stated as {text}",) if text else ()
    if not is_plausible((x, y, x), level):
        text = f"{y:.6g} x {x:.6g} nm is stated, which is under {_SMALLEST:g} or over {_LARGEST:g} nm"
        return None, (f"pixel size unknown: {text}",)
    notes = []
    for axis, what, other in (("y", "pixel size along y", "that along x"), ("x", "pixel size along x", "that along y")):
        if text := odd.get(axis):
            notes.append(f"{what} unknown: it is stated as {text}, and taken as {other}")
    if text := odd.get("z"):
        notes.append(f"slice distance unknown: it is stated as {text}, and taken as the pixel size")
    z = sizes.get("z") or x
    if not x / _MOST_UNLIKE / 2**level <= z <= max(x, y) * _MOST_UNLIKE:
        text = f"slices {z:.6g} nm apart, of pixels of {x:.6g} nm, are stated"
        notes.append(f"slice distance doubtful: {text}: if a unit is wrong or left out, give the voxel size")
    z, y, x = (float(f"{size:.7g}") for size in (z, y, x))  # many were stored in single precision
    return (z, y, x), tuple(notes)


def is_plausible(size: VoxelSize, level: int = 0) -> bool:
    """Whether a microscope may have pixels of this size (nm, ZYX) in plane, at a scale level of a pyramid."""
    return min(size[1:]) >= _SMALLEST and max(size[1:]) <= _LARGEST * 2**level


def read_metadata(read: Callable[[], Sizes], what: str) -> tuple[Sizes, tuple[str, ...]]:
    """Return what `read` finds, or nothing and a note if it fails: bad metadata must not keep an image from opening."""
    try:
        return read(), ()
    except Exception as error:  # noqa: BLE001
        return {}, (f"pixel size unknown: its {what} cannot be read ({one_line(error)[:60]})",)


def _unit_text(unit: Any) -> str:
    """Return a unit in lower case, with one form each of the micro sign and of Å."""
    if isinstance(unit, bytes):
        unit = unit.decode("utf-8", "replace")
    text = re.sub(r"\\u([0-9a-fA-F]{4})", lambda code: chr(int(code[1], 16)), str(unit))  # ImageJ's escapes
    return unicodedata.normalize("NFKC", text).strip(" \t\r\n\0\"'").lower()


def _as_stated(size: Any, unit: Any) -> str:
    """Return what the file states, for a note; empty if that has no meaning (no size, 0, or 1 without a unit)."""
    without = _unit_text(unit) in _NO_UNIT
    if size is None or size in ("", 0) or (without and abs(to_number(size)) == 1):
        return ""
    shown = "/".join(map(str, size)) if isinstance(size, (tuple, list)) else str(size)
    return f"{shown[:40]} {'without a unit' if without else str(unit)[:20]}"
