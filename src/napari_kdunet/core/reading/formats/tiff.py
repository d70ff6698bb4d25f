"""TIFF, OME-TIFF, ImageJ and BigTIFF: which pages are the image, with which axes, and whether all are there."""

from __future__ import annotations

import logging
import math
import os
import re
import threading
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tifffile

from napari_kdunet.core.errors import VolumeError, one_line
from napari_kdunet.core.reading.axes import Selection, Stored, check_level, pick
from napari_kdunet.core.reading.formats.attributes import own_threshold
from napari_kdunet.core.reading.formats.tiff_codecs import check_parts
from napari_kdunet.core.reading.formats.tiff_metadata import has_sane_ome, ome_file_names, stated_sizes
from napari_kdunet.core.reading.sources import (
    MappedArray,
    PagedArray,
    RawArray,
    check_block,
    check_part,
)
from napari_kdunet.core.reading.voxel_size import to_number

__all__ = ["open_tiff", "tiff_parts"]

_MAX_CHANNELS = 4  # with more, the "channels" of a TIFF are slices: tifffile calls them so unless told otherwise
_MAX_LABELS = 16  # distinct values: an image that is shown inverted has more, a mask or labels have not
_KINDS = [
    "shaped",
    "lsm",
    "mmstack",
    "ome",
    "imagej",
    "ndtiff",
    "fluoview",
    "stk",
    "sis",
    "svs",
    "scn",
    "qpi",
    "ndpi",
    "bif",
    "avs",
    "eer",
    "philips",
    "scanimage",
    "nih",
    "mdgel",
]
_ORDERS = ("czt", "ctz", "zct", "ztc", "tcz", "tzc", "default")  # of an ImageJ hyperstack's pages, fastest axis first
_SUB_IFDS, _MOST_SUB_IFDS = 330, 64  # tag of a page's reduced copies, and their largest number: each is half as large
_OF_FILES_BESIDE = {"is_mmstack": False, "is_ndtiff": False}  # kinds that would open other files by fixed names
_TURNS = {
    2: ("yx", "x"),
    3: ("yx", "yx"),
    4: ("yx", "y"),
    5: ("xy", ""),
    6: ("xy", "x"),
    7: ("xy", "yx"),
    8: ("xy", "y"),
}
"""For each Orientation tag, the axes of the stored rows and columns, and those that run backwards."""


class _Image(NamedTuple):
    """The pages of a TIFF that are one image."""

    pages: Any
    """A series of tifffile, or page numbers."""
    axes: str
    shape: tuple[int, ...]
    keyframe: Any
    notes: tuple[str, ...]


@contextmanager
def _hold_log() -> Iterator[list[logging.LogRecord]]:
    """Hold back what tifffile logs: dropped where an exception says the same, else logged at the end.

    It takes a filter, as the level of a logger is shared by all, and for this thread alone, as others may use tifffile.
    """
    logger, here, held = logging.getLogger("tifffile"), threading.get_ident(), list[logging.LogRecord]()

    def hold(record: logging.LogRecord) -> bool:
        if threading.get_ident() != here:
            return True
        held.append(record)
        return False

    logger.addFilter(hold)
    try:
        yield held
    finally:
        logger.removeFilter(hold)
    for record in held:
        logger.handle(record)


class _Pages:
    """Decodes a page by its index in an image; pickled as a path.

    Parameters
    ----------
    path : Path
        The TIFF.
    image : int or tuple of int
        Index of a series of tifffile, or the numbers of the pages.
    level : int
        Scale level of the series.
    plain : bool
        Whether the metadata that tifffile knows are left unread.
    """

    def __init__(self, path: Path, image: int | tuple[int, ...], level: int, plain: bool) -> None:
        self.path, self.image, self.level, self.plain = path, image, level, plain
        self._opened: tuple[int, list[Any]] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_opened": None}

    @_hold_log()
    def __call__(self, index: int) -> np.ndarray[Any, Any]:
        opened = self._opened
        if opened is None or opened[0] != os.getpid():  # a forked process must not share the file's position
            opened = self._opened = (os.getpid(), self._open())
        page = opened[1][index]
        handle = page.parent.filehandle  # another file in a multi-file OME-TIFF
        handle.set_lock(True)
        handle.open()
        check_parts(page, str(self.path))
        image: np.ndarray[Any, Any] = page.asarray()
        return image

    def _open(self) -> list[Any]:
        tif = _tiff_file(self.path, self.plain)
        weakref.finalize(self, tif.close)
        if isinstance(self.image, tuple):
            return [tif.pages[number].aspage() for number in self.image]
        series = tif.series[self.image].levels[self.level]
        series.keyframe.init_decode()
        return list(series)


def open_tiff(path: Path, selection: Selection, name: str) -> Stored:
    """Open an image of a TIFF, at one scale level.

    Raises
    ------
    VolumeError
        It is empty, incomplete or in colour, or its pages differ. A damaged one may raise whatever tifffile raises.
    """
    with _hold_log() as held:
        plain = not has_sane_ome(_check_companions(path, name))
        try:
            stored = _open(path, selection, name, plain=plain)
        except VolumeError:
            raise
        except Exception as error:  # noqa: BLE001 - of its metadata: the pages may be sound
            note = f"its metadata cannot be read ({one_line(error)[:60]}): pages are taken as slices"
            stored = _open(path, selection, name, plain=True)
            stored = stored._replace(notes=(note, *stored.notes))
        if stored.notes:  # the notes say it
            held.clear()
        return stored


def _open(path: Path, selection: Selection, name: str, *, plain: bool) -> Stored:
    with _tiff_file(path, plain) as tif:
        return _stored(tif, path, _find_image(tif, selection, name), selection, plain, name)


def _tiff_file(path: Path, plain: bool) -> tifffile.TiffFile:
    flags: dict[str, Any] = dict.fromkeys((f"is_{kind}" for kind in _KINDS), False) if plain else _OF_FILES_BESIDE
    tif = tifffile.TiffFile(path, **flags)
    try:
        _name_order(tif)
    except Exception:
        tif.close()
        raise
    return tif


def _name_order(tif: tifffile.TiffFile) -> None:
    """Name the order of an ImageJ hyperstack's pages as tifffile knows it; ImageJ's menu names it with x and y."""
    described = tif.imagej_metadata or {}
    if "order" not in described:
        return
    order = str(described["order"]).lower().removesuffix("(default)").strip().removeprefix("xy")
    lengths = [described.get(key, 1) for key in ("frames", "slices", "channels")]
    described["order"] = order if order in _ORDERS or lengths.count(1) < 2 else "czt"  # one axis has but one order


def _check_order(tif: tifffile.TiffFile, name: str) -> None:
    """Refuse an ImageJ hyperstack whose pages are in an unknown order."""
    order = (tif.imagej_metadata or {}).get("order", "czt")
    if order not in _ORDERS:
        raise VolumeError(
            f"{name} has its channels, slices and frames in the order {order[:20]!r}, which is none of "
            f"{', '.join(_ORDERS[:-1])}: save it again"
        )


def _check_companions(path: Path, name: str) -> str:
    """Check the pages of a TIFF and the other files of an OME-TIFF before tifffile reads them; return the OME-XML."""
    with _tiff_file(path, plain=True) as tif:
        if tif.pages:
            _check_chain(tif, name)
        description = _description(tif)
    if has_sane_ome(description):  # otherwise tifffile does not use it
        for companion in ome_file_names(description):
            check_part(path, companion, name)
    return description


def _check_chain(tif: tifffile.TiffFile, name: str) -> None:
    """Refuse a chain of pages that returns to an earlier one, and pages with more reduced copies than are possible."""
    form, file, offset = tif.tiff, tif.filehandle, tif.pages.first.offset
    number = partial(int.from_bytes, byteorder="little" if form.byteorder == "<" else "big")
    seen = set[int]()
    while 0 < offset < file.size:
        if offset in seen:
            raise VolumeError(f"{name} is damaged: after its page {len(seen)} an earlier one comes again")
        seen.add(offset)
        file.seek(offset)
        size = number(file.read(form.tagnosize)) * form.tagsize
        tags = file.read(size + form.offsetsize)
        for at in range(0, min(size, len(tags)), form.tagsize):
            code, count = number(tags[at : at + 2]), number(tags[at + 4 : at + 2 + form.tagsize // 2])
            if code == _SUB_IFDS and count > _MOST_SUB_IFDS:
                raise VolumeError(f"{name} is damaged: its page {len(seen) - 1} has {count} reduced copies")
        offset = number(tags[size:])


def _description(tif: tifffile.TiffFile) -> str:
    return str(tif.pages.first.description) if tif.pages else ""


def tiff_parts(path: Path) -> set[str]:
    """Return the names of the other files that a TIFF takes pixels from."""
    with _hold_log() as held, _tiff_file(path, plain=True) as tif:
        names = ome_file_names(_description(tif))
        held.clear()
        return names


def _find_image(tif: tifffile.TiffFile, selection: Selection, name: str) -> _Image:
    """Choose the image: the largest full one, or the one that `selection` names."""
    if not tif.pages or not tif.series:
        raise VolumeError(f"{name} is empty: this TIFF has no images")
    _check_order(tif, name)
    every = list(tif.series)
    full = [series for series in every if not _is_extra(series.keyframe)] or every
    notes: tuple[str, ...] = ()
    if selection.series is not None:
        series = every[pick(selection.series, len(every), "image", name)]
    elif full[0].kind in ("generic", "uniform") or _is_stale(tif, full[0]):
        return _page_stack(tif, full, selection, name)
    else:
        grey = [series for series in full if "S" not in series.axes] or full
        series = max(grey, key=lambda s: math.prod(s.shape))  # the first if several are
        if len(every) > 1:
            what = "largest" if len(grey) == len(full) else "largest grey one"
            notes = (f"the {what} of {len(every)} images is taken, choose another with series",)
    check_level(selection.level, len(series.levels), name)
    chosen = series.levels[selection.level]
    return _Image(chosen, chosen.axes, chosen.shape, chosen.keyframe, notes)


def _is_extra(page: Any) -> bool:
    """Whether a page is a thumbnail, a reduced copy or a transparency mask."""
    return bool(page.is_reduced or page.is_mask)


def _is_stale(tif: tifffile.TiffFile, series: Any) -> bool:
    """Whether ImageJ's description states another number of slices than there are pages, or OME-XML a smaller one."""
    pages = len(series.keyframe.shape)
    promised = math.prod(series.shape) // math.prod(series.shape[-pages:])
    if series.kind == "ome" and len(tif.series) == 1 and series.keyframe.parent is tif and promised < len(tif.pages):
        first, last = series.keyframe, tif.pages[-1].aspage()
        return bool((first.shape, first.dtype) == (last.shape, last.dtype) and not _is_extra(last))
    return bool(series.kind == "imagej" and len(tif.pages) > 1 and promised != len(tif.pages))


def _page_stack(tif: tifffile.TiffFile, full: Sequence[Any], selection: Selection, name: str) -> _Image:
    """Take the pages of a TIFF as slices, except thumbnails and reduced copies."""
    if len(full) == 1 and len(full[0].levels) > 1:
        check_level(selection.level, len(full[0].levels), name)
        chosen = full[0].levels[selection.level]
        return _Image(chosen, chosen.axes, chosen.shape, chosen.keyframe, ())
    check_level(selection.level, 1, name)
    if full[0].kind == "uniform" and not _is_extra(full[0].keyframe) and not tif.is_imagej and not tif.is_shaped:
        return _Image(full[0], full[0].axes, full[0].shape, full[0].keyframe, ())
    pages = [page.aspage() for page in tif.pages]
    kept = [page for page in pages if not _is_extra(page)] or pages
    largest = max(kept, key=lambda page: page.imagelength * page.imagewidth)
    kept = [page for page in kept if page is largest or not _is_thumbnail(page, largest)]
    if any((page.shape, page.dtype) != (largest.shape, largest.dtype) for page in kept):
        raise VolumeError(f"{name} has pages of different shapes or dtypes: keep those of one stack")
    notes = []
    if "<OME" in tif.pages.first.description:
        if any(int(n) > 1 for n in re.findall(r"Size[CT]\s*=\s*[\"'](\d+)", tif.pages.first.description)):
            raise VolumeError(f"{name} has OME-XML that cannot be read, of several channels or times: export it again")
        notes.append(
            f"its OME-XML {'does not fit' if full[0].kind == 'ome' else 'cannot be read'}: pages are taken as slices"
        )
    if len(kept) < len(pages):
        notes.append(f"{len(pages) - len(kept)} of {len(pages)} pages are thumbnails or reduced, and left out")
    if tif.is_shaped or (tif.is_imagej and len(kept) == 1 and _promised(tif) > 1):
        raise VolumeError(_truncated(name))
    if tif.is_imagej and _promised(tif) not in (1, len(kept)):
        notes.append(f"its description says {_promised(tif)} images, but it holds {len(kept)}")
    numbers = tuple(page.index for page in kept)
    shape = (len(kept), *kept[0].shape)
    return _Image(numbers, "I" + kept[0].axes, shape, kept[0], tuple(notes))


def _is_thumbnail(page: Any, largest: Any) -> bool:
    """Whether a page that is not marked as a thumbnail is one: at most half as large, in the same proportions."""
    factor = largest.imagelength / page.imagelength
    return bool(factor >= 2) and abs(largest.imagewidth / factor - page.imagewidth) <= 2


def _promised(tif: tifffile.TiffFile) -> int:
    counts = [(tif.imagej_metadata or {}).get(key, 1) for key in ("frames", "slices", "channels")]
    images = (tif.imagej_metadata or {}).get("images", 1)
    return max(int(images), math.prod(int(n) for n in counts))


def _stored(tif: tifffile.TiffFile, path: Path, image: _Image, selection: Selection, plain: bool, name: str) -> Stored:
    """Return the array of an image, its axes and what the file states about it."""
    page = image.keyframe
    axes, shape, notes = _axes(tif, image, selection, name)
    array = _array(tif, path, image, shape, selection.level, plain, name)
    notes += image.notes
    array, more = _as_displayed(array, page)
    turned, backwards = _TURNS.get(_orientation(page), ("yx", ""))
    if axes.endswith("yx") and (turned, backwards) != ("yx", ""):
        axes, more = axes[:-2] + turned, (*more, "it is turned as its Orientation tag says")
    else:
        turned, backwards = "yx", ""
    stated, odd = stated_sizes(tif, 0 if isinstance(image.pages, tuple) else _index(tif, image.pages))
    if selection.level:
        first = tif.series[_index(tif, image.pages)].levels[0].keyframe
        for axis, factor in (("y", first.imagelength / page.imagelength), ("x", first.imagewidth / page.imagewidth)):
            if axis in stated:
                stated[axis] = (to_number(stated[axis][0]) * factor, stated[axis][1])
    if turned == "xy":
        stated = {{"y": "x", "x": "y"}.get(axis, axis): size for axis, size in stated.items()}
    threshold = own_threshold((tif.imagej_metadata or {}).get("napari_kdunet"))
    return Stored(array, axes, stated, (*notes, *more, *odd), backwards, threshold)


def _index(tif: tifffile.TiffFile, chosen: Any) -> int:
    """Return the index of the series of which `chosen` is a scale level."""
    return next((i for i, series in enumerate(tif.series) if _same(series, chosen)), 0)


def _same(series: Any, chosen: Any) -> bool:
    offset = chosen.keyframe.offset
    return any(level.keyframe.offset == offset for level in series.levels)


def _axes(
    tif: tifffile.TiffFile, image: _Image, selection: Selection, name: str
) -> tuple[str, tuple[int, ...], tuple[str, ...]]:
    """Return letters and lengths of the axes, and notes; a stack's axis is called z, whatever the file calls it."""
    kept = [(a.lower(), n) for a, n in zip(image.axes, image.shape, strict=True) if n > 1 or a in "YX"]
    axes, shape = "".join(a for a, _ in kept), tuple(n for _, n in kept)
    page = image.keyframe
    if selection.axes is not None:
        return axes, shape, ()
    extra = [(a, n) for a, n in kept if a not in "yx"]
    if any(a == "s" for a, _ in extra) and selection.channel is None:
        planes = page.planarconfig == tifffile.PLANARCONFIG.SEPARATE
        by_tifffile = tif.is_shaped or "tifffile" in str(page.software)
        if planes and by_tifffile and len(extra) == 1:  # its guess for a short stack
            note = f"{extra[0][1]} slices without photometric are taken as a stack, not as colours"
            return axes.replace("s", "z"), shape, (note,)
        if planes:
            how = f"stored as the {page.samplesperpixel} planes of one colour image"
            raise VolumeError(f"{name} is {how}: if they are slices, save them with photometric='minisblack'")
        raise VolumeError(f"{name} is a colour (RGB) image: convert it to greyscale, or choose one channel, e.g. 0")
    extra = [(a, n) for a, n in extra if a != "s"]
    if len(extra) != 1 or extra[0][0] == "z":
        return axes, shape, ()
    axis, length = extra[0]
    chosen = {"c": selection.channel, "t": selection.time}.get(axis)
    if chosen is not None or (axis == "c" and length <= _MAX_CHANNELS):
        return axes, shape, ()
    called = {"c": "channels", "t": "time points"}.get(axis)
    return axes.replace(axis, "z"), shape, (f"{length} {called} are taken as slices",) if called else ()


def _array(
    tif: tifffile.TiffFile,
    path: Path,
    image: _Image,
    shape: tuple[int, ...],
    level: int,
    plain: bool,
    name: str,
) -> PagedArray:
    """Return the pixels of an image as an array, after checking that all are there."""
    series, page = image.pages, image.keyframe
    page_shape = tuple(n for a, n in zip(page.axes, page.shape, strict=True) if n > 1 or a in "YX")
    count = math.prod(shape) // max(1, math.prod(page_shape))
    if not _is_complete(tif, image, count):
        raise VolumeError(_truncated(name))
    if not isinstance(series, tuple) and series.dataoffset is not None:
        return RawArray(path, shape, page.dtype.newbyteorder(tif.byteorder), series.dataoffset, name)
    if count > 1 and shape[-len(page_shape) :] != page_shape:
        raise VolumeError(f"{name} has pages of {page_shape} that do not fit its shape {shape}: export it again")
    check_block(page.nbytes, sum(page.databytecounts), name, "pages")
    number = series if isinstance(series, tuple) else _index(tif, series)
    outer = shape[: -len(page_shape)] if count > 1 else ()
    return PagedArray(_Pages(path, number, level, plain), outer, shape[len(outer) :], page.dtype)


def _is_complete(tif: tifffile.TiffFile, image: _Image, count: int) -> bool:
    """Whether all slices are in the file, by its chain of pages, its metadata and the end of each page."""
    tif.filehandle.seek(tif.pages.next_page_offset or 0)
    if tif.filehandle.read(tif.tiff.offsetsize) != bytes(tif.tiff.offsetsize):
        return False  # the last page that can be found points to another
    series = image.pages
    if isinstance(series, tuple):
        pages: list[Any] = [tif.pages[number] for number in series]
    elif series.dataoffset is not None:
        return bool(series.dataoffset + count * series.keyframe.nbytes <= tif.filehandle.size)
    else:
        try:
            pages = list(series)
        except IndexError:
            return False
    return len(pages) == count and all(
        page is not None
        and max(map(sum, zip(page.dataoffsets, page.databytecounts, strict=True)), default=math.inf)
        <= page.parent.filehandle.size
        for page in pages
    )


def _truncated(name: str) -> str:
    return f"{name} is truncated or damaged: slices are missing, copy or export it again"


def _orientation(page: Any) -> int:
    value = page.tags.valueof(274)
    return value if isinstance(value, int) else 1


def _as_displayed(array: PagedArray, page: Any) -> tuple[Any, tuple[str, ...]]:
    """Return grey values as a viewer shows them, if white is 0 or there is a grey palette; masks stay as stored."""
    dtype = array.dtype
    if page.photometric == tifffile.PHOTOMETRIC.MINISWHITE and dtype.kind in "ui":
        largest = 2**page.bitspersample - 1 if dtype.kind == "u" else -1
        if page.bitspersample == 1 or not _is_greyscale(array):
            return array, () if page.bitspersample == 1 else ("white is 0 in it: a mask, taken as stored",)
        function = partial(np.subtract, dtype.type(largest))
        return MappedArray(array, function, dtype.newbyteorder("=")), ("white is 0 in it: grey values are inverted",)
    colours = page.colormap if page.photometric == tifffile.PHOTOMETRIC.PALETTE else None
    if colours is None:
        return array, ()
    if not (colours == colours[0]).all():
        return array, ("its palette of colours is not applied: values are taken as stored",)
    grey = (colours[0] // 257 if colours.max() > 255 else colours[0]).astype(np.uint8)
    if np.array_equal(grey, np.arange(len(grey))) or not _is_greyscale(array):
        return array, ()
    return MappedArray(array, partial(np.take, grey), np.uint8), ("grey values are those of its palette",)


def _is_greyscale(array: PagedArray) -> bool:
    """Whether three slices of an array hold more values than a mask or labels would."""
    lengths = array.shape[:-2]
    values = set[int]()
    for where in (0.0, 0.5, 1.0):
        key = tuple(int(where * (n - 1)) for n in lengths)
        values.update(np.unique(array[(*key, slice(None), slice(None))]).tolist())
    return len(values) > _MAX_LABELS
