"""The command `predict`: segment one volume or many and write masks or probabilities."""

from __future__ import annotations

import ctypes
import glob
import re
import time
from collections import Counter
from collections.abc import Generator
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias

import typer
from rich.table import Table

from napari_kdunet.cli.arguments import (
    Device,
    ModelName,
    OmeVersion,
    OnError,
    Overwrite,
    Planes,
    Scheduler,
    Statistics,
    Threads,
    Views,
    VoxelSize,
    check_out,
    given_model,
    given_volume,
    print_notes,
)
from napari_kdunet.cli.options import with_selection
from napari_kdunet.cli.pixel_size import with_pixel_size
from napari_kdunet.cli.progress import follow_slices
from napari_kdunet.cli.terminal import console, print_result, print_table, shorten
from napari_kdunet.core.errors import ConfigError, InputError, KDUNetError, VolumeError, escape
from napari_kdunet.core.files import is_zarr_name, make_folder
from napari_kdunet.core.formatting import format_slices

if TYPE_CHECKING:
    from napari_kdunet.core import Model, OnnxModel

__all__ = ["ENDINGS", "predict"]

Slices: TypeAlias = Generator[Any, None, None]

_M_ARENA_MAX = -8  # from glibc's malloc.h
ENDINGS = (".tif", ".tiff", ".zarr", ".h5", ".hdf5", ".mrc")

RawVolumes = Annotated[
    list[str],
    typer.Argument(
        metavar="RAW",
        help="Image, ZYX: TIFF, (OME-)Zarr, HDF5, MRC, .npy, ... or a folder of slices. With --out-dir several images, "
        "or patterns such as 'data/*.tif'.",
    ),
]
Out = Annotated[
    Path | None, typer.Option("-o", "--out", help="Volume to write (.tif, .zarr, .h5 or .mrc), for a single RAW.")
]
OutDir = Annotated[Path | None, typer.Option(help="Folder to write a volume into for each RAW, named after it.")]
Format = Annotated[
    Literal["tif", "zarr", "h5", "mrc"], typer.Option("--format", help="File format to write with --out-dir.")
]
Probabilities = Annotated[
    bool, typer.Option("--probabilities", help="Write float32 probabilities instead of uint8 labels.")
]
Outlines = Annotated[
    bool,
    typer.Option(
        "--boundary",
        help="Write the probability of the outlines of objects, float32, for objects --boundary; needs a model trained "
        "with --boundary.",
    ),
]
Threshold = Annotated[
    float | None, typer.Option(help="Probability above which a pixel is labelled; the model's own if not given.")
]


@with_selection
def predict(
    model: ModelName,
    raw: RawVolumes,
    out: Out = None,
    out_dir: OutDir = None,
    kind: Format = "tif",
    probabilities: Probabilities = False,
    boundary: Outlines = False,
    threshold: Threshold = None,
    views: Views = None,
    planes: Planes = "z",
    statistics: Statistics = "auto",
    voxel_size: VoxelSize = None,
    ome_version: OmeVersion = "0.5",
    overwrite: Overwrite = False,
    device: Device = "auto",
    threads: Threads = None,
    on_error: OnError = "stop",
    scheduler: Scheduler = None,
    *,
    selection: dict[str, Any],
) -> None:
    """Segment a volume, or many. After a stop, the same command goes on with an unfinished Zarr."""
    from napari_kdunet.core.writing.dask_cluster import connect

    _use_one_heap()
    jobs = _jobs(raw, out, out_dir, kind)
    if probabilities and boundary:
        raise ConfigError("--probabilities and --boundary write two different volumes: run a command for each.")
    output = "boundary" if boundary else "probability" if probabilities else "labels"
    _check_combinations(jobs, planes, on_error, scheduler, selection["sample"])
    if out_dir is None:
        check_out(jobs[0].out, model, jobs[0].raw, selection["sample"], suffixes=ENDINGS, overwrite=overwrite)
    loaded = _load(model, views, planes, statistics, device)
    views = loaded.views if views is None else views
    settings = _Settings(
        model=loaded,
        model_name=model,
        how={"output": output, "views": views, "planes": planes, "statistics": statistics},
        threshold=threshold,
        voxel_size=voxel_size,
        opening={"on_error": on_error, **selection},
        resources={"device": device, "threads": threads},
        writing={"labels": output == "labels", "ome_version": ome_version, "overwrite": overwrite},
        skipping=on_error == "skip",
    )
    with connect(scheduler) if scheduler else nullcontext():
        if out_dir is None:
            _predict_one(jobs[0], settings)
            print_result(str(jobs[0].out))
        else:
            _predict_many(jobs, settings)


@dataclass(frozen=True)
class _Job:
    """A volume to segment, and where the result goes."""

    raw: str
    out: Path


@dataclass(frozen=True, kw_only=True)
class _Settings:
    """Settings that all volumes of a command have in common."""

    model: Model | OnnxModel
    model_name: str
    how: dict[str, Any]
    """Settings of `core.predict` that the result depends on, except the threshold."""
    threshold: float | None
    voxel_size: str | None
    opening: dict[str, Any]
    """Settings of `core.open_volume`."""
    resources: dict[str, Any]
    """Device and threads."""
    writing: dict[str, Any]
    """Settings of `writer.iter_write`."""
    skipping: bool
    """Whether slices that cannot be read are left out."""


def _load(model: str, views: int | None, planes: str, statistics: str, device: str) -> Model | OnnxModel:
    """Load a model; raises `ConfigError` where an exported one cannot be applied with these options."""
    from napari_kdunet import core

    loaded = given_model(model)
    if not isinstance(loaded, core.OnnxModel):
        return loaded
    if views not in (None, 1) or planes != "z" or statistics == "volume" or device not in ("auto", "cpu"):
        raise ConfigError(
            f"{model} is ONNX: it predicts on the CPU, without --views, --planes and --statistics; leave these out."
        )
    return loaded


def _apply(settings: _Settings, volume: Any, how: dict[str, Any]) -> tuple[Any, str]:
    """Return the lazy result, and the key of what it depends on."""
    from napari_kdunet import core

    model, threads = settings.model, settings.resources["threads"]
    if isinstance(model, core.OnnxModel):
        result = model.predict(volume, output=how["output"], threshold=how["threshold"], threads=threads)
        return result, model.prediction_key(volume, **how)
    from napari_kdunet.core.prediction.predict import prediction_key

    return core.predict(model, volume, **settings.resources, **how), prediction_key(model, volume, **how)


def _jobs(raw: list[str], out: Path | None, out_dir: Path | None, kind: str) -> list[_Job]:
    """Return the given volumes, with patterns expanded, each with its output."""
    if (out is None) == (out_dir is None):
        raise ConfigError("give either -o / --out, or --out-dir for many volumes.")
    sources = [source for given in raw for source in _expand(given)]
    if out is not None:
        if len(sources) > 1:
            raise ConfigError(f"{len(sources)} volumes cannot be written to {out}: give --out-dir instead of -o.")
        return [_Job(sources[0], out)]
    assert out_dir is not None
    names = _names(sources)
    from napari_kdunet.core.writing.target import check_apart

    check_apart(out_dir, sources, adds=True)
    make_folder(out_dir)
    return [_Job(source, out_dir / f"{name}.{kind}") for source, name in zip(sources, names, strict=True)]


def _check_combinations(
    jobs: list[_Job], planes: str, on_error: str, scheduler: str | None, sample: str | None
) -> None:
    """Refuse options that exclude each other."""
    if sample and len(jobs) > 1:
        raise ConfigError(f"--sample is the mask of one volume, not of {len(jobs)}: run a command for each volume.")
    if scheduler and not is_zarr_name(jobs[0].out):
        raise ConfigError(f"--scheduler with {jobs[0].out}: workers cannot write one file together, give a .zarr.")
    if planes == "zyx" and on_error == "skip":
        raise ConfigError("--on-error skip with --planes zyx: every block needs all slices, mend the volume first.")


def _expand(given: str) -> list[str]:
    """Expand a pattern that the shell has not expanded, in natural order; return anything else as it is."""
    from napari_kdunet.core.reading.formats.hdf5 import split_hdf5

    with suppress(OSError, ValueError):
        if not any(c in given for c in "*?[") or split_hdf5(given)[0].exists():
            return [given]
    found = sorted(
        glob.glob(given, recursive=True),  # noqa: PTH207 (not Path.glob: the pattern may be absolute)
        key=lambda name: [(int(part), "") if part.isdigit() else (0, part) for part in re.split(r"(\d+)", name)],
    )
    if not found:
        raise VolumeError(f"no file or folder matches the pattern {given}")
    return found


def _names(sources: list[str]) -> list[str]:
    """Return a name for each result: that of its volume without ending, after its folder's where two are equal."""
    from napari_kdunet.core.reading.formats.hdf5 import split_hdf5

    paths = [split_hdf5(source)[0] for source in sources]
    names = [path.absolute().stem for path in paths]
    twice = Counter(names)
    names = [
        f"{path.absolute().parent.name}-{name}" if twice[name] > 1 else name
        for path, name in zip(paths, names, strict=True)
    ]
    for name, count in Counter(names).items():
        if count > 1:
            same = [source for source, other in zip(sources, names, strict=True) if other == name]
            raise ConfigError(f"{same[0]} and {same[1]} would both be written to {name}: run a command for each.")
    return names


def _predict_many(jobs: list[_Job], settings: _Settings) -> None:
    """Segment several volumes, and print a line for each and a table; one that fails does not stop the others."""
    table = Table(box=None, pad_edge=False)
    for heading in ("volume", "slices", "seconds", "result"):
        table.add_column(heading, justify="right" if heading in ("slices", "seconds") else "left")
    failed = done = 0
    try:
        for i, job in enumerate(jobs, 1):
            begin = time.monotonic()
            try:
                check_out(
                    job.out,
                    settings.model_name,
                    settings.opening["sample"],
                    *(other.raw for other in jobs),
                    suffixes=ENDINGS,
                    overwrite=settings.writing["overwrite"],
                )
                slices, result = str(_predict_one(job, settings)), str(job.out)
            except KDUNetError as error:
                failed += 1
                slices, result = "", shorten(f"failed: {error}")
            done += 1
            seconds = time.monotonic() - begin
            console.print(f"{i}/{len(jobs)}  {job.raw}  {seconds:.1f} s  {result}")
            table.add_row(escape(job.raw), slices, f"{seconds:.1f}", escape(result))
    finally:
        if done:
            print_table(table)
    if failed:
        raise InputError(f"{failed} of {len(jobs)} volumes failed, see the table.")


def _predict_one(job: _Job, settings: _Settings) -> int:
    """Segment a volume and return its number of slices."""
    model, volume = settings.model, given_volume(job.raw, settings.voxel_size, **settings.opening)
    print_notes(volume)
    volume, stated, about = with_pixel_size(
        volume, model, settings.model_name, settings.voxel_size, settings.opening["invert"], settings.resources
    )
    threshold = model.threshold if settings.threshold is None else settings.threshold
    how = {**settings.how, "threshold": threshold}
    result, key = _apply(settings, volume, how)
    target = {
        "path": job.out,
        "voxel_size": stated,
        "metadata": {"model": settings.model_name, **how, **about},
        "resume_key": key,
        **settings.writing,
    }
    _write(result, target, volume, settings.skipping)
    return len(result)


def _use_one_heap() -> None:
    """Make all threads allocate from one heap: glibc's heaps, one per thread, hold several 100 MB of freed memory."""
    with suppress(AttributeError, OSError, TypeError):  # another C library
        ctypes.CDLL(None).mallopt(_M_ARENA_MAX, 1)


def _write(result: Any, target: dict[str, Any], volume: Any, skipping: bool) -> None:
    from napari_kdunet.core.prediction.to_file import iter_write_prediction

    skipped: list[Exception] = []

    def skip(error: Exception) -> None:
        skipped.append(error)
        console.print(f"skipped: {error}")

    slices = iter_write_prediction(result, volume, **target, on_error=skip if skipping else None)
    follow_slices("segmenting", slices, len(result), resumable=is_zarr_name(target["path"]))
    if lost := target["metadata"].get("lost"):
        console.print(
            f"note: slices z = {format_slices(lost)} of {volume.name} hold no image: background in the result"
        )
    if skipped:
        console.print(f"note: skipped {len(skipped)} of {len(result)} slices, which are 0 in {target['path']}")
