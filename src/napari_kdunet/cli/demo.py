"""The main job on the embedded volume: teacher, student, and what the student keeps of the teacher."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray

from napari_kdunet.cli.progress import Interrupted, follow_training
from napari_kdunet.cli.terminal import console, print_result, print_tradeoffs
from napari_kdunet.core import (
    DistillConfig,
    Tradeoff,
    TrainConfig,
    Volume,
    iter_distill,
    iter_train,
    load_model,
    open_volume,
    predict,
    write_volume,
)
from napari_kdunet.core.errors import ModelError, OutputError
from napari_kdunet.core.experiments.sweep import score_tradeoff
from napari_kdunet.core.files import make_folder, replacing
from napari_kdunet.sample import VOXEL_SIZE, synthetic_em

__all__ = ["run_demo"]

_SHAPE = (48, 320, 320)
_TEACHER = TrainConfig(k=16, minutes=1.1, patch=128, batch=8, validations=5)
_STUDENT = DistillConfig(k=2, minutes=0.9, patch=128, batch=8, validations=5)


_NAMES = (
    *("train-raw.tif", "train-labels.tif", "test-raw.tif", "test-labels.tif"),
    *("teacher.safetensors", "student.safetensors", "teacher-mask.tif", "student-mask.tif", "comparison.png"),
)
_METADATA = {"made_by": "napari-kdunet demo"}


def run_demo(
    out: Path,
    shape: tuple[int, int, int] = _SHAPE,
    teacher: TrainConfig = _TEACHER,
    student: DistillConfig = _STUDENT,
) -> None:
    """Train a 16-Unet on a synthetic volume, distil it into a 2-Unet, and score both on another volume.

    Writes the volumes, models, masks and a figure into the folder `out` and prints a table.

    Parameters
    ----------
    out : Path
        Folder to write into; it is made if it does not exist.
    shape : tuple of int
        Shape (Z, Y, X) of each volume.
    teacher, student : TrainConfig, DistillConfig
        Settings of the two trainings.

    Raises
    ------
    OutputError
        If the folder cannot be made or written to.
    CollapsedError
        If a network collapsed.
    Interrupted
        After Ctrl-C.
    """
    make_folder(out)
    _check_folder(out, {"teacher": teacher, "student": student})
    try:
        rows = _train_both(out, shape, teacher, student)
    except Interrupted:
        raise Interrupted(f"stopped: what was made so far is in {out}.") from None
    _print(rows, out)


def _check_folder(out: Path, models: dict[str, TrainConfig]) -> None:
    """Check that the demo would replace nothing in the folder except results of an earlier demo."""
    there = [name for name in _NAMES if (out / name).exists()]
    own = _is_from_demo(out / "train-raw.tif", models)
    foreign = next((name for name in there if not own or not _is_from_demo(out / name, models)), None)
    if foreign:
        raise OutputError(f"{out} holds {foreign}, which no demo has made: choose another folder with --out.")


def _is_from_demo(path: Path, models: dict[str, TrainConfig]) -> bool:
    """Return whether a demo of these models wrote this file, as far as it can be told: a figure is assumed to be."""
    if path.suffix == ".safetensors":
        with suppress(ModelError):
            made, usual = load_model(path).summary.get("settings", {}), models[path.stem].to_dict()
            return all(made.get(name) == usual[name] for name in ("k", "patch", "batch", "validations"))
        return False
    if path.suffix != ".tif":
        return True
    try:
        with tifffile.TiffFile(path) as tif:
            said = (tif.imagej_metadata or {}).get("napari_kdunet")
            if said is None and path.stem.endswith("-mask"):  # masks of earlier versions have no metadata
                with tifffile.TiffFile(path.with_name("test-raw.tif")) as image:
                    return tif.series[0].shape == image.series[0].shape
            return json.loads(str(said)) == _METADATA
    except (OSError, LookupError, ValueError, TypeError):
        return False


def _train_both(
    out: Path, shape: tuple[int, int, int], taught: TrainConfig, distilled: DistillConfig
) -> list[Tradeoff]:
    console.print("making two synthetic EM volumes, one to train on and one to test on")
    raw, labels = _volume(out, "train", shape, seed=0)
    test, truth = _volume(out, "test", shape, seed=1)
    teacher_path, student_path = out / "teacher.safetensors", out / "student.safetensors"
    events = iter_train(raw, labels, taught, out=teacher_path)
    teacher = follow_training(f"training a {taught.k}-Unet", events).model
    events = iter_distill(teacher, raw, labels, distilled, out=student_path)
    student = follow_training(f"distilling a {distilled.k}-Unet", events).model
    console.print("segmenting the test volume with both")
    paths = {"teacher": teacher_path, "student": student_path}
    rows = [score_tradeoff(name, path, test, truth) for name, path in paths.items()]
    masks = {}
    for name, model in (("teacher", teacher), ("student", student)):
        masks[name] = np.asarray(predict(model, test, output="labels"))
        path = out / f"{name}-mask.tif"
        write_volume(masks[name], path, voxel_size=VOXEL_SIZE, metadata=_METADATA, overwrite=True)
    _draw(out / "comparison.png", np.asarray(test), truth, rows, masks)
    return rows


def _volume(out: Path, name: str, shape: tuple[int, int, int], seed: int) -> tuple[Volume, NDArray[np.uint8]]:
    raw, labels = synthetic_em(shape, seed=seed)
    for use, volume in (("raw", raw), ("labels", labels)):
        write_volume(
            volume,
            out / f"{name}-{use}.tif",
            voxel_size=VOXEL_SIZE,
            metadata=_METADATA,
            labels=use == "labels",
            overwrite=True,
        )
    return open_volume(out / f"{name}-raw.tif"), labels


def _print(rows: list[Tradeoff], out: Path) -> None:
    print_tradeoffs(rows, "On the test volume, which neither has seen")
    ratio = rows[0].parameters / rows[1].parameters
    print_result(f"The student has 1/{ratio:.0f} of the teacher's parameters. Figure: {out / 'comparison.png'}")


def _draw(
    path: Path, raw: NDArray[Any], labels: NDArray[Any], rows: list[Tradeoff], masks: dict[str, NDArray[Any]]
) -> None:
    """Draw raw, truth and the mask of each row side by side, for the slice with the most foreground."""
    from matplotlib.figure import Figure

    z = int(labels.astype(bool).sum(axis=(1, 2)).argmax())
    panels = [("raw", None), ("truth", labels[z] > 0)]
    panels += [(f"{row.name}: IoU {row.iou:.3f}", masks[row.name][z] > 0) for row in rows]
    figure = Figure(figsize=(4 * len(panels), 4.4), layout="constrained")
    for axis, (title, mask) in zip(figure.subplots(1, len(panels)), panels, strict=True):
        axis.imshow(raw[z], cmap="gray")
        if mask is not None:
            colour = np.zeros((*mask.shape, 4))
            colour[mask] = (0.0, 0.62, 0.96, 0.45)  # blue, which the colour-blind can tell from grey too
            axis.imshow(colour)
        axis.set(title=title, xticks=[], yticks=[])
    figure.suptitle(f"slice z = {z} of the test volume")
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=110)
