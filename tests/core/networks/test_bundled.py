"""The models that come with the package."""

import os
from pathlib import Path

import numpy as np
import pytest
import tifffile

from napari_kdunet import core
from napari_kdunet.cli import main

PARAMETERS = {"lucchi-1unet": 7_878, "lucchi-2unet": 30_902, "lucchi-4unet": 122_394}
PARAMETERS |= {"mito-1unet": 7_878, "mito-2unet": 30_902, "mito-4unet": 122_394, "mito-16unet": 1_943_778}
FLOORS = {"lucchi-1unet": 0.70, "lucchi-2unet": 0.78, "lucchi-4unet": 0.78}
FLOORS |= {"mito-1unet": 0.48, "mito-2unet": 0.55, "mito-4unet": 0.55, "mito-16unet": 0.60}

data = Path(os.environ.get("KDUNET_DATA", "/nowhere"))


def test_names():
    assert set(core.bundled_models()) == set(PARAMETERS)


@pytest.mark.parametrize("name", PARAMETERS)
def test_what_it_is(name):
    assert core.bundled_models()[name].stat().st_size < (4_000_000 if name == "mito-16unet" else 600_000)
    model = core.load_model(name)
    assert model.parameter_count == PARAMETERS[name]
    assert model.pixel_size == 10
    about = model.describe()["summary"]
    assert "Lucchi" in about["data"]["citation"]
    assert name.startswith("lucchi") or "RESEARCH ONLY" in about["data"]["licence"]
    # the last training of a generalist sees other patches than those before
    assert about["settings"]["seed"] == (0 if name.startswith("lucchi") else 3)
    held_out, learnt = set(about["validation"]["slices"]), set(about["labelled_slices"])
    assert held_out
    if name.startswith("lucchi"):  # of several volumes the numbers of the slices are those of each
        assert not held_out & learnt


def test_card_tells_of_each():
    card = (next(iter(core.bundled_models().values())).parent / "README.md").read_text()
    for name, parameters in PARAMETERS.items():
        assert f"| `{name}` | {parameters:,} |" in card


def test_predicts_by_name_right_after_installing(tmp_path, monkeypatch):
    raw = np.random.default_rng(0).integers(0, 255, (2, 70, 50), np.uint8)
    tifffile.imwrite(tmp_path / "raw.tif", raw)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["napari-kdunet", "predict", "lucchi-2unet", "raw.tif", "-o", "mask.tif"])
    with pytest.raises(SystemExit) as end:
        main()
    assert not end.value.code
    mask = tifffile.imread(tmp_path / "mask.tif")
    assert (mask.shape, mask.dtype) == (raw.shape, np.uint8)
    assert set(np.unique(mask)) <= {0, 1}


RAW = np.random.default_rng(0).integers(0, 255, (2, 64, 80), np.uint8)
QUICK = {"k": 2, "steps": 2, "batch": 1, "patch": 32, "threads": 1, "validations": 1, "device": "cpu"}
TAKE_MODELS = {
    "predict": lambda model, folder: np.asarray(core.predict(model, RAW)),
    "find_pixel_size": lambda model, folder: core.find_pixel_size(model, RAW, sizes=(8, 10)),
    "adapt_statistics": lambda model, folder: np.asarray(core.predict(core.adapt_statistics(model, RAW), RAW)),
    "adapt": lambda model, folder: learnt(core.iter_adapt(model, RAW, core.DistillConfig(**QUICK, mode="soft", tau=1))),
    "train": lambda model, folder: learnt(core.iter_train(RAW, RAW > 128, core.TrainConfig(**QUICK), start=model)),
    "distill": lambda model, folder: learnt(core.iter_distill(model, RAW, config=core.DistillConfig(**QUICK))),
    "export_c": lambda model, folder: core.export_c(model, folder / "net.c").read_bytes(),
    "export_web": lambda model, folder: core.export_web(model, folder / "net.html").read_bytes(),
    "export_onnx": lambda model, folder: core.export_onnx(model, folder / "net.onnx").read_bytes(),
    "iter_sweep": lambda model, folder: swept(core.iter_sweep(model, RAW, RAW > 128, [1], folder=folder / "sweep")),
}


def learnt(events) -> np.ndarray:
    """What the model predicts that a training ends with."""
    *_, last = events
    return np.asarray(core.predict(last.model, RAW))


def swept(sweep) -> float:
    """The score of the teacher, which is the first."""
    try:
        return next(sweep).iou
    finally:
        sweep.close()


@pytest.mark.parametrize("name", TAKE_MODELS)
def test_a_name_or_a_file_is_as_good_as_a_model(name, tmp_path, one_line):
    call = TAKE_MODELS[name]
    expected = call(core.load_model("lucchi-2unet"), tmp_path)
    for source in ("lucchi-2unet", core.bundled_models()["lucchi-2unet"]):
        np.testing.assert_array_equal(call(source, tmp_path), expected)
    if name == "distill":  # whose teacher may be a volume, too
        with one_line(core.VolumeError, "lucchi-3unet"):
            call("lucchi-3unet", tmp_path)
        return
    with one_line(core.ModelError, "'lucchi-3unet'", "lucchi-2unet"):
        call("lucchi-3unet", tmp_path)
    with one_line(core.ModelError, "ndarray"):
        call(RAW, tmp_path)


@pytest.mark.skipif(not data.is_dir(), reason="KDUNET_DATA does not name the folder of real EM volumes")
@pytest.mark.parametrize("name", PARAMETERS)
def test_real_em(name):
    # EPFL's public testing volume, which nothing has learnt from, goes by this name
    raw, labels = (core.open_volume(data / f"lucchi-train-{what}.tif") for what in ("raw", "labels"))
    some = slice(20, 165, 45)
    volume = core.open_volume(raw[some, :, :], voxel_size=raw.voxel_size)
    model = core.load_model(name)
    scores = core.evaluate(core.predict(model, volume), labels[some, :, :], threshold=model.threshold)
    assert scores.iou > FLOORS[name]
