"""Scoring on the validation slices: a network and the probability that it predicts are scored by one loop."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from napari_kdunet import core
from napari_kdunet.core.data.validation import Validation


@pytest.fixture
def validation(blobs, quick) -> Validation:
    raw, labels = (core.open_volume(volume) for volume in blobs((4, 48, 64)))
    return Validation.against(raw, labels, (0, 2, 3), quick())


@pytest.mark.parametrize("views", [1, 4])
def test_a_model_scores_as_its_prediction(validation, model, views):
    network = model(2, depth=2)
    probability = core.open_volume(core.predict(network, validation.raw, views=views))
    one, other = (validation.score(source, "cpu", 1, views) for source in (network, probability))
    assert one.pixels == other.pixels == 3 * 48 * 64
    assert one.ce == pytest.approx(other.ce, rel=1e-5)
    assert one.iou(0.5) == pytest.approx(other.iou(0.5), abs=2e-3)
    assert one.ce != pytest.approx(validation.score(model(2, seed=1, depth=2), "cpu", 1).ce, rel=1e-3)


def test_a_network_that_overflows_is_named(validation, model, one_line):
    network = model(2, depth=2)
    with torch.no_grad():
        next(network.net.parameters()).fill_(1e38)
    with one_line(core.ModelError, "gives NaN or infinity for slice z=0 of", "overflow"):
        validation.score(network, "cpu", 1)


def test_scores_settle_slice_by_slice(validation, blobs):
    truth = core.open_volume(blobs((4, 48, 64))[1].astype(np.float32))
    pixels = [curve.pixels for curve in validation.iter_score(truth, "cpu")]
    assert pixels == [48 * 64 * n for n in (1, 2, 3)]
    assert validation.score(truth, "cpu").iou(0.5) == 1
    wrong = core.open_volume(1.5 * np.asarray(truth))
    with pytest.raises(core.VolumeError, match=r"\[0, 1\]"):
        validation.score(wrong, "cpu")


def test_slices_of_one_class_alone_are_not_held_out(blobs, quick):
    """Where all that is labelled in them is foreground, any network that says so is right."""
    raw, labels = blobs((8, 32, 32))
    strokes = np.where(np.arange(32) < 10, labels + 1, 0).astype(np.uint8)
    config = quick(ignore=0, steps=1, val_share=0.15)
    started = next(iter(core.iter_train(raw, strokes, config)))
    assert started.validated_on == "held-out slices"
    for z in started.val_slices:
        strokes[z][strokes[z] == 1] = 0
    assert next(iter(core.iter_train(raw, strokes, config))).validated_on == "training slices"
