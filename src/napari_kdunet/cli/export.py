"""The command `export`: a model as a file that other programs run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from napari_kdunet.cli.arguments import ModelName, Overwrite, check_out
from napari_kdunet.cli.terminal import print_result
from napari_kdunet.core.errors import ConfigError

__all__ = ["export"]

_ENDINGS = {"onnx": ".onnx", "c": ".c"}


def export(
    model: ModelName,
    out: Annotated[Path, typer.Option("-o", "--out", help="File to write: .onnx or .c.")],
    kind: Annotated[
        Literal["onnx", "c"], typer.Option("--format", help="ONNX, or one file of C for k up to 4.")
    ] = "onnx",
    precision: Annotated[
        Literal["float32", "float16", "int8"], typer.Option(help="Of the weights of ONNX; int8 computes so too.")
    ] = "float32",
    calibrate: Annotated[
        str | None, typer.Option(metavar="RAW", help="Images from which int8 learns the range of each layer's values.")
    ] = None,
    overwrite: Overwrite = False,
) -> None:
    """Write a model as a file that runs without torch: see docs/export.md."""
    from napari_kdunet import core

    check_out(out, model, calibrate, suffixes=(_ENDINGS[kind],), overwrite=overwrite)
    if kind == "c" and (precision != "float32" or calibrate is not None):
        raise ConfigError("--precision and --calibrate are of --format onnx: leave them away.")
    if (precision == "int8") != (calibrate is not None):
        raise ConfigError("--precision int8 and --calibrate RAW go together: give both or neither.")
    name = model if model in core.bundled_models() else Path(model).stem
    loaded = core.load_model(model)
    if kind == "c":
        core.export_c(loaded, out, name=name)
    else:
        core.export_onnx(loaded, out, precision, calibrate=calibrate, name=name)
    print_result(f"{out}  {out.stat().st_size / 1000:.0f} kB")
