"""What to take of a file is chosen on the command line, and what was assumed of it is printed."""

from __future__ import annotations

import numpy as np
import pytest
import tifffile

from command_line import run
from napari_kdunet import core


@pytest.fixture(scope="module")
def raw() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 255, (3, 40, 48), dtype=np.uint8)


@pytest.fixture(scope="module")
def expected(raw) -> np.ndarray:
    volume = core.open_volume(raw, voxel_size=(10, 10, 10))
    return core.predict(core.load_model("lucchi-1unet"), volume, output="labels", threads=1).compute()


@pytest.mark.parametrize("command", ["train", "distill", "predict", "sweep", "study"])
def test_every_command_that_takes_an_image_has_the_options(command):
    told = run(command, "--help").out
    for option in ("--axes", "--channel", "--time", "--series"):
        assert option in told


def test_predict_of_chosen_axes_and_channel(raw, expected, tmp_path):
    both = np.stack([raw + 1, raw]).transpose(3, 2, 1, 0)
    np.save(tmp_path / "raw.npy", np.ascontiguousarray(both))
    given = ["predict", "lucchi-1unet", tmp_path / "raw.npy", "-o", tmp_path / "mask.tif", "--voxel-size", "10"]
    code, _, told = run(*given)
    assert (code, "axes" in told) == (2, True)
    code, _, told = run(*given, "--axes", "XYZC")
    assert (code, "choose one channel" in told) == (2, True)
    assert run(*given, "--axes", "XYZC", "--channel", "1", "--threads", "1").code == 0
    np.testing.assert_array_equal(tifffile.imread(tmp_path / "mask.tif"), expected)


def test_notes_are_printed(raw, expected, tmp_path):
    folder = tmp_path / "em"
    folder.mkdir()
    for z, image in enumerate(raw):
        tifffile.imwrite(folder / f"s{z}.tif", image)
        tifffile.imwrite(folder / f"s{z}_mask.tif", image > 100)
    out = tmp_path / "mask.tif"
    code, _, told = run("predict", "lucchi-1unet", folder, "-o", out, "--voxel-size", "10", "--threads", "1")
    assert code == 0
    assert f"note: {folder}: 3 files beside the images are taken as masks" in told
    np.testing.assert_array_equal(tifffile.imread(out), expected)


@pytest.mark.parametrize("content", [b"", b"not a slice"])
def test_slices_that_are_no_images_are_skipped(raw, tmp_path, content):
    (tmp_path / "em").mkdir()
    for z, image in enumerate(raw):
        tifffile.imwrite(tmp_path / "em" / f"s{z}.tif", image)
    (tmp_path / "em" / "s1.tif").write_bytes(content)
    given = ["predict", "lucchi-1unet", tmp_path / "em", "-o", tmp_path / "mask.tif", "--voxel-size", "10"]
    code, _, told = run(*given, "--threads", "1")
    assert (code, "s1.tif" in told) == (2, True)
    code, _, told = run(*given, "--on-error", "skip", "--threads", "1")
    assert (code, "s1.tif" in told) == (0, True)
    assert not tifffile.imread(tmp_path / "mask.tif")[1].any()


def test_a_training_tells_what_was_assumed(tmp_path):
    raw = np.random.default_rng(0).integers(0, 50, (5, 64, 64)).astype(np.uint8)  # a constant border would be no sample
    raw[:, 20:40, 20:40] = 200
    tifffile.imwrite(tmp_path / "raw.tif", raw, resolution=(72, 72), resolutionunit="INCH", metadata={"axes": "ZYX"})
    np.save(tmp_path / "labels.npy", (raw == 200).astype(np.uint8))
    events = core.iter_train(
        tmp_path / "raw.tif", tmp_path / "labels.npy", core.TrainConfig(k=1, steps=1, device="cpu")
    )
    started = next(events)
    events.close()
    assert any("raw.tif: pixel size unknown: 352778 x 352778 nm" in note for note in started.notes)
