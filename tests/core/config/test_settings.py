"""Settings: what a form and a command line read of them, their bounds, and that they survive a file."""

from __future__ import annotations

import json
import math
from dataclasses import FrozenInstanceError, fields, replace

import numpy as np
import pytest

from napari_kdunet import core
from napari_kdunet.core.config.training import PAPER

BOTH = [core.TrainConfig, core.DistillConfig]
FIELDS = [pytest.param(cls, spec, id=f"{cls.__name__}-{spec.name}") for cls in BOTH for spec in fields(cls)]
BOUNDS = ("ge", "gt", "le", "lt")


@pytest.mark.parametrize(("cls", "spec"), FIELDS)
def test_each_field_tells_a_form_what_it_is(cls, spec):
    meta = spec.metadata
    assert meta["help"].endswith(".")
    assert meta["help"][0].isupper() or spec.name == "k"
    assert isinstance(meta["unit"], str)
    assert isinstance(meta["advanced"], bool)
    default = getattr(cls(), spec.name)
    assert default == spec.default
    if meta["choices"]:
        assert default in meta["choices"]
    elif spec.type != "bool":
        assert meta.keys() & set(BOUNDS), "neither choices nor bounds"
        if default is not None:
            assert meta.get("ge", -math.inf) <= default <= meta.get("le", math.inf)
            assert meta.get("gt", -math.inf) < default < meta.get("lt", math.inf)


@pytest.mark.parametrize(("cls", "spec"), FIELDS)
def test_bounds_hold_and_name_the_field(cls, spec, one_line):
    meta = spec.metadata
    wrong: list = ["nonsense", [] if "tuple" in str(spec.type) else [1], object()]
    if meta["choices"] and "tuple" not in str(spec.type):
        wrong.append((meta["choices"][0],))
    if meta["choices"]:
        wrong.append(True)
    if spec.type == "bool":
        wrong += [1, None]
    if meta.keys() & set(BOUNDS):
        wrong += [math.nan, math.inf, True, "3"]
        wrong += [meta[name] - 1 for name in ("ge", "gt") if name in meta]
        wrong += [meta[name] + 1 for name in ("le", "lt") if name in meta]
        wrong += [meta[name] for name in ("gt", "lt") if name in meta]
        wrong += [1.5] if spec.type.startswith("int") else []
        wrong += [] if "None" in spec.type else [None]
    for value in wrong:
        with one_line(core.ConfigError, spec.name):
            cls(**{spec.name: value})


@pytest.mark.parametrize(("cls", "spec"), FIELDS)
def test_the_bounds_themselves_are_allowed(cls, spec):
    meta = spec.metadata
    for value in [meta[name] for name in ("ge", "le") if name in meta] + list(meta["choices"]):
        together = {"depth": {"patch": 64}, "minutes": {"steps": None}}.get(spec.name, {})
        assert getattr(cls(**{spec.name: value}, **together), spec.name) == value


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"steps": 3, "minutes": 1.0}, ["steps", "minutes"]),
        ({"patch": 100}, ["patch", "16"]),
        ({"patch": 32, "depth": 6}, ["patch", "64"]),
        ({"patch": 16, "batch": 1}, ["batch is 1", "16"]),
        ({"class_weights": (1.0, 2.0, 3.0)}, ["class_weights", "2"]),
        ({"class_weights": (1.0, 0.0)}, ["class_weights", "positive"]),
        ({"class_weights": (1.0, math.inf)}, ["class_weights", "positive"]),
        ({"class_weights": ("a", "b")}, ["class_weights", "positive"]),
        ({"volume_weights": (1.0, 0.0)}, ["volume_weights", "positive"]),
        ({"volume_weights": "large"}, ["volume_weights", "even, area"]),
        ({"slices": np.array(3)}, ["slices is 3", "auto"]),
        ({"slices": (1, -1)}, ["slices"]),
        ({"slices": ()}, ["slices"]),
        ({"slices": [1.5]}, ["slices", "from 0 up"]),
        ({"slices": 3}, ["slices is 3", "auto, all"]),
        ({"device": "tpu"}, ["device", "auto, cpu, cuda, mps"]),
        ({"k": 0}, ["k is 0", "at least 1"]),
        ({"minutes": 0}, ["greater than 0 minutes"]),
    ],
)
def test_messages(settings, words, one_line):
    with one_line(core.ConfigError, *words):
        core.TrainConfig(**settings)


@pytest.mark.parametrize("slices", [[2, 4], range(2, 6, 2), np.array([2, 4])], ids=["list", "range", "array"])
def test_several_numbers_in_any_form(slices):
    config = core.TrainConfig(slices=slices)
    assert config == core.TrainConfig(slices=(2, 4))
    assert json.loads(json.dumps(config.to_dict()))["slices"] == [2, 4]
    assert core.TrainConfig(class_weights=[1, 2.5]).class_weights == (1, 2.5)


def test_frozen_and_by_name():
    with pytest.raises(FrozenInstanceError):
        core.TrainConfig().k = 3
    with pytest.raises(TypeError):
        core.TrainConfig(3)


def test_budget():
    assert core.TrainConfig(steps=7).budget == (7, None)
    assert core.TrainConfig(minutes=2).budget == (None, 120)
    assert core.TrainConfig().budget == (None, 300)


@pytest.mark.parametrize("cls", BOTH)
def test_round_trip(cls):
    config = cls(k=3, slices=(2, 5), class_weights=(1.0, 2.5), ignore=-1, minutes=0.5, val_share=0)
    assert cls(**json.loads(json.dumps(config.to_dict()))) == config
    assert cls(**cls().to_dict()) == cls()


def test_loss_weights():
    """Of the labels and of the teacher, None where a part is left out, over the used share of the budget."""
    plain, distil = core.TrainConfig(), core.DistillConfig(lam=0.7, tau=3.0)
    assert not plain.teaches_labelled
    assert distil.teaches_labelled
    assert (plain.loss_weights(0.5), plain.temperature, plain.labels_from) == ((1.0, 1.0), 1.0, 0.0)
    assert (distil.loss_weights(0.5), distil.temperature, distil.labels_from) == ((1.0, 0.7), 3.0, 0.0)
    assert replace(distil, mode="soft").loss_weights(0.0) == (None, 1.0)
    sequential = replace(distil, mode="sequential", soft_share=0.3)
    assert [sequential.loss_weights(used) for used in (0, 0.29, 0.3, 1)] == [(None, 1.0)] * 2 + [(1.0, None)] * 2
    assert sequential.labels_from == 0.3


def test_unlabelled_patches():
    """A share of its own beside labels; as they come where the teacher is alone; none without one."""
    assert core.TrainConfig().unlabelled_patches(1, 3) == 0
    assert core.DistillConfig(unlabelled_share=0.2).unlabelled_patches(1, 3) == 0.2
    for mode in ("soft", "sequential"):
        assert core.DistillConfig(mode=mode).unlabelled_patches(1, 3) == 0.75


@pytest.mark.parametrize("depth", range(1, 7))
def test_a_patch_suits_the_depth_whatever_the_side_of_the_slices(depth, one_line):
    multiple = 2**depth
    with one_line(core.ConfigError, "patch", f"2**depth = {multiple} pixels"):
        core.TrainConfig(depth=depth, patch=384 + multiple // 2)
    config = core.TrainConfig(depth=depth, patch=384)
    for side in (1, 15, 16, 17, 40, 100, 383):
        patch = config.within(side).patch
        assert max(16, side) <= patch < max(16, side) + multiple
        assert patch % multiple == 0
    assert config.within(384) == config.within(9999) == config


def test_paper():
    config = core.DistillConfig.paper(k=1, tau=5.0)
    assert (config.k, config.tau) == (1, 5.0)
    assert all(getattr(config, name) == value for name, value in PAPER.items())
    assert (config.activation, config.init, config.bn, config.dice) == ("relu", "torch", False, 0)
    assert config.flips
    assert config.elastic > 0
    assert core.TrainConfig.paper(bn=True).bn  # a setting given wins


def test_going_on_and_live_keep_what_they_do_not_need():
    config = core.TrainConfig(k=3, steps=7, ignore=0, device="cpu", class_weights="balanced", elastic=2.0)
    gentle = config.going_on()
    assert gentle.schedule == "constant"
    assert gentle.lr < config.lr
    assert gentle.steps == 7
    live = config.live()
    assert (live.schedule, live.lr) == (gentle.schedule, gentle.lr)
    assert (live.k, live.ignore, live.device, live.class_weights, live.elastic) == (3, 0, "cpu", "balanced", 2.0)
    assert live.val_share == 0
    steps, seconds = live.budget
    assert steps is None
    assert seconds >= 8 * 3600
    assert seconds / live.validations <= 2, "a model every other second"
    assert live.batch * live.patch**2 < config.batch * config.patch**2 / 4, "a step is short"


def test_settings_for_adapting_are_those_of_adapting_where_nobody_has_changed_them():
    changed = {"k": 4, "lr": 3e-3, "teacher_views": 8}
    assert core.DistillConfig(**changed).for_adapting() == core.DistillConfig.adapting(**changed)
    assert core.DistillConfig().for_adapting() == core.DistillConfig.adapting()


def test_numbers_of_numpy_are_numbers():
    """They are what scripts have at hand, and what is saved with a model is text."""
    given = {"k": np.int64(3), "lr": np.float32(0.5), "bn": np.bool_(False), "patch": np.uint16(64)}
    config = core.TrainConfig(**given, slices=np.array([2, 5]), activation=np.str_("relu"))
    assert config == core.TrainConfig(k=3, lr=0.5, bn=False, patch=64, slices=(2, 5), activation="relu")
    assert json.loads(json.dumps(config.to_dict()))["k"] == 3
    assert core.ObjectsConfig(threshold=np.float32(0.5)) == core.ObjectsConfig(threshold=0.5)


def test_an_array_is_no_number(one_line):
    with one_line(core.ConfigError, "k is [3, 4]", "give a number"):
        core.TrainConfig(k=np.array([3, 4]))
