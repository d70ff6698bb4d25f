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
    assert about["settings"]["seed"] == 0
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
