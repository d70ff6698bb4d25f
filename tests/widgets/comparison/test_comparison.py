"""Counts, overlay and CSV of two segmentations, without a viewer."""

import csv

import numpy as np
import pytest

from napari_kdunet import core
from napari_kdunet.widgets.comparison.comparison import Comparison, write_csv


@pytest.fixture
def volumes(em):
    """A prediction of probabilities and sparse labels: 0 = not annotated, 1 = background, 2 = foreground."""
    rng = np.random.default_rng(0)
    labels = np.where(rng.random(em[1].shape) < 0.5, 0, 1 + (em[1] > 0)).astype(np.uint8)
    return core.open_volume(rng.random(labels.shape, np.float32), name="guess"), core.open_volume(labels, name="truth")


def test_counts_equal_those_of_the_core(volumes):
    prediction, reference = volumes
    comparison = Comparison(prediction, reference, threshold=0.7, ignore=0)
    slices = dict(comparison.score_all(first=3))
    assert next(iter(slices)) == 3
    wanted = core.evaluate(np.asarray(prediction) > 0.7, np.asarray(reference), ignore=0)
    assert [slices[z].counts for z in range(len(reference))] == list(wanted.slices)


def test_the_overlay_has_as_many_voxels_of_each_kind_as_are_counted(volumes):
    comparison = Comparison(*volumes, ignore=0)
    counts = comparison.score(2).counts
    codes = np.bincount(comparison.overlay()[2].compute().ravel(), minlength=4)
    assert codes[1:].tolist() == [counts.tp, counts.fp, counts.fn]


def test_other_shapes_and_other_values_are_refused(volumes):
    prediction, reference = volumes
    with pytest.raises(core.LabelsError, match=r"guess has shape .* choose layers of the same shape"):
        Comparison(prediction, core.open_volume(np.asarray(reference)[:, :32], name="part"))
    grey = core.open_volume(np.asarray(prediction) + 0.5, name="grey")
    with pytest.raises(core.VolumeError, match="grey is not a probability: slice z=1"):
        Comparison(grey, reference).score(1)


def test_slices_that_are_not_counted_are_left_out_of_the_csv(volumes, tmp_path):
    counts = Comparison(*volumes, ignore=0).score(1).counts
    write_csv(tmp_path / "scores.csv", [None, counts, None])
    rows = list(csv.DictReader((tmp_path / "scores.csv").read_text().splitlines()))
    assert [row["z"] for row in rows] == ["1", "all"]
    assert int(rows[0]["tp"]) == int(rows[1]["tp"]) == counts.tp
