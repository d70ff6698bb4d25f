"""Checks of TIFF pages that are compressed as images, of which each strip or tile states its size once more.

A part of 1 kB may state gigapixels, and would be decoded to that before its size is compared with the page's.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from typing import Any

from tifffile import COMPRESSION

from napari_kdunet.core.errors import VolumeError

__all__ = ["check_parts"]

_SLACK = 2**16  # pixels: parts at the edge of a page may be whole
_JXL_RATIOS = ((1, 1), (1, 1), (6, 5), (4, 3), (3, 2), (16, 9), (5, 4), (2, 1))  # width to height; 0: width is stated


def check_parts(page: Any, name: str) -> None:
    """Check the size that each strip or tile of a page states by itself; `VolumeError` if it is far too large."""
    if page.compression in _UNKNOWN:
        raise VolumeError(f"{name} is compressed as {page.compression.name}: save it with zlib, LZW or without")
    sizes = _SIZES.get(page.compression)
    if sizes is None:
        return
    most = 4 * max(math.prod(page.chunks), _SLACK)
    for data, _ in page.parent.filehandle.read_segments(page.dataoffsets, page.databytecounts):
        for width, height in sizes(data or b""):
            if width * height > most:
                raise VolumeError(f"{name} is damaged: a part of {page.chunks} says that it is {height} x {width}")


def _jpeg(data: bytes) -> Iterator[tuple[int, int]]:
    """Yield (width, height) by the frame headers before the first scan."""
    at = 2
    while at + 9 <= len(data) and data[at] == 0xFF and data[at + 1] != 0xDA:
        if data[at + 1] == 0xFF:  # padding
            at += 1
            continue
        if 0xC0 <= data[at + 1] <= 0xCF and data[at + 1] not in (0xC4, 0xC8, 0xCC):
            yield _big(data, at + 7, 2), _big(data, at + 5, 2)
        at += 2 + _big(data, at + 2, 2)


def _jpeg2000(data: bytes) -> Iterator[tuple[int, int]]:
    """Yield (width, height) by the SIZ markers, wherever they are, each after the marker of a code stream."""
    for match in re.finditer(rb"\xff\x4f\xff\x51", data):
        x, y, left, top = (_big(data, match.end() + 4 + 4 * i, 4) for i in range(4))
        yield max(0, x - left), max(0, y - top)


def _jpegxl(data: bytes) -> Iterator[tuple[int, int]]:
    """Yield (width, height) by the size header (18181-1, 9.2.2), after the start of a code stream or of its box."""
    for match in re.finditer(rb"(?:^|jxlc|jxlp.{4})\xff\x0a", data, re.DOTALL):
        bits = _Bits(data[match.end() : match.end() + 16])
        small = bits.take(1)
        height, ratio = _jxl_side(bits, small), bits.take(3)
        width = height * _JXL_RATIOS[ratio][0] // _JXL_RATIOS[ratio][1] if ratio else _jxl_side(bits, small)
        yield width, height


def _jxl_side(bits: _Bits, small: int) -> int:
    return 8 * (bits.take(5) + 1) if small else bits.take((9, 13, 18, 30)[bits.take(2)]) + 1


class _Bits:
    """Bits of a stream, the lowest of a byte first."""

    def __init__(self, data: bytes) -> None:
        self.left = int.from_bytes(data, "little")

    def take(self, count: int) -> int:
        """Return the next `count` bits as a number."""
        value, self.left = self.left & ((1 << count) - 1), self.left >> count
        return value


def _webp(data: bytes) -> Iterator[tuple[int, int]]:
    """Yield (width, height) by the first chunk, which is of one of three kinds."""
    kind, head = data[12:16], data[20:30].ljust(10, b"\0")
    if kind == b"VP8X":
        yield int.from_bytes(head[4:7], "little") + 1, int.from_bytes(head[7:10], "little") + 1
    elif kind == b"VP8L":
        sides = int.from_bytes(head[1:5], "little")
        yield (sides & 0x3FFF) + 1, (sides >> 14 & 0x3FFF) + 1
    elif kind == b"VP8 ":
        yield int.from_bytes(head[6:8], "little") & 0x3FFF, int.from_bytes(head[8:10], "little") & 0x3FFF


def _png(data: bytes) -> Iterator[tuple[int, int]]:
    yield _big(data, 16, 4), _big(data, 20, 4)


def _big(data: bytes, at: int, count: int) -> int:
    return int.from_bytes(data[at : at + count], "big")


_SIZES: dict[int, Callable[[bytes], Iterator[tuple[int, int]]]] = {
    **dict.fromkeys((COMPRESSION.OJPEG, COMPRESSION.JPEG, COMPRESSION.ALT_JPEG), _jpeg),
    **dict.fromkeys((COMPRESSION.APERIO_JP2000_YCBC, COMPRESSION.APERIO_JP2000_RGB), _jpeg2000),
    **dict.fromkeys((COMPRESSION.JPEG2000, COMPRESSION.JPEG_2000_LOSSY), _jpeg2000),
    **dict.fromkeys((COMPRESSION.JPEGXL, COMPRESSION.JPEGXL_DNG), _jpegxl),
    COMPRESSION.WEBP: _webp,
    COMPRESSION.PNG: _png,
}
_UNKNOWN = {COMPRESSION.JPEGXR, COMPRESSION.JPEGXR_NDPI, COMPRESSION.LERC}  # their stated size is not easily read
