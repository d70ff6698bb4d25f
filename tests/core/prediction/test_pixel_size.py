"""The pixel size at which a model is surest, where the image does not state it."""

from __future__ import annotations

import math
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from detector import Detector, discs
from napari_kdunet import core


@pytest.fixture(scope="module")
def knowing():
    """A network that knows discs, at a working pixel size of 10 nm, and an image of discs at that."""
    return core.Model(Detector(), 10.0), discs(10.0)


@pytest.mark.parametrize("size", [5.0, 10.0, 16.0])
def test_the_size_is_found_near_the_true_one(knowing, size):
    search = core.find_pixel_size(knowing[0], discs(size, seed=1), threads=1)
    assert search.pixel_size is not None
    assert size / 1.45 < search.pixel_size < size * 1.45
    assert not search.inverted
    assert search.knows_tissue
    assert search.margin > 1


def test_a_size_that_is_surest_by_chance_is_smoothed(knowing):
    """Doubts on a parabola, lowest at 12 nm, and one of them less; sizes further off say nothing."""
    search = core.find_pixel_size(knowing[0], knowing[1], sizes=(10,), threads=1)
    octaves = np.array([-2, -1, -0.5, 0, 0.5, 1, 1.5, 2])
    doubts = 0.05 + 0.02 * (octaves - np.log2(1.2)) ** 2
    doubts[[0, -1]] = 0.5, math.inf

    def found(doubts):
        sizes = zip(10 * 2.0**octaves, doubts, strict=True)
        tried = [replace(search.tried[0], pixel_size=size, doubt=doubt, inverted=False) for size, doubt in sizes]
        return replace(search, tried=tuple(tried))

    assert found(doubts).pixel_size == found(doubts).guess == 12
    doubts[2] = 0.049
    dipped = found(doubts)
    assert dipped.best.pixel_size == pytest.approx(7.07, abs=0.01)
    assert 9 < dipped.pixel_size <= 10, "at most half an octave off"
    doubts[4:] = math.inf  # a parabola of two sizes beside it is none
    doubts[0:2] = math.inf
    assert found(doubts).pixel_size == 7.07


def test_inverted_contrast_is_found_unless_it_may_not_be(knowing):
    model, raw = knowing
    search = core.find_pixel_size(model, 255 - raw, threads=1)
    assert search.inverted
    assert 7 < search.pixel_size < 14.5
    again = core.find_pixel_size(model, core.open_volume(255 - raw, invert=True), invert=False, threads=1)
    assert (again.pixel_size, again.inverted) == (search.pixel_size, False)
    assert not any(tried.inverted for tried in again.tried)


def test_nothing_is_found_in_noise_or_by_a_network_that_has_not_learnt(knowing, model):
    trained, raw = knowing
    noise = np.random.default_rng(0).integers(0, 256, raw.shape, dtype=np.uint8)
    for search in (core.find_pixel_size(trained, noise, threads=1), core.find_pixel_size(model(pixel_size=10.0), raw)):
        assert (search.pixel_size, search.best, search.inverted, search.margin) == (None, None, False, 0)
    assert core.find_pixel_size(trained, np.zeros_like(raw)).tried == ()


def test_padding_does_not_count(knowing):
    model, raw = knowing
    padded = np.pad(raw, ((1, 1), (0, 300), (300, 0)))  # lost slices too
    search, plain = (core.find_pixel_size(model, image, threads=1) for image in (padded, raw))
    assert search.best.pixel_size == plain.best.pixel_size
    assert search.pixel_size == pytest.approx(plain.pixel_size, rel=0.05)
    for with_, without in zip(search.tried, plain.tried, strict=True):
        assert with_.foreground == pytest.approx(without.foreground, rel=0.25, abs=0.01)


def test_sizes_may_be_given_and_a_search_stopped(knowing):
    model, raw = knowing
    seen = list(core.iter_find_pixel_size(model, raw, sizes=(5, 10, 20), slices=1, threads=1))
    search = seen[-1]
    assert search == core.find_pixel_size(model, raw, sizes=(5, 10, 20), slices=1, threads=1)
    assert [tried.pixel_size for tried in search.tried] == [5, 10, 20] * 2
    assert [len(each.tried) for each in seen] == [1, 2, 3, 4, 5, 6]
    assert {each.steps for each in seen} == {6}
    assert search.doubt_at(10.4) == search.tried[1].doubt

    going = core.iter_find_pixel_size(model, raw)
    assert len(next(going).tried) == 1
    going.close()


def test_a_stated_proportion_of_the_sides_is_kept(knowing):
    model, raw = knowing
    wide = np.repeat(raw, 2, axis=2)
    search = core.find_pixel_size(model, core.open_volume(wide, voxel_size=(30, 4, 2)), sizes=(10,), threads=1)
    plain = core.find_pixel_size(model, raw, sizes=(10,), threads=1)
    assert search.tried[0].doubt == pytest.approx(plain.tried[0].doubt, rel=0.3)


def test_what_cannot_be_searched_is_one_line(knowing, model, one_line):
    trained, raw = knowing
    with one_line(core.ConfigError, "pixel size 0"):
        core.find_pixel_size(model(), raw)
    with one_line(core.ConfigError, "positive numbers"):
        core.find_pixel_size(trained, raw, sizes=(0,))
    assert core.find_pixel_size(trained, raw, sizes=(1e6,)).pixel_size is None


@pytest.mark.data
@pytest.mark.skipif("KDUNET_DATA" not in os.environ, reason="KDUNET_DATA is not set")
def test_the_size_of_a_real_volume(tmp_path):
    raw = core.open_volume(Path(os.environ["KDUNET_DATA"]) / "lucchi-train-raw.tif")
    search = core.find_pixel_size(core.load_model("lucchi-2unet"), raw, invert=False)
    assert 4 < search.pixel_size < 7  # 5 nm
