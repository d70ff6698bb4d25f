"""The public names, and what importing them does not import."""

from __future__ import annotations

import subprocess
import sys

import pytest

from napari_kdunet import core

PUBLIC = [
    "ChoiceError",
    "CollapsedError",
    "ConfigError",
    "Confusion",
    "DistillConfig",
    "DivergedError",
    "Done",
    "Event",
    "InputError",
    "KDUNetError",
    "KUNet",
    "LabelsError",
    "Losses",
    "Model",
    "ModelError",
    "ObjectScores",
    "ObjectsConfig",
    "OnnxModel",
    "OutputError",
    "PixelSizeSearch",
    "Run",
    "RunResult",
    "Saved",
    "Scores",
    "Started",
    "Stepped",
    "Tradeoff",
    "TrainConfig",
    "TrainingError",
    "TriedSize",
    "UnlabelledError",
    "Validated",
    "Volume",
    "VolumeError",
    "adapt",
    "adapt_statistics",
    "bundled_models",
    "dice_loss",
    "distill",
    "distillation_loss",
    "evaluate",
    "export_bioimageio",
    "export_c",
    "export_onnx",
    "export_web",
    "find_pixel_size",
    "hard_loss",
    "instances",
    "iter_adapt",
    "iter_distill",
    "iter_find_pixel_size",
    "iter_study",
    "iter_sweep",
    "iter_train",
    "load_model",
    "measure",
    "open_volume",
    "predict",
    "score_objects",
    "smallest_within",
    "soft_loss",
    "study_runs",
    "train",
    "write_volume",
]
GUI = ("napari", "qtpy", "magicgui", "superqt", "pyqtgraph", "PyQt5", "PyQt6", "PySide6", "vispy")
HEAVY = (*GUI, "torch", "lightning_fabric", "dask", "zarr", "scipy", "skimage", "matplotlib", "pandas")
USE_ALL = """
import numpy as np
raw = np.random.default_rng(0).integers(0, 255, (5, 32, 32), dtype=np.uint8)
labels = (raw > 150).astype(np.uint8)
settings = dict(k=1, steps=1, batch=1, patch=32, depth=2, threads=1)
for name in core.__all__:
    getattr(core, name)
for events in (
    core.iter_train(raw, labels, core.TrainConfig(**settings)),
    core.iter_distill(raw > 150, raw, labels, core.DistillConfig(**settings)),
):
    *_, done = events
core.evaluate(core.predict(done.model, raw), labels)
core.write_volume(core.predict(done.model, raw), "out.tif")
done.model.save("model.safetensors")
core.load_model("model.safetensors")
"""


def imported(code: str, modules: tuple[str, ...], folder) -> list[str]:
    """Which of the modules a fresh Python has imported after `code`."""
    code += f"\nimport sys; print(*[name for name in {modules!r} if name in sys.modules])"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=folder)
    assert run.returncode == 0, run.stderr
    return run.stdout.split()


def test_the_public_names_are_these():
    assert sorted(core.__all__) == PUBLIC
    assert set(PUBLIC) <= set(dir(core))
    for name in PUBLIC:
        assert getattr(core, name) is not None


def test_there_is_no_other_name():
    with pytest.raises(AttributeError):
        core.no_such_name  # noqa: B018


@pytest.mark.parametrize("code", ["import napari_kdunet", "from napari_kdunet import core"])
def test_importing_is_light(code, tmp_path):
    assert imported(code, HEAVY, tmp_path) == []


def test_settings_and_errors_need_no_torch(tmp_path):
    code = "from napari_kdunet import core; core.TrainConfig(); core.DistillConfig(); core.VolumeError; core.Started"
    assert imported(code, ("torch", *GUI), tmp_path) == []


def test_all_of_the_core_needs_no_gui(tmp_path):
    assert imported("from napari_kdunet import core" + USE_ALL, GUI, tmp_path) == []


def test_one_tree_of_errors():
    for name in PUBLIC:
        thing = getattr(core, name)
        if name.endswith("Error"):
            assert issubclass(thing, core.KDUNetError)
    for name in ("ConfigError", "VolumeError", "LabelsError", "ModelError"):
        assert issubclass(getattr(core, name), core.InputError)
    for name in ("DivergedError", "CollapsedError"):
        assert issubclass(getattr(core, name), core.TrainingError)
    assert not issubclass(core.OutputError, core.InputError)
    assert core.DivergedError("lost").model is None
