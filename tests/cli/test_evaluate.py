"""The command `evaluate`: its table and its JSON are the scores of the core."""

from __future__ import annotations

import json
import re

import numpy as np

from command_line import SHAPE, blobs, run
from napari_kdunet import core


def test_evaluate(data, teacher, probability, tmp_path):
    mask = tmp_path / "mask.tif"
    run("predict", teacher, data / "raw.tif", "-o", mask)
    _, labels = blobs()
    expected = core.evaluate(np.asarray(core.open_volume(mask)), labels)
    told = json.loads(run("evaluate", mask, data / "labels.tif", "--json").out)
    assert told == expected.to_dict()
    assert told["iou"] > 0.5
    assert len(told["iou_per_slice"]) == SHAPE[0]
    table = dict(re.split(r" {2,}", line) for line in run("evaluate", mask, data / "labels.tif").out.splitlines())
    assert {name: table[name] for name in ("iou", "dice", "precision", "recall")} == {
        name: f"{told[name]:.5g}" for name in ("iou", "dice", "precision", "recall")
    }
    worst = min(told["iou_per_slice"])
    assert table["worst slice"] == f"{worst:.4f} at z = {told['iou_per_slice'].index(worst)}"

    soft = json.loads(run("evaluate", probability, data / "labels.tif", "--json", "--threshold", 0.7).out)
    assert soft == core.evaluate(np.asarray(core.open_volume(probability)), labels, threshold=0.7).to_dict()
    assert soft["paper_ce"] == 2 * soft["ce"]
    nothing = run("evaluate", data / "empty.tif", data / "empty.tif")
    assert re.search(r"^iou +not defined$", nothing.out, re.MULTILINE)
    ignoring = json.loads(run("evaluate", mask, data / "labels.tif", "--json", "--ignore", 1).out)
    assert (ignoring["tp"], ignoring["fp"], ignoring["tn"]) == (0, told["fp"], told["tn"])


def test_what_is_wrong_with_labels_is_said_of_their_file(data, tmp_path):
    _, labels = blobs()
    for name, wrong, words in (
        ("negative", np.where(labels > 0, -1, 0).astype(np.int16), "hold the negative value -1"),
        ("marked", np.where(labels > 0, 2**64 - 1, 0).astype(np.uint64), "hold 2^64-1"),
    ):
        np.save(tmp_path / f"{name}.npy", wrong)
        for more in ([], ["--objects"]):
            result = run("evaluate", data / "labels.tif", tmp_path / f"{name}.npy", *more)
            assert result.code == 2
            assert f"{name}.npy {words}" in result.err


def test_options_of_an_image_that_is_not_given_are_refused(data):
    result = run("evaluate", data / "labels.tif", data / "labels.tif", "--fill", 0)
    assert result.code == 2
    assert "--fill is for the image of --raw" in result.err


def test_outside_the_sample_nothing_is_scored(tmp_path):
    raw, labels = blobs()
    raw, labels = (np.pad(each, ((0, 0), (40, 0), (0, 0))) for each in (raw, labels))
    mask = labels.copy()
    mask[:, :40] = 1  # called foreground where there is no sample
    for name, volume in (("raw", raw), ("labels", labels), ("mask", mask), ("sample", (raw > 0).astype(np.uint8))):
        core.write_volume(volume, tmp_path / f"{name}.tif")
    argv = ["evaluate", tmp_path / "mask.tif", tmp_path / "labels.tif", "--json"]
    assert json.loads(run(*argv).out)["iou"] < 0.9
    for more in ([], ["--fill", 0], ["--sample", tmp_path / "sample.tif"]):
        assert json.loads(run(*argv, "--raw", tmp_path / "raw.tif", *more).out)["iou"] == 1


def test_what_cannot_be_known_of_labels_is_refused_and_what_is_assumed_is_noted(data, tmp_path):
    _, labels = blobs()
    np.save(tmp_path / "from-1.npy", (labels > 0).astype(np.uint8) + 1)
    np.save(tmp_path / "percent.npy", (labels > 0) * np.int16(99) + (np.arange(labels.shape[-1]) % 2).astype(np.int16))
    result = run("evaluate", data / "labels.tif", tmp_path / "from-1.npy")
    assert result.code == 2
    assert "from-1.npy hold values from 1 to 2 and no background of 0" in result.err
    assert "from-1.npy has no background of 0" in run(
        "evaluate", data / "labels.tif", tmp_path / "from-1.npy", "--objects"
    ).err.replace("\n", " ")
    result = run("evaluate", tmp_path / "percent.npy", data / "labels.tif", "--json")
    assert "percent.npy, 1 to 100, are taken as classes or objects" in result.err
    assert "notes" not in json.loads(result.out)
