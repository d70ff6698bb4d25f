"""Damaged records of sweeps and studies: their measurements, or one clear line."""

from __future__ import annotations

import json
import math
from dataclasses import asdict

import pytest

from mutations import damaged_json, keeps_promise
from napari_kdunet import core
from napari_kdunet.core.experiments.history import History
from napari_kdunet.core.experiments.run_store import load_record, save_record

RESULT = core.Tradeoff("2-unet", 2, 30_902, 128_000, 0.5, 0.2, 0.01)
ABOUT = {"data": "8x64x64:00", "teacher": "t", "settings": {"k": 2, "slices": [1, 2], "lr": 0.01}}
SEEDS = [range(50), pytest.param(range(50, 1050), marks=pytest.mark.exhaustive)]


@pytest.mark.parametrize("seeds", SEEDS, ids=["quick", "many"])
def test_any_record_is_a_result_or_one_line(tmp_path, seeds):
    path = tmp_path / "m.safetensors"
    save_record(path, ABOUT, asdict(RESULT))
    whole = json.loads((tmp_path / "m.json").read_bytes())
    for seed in seeds:
        (tmp_path / "m.json").write_bytes(damaged_json(whole, seed))
        result = keeps_promise(lambda: load_record(path, ABOUT, core.Tradeoff))
        if isinstance(result, dict):
            assert isinstance(core.Tradeoff(**result).iou, float | int), seed
        else:
            assert result is None or isinstance(result, core.InputError), seed


@pytest.mark.parametrize("seeds", SEEDS, ids=["quick", "many"])
def test_any_history_is_one_or_one_line(tmp_path, seeds):
    path = tmp_path / "m.history.json"
    made = History([(1, 2.0, None, 1.0), (2, 1.0, 1.0, None)], [(2, 0.5)], 7, 1.5)
    made.save(path)
    whole = json.loads(path.read_bytes())
    assert History.load(path).steps == [list(step) for step in made.steps]
    for seed in seeds:
        path.write_bytes(damaged_json(whole, seed))
        result = keeps_promise(lambda: History.load(path))
        if isinstance(result, History):
            result.cut(1)
            assert result.train_loss(1, 2) is None or not math.isnan(result.seconds), seed


def test_what_is_no_file_is_no_record(tmp_path, one_line):
    (tmp_path / "m.json").mkdir()
    with one_line(core.ModelError, "m.json", "remove"):
        load_record(tmp_path / "m.safetensors", ABOUT, core.Tradeoff)
