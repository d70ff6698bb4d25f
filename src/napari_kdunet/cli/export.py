"""The command `export`: a model as a file that other programs run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from napari_kdunet.cli.arguments import ModelName, Overwrite, VoxelSize, check_out, given_volume
from napari_kdunet.cli.pixel_size import with_pixel_size
from napari_kdunet.cli.terminal import print_result
from napari_kdunet.core.errors import ConfigError

__all__ = ["export"]

_FORMATS = {".onnx": "onnx", ".c": "c", ".zip": "bioimageio", ".html": "web"}


def export(
    model: ModelName,
    out: Annotated[Path, typer.Option("-o", "--out", help="File to write: .onnx, .c, .zip or .html.")],
    kind: Annotated[
        Literal["onnx", "c", "bioimageio", "web"] | None,
        typer.Option(
            "--format",
            help="ONNX; one file of C, for k up to 4; a package for bioimage.io; a web page, for k up to 4. By default "
            "according to the ending of OUT.",
        ),
    ] = None,
    precision: Annotated[
        Literal["float32", "float16", "int8"],
        typer.Option(help="Number format of the weights in ONNX; int8 also computes in int8."),
    ] = "float32",
    calibrate: Annotated[
        str | None, typer.Option(metavar="RAW", help="Images from which int8 learns the range of each layer's values.")
    ] = None,
    example: Annotated[
        str | None,
        typer.Option(
            metavar="RAW",
            help="Image, part of which goes into the package (test input, cover) or the page (its example).",
        ),
    ] = None,
    statistics_of: Annotated[
        str | None,
        typer.Option(
            metavar="RAW",
            help="Image from which batch normalisation takes mean and variance, as predict does for mito-*.",
        ),
    ] = None,
    author: Annotated[str, typer.Option(help="Author of the model, stated in the package.")] = "",
    license: Annotated[
        str, typer.Option(help="Licence of the weights, stated in the package, such as CC-BY-4.0.")
    ] = "",
    voxel_size: VoxelSize = None,
    overwrite: Overwrite = False,
) -> None:
    """Write a model as a file that runs without torch: see docs/export.md."""
    from napari_kdunet import core

    endings = tuple(ending for ending, known in _FORMATS.items() if kind in (None, known))
    check_out(out, model, calibrate, example, statistics_of, suffixes=endings, overwrite=overwrite)
    form = _FORMATS[out.suffix.lower()]
    _check(form, precision, calibrate, example, author, license)
    name = model if model in core.bundled_models() else Path(model).stem
    loaded = core.load_model(model)

    def opened(image: str | None) -> core.Volume | None:
        """Open an image with a pixel size that the model can work at."""
        if image is None:
            return None
        return with_pixel_size(given_volume(image, voxel_size), loaded, model, voxel_size, False, {})[0]

    if statistics_of is not None:
        loaded = core.adapt_statistics(loaded, opened(statistics_of))
    if form == "onnx":
        core.export_onnx(loaded, out, precision, calibrate=opened(calibrate), name=name)
    elif form == "c":
        core.export_c(loaded, out, name=name)
    elif form == "web":
        shown = None if example is None else given_volume(example, voxel_size)  # the page finds a size by itself
        core.export_web(loaded, out, shown, name=name)
    else:
        core.export_bioimageio(loaded, out, opened(example), author=author, license=license, name=name)
    print_result(f"{out}  {out.stat().st_size / 1000:.0f} kB")


def _check(kind: str, precision: str, calibrate: str | None, example: str | None, author: str, license: str) -> None:
    """Refuse options that belong to another format, or are missing."""
    if kind != "onnx" and (precision != "float32" or calibrate is not None):
        raise ConfigError("--precision and --calibrate are for --format onnx only: leave them out.")
    if (precision == "int8") != (calibrate is not None):
        raise ConfigError("--precision int8 and --calibrate RAW go together: give both or neither.")
    if kind == "bioimageio" and not (example is not None and author and license):
        raise ConfigError("--format bioimageio needs --example RAW, --author NAME and --license SPDX: give all three.")
    if kind != "bioimageio" and (author or license):
        raise ConfigError("--author and --license are for --format bioimageio only: leave them out.")
    if kind not in ("bioimageio", "web") and example is not None:
        raise ConfigError("--example is for --format bioimageio and web only: leave it out.")
