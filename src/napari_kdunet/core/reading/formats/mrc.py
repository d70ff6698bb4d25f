"""MRC: volumes and stacks of electron tomography, voxel sizes in Å."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mrcfile
import numpy as np
from mrcfile.dtypes import HEADER_DTYPE

from napari_kdunet.core.errors import VolumeError
from napari_kdunet.core.reading.axes import Selection, Stored, check_level
from napari_kdunet.core.reading.formats.attributes import own_threshold
from napari_kdunet.core.reading.sources import RawArray

__all__ = ["open_mrc"]

_HEADER = 1024
_IMOD_STAMP = 1146047817


def open_mrc(path: Path, selection: Selection, name: str) -> Stored:
    """Open an MRC file; which axis is which is taken from its header (``mapc``, ``mapr``, ``maps``)."""
    check_level(selection.level, 1, name)
    header = _header(path, name)
    shape = tuple(int(n) for n in mrcfile.utils.data_shape_from_header(header))
    dtype = np.dtype(mrcfile.utils.data_dtype_from_header(header))
    if any(n <= 0 for n in shape) or int(header.nsymbt) < 0:
        raise VolumeError(f"{name} is empty or damaged, its shape is {shape}: export it again")
    notes: tuple[str, ...] = ()
    if int(header.mode) == 0:
        dtype, notes = _byte(header)
    array = RawArray(path, shape, dtype, _HEADER + int(header.nsymbt), name)
    columns, rows, sections = (int(header[axis]) for axis in ("mapc", "mapr", "maps"))
    order = [columns, rows, sections] if sorted((columns, rows, sections)) == [1, 2, 3] else [1, 2, 3]
    axes = ("t" + "".join("xyz"[i - 1] for i in reversed(order)))[-len(shape) :]
    stated = {
        axis: (float(header.cella[axis]) / int(header[f"m{axis}"]), "Å")
        for axis in "xyz"
        if int(header[f"m{axis}"]) > 0 and float(header.cella[axis]) != 0
    }
    if stated and {size for size, _ in stated.values()} == {1.0}:  # the usual default if the size is unknown
        stated, notes = {}, (*notes, "pixel size unknown: it is stated as 1 Å, which stands for no size")
    text = b"".join(header.label[: int(header.nlabl)].tolist()).decode("latin-1")
    return Stored(array, axes, stated, notes, threshold=own_threshold(text[text.find("{") :]))


def _byte(header: Any) -> tuple[np.dtype[Any], tuple[str, ...]]:
    """Return the type of the bytes of mode 0: signed by the standard, but unsigned in IMOD and older programs."""
    signed, unsigned = np.dtype(np.int8), np.dtype(np.uint8)
    stamp, flags = np.frombuffer(header.tobytes()[152:160], header.mode.dtype)
    if stamp == _IMOD_STAMP:
        return (signed, ()) if flags & 1 else (unsigned, ("its bytes are unsigned, as IMOD marks them",))
    low, high, mean = (float(header[key]) for key in ("dmin", "dmax", "dmean"))
    if (largest := next((value for value in (high, mean) if 127 < value <= 255), None)) is not None:
        return unsigned, (f"its bytes are taken as unsigned: its header states a grey value of {largest:g}",)
    if not low < high:
        return signed, ("its header states no range of grey values: its bytes are taken as signed, -128 to 127",)
    return signed, ()


def _header(path: Path, name: str) -> Any:
    """Return the header alone, in its byte order; mrcfile would read the extended one too, of whatever length."""
    with path.open("rb") as file:
        data = file.read(_HEADER)
    if len(data) < _HEADER:
        raise VolumeError(f"{name} is truncated or damaged: it has no header of an MRC file")
    orders = [np.frombuffer(data, HEADER_DTYPE.newbyteorder(order)).view(np.recarray)[0] for order in "<>"]
    try:
        return orders["<>".index(mrcfile.utils.byte_order_from_machine_stamp(orders[0].machst))]
    except ValueError:  # older programs wrote no machine stamp
        return orders[0] if 0 <= int(orders[0].mode) < 128 else orders[1]
