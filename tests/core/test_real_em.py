"""A short training on real FIB-SEM, scored on other slices of the same volume."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

from napari_kdunet import core
from napari_kdunet.core.metrics import Curve

pytestmark = [
    pytest.mark.data,
    pytest.mark.slow,
    pytest.mark.skipif("KDUNET_DATA" not in os.environ, reason="KDUNET_DATA does not name a folder of real EM volumes"),
]
FLOOR = 0.55  # reached: 0.70, 0.69 and 0.69 with seeds 0, 1 and 2; full trainings reach over 0.80
VOXEL = (5.0, 5.0, 5.0)


def volume(name: str) -> core.Volume:
    return core.open_volume(Path(os.environ["KDUNET_DATA"]) / f"epfl-training-{name}.tif", voxel_size=VOXEL)


def best_threshold_iou(raw: np.ndarray, labels: np.ndarray) -> float:
    """Best IoU of any threshold on the darkness of the raw, smoothed as it suits best."""
    ious = []
    for sigma in (0, 2, 4, 8):
        smooth, curve = ndimage.gaussian_filter(raw.astype(np.float32), (0, sigma, sigma)), Curve()
        curve.add((smooth.max() - smooth) / np.ptp(smooth), (labels > 0).astype(np.int16))
        ious.append(curve.iou(curve.best_threshold()))
    return max(ious)


def test_a_two_unet_learns_mitochondria_from_eight_slices():
    raw, labels = volume("raw"), volume("labels")
    config = core.TrainConfig(
        k=2, steps=150, batch=4, slices=tuple(range(52, 165, 16)), validations=2, threads=1, device="cpu"
    )
    model = core.train(raw, labels, config)
    val_raw, val_labels = raw[5:40:15], labels[5:40:15]
    found = core.predict(model, core.open_volume(val_raw, voxel_size=VOXEL), output="labels", threads=1)
    iou = core.evaluate(found, val_labels).iou
    assert iou > FLOOR
    assert iou > best_threshold_iou(val_raw, val_labels) + 0.2
