"""napari-kdunet objects, and evaluate --objects: files, notes, and what is refused."""

import json
import sys

import numpy as np
import pandas as pd
import pytest

from command_line import run
from folders import names
from napari_kdunet import core, sample

SIZE = (10.0, 10.0, 10.0)


@pytest.fixture
def mask(tmp_path):
    """Two boxes that are apart, and one of them twice with a neck; its image beside it."""
    volume = np.zeros((20, 60, 80), np.uint8)
    volume[3:17, 5:20, 5:60] = 1
    volume[3:17, 30:50, 5:25] = volume[3:17, 30:50, 35:60] = volume[8:12, 38:42, 25:35] = 1
    core.write_volume(volume, tmp_path / "mask.tif", voxel_size=SIZE)
    core.write_volume(volume * 50 + 20, tmp_path / "raw.tif", voxel_size=SIZE)
    return tmp_path / "mask.tif"


def test_objects_and_their_table(mask, tmp_path):
    result = run(
        "objects", mask, "-o", tmp_path / "i.tif", "--table", tmp_path / "t.csv", "--raw", tmp_path / "raw.tif"
    )
    assert result.code == 0, result.err
    assert "3 objects" in result.out
    assert "in 3-D" in result.err
    ids = core.open_volume(tmp_path / "i.tif")
    assert ids.voxel_size == SIZE
    table = pd.read_csv(tmp_path / "t.csv")
    assert table["id"].tolist() == [1, 2, 3]
    assert table["voxels"].tolist() == np.bincount(np.asarray(ids).ravel())[1:].tolist()
    assert table["mean_grey"].tolist() == [70, 70, 70]
    assert names(tmp_path) == ["i.tif", "mask.tif", "raw.tif", "t.csv"]


def test_settings_reach_the_core(mask, tmp_path):
    assert run("objects", mask, "-o", tmp_path / "i.zarr", "--split", "0", "--min-diameter", "10").code == 0
    assert np.asarray(core.open_volume(tmp_path / "i.zarr")).max() == 2
    result = run("objects", mask, "-o", tmp_path / "j.tif", "--voxel-size", "50,10,10")
    assert "in each slice" in result.err


def test_objects_of_the_true_ones(mask, tmp_path):
    run("objects", mask, "-o", tmp_path / "i.tif")
    result = run("evaluate", tmp_path / "i.tif", tmp_path / "i.tif", "--objects", "--json")
    assert json.loads(result.out)["f1"] == 1
    assert json.loads(result.out)["objects"] == 3
    assert "panoptic quality" in run("evaluate", tmp_path / "i.tif", tmp_path / "i.tif", "--objects").out
    for more in (("--raw", "nothing.tif"), ("--threshold", "0.5")):
        refused = run("evaluate", tmp_path / "i.tif", tmp_path / "i.tif", "--objects", *more)
        assert (refused.code, more[0] in refused.err) == (2, True)


@pytest.mark.parametrize("ending", ["tif", "zarr", "h5", "mrc"])
def test_probabilities_of_a_model_are_taken_at_its_threshold(ending, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    core.write_volume(sample.synthetic_em((4, 96, 96), seed=1)[0], "raw.tif", voxel_size=SIZE)
    everything = ("--min-diameter", "0", "--holes", "0", "--split", "0")
    for threshold in ("0.2", "0.8"):
        how = ("--threshold", threshold, "--overwrite")
        assert run("predict", "lucchi-1unet", "raw.tif", "-o", "mask.tif", *how).code == 0
        assert run("predict", "lucchi-1unet", "raw.tif", "-o", f"p.{ending}", "--probabilities", *how).code == 0
        found = run("objects", f"p.{ending}", "-o", "ids.tif", *everything, "--overwrite")
        assert f"above {threshold} is foreground" in found.err
        mask = np.asarray(core.open_volume("mask.tif")) > 0
        np.testing.assert_array_equal(np.asarray(core.open_volume("ids.tif")) > 0, mask)
        scored = run("evaluate", f"p.{ending}", "mask.tif", "--json")
        assert f"scored at threshold {threshold}" in scored.err
        assert json.loads(scored.out)["iou"] == 1
        given = run("evaluate", f"p.{ending}", "mask.tif", "--json", "--threshold", "0.5")
        assert (given.err, json.loads(given.out)["iou"] < 1) == ("", True)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("mask.tif", "-o", "mask.tif", "--overwrite"), "it is the input"),
        (("mask.tif", "-o", "i.png"), "i.png"),
        (("mask.tif", "-o", "i.mrc"), "i.mrc"),
        (("mask.tif", "-o", "i.tif", "--table", "t.xlsx"), "t.xlsx"),
        (("mask.tif", "-o", "i.tif", "--raw", "raw.tif"), "--table"),
        (("mask.tif", "-o", "i.tif", "--min-diameter", "-1"), "min_diameter"),
        (("mask.tif", "-o", "i.tif", "--table", "t.csv", "--raw", "unknown.npy"), "(3, 20, 20)"),
        (("mask.tif", "-o", "i.tif", "--table", "t.csv", "--contacts", "nothing.tif"), "nothing.tif"),
        (("mask.tif", "-o", "i.tif", "--table", "t.csv", "--within", "0"), "within"),
        (("nothing.tif", "-o", "i.tif"), "nothing.tif"),
        (("unknown.npy", "-o", "i.tif"), "voxel size"),
        (("mask.tif", "-o", "old.tif"), "--overwrite"),
    ],
)
def test_one_line_for_what_cannot_be(mask, tmp_path, monkeypatch, arguments, words):
    monkeypatch.chdir(tmp_path)
    np.save("unknown.npy", np.zeros((3, 20, 20), bool))
    (tmp_path / "old.tif").write_bytes(b"mine")
    result = run("objects", *arguments)
    assert result.code == 2
    assert words in result.lines[-1]
    assert len(result.lines) == 1
    assert (tmp_path / "old.tif").read_bytes() == b"mine"
    assert not (tmp_path / "i.tif").exists()


def test_parquet_that_cannot_be_written_is_refused_before_the_work(mask, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    result = run("objects", mask, "-o", tmp_path / "i.tif", "--table", tmp_path / "t.parquet")
    assert result.code == 2
    assert "pyarrow" in result.lines[-1]
    assert names(tmp_path) == ["mask.tif", "raw.tif"]


def test_how_values_are_taken_is_said(mask, tmp_path):
    core.write_volume(np.asarray(core.open_volume(mask)) / np.float32(2), tmp_path / "p.tif", voxel_size=SIZE)
    assert "taken as a mask" in " ".join(run("objects", mask, "-o", tmp_path / "i.tif").err.split())
    assert "taken as prob" in " ".join(run("objects", tmp_path / "p.tif", "-o", tmp_path / "j.tif").err.split())


def test_ctrl_c_leaves_nothing_behind(mask, tmp_path, monkeypatch):
    from napari_kdunet.core.objects import instances

    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(instances, "merge_basins", stop)
    result = run("objects", mask, "-o", tmp_path / "i.tif")
    assert result.code == 130
    assert "nothing was written" in result.err
    assert names(tmp_path) == ["mask.tif", "raw.tif"]


def test_outlines_split_what_touches(tmp_path):
    """The probability of outlines, of a model that has learnt them, from file to file; of another it is refused."""
    bar = np.zeros((6, 40, 60), np.float32)
    bar[:, 10:30, 10:50] = 0.9
    lines = np.zeros_like(bar)
    lines[:, 10:30, 28:32] = 0.8
    for name, volume in (("prob.tif", bar), ("lines.tif", lines), ("less.tif", lines[:5])):
        core.write_volume(volume, tmp_path / name, voxel_size=SIZE)
    assert (
        "1 objects"
        in run("objects", tmp_path / "prob.tif", "-o", tmp_path / "a.tif", "--table", tmp_path / "a.csv").out
    )
    split = ("objects", tmp_path / "prob.tif", "--boundary", tmp_path / "lines.tif", "-o", tmp_path / "b.tif")
    assert "2 objects" in run(*split, "--table", tmp_path / "b.csv").out
    wrong = run(*split[:3], tmp_path / "less.tif", "-o", tmp_path / "c.tif")
    assert wrong.code == 2
    assert "(5, 40, 60)" in wrong.err


def test_a_model_of_outlines_on_the_command_line(tmp_path):
    names_ = ("background", "mitochondrion", "boundary")
    model = core.Model(core.KUNet(1, classes=3, depth=2), pixel_size=0.0, class_names=names_)
    path, raw = model.save(tmp_path / "m.safetensors"), np.random.default_rng(0).integers(0, 255, (2, 40, 48), np.uint8)
    core.write_volume(raw, tmp_path / "raw.tif", voxel_size=SIZE)
    out = ("-o", tmp_path / "o.tif", "--overwrite")
    assert run("predict", path, tmp_path / "raw.tif", *out, "--boundary").code == 0
    expected = core.predict(model, raw, output="boundary").compute()
    np.testing.assert_allclose(np.asarray(core.open_volume(tmp_path / "o.tif")), expected, atol=1e-5)
    assert "boundary" in run("info", path).out
    both = run("predict", path, tmp_path / "raw.tif", *out, "--boundary", "--probabilities")
    assert (both.code, "a command for each" in both.err) == (2, True)
    other = run("predict", "lucchi-1unet", tmp_path / "raw.tif", *out, "--boundary")
    assert (other.code, "outlines" in other.err) == (2, True)
