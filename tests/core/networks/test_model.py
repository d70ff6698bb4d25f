"""Model files: nothing is lost, nothing is unpickled, and each damage is one clear line."""

from __future__ import annotations

import json
import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from napari_kdunet import __version__, core
from napari_kdunet.core.networks import model as model_module
from napari_kdunet.core.networks import model_file


def metadata(path) -> dict:
    with safe_open(path, "pt") as file:
        return json.loads(file.metadata()["napari_kdunet"])


@pytest.mark.parametrize(
    "form",
    [
        {"k": 2},
        {"k": 1, "bn": False, "activation": "relu"},
        {"k": 2, "depth": 2, "classes": 3, "pixel_size": 8.0, "threshold": 0.3},
        {"k": 1, "depth": 2, "context": 2},
    ],
)
def test_round_trip(model, tmp_path, form):
    made = model(**form)
    path = made.save(tmp_path / "m.safetensors")
    again = core.load_model(str(path))
    raw = np.random.default_rng(0).integers(0, 255, (2, 40, 50), dtype=np.uint8)
    for output in ("probability", "labels"):
        expected = core.predict(made, raw, output=output).compute()
        assert np.array_equal(core.predict(again, raw, output=output).compute(), expected)
    assert again.describe() == made.describe()
    assert not again.net.training
    assert [p.name for p in tmp_path.iterdir()] == ["m.safetensors"]


def test_metadata_is_complete(model, tmp_path):
    made = model(2, pixel_size=8.0, threshold=0.25)
    made = core.Model(made.net, 8.0, 0.25, ("background", "vesicle"), {"validation": {"iou": 0.5}})
    about = metadata(made.save(tmp_path / "m.safetensors"))
    assert about == made.describe()
    assert about == {
        "format": 1,
        "version": __version__,
        "k": 2,
        "bn": True,
        "classes": 2,
        "depth": 4,
        "activation": "leaky_relu",
        "parameters": 30_902,
        "normalisation": "standardised slice by slice",
        "pixel_size": 8.0,
        "threshold": 0.25,
        "class_names": ["background", "vesicle"],
        "summary": {"validation": {"iou": 0.5}},
    }
    assert made.parameter_count == 30_902
    assert core.load_model(tmp_path / "m.safetensors").class_names == ("background", "vesicle")


def test_saving_replaces_whole_or_not_at_all(model, tmp_path, one_line):
    path = tmp_path / "m.safetensors"
    model(1).save(path)
    model(2).save(path)
    assert core.load_model(path).net.k == 2
    with one_line(core.OutputError, "nowhere"):
        model(1).save(tmp_path / "nowhere" / "m.safetensors")


def test_only_our_networks_are_saved(tmp_path, one_line):
    with one_line(core.ModelError, "Conv2d"):
        core.Model(torch.nn.Conv2d(1, 2, 1)).save(tmp_path / "m.safetensors")
    assert not list(tmp_path.iterdir())


def test_no_pickle_is_loaded(tmp_path, monkeypatch, one_line, model):
    class Trap:
        def __reduce__(self):
            return (pytest.fail, ("unpickled",))

    def never(*args, **kwargs):
        raise AssertionError("torch.load was called")

    monkeypatch.setattr(torch, "load", never)
    path = tmp_path / "m.safetensors"
    path.write_bytes(pickle.dumps(Trap()))
    with one_line(core.ModelError, str(path)):
        core.load_model(path)
    core.load_model(model(1).save(path))


@pytest.mark.parametrize("keep", [0, 4, 100, 0.5, 0.99])
def test_truncated(model, tmp_path, keep, one_line):
    path = model(1).save(tmp_path / "m.safetensors")
    data = path.read_bytes()
    path.write_bytes(data[: keep if isinstance(keep, int) else int(keep * len(data))])
    with one_line(core.ModelError, str(path)):
        core.load_model(path)


def test_foreign_files(tmp_path, one_line):
    path = tmp_path / "m.safetensors"
    save_file({"a": torch.zeros(3)}, path)
    with one_line(core.ModelError, "not of napari-kdunet"):
        core.load_model(path)
    save_file({"a": torch.zeros(3)}, path, {"napari_kdunet": "no json"})
    with one_line(core.ModelError, str(path)):
        core.load_model(path)
    path.write_text("not a model\n" * 1000)
    with one_line(core.ModelError, str(path)):
        core.load_model(path)
    with one_line(core.ModelError, str(tmp_path)):
        core.load_model(tmp_path)
    with one_line(core.ModelError, "nosuch"):
        core.load_model("nosuch")


@pytest.mark.parametrize(
    "change",
    [
        {"k": 2},
        {"k": "2"},
        {"k": None},
        {"depth": 3},
        {"bn": False},
        {"activation": "gelu"},
        {"pixel_size": "wide"},
        {"class_names": None},
        {"format": "one"},
    ],
)
def test_damaged_metadata(model, tmp_path, change, one_line):
    made = model(1)
    path = tmp_path / "m.safetensors"
    model_file.save_tensors(path, made.net.state_dict(), made.describe() | change)
    if change == {"format": "one"}:
        assert core.load_model(path).net.k == 1
        return
    with one_line(core.ModelError, str(path), "damaged"):
        core.load_model(path)


def test_context_is_kept_and_files_without_it_see_the_slice_alone(model, tmp_path, one_line):
    made = replace(model(1, depth=1, context=1), context_distance=25.0)
    path = made.save(tmp_path / "m.safetensors")
    again = core.load_model(path)
    assert (again.context, again.context_distance, again.net.channels) == (1, 25.0, 3)
    assert again.form_and_pixel_size == made.form_and_pixel_size
    assert {"context": 1, "context_distance": 25.0, "format": 2}.items() <= metadata(path).items()  # 1 cannot apply it
    for wrong in ({"context": 2}, {"context": "1"}, {"context_distance": -1.0}, {"context_distance": None}):
        model_file.save_tensors(path, made.net.state_dict(), made.describe() | wrong)
        with one_line(core.ModelError, "damaged"):
            core.load_model(path)
    old = model(1, depth=1).save(tmp_path / "old.safetensors")
    assert metadata(old)["format"] == 1
    assert "context" not in metadata(old)
    assert (core.load_model(old).context, core.load_model(old).form["context"]) == (0, 0)


def test_newer_format(model, tmp_path, one_line):
    made, path = model(1), tmp_path / "m.safetensors"
    model_file.save_tensors(path, made.net.state_dict(), made.describe() | {"format": 3, "version": "9.1"})
    with one_line(core.ModelError, "9.1", "update"):
        core.load_model(path)


def test_bundled_models(model, tmp_path, monkeypatch, one_line):
    for name, path in core.bundled_models().items():
        assert core.load_model(name).describe() == core.load_model(path).describe()
    path = model(2).save(tmp_path / "tiny.safetensors")
    monkeypatch.setattr(model_module, "bundled_models", lambda: {"tiny": path})
    assert core.load_model("tiny").net.k == 2
    with one_line(core.ModelError, "nosuch", "tiny"):
        core.load_model("nosuch")


@pytest.mark.parametrize("name", ["n" * 300, "n/" * 3000, "n\0n", "\x1b[31m" * 60])
def test_odd_and_long_names(model, tmp_path, name, one_line):
    with one_line(core.ModelError, "no model"):
        core.load_model(tmp_path / f"{name}.safetensors")
    with one_line(core.ModelError, "no model"):
        core.load_model(name)
    if name.startswith("n"):
        with one_line(core.OutputError, "cannot write"):
            model().save(tmp_path / f"{name}.safetensors")
    assert list(tmp_path.iterdir()) == []
