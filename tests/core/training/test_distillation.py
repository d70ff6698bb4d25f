"""Distillation: every kind of teacher, every mode, slices without labels, and teachers that cannot teach."""

from __future__ import annotations

import math
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch import nn

from napari_kdunet import core
from napari_kdunet.core.data.teachers import TeacherOutput, as_teacher


def steps(events) -> list[core.Stepped]:
    return [e for e in events if isinstance(e, core.Stepped)]


def run(teacher, raw, labels, config, **more) -> list[core.Event]:
    return list(core.iter_distill(teacher, raw, labels, config, **more))


class OneLogit(nn.Module):
    """A model of ours seen as somebody else's: the difference of its two logits."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = self.net(x)
        return out[:, 1:] - out[:, :1]


@pytest.fixture(scope="module")
def good(blobs, quick) -> core.Model:
    """A teacher that knows the blobs."""
    model = core.train(*blobs((8, 64, 64)), quick(k=4, depth=2, steps=50, batch=4, validations=2))
    assert model.summary["validation"]["iou"] > 0.85
    return model


# ---------------------------------------------------------------- modes


@pytest.mark.parametrize(
    ("mode", "hard", "soft"),
    [
        ("mixed", [1] * 6, [1] * 6),
        ("soft", [0] * 6, [1] * 6),
        ("sequential", [0, 0, 1, 1, 1, 1], [1, 1, 0, 0, 0, 0]),
    ],
)
def test_modes(blobs, quick, good, mode, hard, soft):
    config = quick(mode=mode, soft_share=0.3, lam=0.7, depth=2, val_share=0.0)
    stepped = steps(run(good, *blobs(), config))
    assert [not math.isnan(e.hard) for e in stepped] == [bool(h) for h in hard]
    assert [not math.isnan(e.soft) for e in stepped] == [bool(s) for s in soft]
    for e in stepped:
        parts = [e.hard, 0.7 * e.soft] if mode == "mixed" else [e.soft if math.isnan(e.hard) else e.hard]
        assert e.loss == pytest.approx(sum(parts), rel=1e-5)


@pytest.mark.parametrize(
    ("labelled", "mode", "tau"), [("all", "mixed", 4.0), ("strokes", "soft", 1.0), ("", "soft", 1.0)]
)
@pytest.mark.parametrize("given", [None, 2.5])
def test_best_mode(blobs, quick, good, labelled, mode, tau, given):
    raw, labels = blobs()
    if labelled == "strokes":
        labels = np.where(np.arange(labels.shape[-1]) % 8 == 0, labels + 1, 0)
    config = quick(tau=given, depth=2, steps=2, ignore=0 if labelled == "strokes" else None)
    started, *rest = run(good, raw, labels if labelled else None, config)
    settings = rest[-1].model.summary["settings"]
    assert (settings["mode"], settings["tau"]) == (mode, given or tau)
    assert all(math.isnan(e.hard) == (mode == "soft") for e in steps(rest))
    assert any("mode soft" in note for note in started.notes) == (labelled == "strokes")


def test_in_later_rounds_the_student_learns_what_it_says_itself(blobs, quick, model):
    """By hand: the cross entropy of the student with a teacher that says the opposite, and then with itself."""
    start, raw = model(2, depth=2, bn=False), blobs((1, 64, 64))[0]
    one, eight = (np.asarray(core.predict(start, raw, views=views)).clip(1e-6, 1 - 1e-6) for views in (1, 8))
    plain = {"flips": False, "rotation": 0, "scale": 0, "elastic": 0, "intensity": 0, "dice": 0, "ema": 0}
    form = {"k": 2, "depth": 2, "bn": False, "patch": 64, "val_share": 0}
    config = quick(**form, **plain, steps=4, rounds=2, mode="soft", tau=1, lr=1e-9)
    found = [step.soft for step in steps(run(1 - one, raw, None, config, start=start))]
    expected = [-(p * np.log(one) + (1 - p) * np.log(1 - one)).mean() for p in (1 - one, 1 - one, eight, eight)]
    np.testing.assert_allclose(found, expected, rtol=1e-3)
    assert expected[0] != pytest.approx(expected[2], rel=0.01)


def test_tau_and_lam_take_part(blobs, quick, good):
    first = {
        (tau, lam): steps(run(good, *blobs(), quick(mode="mixed", tau=tau, lam=lam, steps=1, dice=0.0)))[0]
        for tau, lam in [(1.0, 1.0), (8.0, 1.0), (1.0, 0.0)]
    }
    assert len({e.soft for e in first.values()}) == 2
    assert len({e.hard for e in first.values()}) == 1
    assert first[8.0, 1.0].soft > 20 * first[1.0, 1.0].soft  # tau squared
    assert first[1.0, 0.0].loss == first[1.0, 0.0].hard


def test_a_student_learns_from_its_teacher_alone(blobs, quick, good):
    """The labels are never shown; they only judge."""
    raw, labels = blobs(seed=5)
    student = core.distill(good, raw, None, quick(k=2, depth=3, steps=60, batch=4, lr=0.02, mode="soft", tau=2.0))
    assert core.evaluate(core.predict(student, raw, output="labels"), labels).iou > 0.75


# ---------------------------------------------------------------- teachers


def test_kinds_of_teachers_teach_the_same(blobs, quick, model, tmp_path):
    """A model, its file, its network, its one logit, its TorchScript: the same soft loss at each step."""
    raw, labels = blobs()
    teacher, config = model(1, depth=2), quick(mode="mixed", steps=2, pixel_size=0.0)
    teacher.save(tmp_path / "t.safetensors")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.trace(teacher.net, torch.zeros(2, 1, 32, 32), check_trace=False).save(tmp_path / "t.pt")
    kinds = [
        tmp_path / "t.safetensors",
        str(tmp_path / "t.safetensors"),
        teacher.net,
        OneLogit(teacher.net),
        tmp_path / "t.pt",
    ]
    expected = [e.soft for e in steps(run(teacher, raw, labels, config))]
    for kind in kinds:
        trust = kind == tmp_path / "t.pt"
        assert [e.soft for e in steps(run(kind, raw, labels, config, trust=trust))] == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("dtype", ["float32", "float64", "uint8", "bool"])
def test_probability_volumes(blobs, quick, dtype, tmp_path):
    raw, labels = blobs()
    probability = labels * 255 if dtype == "uint8" else labels.astype(dtype)
    events = run(probability, raw, labels, quick(mode="mixed", tau=1.0, steps=30, k=4, depth=2, batch=4))
    for e in steps(events):  # a teacher that says what the labels say costs what they cost
        assert e.soft == pytest.approx(e.hard, rel=0.02, abs=0.005)
    np.save(tmp_path / "p.npy", probability)
    again = run(tmp_path / "p.npy", raw, labels, quick(mode="mixed", tau=1.0, steps=1, k=4, depth=2, batch=4))
    assert steps(again)[0].loss == steps(events)[0].loss


def test_what_is_taught_follows_the_augmentation(blobs, quick):
    """A teacher that answers by the brightness of each pixel: its soft loss agrees with labels by brightness."""

    class Bright(nn.Module):
        def forward(self, x):
            return 200 * x

    raw = np.random.default_rng(0).standard_normal((5, 64, 64)).cumsum(axis=1).cumsum(axis=2)
    raw = (raw - raw.mean(axis=(1, 2), keepdims=True)).astype(np.float32)
    config = quick(mode="mixed", tau=1.0, steps=5, intensity=0.0, batch=4, dice=0.0, patch=48)
    for e in steps(run(Bright(), raw, (raw > 0).astype(np.uint8), config)):
        assert e.soft == pytest.approx(e.hard, rel=0.05)


@pytest.mark.parametrize("nm", [5.0, 7.0, 10.0])
@pytest.mark.parametrize(("own", "student"), [(10.0, 10.0), (10.0, 0.0), (0.0, 10.0), (5.0, 10.0), (20.0, 5.0)])
def test_a_model_teaches_what_it_predicts(blobs, quick, model, nm, own, student):
    """At whatever pixel sizes image, teacher and student work, a model is the volume of what it predicts."""
    image = core.open_volume(blobs((3, 50, 70))[0], voxel_size=(40, nm, nm))
    labels, teacher = blobs((3, 50, 70))[1], model(1, depth=2, pixel_size=own)
    config = quick(mode="mixed", tau=2.0, steps=2, pixel_size=student)
    soft = [
        [e.soft for e in steps(run(kind, image, labels, config))]
        for kind in (teacher, core.predict(teacher, image), core.predict(teacher, 255 - blobs((3, 50, 70))[0]))
    ]
    assert soft[0] == pytest.approx(soft[1], rel=1e-3)
    assert soft[0] != pytest.approx(soft[2], rel=1e-3)


def test_each_slice_is_asked_of_the_teacher_once(blobs, quick, model):
    raw, labels = blobs()
    asked = []
    teacher = OneLogit(model(1, depth=2).net)
    teacher.register_forward_pre_hook(lambda module, inputs: asked.append(inputs[0].clone()))
    run(teacher, raw, labels, quick(mode="mixed", steps=40, batch=4, val_share=0.0))
    asked = [image for image in asked if image.any()]  # an empty patch shows beforehand that it can teach
    assert len(asked) == len(raw)
    assert len({tuple(image.flatten().tolist()) for image in asked}) == len(raw)


def test_an_averaged_teacher_teaches_what_it_predicts_so(blobs, quick, model):
    """And so it does of volumes without labels, where it is asked as often a slice."""
    raw, labels = blobs((3, 50, 70))
    teacher, config = model(1, depth=2), quick(tau=2.0, steps=2, teacher_views=8)
    kinds = (teacher, *(core.predict(teacher, raw, views=views) for views in (8, 1)))
    soft = [[e.soft for e in steps(run(kind, raw, labels, config))] for kind in kinds]
    assert soft[0] == pytest.approx(soft[1], rel=1e-3)
    assert soft[0] != pytest.approx(soft[2], rel=1e-3)
    asked = []
    network = OneLogit(teacher.net)
    network.register_forward_pre_hook(lambda module, inputs: asked.append(inputs[0].clone()))
    config = quick(steps=40, batch=4, val_share=0.0, teacher_views=2)
    run(network, raw, labels, config, unlabelled=[blobs((2, 40, 40), seed=1)[0]])
    assert sum(bool(image.any()) for image in asked) == 2 * (3 + 2)


class Wide(nn.Module):
    """Somebody's network that says of itself that it has many channels, so that a tile is 24 pixels wide."""

    channels, classes, k = 1, 2, 2**26 // 24**2

    def __init__(self, net: core.KUNet) -> None:
        super().__init__()
        self.net, self.multiple, self.reach, self.widest = net, net.multiple, net.reach, 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.widest = max(self.widest, *x.shape[-2:])
        return self.net(x)


def test_large_slices_are_taught_tile_by_tile(blobs, quick, model):
    """Blocks that begin anywhere, tiles smaller than a block: still what the model predicts."""
    raw, labels = blobs((1, 40, 4130))  # two blocks, of about 2048 pixels a side
    teacher = model(1, depth=2)
    wide = replace(teacher, net=Wide(teacher.net))
    config = quick(mode="mixed", tau=1.0, steps=3, batch=4)
    soft = [[e.soft for e in steps(run(kind, raw, labels, config))] for kind in (wide, core.predict(teacher, raw))]
    assert soft[0] == pytest.approx(soft[1], rel=1e-3)
    assert 24 <= wide.net.widest <= 24 + 2 * teacher.net.reach


def test_the_teacher_stays_as_it_is(blobs, quick, model):
    teacher = model(1, depth=2)
    before = {name: value.clone() for name, value in teacher.net.state_dict().items()}
    run(teacher, *blobs(), quick(mode="mixed", depth=2, steps=2))
    assert all(torch.equal(value, before[name]) for name, value in teacher.net.state_dict().items())
    assert all(p.grad is None for p in teacher.net.parameters())


# ---------------------------------------------------------------- without labels


def test_slices_and_volumes_without_labels(blobs, quick, model):
    raw, labels = blobs((8, 64, 64))
    labels[3:] = 0
    config = quick(mode="mixed", steps=1, slices="auto", batch=4, unlabelled_share=0.5)
    more = [blobs((2, 40, 40), seed=1)[0], blobs((3, 64, 48), seed=2)[0]]
    for unlabelled, count in (((), 5), (more, 10)):
        started, stepped, *_ = run(model(), raw, labels, config, unlabelled=unlabelled)
        assert started.labelled_slices == (0, 1, 2)
        assert started.unlabelled_slices == count
        assert math.isfinite(stepped.hard)
        assert math.isfinite(stepped.soft)


def test_an_unlabelled_volume_changes_what_is_learnt(blobs, quick, model):
    raw, labels = blobs()
    config = quick(mode="mixed", steps=2)
    losses = [
        [e.loss for e in steps(run(model(), raw, labels, config, unlabelled=more))]
        for more in ((), [blobs(seed=3)[0]], [blobs(seed=4)[0]])
    ]
    assert len({tuple(each) for each in losses}) == 3


@pytest.mark.parametrize("share", [0.17, 0.9])
def test_without_any_labels(blobs, quick, good, share):
    raw, _ = blobs()
    started, *rest = run(good, raw, None, quick(mode="mixed", val_share=share, val_slices=20))
    assert started.validated_on == "teacher"
    assert started.labelled_slices == ()
    assert started.unlabelled_slices + len(started.val_slices) == 6
    assert started.unlabelled_slices >= 1
    assert 0 < started.prior_ce < 1
    assert all(math.isnan(e.hard) and e.loss == e.soft for e in steps(rest))
    mask = core.predict(good, raw, output="labels").compute() > 0
    again = run(mask, raw, None, quick(mode="soft", val_share=share, val_slices=20))
    assert again[0].prior_ce == pytest.approx(started.prior_ce, rel=1e-6)  # judged by the teacher's own mask


def test_the_threshold_of_a_probability_counts_for_the_student_that_it_teaches(blobs, quick, good, tmp_path):
    """What was written by a model of another threshold is foreground from there on."""
    raw, _ = blobs()
    low = 0.3 * np.asarray(core.predict(good, raw))
    core.write_volume(low, tmp_path / "p.h5", metadata={"output": "probability", "threshold": 0.15})
    started = next(iter(core.iter_distill(tmp_path / "p.h5", raw, None, quick(mode="soft"))))
    assert started.prior_ce > 0.1, "half of what is foreground is told as such"
    unstated = next(iter(core.iter_distill(low, raw, None, quick(mode="soft"))))
    assert unstated.prior_ce == 0, "nothing is above 0.5"


# ---------------------------------------------------------------- teachers that cannot teach


class Gives(nn.Module):
    def __init__(self, make) -> None:
        super().__init__()
        self.make = make

    def forward(self, x):
        return self.make(x)


WRONG = {
    "three classes": (Gives(lambda x: x.expand(-1, 3, -1, -1)), core.ModelError, ["Gives", "3 classes", "2"]),
    "a tuple": (Gives(lambda x: (x, x)), core.ModelError, ["Gives", "logits"]),
    "one number": (Gives(lambda x: x.mean(dim=(2, 3))), core.ModelError, ["Gives", "logits"]),
    "colours": (nn.Conv2d(3, 2, 1), core.ModelError, ["Conv2d", "(1, 1, 32, 32)"]),
    "3-D": (nn.Conv3d(4, 2, 1), core.ModelError, ["Conv3d"]),
    "missing file": ("/no/such.pt", core.ModelError, ["/no/such.pt"]),
    "missing model": ("/no/such.safetensors", core.ModelError, ["/no/such.safetensors"]),
    "missing volume": ("/no/such.tif", core.VolumeError, ["/no/such.tif"]),
    "another shape": (np.zeros((6, 64, 63), np.float32), core.VolumeError, ["(6, 64, 63)", "(6, 64, 64)"]),
    "instances": (np.zeros((6, 64, 64), np.uint16), core.VolumeError, ["uint16", "float"]),
    "not a probability": (np.full((6, 64, 64), 1.5, np.float32), core.VolumeError, ["[0, 1]"]),
    "nan": (np.full((6, 64, 64), np.nan, np.float32), core.VolumeError, ["[0, 1]"]),
    "nonsense": (object(), core.VolumeError, ["object"]),
}


@pytest.mark.parametrize("case", WRONG)
@pytest.mark.parametrize("labelled", [True, False])
def test_wrong_teachers(blobs, quick, one_line, case, labelled):
    teacher, error, words = WRONG[case]
    raw, labels = blobs()
    with one_line(error, *words):
        core.iter_distill(teacher, raw, labels if labelled else None, quick(mode="mixed"))


def test_more_wrong_teachers(blobs, quick, model, one_line, tmp_path):
    raw, labels = blobs()
    with one_line(core.ModelError, "3 classes"):
        core.iter_distill(model(classes=3), raw, labels, quick(mode="mixed"))
    with one_line(core.VolumeError, "2 classes", "3"):
        core.iter_distill(labels > 0, raw, labels, quick(mode="mixed", classes=3))
    (tmp_path / "t.pt").write_bytes(b"no TorchScript")
    with one_line(core.ModelError, "t.pt", "not a TorchScript"):
        core.iter_distill(tmp_path / "t.pt", raw, labels, quick(mode="mixed"), trust=True)
    with one_line(core.VolumeError, "teaches on one volume only"):
        core.iter_distill(labels > 0, raw, labels, quick(mode="mixed"), unlabelled=[raw])
    with one_line(core.LabelsError, "sequential"):
        core.iter_distill(model(), raw, None, quick(mode="sequential"))


@pytest.mark.parametrize(
    "form",
    [
        lambda labels: labels,
        lambda labels: labels > 0,
        lambda labels: (255 * labels).astype(np.uint8),
        lambda labels: (40_000 * ndimage.gaussian_filter(labels.astype(float), (0, 1, 1)) + 5).astype(np.uint16),
    ],
)
def test_masks_and_integer_probabilities_teach(blobs, quick, form):
    raw, labels = blobs()
    teacher = as_teacher(form(labels), quick(mode="mixed"))
    taught = TeacherOutput(teacher, core.open_volume(raw), "cpu", 1).probabilities(0, slice(0, 64), slice(0, 64))
    assert ((taught[0] > 0.3).numpy() == (labels[0] > 0)).mean() > 0.95
    *_, done = core.iter_distill(form(labels), raw, labels, quick(mode="mixed"))
    assert isinstance(done, core.Done)


def test_a_teacher_that_gives_nan(blobs, quick, one_line):
    with one_line(core.ModelError, "the teacher gives NaN", "slice z=", "weights overflow"):
        core.distill(Gives(lambda x: x * math.nan), *blobs(), quick(mode="mixed"))


def test_module_teachers_work_at_the_students_pixel_size(quick):
    teacher = as_teacher(OneLogit(core.KUNet(1)), quick(mode="mixed", pixel_size=7.0))
    assert teacher.pixel_size == 7.0
    assert not teacher.net.training
