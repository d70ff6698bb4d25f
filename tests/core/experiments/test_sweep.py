"""The trade-off over k, and which k to take."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest

from folders import stamps
from napari_kdunet import core

KS = (2, 1)


@pytest.fixture(scope="module")
def teacher(blobs, quick):
    return core.train(*blobs(), quick(k=4, depth=2, steps=40, batch=4, validations=4))


@pytest.fixture(scope="module")
def config(quick):
    return quick(mode="mixed", tau=4.0, depth=2, steps=6)


@pytest.fixture(scope="module")
def val(blobs):
    return blobs((4, 64, 64), seed=1)


def sweep(teacher, blobs, config, val, folder, ks=KS):
    return core.iter_sweep(teacher, *blobs(), ks, config, val=val, folder=folder)


def found(events) -> list[core.Tradeoff]:
    return [event for event in events if isinstance(event, core.Tradeoff)]


@pytest.fixture(scope="module")
def done(teacher, blobs, config, val, tmp_path_factory):
    folder = tmp_path_factory.mktemp("sweep") / "new"
    return folder, list(sweep(teacher, blobs, config, val, folder))


def test_each_network_is_measured(done, teacher, config, val):
    folder, events = done
    rows = found(events)
    assert [(row.name, row.k) for row in rows] == [("teacher", 4), ("2-unet", 2), ("1-unet", 1)]
    assert sorted(stamps(folder)) == sorted(f"{row.name}.{kind}" for row in rows for kind in ("json", "safetensors"))
    for row in rows:
        path = folder / f"{row.name}.safetensors"
        model = core.load_model(path)
        scores = core.evaluate(core.predict(model, val[0]), val[1], threshold=model.threshold)
        assert (row.iou, row.ce) == (scores.iou, pytest.approx(scores.ce))
        assert row.parameters == core.KUNet(row.k, depth=2).parameter_count
        assert row.file_bytes == path.stat().st_size
        assert row.seconds_per_megapixel > 0
        if row.name != "teacher":
            assert model.summary["settings"] == dataclasses.replace(config, k=row.k).to_dict()
            assert model.summary["validation"]["on"] == "held-out slices"  # never what is scored


def test_a_second_call_does_nothing(done, teacher, blobs, config, val):
    before = stamps(done[0])
    assert list(sweep(teacher, blobs, config, val, done[0])) == found(done[1])
    assert stamps(done[0]) == before


def test_another_k_is_added(done, teacher, blobs, config, val):
    events = list(sweep(teacher, blobs, config, val, done[0], (3, *KS)))
    assert [row.k for row in found(events)] == [4, 3, 2, 1]
    assert sum(isinstance(event, core.Started) for event in events) == 1


def test_a_stopped_training_is_not_taken_for_a_model(done, teacher, blobs, config, val, tmp_path):
    events = sweep(teacher, blobs, config, val, tmp_path)
    for event in events:
        if isinstance(event, core.Stepped) and event.step == 5:  # a best model is at hand already
            break
    events.close()
    rest = list(sweep(teacher, blobs, config, val, tmp_path))
    assert next(event for event in rest if isinstance(event, core.Started)).step == 5
    for name in ("2-unet", "1-unet"):
        one, two = (core.load_model(folder / f"{name}.safetensors").net.state_dict() for folder in (done[0], tmp_path))
        assert all(np.array_equal(one[key], two[key]) for key in one)


def test_a_share_is_held_out_to_score_on(teacher, blobs, config, tmp_path):
    raw, labels = blobs((8, 32, 32))
    one = found(core.iter_sweep(teacher, raw, labels, [1], config, folder=tmp_path / "a"))
    pair = (raw[6:], labels[6:])
    two = found(core.iter_sweep(teacher, raw[:6], labels[:6], [1], config, val=pair, folder=tmp_path / "b"))
    assert [(row.iou, row.ce) for row in one] == [(row.iou, row.ce) for row in two]


@pytest.mark.parametrize("ks", [(), (1, 1), (0,), (600,)])
def test_wrong_ks(ks, teacher, blobs, config, val, tmp_path, one_line):
    with one_line(core.ConfigError, "k"):
        list(sweep(teacher, blobs, config, val, tmp_path / "new", ks))
    assert not (tmp_path / "new").exists()


def test_a_folder_of_another_sweep(done, teacher, blobs, config, val, model, one_line):
    with one_line(core.ConfigError, "teacher.json", "teacher"):
        list(sweep(model(k=4, depth=2), blobs, config, val, done[0]))
    with one_line(core.ConfigError, "2-unet.json", "tau 4.0 (now 3.0)"):
        list(sweep(teacher, blobs, dataclasses.replace(config, tau=3.0), val, done[0]))


@pytest.mark.parametrize("change", [{"voxel_size": 5.0}, {"fill": 0}, "a label"])
def test_a_sweep_of_other_data_is_told(change, done, teacher, blobs, config, val, one_line):
    """Pixels alone do not make a volume, and of labels each slice counts."""
    raw, labels = blobs()
    if change == "a label":
        labels = labels.copy()
        labels[3, 7, 9] ^= 1
    else:
        raw = core.open_volume(raw, **change)
    with one_line(core.ConfigError, "teacher.json", "data"):
        list(core.iter_sweep(teacher, raw, labels, KS, config, val=val, folder=done[0]))


@pytest.mark.parametrize("name", ["teacher", "1-unet"])
def test_a_model_of_the_users_own_is_neither_taken_nor_replaced(name, teacher, blobs, config, val, tmp_path, one_line):
    own = core.Model(core.KUNet(1, depth=3)).save(tmp_path / f"{name}.safetensors")
    before = own.read_bytes()
    with one_line(core.OutputError, own.name, "move it away"):
        list(sweep(teacher, blobs, config, val, tmp_path))
    assert own.read_bytes() == before


def test_smallest_within():
    students = [
        core.Tradeoff(f"{k}", k, k, k, iou, 0.1, 0.1) for k, iou in ((8, 0.84), (1, 0.7), (4, 0.85), (2, 0.843))
    ]
    assert core.smallest_within(students).k == 2
    assert core.smallest_within(students, 0.0).k == 4
    assert core.smallest_within(students, 0.2).k == 1


def test_what_nobody_has_looked_at_is_not_scored(teacher, blobs, config, val, tmp_path):
    labels = np.where(np.arange(64) < 32, val[1], 255).astype(np.uint8)
    config = dataclasses.replace(config, ignore=255)
    (row, _) = found(core.iter_sweep(teacher, *blobs(), [1], config, val=(val[0], labels), folder=tmp_path))
    scores = core.evaluate(core.predict(teacher, val[0]), labels, threshold=teacher.threshold, ignore=255)
    assert row.iou == scores.iou
    assert row.iou > 1.2 * core.evaluate(core.predict(teacher, val[0]), labels, threshold=teacher.threshold).iou


def test_of_the_last_quarter_the_labelled_slices_are_scored(teacher, blobs, config, tmp_path, one_line):
    raw, labels = blobs((8, 64, 64))
    labels[6] = 0  # nobody has looked at it
    row, _ = found(core.iter_sweep(teacher, raw, labels, [1], config, folder=tmp_path / "a"))
    assert row.iou == core.evaluate(core.predict(teacher, raw)[7:], labels[7:], threshold=teacher.threshold).iou
    labels[7] = 0
    with one_line(core.UnlabelledError, "[6:8]", "no foreground"):
        list(core.iter_sweep(teacher, raw, labels, [1], config, folder=tmp_path / "b"))


def test_other_labels_of_any_slice_are_another_sweep(done, teacher, blobs, config, val):
    folder, _ = done
    labels = val[1].copy()
    labels[3] = 1 - labels[3]
    with pytest.raises(core.ConfigError, match="data"):
        list(core.iter_sweep(teacher, *blobs(), KS, config, val=(val[0], labels), folder=folder))


def test_which_to_take_where_nothing_could_be_found():
    rows = [core.Tradeoff("", k, 1, 1, iou, 0.0, 1.0) for k, iou in ((1, math.nan), (2, 0.5), (4, 0.6))]
    assert core.smallest_within(rows, 0.2).k == 2
    assert core.smallest_within(rows[:1]).k == 1
