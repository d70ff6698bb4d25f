"""The command `export`, and `predict` with what it writes."""

from __future__ import annotations

import json
import re
import subprocess
import sys

import numpy as np
import pytest

from command_line import run
from folders import names
from napari_kdunet import core

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    path = tmp_path_factory.mktemp("exported") / "m.onnx"
    result = run("export", "lucchi-1unet", "-o", path)
    assert result.code == 0, result.err
    assert str(path) in result.out
    return path


def test_export_and_predict(data, exported, tmp_path):
    for model, name in ((exported, "a"), ("lucchi-1unet", "b")):
        result = run("predict", model, data / "raw.tif", "-o", tmp_path / f"{name}.zarr", "--probabilities")
        assert result.code == 0, result.err
    a, b = (core.open_volume(tmp_path / f"{name}.zarr") for name in "ab")
    np.testing.assert_allclose(a[:], b[:], atol=1e-4)
    assert a.voxel_size == b.voxel_size
    result = run("predict", exported, data / "raw.tif", data / "other.tif", "--out-dir", tmp_path / "many")
    assert result.code == 0, result.err
    assert names(tmp_path / "many") == ["other.tif", "raw.tif"]


def test_statistics_of_an_image_go_into_the_file(data, exported, tmp_path):
    out = tmp_path / "fitted.onnx"
    assert run("export", "lucchi-1unet", "-o", out, "--statistics-of", data / "raw.tif").code == 0
    told = run("export", "lucchi-1unet", "-o", data / "raw.tif", "--statistics-of", data / "raw.tif", "--overwrite")
    assert told.code == 2
    raw = core.open_volume(data / "raw.tif")
    fitted = core.predict(core.load_model("lucchi-1unet"), raw, statistics="volume").compute()
    np.testing.assert_allclose(np.asarray(core.OnnxModel.open(out).predict(raw)), fitted, atol=1e-4)
    assert np.abs(np.asarray(core.OnnxModel.open(exported).predict(raw)) - fitted).max() > 0.01
    np.save(tmp_path / "raw.npy", np.asarray(raw))
    size = ",".join(map(str, raw.voxel_size))
    for name, more in (("found", ()), ("given", ("--voxel-size", size))):
        command = ("export", "lucchi-1unet", "-o", tmp_path / f"{name}.onnx", "--statistics-of", tmp_path / "raw.npy")
        result = run(*command, *more)
        assert (result.code, "pixel size" in result.err) == (0, not more)
    assert (tmp_path / "given.onnx").read_bytes() == (out.read_bytes())


def test_info(exported, tmp_path):
    told, model = json.loads(run("info", exported, "--json").out), core.load_model("lucchi-1unet")
    assert told == core.OnnxModel.open(exported).describe()
    known = model.describe()
    assert {name: told[name] for name in ("k", "depth", "pixel_size", "threshold", "class_names")} == {
        name: known[name] for name in ("k", "depth", "pixel_size", "threshold", "class_names")
    }
    assert (told["format"], told["name"], told["precision"]) == ("ONNX", "lucchi-1unet", "float32")
    table = dict(re.split(r" {2,}", line, maxsplit=1) for line in run("info", exported).out.splitlines())
    assert (table["format"], table["k"], table["pixel size"]) == ("ONNX", "1", "10")
    wrong = tmp_path / "wrong.onnx"
    wrong.write_bytes(exported.read_bytes()[:-100])
    for path in (wrong, tmp_path / "missing.onnx"):
        result = run("info", path)
        assert (result.code, len(result.lines)) == (2, 1)
        assert path.name in result.err


def test_info_and_predict_need_no_torch(data, exported, tmp_path):
    """Where importing torch fails, as where it is not installed."""
    code = "import sys; sys.modules['torch'] = sys.modules['lightning_fabric'] = None; import napari_kdunet.__main__"
    for command in (["info", exported], ["predict", exported, data / "raw.tif", "-o", tmp_path / "mask.tif"]):
        call = [sys.executable, "-c", f"{code}; napari_kdunet.__main__.main()", *map(str, command)]
        done = subprocess.run(call, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
    assert (tmp_path / "mask.tif").exists()


def test_precisions(data, exported, tmp_path):
    half, coarse = tmp_path / "half.onnx", tmp_path / "coarse.onnx"
    assert run("export", "lucchi-1unet", "-o", half, "--precision", "float16").code == 0
    assert half.stat().st_size < exported.stat().st_size
    result = run("export", "lucchi-1unet", "-o", coarse, "--precision", "int8", "--calibrate", data / "raw.tif")
    assert result.code == 0, result.err
    assert run("predict", coarse, data / "raw.tif", "-o", tmp_path / "mask.tif").code == 0


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--precision", "int8"], "--calibrate"),
        (["--calibrate", "raw.tif"], "--precision int8"),
        (["--author", "A"], "--format bioimageio"),
        (["-o", "m.txt"], ".onnx or .c or .zip or .html"),
        (["-o", "m.c", "--format", "onnx"], ".onnx"),
        (["-o", "m.zip"], "--author NAME"),
        (["-o", "none/m.onnx"], "none"),
    ],
)
def test_wrong_exports(tmp_path, monkeypatch, more, words):
    monkeypatch.chdir(tmp_path)
    result = run("export", "lucchi-1unet", "-o", "m.onnx", *more)
    assert result.code == 2
    assert len(result.lines) == 1
    assert words in result.err
    assert names(tmp_path) == []


def test_c(tmp_path):
    path = tmp_path / "m.c"
    result = run("export", "lucchi-1unet", "-o", path)
    assert result.code == 0, result.err
    assert path.read_text().startswith("/* lucchi-1unet: a 1-Unet of napari-kdunet")
    for more, words in ((["--precision", "float16"], "--format onnx"), (["-o", "m.onnx"], ".c")):
        result = run("export", "lucchi-1unet", "-o", path, "--format", "c", "--overwrite", *more)
        assert (result.code, len(result.lines)) == (2, 1)
        assert words in result.err


def test_bioimageio(data, tmp_path):
    path = tmp_path / "m.zip"
    command = ("export", "lucchi-1unet", "-o", path, "--format", "bioimageio", "--author", "A", "--license", "MIT")
    result = run(*command)
    assert (result.code, len(result.lines)) == (2, 1)
    assert "--example" in result.err
    result = run(*command, "--example", data / "raw.tif")
    assert result.code == 0, result.err
    assert names(tmp_path) == ["m.zip"]
    np.save(tmp_path / "nan.npy", np.full((1, 64, 64), np.nan, np.float32))
    for form in (("-o", tmp_path / "n.zip"), ("-o", tmp_path / "n.html", "--format", "web")):
        more = ("--author", "A", "--license", "MIT") if len(form) == 2 else ()
        result = run("export", "lucchi-1unet", *form, "--example", tmp_path / "nan.npy", "--voxel-size", "5", *more)
        assert (result.code, len(result.lines), "NaN" in result.err) == (2, 1, True)
    assert names(tmp_path) == ["m.zip", "nan.npy"]


def test_nothing_is_replaced_unasked(exported):
    before = exported.read_bytes()
    result = run("export", "lucchi-2unet", "-o", exported)
    assert (result.code, len(result.lines), exported.read_bytes()) == (2, 1, before)


@pytest.mark.parametrize(("form", "ending"), [("onnx", "onnx"), ("c", "c"), ("web", "html"), ("bioimageio", "zip")])
def test_a_network_with_context_is_not_exported(data, tmp_path, form, ending):
    core.Model(core.KUNet(1, depth=1, context=1)).save(tmp_path / "m.safetensors")
    card = ("--example", data / "raw.tif", "--author", "A", "--license", "MIT") if form == "bioimageio" else ()
    result = run("export", tmp_path / "m.safetensors", "-o", tmp_path / f"out.{ending}", "--format", form, *card)
    assert (result.code, len(result.lines)) == (2, 1)
    assert "it has context" in result.err
    assert names(tmp_path) == ["m.safetensors"]


@pytest.mark.parametrize("more", [["--views", "4"], ["--planes", "zyx"], ["--device", "cuda"]])
def test_what_onnx_does_not_predict(data, exported, tmp_path, more):
    result = run("predict", exported, data / "raw.tif", "-o", tmp_path / "mask.tif", *more)
    assert result.code == 2
    assert "m.onnx is ONNX" in result.err
    assert names(tmp_path) == []


def test_web(data, tmp_path):
    path = tmp_path / "m.html"
    result = run("export", "lucchi-1unet", "-o", path, "--example", data / "raw.tif")
    assert result.code == 0, result.err
    assert "<title>lucchi-1unet</title>" in path.read_text()
    before = path.read_bytes()
    for model, more, words in (
        ("mito-16unet", ["--overwrite"], "16-Unet cannot be exported as a web page"),
        ("lucchi-1unet", [], "--overwrite"),
        ("lucchi-1unet", ["-o", "m.zip"], ".html"),
        ("lucchi-1unet", ["--overwrite", "--author", "A"], "--format bioimageio"),
        ("lucchi-1unet", ["--overwrite", "--example", data / "rgb.tif"], "rgb.tif"),
    ):
        result = run("export", model, "-o", path, "--format", "web", *more)
        assert (result.code, len(result.lines)) == (2, 1)
        assert words in result.err
    assert names(tmp_path) == ["m.html"]
    assert path.read_bytes() == before
