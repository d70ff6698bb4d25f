"""The file of a model or of a training's state: ``.safetensors``, checked before a tensor is read.

A file can come from anybody, so its header is read first: JSON of limited length, in which each tensor's type, shape
and place must fit each other and the length of the file. The header is then compared with the tensors that are
expected, and only after that are they read, the one step that imports torch. A checksum of the whole file, except the
checksum itself, detects damage.
"""

from __future__ import annotations

import json
import math
import os
import re
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError

from napari_kdunet.core.files import write_bytes
from napari_kdunet.core.parsing import parse_json

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["DamagedError", "TensorFile", "save_tensors"]

_KEY = "napari_kdunet"
_CHECKSUM = "crc32"
_NO_CHECKSUM = "00000000"  # stands in for the checksum while it is computed
_HEADER_BYTES = 2**24  # the longest header: room for a million slice numbers in the summary
_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8}  # of a value, by the format's names of types


class DamagedError(ValueError):
    """A file is damaged; the message says how in a few words, and a caller that knows what to do adds that."""


@dataclass(frozen=True)
class TensorFile:
    """A ``.safetensors`` file of which the header has been read and checked.

    Attributes
    ----------
    path : Path
        The file.
    tensors : dict of str to (type, shape)
        Type and shape of each tensor, by name; types have the format's names, such as F32.
    metadata : dict
        Our own metadata, read from JSON.
    """

    path: Path
    tensors: dict[str, tuple[str, tuple[int, ...]]]
    metadata: dict[str, Any]
    _head: bytes = field(repr=False)
    _size: int
    _checksum: Any

    @classmethod
    def open(cls, path: Path) -> TensorFile:
        """Read and check the header.

        Raises
        ------
        DamagedError
            If the file cannot be read, or is not one of ours.
        """
        try:
            with path.open("rb") as file:
                size = os.fstat(file.fileno()).st_size
                start = file.read(8)
                length = int.from_bytes(start, "little")
                if len(start) < 8 or length > min(size - 8, _HEADER_BYTES):
                    raise DamagedError("it is not .safetensors, or cut short")
                text = file.read(length)
        except OSError as error:
            raise DamagedError(error.strerror or "it cannot be read") from error
        try:
            header = parse_json(text)
        except ValueError as error:
            raise DamagedError("its header is not the JSON of .safetensors") from error
        metadata = header.pop("__metadata__", None) if isinstance(header, dict) else None
        if not isinstance(metadata, dict) or not isinstance(metadata.get(_KEY), str):
            raise DamagedError("it is a .safetensors file, but not of napari-kdunet")
        tensors = _checked(header, size - 8 - length)
        try:
            ours = parse_json(metadata[_KEY])
        except ValueError as error:
            raise DamagedError("its metadata is not JSON") from error
        if not isinstance(ours, dict):
            raise DamagedError("its metadata is not an object")
        return cls(path, tensors, ours, start + text, size, metadata.get(_CHECKSUM))

    def expect(self, wanted: Mapping[str, Tensor]) -> None:
        """Compare names, shapes and kinds (float or integer) of the tensors with `wanted`, which are on any device.

        Raises
        ------
        DamagedError
            If they differ.
        """
        other = self.tensors.keys() ^ wanted.keys()
        if other:
            raise DamagedError(f"{len(other)} tensors are missing or unexpected, such as {_short(min(other))}")
        for name, tensor in wanted.items():
            kind, shape = self.tensors[name]
            if shape != tuple(tensor.shape) or (kind == "I64") == tensor.is_floating_point():
                raise DamagedError(f"{_short(name)} is {kind} of shape {_short(shape)}, not {tuple(tensor.shape)}")

    def verify(self) -> bytes:
        """Read the whole file, compare it with its checksum, if it has one, and return its bytes.

        Raises
        ------
        DamagedError
            If the file cannot be read, or its checksum is not that of its content.
        """
        try:
            data = self.path.read_bytes()
        except OSError as error:
            raise DamagedError(error.strerror or "it cannot be read") from error
        if len(data) != self._size or not data.startswith(self._head):
            raise DamagedError("it has changed while it was read")
        if self._checksum is not None:  # files of older versions have none
            at = _place_of_checksum(self._head)
            if at is None or self._checksum != _checksum(data, at).decode():
                raise DamagedError("its content does not fit its checksum")
        return data

    def read(self) -> dict[str, Tensor]:
        """Read all tensors.

        Raises
        ------
        DamagedError
            If the file cannot be read, or its checksum is not that of its content.
        """
        from safetensors.torch import load

        data = self.verify()
        try:
            return load(data)
        except (SafetensorError, ValueError) as error:
            raise DamagedError(_short(str(error))) from error


def save_tensors(path: str | Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> Path:
    """Write tensors and JSON metadata to one ``.safetensors`` file, atomically, and return its path.

    Raises
    ------
    OutputError
        If the file cannot be written.
    """
    from safetensors.torch import save

    path = Path(path)
    data = save(dict(tensors), {_KEY: json.dumps(metadata), _CHECKSUM: _NO_CHECKSUM})
    at = _place_of_checksum(data[: 8 + int.from_bytes(data[:8], "little")])
    assert at is not None
    view = memoryview(data)
    write_bytes(path, view[:at], _checksum(data, at), view[at + len(_NO_CHECKSUM) :])
    return path


def _place_of_checksum(head: bytes) -> int | None:
    """Find the eight digits of the checksum in the header; other strings cannot match, as their quotes are escaped."""
    match = re.search(rb'"%s":"([0-9a-f]{8})"' % _CHECKSUM.encode(), head)
    return match and match.start(1)


def _checksum(data: bytes, at: int) -> bytes:
    """Return the CRC-32 of the file with zeros in place of the checksum, as eight digits.

    Any damage within 32 bits in a row is found.
    """
    view, length = memoryview(data), len(_NO_CHECKSUM)
    total = zlib.crc32(_NO_CHECKSUM.encode(), zlib.crc32(view[:at]))
    return b"%08x" % zlib.crc32(view[at + length :], total)


def _checked(header: dict[str, Any], size: int) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Return types and shapes of the tensors, which must lie one behind the other and fill `size` bytes."""
    tensors, places = {}, []
    for name, entry in header.items():
        match entry:
            case {"dtype": str(kind), "shape": [*shape], "data_offsets": [int(start), int(stop)]} if len(entry) == 3:
                pass
            case _:
                raise DamagedError(f"its header does not say what {_short(name)} is")
        if kind not in _BYTES or len(shape) > 8 or not all(type(side) is int and side >= 0 for side in shape):
            raise DamagedError(f"{_short(name)} is {_short(kind)} of shape {_short(shape)}")
        if stop - start != math.prod(shape) * _BYTES[kind]:
            raise DamagedError(f"{_short(name)} has the wrong number of bytes")
        tensors[name] = (kind, tuple(shape))
        places.append((start, stop))
    end = 0
    for start, stop in sorted(places):
        if start != end:
            raise DamagedError("its tensors overlap or leave gaps")
        end = stop
    if end != size:
        raise DamagedError("its length does not fit its tensors: it may be cut short")
    return tensors


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
