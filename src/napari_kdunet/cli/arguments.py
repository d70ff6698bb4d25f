"""Arguments and options shared by several commands, and how their text becomes volumes and checked outputs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

import typer
from typer.core import TyperCommand

from napari_kdunet.cli.terminal import console
from napari_kdunet.core.errors import ConfigError, OutputError

if TYPE_CHECKING:
    from napari_kdunet.core import Model, OnnxModel

AUTO = "auto"

Raw = Annotated[str, typer.Argument(metavar="RAW", help="Image: TIFF, OME-Zarr, HDF5, MRC, ... or a folder of slices.")]
Labels = Annotated[str, typer.Argument(metavar="LABELS", help="Labels of the same shape: 0 is background.")]
Out = Annotated[Path, typer.Option("-o", "--out", help="Model to write (.safetensors).")]
VoxelSize = Annotated[
    str | None,
    typer.Option(
        help="Voxel size in nm, one number or Z,Y,X, instead of the one that the image states; auto: the stated "
        "one, else the pixel size at which the model is surest."
    ),
]
StatedVoxelSize = Annotated[
    str | None,
    typer.Option(
        "--voxel-size",
        help="Voxel size in nm, one number or Z,Y,X, instead of the one that the file states; needed if it has none.",
    ),
]
VoxelSizes = Annotated[
    list[str] | None,
    typer.Option(
        "--voxel-size",
        help="Voxel size in nm, one number or Z,Y,X, instead of the one that the images state: once for all images, or "
        "once for each, in the order RAW, images without labels, images to validate on.",
    ),
]
More = Annotated[
    list[str] | None, typer.Argument(metavar="RAW LABELS", help="More images to learn from, each with its labels.")
]
ValRaws = Annotated[
    list[str] | None, typer.Option("--val-raw", help="Image to validate on instead of a held-out share; repeatable.")
]
ValLabelsOfEach = Annotated[
    list[str] | None, typer.Option("--val-labels", help="Labels of a --val-raw image; once for each.")
]
ValLabels = Annotated[str | None, typer.Option(help="Labels of the --val-raw image.")]
Resume = Annotated[
    bool,
    typer.Option(
        "--resume",
        help="Add to the same command to go on with a stopped training, from NAME.resume.safetensors beside the model; "
        "patience, device and threads may change.",
    ),
]
Start = Annotated[
    str | None, typer.Option(help="Model to go on training from; k, form and pixel size are taken from it.")
]
Forget = Annotated[
    bool,
    typer.Option(
        "--forget",
        help="Do not preserve what the --start model knows, which else teaches unlabelled pixels of labelled slices.",
    ),
]
Devices = Annotated[
    int, typer.Option(help="Processes that train together on this machine, or on each node; one per GPU.", min=1)
]
Nodes = Annotated[
    int, typer.Option(help="Machines that train together; srun or torchrun starts the processes on each.", min=1)
]
Device = Annotated[str, typer.Option(help="Where to compute: auto | cpu | cuda | mps.")]
Threads = Annotated[int | None, typer.Option(help="CPU threads; one per core if not given.", min=1)]
Views = Annotated[
    int | None,
    typer.Option(
        help="Test-time augmentation: average over mirror images (2, 4) and quarter turns (8) of each slice, which "
        "takes as many times longer; if not given, the model's own number (mito-1unet, -2unet, -4unet: 4; others: 1)."
    ),
]
Planes = Annotated[
    str,
    typer.Option(
        help="z: predict the slices along z; zyx: also those along y and x, and average; for isotropic volumes of 100 "
        "slices or more."
    ),
]
Statistics = Annotated[
    Literal["auto", "model", "volume"],
    typer.Option(
        help="Statistics for batch normalisation: as the model learnt them, or of each volume, which helps on another "
        "microscope; auto: as the model's file says (mito-*: volume)."
    ),
]
OnError = Annotated[
    Literal["stop", "skip"],
    typer.Option(help="What to do about a slice that cannot be read: stop, or leave it 0 in the result and go on."),
]
Scheduler = Annotated[
    str | None, typer.Option(help="Address, or scheduler file, of a dask cluster to do the work (.zarr only).")
]
OmeVersion = Annotated[Literal["0.5", "0.4"], typer.Option(help="Version of OME-Zarr; 0.4 is for older viewers.")]
Overwrite = Annotated[
    bool, typer.Option("--overwrite", help="Replace an existing result: a file, or a Zarr that napari-kdunet wrote.")
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
ModelName = Annotated[str, typer.Argument(help="A .safetensors file or the name of a bundled model.", metavar="MODEL")]


class Command(TyperCommand):
    """A command whose usage line shows its arguments without braces."""

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        """Return the pieces of the usage line, with RAW instead of {RAW}."""
        return [piece.replace("{", "").replace("}", "") for piece in super().collect_usage_pieces(ctx)]


def check_out(
    out: Path, *inputs: str | None, suffixes: tuple[str, ...] = (".safetensors",), overwrite: bool = False
) -> Path:
    """Check, before any work, that `out` can be written and replaces neither an input nor an earlier result."""
    from napari_kdunet.core.writing.target import check_target

    return check_target(out, suffixes, inputs=[given for given in inputs if given], overwrite=overwrite)


def check_model_out(out: Path, *inputs: str | None, overwrite: bool, resume: bool | None) -> Path:
    """Check, like `check_out`, that a training can write the model `out` and the state to resume from.

    With `resume` it may replace those of the training that it goes on with; None if it cannot be resumed.
    """
    from napari_kdunet.core.training.checkpoint import resume_path

    check_out(out, *inputs, overwrite=True)
    check_out(resume_path(out), *inputs, overwrite=True)
    written = (out,) if resume is None else (out, resume_path(out))
    there = next((path for path in written if path.exists()), None)
    if there is not None and not (overwrite or resume):
        to_go_on = ", --resume to go on with its training" if resume is False and resume_path(out).exists() else ""
        which = "it" if there == out else there
        raise OutputError(
            f"cannot write {out}: {which} exists; give --overwrite to replace it{to_go_on}, or choose another name"
        )
    return out


def given_model(name: str) -> Model | OnnxModel:
    """Load the model of that name; an ONNX file is opened without torch, which need not be installed."""
    from napari_kdunet import core

    return core.OnnxModel.open(name) if name.lower().endswith(".onnx") else core.load_model(name)


def given_volume(source: str, voxel_size: str | None, **selection: Any) -> Any:
    """Open the volume given on the command line, with the voxel size given there.

    `selection` are other keywords of `core.open_volume`.
    """
    from napari_kdunet import core

    selection["invert"] = bool(selection.get("invert"))
    if voxel_size in (None, AUTO):
        return core.open_volume(source, **selection)
    try:
        sizes = [float(part) for part in voxel_size.split(",")]
    except ValueError:
        sizes = []
    sizes = sizes * 3 if len(sizes) == 1 else sizes
    if len(sizes) != 3 or not all(0 < size < 1e9 for size in sizes):
        raise ConfigError(f"voxel-size is {voxel_size!r}: give nm as one number or as Z,Y,X, or auto.")
    return core.open_volume(source, voxel_size=(sizes[0], sizes[1], sizes[2]), **selection)


class Volumes(NamedTuple):
    """Volumes given to a training: pairs of image and labels (or None), images without labels, pairs to validate on."""

    pairs: list[tuple[Any, Any]]
    unlabelled: list[Any]
    val: list[tuple[Any, Any]] | None


def given_volumes(
    pairs: Sequence[str | None],
    voxel_sizes: list[str] | None,
    val_raw: list[str] | None,
    val_labels: list[str] | None,
    unlabelled: list[str] | None = None,
    **selection: Any,
) -> Volumes:
    """Open the volumes of a training, with the voxel sizes given on the command line.

    `pairs` is image, labels, image, labels and so on. `selection` applies to each image as in `given_volume`, except
    that `sample` is a list of masks, one per image or one for all.

    Raises
    ------
    VolumeError, ConfigError
        If an image cannot be opened or has no labels, or there are voxel sizes or samples for another number of images.
    """
    if len(pairs) % 2:
        raise ConfigError(f"images and labels go in pairs, but {pairs[-1]} is alone: give RAW LABELS [RAW LABELS]...")
    val_raw, val_labels, unlabelled = val_raw or [], val_labels or [], unlabelled or []
    if len(val_raw) != len(val_labels):
        raise ConfigError("--val-raw and --val-labels go together: give both equally often, or neither.")
    sources = [*map(str, pairs[::2]), *unlabelled, *val_raw]
    sizes = _one_each("voxel-size", voxel_sizes, len(sources))
    samples = _one_each("sample", selection.pop("sample", None), len(sources))
    images = iter(
        [
            given_volume(source, size, sample=sample, **selection)
            for source, size, sample in zip(sources, sizes, samples, strict=True)
        ]
    )
    learnt = [(next(images), labels) for labels in pairs[1::2]]
    more = [next(images) for _ in unlabelled]
    return Volumes(learnt, more, list(zip(images, val_labels, strict=True)) or None)


def _one_each(option: str, given: Sequence[str] | None, images: int) -> Sequence[str | None]:
    """Return the value of an option for each image; it is given once for all, or once for each."""
    if not given:
        return [None] * images
    if len(given) not in (1, images):
        raise ConfigError(
            f"{option} is given {len(given)} times for {images} images: give it once for all, or once for each."
        )
    return given if len(given) == images else [given[0]] * images


def print_notes(volume: Any) -> None:
    """Print what was assumed on opening a volume."""
    for note in volume.notes:
        console.print(f"note: {volume.name}: {note}")
