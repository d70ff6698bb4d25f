"""A script drives the panels by the names of their rows, without a window and without a button."""

import numpy as np
from napari.components import ViewerModel

from napari_kdunet import core
from napari_kdunet.widgets.compare import CompareWidget
from napari_kdunet.widgets.distill import DistillWidget
from napari_kdunet.widgets.segment import SegmentWidget
from napari_kdunet.widgets.shared.models import models
from napari_kdunet.widgets.train import TrainWidget

QUICK = {"steps": 6, "k": 1, "patch": 32, "validations": 2, "device": "cpu"}


def test_train_distil_segment_and_compare(qtbot, tiny_em):
    def make(kind, **values):
        widget = kind(viewer)
        qtbot.addWidget(widget.native)
        for name, value in values.items():
            getattr(widget, name).value = value
            assert widget.asdict()[name] == value
        return widget

    def wait(condition):
        qtbot.waitUntil(condition, timeout=120_000)

    viewer = ViewerModel()
    image = viewer.add_image(tiny_em[0], name="em")
    labels = viewer.add_labels(tiny_em[1], name="truth")
    train = make(TrainWidget, image=image, image_pixel_size=10.0, labels_layer=labels, **QUICK)
    assert image.units == labels.units
    np.testing.assert_array_equal(labels.scale, (10, 10, 10))
    train.start()
    wait(lambda: train.worker is None)
    distil = make(DistillWidget, **QUICK, tau=2.0, lam=0.5)
    assert distil.teacher.value == "em k1"
    distil.start()
    wait(lambda: distil.worker is None)
    assert models.get("em k1 distilled").summary["settings"]["lam"] == 0.5
    segment = make(SegmentWidget)
    assert segment.model.value == "em k1 distilled", "the newest trained on this image"
    wait(lambda: segment.loaded is not None)
    segment.threshold.value = 0.3
    segment.start()
    wait(lambda: not segment.segmentation.is_busy)
    compare = make(CompareWidget)
    assert (compare.prediction.value, compare.reference.value) == (segment.segmentation.mask, labels)
    compare.start()
    wait(lambda: not compare.live_comparison.is_busy)
    assert compare.live_comparison.total == core.evaluate(segment.segmentation.mask.data > 0, tiny_em[1]).total
    wait(lambda: train.preview is None or not train.preview.is_busy)
    wait(lambda: distil.preview is None or not distil.preview.is_busy)
