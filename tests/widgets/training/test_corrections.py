"""*Train on corrections*: going on from a model on the slices of its mask that the user has painted on."""

import weakref

import numpy as np
import pytest

from napari_kdunet import core
from napari_kdunet.widgets.shared.layers import IMAGE, RESULT
from napari_kdunet.widgets.shared.models import models
from napari_kdunet.widgets.training.corrections import corrected_mask, results_of_image

WORLD = {"scale": (10.0, 10.0, 10.0), "units": ("nm",) * 3}


@pytest.fixture
def segmented(bench, tiny_model):
    """Widgets *Train teacher* and *Segment*, whose model has segmented the image; its mask."""
    train = bench.open("Train teacher")
    train.labels_layer.value = bench.mito
    models.add("tiny", core.Model(tiny_model.net, pixel_size=10.0, threshold=tiny_model.threshold))
    _, segment = bench.viewer.window.add_plugin_dock_widget("napari-kdunet", "Segment")
    bench.wait(lambda: segment.loaded is not None)
    segment.start()
    bench.wait(lambda: not segment.segmentation.is_running)
    return train, segment, bench.viewer.layers["em tiny mask"]


def correct(mask, labels, z):
    """Paint what is missing on a slice, and erase what is too much."""
    for wanted, label in ((labels[z] > 0, 1), (labels[z] == 0, 0)):
        y, x = np.nonzero(wanted)
        mask.data_setitem((np.full(len(y), z), y, x), label)


def test_the_model_goes_on_on_the_corrected_slices_and_the_earlier_labels(bench, segmented, notified):
    train, _, mask = segmented
    truth = bench.mito.data.copy()
    earlier = np.zeros_like(truth)
    earlier[7] = truth[7]
    bench.mito.data = earlier
    for z in (2, 4):
        correct(mask, truth, z)
    mask.paint((5, 10, 10), 1)
    mask.paint((6, 10, 10), 0)
    history = len(mask._undo_history)
    before = mask.data.copy()
    train.corrections_button.native.click()
    assert not train.view.start_button.isEnabled()
    bench.finish(train)
    bench.assert_ready(train)
    model = models.get("em corrected")
    changed = [z for z in (5, 6) if len(np.unique(mask.data[z])) > 1]
    learnt, judged = set(model.summary["labelled_slices"]), set(model.summary["validation"]["slices"])
    assert {2, 4, 7, *changed} <= learnt <= {2, 4, 5, 6, 7}, "none is held out"
    assert judged <= learnt
    assert "the IoU is that of training slices" in train.view.notes.text()
    assert model.form == models.get("tiny").form
    assert model.summary["settings"]["schedule"] == "constant"
    bench.assert_shown_and_gone(train)
    np.testing.assert_array_equal(mask.data, before)
    assert len(mask._undo_history) == history
    mask.undo()
    assert train.origin.value == "em corrected", "the next corrections go on from here"


def test_it_is_validated_on_earlier_labels_that_the_model_has_not_learnt_from(bench, segmented):
    """A training on all eight slices holds 2 to 5 out; one of these is corrected, and so learnt from."""
    train, _, mask = segmented
    train.val_share.value = 0.5
    for z in (0, 4):
        correct(mask, bench.mito.data, z)
    train.corrections_button.native.click()
    bench.finish(train)
    summary = models.get("em corrected").summary
    assert summary["labelled_slices"] == [0, 1, 4, 6, 7]
    assert summary["validation"]["slices"] == [2, 3, 5]
    assert "the IoU is that of earlier labels, z = 2, 3, 5." in train.view.notes.text()
    assert train.view.score.text().endswith("3 earlier slices")
    volume = core.open_volume(bench.em.data, voxel_size=(10, 10, 10))
    model = models.get("em corrected")
    found = np.stack([core.predict(model, volume)[z].compute() for z in (2, 3, 5)])
    iou = core.evaluate(found, bench.mito.data[[2, 3, 5]], threshold=model.threshold).iou
    assert summary["validation"]["iou"] == pytest.approx(iou, abs=0.01)


def test_a_copy_of_a_mask_is_not_learnt_from(bench, segmented):
    """Nothing would be found corrected in the mask itself."""
    train, _, mask = segmented
    mask.data = mask.data.copy()
    train.corrections_button.native.click()
    assert f"{mask.name} is a copy of a mask of Segment, or its data were replaced" in train.error_label.text()
    assert train.worker is None


def test_corrections_teach(bench, segmented):
    """A model of random weights learns from all corrected slices what it did not know."""
    train, _, mask = segmented
    truth = bench.mito.data
    train.labels_layer.value = mask  # the only labels that there are, as where the user has none
    for z in (1, 3, 5, 6):
        correct(mask, truth, z)
    train.steps.value = 120
    train.corrections_button.native.click()
    bench.finish(train)
    raw = core.open_volume(bench.em.data, voxel_size=(10, 10, 10))

    def iou(name):
        model = models.get(name)
        probability = core.predict(model, raw)[4].compute()
        return core.evaluate(probability, truth[4], threshold=model.threshold).iou

    assert models.get("em corrected").summary["labelled_slices"] == [1, 3, 5, 6]
    assert iou("em corrected") > iou("tiny") + 0.15


@pytest.mark.parametrize("keep", [True, False])
def test_the_model_teaches_what_earlier_strokes_leave_open_if_the_box_is_ticked(keep, bench, segmented):
    train, _, mask = segmented
    truth = bench.mito.data.copy()
    strokes = np.zeros_like(truth)
    strokes[:, 4:8] = truth[:, 4:8] + 1
    bench.mito.data = strokes
    train.sparse.value, train.keep.value = True, keep
    correct(mask, truth, 2)
    train.corrections_button.native.click()
    bench.finish(train)
    assert ("kept" in models.get("em corrected").summary) == keep


def test_what_is_not_corrected_is_no_correction(bench, segmented, notified):
    train, segment, mask = segmented
    train.corrections_button.native.click()
    bench.finish(train)
    assert notified == ["nothing is corrected yet: paint into the mask where it is wrong, or erase."]
    correct(mask, bench.mito.data, 2)
    for _ in range(2):
        mask.undo()
    segment.threshold.value = segment.threshold.value + 0.02  # our own filling is none either
    bench.wait(lambda: not segment.segmentation.is_busy)
    train.corrections_button.native.click()
    bench.finish(train)
    assert len(notified) == 2
    bench.viewer.layers.remove(mask)
    train.corrections_button.native.click()
    assert notified[2].startswith("there is nothing to correct: segment the volume")
    assert models.session.new_path("em corrected").stem == "em corrected", "runs without a model take no name"
    bench.assert_ready(train)


def test_the_mask_that_was_painted_on_is_taken_rather_than_a_new_one_beside_it(bench, segmented):
    _, segment, mask = segmented
    correct(mask, bench.mito.data, 2)
    segment.start()
    bench.wait(lambda: not segment.segmentation.is_running)
    new = segment.segmentation.mask
    assert new is not mask
    assert list(bench.viewer.layers).index(new) > list(bench.viewer.layers).index(mask)
    assert corrected_mask(bench.viewer)[0].name == mask.name
    correct(new, bench.mito.data, 3)
    bench.viewer.layers.selection.active = new
    assert corrected_mask(bench.viewer)[0].name == new.name


def test_corrections_of_an_earlier_mask_are_learnt_from_again(bench, segmented):
    """But not those of a mask of another image."""
    train, segment, mask = segmented
    truth = bench.mito.data.copy()
    train.labels_layer.value = mask
    for z in (1, 3):
        correct(mask, truth, z)
    train.corrections_button.native.click()
    bench.finish(train)
    segment.start()
    bench.wait(lambda: not segment.segmentation.is_running)
    new = segment.segmentation.mask
    correct(new, truth, 5)
    bench.viewer.layers.selection.active = new
    assert results_of_image(bench.viewer, new) == [mask.metadata[RESULT], new.metadata[RESULT]]
    train.labels_layer.value = new
    train.corrections_button.native.click()
    bench.finish(train)
    assert models.get("em corrected 2").summary["labelled_slices"] == [1, 3, 5]
    assert "the corrected slices are all trained on (z = 1,3,5)" in train.view.notes.text()
    other = bench.viewer.add_image(bench.em.data, name="other", **WORLD)
    mask.metadata[IMAGE] = weakref.ref(other)
    assert results_of_image(bench.viewer, new) == [new.metadata[RESULT]]


def test_earlier_labels_of_another_shape_are_notified(bench, segmented, notified):
    train, _, mask = segmented
    correct(mask, bench.mito.data, 2)
    train.labels_layer.value = bench.viewer.add_labels(
        np.zeros((3, 96, 96), np.uint8), name="short", scale=bench.em.scale, units=bench.em.units
    )
    train.corrections_button.native.click()
    bench.finish(train)
    assert len(notified) == 1
    assert "short have shape (3, 96, 96)" in notified[0]
    bench.assert_ready(train)
    train.labels_layer.value = bench.viewer.add_labels(bench.mito.data[:, :80], name="cut", **WORLD)
    train.image.value = bench.viewer.add_image(bench.em.data[:, :80], name="cut em", **WORLD)
    train.corrections_button.native.click()
    bench.finish(train)
    assert len(notified) == 2
    assert notified[1] == "em tiny mask is a mask of em: the labels cut, of another image, are not used."
    bench.assert_ready(train)


@pytest.fixture
def objects(bench, segmented):
    """The panel *Objects* with the objects of the mask."""
    _, panel = bench.viewer.window.add_plugin_dock_widget("napari-kdunet", "Objects")
    panel.source.value, panel.min_diameter.value = segmented[2], 60.0
    panel.start()
    bench.wait(lambda: panel.worker is None and panel.table is not None)
    return panel


def test_objects_of_the_mask_are_no_earlier_labels_of_it(bench, segmented, objects, monkeypatch):
    """They are what the model has said itself in the slices that nobody has corrected."""
    train = segmented[0]
    monkeypatch.setattr("napari_kdunet.widgets.train.iter_corrections", lambda result, raw, earlier, *_: [earlier])
    train.labels_layer.value = objects.layer
    assert list(train.corrections_job().make_events()) == [None]
    own = bench.viewer.add_labels(bench.mito.data, name="mine", scale=bench.em.scale, units=bench.em.units)
    train.labels_layer.value = own
    assert [earlier.name for earlier in train.corrections_job().make_events()] == ["mine"]


def test_corrected_objects_are_learnt_from(bench, segmented, objects, notified):
    """What is deleted, painted and undone in the objects is so in the mask that they are from, and nothing else."""
    train, _, mask = segmented
    before, layer = mask.data.copy(), objects.layer
    found = layer.data.copy()
    assert ((before > 0) != (found > 0)).any(), "finding objects leaves small ones out"
    train.labels_layer.value = mask
    train.corrections_button.native.click()
    bench.finish(train)
    assert "nothing is corrected yet" in notified.pop()
    z, y, x = np.argwhere(found > 0)[0]
    objects.tool.value = "delete"
    objects.click((z, y, x))
    gone = (found > 0) & (layer.data == 0)
    bench.wait(lambda: objects.worker is None and not objects.session.stale)
    assert np.array_equal(mask.data, np.where(gone, 0, before)), "with no button pressed"
    y, x = np.argwhere(before[2] == 0)[0]
    layer.paint((2, y, x), 500)
    added = layer.data == 500
    assert added.any()
    bench.viewer.layers.selection.active = layer
    train.corrections_button.native.click()  # before the table has followed
    assert np.array_equal(mask.data > 0, ((before > 0) & ~gone) | added)
    bench.finish(train)
    model = models.get("em corrected")
    assert {2, *np.unique(np.nonzero(gone)[0]).tolist()} >= set(model.summary["labelled_slices"]) >= {2}
    layer.undo()
    layer.undo()
    bench.wait(lambda: objects.worker is None and not objects.session.stale)
    assert np.array_equal(layer.data, found)
    assert np.array_equal(mask.data, before)
    assert notified == []


def test_corrections_are_of_the_image_of_their_mask(bench, segmented, notified):
    """Another image of that shape is chosen above, with labels of its own."""
    train, _, mask = segmented
    correct(mask, bench.mito.data, 4)
    other = bench.viewer.add_image(np.zeros_like(bench.em.data), name="other", **WORLD)
    train.image.value = other
    bench.viewer.layers.selection.active = mask
    train.corrections_button.native.click()
    bench.finish(train)
    model = models.get("em corrected")
    assert model.summary["labelled_slices"] == [4]
    assert notified[0] == "em tiny mask is a mask of em: the labels mito, of another image, are not used."
    assert train.origin.value is None, "that is no start for the other image"


def test_an_image_that_the_mask_is_no_longer_of_is_named_at_the_click(bench, segmented, notified):
    train, _, mask = segmented
    train.labels_layer.value = mask
    correct(mask, bench.mito.data, 2)
    bench.em.data = bench.em.data[:4, :60]
    train.corrections_button.native.click()
    assert train.worker is None, "said before anything starts"
    assert train.error_label.text().startswith("em tiny mask has shape (8, 96, 96), but em (4, 60, 96): choose")
    assert notified[-1] == train.error_label.text()


def test_a_start_that_a_run_has_left_is_for_its_image_alone(bench, segmented):
    train, _, mask = segmented
    correct(mask, bench.mito.data, 4)
    train.corrections_button.native.click()
    bench.finish(train)
    assert train.origin.value == "em corrected"
    other = bench.viewer.add_image(bench.em.data, name="other", **WORLD)
    train.image.value = other
    assert train.origin.value is None
    train.origin.value = "tiny"
    train.image.value = bench.em
    assert train.origin.value == "tiny", "what the user has chosen stays"


def test_an_image_that_is_opened_anew_is_the_one_that_is_learnt_from(bench, segmented):
    """The layer that was removed is still held, by the last run for one."""
    train, _, mask = segmented
    correct(mask, bench.mito.data, 4)
    held = bench.em
    bench.viewer.layers.remove(held)
    train.image.value = bench.viewer.add_image(held.data, name="again", **WORLD)
    train.corrections_button.native.click()
    bench.finish(train)
    assert models.session_names()[0] == "again corrected"
