"""The commands, and how their errors become one line and an exit code."""

from __future__ import annotations

import atexit
import errno
import json
import math
import sys
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from rich.text import Text

from napari_kdunet import __version__
from napari_kdunet.cli.arguments import (
    Command,
    Devices,
    Forget,
    Json,
    Labels,
    ModelName,
    More,
    Nodes,
    Out,
    Overwrite,
    Raw,
    Resume,
    Start,
    ValLabelsOfEach,
    ValRaws,
    VoxelSize,
    VoxelSizes,
    check_model_out,
    given_model,
    given_volume,
    given_volumes,
    print_notes,
)
from napari_kdunet.cli.experiments import study, sweep
from napari_kdunet.cli.export import export
from napari_kdunet.cli.objects import objects
from napari_kdunet.cli.options import with_selection, with_selections, with_settings
from napari_kdunet.cli.pixel_size import with_found_pixel_sizes, with_pixel_size
from napari_kdunet.cli.predict import predict
from napari_kdunet.cli.progress import Interrupted, follow_to_file, launch_processes
from napari_kdunet.cli.signals import EXIT_CODE
from napari_kdunet.cli.terminal import PIPE_EXIT_CODE, console, flush_results, print_result, shorten
from napari_kdunet.core.config.distillation import DistillConfig
from napari_kdunet.core.config.training import TrainConfig
from napari_kdunet.core.errors import KDUNetError, OutputError, TrainingError, escape, is_out_of_memory
from napari_kdunet.core.formatting import format_slices

__all__ = ["app", "run"]

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Train a U-Net on electron-microscopy volumes and distil it into a tiny k-Unet.",
)

#: Settings that `adapt` does not have, as they are for labels or for whole stacks.
_NOT_OF_ADAPT = (
    *("slices", "ignore", "mode", "lam", "soft_share", "unlabelled_share", "class_weights", "volume_weights"),
    *("style", "classes", "boundary", "context", "context_distance", "patience"),
)

#: Raised for a wrong command line: click's class in older versions of typer, a copy of it in newer ones.
_UsageError: Any = typer.BadParameter.__mro__[1]


def run() -> None:
    """Run a command and exit: with one line and code 2 for wrong input, 1 for too little memory or a failed training.

    The exit code is 130 after Ctrl-C, SIGTERM or SIGHUP, and 141 if the output is a pipe that is no longer read. Any
    other exception is a bug and passes with its traceback.
    """
    try:
        code = app(prog_name="napari-kdunet", standalone_mode=False)
        flush_results()
    except (Interrupted, KeyboardInterrupt, typer.Abort) as stopped:
        console.print(str(stopped) or "stopped.")
        sys.exit(EXIT_CODE)
    except KDUNetError as error:
        _fail(str(error), 1 if isinstance(error, TrainingError) else 2)
    except _UsageError as error:
        if not error.format_message():  # nothing was given, and the help has been printed
            sys.exit(2)
        command = error.ctx.command_path if error.ctx else "napari-kdunet"
        message = " ".join(error.format_message().split()).rstrip(".")
        _fail(f"{message}, see {command} --help", 2)
    except (MemoryError, RuntimeError, ImportError, OSError) as error:
        if is_out_of_memory(error):
            training = "in a training lower --batch, --patch or --memory"
            objects = "for objects check the voxel size (--voxel-size) or give a smaller volume"
            _fail(f"out of memory: {training}, {objects}, or free memory elsewhere.", 1)
        if not isinstance(error, OSError):
            raise
        _fail_os_error(error)
    except SystemExit as end:  # rich ends so when a pipe is closed
        if isinstance(end.__context__, BrokenPipeError):
            sys.exit(PIPE_EXIT_CODE)
        raise
    if code == EXIT_CODE:  # typer returns it for a Ctrl-C that nothing caught
        console.print("stopped.")
    sys.exit(code)


def _fail_os_error(error: OSError) -> NoReturn:
    """Exit with a message for errors that using a path or printing may meet; raise any other, which is a bug."""
    try:
        flush_results()
    except OutputError as full:
        _fail(str(full), 2)
    if error.filename and error.errno in (errno.ENAMETOOLONG, errno.EACCES, errno.EPERM):
        _fail(f"{error.filename}: {error.strerror}; give another path.", 2)
    raise error


def _fail(message: str, code: int) -> NoReturn:
    atexit.register(setattr, sys, "unraisablehook", _ignore)  # at exit, libraries' unfinished requests print tracebacks
    console.print(Text.assemble(("error: ", "bold red"), shorten(escape(message))))
    sys.exit(code)


def _ignore(unraisable: object) -> None:
    pass


def _version(asked: bool) -> None:
    if asked:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def _common(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


@app.command(cls=Command)
def demo(
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for volumes, models, masks and the figure.")] = Path(
        "kdunet-demo"
    ),
) -> None:
    """Train a teacher and a 2-Unet student on the embedded volume and compare them; about 3 minutes on 2 cores."""
    from napari_kdunet.cli.demo import run_demo

    run_demo(out)


@app.command(cls=Command)
@with_settings(TrainConfig)
@with_selections
def train(
    raw: Raw,
    labels: Labels,
    out: Out,
    config: TrainConfig,
    more: More = None,
    val_raw: ValRaws = None,
    val_labels: ValLabelsOfEach = None,
    voxel_size: VoxelSizes = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
    start: Start = None,
    forget: Forget = False,
    devices: Devices = 1,
    nodes: Nodes = 1,
    *,
    selection: dict[str, Any],
) -> None:
    """Train a k-Unet from the labels of one or several images."""
    from napari_kdunet.core import iter_train, load_model

    inputs = (raw, labels, *(more or []), *(val_raw or []), *(val_labels or []), *(selection["sample"] or []), start)
    with launch_processes(config, devices, nodes) as fabric:
        volumes = given_volumes([raw, labels, *(more or [])], voxel_size, val_raw, val_labels, **selection)
        check_model_out(out, *inputs, overwrite=overwrite, resume=resume)
        first = load_model(start) if start else None
        if first is not None:
            volumes = with_found_pixel_sizes(volumes, first, str(start), selection["invert"], _resources(config))
        events = iter_train(
            volumes.pairs,
            None,
            config,
            val=volumes.val,
            out=out,
            resume=resume,
            start=first,
            keep=not forget,
            fabric=fabric,
        )
        _follow(f"training a {config.k}-Unet", events, out, resume, fabric)


@app.command(cls=Command)
@with_settings(DistillConfig)
@with_selections
def distill(
    teacher: Annotated[
        str, typer.Argument(metavar="TEACHER", help="Model, ONNX file, or volume of foreground probabilities.")
    ],
    raw: Raw,
    out: Out,
    config: DistillConfig,
    labels: Annotated[
        str | None,
        typer.Argument(metavar="LABELS", help="Labels; without them the student learns from the teacher alone."),
    ] = None,
    more: More = None,
    unlabelled: Annotated[
        list[str] | None, typer.Option(help="Another image without labels, on which the teacher teaches; repeatable.")
    ] = None,
    trust_teacher: Annotated[
        bool,
        typer.Option(
            "--trust-teacher",
            help="Load a TorchScript file: it can run code on this computer, so only if you trust its maker.",
        ),
    ] = False,
    val_raw: ValRaws = None,
    val_labels: ValLabelsOfEach = None,
    voxel_size: VoxelSizes = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
    start: Start = None,
    devices: Devices = 1,
    nodes: Nodes = 1,
    *,
    selection: dict[str, Any],
) -> None:
    """Distil a teacher into a tiny k-Unet."""
    from napari_kdunet.core import iter_distill, load_model
    from napari_kdunet.core.data.teachers import is_own_model

    given = (more, unlabelled, val_raw, val_labels, selection["sample"])
    inputs = (teacher, raw, labels, *(name for names in given for name in names or []), start)
    with launch_processes(config, devices, nodes) as fabric:
        volumes = given_volumes([raw, labels, *(more or [])], voxel_size, val_raw, val_labels, unlabelled, **selection)
        check_model_out(out, *inputs, overwrite=overwrite, resume=resume)
        knows = load_model(teacher) if is_own_model(teacher) else None
        if knows is not None:
            volumes = with_found_pixel_sizes(volumes, knows, teacher, selection["invert"], _resources(config))
        events = iter_distill(
            knows or teacher,
            volumes.pairs,
            None,
            config,
            unlabelled=volumes.unlabelled,
            trust=trust_teacher,
            val=volumes.val,
            out=out,
            resume=resume,
            start=load_model(start) if start else None,
            fabric=fabric,
        )
        _follow(f"distilling a {config.k}-Unet", events, out, resume, fabric)


@app.command(cls=Command)
@with_settings(DistillConfig, without=_NOT_OF_ADAPT, defaults=DistillConfig.adapting)
@with_selection
def adapt(
    model: ModelName,
    raw: Raw,
    out: Out,
    config: DistillConfig,
    voxel_size: VoxelSize = None,
    overwrite: Overwrite = False,
    start: Start = None,
    *,
    selection: dict[str, Any],
) -> None:
    """Adapt a tiny k-Unet to a volume without labels: MODEL predicts parts of it, and the student learns from that.

    The student starts from MODEL if that has the same k and form, else from a bundled mito-* model that does; --start
    names another model to start from.
    """
    from napari_kdunet.core import iter_adapt, load_model
    from napari_kdunet.core.training.adapt import begin_as

    check_model_out(out, model, raw, selection["sample"], start, overwrite=overwrite, resume=None)
    teacher = load_model(model)
    volume = given_volume(raw, voxel_size, **selection)
    print_notes(volume)
    volume, _, _ = with_pixel_size(volume, teacher, model, voxel_size, selection["invert"], _resources(config))
    student, config = (load_model(start), config) if start else begin_as(teacher, config)
    if student is None:
        console.print(
            f"note: neither MODEL nor a mito-* model is a {config.k}-Unet of this form: the student starts untrained"
        )
    events = iter_adapt(teacher, volume, config, start=student, out=out)
    _follow(f"adapting a {config.k}-Unet to {volume.name}", events, out, None, None)


app.command(cls=Command)(predict)
app.command(cls=Command)(objects)


@app.command(cls=Command)
@with_selection
def evaluate(
    pred: Annotated[str, typer.Argument(metavar="PRED", help="Masks or probabilities (0-1, 0-255 or 0-65535), ZYX.")],
    labels: Labels,
    as_json: Json = False,
    threshold: Annotated[
        float | None,
        typer.Option(
            help="Probability above which a pixel is foreground; by default the model's own if predict wrote PRED, "
            "else 0.5.",
            min=0,
            max=1,
        ),
    ] = None,
    ignore: Annotated[int | None, typer.Option(help="Label value of pixels that do not count.")] = None,
    raw: Annotated[
        str | None, typer.Option(help="Image that was segmented: what lies outside its sample does not count.")
    ] = None,
    by_object: Annotated[
        bool, typer.Option("--objects", help="Score objects, as the command objects numbers them, against true ones.")
    ] = False,
    *,
    selection: dict[str, Any],
) -> None:
    """Score masks or probabilities, or objects, against labels."""
    from napari_kdunet import core

    given = [name for name, value in selection.items() if value is not None]
    if raw is None and given:
        option = given[0].replace("_", "-")
        raise core.ConfigError(
            f"--{option} is for the image of --raw, which is not given; PRED and LABELS are read as ZYX: leave it out."
        )
    if by_object:
        if raw is not None or threshold is not None:
            option = "threshold" if raw is None else "raw"
            raise core.ConfigError(f"--{option} is for masks and probabilities, not for --objects: leave it out.")
        objects_found = core.score_objects(pred, labels, ignore=ignore)
        _print_assumed(objects_found.notes)
        by_name = objects_found.to_dict()
        if as_json:
            print_result(json.dumps(by_name))
        else:
            _print_table(by_name)
        return
    prediction = core.open_volume(pred)
    image = None if raw is None else given_volume(raw, None, **selection)
    found = core.evaluate(prediction, labels, threshold=threshold, ignore=ignore, raw=image)
    _print_assumed(found.notes)
    scores = found.to_dict()
    if threshold is None and prediction.threshold != 0.5:
        console.print(
            f"note: scored at threshold {prediction.threshold:g}, that of the model that predicted {pred} (--threshold)"
        )
    if as_json:
        print_result(json.dumps(scores))
        return
    per_slice = scores.pop("iou_per_slice")
    defined = [(iou, z) for z, iou in enumerate(per_slice) if iou is not None]
    if defined:
        worst, z = min(defined)
        scores["worst slice"] = f"{worst:.4f} at z = {z}"
    _print_table(scores)


@app.command(cls=Command)
def info(model: ModelName, as_json: Json = False) -> None:
    """Show what a model is and how it was trained."""
    description = given_model(model).describe()
    if as_json:
        print_result(json.dumps(_without_nan(description)))
        return
    summary = description.pop("summary", {})  # may hold anything: the file may be somebody else's
    groups = {name: values for name, values in summary.items() if isinstance(values, dict)}
    flat = {name: value for name, value in summary.items() if name not in groups} | description
    flat = {name: flat[name] for name in description | flat}
    for group in ("data", "validation", "teacher", "settings"):
        flat |= {f"{group}: {name}": value for name, value in groups.get(group, {}).items()}
    for name in ("labelled_slices", "validation: slices"):
        slices = flat.get(name)
        if isinstance(slices, list) and all(isinstance(z, int) for z in slices):
            flat[name] = format_slices(slices)
    _print_table(flat)


def _print_assumed(notes: tuple[str, ...]) -> None:
    for note in notes:
        console.print(f"note: {note}")


def _resources(config: TrainConfig) -> dict[str, Any]:
    return {"device": config.device, "threads": config.threads}


def _without_nan(value: Any) -> Any:
    """Return JSON values with None in place of NaN and infinity, which JSON does not have."""
    if isinstance(value, dict):
        return {name: _without_nan(each) for name, each in value.items()}
    if isinstance(value, list):
        return [_without_nan(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


app.command(cls=Command)(export)
app.command(cls=Command)(study)
app.command(cls=Command)(sweep)


def _print_table(rows: dict[str, Any]) -> None:
    shown = {_printed(name.replace("_", " "), 60): value for name, value in rows.items()}
    width = max(map(len, shown))
    for name, value in shown.items():
        if value is None and name in ("iou", "dice", "precision", "recall"):
            value = "not defined"
        text = f"{value:.5g}" if isinstance(value, float) else _printed(str(value), 1000)
        print_result(f"{name:<{width}}  {text}")


def _printed(text: str, most: int) -> str:
    """Return escaped text, cut to `most` characters."""
    return escape(text if len(text) <= most else f"{text[:most]}...")


def _follow(title: str, events: Any, out: Path, resumed: bool | None, fabric: Any) -> None:
    if fabric is not None and not fabric.is_global_zero:  # only rank 0 prints
        for _ in events:
            pass
        return
    done = follow_to_file(title, events, out, resumed=resumed)
    print_result(f"{done.path}  IoU {done.iou:.3f} at threshold {done.model.threshold:.2f}  {done.seconds:.0f} s")
