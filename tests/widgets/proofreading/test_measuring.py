"""After an edit the table is that of all objects measured anew, of which only those in edited tiles are."""

import numpy as np
import pandas as pd
import pytest

from napari_kdunet import core
from napari_kdunet.widgets.proofreading.measuring import Measuring, measure_objects

SIZE = (40.0, 10.0, 10.0)


def volume(pixels):
    return core.open_volume(pixels.copy(), voxel_size=SIZE)


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch):
    monkeypatch.setattr("napari_kdunet.widgets.proofreading.measuring._TILE", 16)


@pytest.fixture(scope="module")
def blocks():
    """Ids of 2 x 3 blocks over several tiles, an image and a probability."""
    ids = np.zeros((12, 42, 63), np.uint32)
    for i, (y, x) in enumerate(np.ndindex(2, 3)):
        ids[1:4, 21 * y + 4 : 21 * y + 14 + i, 21 * x + 4 : 21 * x + 14] = i + 1
    rng = np.random.default_rng(0)
    return ids, rng.integers(0, 256, ids.shape, dtype=np.uint8), rng.random(ids.shape, np.float32)


def measuring(raw, probability, last=None, names=("em", "probability")):
    return Measuring(volume(raw), volume(probability), names, last)


def measure(ids, raw, probability, last=None, **options):
    return measuring(raw, probability, last, **options).measure(volume(ids), lambda _: None, in_memory=True)


EDITS = {
    "merge": lambda ids: np.where(ids == 2, 1, ids),
    "delete": lambda ids: np.where(ids == 6, 0, ids),
    "over the edge of tiles": lambda ids: np.where(np.arange(63) // 4 == 4, 99, ids),
    "two far apart": lambda ids: np.where((ids == 1) & (np.arange(63) < 9), 77, np.where(ids == 6, 0, ids)),
    "nothing": lambda ids: ids,
    "all": lambda ids: np.roll(ids, 3, axis=2),
    "none left": lambda ids: np.zeros_like(ids),
}


@pytest.mark.parametrize("edit", EDITS.values(), ids=EDITS.keys())
def test_the_table_equals_all_measured_anew(blocks, edit):
    ids, raw, probability = blocks
    edited = edit(ids).astype(ids.dtype)
    found = measure(edited, raw, probability, measure(ids, raw, probability))
    expected = measure_objects(volume(edited), volume(raw), volume(probability))
    pd.testing.assert_frame_equal(found.table, expected, check_exact=True)


def test_edit_after_edit_and_back(blocks):
    ids, raw, probability = blocks
    first = last = measure(ids, raw, probability)
    merged = EDITS["merge"](ids)
    for edited in (merged, EDITS["two far apart"](merged), ids):
        last = measure(edited.astype(ids.dtype), raw, probability, last)
    pd.testing.assert_frame_equal(last.table, first.table, check_exact=True)


def test_only_what_an_edit_touched_is_measured(blocks):
    ids, raw, probability = blocks
    last = measure(ids, raw, probability)
    for name in ("surface_um2", "mean_probability", "mean_grey"):
        last.table[name] = -1.0
    again = measure(np.where(ids == 2, 1, ids).astype(np.uint32), raw, probability, last).table.set_index("id")
    assert (again.loc[1, ["surface_um2", "mean_probability", "mean_grey"]] > 0).all()
    far = again.loc[[4, 5, 6]]  # in other tiles
    assert (far[["surface_um2", "mean_probability", "mean_grey"]] == -1).all(axis=None)
    other = measure(ids, raw, probability, last, names=("another image", "probability")).table
    assert (other["surface_um2"] > 0).all(), "with another image all are measured"
