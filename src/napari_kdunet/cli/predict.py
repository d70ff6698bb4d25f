"""The command `predict`: segment a volume and write the mask or the probabilities."""

from __future__ import annotations

import ctypes
from collections.abc import Generator
from contextlib import closing, nullcontext, suppress
from pathlib import Path
from typing import Annotated, Any, TypeAlias

import typer

from napari_kdunet.cli.arguments import (
    Device,
    Fill,
    ModelName,
    OnError,
    Planes,
    Raw,
    Sample,
    Scheduler,
    Threads,
    Views,
    VoxelSize,
    check_out,
    given_volume,
    print_notes,
)
from napari_kdunet.cli.options import with_selection
from napari_kdunet.cli.progress import Interrupted, console, follow_slices
from napari_kdunet.core.errors import ConfigError
from napari_kdunet.core.files import is_zarr_name
from napari_kdunet.core.parsing import format_slices

__all__ = ["predict"]

Slices: TypeAlias = Generator[Any, None, None]

_M_ARENA_MAX = -8  # from glibc's malloc.h


@with_selection
def predict(
    model: ModelName,
    raw: Raw,
    out: Annotated[Path, typer.Option("-o", "--out", help="Volume to write (.tif or .zarr).")],
    probabilities: Annotated[
        bool, typer.Option("--probabilities", help="Write float32 probabilities instead of uint8 labels.")
    ] = False,
    threshold: Annotated[
        float | None, typer.Option(help="Probability above which a pixel is labelled; the model's own if not given.")
    ] = None,
    views: Views = 1,
    planes: Planes = "z",
    voxel_size: VoxelSize = None,
    fill: Fill = None,
    sample: Sample = None,
    device: Device = "auto",
    threads: Threads = None,
    on_error: OnError = "stop",
    scheduler: Scheduler = None,
    *,
    selection: dict[str, Any],
) -> None:
    """Segment a volume. The same command goes on with a Zarr where a killed one was."""
    from napari_kdunet import core
    from napari_kdunet.core.prediction.predict import prediction_key
    from napari_kdunet.core.writing.dask_cluster import connect

    _use_one_heap()
    check_out(out, raw, suffixes=(".tif", ".tiff", ".zarr"))
    if scheduler and not is_zarr_name(out):
        raise ConfigError(f"--scheduler with {out}: workers cannot write one TIFF together, give a .zarr.")
    if planes == "zyx" and on_error == "skip":
        raise ConfigError("--on-error skip with --planes zyx: every block needs all slices, mend the volume first.")
    loaded = core.load_model(model)
    volume = given_volume(raw, voxel_size, fill=fill, sample=sample, on_error=on_error, **selection)
    print_notes(volume)
    if volume.voxel_size is None and loaded.pixel_size:
        size = f"{loaded.pixel_size:g} nm"
        console.print(f"note: the pixel size of {raw} is not known: taken as the model's {size}; --voxel-size sets it.")
    how: dict[str, Any] = {
        "output": "probability" if probabilities else "labels",
        "threshold": loaded.threshold if threshold is None else threshold,
        "views": views,
        "planes": planes,
    }
    result = core.predict(loaded, volume, device=device, threads=threads, **how)
    metadata, key = {"model": model, **how}, prediction_key(loaded, volume, **how)
    target = {"path": out, "voxel_size": volume.voxel_size, "metadata": metadata, "resume_key": key}
    with connect(scheduler) if scheduler else nullcontext():
        _write(result, target, volume, skipping=on_error == "skip")
    typer.echo(str(out))


def _use_one_heap() -> None:
    """Make all threads allocate from one heap: glibc's heaps, one a thread, hold several 100 MB of freed memory."""
    with suppress(AttributeError, OSError, TypeError):  # another C library
        ctypes.CDLL(None).mallopt(_M_ARENA_MAX, 1)


def _with_lost_slices(
    slices: Generator[Any, None, None], volume: Any, metadata: dict[str, Any]
) -> Generator[Any, None, None]:
    """Hand on the slices; before the result is closed after the last one, enter into its metadata which are lost."""
    with closing(slices):
        for written in slices:
            yield written
            if written.done == len(volume) and (lost := volume.lost_slices()):
                metadata["lost"] = lost
                console.print(f"note: slices z = {format_slices(lost)} of {volume.name} hold no image: background")


def _write(result: Any, target: dict[str, Any], volume: Any, skipping: bool) -> None:
    from napari_kdunet.core.writing.writer import iter_write

    skipped: list[Exception] = []

    def skip(error: Exception) -> None:
        skipped.append(error)
        console.print(f"skipped: {error}")

    slices = iter_write(result, **target, on_error=skip if skipping else None)
    slices = _with_lost_slices(slices, volume, target["metadata"])
    try:
        follow_slices("segmenting", slices, len(result), resumable=is_zarr_name(target["path"]))
    except (Interrupted, KeyboardInterrupt):
        raise Interrupted("stopped: nothing was written.") from None
    if skipped:
        console.print(f"note: skipped {len(skipped)} of {len(result)} slices, which are 0 in {target['path']}")
