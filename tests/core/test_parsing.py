"""Slice lists and weights, as users write them and as messages write them back."""

from __future__ import annotations

import pytest

from napari_kdunet import core
from napari_kdunet.core.formatting import format_slices
from napari_kdunet.core.parsing import parse_class_weights, parse_slices, parse_volume_weights


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("auto", "auto"),
        ("all", "all"),
        ("3", (3,)),
        ("8, 3,3", (3, 8)),
        ("3,20:23", (3, 20, 21, 22)),
        ("20:23,21", (20, 21, 22)),
    ],
)
def test_parse_slices(text, expected):
    assert parse_slices(text) == expected


@pytest.mark.parametrize(
    ("slices", "text"),
    [([3], "3"), ([5, 3, 4], "3:6"), ([0, 1, 3, 8, 9], "0:2,3,8:10"), ([0, 1, 2, 0, 1], "0:3")],
)
def test_format_slices(slices, text):
    assert format_slices(slices) == text
    assert parse_slices(text) == tuple(sorted(set(slices)))


@pytest.mark.parametrize("text", ["", "a", "3,", "1:", "5:5", "1.5", "1-3"])
def test_parse_slices_errors(text, one_line):
    with one_line(core.ConfigError, "slices", repr(text)):
        parse_slices(text)


def test_more_slices_than_there_can_be(one_line):
    with one_line(core.ConfigError, "0:100000000000", "more slices than any volume"):
        parse_slices("0:100000000000")


def test_parse_class_weights(one_line):
    assert parse_class_weights("balanced") == "balanced"
    assert parse_class_weights("none") == "none"
    assert parse_class_weights("1, 4.5") == (1.0, 4.5)
    for text in ("", "1,", "a,b"):
        with one_line(core.ConfigError, "class_weights"):
            parse_class_weights(text)


def test_parse_volume_weights(one_line):
    assert [parse_volume_weights(text) for text in ("even", "area", "1, 4.5")] == ["even", "area", (1.0, 4.5)]
    with one_line(core.ConfigError, "volume_weights", "even", "1,4"):
        parse_volume_weights("heavy")
