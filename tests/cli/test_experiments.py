"""The commands `study` and `sweep` from end to end, with a budget of a few steps."""

from __future__ import annotations

import csv
import json
import re
import signal
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from matplotlib.image import imread
from scipy import ndimage

from command_line import run
from folders import stamps
from napari_kdunet import core, sample
from napari_kdunet.core.experiments.paper import REPORTED
from napari_kdunet.core.experiments.summary import finding
from napari_kdunet.core.training.trainer import Trainer

TINY = ("--budget", "0.008", "--batch", "1", "--patch", "32", "--threads", "1", "--seeds", "1")
SMALL = ("--depth", "2", "--patch", "32", "--batch", "2", "--validations", "2", "--threads", "1", "--steps", "4")


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """Volumes of bright blobs, to train on and to score on, and a teacher."""
    folder = tmp_path_factory.mktemp("data")
    for seed, name in enumerate(("train", "val")):
        rng = np.random.default_rng(seed)
        labels = (ndimage.gaussian_filter(rng.standard_normal((6, 48, 40)), (1, 5, 5)) > 0.03).astype(np.uint8)
        raw = (60 + 110 * labels + rng.normal(0, 12, labels.shape)).clip(0, 255).astype(np.uint8)
        core.write_volume(raw, folder / f"{name}-raw.tif", voxel_size=(10, 10, 10))
        core.write_volume(labels, folder / f"{name}-labels.tif", voxel_size=(10, 10, 10))
    core.write_volume(labels[:2], folder / "short.tif")
    argv = ["train", folder / "train-raw.tif", folder / "train-labels.tif", "-o", folder / "teacher.safetensors"]
    assert run(*argv, "--k", 4, *SMALL[:-1], 40).code == 0
    return folder


@pytest.fixture
def volumes(data) -> list:
    pair = [data / "train-raw.tif", data / "train-labels.tif"]
    return [*pair, "--val-raw", data / "val-raw.tif", "--val-labels", data / "val-labels.tif"]


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def typed(row: dict[str, str]) -> core.RunResult:
    """A row of the CSV as what it was."""
    kinds = {name: str(hint).split(" |")[0] for name, hint in core.RunResult.__annotations__.items()}
    readers = {"int": int, "float": float, "bool": "True".__eq__, "str": str}
    return core.RunResult(**{n: readers[kinds[n]](v) if v or kinds[n] == "str" else None for n, v in row.items()})


@pytest.mark.parametrize("name", ["depth", "sequential", "final"])
def test_study(name, volumes, tmp_path):
    out = tmp_path / "new" / "study"
    argv = ["study", name, *volumes, "--out", out, "--max-k", 4, *TINY]
    result = run(*argv)
    assert result.code == 0, result.err
    assert {path.name for path in out.iterdir()} == {f"{name}-paper.csv", f"{name}.csv", f"{name}.png", "runs"}
    runs = core.study_runs(name, budget=0.008, seeds=1, max_k=4, batch=1, patch=32, threads=1)
    found = [typed(row) for row in rows(out / f"{name}.csv")]
    assert [(row.run, row.setting, row.label) for row in found] == [(r.name, r.setting, r.label) for r in runs]
    assert len(re.findall(rf"^ +\d+/{len(runs)}  ", result.err, re.MULTILINE)) == len(runs)
    (line, _) = result.out.splitlines()
    assert line == finding(name, found)
    val = volumes[3], volumes[5]
    again = list(core.iter_study(runs, *volumes[:2], val=val, folder=out / "runs"))
    assert again == found  # nothing was trained, and the CSV holds what the core says
    assert len(rows(out / f"{name}-paper.csv")) == len(REPORTED[name])
    figure = imread(out / f"{name}.png")
    assert figure.shape[0] > 400
    assert figure[..., :3].std() > 0.05

    before = stamps(out / "runs")
    repeated = run(*argv)
    assert (repeated.code, repeated.out) == (0, result.out)
    assert stamps(out / "runs") == before


def test_figure_4(volumes, tmp_path):
    result = run("study", "bn", *volumes, "--out", tmp_path, "--setting", "paper", *TINY)
    assert result.code == 0, result.err
    without, with_ = [typed(row) for row in rows(tmp_path / "bn.csv")]
    curves = {row.run: [] for row in (without, with_)}
    for point in rows(tmp_path / "bn-curve.csv"):
        curves[point["run"]].append((int(point["step"]), float(point["test_loss"])))
    for row in (without, with_):
        assert [step for step, _ in curves[row.run]] == [3, 4]  # a test each of 4 steps, 3 in a window
        assert min(loss for _, loss in curves[row.run]) == row.test_loss
    low, high = curves[with_.run][-1][1], curves[without.run][-1][1]
    (found, crossed, _) = result.out.splitlines()
    assert found == finding("bn", [without, with_])
    assert crossed.endswith(f"{'below' if low < high else 'ends above'} that of {without.run}")
    assert imread(tmp_path / "bn.png")[..., :3].std() > 0.05


def test_figure_4_of_runs_that_all_diverged_at_once(volumes, tmp_path, monkeypatch):
    def bad(trainer):
        raise core.DivergedError("the loss is nan", None)

    monkeypatch.setattr(Trainer, "step", bad)
    result = run("study", "bn", *volumes, "--out", tmp_path, "--setting", "paper", *TINY)
    assert result.code == 0, result.err
    assert [row["outcome"] for row in rows(tmp_path / "bn.csv")] == ["diverged"] * 2
    assert (tmp_path / "bn-curve.csv").read_text() == "run,step,test_loss,paper_test_loss\n"
    assert imread(tmp_path / "bn.png").size


def test_a_stopped_study_goes_on(volumes, tmp_path):
    argv = ["study", "reruns", *volumes, "--out", tmp_path / "a", *TINY]
    honest, steps = Trainer.step, []

    def pressed(trainer):
        steps.append(trainer.progress.step)
        if len(steps) == 7:
            signal.raise_signal(signal.SIGINT)
        return honest(trainer)

    with mock.patch.object(Trainer, "step", pressed):
        stopped = run(*argv)
        assert stopped.code == 130
        assert stopped.err.splitlines()[-1] == "stopped: 1 of 4 runs are done; the same command goes on."
        assert [row["run"] for row in rows(tmp_path / "a" / "reruns.csv")] == ["paper-2-unet-seed0"]
        assert not (tmp_path / "a" / "reruns.png").exists()
        assert run(*argv).code == 0
    assert steps == list(range(4)) * 4  # each step once
    whole = ["study", "reruns", *volumes, "--out", tmp_path / "b", *TINY]
    assert run(*whole).code == 0
    one, two = ([{**row, "seconds": ""} for row in rows(tmp_path / at / "reruns.csv")] for at in "ab")
    assert one == two


def test_study_of_the_embedded_volumes(tmp_path, monkeypatch):
    honest, made = sample.synthetic_em, []

    def small(shape, *, seed):
        made.append((shape, seed))
        return honest((shape[0] // 6, 48, 40), seed=seed)

    monkeypatch.setattr(sample, "synthetic_em", small)  # the real ones take many seconds
    argv = ["study", "depth", "--out", tmp_path, "--max-k", 2, "--setting", "ours", *TINY]
    result = run(*argv)
    assert result.code == 0, result.err
    assert [row["k"] for row in rows(tmp_path / "depth.csv")] == ["2", "1"]
    assert made == [((32, 256, 256), 0), ((16, 256, 256), 1)]
    assert {row["test_slices"] for row in rows(tmp_path / "depth.csv")} == {"2"}  # of the second
    assert "note" not in result.err  # the pixel size is known


def test_sweep(data, volumes, tmp_path):
    out = tmp_path / "new" / "sweep"
    argv = ["sweep", data / "teacher.safetensors", *volumes, "--ks", "1,2", "--out", out, *SMALL]
    result = run(*argv)
    assert result.code == 0, result.err
    found = rows(out / "sweep.csv")
    assert [(row["name"], row["k"]) for row in found] == [("teacher", "4"), ("1-unet", "1"), ("2-unet", "2")]
    config = core.DistillConfig(depth=2, patch=32, batch=2, validations=2, threads=1, steps=4)
    teacher = core.load_model(data / "teacher.safetensors")
    val = volumes[3], volumes[5]
    again = list(core.iter_sweep(teacher, *volumes[:2], [1, 2], config, val=val, folder=out))
    assert [{name: str(value) for name, value in vars(one).items()} for one in again] == found
    *table, line, _ = result.out.splitlines()
    for one in again:
        (shown,) = (text for text in table if text.strip("│ ").startswith(one.name))
        cells = [cell.strip() for cell in shown.strip("│").split("│")]
        assert cells[1:5] == [str(one.k), f"{one.parameters:,}", f"{one.file_bytes / 1e3:,.0f} kB", f"{one.iou:.3f}"]
    taken = core.smallest_within(again[1:])
    assert line.startswith(f"k = {taken.k} is the smallest within 0.01 IoU of the best student: IoU {taken.iou:.3f}")
    assert imread(out / "sweep.png")[..., :3].std() > 0.03
    before = stamps(out)
    repeated = run(*argv)
    assert (repeated.code, repeated.out) == (0, result.out)
    assert {p: t for p, t in stamps(out).items() if not p.endswith((".csv", ".png"))} == {
        p: t for p, t in before.items() if not p.endswith((".csv", ".png"))
    }


def test_what_a_sweep_assumes_of_labels_is_noted_once_and_kept(data, volumes, tmp_path):
    full = np.ones_like(core.open_volume(volumes[5]))
    core.write_volume(full, tmp_path / "full.tif", voxel_size=(10, 10, 10))
    out = tmp_path / "sweep"
    scored_on = [*volumes[:5], tmp_path / "full.tif"]
    argv = ["sweep", data / "teacher.safetensors", *scored_on, "--ks", "1", "--out", out, *SMALL]
    mask = core.predict(core.load_model(data / "teacher.safetensors"), volumes[3])
    (note,) = core.evaluate(mask, tmp_path / "full.tif").notes
    for _ in range(2):  # the second only reads what was measured
        told = " ".join(run(*argv).err.split())
        assert told.count(f"note: {note}") == 1
    assert [row["notes"] for row in rows(out / "sweep.csv")] == [note, note]


def test_a_sweep_goes_on_from_records_without_notes(data, volumes, tmp_path):
    argv = ["sweep", data / "teacher.safetensors", *volumes, "--ks", "1", "--out", tmp_path, *SMALL]
    assert run(*argv).code == 0
    for path in tmp_path.glob("*.json"):
        record = json.loads(path.read_text())
        del record["found"]["notes"]
        path.write_text(json.dumps(record))
    before = stamps(tmp_path)
    assert run(*argv).code == 0
    assert {name: t for name, t in stamps(tmp_path).items() if name.endswith(("json", "safetensors"))} == {
        name: t for name, t in before.items() if name.endswith(("json", "safetensors"))
    }


def test_tables_of_others_and_of_before_stay(data, volumes, tmp_path):
    argv = ["sweep", data / "teacher.safetensors", *volumes, "--ks", "1", "--out", tmp_path, *SMALL]
    (tmp_path / "sweep.csv").write_text("mine")
    result = run(*argv)
    assert result.code == 2
    assert "sweep.csv exists already" in result.err
    assert (tmp_path / "sweep.csv").read_text() == "mine"
    (tmp_path / "sweep.csv").unlink()
    assert run(*argv).code == 0
    before = rows(tmp_path / "sweep.csv")
    result = run(*argv, "--tau", "3")
    assert result.code == 2
    assert "with other settings: tau" in result.err
    assert rows(tmp_path / "sweep.csv") == before
    (tmp_path / "study").mkdir()
    (tmp_path / "study" / "reruns.csv").write_text("mine")
    result = run("study", "reruns", *volumes, "--out", tmp_path / "study", "--setting", "ours", *TINY)
    assert (result.code, (tmp_path / "study" / "reruns.csv").read_text()) == (2, "mine")


def test_sweep_holds_out_a_share(data, tmp_path):
    pair = [data / "train-raw.tif", data / "train-labels.tif"]
    assert run("sweep", data / "teacher.safetensors", *pair, "--ks", "1", "--out", tmp_path, *SMALL).code == 0
    raw, labels = (np.asarray(core.open_volume(path)) for path in pair)
    model = core.load_model(tmp_path / "1-unet.safetensors")
    assert model.summary["labelled_slices"] == [0, 1, 2, 3]  # of 6, 2 to score on
    last = core.open_volume(raw[4:], voxel_size=(10.0, 10.0, 10.0))
    iou = core.evaluate(core.predict(model, last), labels[4:], threshold=model.threshold).iou
    assert float(rows(tmp_path / "sweep.csv")[1]["iou"]) == iou


STUDY = "study reruns {data}/train-raw.tif {data}/train-labels.tif --out {out}/new"
SWEEP = "sweep {data}/teacher.safetensors {data}/train-raw.tif {data}/train-labels.tif --out {out}/new"
WRONG = {
    "no such study": ("study tables --out {out}/new", "choose one of depth"),
    "no folder named": ("study depth", "--out"),
    "setting": (STUDY + " --setting theirs", "paper, ours"),
    "budget": (STUDY + " --budget 0", "budget"),
    "seeds": (STUDY + " --seeds 0", "seeds"),
    "patch": (STUDY + " --patch 33", "patch"),
    "max-k": (STUDY + " --max-k 1", "max-k"),
    "raw alone": ("study depth {data}/train-raw.tif --out {out}/new", "LABELS"),
    "val alone": (STUDY + " --val-raw {data}/val-raw.tif", "--val-labels"),
    "val of nothing": (
        "study depth --out {out}/new --val-raw {data}/val-raw.tif --val-labels {data}/val-labels.tif",
        "RAW",
    ),
    "missing raw": (STUDY.replace("train-raw", "nowhere"), "nowhere.tif"),
    "labels of another shape": (STUDY.replace("train-labels", "short"), "(2, 48, 40)"),
    "val labels of another shape": (
        STUDY + " --val-raw {data}/val-raw.tif --val-labels {data}/short.tif",
        "(2, 48, 40)",
    ),
    "three samples of two images": (
        STUDY
        + " --val-raw {data}/val-raw.tif --val-labels {data}/val-labels.tif"
        + 3 * " --sample {data}/train-labels.tif",
        "sample is given 3 times for 2 images",
    ),
    "a file in the way": (STUDY.replace("{out}/new", "{data}/short.tif"), "short.tif"),
    "ks in words": (SWEEP + " --ks two", "1,2,4,8"),
    "k of 0": (SWEEP + " --ks 0,1", "at least 1"),
    "k twice": (SWEEP + " --ks 1,1", "each once"),
    "k where ks is meant": (SWEEP + " --k 2", "--k"),
    "no teacher": (SWEEP.replace("teacher.safetensors", "nobody.safetensors"), "nobody"),
    "sweep labels": (SWEEP.replace("train-labels", "short"), "(2, 48, 40)"),
    "sweep in the way": (SWEEP.replace("{out}/new", "{data}/short.tif"), "short.tif"),
}


@pytest.mark.parametrize(("words", "told"), WRONG.values(), ids=WRONG)
def test_wrong_input(words, told, data, tmp_path):
    before = stamps(data)
    result = run(*words.format(data=data, out=tmp_path).split())
    assert result.code == 2
    (line,) = result.err.splitlines()
    assert line.startswith("error: ")
    assert told in line
    assert result.out == ""
    assert stamps(data) == before
    assert list(tmp_path.iterdir()) == []


def test_a_folder_of_another_budget(volumes, tmp_path):
    argv = ["study", "reruns", *volumes, "--out", tmp_path, "--setting", "ours", *TINY]
    assert run(*argv).code == 0
    result = run(*argv, "--budget", 0.01)
    assert result.code == 2
    assert re.match(r"error: \S+ours-2-unet-seed0.json was made with other settings: steps 4 \(now 5\)\. ", result.err)
