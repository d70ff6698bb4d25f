"""The paper's tables as runs, and what the paper reports of them."""

from __future__ import annotations

import dataclasses
from collections import Counter

import pytest

from napari_kdunet import core
from napari_kdunet.core.config.training import PAPER
from napari_kdunet.core.experiments.paper import REPORTED
from napari_kdunet.core.experiments.studies import STUDIES

ENTRIES = {"depth": 8, "temperature": 12, "trials": 21, "reruns": 20, "mixed": 5, "sequential": 5, "final": 3, "bn": 2}
#: In one setting, teachers included.
RUNS = {"depth": 8, "temperature": 12, "trials": 22, "reruns": 20, "mixed": 6, "sequential": 6, "final": 4, "bn": 2}


@pytest.mark.parametrize("name", STUDIES)
def test_each_table_is_whole(name):
    runs = core.study_runs(name)
    with_bn = name == "final"  # of the paper's setting: ours has it in any case
    assert Counter(run.setting for run in runs) == {"paper": RUNS[name] + with_bn, "ours": RUNS[name]}
    assert len(REPORTED[name]) == ENTRIES[name]
    for setting in ("paper", "ours"):
        labels = Counter(run.label for run in runs if run.setting == setting)
        reported = Counter(entry.label for entry in REPORTED[name])
        assert all(labels[label] == count for label, count in reported.items())
        assert set(labels) - set(reported) <= {"untaught", "teacher", "teacher with BN"}
    seen = set()
    for run in runs:
        assert not run.teacher or run.teacher in seen
        assert isinstance(run.config, core.DistillConfig) == bool(run.teacher)
        seen.add(run.name)


def test_one_name_is_one_run():
    by_name = {}
    for name in STUDIES:
        for run in core.study_runs(name, seeds=3):
            about = (run.config, run.teacher)
            assert by_name.setdefault(run.name, about) == about
    assert len(set(by_name.values())) == len(by_name)


def test_the_two_settings():
    for name in STUDIES:
        paper = [run for run in core.study_runs(name, settings=["paper"], seeds=1) if run.label != "teacher with BN"]
        ours = core.study_runs(name, settings=["ours"], seeds=1)
        assert {run.setting for run in (*paper, *ours)} == {"paper", "ours"}
        for one, two in zip(paper, ours, strict=True):
            assert (one.config.k, one.config.steps, one.config.seed) == (
                two.config.k,
                two.config.steps,
                two.config.seed,
            )
            own = {"final": {"bn", "class_weights"}, "bn": {"bn"}}.get(name, set())
            assert all(getattr(one.config, key) == value for key, value in PAPER.items() if key not in own)
            default = type(two.config)()
            same = PAPER.keys() - ({"bn"} if name == "bn" else set())
            assert all(getattr(two.config, key) == getattr(default, key) for key in same)


def test_the_final_student_has_bn_and_class_weights():
    teacher, *students, with_bn = core.study_runs("final", settings=["paper"])
    assert (teacher.config.k, teacher.config.bn) == (64, False)
    assert with_bn.config == dataclasses.replace(teacher.config, bn=True)
    assert with_bn.name not in {run.teacher for run in students}
    assert [run.label for run in students] == ["untaught", "soft", "mixed"]
    assert all((run.config.k, run.config.bn, run.config.class_weights) == (2, True, "balanced") for run in students)
    assert [(run.config.mode, run.config.tau) for run in students[1:]] == [("soft", 5.0), ("mixed", 5.0)]


def test_figure_4_differs_in_batch_normalisation_alone():
    without, with_ = core.study_runs("bn", settings=["paper"])
    assert (without.label, without.config.bn, with_.label, with_.config.bn) == ("without BN", False, "with BN", True)
    assert without.config == dataclasses.replace(with_.config, bn=False)
    assert (with_.config.k, with_.config.validations) == (4, 250)  # tests enough for a curve


def test_budget():
    assert {run.config.steps for run in core.study_runs("reruns")} == {500}
    assert {run.config.steps for run in core.study_runs("reruns", budget=0.1)} == {50}
    assert {run.config.steps for run in core.study_runs("reruns", budget=1e-6)} == {1}
    _, short, long, *_ = core.study_runs("sequential", budget=0.1, settings=["ours"])
    assert (short.config.steps, short.config.steps * short.config.soft_share) == (75, pytest.approx(25))
    assert (long.config.steps, long.config.steps * long.config.soft_share) == (100, pytest.approx(50))


def test_teachers_have_a_budget_and_an_arithmetic_of_their_own():
    runs = core.study_runs("final", budget=0.2, teacher_budget=0.1, teacher_precision="bf16-mixed")
    found = {(run.config.k, run.config.steps, run.config.precision) for run in runs}
    assert found == {(64, 50, "bf16-mixed"), (2, 100, "32-true")}


def test_seeds_and_other_settings():
    runs = core.study_runs("mixed", settings=["ours"], seeds=2, batch=1, patch=32, threads=1)
    assert Counter(run.config.seed for run in runs) == {0: 6, 1: 5}  # one teacher for all
    assert {(run.config.batch, run.config.patch, run.config.threads) for run in runs} == {(1, 32, 1)}


def test_largest_network():
    assert [run.config.k for run in core.study_runs("depth", settings=["ours"], max_k=8)] == [8, 4, 2, 1]
    final = core.study_runs("final", settings=["ours"], max_k=8)
    assert [run.config.k for run in final] == [8, 2, 2, 2]
    assert final[2].teacher == final[0].name == "ours-8-unet-seed0"


WRONG = [
    ({"name": "tables"}, "choose one of depth, temperature"),
    ({"settings": ["theirs"]}, "paper, ours"),
    ({"settings": []}, "paper, ours"),
    ({"budget": 0}, "budget"),
    ({"budget": float("nan")}, "budget"),
    ({"name": "final", "teacher_budget": -1}, "teacher-budget is -1"),
    ({"name": "final", "teacher_precision": "bf16"}, "precision"),
    ({"seeds": 0}, "seeds"),
    ({"max_k": 1}, "max-k"),
    ({"patch": 33}, "patch"),
]


@pytest.mark.parametrize(("given", "told"), WRONG)
def test_wrong(given, told, one_line):
    with one_line(core.ConfigError, told):
        core.study_runs(**{"name": "reruns", **given})
