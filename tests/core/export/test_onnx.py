"""Models as ONNX: what onnxruntime computes from the file is what `core.predict` computes."""

from __future__ import annotations

import copy
import json
import os
import pickle
import subprocess
import sys
import tempfile

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from scipy import ndimage
from torch import nn

from mutations import MEGABYTES, SECONDS, keeps_promise, peak_megabytes
from napari_kdunet import core

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")


def textured(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    """Something with structure at the scale of a network."""
    rng = np.random.default_rng(seed)
    smooth = ndimage.gaussian_filter(rng.standard_normal(shape), 3, mode="wrap")
    return (smooth / smooth.std() * 30 + 120 + rng.normal(0, 6, shape)).clip(0, 255).astype(np.uint8)


def session(path):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


@pytest.fixture(scope="module")
def bundled(tmp_path_factory):
    model = core.load_model("lucchi-2unet")
    path = core.export_onnx(model, tmp_path_factory.mktemp("onnx") / "m.onnx")
    return model, path, session(path)


@pytest.mark.parametrize("size", [(1, 1), (3, 50), (64, 64), (97, 61), (131, 76)])
@pytest.mark.parametrize("pixel", [(10, 10), (5, 5), (4.6, 7), (13, 4), (27, 8)])
def test_the_graph_is_predict(bundled, size, pixel):
    model, _, run = bundled
    image = textured((140, 80))[: size[0], : size[1]]
    expected = np.asarray(core.predict(model, core.open_volume(image[None], voxel_size=(30.0, *map(float, pixel)))))[0]
    inputs = {"image": image[None, None].astype(np.float32), "pixel_size": np.array(pixel, np.float32)}
    probability, mask = run.run(["probability", "mask"], inputs)
    assert probability.shape == mask.shape == (1, 1, *size)
    if image.size > 1:  # of one pixel, which is constant, `predict` says that it shows no sample
        assert_allclose(probability[0, 0], expected, atol=1e-4)
        unsure = abs(expected - model.threshold) < 1e-4
        assert_array_equal((mask[0, 0] == (expected > model.threshold)) | unsure, True)


@pytest.mark.parametrize("pixel", [10.0, 12.0, 6.5])
def test_the_graph_is_predict_in_a_wide_image(bundled, pixel):
    """Where float32 sums, and positions counted in float32, are not enough."""
    model, _, run = bundled
    image = textured((80, 3000))
    image[:, 1500:] //= 2
    expected = np.asarray(core.predict(model, core.open_volume(image[None], voxel_size=(30.0, pixel, pixel))))[0]
    inputs = {"image": image[None, None].astype(np.float32), "pixel_size": np.full(2, pixel, np.float32)}
    assert_allclose(run.run(["probability"], inputs)[0][0, 0], expected, atol=3e-5)


@pytest.mark.parametrize(
    "form",
    [
        {"k": 1, "depth": 2, "activation": "relu", "bn": False},
        {"k": 3, "depth": 3},
        {"k": 2, "depth": 2, "classes": 4},
        {"k": 2, "depth": 2, "pixel_size": 0.0},
    ],
)
def test_other_forms(model, tmp_path, form):
    model = model(**form)
    image = textured((2, 45, 70), seed=1)
    volume = core.open_volume(image, voxel_size=(30.0, 6.0, 12.0))
    run = session(core.export_onnx(model, tmp_path / "m.onnx"))
    inputs = {"image": image[:, None].astype(np.float32), "pixel_size": np.array([6, 12], np.float32)}
    probability, mask = run.run(["probability", "mask"], inputs)
    assert_allclose(probability[:, 0], core.predict(model, volume), atol=1e-4)
    labels = np.asarray(core.predict(model, volume, output="labels"))
    assert (mask[:, 0] == labels).mean() > 0.999
    if form.get("classes"):
        assert len(np.unique(labels)) > 2


def test_what_may_be_given_beside_the_image(bundled):
    _, _, run = bundled
    image = textured((60, 70)).astype(np.float32)[None, None]

    def probability(**inputs):
        return run.run(["probability"], {"image": image} | {k: np.array(v, np.float32) for k, v in inputs.items()})[0]

    plain = probability()
    assert_allclose(probability(pixel_size=[10, 10]), plain, atol=1e-6)  # the working pixel size is the default
    assert_allclose(probability(pixel_size=[0, 0]), plain, atol=1e-6)  # 0 is not known
    assert_allclose(probability(mean=image.mean(), std=image.std()), plain, atol=1e-4)
    assert abs(probability(mean=180, std=30) - plain).max() > 0.01
    (mask,) = run.run(["mask"], {"image": image, "threshold": np.array(0.9, np.float32)})
    assert_array_equal(mask, plain > 0.9)


def test_an_image_far_from_zero(bundled):
    _, _, run = bundled
    image = textured((60, 70)).astype(np.float32)[None, None]
    near, far = (run.run(["probability"], {"image": image + offset})[0] for offset in (0, 60000))
    assert_allclose(near, far, atol=2e-3)


def test_half_the_bits_are_half_the_file(bundled, tmp_path):
    model, path, run = bundled
    half = core.export_onnx(model, tmp_path / "h.onnx", "float16")
    assert half.stat().st_size < 0.65 * path.stat().st_size
    inputs = {"image": textured((80, 90)).astype(np.float32)[None, None]}
    assert_allclose(session(half).run(["probability"], inputs)[0], run.run(["probability"], inputs)[0], atol=0.01)


def test_weights_that_are_too_large_for_half_the_bits(bundled, tmp_path, one_line):
    """As of a channel whose variance is nearly 0, once its normalisation is part of the convolution."""
    large = copy.deepcopy(bundled[0])
    with torch.no_grad():
        next(m for m in large.net.modules() if isinstance(m, torch.nn.BatchNorm2d)).weight[0] = 1e8
    with one_line(core.ModelError, "a weight is", "choose float32"):
        core.export_onnx(large, tmp_path / "h.onnx", "float16")
    assert not list(tmp_path.iterdir())
    assert core.export_onnx(large, tmp_path / "f.onnx").is_file()


def test_eight_bits(bundled, tmp_path, capfd):
    model, _, run = bundled
    volume = core.open_volume(textured((3, 80, 90)), voxel_size=(30.0, 10.0, 10.0))
    path = core.export_onnx(model, tmp_path / "q.onnx", "int8", calibrate=volume)
    assert "warning" not in "".join(capfd.readouterr()).lower()
    kinds = {node.op_type for node in onnx.load(path).graph.node}
    assert {"QuantizeLinear", "DequantizeLinear"} <= kinds
    inputs = {"image": volume.read(0)[None, None].astype(np.float32)}
    exact, coarse = (each.run(["probability"], inputs)[0] for each in (run, session(path)))
    assert abs(exact - coarse).mean() < 0.03
    assert_allclose(core.OnnxModel.open(path).predict(volume)[0], coarse[0, 0], atol=1e-4)


def test_temporary_files_that_cannot_be_written(bundled, tmp_path, one_line, monkeypatch):
    """As on a full disk: eight bits are computed from files."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "gone"))
    with one_line(core.OutputError, "temporary files of int8: No such file or directory", "TMPDIR"):
        core.export_onnx(bundled[0], tmp_path / "q.onnx", "int8", calibrate=textured((3, 80, 90)))
    assert not list(tmp_path.iterdir())


def test_the_file_says_what_it_is(bundled, tmp_path):
    model, _, _ = bundled
    path = core.export_onnx(model, tmp_path / "m.onnx", name="a name")
    onnx.checker.check_model(str(path), full_check=True)
    said = {entry.key: json.loads(entry.value) for entry in onnx.load(path).metadata_props}
    assert said["kdunet.name"] == "a name"
    assert said["kdunet.pixel_size"] == model.pixel_size
    assert said["kdunet.threshold"] == model.threshold
    assert said["kdunet.class_names"] == list(model.class_names)
    assert said["kdunet.version"]


def test_what_cannot_be_exported(model, tmp_path):
    path = tmp_path / "m.onnx"
    path.write_text("before")
    with pytest.raises(core.ModelError, match="Conv2d cannot be exported as ONNX"):
        core.export_onnx(core.Model(nn.Conv2d(1, 2, 1)), path)
    for precision, calibrate in (("int8", None), ("float32", textured((1, 32, 32))), ("int4", None)):
        with pytest.raises(core.ConfigError, match="precision is"):
            core.export_onnx(model(), path, precision, calibrate=calibrate)
    flat = core.open_volume(np.full((3, 64, 64), 80, np.uint8), name="flat.tif")
    with pytest.raises(core.VolumeError, match=r"flat\.tif shows nothing to calibrate on, .*: give another image"):
        core.export_onnx(model(), path, "int8", calibrate=flat)
    with pytest.raises(core.OutputError, match="nowhere"):
        core.export_onnx(model(), tmp_path / "nowhere/m.onnx")
    assert path.read_text() == "before"
    assert [each.name for each in tmp_path.iterdir()] == ["m.onnx"]


# ----------------------------------------------------------------------------------- applied to volumes, without torch


@pytest.mark.parametrize("pixel", [10.0, 4.6, 13.0])
def test_padding_and_lost_slices(bundled, pixel):
    model, path, _ = bundled
    raw = textured((3, 150, 170))
    raw[0, :60, :80], raw[1] = 0, 7
    volume = core.open_volume(raw, voxel_size=(30.0, pixel, pixel))
    applied = core.OnnxModel.open(path)
    expected = np.asarray(core.predict(model, volume))
    probability = np.asarray(applied.predict(volume))
    assert probability.dtype == np.float32
    assert_allclose(probability, expected, atol=1e-4)
    assert not probability[1].any()
    assert not probability[0, :50, :70].any()
    labels = np.asarray(applied.predict(volume, output="labels", threshold=0.7))
    assert labels.dtype == np.uint8
    assert ((labels == (expected > 0.7)) | (abs(expected - 0.7) < 1e-4)).all()


def test_tiles_are_the_whole(model, monkeypatch, tmp_path):
    monkeypatch.setattr("napari_kdunet.core.prediction.tiling._TILE_SIDE", 64)
    model = model(k=2, depth=2, pixel_size=10.0)
    volume = core.open_volume(textured((1, 150, 201)), voxel_size=(30.0, 8.0, 12.0))
    tiled = core.OnnxModel.open(core.export_onnx(model, tmp_path / "m.onnx")).predict(volume)
    assert tiled.npartitions > 4
    expected = np.asarray(core.predict(model, volume))
    assert_allclose(tiled, expected, atol=1e-4)
    for part in ((0, slice(13, 140, 3), 77), (slice(0, 0),), (slice(None), slice(99, 20, -7), slice(5, 6))):
        assert_allclose(tiled[part], expected[part], atol=1e-4)


def test_wide_values_and_a_copy(bundled):
    model, path, _ = bundled
    raw = textured((1, 60, 70)).astype(np.int32) + 100_000_000
    applied = pickle.loads(pickle.dumps(core.OnnxModel.open(path)))
    assert_allclose(applied.predict(raw), core.predict(model, raw), atol=1e-4)


def test_the_key_is_of_all_that_counts(bundled, tmp_path):
    model, path, _ = bundled
    one, volume = core.OnnxModel.open(path), core.open_volume(textured((1, 60, 70)))
    half = core.OnnxModel.open(core.export_onnx(model, tmp_path / "h.onnx", "float16"))
    other = core.open_volume(textured((1, 60, 70)), voxel_size=(30.0, 5.0, 5.0))
    keys = {one.prediction_key(volume), half.prediction_key(volume), one.prediction_key(other)}
    assert len({*keys, one.prediction_key(volume, threshold=0.4)}) == 4
    assert one.prediction_key(volume) in keys


def test_files_that_are_not_ours(model, tmp_path, bundled):
    _, path, _ = bundled
    content = path.read_bytes()
    bad = tmp_path / "bad.onnx"
    foreign = onnx.load(path)
    del foreign.metadata_props[:]
    network = onnx.load(path)
    network.graph.node[0].domain = "somebody"
    outside = onnx.load(path)
    outside.graph.initializer[0].data_location = onnx.TensorProto.EXTERNAL
    for wrong in (b"", b"text", content[:5000], *(each.SerializeToString() for each in (foreign, network, outside))):
        bad.write_bytes(wrong)
        with pytest.raises(core.ModelError, match=r"bad\.onnx") as told:
            core.OnnxModel.open(bad)
        assert len(str(told.value)) < 300
    os.mkfifo(tmp_path / "pipe.onnx")
    with pytest.raises(core.ModelError, match=r"pipe\.onnx is no regular file"):
        core.OnnxModel.open(tmp_path / "pipe.onnx")
    with pytest.raises(core.ModelError, match="No such file"):
        core.OnnxModel.open(tmp_path / "none.onnx")
    for key, value in (("pixel_size", -1), ("multiple", 1e9), ("threshold", "x"), ("k", True)):
        changed = onnx.load(path)
        next(each for each in changed.metadata_props if each.key == f"kdunet.{key}").value = json.dumps(value)
        bad.write_bytes(changed.SerializeToString())
        with pytest.raises(core.ModelError, match=key):
            core.OnnxModel.open(bad)


def hostile(path, case):
    """One that `export_onnx` has written, with something else in the place of its mask."""
    made, nodes = onnx.load(path), []
    shape = {"a gigabyte": [1, 1, 2**14, 2**14], "a terabyte": [1, 1, 2**20, 2**20]}.get(case, [1, 1, 8, 8])
    if case == "endless":
        names = [("i", onnx.TensorProto.INT64, []), ("on", onnx.TensorProto.BOOL, [])]
        given = [onnx.helper.make_tensor_value_info(*name) for name in names]
        still = onnx.helper.make_tensor_value_info("still", onnx.TensorProto.BOOL, [])
        kept = onnx.helper.make_tensor_value_info("kept", onnx.TensorProto.FLOAT, None)
        carried = onnx.helper.make_tensor_value_info("carried", onnx.TensorProto.FLOAT, None)
        body = [
            onnx.helper.make_node("Identity", ["on"], ["still"]),
            onnx.helper.make_node("Abs", ["carried"], ["kept"]),
        ]
        graph = onnx.helper.make_graph(body, "body", [*given, carried], [still, kept])
        nodes = [onnx.helper.make_node("Loop", ["many", "yes", "image"], ["looped"], body=graph)]
        nodes += [onnx.helper.make_node("Cast", ["looped"], ["mask"], to=onnx.TensorProto.UINT8)]
        values = {"many": np.array(2**62), "yes": np.array(True)}
    else:
        nodes = [onnx.helper.make_node("ConstantOfShape", ["shape"], ["zeros"])]
        nodes += [onnx.helper.make_node("Cast", ["zeros"], ["mask"], to=onnx.TensorProto.UINT8)]
        values = {"shape": np.array(shape)}
    kept = [node for node in made.graph.node if node.output[0] != "mask"]
    del made.graph.node[:]
    made.graph.node.extend([*kept, *nodes])
    made.graph.initializer.extend([onnx.numpy_helper.from_array(value, name) for name, value in values.items()])
    return made.SerializeToString()


@pytest.mark.parametrize(
    ("case", "words"),
    [("endless", "more than 1 s"), ("a gigabyte", ""), ("a terabyte", ""), ("of another size", "shape")],
)
def test_a_graph_of_a_stranger_is_bounded(bundled, tmp_path, case, words):
    """With the metadata of an export, as anybody can write them."""
    bad = tmp_path / "bad.onnx"
    bad.write_bytes(hostile(bundled[1], case))
    before = peak_megabytes()
    refused = keeps_promise(lambda: core.OnnxModel.open(bad), seconds=2 * SECONDS)  # a process is started
    assert isinstance(refused, core.ModelError)
    assert str(bad) in str(refused)
    assert words in str(refused)
    assert peak_megabytes() - before < MEGABYTES


def test_a_network_that_overflows(model, tmp_path):
    broken = model(k=1, depth=1)
    with torch.no_grad():
        broken.net.head.bias.fill_(float("nan"))
    applied = core.OnnxModel.open(core.export_onnx(broken, tmp_path / "m.onnx"))
    with pytest.raises(core.ModelError, match="NaN for slice z=0"):
        applied.predict(textured((1, 40, 40))).compute()


WITHOUT_TORCH = """
import sys
for name in ("torch", "lightning_fabric"):
    sys.modules[name] = None
from napari_kdunet.cli import main
sys.argv = ["napari-kdunet", *sys.argv[1:]]
main()
"""


def test_the_command_runs_without_torch(bundled, tmp_path):
    model, path, _ = bundled
    raw = textured((2, 70, 60))
    core.write_volume(raw, tmp_path / "raw.tif", voxel_size=(30.0, 8.0, 8.0))
    for out, more in (("mask.tif", []), ("probability.zarr", ["--probabilities"])):
        argv = ["predict", str(path), str(tmp_path / "raw.tif"), "-o", str(tmp_path / out), *more]
        done = subprocess.run([sys.executable, "-c", WITHOUT_TORCH, *argv], capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
    expected = np.asarray(core.predict(model, core.open_volume(tmp_path / "raw.tif")))
    assert_allclose(core.open_volume(tmp_path / "probability.zarr")[:], expected, atol=1e-4)
    mask = core.open_volume(tmp_path / "mask.tif")
    assert (mask[:] == (expected > model.threshold)).mean() > 0.999
    assert mask.voxel_size == (30.0, 8.0, 8.0)
