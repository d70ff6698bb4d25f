"""Packages for bioimage.io: what is in them. `./run bioimageio` tries one with the format's own library."""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from PIL import Image
from torch import nn

from napari_kdunet import core
from napari_kdunet.core.export.architecture import KUNetProbability

pytest.importorskip("onnx")

WHOSE = {"author": "A. Nobody", "license": "CC-BY-4.0"}


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    raw = np.random.default_rng(0).integers(0, 255, (3, 500, 620)).astype(np.uint8)
    volume = core.open_volume(raw, voxel_size=(30.0, 5.0, 8.0))
    path = tmp_path_factory.mktemp("package") / "m.zip"
    return core.export_bioimageio(core.load_model("lucchi-1unet"), path, volume, **WHOSE)


@pytest.fixture(scope="module")
def content(package):
    with zipfile.ZipFile(package) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    return json.loads(files["bioimageio.yaml"]), files


def test_both_weights_give_the_test_output(content):
    description, files = content
    image, expected = (np.load(io.BytesIO(files[f"test_{each}.npy"])) for each in ("input", "output"))
    assert image.shape == (1, 1, 256, 256)
    kwargs = description["inputs"][0]["preprocessing"][0]["kwargs"]
    standardised = ((image - image.mean()) / (image.std() + kwargs["eps"])).astype(np.float32)
    architecture = description["weights"]["pytorch_state_dict"]["architecture"]
    module: dict[str, Any] = {}
    exec(files[architecture["source"]], module)  # needs torch alone
    assert b"napari_kdunet" not in files[architecture["source"]]
    net = module[architecture["callable"]](**architecture["kwargs"]).eval()
    net.load_state_dict(torch.load(io.BytesIO(files["weights.pt"]), weights_only=True))
    assert_allclose(net(torch.from_numpy(standardised)).detach(), expected, atol=1e-5)
    session = pytest.importorskip("onnxruntime").InferenceSession(files["weights.onnx"])
    assert_allclose(session.run(None, {"image": standardised})[0], expected, atol=1e-5)


@pytest.mark.parametrize("form", [{"bn": False}, {"activation": "relu"}, {"k": 3, "classes": 4, "depth": 3}], ids=str)
def test_the_architecture_alone_is_the_network(form):
    ours = core.KUNet(**{"k": 2, "bn": True, "depth": 2} | form).eval()
    alone = KUNetProbability(**{"k": 2, "bn": True, "depth": 2} | form).eval()
    alone.load_state_dict(ours.state_dict())
    x = torch.randn(2, 1, 32, 16)
    assert_allclose(alone(x).detach(), ours(x).detach().softmax(1), atol=1e-6)


def test_the_description(content):
    description, files = content
    model = core.load_model("lucchi-1unet")
    assert description["authors"] == [{"name": "A. Nobody"}]
    assert description["license"] == "CC-BY-4.0"
    for axis in (*description["inputs"][0]["axes"][2:], *description["outputs"][0]["axes"][2:]):
        assert (axis["scale"], axis["unit"]) == (model.pixel_size, "nanometer")
    for entry in (description["covers"][0], description["documentation"], *description["weights"].values()):
        assert hashlib.sha256(files[entry["source"]]).hexdigest() == entry["sha256"]
    assert Image.open(io.BytesIO(files["cover.png"])).size == (512, 256)
    assert len(files["cover.png"]) < 500_000
    assert "10 nm" in files["README.md"].decode()


def test_a_small_image_and_more_classes(model, tmp_path):
    raw = np.random.default_rng(0).integers(0, 255, (1, 40, 50)).astype(np.uint8)
    for name, form in (("a", {"classes": 3}), ("b", {"pixel_size": 20.0})):
        path = core.export_bioimageio(model(k=1, depth=2, **form), tmp_path / f"{name}.zip", raw, **WHOSE)
        description = json.loads(zipfile.ZipFile(path).read("bioimageio.yaml"))
        assert len(description["outputs"][0]["axes"][1]["channel_names"]) == form.get("classes", 2)
        assert len(description["name"]) >= 5


def test_names_are_those_that_the_format_allows(model, tmp_path):
    raw = np.random.default_rng(0).integers(0, 255, (1, 40, 40)).astype(np.uint8)
    made = model(k=1, depth=1)
    names = {"mein Netz v1.2 (neu)": "mein Netz v1 2 (neu)", "Müller ネット": "Muller", "ネット": "1-Unet"}
    for name, written in names.items():
        path = core.export_bioimageio(made, tmp_path / "m.zip", raw, name=name, author="A", license="cc-by-4.0")
        description = json.loads(zipfile.ZipFile(path).read("bioimageio.yaml"))
        assert (description["name"], description["license"]) == (written, "CC-BY-4.0")


@pytest.mark.parametrize("validation", ["x", None, {"iou": "abc"}, {"iou": [1]}, {"iou": True}, {}])
def test_what_a_stranger_says_of_the_validation_is_not_trusted(model, tmp_path, validation):
    raw = np.random.default_rng(0).integers(0, 255, (1, 40, 40)).astype(np.uint8)
    made = replace(model(k=1, depth=1), summary={"validation": validation})
    path = core.export_bioimageio(made, tmp_path / "m.zip", raw, **WHOSE)
    assert "Its IoU" not in zipfile.ZipFile(path).read("README.md").decode()


def test_what_cannot_be_exported(model, tmp_path):
    path, raw = tmp_path / "m.zip", np.zeros((1, 40, 40), np.uint8)
    with pytest.raises(core.ModelError, match=r"cannot be exported as a bioimage\.io package"):
        core.export_bioimageio(core.Model(nn.Conv2d(1, 2, 1)), path, raw, **WHOSE)
    wrongs = ({"author": " "}, {"author": "a/b"}, {"author": "a\\b"}, {"license": ""}, {"license": "my own"})
    for wrong in (*wrongs, {"license": "MIT AND Apache-2.0"}):
        with pytest.raises(core.ConfigError, match=f"{next(iter(wrong))}( is|:)"):
            core.export_bioimageio(model(k=1, depth=1), path, raw, **(WHOSE | wrong))
    assert list(tmp_path.iterdir()) == []
