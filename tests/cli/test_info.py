"""The command `info`: its table and its JSON are what the model says of itself."""

from __future__ import annotations

import json
import re

import pytest

from command_line import SMALL, run
from mutations import forged
from napari_kdunet import core
from napari_kdunet.core.parsing import parse_slices


def test_info(teacher):
    model = core.load_model(teacher)
    told = json.loads(run("info", teacher, "--json").out)
    assert told == model.describe()
    assert (told["k"], told["bn"], told["depth"], told["pixel_size"]) == (4, True, 2, 10.0)
    assert told["parameters"] == core.KUNet(k=4, depth=2).parameter_count
    assert told["summary"]["settings"]["steps"] == 40
    table = dict(re.split(r" {2,}", line, maxsplit=1) for line in run("info", teacher).out.splitlines())
    assert table["k"] == "4"
    assert table["parameters"] == str(told["parameters"])
    assert table["threshold"] == f"{told['threshold']:.5g}"
    assert table["settings: steps"] == "40"
    assert parse_slices(table["labelled slices"]) == tuple(told["summary"]["labelled_slices"])
    assert table["validation: iou"] == f"{told['summary']['validation']['iou']:.5g}"


def test_odd_names_are_shown_as_they_are(data, teacher, tmp_path):
    folder = tmp_path / "[red] a :smile: b"
    folder.mkdir()
    missing, mask = folder / "raw[1].tif", folder / "mask.zarr"
    assert str(missing) in run("predict", teacher, missing, "-o", mask).err
    assert run("predict", teacher, data / "raw.tif", "-o", mask, "--probabilities").out == f"{mask}\n"
    model = folder / "student.safetensors"
    result = run("distill", mask, data / "raw.tif", "-o", model, "--steps", 40, *SMALL)
    assert result.out.startswith(str(model))
    assert f"{mask}\n" in run("info", model).out


@pytest.mark.parametrize("seed", range(20))
def test_any_summary_is_shown(model_file_of, seed):
    """A file of somebody else's can hold anything there, and what it holds is not sent to the terminal as it is."""
    summary = {"validation": {"slices": [1, "a"]}, "settings": {"steps": 4}, "labelled_slices": [0, 1], "seconds": 1.0}
    path = model_file_of(
        forged(summary, seed) if seed else {"k": "\x1b[31m\n", "\ud800": [float("nan")], "x" * 999: {}}
    )
    told = run("info", path)
    if told.code and seed:  # too deep, or a number too large
        assert (told.code, len(told.lines)) == (2, 1)
        return
    assert told.out.replace("\n", "").isprintable()
    assert json.loads(run("info", path, "--json").out, parse_constant=pytest.fail)["k"] == 1


@pytest.fixture
def model_file_of(tmp_path):
    def save(summary):
        return core.Model(core.KUNet(1, depth=1), summary=summary).save(tmp_path / "m.safetensors")

    return save
