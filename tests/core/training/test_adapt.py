"""Adaptation without labels: what the teacher is asked, and what the student knows afterwards."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from napari_kdunet import core
from napari_kdunet.core.training.adapt import bundled_student, lesson
from napari_kdunet.core.volumes.volume import open_volume

ADAPTING = {"k": 1, "depth": 2, "batch": 4, "patch": 32, "threads": 1, "validations": 2, "pixel_size": 0.0}


@pytest.fixture(scope="module")
def teacher(blobs, quick) -> core.Model:
    model = core.train(*blobs((8, 64, 64)), quick(k=4, depth=2, steps=50, batch=4, pixel_size=0.0))
    assert model.summary["validation"]["iou"] > 0.85
    return model


def test_a_student_learns_a_volume_without_labels(blobs, teacher):
    raw, labels = blobs((8, 64, 64), seed=1)
    started = next(core.iter_adapt(teacher, raw, core.DistillConfig.adapting(steps=1, **ADAPTING)))
    assert (started.validated_on, started.labelled_slices, started.parameters) == ("teacher", (), 530)
    student = core.adapt(teacher, raw, core.DistillConfig.adapting(steps=80, **ADAPTING))
    assert core.evaluate(core.predict(student, raw, output="labels"), labels).iou > 0.75


def test_the_last_weights_are_kept_however_well_earlier_ones_agree_with_the_teacher(blobs, teacher, tmp_path):
    """A student that begins as its teacher agrees with it best at the beginning, and that says nothing of the image."""
    away = {"k": 4, "steps": 20, "validations": 4, "ema": 0.0, "warmup": 0.95, "lr": 0.05, "seed": 1}  # ever faster
    config = core.DistillConfig.adapting(**ADAPTING | away)
    out = tmp_path / "student.safetensors"
    raw = blobs((8, 64, 64), seed=1)[0]
    events = list(core.iter_adapt(teacher, raw, config, start=teacher, out=out))
    validated = [event for event in events if isinstance(event, core.Validated)]
    done, last = events[-1], validated[-1]
    assert max(event.iou for event in validated) > last.iou + 0.005
    assert [event.best for event in validated] == [True] * 4
    assert (done.model, done.iou, done.collapsed) == (last.model, last.iou, False)
    assert core.load_model(out).summary["validation"]["step"] == 20


@pytest.mark.parametrize(("share", "held_out"), [(0.0, ()), (0.25, (3, 4)), (0.5, (2, 3, 4, 5))])
def test_a_share_of_the_parts_is_held_out_and_scored_against_the_teacher(blobs, teacher, share, held_out):
    config = core.DistillConfig.adapting(steps=1, val_share=share, val_slices=8, **ADAPTING)
    started = next(core.iter_adapt(teacher, blobs((8, 64, 64), seed=1)[0], config))
    assert started.val_slices == (held_out or tuple(range(8)))
    assert started.unlabelled_slices == 8 - len(held_out)


def test_the_lesson_is_centred_on_the_teachers_threshold(blobs, teacher):
    raw = open_volume(blobs((4, 64, 64), seed=2)[0])
    strict = replace(teacher, threshold=0.9)
    _, probabilities = lesson(strict, raw, core.DistillConfig.adapting(teacher_views=1, **ADAPTING))
    expected = np.asarray(core.predict(strict, raw))
    np.testing.assert_array_equal(probabilities > 0.5, expected > 0.9)
    certain = abs(expected - 0.9) > 0.05
    assert certain.mean() > 0.5
    assert ((probabilities > 0) & (probabilities < 1)).all()


def test_slices_are_seen_by_views_whatever_their_distance(blobs, teacher):
    """Along y and x a slab shows a few pixels: with those the teacher's own mask lost half of its IoU on real EM."""
    half = replace(teacher, threshold=0.5)
    config = core.DistillConfig.adapting(**ADAPTING)
    for distance in (10.0, 50.0):
        raw = open_volume(blobs((40, 48, 64), seed=2)[0], voxel_size=(distance, 10.0, 10.0))
        image, probabilities = lesson(half, raw, config)
        np.testing.assert_array_equal(image, np.asarray(raw))
        assert image.voxel_size == (distance, 10.0, 10.0)
        np.testing.assert_allclose(probabilities, np.asarray(core.predict(half, raw, views=4)), atol=2e-4)


def test_of_a_large_volume_parts_are_asked_about(teacher):
    class Counting:
        """Noise of 200 large slices, of which it is remembered what was read."""

        shape, dtype, ndim = (200, 3000, 2000), np.dtype(np.uint8), 3

        def __init__(self) -> None:
            self.read: set[int] = set()

        def __getitem__(self, key):
            z, y, x = key
            self.read.add(z)
            rng = np.random.default_rng(z)
            return rng.integers(0, 255, (len(range(3000)[y]), len(range(2000)[x])), np.uint8)

    source = Counting()
    pixels = 3.5 * 1024 * 1024
    image, probability = lesson(
        teacher, open_volume(source), core.DistillConfig.adapting(teacher_views=1, **ADAPTING), pixels
    )
    assert image.shape == probability.shape == (3, 1024, 1024)
    assert source.read == {33, 100, 166}, "spread over the volume"


@pytest.mark.parametrize(("until", "slices"), [(0.0, [4]), (math.inf, list(range(8)))])
def test_a_teacher_without_time_is_asked_about_the_middle_alone(blobs, teacher, until, slices):
    raw = open_volume(blobs((8, 64, 64), seed=2)[0])
    config = core.DistillConfig.adapting(teacher_views=1, **ADAPTING)
    image, probabilities = lesson(replace(teacher, threshold=0.5), raw, config, until=until)
    np.testing.assert_array_equal(image, np.asarray(raw)[slices])
    np.testing.assert_allclose(probabilities, np.asarray(core.predict(teacher, raw))[slices], atol=2e-4)


def test_what_an_adaptation_cannot_do_is_said_before_the_teacher_is_asked(blobs, teacher, monkeypatch):
    monkeypatch.setattr("napari_kdunet.core.training.adapt.lesson", lambda *_: pytest.fail("the teacher was asked"))
    for settings in ({"boundary": True}, {"classes": 3}):
        with pytest.raises(core.ConfigError, match="learns the foreground alone"):
            next(core.iter_adapt(teacher, blobs()[0], core.DistillConfig.adapting(**settings)))
    for pixels in (math.nan, math.inf, 0):
        with pytest.raises(core.ConfigError, match="pixels is"):
            next(core.iter_adapt(teacher, blobs()[0], pixels=pixels))


def test_students_that_there_are(teacher, model):
    assert bundled_student(4, teacher) is teacher
    assert bundled_student(3, teacher) is None


def test_what_lies_outside_a_stated_sample_is_neither_asked_about_nor_learnt(blobs, teacher):
    raw = blobs((6, 64, 96), seed=3)[0]
    sample = np.zeros(raw.shape, bool)
    sample[:, :, :48] = True
    raw[~sample] = np.random.default_rng(0).integers(0, 256, np.count_nonzero(~sample))
    volume = open_volume(raw, sample=sample)
    half = replace(teacher, threshold=0.5)
    image, probabilities = lesson(half, volume, core.DistillConfig.adapting(teacher_views=1, **ADAPTING))
    np.testing.assert_allclose(probabilities, np.asarray(core.predict(half, volume)), atol=2e-4)
    for z in range(len(raw)):
        np.testing.assert_array_equal(image.outside(z), ~sample[z])
        assert image.statistics(z) == volume.statistics(z)


def test_parts_of_a_slice_are_standardised_as_the_slice_is(blobs, teacher):
    """As they are in a prediction of the whole."""
    raw = blobs((2, 1100, 64), seed=3)[0]
    raw[:, :15] = 255
    whole = open_volume(raw)
    image, _ = lesson(teacher, whole, core.DistillConfig.adapting(teacher_views=1, **ADAPTING))
    assert image.shape == (2, 1024, 64)
    assert [image.statistics(z) for z in range(2)] == [whole.statistics(z) for z in range(2)]


def test_lost_slices_are_not_asked_about(blobs, teacher):
    """The middle is where a teacher without time begins."""
    raw = blobs((8, 64, 64), seed=2)[0]
    raw[3:6] = 0
    image, _ = lesson(teacher, open_volume(raw), core.DistillConfig.adapting(**ADAPTING), until=0.0)
    assert len(image) == 1
    assert not image.is_lost(0)


@pytest.mark.parametrize(
    ("learn", "advice"), [(core.iter_adapt, ": give another image"), (core.iter_distill, ": choose others")]
)
def test_an_image_that_shows_nothing_is_named(teacher, learn, advice, one_line):
    black = open_volume(np.zeros((4, 64, 64), np.uint8), name="black.tif")
    arguments = (black,) if learn is core.iter_adapt else (black, None)
    with one_line(core.VolumeError, "black.tif shows nothing", advice):
        next(learn(teacher, *arguments, core.DistillConfig.adapting(steps=1, **ADAPTING)))
