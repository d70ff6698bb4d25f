"""Studies: what a row says, and that what is done stays done."""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
from itertools import pairwise

import numpy as np
import pytest

from folders import stamps
from napari_kdunet import core
from napari_kdunet.core.training.trainer import Trainer

SEED = 3


@pytest.fixture(scope="module")
def volumes(blobs):
    """Raw and labels to train on, and to score on."""
    return blobs((6, 48, 48)), blobs((4, 48, 48), seed=1)


@pytest.fixture(scope="module")
def runs(quick):
    """A teacher and a student of each kind."""
    form = {"depth": 2, "steps": 8, "validations": 4, "batch": 2, "seed": SEED}
    teacher = core.Run("teacher", "teacher", "ours", quick(k=2, **form))
    mixed = core.Run("mixed", "2", "ours", quick(k=1, mode="mixed", tau=2.0, **form), "teacher")
    half = {"mode": "sequential", "soft_share": 0.5}
    sequential = core.Run("sequential", "2", "ours", quick(k=1, **half, tau=2.0, **form), "teacher")
    return [teacher, mixed, sequential]


def study(runs, volumes, folder):
    return core.iter_study(runs, *volumes[0], val=volumes[1], folder=folder)


def results(events) -> list[core.RunResult]:
    return [event for event in events if isinstance(event, core.RunResult)]


@pytest.fixture(scope="module")
def done(runs, volumes, tmp_path_factory):
    """A folder of finished runs, and all that was told meanwhile."""
    folder = tmp_path_factory.mktemp("study") / "new" / "runs"
    return folder, list(study(runs, volumes, folder))


def timeless(rows):
    return [dataclasses.replace(row, seconds=0.0) for row in rows]


# what a row says


def test_files(done):
    names = ("mixed", "sequential", "teacher")
    kinds = ("history.json", "json", "safetensors")
    assert sorted(stamps(done[0])) == [f"{name}.{kind}" for name in names for kind in kinds]


def test_order(done):
    kinds = [type(event).__name__ for event in done[1]]
    one = ["Started", *["Stepped", "Stepped", "Validated", "Saved"] * 4, "Done", "RunResult"]
    assert kinds == one * 3


def test_the_row_is_what_the_core_computes(done, runs, volumes):
    folder, events = done
    (test, truth), row = volumes[1], results(events)[0]
    model = core.load_model(folder / "teacher.safetensors")
    scores = core.evaluate(core.predict(model, test), truth, threshold=model.threshold)
    assert row.ce == pytest.approx(scores.ce, rel=1e-5)
    assert row.iou == pytest.approx(scores.iou, abs=2e-3)  # a histogram of 512 bins
    assert row.paper_ce == 2 * row.ce
    assert row.threshold == model.threshold
    assert model.summary["validation"]["on"] == "held-out slices"
    share = truth.mean()
    assert row.prior_ce == pytest.approx(-share * math.log(share) - (1 - share) * math.log(1 - share))
    assert row.test_prior == pytest.approx(row.prior_ce)  # all four slices are test slices
    config = runs[0].config
    assert (row.run, row.label, row.setting, row.mode, row.tau, row.teacher) == (
        "teacher", "teacher", "ours", "labels", None, "")  # fmt: skip
    assert (row.k, row.bn, row.seed, row.batch, row.patch, row.steps) == (2, True, SEED, 2, 32, 8)
    assert row.parameters == core.KUNet(2, depth=2).parameter_count
    alone = list(core.iter_train(*volumes[0], config))
    losses = [event.loss for event in alone if isinstance(event, core.Stepped)]
    assert row.train_window == 1  # 8 steps over 20, at least 1
    assert row.train_loss == pytest.approx(min(losses))
    tests = [
        core.evaluate(core.predict(event.model, test), truth).ce for event in alone if isinstance(event, core.Validated)
    ]
    assert row.test_every == 2
    assert row.test_window == 3
    windows = [sum(tests[i : i + 3]) / 3 for i in range(2)]
    assert row.test_loss == pytest.approx(min(windows), rel=1e-5)
    assert row.test_loss_step == (6, 8)[windows.index(min(windows))]
    assert row.test_loss_min == pytest.approx(min(tests), rel=1e-5)
    assert row.paper_test_loss == 2 * row.test_loss
    assert row.start_loss is None


def test_train_losses_are_averaged_over_a_window(runs, volumes, tmp_path):
    config = dataclasses.replace(runs[0].config, steps=40)
    events = list(study([dataclasses.replace(runs[0], config=config)], volumes, tmp_path))
    losses = [event.loss for event in events if isinstance(event, core.Stepped)]
    row = results(events)[0]
    assert row.train_window == 2
    assert row.train_loss == pytest.approx(min((a + b) / 2 for a, b in pairwise(losses)))


def test_rows_of_students(done):
    folder, events = done
    _, mixed, sequential = results(events)
    assert (mixed.mode, mixed.tau, mixed.teacher, mixed.label) == ("mixed", 2.0, "teacher", "2")
    assert mixed.train_soft > 0 < mixed.train_hard
    assert mixed.train_loss >= mixed.train_soft + mixed.train_hard - 1e-6  # each has its own best window
    taught = core.load_model(folder / "mixed.safetensors").summary["teacher"]
    assert taught["parameters"] == core.KUNet(2, depth=2).parameter_count
    tests = [ce for _, ce in json.loads((folder / "sequential.history.json").read_text())["tests"]]
    assert len(tests) == 4
    assert sequential.start_loss == pytest.approx(sum(tests[:2]) / 2)  # before the labels took over, at step 4
    assert sequential.test_loss == pytest.approx(sum(tests[2:]) / 2)
    assert sequential.test_loss_min == min(tests[2:])


def test_a_share_is_held_out_to_score_on(runs, blobs, tmp_path):
    raw, labels = blobs((8, 32, 32))
    (one,) = results(core.iter_study(runs[:1], raw, labels, folder=tmp_path / "a"))
    pair = (raw[6:], labels[6:])
    (two,) = results(core.iter_study(runs[:1], raw[:6], labels[:6], val=pair, folder=tmp_path / "b"))
    assert timeless([one]) == timeless([two])


# what is done stays done


def test_a_second_call_does_nothing(done, runs, volumes):
    folder, events = done
    before = stamps(folder)
    again = list(study(runs, volumes, folder))
    assert again == results(events)
    assert stamps(folder) == before


def test_a_label_is_of_the_table_and_not_of_the_run(done, runs, volumes):
    other = dataclasses.replace(runs[0], label="64")
    assert results(study([other], volumes, done[0]))[0].label == "64"


@pytest.mark.parametrize("at", [1, 3, 12, 40])
def test_stopped_and_gone_on_with(at, done, runs, volumes, tmp_path):
    events = study(runs, volumes, tmp_path)
    begun = [next(events) for _ in range(at)]
    events.close()
    finished = {row.run for row in results(begun)}
    assert {name for name in stamps(tmp_path) if name.count(".") == 1 and name.endswith(".safetensors")} == {
        f"{name}.safetensors" for name in finished
    }
    before = stamps(tmp_path)
    rest = list(study(runs, volumes, tmp_path))
    assert timeless(results(rest)) == timeless(results(done[1]))
    steps = [e.step for e in (*begun, *rest) if isinstance(e, core.Stepped)]
    assert steps == list(range(1, 9)) * 3  # no step was done twice, none was left out
    after = stamps(tmp_path)
    assert all(after[f"{name}.safetensors"] == before[f"{name}.safetensors"] for name in finished)
    assert sorted(after) == sorted(stamps(done[0]))


@pytest.mark.parametrize(("kind", "step"), [(core.Saved, 4), (core.Validated, 2)])
def test_killed_and_gone_on_with(kind, step, done, runs, volumes, tmp_path):
    """A killed process writes nothing more: what it leaves is what a copy made then holds.

    Just after a validation the losses are ahead of the state to resume from.
    """
    events = study(runs, volumes, tmp_path / "killed")
    seen = 0
    for event in events:
        seen += isinstance(event, kind)
        if seen == 6:  # after 4 steps of the second run
            alive = shutil.ignore_patterns(".*.lock")  # of this process, which is not killed
            shutil.copytree(tmp_path / "killed", tmp_path / "copy", ignore=alive)
            break
    events.close()
    rest = list(study(runs, volumes, tmp_path / "copy"))
    assert next(e for e in rest if isinstance(e, core.Started)).step == step
    assert timeless(results(rest)) == timeless(results(done[1]))
    for name in ("teacher", "mixed"):
        one, two = (json.loads((at / f"{name}.history.json").read_text()) for at in (done[0], tmp_path / "copy"))
        assert (one["steps"], one["tests"]) == (two["steps"], two["tests"])


def test_killed_before_the_result_was_written(done, runs, volumes, tmp_path):
    shutil.copytree(done[0], tmp_path / "copy")
    record = tmp_path / "copy" / "mixed.json"
    record.write_text(json.dumps(json.loads(record.read_text()) | {"found": None}))
    assert list(study(runs, volumes, tmp_path / "copy")) == results(done[1])  # measured again, not trained again


@pytest.mark.parametrize("change", [{"steps": 9}, {"seed": 4}, {"lr": 0.5}, {"patience": 1}])
def test_a_folder_of_other_settings(change, done, runs, volumes, one_line):
    other = dataclasses.replace(runs[0], config=dataclasses.replace(runs[0].config, **change))
    with one_line(core.ConfigError, "teacher.json", *change, "another folder"):
        list(study([other], volumes, done[0]))


def test_a_folder_of_other_volumes(done, runs, volumes, blobs, one_line):
    with one_line(core.ConfigError, "teacher.json", "data"):
        list(study(runs, (blobs((6, 48, 48), seed=5), volumes[1]), done[0]))


def test_what_was_stopped_is_not_gone_on_with_on_other_volumes(runs, volumes, blobs, tmp_path, one_line):
    events = study(runs, volumes, tmp_path)
    while not isinstance(next(events), core.Saved):
        pass
    events.close()
    with one_line(core.ConfigError, "teacher.json", "data"):
        next(study(runs, (blobs((6, 48, 48), seed=5), volumes[1]), tmp_path))


def test_what_failed_to_start_leaves_no_record(runs, volumes, tmp_path, one_line):
    (raw, labels), val = volumes
    with one_line(core.LabelsError, "no foreground"):
        next(core.iter_study(runs, raw, 0 * labels, val=val, folder=tmp_path))
    assert stamps(tmp_path) == {}


def test_threads_may_change(done, runs, volumes):
    other = dataclasses.replace(runs[0], config=dataclasses.replace(runs[0].config, threads=2))
    assert len(list(study([other], volumes, done[0]))) == 1


def test_a_damaged_record(done, runs, volumes, tmp_path, one_line):
    shutil.copytree(done[0], tmp_path / "copy")
    (tmp_path / "copy" / "teacher.json").write_text("{")
    with one_line(core.ModelError, "teacher.json"):
        list(study(runs, volumes, tmp_path / "copy"))


def test_a_model_without_its_losses_is_told(done, runs, volumes, tmp_path, one_line):
    shutil.copytree(done[0], tmp_path / "copy")
    record = tmp_path / "copy" / "mixed.json"
    record.write_text(json.dumps(json.loads(record.read_text()) | {"found": None}))
    (tmp_path / "copy" / "mixed.history.json").unlink()
    with one_line(core.ModelError, "mixed.history.json", "trained again"):
        list(study(runs, volumes, tmp_path / "copy"))
    record.unlink()
    with one_line(core.OutputError, "mixed.safetensors", "without the record"):
        list(study(runs, volumes, tmp_path / "copy"))


@pytest.mark.parametrize("wrong", ["shape", "one slice"])
def test_wrong_volumes_make_no_folder(wrong, runs, volumes, tmp_path, one_line):
    (raw, labels), val = volumes
    with one_line(core.InputError):
        if wrong == "shape":
            list(core.iter_study(runs, raw, labels[:2], val=val, folder=tmp_path / "new"))
        else:
            list(core.iter_study(runs, raw[0], labels[0], folder=tmp_path / "new"))
    assert not (tmp_path / "new").exists()


# runs that fail


def test_a_collapsed_teacher_still_teaches(runs, volumes, tmp_path):
    (_, labels), (_, truth) = volumes
    empty = [
        np.broadcast_to(np.add.outer(*map(np.arange, a.shape[1:])).astype(np.uint8), a.shape) for a in (labels, truth)
    ]
    teacher, student = results(study(runs[:2], ((empty[0], labels), (empty[1], truth)), tmp_path))
    assert teacher.outcome == student.outcome == "collapsed"
    assert (tmp_path / "teacher.safetensors").exists()


def diverge_at(monkeypatch, step: int, k: int) -> None:
    honest = Trainer.step

    def bad(trainer):
        if trainer.config.k == k and trainer.progress.step == step:
            raise core.DivergedError("the loss is nan", trainer.checkpoints.best)
        return honest(trainer)

    monkeypatch.setattr(Trainer, "step", bad)


def test_a_diverged_student_is_a_result(done, runs, volumes, tmp_path, monkeypatch):
    diverge_at(monkeypatch, 5, k=1)
    teacher, student = results(study(runs[:2], volumes, tmp_path))
    assert (teacher.outcome, student.outcome) == (results(done[1])[0].outcome, "diverged")
    assert (student.ce, student.iou, student.threshold, student.steps) == (None, None, None, 5)
    assert student.prior_ce == teacher.prior_ce
    assert student.test_loss > 0  # of the two tests before
    assert not [name for name in stamps(tmp_path) if "partial" in name]
    assert list(study(runs[:2], volumes, tmp_path)) == [teacher, student]


def test_a_teacher_that_diverged_at_once_cannot_teach(runs, volumes, tmp_path, monkeypatch, one_line):
    diverge_at(monkeypatch, 1, k=2)
    with one_line(core.TrainingError, "mixed has no teacher", "diverged"):
        list(study(runs[:2], volumes, tmp_path))
