"""What a training learns from and is judged by: slices, held-out shares, pixel sizes, and all input that is wrong."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from napari_kdunet import core
from napari_kdunet.core.data.dataset import prepare


def start(raw, labels, config, **more) -> core.Started:
    """The first event of a training that is then given up."""
    events = core.iter_train(raw, labels, config, **more)
    started = next(events)
    events.close()
    assert isinstance(started, core.Started)
    return started


@pytest.mark.parametrize(
    ("size", "count", "side"),
    [
        ((40, 56), 5, 40),  # 2 x 64 x 64 pixels are about 5 x 40 x 40
        ((39, 56), 5, 40),  # rounded up to what the poolings need
        ((70, 64), 2, 64),
        ((200, 200), 2, 64),
    ],
)
def test_patches_are_no_larger_than_slices_and_a_step_sees_as_much(blobs, quick, size, count, side):
    config = quick(batch=2, patch=64, depth=2, pixel_size=0.0)
    batch = prepare(*blobs((4, *size)), config, torch.device("cpu")).sampler.batch(0)
    assert batch.image.shape == (count, 1, side, side)
    assert batch.target.shape == (count, 2, side, side)


# ---------------------------------------------------------------- which slices


@pytest.mark.parametrize(
    ("slices", "learnt", "judged"),
    [
        ("auto", (1, 2, 5, 6, 8), (4,)),  # those that hold any label
        ("all", (0, 1, 2, 3, 6, 7, 8, 9), (4, 5)),  # empty slices are background
        ((8, 0, 2, 2, 1, 5), (0, 1, 5, 8), (2,)),  # as named, in order of z
        ((4, 5, 6, 8), (4, 5, 6, 8), (4, 5, 6, 8)),  # too few to hold any out
    ],
)
def test_slices(blobs, quick, slices, learnt, judged):
    raw, labels = blobs((10, 32, 32))
    labels[[0, 3, 7, 9]] = 0
    started = start(raw, labels, quick(slices=slices, val_share=0.2))
    assert started.labelled_slices == learnt
    assert started.val_slices == judged
    assert started.validated_on == ("training slices" if judged == learnt else "held-out slices")
    assert started.unlabelled_slices == 0


def test_sparse_scribbles(blobs, quick):
    """With an ignore value a slice counts as labelled where anything is, background alone too."""
    raw, truth = blobs((8, 32, 32))
    for ignore, labels in ((9, np.full(truth.shape, 9, np.uint8)), (0, np.zeros(truth.shape, np.uint8))):
        labels[2, 4:8] = truth[2, 4:8] + (ignore == 0)
        labels[5, 0, :5] = ignore == 0  # background only
        started = start(raw, labels, quick(ignore=ignore))
        assert started.labelled_slices == (2, 5)
        known = truth[2, 4:8].sum() / (4 * 32 + 5)
        assert started.prior_ce == pytest.approx(-known * math.log(known) - (1 - known) * math.log(1 - known), rel=1e-5)


@pytest.mark.parametrize("share", [0.05, 0.15, 0.5, 0.9])
@pytest.mark.parametrize("count", [4, 5, 7, 20])
def test_held_out_slices_are_contiguous_in_the_middle_and_never_all(blobs, quick, share, count):
    raw, labels = blobs((count, 32, 32))
    started = start(raw, labels, quick(val_share=share, val_slices=100))
    learnt, judged = started.labelled_slices, started.val_slices
    if count * share < 1:
        assert started.validated_on == "training slices"
        assert learnt == judged == tuple(range(count))
        return
    assert sorted(learnt + judged) == list(range(count))
    assert learnt
    assert judged == tuple(range(judged[0], judged[-1] + 1))
    assert abs(len(judged) - count * share) <= 1
    assert abs(judged[0] - (count - 1 - judged[-1])) <= 1


def test_held_out_slices_are_not_trained_on(blobs, quick):
    """What stands in them changes the scores and nothing else."""
    raw, labels = blobs((8, 32, 32))
    other = raw.copy()
    other[3] = 255 - other[3]
    first, second = (list(core.iter_train(r, labels, quick(steps=3, validations=1))) for r in (raw, other))
    assert [e.loss for e in first if isinstance(e, core.Stepped)] == [
        e.loss for e in second if isinstance(e, core.Stepped)
    ]
    assert first[-2].ce != second[-2].ce


def test_no_share_and_spaced_slices(blobs, quick):
    raw, labels = blobs((20, 32, 32))
    none = start(raw, labels, quick(val_share=0, val_slices=4))
    assert none.validated_on == "training slices"
    assert none.labelled_slices == tuple(range(20))
    assert none.val_slices == (2, 7, 12, 17)


def test_held_out_slices_without_foreground_are_no_judge(blobs, quick):
    raw, labels = blobs((20, 32, 32))
    labels[8:12] = 0
    labels[8, 0, 0] = 1  # in the held-out share, but not in the slices of it that are looked at
    started = start(raw, labels, quick(slices="all", val_share=0.2, val_slices=1))
    assert started.validated_on == "training slices"
    assert started.labelled_slices == tuple(range(20))


def test_given_validation(blobs, quick):
    raw, labels = blobs((5, 32, 32))
    val_raw, val_labels = blobs((3, 40, 48), seed=7)
    started = start(raw, labels, quick(), val=(val_raw, val_labels))
    assert started.validated_on == "given volume"
    assert started.labelled_slices == (0, 1, 2, 3, 4)
    assert started.val_slices == (0, 1, 2)
    share = val_labels.mean()
    assert started.prior_ce == pytest.approx(-share * math.log(share) - (1 - share) * math.log(1 - share), rel=1e-5)


# ---------------------------------------------------------------- pixel sizes, memory, dtypes


def test_notes_of_unknown_pixel_sizes(blobs, quick):
    raw, labels = blobs()
    known = core.open_volume(raw, voxel_size=(40, 10, 10))
    (note,) = start(core.open_volume(raw, name="mine.tif"), labels, quick()).notes
    assert "mine.tif" in note
    assert "10 nm" in note
    assert start(known, labels, quick()).notes == ()
    assert start(raw, labels, quick(pixel_size=0.0)).notes == ()
    (note,) = start(known, labels, quick(), val=(core.open_volume(raw, name="val.tif"), labels)).notes
    assert "val.tif" in note
    with_more = core.iter_distill(labels > 0, known, labels, quick(mode="mixed"))
    assert next(with_more).notes == ()
    with_more.close()


def test_memory(blobs, quick):
    raw, labels = blobs((8, 64, 64))
    started = start(raw, labels, quick(memory=4e-5))
    assert any("sample" in note for note in started.notes)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int32", "float32", "float64"])
def test_any_raw_trains_alike(blobs, quick, dtype):
    raw, labels = blobs((4, 32, 32))
    reference = [e.loss for e in core.iter_train(raw, labels, quick(steps=2)) if isinstance(e, core.Stepped)]
    scaled = (raw.astype(np.float64) * (100 if dtype not in ("uint8",) else 1)).astype(dtype)
    events = list(core.iter_train(scaled, labels.astype("int64"), quick(steps=2)))
    assert [e.loss for e in events if isinstance(e, core.Stepped)] == pytest.approx(reference, rel=2e-3)


@pytest.mark.parametrize("shape", [(1, 20, 20), (3, 17, 200), (20, 20)])
def test_volumes_smaller_than_a_patch(blobs, quick, shape):
    raw, labels = blobs((1, *shape) if len(shape) == 2 else shape)
    if len(shape) == 2:
        raw, labels = raw[0], labels[0]
    done = list(core.iter_train(raw, labels, quick(steps=1, patch=64)))[-1]
    assert core.predict(done.model, raw).shape[1:] == shape[-2:]


# ---------------------------------------------------------------- wrong input: one line, before the first event


WRONG = {
    "no foreground": (lambda r, y: (r, y * 0), {}, core.LabelsError, ["foreground", "label some"]),
    "only ignore": (lambda r, y: (r, y * 0 + 9), {"ignore": 9}, core.LabelsError, ["ignore value 9"]),
    "only ignore, scribbles": (lambda r, y: (r, y * 0), {"ignore": 0}, core.LabelsError, ["ignore value 0"]),
    "no foreground in what is named": (lambda r, y: (r, y * (np.arange(6) > 2)[:, None, None]), {"slices": (0, 1)},
                                       core.LabelsError, ["foreground"]),
    "no such slice": (lambda r, y: (r, y), {"slices": (2, 6)}, core.ConfigError, ["z=6", "0 to 5"]),
    "other shape": (lambda r, y: (r, y[1:]), {}, core.LabelsError, ["(5, 64, 64)", "(6, 64, 64)"]),
    "floats": (lambda r, y: (r, y.astype(np.float32)), {}, core.LabelsError, ["float32"]),
    "negative": (lambda r, y: (r, y.astype(int) - 1), {}, core.LabelsError, ["-1", "ignore"]),
    "no such class": (lambda r, y: (r, y * 5), {"classes": 3}, core.LabelsError, ["class 5", "3 classes"]),
    "empty": (lambda r, y: (r[:0], y[:0]), {}, core.VolumeError, ["empty"]),
    "RGBT": (lambda r, y: (r[None], y[None]), {}, core.VolumeError, ["(1, 6, 64, 64)"]),
    "complex": (lambda r, y: (r.astype(complex), y), {}, core.VolumeError, ["complex"]),
    "missing": (lambda r, y: ("/no/such.tif", y), {}, core.VolumeError, ["/no/such.tif"]),
    "no labels": (lambda r, y: (r, None), {}, core.LabelsError, ["labels"]),
    "no background": (lambda r, y: (r, np.ones_like(y)), {}, core.UnlabelledError, ["background"]),
    "no class to balance": (lambda r, y: (r, y), {"class_weights": "balanced", "classes": 3},
                            core.ConfigError, ["class_weights"]),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_wrong_input(blobs, quick, one_line, case):
    spoil, settings, error, words = WRONG[case]
    with one_line(error, *words):
        core.iter_train(*spoil(*blobs()), quick(**settings))


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("z", [0, 5])
def test_raw_that_is_not_finite(blobs, quick, one_line, value, z):
    """Also in a slice that is held out, which is looked at only after the first part of the training."""
    raw, labels = blobs()
    raw = raw.astype(np.float32)
    raw[z, 7, 7] = value
    with one_line(core.VolumeError, f"z={z}", "NaN"):
        core.iter_train(raw, labels, quick())


def test_wrong_validation(blobs, quick, one_line):
    raw, labels = blobs()
    with one_line(core.LabelsError, "foreground"):
        core.iter_train(raw, labels, quick(), val=(raw, labels * 0))
    with one_line(core.LabelsError, "(6, 64, 64)"):
        core.iter_train(raw, labels, quick(), val=(raw[1:], labels))
