"""The table of readers, by the ending of a path or the content of a folder, and how a source finds its reader."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import zarr

from napari_kdunet.core.errors import VolumeError, escape
from napari_kdunet.core.files import is_file
from napari_kdunet.core.reading.axes import Opened, Selection, Stored, check_level, view_zyx
from napari_kdunet.core.reading.formats.chunked import is_n5, is_precomputed, open_n5, open_precomputed
from napari_kdunet.core.reading.formats.folder import open_folder
from napari_kdunet.core.reading.formats.hdf5 import HDF5_ENDINGS, hdf5_parts, open_hdf5, split_hdf5
from napari_kdunet.core.reading.formats.images import open_image
from napari_kdunet.core.reading.formats.medical import nrrd_parts, open_nifti, open_nrrd
from napari_kdunet.core.reading.formats.mrc import open_mrc
from napari_kdunet.core.reading.formats.numpy_file import open_npy
from napari_kdunet.core.reading.formats.tiff import open_tiff, tiff_parts
from napari_kdunet.core.reading.formats.zarr_image import is_zarr, open_zarr, open_zarr_node, open_zarr_url
from napari_kdunet.core.reading.sources import check_regular

__all__ = ["FORMATS", "READERS", "Format", "name_of", "open_source", "parts_of"]

Reader: TypeAlias = Callable[[Path, Selection, str], Stored]


@dataclass(frozen=True)
class Format:
    """A format that can be read: a row of the table of formats.

    Attributes
    ----------
    title : str
        Name of the format.
    open : callable
        Opens a path: (path, selection, name for messages) -> `Stored`.
    metadata : str
        What is taken from its metadata, for the documentation.
    endings : tuple of str
        Endings of its files; empty if the format is a folder.
    holds : callable, optional
        Tells whether a folder is of this format.
    needs : str, optional
        Module without which it cannot be read; the extra `formats` brings it.
    parts : callable, optional
        Returns the names of the other files, as a file states them, that it takes pixels from.
    """

    title: str
    open: Reader
    metadata: str
    endings: tuple[str, ...] = ()
    holds: Callable[[Path], bool] | None = None
    needs: str | None = None
    parts: Callable[[Path], set[str]] | None = None


FORMATS = (
    Format(
        "TIFF, BigTIFF, OME-TIFF, ImageJ",
        open_tiff,
        "axes (OME-XML, ImageJ, tifffile); voxel size from OME-XML, ImageJ (a unit for each axis), the tags of FEI, "
        "Zeiss and Olympus SIS, or resolution tags; pyramids, several images, orientation, palette, white as 0",
        (".tif", ".tiff", ".btf"),
        parts=tiff_parts,
    ),
    Format("PNG", open_image, "orientation; indexed greys become grey values", (".png",)),
    Format("JPEG", open_image, "orientation", (".jpg", ".jpeg")),
    Format("NumPy", open_npy, "none: ZYX unless axes are named", (".npy",)),
    Format(
        "MRC",
        open_mrc,
        "axes (mapc, mapr, maps), voxel size in Å, unsigned bytes by IMOD's mark or a stated range over 127",
        (".mrc", ".map", ".rec", ".st", ".ali"),
    ),
    Format(
        "HDF5",
        open_hdf5,
        "a dataset by FILE:/PATH or the only 3-D one; axes of ilastik (axistags) and of dimension labels; "
        "voxel size of CREMI (resolution, nm) or element_size_um",
        HDF5_ENDINGS,
        parts=hdf5_parts,
    ),
    Format(
        "NRRD",
        open_nrrd,
        "axes by labels, else X, Y, Z; sizes with their units",
        (".nrrd", ".nhdr"),
        needs="nrrd",
        parts=nrrd_parts,
    ),
    Format("NIfTI", open_nifti, "axes X, Y, Z, T; zooms with their units", (".nii", ".nii.gz"), needs="nibabel"),
    Format(
        "Zarr 2 and 3, OME-Zarr 0.1 to 0.5",
        open_zarr,
        "axes in any order (OME, dimension_names, xarray); scale with units, resolution; pyramids",
        holds=is_zarr,
    ),
    Format(
        "N5",
        open_n5,
        "axes, resolution or pixelResolution with units; scale levels s0, s1, ...",
        holds=is_n5,
        needs="tensorstore",
    ),
    Format(
        "Neuroglancer precomputed",
        open_precomputed,
        "axes X, Y, Z, channel; resolution in nm; scale levels",
        holds=is_precomputed,
        needs="tensorstore",
    ),
    Format(
        "Folder of TIFF, PNG or JPEG slices",
        open_folder,
        "order by the numbers in names, with decimals and signs; pixel size if all slices agree",
        holds=Path.is_dir,
    ),
)
"""Formats that can be read; for a folder, the first one whose `holds` is true is taken."""

READERS: dict[str, Format] = {ending: row for row in FORMATS for ending in row.endings}
"""The format of a file, by its ending."""


def open_source(source: Any, selection: Selection, name: str) -> Opened:
    """Open a path, an address, a Zarr group or an array; `name` is for messages.

    Raises
    ------
    VolumeError
        The source is of an unknown kind, or not a volume. A damaged one raises whatever its library raises.
    """
    return view_zyx(_open(source, selection, name), selection, name)


def parts_of(path: Path) -> set[Path]:
    """Return other files and folders that a volume takes pixels from: those of an OME-TIFF, links in a Zarr group."""
    if path.is_dir() and is_zarr(path):
        with suppress(OSError):
            return {entry for entry in path.iterdir() if entry.is_symlink()}
        return set()
    row = _row_of(path)
    if row is None or row.parts is None or not is_file(path):
        return set()
    try:
        return {path.parent / name for name in row.parts(path)}
    except Exception:  # noqa: BLE001 - it is damaged, or its library is missing: opening it says so
        return set()


def _row_of(path: Path) -> Format | None:
    """Return the format of a file, by the longest ending that fits; None if it is unknown."""
    return READERS.get(max((e for e in READERS if path.name.lower().endswith(e)), key=len, default=""))


def name_of(source: Any) -> str:
    """Return the name of a source for messages: its path, with control characters escaped, or its type."""
    if isinstance(source, (str, Path)):
        return escape(str(source))
    return str(source.store_path) if isinstance(source, zarr.Group) else f"the {type(source).__name__} array"


def _open(source: Any, selection: Selection, name: str) -> Stored:
    if isinstance(source, str) and not source.strip():  # an unset shell variable: not the current folder
        raise VolumeError("the name of the volume is empty: give a file or a folder")
    if isinstance(source, str) and "://" in source:
        return open_zarr_url(source, selection, name)
    if isinstance(source, (str, Path)):
        return _open_path(str(source), selection, name)
    if isinstance(source, (zarr.Group, zarr.Array)):
        return open_zarr_node(source, selection, name)
    if all(hasattr(source, attribute) for attribute in ("shape", "dtype", "__getitem__")):
        check_level(selection.level, 1, name)
        return Stored(source)
    raise VolumeError(f"cannot open a {type(source).__name__} as a volume: give a path or an array")


def _open_path(source: str, selection: Selection, name: str) -> Stored:
    file, inside = split_hdf5(source)
    path = file.absolute()  # another process may have another working directory
    if "\0" in source or not path.exists():
        linked = "a link to a file that is not there" if path.is_symlink() else "no such file or folder"
        raise VolumeError(f"{linked}: {name}")
    if path.is_dir():
        row = next(row for row in FORMATS if row.holds is not None and row.holds(path))
    else:
        known = _row_of(path)
        if known is None:
            raise VolumeError(f"{name} has an unknown ending: give {', '.join(READERS)}, a Zarr or a folder of slices")
        check_regular(path, name)
        if not path.stat().st_size:
            raise VolumeError(f"{name} is empty: it has no bytes")
        row = known
    if row.needs and importlib.util.find_spec(row.needs) is None:
        raise VolumeError(f'{name} is {row.title}: install its reader, pip install "napari-kdunet[formats]"')
    return open_hdf5(path, selection, name, inside) if inside else row.open(path, selection, name)
