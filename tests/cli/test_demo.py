"""The demonstration from end to end, on blobs and with a budget of a few steps."""

from __future__ import annotations

import inspect
import re
import signal
from unittest import mock

import numpy as np
import pytest
from matplotlib.image import imread
from scipy import ndimage

from napari_kdunet import core
from napari_kdunet.cli import demo
from napari_kdunet.cli.progress import Interrupted
from napari_kdunet.core.errors import OutputError
from napari_kdunet.core.training.trainer import Trainer

SHAPE = (6, 64, 80)
REAL = [inspect.signature(demo.run_demo).parameters[name].default for name in ("teacher", "student")]
SMALL = {"steps": 40, "patch": 32, "batch": 4, "depth": 2, "validations": 2, "threads": 1}


def blobs(shape, *, seed):
    rng = np.random.default_rng(seed)
    labels = (ndimage.gaussian_filter(rng.standard_normal(shape), (1, 5, 5)) > 0.03).astype(np.uint8)
    raw = 60 + 110 * ndimage.gaussian_filter(labels.astype(float), (0, 1, 1)) + rng.normal(0, 12, shape)
    return raw.clip(0, 255).astype(np.uint8), labels


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(demo, "synthetic_em", blobs)


def run_small(out):
    demo.run_demo(out, SHAPE, core.TrainConfig(k=4, **SMALL), core.DistillConfig(k=2, **SMALL))


def test_files_and_table(tmp_path, capsys):
    out = tmp_path / "new" / "folder"
    run_small(out)
    volumes = [f"{name}-{kind}.tif" for name in ("test", "train") for kind in ("labels", "raw")]
    made = ["comparison.png", "student-mask.tif", "student.safetensors", "teacher-mask.tif", "teacher.safetensors"]
    assert sorted(path.name for path in out.iterdir()) == sorted(volumes + made)

    table, err = capsys.readouterr()
    assert "training a 4-Unet" not in err  # bars are for terminals
    assert len(re.findall(r"^step ", err, re.MULTILINE)) == 4
    for name, k in (("teacher", 4), ("student", 2)):
        model = core.load_model(out / f"{name}.safetensors")
        assert model.net.k == k
        mask = core.open_volume(out / f"{name}-mask.tif")
        assert (mask.shape, mask.dtype, mask.voxel_size) == (SHAPE, np.uint8, (10, 10, 10))
        iou = core.evaluate(mask, out / "test-labels.tif").iou
        assert iou > 0.5
        size = (out / f"{name}.safetensors").stat().st_size / 1e3
        row = next(line for line in table.splitlines() if name in line)
        found = [name, str(k), f"{model.parameter_count:,}", f"{size:,.0f} kB", f"{iou:.3f}"]
        assert [cell.strip() for cell in row.strip("│").split("│")][:5] == found
    seen = {seed: np.asarray(core.open_volume(out / f"{name}-raw.tif")) for seed, name in enumerate(("train", "test"))}
    assert all((volume == blobs(SHAPE, seed=seed)[0]).all() for seed, volume in seen.items())
    ratio = core.KUNet(4, depth=2).parameter_count / core.KUNet(2, depth=2).parameter_count
    assert f"The student has 1/{ratio:.0f} of the teacher's parameters. Figure: {out / 'comparison.png'}" in table
    picture = imread(out / "comparison.png")
    assert picture.shape[1] > 2 * picture.shape[0]  # four panels in a row
    colourful = picture[..., :3].max(axis=-1) - picture[..., :3].min(axis=-1) > 0.1
    panels = [panel.any() for panel in np.array_split(colourful, 4, axis=1)]
    assert panels == [False, True, True, True]  # raw is grey, masks are blue


def test_the_real_budget_is_as_promised():
    """Teacher and student together leave time for the rest within three minutes."""
    teacher, student = REAL
    assert (teacher.k, student.k) == (16, 2)
    assert teacher.minutes + student.minutes <= 2.2


def test_stopped(tmp_path):
    honest = Trainer.step

    def pressed(trainer):
        if trainer.progress.step == 25:
            signal.raise_signal(signal.SIGINT)
        return honest(trainer)

    with mock.patch.object(Trainer, "step", pressed), pytest.raises(Interrupted, match=re.escape(str(tmp_path))):
        run_small(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} >= {"teacher.safetensors", "teacher.resume.safetensors"}


def test_a_model_of_the_users_own_stays(tmp_path):
    run_small(tmp_path)
    mask = np.asarray(core.open_volume(tmp_path / "student-mask.tif"))
    core.write_volume(mask, tmp_path / "student-mask.tif", voxel_size=(10, 10, 10), overwrite=True)  # of before
    run_small(tmp_path)  # its own files are replaced
    own = core.Model(core.KUNet(2, depth=1)).save(tmp_path / "student.safetensors")
    before = own.read_bytes()
    with pytest.raises(OutputError, match=r"student\.safetensors, which no demo has made"):
        run_small(tmp_path)
    assert own.read_bytes() == before


def test_no_partial_figure(tmp_path):
    refuse = mock.Mock(side_effect=OSError(28, "No space left on device"))
    with mock.patch("matplotlib.figure.Figure.savefig", refuse), pytest.raises(OutputError, match="No space left"):
        run_small(tmp_path)
    assert not [path.name for path in tmp_path.iterdir() if "comparison" in path.name]
