"""The voxel size that a TIFF states: in OME-XML, ImageJ's description, the tags of microscopes or of resolution."""

from __future__ import annotations

import html
import math
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any
from xml.etree import ElementTree

import tifffile

from napari_kdunet.core.reading.voxel_size import Sizes, nanometres, read_metadata

__all__ = ["has_sane_ome", "ome_file_names", "stated_sizes"]


_MOST_PLANES = 10**6


def stated_sizes(tif: tifffile.TiffFile, series: int) -> tuple[Sizes, tuple[str, ...]]:
    """Return the sizes of the first place that states usable ones, else of the first that states any.

    Notes come with the latter: at most one, on a place that cannot be read.

    Parameters
    ----------
    tif : TiffFile
        An open TIFF.
    series : int
        Index of the image in an OME-TIFF with several.
    """
    places: dict[str, Callable[[], Sizes]] = {
        "OME-XML": lambda: _ome(tif, series),
        "ImageJ description": lambda: _imagej(tif),
        "microscope's tags": lambda: _microscope(tif),
        "resolution tags": lambda: _resolution(tif),
    }
    odd, notes = Sizes(), tuple[str, ...]()
    for place, read in places.items():
        sizes, wrong = read_metadata(read, place)
        notes += wrong
        if any(nanometres(*sizes[axis]) for axis in "yx" if axis in sizes):
            return sizes, ()
        odd = odd or sizes
    return odd, notes[:1]


def ome_file_names(xml: str) -> set[str]:
    """Return the names of the files that hold parts of an OME-TIFF, according to its OME-XML."""
    if "<OME" not in xml and ":OME" not in xml:
        return set()
    names = {html.unescape(name) for _, name in re.findall(r"FileName\s*=\s*([\"'])(.+?)\1", xml, re.DOTALL)}
    with suppress(ElementTree.ParseError):
        names |= {element.attrib["FileName"] for element in ElementTree.fromstring(xml).iterfind(".//*[@FileName]")}
    return names


def has_sane_ome(xml: str) -> bool:
    """Whether tifffile can safely read this OME-XML: it states no absurd numbers of planes, and no document type.

    tifffile makes lists as long as the numbers of planes. A document type could define entities, and so names of files
    that are not what they look like.
    """
    if "<!DOCTYPE" in xml:
        return False
    counts = re.findall(r"(?:Size[ZCT]|First[ZCT]|IFD|NumPlanes|PlaneCount)\s*=\s*[\"']\s*\+?(\d+)", xml)
    sizes = [re.findall(r"Size[ZCT]\s*=\s*[\"']\s*\+?(\d+)", tag) for tag in re.findall(r"<[^<>]*SizeX[^<>]*", xml)]
    planes = [math.prod(int(n[:12]) for n in tag) for tag in sizes]
    return all(int(n[:12]) <= _MOST_PLANES for n in counts) and all(n <= _MOST_PLANES for n in planes)


def _ome(tif: tifffile.TiffFile, series: int) -> Sizes:
    xml = tif.pages.first.description
    if "OME" not in xml[-20:] and not tif.is_ome:
        return {}
    found: Mapping[str, str]
    try:
        images = [pixels.attrib for pixels in ElementTree.fromstring(xml).iterfind(".//{*}Pixels")]
    except ElementTree.ParseError:  # not well-formed, but the tag may be
        tags = re.findall(r"<(?:\w+:)?Pixels\b([^>]*)", xml)
        images = [dict(re.findall(r"(\w+)\s*=\s*[\"']([^\"']*)[\"']", tag)) for tag in tags]
    if not images:
        return {}
    found = images[series if series < len(images) else 0]
    return {
        axis.lower(): (found[f"PhysicalSize{axis}"], found.get(f"PhysicalSize{axis}Unit", "µm"))
        for axis in "ZYX"
        if f"PhysicalSize{axis}" in found
    }


def _imagej(tif: tifffile.TiffFile) -> Sizes:
    found = tif.imagej_metadata
    if not found or "unit" not in found:
        return {}
    unit, sizes = found["unit"], _per_resolution(tif)
    units = {"z": found.get("zunit", unit), "y": found.get("yunit", unit), "x": unit}
    if "spacing" in found:
        sizes["z"] = found["spacing"]
    return {axis: (size, units[axis]) for axis, size in sizes.items()}


def _microscope(tif: tifffile.TiffFile) -> Sizes:
    """Return sizes by the tags of FEI (Thermo Fisher), Zeiss or Olympus SIS."""
    fei = (tif.fei_metadata or {}).get("Scan", {})
    if "PixelWidth" in fei:
        return {"y": (fei.get("PixelHeight", fei["PixelWidth"]), "m"), "x": (fei["PixelWidth"], "m")}
    zeiss = tif.sem_metadata or {}
    for key in ("ap_image_pixel_size", "ap_pixel_size"):
        if len(zeiss.get(key, ())) > 1:  # tifffile does not split a decimal comma from its unit
            size, _, unit = " ".join(map(str, zeiss[key][1:])).partition(" ")
            return {"y": (size, unit), "x": (size, unit)}
    if zeiss.get("") and isinstance(zeiss[""][3], float):  # older files: unnamed, in metres
        return {"y": (zeiss[""][3], "m"), "x": (zeiss[""][3], "m")}
    sis = tif.sis_metadata or {}
    return {axis: (sis[f"pixelsize{axis}"], "m") for axis in "yx" if f"pixelsize{axis}" in sis}


def _resolution(tif: tifffile.TiffFile) -> Sizes:
    unit = {2: "inch", 3: "cm"}.get(tif.pages.first.tags.valueof("ResolutionUnit", 0))
    return {axis: (size, unit) for axis, size in _per_resolution(tif).items()} if unit else {}


def _per_resolution(tif: tifffile.TiffFile) -> dict[str, Any]:
    """Return the pixel size along y and x as the inverse of the resolution tags, of whatever type, if stated."""
    tags, sizes = tif.pages.first.tags, {}
    for axis, name in (("y", "YResolution"), ("x", "XResolution")):
        value = tags.valueof(name)
        if value is None:
            continue
        values = value if isinstance(value, tuple) else (value,)  # a rational, or one number of another type
        above, below = values if len(values) == 2 else (values[0], 1)
        if (above, below) != (0, 1):
            sizes[axis] = (below, above)
    # tifffile fills in 1 if it is given no resolution
    filled_in = set(sizes.values()) == {(1, 1)} and "tifffile" in str(tags.valueof("Software"))
    return {} if filled_in else sizes
