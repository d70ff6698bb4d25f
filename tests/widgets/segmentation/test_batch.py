"""*Segment* with several images: one model, in the background, a row each, results on disk."""

import json
from contextlib import closing
from functools import partial
from itertools import chain, repeat

import numpy as np
import pytest
import tifffile

from napari_kdunet import core
from napari_kdunet.widgets.segmentation.batch import Item, iter_batch
from napari_kdunet.widgets.segmentation.batch_rows import BatchRows
from napari_kdunet.widgets.segmentation.recipe import Recipe
from napari_kdunet.widgets.shared.models import models

NM = (20.0, 20.0, 20.0)


@pytest.fixture
def segment(open_widget, tiny_model, qtbot):
    viewer, widget = open_widget("Segment")
    models.add("tiny", tiny_model)
    qtbot.waitUntil(lambda: widget.loaded is tiny_model)
    return viewer, widget


@pytest.fixture
def folder(tmp_path, em):
    """Two volumes, a damaged one between them, and a file that is no image."""
    folder = tmp_path / "images"
    folder.mkdir()
    core.write_volume(em[0], folder / "a.tif", voxel_size=NM)
    (folder / "b.tif").write_bytes(b"II*\0 no image")
    core.write_volume(255 - em[0], folder / "c.tif", voxel_size=NM)
    (folder / "notes.txt").write_text("none")
    return folder


def run(qtbot, widget):
    widget.batch.start()
    qtbot.waitUntil(lambda: widget.batch.worker is None, timeout=60_000)


def expected(widget, model, raw):
    volume = core.open_volume(raw, voxel_size=NM)
    return core.predict(model, volume, output="labels", threshold=widget.threshold.value).compute()


def test_a_folder_is_segmented_and_a_failure_stops_nothing(segment, em, tiny_model, folder, qtbot, notified):
    viewer, widget = segment
    widget.batch.add([folder])
    assert [image.name for image in widget.batch.images] == ["a.tif", "b.tif", "c.tif"]
    run(qtbot, widget)
    states = widget.batch.states
    assert states[0] == "done: a mask.tif"
    assert states[1].startswith("failed: ")
    assert "b.tif" in states[1]
    assert states[2] == "done: c mask.tif"
    assert [widget.batch.table.item(row, 1).text() for row in range(3)] == states
    for name, raw in (("a", em[0]), ("c", 255 - em[0])):
        written = core.open_volume(folder / f"{name} mask.tif")
        np.testing.assert_array_equal(np.asarray(written), expected(widget, tiny_model, raw))
        assert written.voxel_size == pytest.approx(NM)
    assert len(viewer.layers) == 0
    assert not notified
    assert widget.batch_start.enabled
    widget.batch.clear()
    widget.batch.add([folder])
    assert [image.name for image in widget.batch.images] == ["a.tif", "b.tif", "c.tif"], "results are no images"
    before = (folder / "a mask.tif").stat().st_mtime_ns
    run(qtbot, widget)
    assert widget.batch.states[0].startswith("failed: a mask.tif already exists: move it away")
    assert (folder / "a mask.tif").stat().st_mtime_ns == before, "nothing is replaced"


def test_a_batch_goes_on_with_what_is_missing(segment, em, folder, qtbot):
    _, widget = segment
    widget.batch.add([folder])
    run(qtbot, widget)
    before = (folder / "a mask.tif").stat().st_mtime_ns
    core.write_volume(em[0], folder / "b.tif", voxel_size=NM, overwrite=True)
    (folder / "c mask.tif").unlink()
    run(qtbot, widget)
    assert widget.batch.states == [f"done: {name} mask.tif" for name in "abc"]
    assert (folder / "a mask.tif").stat().st_mtime_ns == before, "it was not segmented again"
    assert (folder / "c mask.tif").exists()
    threshold = widget.threshold.value
    widget.threshold.value = threshold / 2
    run(qtbot, widget)
    assert all("already exists" in state for state in widget.batch.states), "other settings are another mask"
    widget.threshold.value = threshold
    run(qtbot, widget)
    assert widget.batch.states == [f"done: {name} mask.tif" for name in "abc"]


def test_layers_go_to_a_chosen_folder(segment, em, tiny_model, tmp_path, qtbot):
    viewer, widget = segment
    for name, raw in (("one", em[0]), ("two", 255 - em[0]), ("four", np.zeros((2, 3, 64, 64), np.uint8))):
        viewer.add_image(raw, name=name, scale=NM[-raw.ndim :] if raw.ndim < 4 else (1, *NM), units="nm")
    viewer.layers.selection.clear()
    widget.batch.add_layers()
    assert [image.name for image in widget.batch.images] == ["one", "two", "four"]
    run(qtbot, widget)
    assert all("choose a folder" in state for state in widget.batch.states[:2])
    widget.batch_folder.value, widget.batch_ending.value = str(tmp_path / "new" / "results"), ".zarr"
    run(qtbot, widget)
    assert widget.batch.states[:2] == ["done: one mask.zarr", "done: two mask.zarr"]
    assert "4 axes" in widget.batch.states[2]
    written = core.open_volume(tmp_path / "new" / "results" / "two mask.zarr")
    np.testing.assert_array_equal(np.asarray(written), expected(widget, tiny_model, 255 - em[0]))


@pytest.mark.parametrize(("into", "reason"), [("a\0b", "no file can have"), ("images/a.tif", "cannot make the folder")])
def test_a_folder_that_cannot_be_is_said_in_the_row(
    segment, into, folder, tmp_path, em, qtbot, notified, reason, monkeypatch
):
    viewer, widget = segment
    monkeypatch.chdir(tmp_path)
    widget.batch.add([viewer.add_image(em[0], name="one")])
    widget.batch_folder.value = into
    run(qtbot, widget)
    assert widget.batch.states[0].startswith("failed: ")
    assert reason in widget.batch.states[0]
    assert not notified


def test_files_of_one_name_do_not_replace_each_other(segment, em, tmp_path, qtbot):
    _, widget = segment
    for place in ("x", "y"):
        (tmp_path / place).mkdir()
        tifffile.imwrite(tmp_path / place / "em.tif", em[0])
    widget.batch.add(tmp_path / place / "em.tif" for place in ("x", "y"))
    widget.batch_folder.value = str(tmp_path)
    run(qtbot, widget)
    assert widget.batch.states == ["done: em mask.tif", "done: em 2 mask.tif"]


def test_what_was_assumed_and_lost_slices_are_told(segment, em, tmp_path, qtbot):
    _, widget = segment
    raw = em[0].copy()
    raw[2] = 0
    thumbnail = np.zeros((8, 8), np.uint8)
    with tifffile.TiffWriter(tmp_path / "a.tif") as file:
        file.write(raw, resolution=(5e5, 5e5), resolutionunit="CENTIMETER")
        file.write(thumbnail, subfiletype=1)
    widget.batch.add([tmp_path / "a.tif"])
    run(qtbot, widget)
    taken = "the largest of 2 images is taken, choose another with series"
    assert widget.batch.states == [f"done: a mask.tif ({taken}; no image at z = 2: taken as background)"]
    with tifffile.TiffFile(tmp_path / "a mask.tif") as file:
        assert json.loads(file.imagej_metadata["napari_kdunet"])["lost"] == [2]
    assert not np.asarray(core.open_volume(tmp_path / "a mask.tif"))[2].any()


@pytest.mark.parametrize("planes", ["z", "zyx"])
def test_a_damaged_slice_is_told_and_costs_the_image_only_where_all_are_needed(
    segment, em, tiny_model, tmp_path, qtbot, planes
):
    _, widget = segment
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, em[0], compression="zlib", resolution=(5e5, 5e5), resolutionunit="CENTIMETER")
    with tifffile.TiffFile(path) as file:
        start, size = file.pages[3].dataoffsets[0], file.pages[3].databytecounts[0]
    content = bytearray(path.read_bytes())
    content[start : start + size] = bytes(size)
    path.write_bytes(content)
    widget.planes.value = planes
    widget.batch.add([path])
    run(qtbot, widget)
    (state,) = widget.batch.states
    if planes == "zyx":
        assert state.startswith("failed: ")
        assert not (tmp_path / "a mask.tif").exists()
        return
    assert state.startswith("done: a mask.tif (1 slice not segmented, 0 in the mask: ")
    assert "a.tif" in state
    with tifffile.TiffFile(tmp_path / "a mask.tif") as file:
        assert json.loads(file.imagej_metadata["napari_kdunet"])["skipped"] == [3]
        mask = file.asarray()
    whole = expected(widget, tiny_model, em[0])
    assert not mask[3].any()
    assert whole[3].any()
    for z in (0, 1, 2, 4):
        np.testing.assert_array_equal(mask[z], whole[z])


def test_a_batch_is_stopped_between_two_slices(segment, folder, qtbot, monkeypatch):
    """What is complete stays, and of the image under way there is no half."""
    _, widget = segment
    widget.batch.add([folder])
    take = BatchRows._take

    def stop_in_the_last(rows, event, *more):
        take(rows, event, *more)
        if event.index == 2:
            rows.stop()

    monkeypatch.setattr(BatchRows, "_take", stop_in_the_last)
    run(qtbot, widget)
    assert widget.batch.states[0] == "done: a mask.tif"
    assert sorted(path.name for path in folder.glob("*mask*")) in (["a mask.tif"], ["a mask.tif", "c mask.tif"])
    assert widget.batch.states[2] in ("stopped", "done: c mask.tif")


def test_what_is_stopped_while_slices_are_read_is_no_damaged_slice(em, tiny_model, tmp_path):
    """The reading fails then, too: the mask would be written with nothing in the last slices."""
    recipe = Recipe(tiny_model, "tiny", tiny_model.threshold, inverted=False)
    volume = core.open_volume(em[0], voxel_size=NM, name="em")
    lasts = []
    for reads in range(12):
        answers = chain([False] * reads, repeat(True))
        target = tmp_path / f"{reads}.tif"
        *_, last = iter_batch([Item("em", volume, target)], recipe, partial(next, answers))
        assert (last.note, target.exists()) == ("", last.share == 1)
        lasts.append(last.share)
    assert min(lasts) < 1 == max(lasts)


def test_a_layer_of_the_same_name_is_not_gone_on_with(em, tiny_model, tmp_path):
    """What a stopped batch has left of one layer is no part of the result of another."""
    recipe = Recipe(tiny_model, "tiny", tiny_model.threshold, inverted=False)
    first, second = (core.open_volume(raw, voxel_size=NM, name="em") for raw in (em[0], 255 - em[0]))
    with closing(iter_batch([Item("em", first, tmp_path / "em.zarr")], recipe, lambda: False)) as stopped:
        assert any(event.share > 0.5 for event in stopped)
    assert not (tmp_path / "em.zarr").exists()
    assert list(tmp_path.glob(".em.part-kept*")), "the same layer would be gone on with"
    *_, last = iter_batch([Item("em", second, tmp_path / "em.zarr")], recipe, lambda: False)
    assert last.share == 1
    expected = core.predict(tiny_model, second, output="labels", threshold=tiny_model.threshold)
    np.testing.assert_array_equal(np.asarray(core.open_volume(tmp_path / "em.zarr")), expected.compute())


def test_views_and_planes_count_for_the_batch_too(segment, em, tiny_model, folder, qtbot):
    _, widget = segment
    widget.views.value, widget.planes.value = 8, "zyx"
    widget.batch.add([folder / "a.tif"])
    run(qtbot, widget)
    assert widget.batch.states == ["done: a mask.tif"]
    volume = core.open_volume(em[0], voxel_size=NM)
    how = {"output": "labels", "threshold": widget.threshold.value, "views": 8, "planes": "zyx"}
    written = np.asarray(core.open_volume(folder / "a mask.tif"))
    np.testing.assert_array_equal(written, core.predict(tiny_model, volume, **how).compute())
    with tifffile.TiffFile(folder / "a mask.tif") as file:
        said = json.loads(file.imagej_metadata["napari_kdunet"])
    assert (said["views"], said["planes"]) == (8, "zyx")


def test_a_zarr_is_an_image_and_a_folder_without_any_is_said(segment, em, tmp_path, notified):
    _, widget = segment
    core.write_volume(em[0], tmp_path / "a.zarr", voxel_size=NM)
    core.write_volume(em[0], tmp_path / "b.tif", voxel_size=NM)
    widget.batch.add([tmp_path])
    assert [image.name for image in widget.batch.images] == ["a.zarr", "b.tif"]
    widget.batch.clear()
    widget.batch.add([tmp_path / "a.zarr"])
    assert [image.name for image in widget.batch.images] == ["a.zarr"]
    (tmp_path / "empty").mkdir()
    widget.batch.add([tmp_path / "empty"])
    assert "there is no image in" in notified[-1]


def test_nothing_to_do_is_told(segment, notified):
    _, widget = segment
    widget.batch.start()
    assert "add layers, files or a folder" in notified[0]
    assert widget.batch.worker is None


def test_an_unknown_pixel_size_is_found_and_told(segment, em, tiny_model, tmp_path, qtbot):
    _, widget = segment
    tifffile.imwrite(tmp_path / "em.tif", em[0])
    model = core.Model(tiny_model.net, pixel_size=20.0, threshold=tiny_model.threshold)
    widget.model.value = models.add("at 20 nm", model)
    widget.batch.add([tmp_path / "em.tif"])
    run(qtbot, widget)
    (state,) = widget.batch.states
    unsure = "the pixel size of em.tif is not stated and not found: at 20 nm is sure at no size"
    assert state == f"done: em mask.tif ({unsure}. It is taken as the model's 20 nm)"
    with tifffile.TiffFile(tmp_path / "em mask.tif") as file:
        assert json.loads(file.imagej_metadata["napari_kdunet"])["pixel_size"] == "not found"
