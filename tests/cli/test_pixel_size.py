"""Trainings on an image that states no pixel size, with a network at hand that knows the tissue."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from command_line import run
from napari_kdunet import core

pytestmark = [
    pytest.mark.data,
    pytest.mark.skipif("KDUNET_DATA" not in os.environ, reason="real volumes: set KDUNET_DATA to their folder"),
]
MODEL = "mito-1unet"
QUICK = ("--k", 1, "--steps", 1, "--patch", 64, "--validations", 1, "--threads", 1)


@pytest.fixture(scope="module")
def unknown(tmp_path_factory):
    """An image and labels without a pixel size, and the size at which the model is surest."""
    folder = tmp_path_factory.mktemp("unknown")
    data = Path(os.environ["KDUNET_DATA"])
    for name in ("raw.tif", "labels.tif"):
        volume = core.open_volume(data / f"epfl-training-{name}")
        core.write_volume(np.stack([volume.read(z) for z in (60, 64, 68)]), folder / name)
    size = core.find_pixel_size(core.load_model(MODEL), folder / "raw.tif", threads=1).pixel_size
    assert size is not None
    assert size != 10
    return folder / "raw.tif", folder / "labels.tif", size


@pytest.mark.parametrize("command", ["adapt", "distill", "train"])
def test_the_size_is_that_at_which_the_network_at_hand_is_surest(unknown, tmp_path, command):
    raw, labels, size = unknown
    given = {"adapt": (MODEL, raw), "distill": (MODEL, raw, labels), "train": (raw, labels, "--start", MODEL)}[command]
    options = {"adapt": QUICK, "distill": (*QUICK[2:], "--start", MODEL), "train": QUICK[2:]}[command]
    result = run(command, *given, "-o", tmp_path / "m.safetensors", *options)
    assert result.code == 0, result.err
    assert f"{raw} is not stated: it is taken as {size:g} nm, where {MODEL} is surest" in result.err
    assert "taken as the model's" not in result.err
    stated = run(command, *given, "-o", tmp_path / "n.safetensors", *options, "--voxel-size", "8")
    assert stated.code == 0, stated.err
    assert "surest" not in stated.err


def test_what_is_typed_is_kept_by_adapt(unknown, tmp_path):
    path = tmp_path / "m.safetensors"
    given = ("adapt", MODEL, unknown[0], "-o", path, *QUICK, "--voxel-size", "5")
    assert "the student starts untrained" in run(*given, "--depth", "2").err
    result = run(*given, "--pixel-size", "12", "--overwrite")
    assert result.code == 0, result.err
    assert core.load_model(path).pixel_size == 12


def test_a_network_that_does_not_know_the_tissue_works_where_it_is_least_unsure(tmp_path):
    """At its own 10 nm the specialist of a mouse finds next to nothing in the nerve cord of a fly, at 4.6 nm."""
    model, raw = core.load_model("lucchi-1unet"), tmp_path / "raw.tif"
    core.write_volume(core.open_volume(Path(os.environ["KDUNET_DATA"]) / "vnc-train-raw.tif").read(9)[None], raw)
    search = core.find_pixel_size(model, raw, threads=1)
    assert search.pixel_size is None
    assert 3 < search.guess < 8
    result = run("predict", "lucchi-1unet", raw, "-o", tmp_path / "mask.tif")
    assert result.code == 0
    assert (
        f"is sure at no size. It is taken as {search.guess:g} nm, where it is least unsure; give --voxel-size."
        in result.err
    )
    mask = core.open_volume(tmp_path / "mask.tif")
    assert mask.voxel_size is None
    stated = core.predict(model, core.open_volume(raw, voxel_size=(search.guess,) * 3), output="labels", threads=1)
    np.testing.assert_array_equal(mask[0], stated[0])
    asked = run("predict", "lucchi-1unet", raw, "-o", tmp_path / "asked.tif", "--voxel-size", "auto")
    assert (asked.code, asked.lines[-1].count("give --voxel-size")) == (2, 1)


def test_inverted_contrast_is_mentioned_where_the_size_is_stated(tmp_path):
    image, out = (
        core.open_volume(Path(os.environ["KDUNET_DATA"]) / "vnc-train-raw.tif").read(9)[None],
        tmp_path / "m.tif",
    )
    for name, pixels in (("plain", image), ("inverted", 255 - image)):
        core.write_volume(core.open_volume(pixels, voxel_size=(50, 4.6, 4.6)), tmp_path / f"{name}.tif")
    plain, inverted, searched, told = (
        run("predict", "mito-2unet", tmp_path / f"{name}.tif", "-o", out, "--overwrite", *more)
        for name, more in (
            ("plain", ()),
            ("inverted", ()),
            ("inverted", ("--voxel-size", "auto")),  # other sizes are tried too, and the stated one is best
            ("inverted", ("--no-invert",)),
        )
    )
    assert (plain.code, plain.err) == (0, "")
    told_so = f"note: mito-2unet is surer of {tmp_path / 'inverted.tif'} with bright and dark exchanged"
    for result in (inverted, searched):
        (line,) = result.lines
        assert line.startswith(told_so)
        assert "--invert" in line
    assert (told.code, told.err) == (0, "")
