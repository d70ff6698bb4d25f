"""The command `objects`: from a mask or probabilities to numbered objects and a table of measurements."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any

import typer

from napari_kdunet.cli.arguments import OmeVersion, Overwrite, StatedVoxelSize, check_out, given_volume, print_notes
from napari_kdunet.cli.options import with_settings
from napari_kdunet.cli.predict import ENDINGS
from napari_kdunet.cli.progress import Interrupted, follow_share, follow_slices
from napari_kdunet.cli.terminal import console, print_result
from napari_kdunet.core.config.objects import ObjectsConfig
from napari_kdunet.core.errors import ConfigError

__all__ = ["objects"]


@with_settings(ObjectsConfig, defaults=ObjectsConfig)
def objects(
    source: Annotated[
        str, typer.Argument(metavar="MASK|PROB", help="Mask, or probabilities (0-1, 0-255 or 0-65535), ZYX.")
    ],
    out: Annotated[
        Path, typer.Option("-o", "--out", metavar="INSTANCES", help="Objects to write (.tif, .zarr or .h5).")
    ],
    config: ObjectsConfig,
    boundary: Annotated[
        str | None, typer.Option(help="Probability of the outlines of objects, as written by predict --boundary.")
    ] = None,
    table: Annotated[
        Path | None, typer.Option(help="Table of measurements to write, one row per object (.csv or .parquet).")
    ] = None,
    raw: Annotated[str | None, typer.Option(help="Image, for the mean grey value of each object.")] = None,
    contacts: Annotated[
        str | None,
        typer.Option(help="Mask of another structure: contact area and number of contacts of each object with it."),
    ] = None,
    within: Annotated[float, typer.Option(help="Largest distance in nm that counts as a contact.", min=0)] = 30.0,
    voxel_size: StatedVoxelSize = None,
    ome_version: OmeVersion = "0.5",
    overwrite: Overwrite = False,
) -> None:
    """Split a mask or probabilities into objects, number them, and measure them."""
    from napari_kdunet import core
    from napari_kdunet.core.objects.instances import is_flat
    from napari_kdunet.core.objects.measure import check_table, open_beside, write_table
    from napari_kdunet.core.volumes.probability import kind_of

    inputs = (source, boundary, raw, contacts)
    check_out(out, *inputs, suffixes=tuple(e for e in ENDINGS if e != ".mrc"), overwrite=overwrite)  # no uint32
    if table is not None:
        check_out(table, *inputs, suffixes=(".csv", ".parquet"), overwrite=overwrite)
        check_table(table)
    elif raw or contacts:
        raise ConfigError(f"--{'raw' if raw else 'contacts'} is for the measurements: give --table T.csv too.")
    volume = given_volume(source, voxel_size)
    print_notes(volume)
    if table is not None:
        open_beside(volume, raw, contacts, within)
    config = replace(config, threshold=volume.threshold if config.threshold is None else config.threshold)
    above = f"probabilities: what is above {config.threshold:g} is foreground (--threshold)"
    taken = above if kind_of(volume) == "probability" else "a mask: what is not 0 is foreground"
    with _stopping("nothing was written"), follow_share("finding objects") as share:
        scratch = out.absolute().parent
        found = core.instances(volume, config, boundary=boundary, scratch=scratch, progress=share)
    flat = is_flat(volume.voxel_size, config.mode, len(volume))
    console.print(f"note: {source} is taken as {taken}")
    console.print(
        f"note: objects are found {'in each slice and linked along z' if flat else 'in 3-D'} "
        f"(voxels of {_nm(volume)}; --mode)"
    )
    _write(found, out, volume, config, ome_version, overwrite)
    print_result(str(out))
    if table is not None:
        with _stopping(f"{out} is written, the table is not"), follow_share("measuring") as share:
            rows = core.measure(
                out, raw, voxel_size=volume.voxel_size, contacts=contacts, within=within, progress=share
            )
            write_table(rows, table)
        print_result(f"{table}  {len(rows)} objects")


def _nm(volume: Any) -> str:
    return " x ".join(f"{size:g}" for size in volume.voxel_size) + " nm"


def _write(found: Any, out: Path, volume: Any, config: Any, ome_version: str, overwrite: bool) -> None:
    from napari_kdunet.core.writing.writer import iter_write

    slices = iter_write(
        found,
        out,
        voxel_size=volume.voxel_size,
        metadata={"objects": asdict(config)},
        labels=True,
        ome_version=ome_version,
        overwrite=overwrite,
    )
    follow_slices("writing objects", slices, len(found), resumable=False)


@contextmanager
def _stopping(what: str) -> Iterator[None]:
    """Turn a Ctrl-C into `Interrupted`, whose message says what was written."""
    try:
        yield
    except KeyboardInterrupt:
        raise Interrupted(f"stopped: {what}.") from None
