"""Folders of slices: which files are the slices, in which order, and whether they agree."""

from __future__ import annotations

import itertools
import math
import os
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from napari_kdunet.core.errors import VolumeError, one_line
from napari_kdunet.core.reading.axes import Opened, Selection, Stored, check_level, view_zyx
from napari_kdunet.core.reading.formats.images import open_image
from napari_kdunet.core.reading.formats.tiff import open_tiff
from napari_kdunet.core.reading.sources import PagedArray, check_regular

__all__ = ["SLICE_READERS", "natural_order", "open_folder"]

SLICE_READERS: dict[str, Callable[[Path, Selection, str], Stored]] = {
    **dict.fromkeys((".tif", ".tiff", ".btf"), open_tiff),
    **dict.fromkeys((".png", ".jpg", ".jpeg"), open_image),
}
"""Reader of a slice of a folder, by its ending; if a slice is there in two formats, the first of these is taken."""

_MASKS = frozenset(
    [
        "mask",
        "masks",
        "seg",
        "segs",
        "segmentation",
        "segmentations",
        "label",
        "labels",
        "gt",
        "groundtruth",
        "annotation",
        "annotations",
        "pred",
        "prediction",
        "predictions",
        "prob",
        "probability",
        "probabilities",
        "outlines",
        "flows",
        "overlay",
    ]
)

_HEXADECIMAL = "0123456789abcdef"

_COPY = re.compile(r"(.+?)(?: - copy| copy| ?\(\d+\))(?: ?\(?\d+\)?)?")  # what file managers append, in lower case


def open_folder(path: Path, selection: Selection, name: str) -> Stored:
    """Open a folder in which every file is one slice, in the order in which a person would put them.

    Raises
    ------
    VolumeError
        There are no slices, more than one series of them, or one that cannot be opened or differs, which is named.
    """
    check_level(selection.level, 1, name)
    entries = [entry for entry in path.iterdir() if not entry.name.startswith(".")]
    files = [entry for entry in entries if entry.suffix.lower() in SLICE_READERS and not entry.is_dir()]
    folders = sorted(entry.name for entry in entries if entry.is_dir())
    if not files:
        inside = f", but it holds the folders {', '.join(folders[:5])}: give one of them" if folders else ""
        raise VolumeError(f"{name} is empty: there is no slice ({', '.join(SLICE_READERS)}) in this folder{inside}")
    for file in files:
        if not file.exists():
            raise VolumeError(f"{file} is a link to a file that is not there: mend or remove it")
        check_regular(file, str(file))
    files, notes = _without_masks(files)
    _check_decimal(files, name)
    files, unnumbered = _without_unnumbered(files)
    files, more = _in_one_format(files)
    files = natural_order(files)
    notes += unnumbered + more + _check_one_series(files, name)
    if folders:
        notes.append(f"its folders are left out: {', '.join(folders[:5])}")
    return _stack(files, selection, name, notes)


def natural_order(files: Sequence[Path]) -> list[Path]:
    """Return files ordered by the numbers in their names, with decimals and signs, and otherwise by the alphabet."""
    keys = _order_keys(files)
    return sorted(files, key=lambda file: (keys[file], file.name))


def _order_keys(files: Sequence[Path]) -> dict[Path, tuple[Any, ...]]:
    """Return the key that each file is ordered by: the words and the numbers in its name, alternating."""
    names = {file: _stem(file) for file in files}
    number = _number_pattern(list(names.values()))
    parts = {file: re.split(f"({number})", name) for file, name in names.items()}
    return {file: tuple(Decimal(p) if i % 2 else p for i, p in enumerate(each)) for file, each in parts.items()}


def _stem(file: Path) -> str:
    """Return the name without its ending, in lower case; full-width letters, digits and signs become usual ones."""
    return unicodedata.normalize("NFKC", file.stem).lower()


def _words(file: Path) -> str:
    return "_".join(re.findall(r"[^\W\d_]+", _stem(file)))


def _number_pattern(names: Sequence[str]) -> str:
    """Return a regular expression for the numbers in these names, with the dots and hyphens that belong to them."""
    fractions = [found for name in names for found in re.findall(r"(?<![\d.])\d+\.(\d+)(?![\d.])", name)]
    counted = len({len(f) for f in fractions}) > 1 and any(
        len(f) > 1 and f.endswith("0") for f in fractions
    )  # 1.9, 1.10
    counted &= not any(len(f) > 1 and f.startswith("0") for f in fractions)  # 0.05, 0.1, 0.10
    versions = any(re.search(r"\d\.\d+\.\d", name) for name in names)
    number = r"\d+" if counted or versions else r"\d+(?:\.\d+)?"
    plain = {re.sub(number, "#", name.lower()) for name in names}
    # A hyphen is a sign if other names have none, or a plus, at that place, or if it follows _, = or a bracket.
    signed = len({re.sub(r"[-+]#", "#", name) for name in plain}) < len(plain)
    signed |= any(re.search(r"[_=(]-#", name) for name in plain)
    return rf"(?:(?<!\d)[-+])?{number}" if signed else number


def _without_masks(files: list[Path]) -> tuple[list[Path], list[str]]:
    """Leave out masks that stand beside the images."""
    masks = [file for file in files if _is_mask(file.stem)]
    if not masks or len(masks) == len(files):
        return files, []
    images = [file for file in files if not _is_mask(file.stem)]
    shown = natural_order(masks)[0]
    if len(images) == 1 < len(masks):
        raise VolumeError(
            f"{shown} and {len(masks) - 1} more seem to be masks and only {images[0].name} an image: keep one kind"
        )
    return images, [f"{len(masks)} files beside the images are taken as masks and left out ({shown.name}, ...)"]


def _is_mask(stem: str) -> bool:
    words = [word.lower() for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+", stem)]
    return any(word in _MASKS or word.endswith(("mask", "masks")) for word in words)


def _without_unnumbered(files: list[Path]) -> tuple[list[Path], list[str]]:
    """Leave out files of another name without a number, such as a preview, if most of the others have one."""
    numbered = {file for file in files if re.search(r"\d", _stem(file))}
    words = {_words(file) for file in numbered}
    odd = {file for file in files if file not in numbered and _words(file) not in words}
    if not odd or len(numbered) <= max(1, len(odd)):
        return files, []
    shown = ", ".join(sorted(file.name for file in odd)[:5])
    return [file for file in files if file not in odd], [f"left out, as the others have numbers: {shown}"]


def _in_one_format(files: list[Path]) -> tuple[list[Path], list[str]]:
    """Take one format if each slice is there in two; refuse if only some are, as it is unclear what these are."""
    by_stem = defaultdict[str, list[Path]](list)
    for file in files:
        by_stem[file.stem].append(file)
    if len(by_stem) == len(files):
        return files, []
    endings = list(SLICE_READERS)
    sets = {frozenset(file.suffix.lower() for file in same) for same in by_stem.values()}
    if len(sets) > 1:
        double = next(same for same in by_stem.values() if len(same) > 1)
        raise VolumeError(
            f"{double[0]} also exists as {double[1].name}, but not every slice is there twice: keep one of each"
        )
    ending = min(next(iter(sets)), key=endings.index)
    others = ", ".join(sorted(next(iter(sets)) - {ending}))
    kept = [min(same, key=lambda f: endings.index(f.suffix.lower())) for same in by_stem.values()]
    return kept, [f"every slice is there as {ending} and {others}: {ending} is taken"]


def _check_decimal(files: list[Path], name: str) -> None:
    """Refuse slices that are counted in hexadecimal (09, 0a, ...): some would be out of order, and some left out.

    Letters are taken for digits if the numbers that they then make have few gaps, as those of slices do.
    """
    stems = [_stem(file) for file in files]
    before = _common_start(stems).rstrip(_HEXADECIMAL)
    after = _common_start([stem[::-1] for stem in stems])[::-1].lstrip(_HEXADECIMAL)
    counts = {file: stem[len(before) : len(stem) - len(after)] for file, stem in zip(files, stems, strict=True)}
    letters = [file for file, count in counts.items() if not count.isdecimal()]
    if not letters or not all(re.fullmatch(f"[{_HEXADECIMAL}]+", count) for count in counts.values()):
        return
    values = {file: int(count, 16) for file, count in counts.items()}
    in_order = sorted(files, key=lambda file: (values[file], file.name))
    close = values[in_order[-1]] - values[in_order[0]] < len(files) * 9 // 8
    if close and natural_order(_without_unnumbered(files)[0]) != in_order:
        raise VolumeError(
            f"{name} seems to count its slices in hexadecimal ({min(letters).name}): rename them with decimal numbers"
        )


def _common_start(texts: list[str]) -> str:
    return os.path.commonprefix(texts)  # noqa: RUF071 (by characters, as is meant: these are no paths)


def _check_one_series(files: list[Path], name: str) -> list[str]:
    """Refuse a slice that is there twice, and several series with the same numbers, such as channels or tiles."""
    keys, by_stem = _order_keys(files), {_stem(file): file for file in files}
    for file, following in itertools.pairwise(files):
        if keys[file] == keys[following]:
            raise VolumeError(f"{file} and {following.name} have the same number: keep one of them")
    for file in files:
        copied = _COPY.fullmatch(_stem(file))
        if copied and copied[1] in by_stem:
            raise VolumeError(f"{file} seems a copy of {by_stem[copied[1]].name}: keep one of them")
    numbers = defaultdict[str, set[tuple[str, ...]]](set)
    for file in files:
        numbers[_words(file)].add(tuple(re.findall(r"\d+", _stem(file))))
    for one, other in itertools.combinations(numbers, 2):
        if len(numbers[one] & numbers[other] - {()}) > 1:
            raise VolumeError(f"{name} holds two series of slices, {one} and {other}: put each in a folder of its own")
    return _check_numbers(list(keys.values()), name)


def _check_numbers(keys: list[tuple[Any, ...]], name: str) -> list[str]:
    """Refuse names with several numbers in every combination, as of channels and slices; note if some are missing."""
    same_words = defaultdict[tuple[str, ...], list[tuple[Decimal, ...]]](list)
    for key in keys:
        same_words[key[::2]].append(key[1::2])
    notes = []
    for words, rows in same_words.items():
        columns = _telling_apart(rows)
        if not columns:
            continue
        values = [{row[i] for row in rows} for i in columns]
        what = [(re.findall(r"[^\W\d_]+", words[i]) or [f"number {i + 1}"])[-1] for i in columns]
        ranges = [f"{each} ({min(found)} to {max(found)})" for each, found in zip(what, values, strict=True)]
        if math.prod(map(len, values)) == len(rows):
            counting = "z" if "z" in what else what[-1]
            others = " and ".join(each for each in what if each != counting)
            raise VolumeError(
                f"{name} has slices of each {' and each '.join(ranges)}: move each series into a folder of its own; if "
                f"{counting} counts the slices, that is a folder for each {others}"
            )
        notes.append(f"its slices are in the order of {', then '.join(ranges)}")
    return notes


def _telling_apart(rows: list[tuple[Decimal, ...]]) -> list[int]:
    """Return the columns that only together tell the rows apart; none if one does so alone, or all together do not.

    A column that adds nothing to the others, such as a position in nm beside an index, does not count.
    """

    def do_so(columns: list[int]) -> bool:
        return len({tuple(row[i] for i in columns) for row in rows}) == len(rows)

    columns = [i for i, column in enumerate(zip(*rows, strict=True)) if 1 < len(set(column)) < len(rows)]
    for column in reversed(columns):
        fewer = [i for i in columns if i != column]
        columns = fewer if do_so(fewer) else columns
    return columns if do_so(columns) else []


def _stack(files: list[Path], selection: Selection, name: str, notes: list[str]) -> Stored:
    """Check that the slices agree, and stack them."""
    inside = Selection(channel=selection.channel)
    opened: dict[Path, Opened] = {}
    broken: dict[Path, str] = {}
    for file in files:
        try:
            opened[file] = _open_slice(file, inside)
        except Exception as error:
            message = one_line(error)
            broken[file] = message if file.name in message else f"cannot read {file}: {message}"
            if not selection.skip_unreadable:
                raise VolumeError(broken[file]) from error
    if not opened:
        raise VolumeError(f"no slice of {name} can be read: {next(iter(broken.values()))}")
    kinds = Counter((o.source.shape, o.source.dtype) for o in opened.values())
    (shape, dtype), _ = kinds.most_common(1)[0]
    first = next(file for file, o in opened.items() if (o.source.shape, o.source.dtype) == (shape, dtype))
    for file, slice_ in opened.items():
        if slice_.source.shape[0] != 1:
            raise VolumeError(f"{file} holds {slice_.source.shape[0]} slices: in a folder every file is one slice")
        if (slice_.source.shape, slice_.source.dtype) != (shape, dtype):
            raise VolumeError(
                f"{file} has shape {slice_.source.shape[1:]} and dtype {slice_.source.dtype}, but {first.name} has "
                f"{shape[1:]} and {dtype}: the slices of a folder must agree"
            )
    sizes = {o.voxel_size for o in opened.values()}
    of_slices = list(dict.fromkeys(note for o in opened.values() for note in o.notes))[:3]
    stated = {}
    if len(sizes) > 1:
        of_slices.append("pixel size unknown: its slices state different ones")
    elif (size := sizes.pop()) is not None:
        stated = {axis: (nm, "nm") for axis, nm in zip("yx", size[1:], strict=True)}
    array = PagedArray(partial(_load_slice, files, inside), (len(files),), shape[1:], dtype)
    return Stored(array, "zyx", stated, (*notes, *of_slices), chosen="c")  # a grey slice refuses a channel itself


def _open_slice(path: Path, selection: Selection) -> Opened:
    return view_zyx(SLICE_READERS[path.suffix.lower()](path, selection, str(path)), selection, str(path))


def _load_slice(files: list[Path], selection: Selection, z: int) -> np.ndarray[Any, Any]:
    """Read a whole slice; an error names its file."""
    try:
        check_regular(files[z], str(files[z]))
        return np.array(_open_slice(files[z], selection).source[0, slice(None), slice(None)])
    except Exception as error:
        message = one_line(error)
        raise VolumeError(message if files[z].name in message else f"{files[z]}: {message}") from error
