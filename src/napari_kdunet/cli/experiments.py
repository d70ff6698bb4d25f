"""The commands `study` and `sweep`: many trainings become tables and figures."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from napari_kdunet.cli.arguments import Device, Labels, Raw, Threads, ValLabels, VoxelSizes, given_volumes
from napari_kdunet.cli.options import with_selections, with_settings
from napari_kdunet.cli.progress import Interrupted, follow_runs
from napari_kdunet.cli.terminal import console, print_result, print_tradeoffs
from napari_kdunet.core.config.distillation import DistillConfig
from napari_kdunet.core.errors import ConfigError, OutputError
from napari_kdunet.core.experiments.studies import SETTINGS, STUDIES, Run, study_runs
from napari_kdunet.core.files import write_bytes

if TYPE_CHECKING:
    from napari_kdunet.core.experiments.history import LossCurve
    from napari_kdunet.core.experiments.study import RunResult
    from napari_kdunet.core.experiments.sweep import Tradeoff

__all__ = ["study", "sweep"]

_SHAPES = ((32, 256, 256), (16, 256, 256))  # ZYX of the embedded volumes to train on and to score on

Pair = tuple[Any, Any]
Folder = Annotated[
    Path,
    typer.Option(
        "-o", "--out", help="Folder for the results; called again with it, the command does only what is missing."
    ),
]

ScoreRaw = Annotated[
    str | None, typer.Option(help="Image to score on, all of it; by default the last quarter of RAW along z.")
]


@with_selections
def study(
    name: Annotated[
        str, typer.Argument(metavar="NAME", help=f"{' | '.join(STUDIES)}: tables 1 to 7 and figure 4 of the paper.")
    ],
    out: Folder,
    raw: Annotated[
        str | None, typer.Argument(metavar="RAW", help="Volume to train on; two synthetic ones if none is given.")
    ] = None,
    labels: Annotated[str | None, typer.Argument(metavar="LABELS", help="Labels of RAW: 0 is background.")] = None,
    val_raw: ScoreRaw = None,
    val_labels: ValLabels = None,
    voxel_size: VoxelSizes = None,
    setting: Annotated[
        str, typer.Option(help="paper: the paper's settings; ours: the defaults here; or both.")
    ] = "both",
    budget: Annotated[float, typer.Option(help="Scales the steps of each run; 1 is 500 steps.")] = 1.0,
    seeds: Annotated[
        int | None, typer.Option(help="Seeds of each run; the paper's number of trials by default.")
    ] = None,
    max_k: Annotated[
        int, typer.Option(help="Largest k: larger networks are left out, and a larger teacher is cut to it.")
    ] = 128,
    teacher_budget: Annotated[
        float | None, typer.Option(help="The --budget of the teacher, the largest network of a study, if it differs.")
    ] = None,
    teacher_precision: Annotated[
        str | None, typer.Option(help="Floating-point precision of the teacher: 32-true | bf16-mixed | 16-mixed.")
    ] = None,
    batch: Annotated[int, typer.Option(help="Patches per training step.")] = 4,
    patch: Annotated[int, typer.Option(help="Side of a training patch in working pixels.")] = 128,
    device: Device = "auto",
    threads: Threads = None,
    *,
    selection: dict[str, Any],
) -> None:
    """Repeat one of the paper's tables or its figure 4, in its settings and with the defaults here."""
    runs = study_runs(
        name,
        settings=SETTINGS if setting == "both" else (setting,),
        budget=budget,
        seeds=seeds,
        max_k=max_k,
        teacher_budget=teacher_budget,
        teacher_precision=teacher_precision,
        batch=batch,
        patch=patch,
        device=device,
        threads=threads,
    )
    _check_folder(out, raw, labels, val_raw, val_labels)
    _check_table(out / f"{name}.csv", out / "runs")
    train, val = _opened(raw, labels, val_raw, val_labels, voxel_size, selection)
    _conclude(name, out, _follow(name, out, runs, train, val))


def _check_folder(out: Path, *inputs: str | None) -> None:
    """Check that no table or figure is written into a folder of slices."""
    from napari_kdunet.core.writing.target import check_apart

    check_apart(out, [given for given in inputs if given], adds=True)


def _check_table(path: Path, runs: Path) -> None:
    """Check that a table that exists belongs to runs whose records are in the folder `runs`."""
    if path.exists() and not any(runs.glob("*.json")):
        raise OutputError(f"{path} exists already, but none of its runs: move it away, or choose another folder.")


def _opened(
    raw: str | None,
    labels: str | None,
    val_raw: str | None,
    val_labels: str | None,
    voxel_sizes: list[str] | None,
    selection: dict[str, Any],
) -> tuple[Pair, Pair | None]:
    """Open the volumes to train on and to score on, or make the embedded ones if none are given."""
    if not any((raw, labels, val_raw, val_labels)):
        return _embedded()
    if raw is None or labels is None:
        raise ConfigError("RAW and LABELS go together, and --val-raw needs them: give both or neither.")
    scored = [None if given is None else [given] for given in (val_raw, val_labels)]
    (pair,), _, val = given_volumes([raw, labels], voxel_sizes, *scored, **selection)
    return pair, None if val is None else val[0]


def _follow(name: str, out: Path, runs: list[Run], train: Pair, val: Pair | None) -> list[RunResult]:
    """Execute the runs; after each the CSV is rewritten with all results so far."""
    from napari_kdunet.core.experiments.study import iter_study

    results: list[RunResult] = []

    def add_result(result: RunResult) -> None:
        results.append(result)
        _write_csv(out / f"{name}.csv", map(asdict, results))
        console.print(f"{len(results):>3}/{len(runs)}  {_format_result(result)}")

    items = iter_study(runs, *train, val=val, folder=out / "runs")
    try:
        follow_runs([f"{name} {i}/{len(runs)}: {run.name}" for i, run in enumerate(runs, 1)], items, add_result)
    except (Interrupted, KeyboardInterrupt):
        raise Interrupted(f"stopped: {len(results)} of {len(runs)} runs are done; the same command goes on.") from None
    return results


def _conclude(name: str, out: Path, results: list[RunResult]) -> None:
    from napari_kdunet.cli.figures import draw_study
    from napari_kdunet.core.experiments.paper import REPORTED
    from napari_kdunet.core.experiments.summary import finding

    _write_csv(out / f"{name}-paper.csv", map(asdict, REPORTED[name]))
    curves = _curves(out, name, results) if STUDIES[name].curve else {}
    draw_study(out / f"{name}.png", STUDIES[name], results, REPORTED[name], curves)
    print_result(finding(name, results))
    if curves:
        _print_crossings(results, curves)
    print_result(f"{out / f'{name}.csv'}  {out / f'{name}.png'}  the paper's figures: {out / f'{name}-paper.csv'}")


def _curves(out: Path, name: str, results: list[RunResult]) -> dict[str, LossCurve]:
    """Return the averaged test losses of the runs over their steps, and write them to a CSV file."""
    from napari_kdunet.core.experiments.study import test_curve

    curves = {row.run: test_curve(out / "runs", row) for row in results}
    points = [(run, step, loss) for run, curve in curves.items() for step, loss in curve]
    columns = ("run", "step", "test_loss", "paper_test_loss")
    rows = (dict(zip(columns, (*point, 2 * point[-1]), strict=True)) for point in points)
    _write_csv(out / f"{name}-curve.csv", rows, columns)  # no rows if all runs diverged before a test
    return curves


def _print_crossings(results: list[RunResult], curves: dict[str, LossCurve]) -> None:
    """Print from which step on the second run of each pair is better than the first."""
    from napari_kdunet.core.experiments.history import crossing

    for upper, lower in zip(results[::2], results[1::2], strict=True):
        if "diverged" not in (lower.outcome, upper.outcome):
            step = crossing(curves[lower.run], curves[upper.run])
            where = "ends above" if step is None else f"stays, from step {step:,} on, below"
            print_result(f"the averaged test loss of {lower.run} {where} that of {upper.run}")


def _embedded() -> tuple[Pair, Pair]:
    """Make the synthetic volumes, with their labels, to train on and to score on."""
    from napari_kdunet.core.volumes.volume import open_volume
    from napari_kdunet.sample import VOXEL_SIZE, synthetic_em

    console.print("making two synthetic EM volumes, one to train on and one to score on")
    pairs = []
    for seed, (use, shape) in enumerate(zip(("train", "test"), _SHAPES, strict=True)):
        raw, labels = synthetic_em(shape, seed=seed)
        name = f"the embedded {use} volume"
        pairs.append((open_volume(raw, voxel_size=VOXEL_SIZE, name=name), open_volume(labels, name=f"{name}'s labels")))
    return pairs[0], pairs[1]


def _format_result(result: RunResult) -> str:
    """Format the result of a run as one line."""
    loss = "" if result.paper_test_loss is None else f"  paper test loss {result.paper_test_loss:.4f}"
    iou = "" if result.iou is None else f"  IoU {result.iou:.3f}"
    return f"{result.run}  {result.steps} steps  {result.seconds:.0f} s{loss}{iou}  {result.outcome}"


def _write_csv(path: Path, rows: Iterable[dict[str, Any]], columns: Sequence[str] = ()) -> None:
    """Write rows with the same keys; `columns` names them in case there are no rows. None becomes an empty cell."""
    text, every = io.StringIO(), list(rows)
    writer = csv.DictWriter(text, columns or every[0], lineterminator="\n")
    writer.writeheader()
    writer.writerows(every)
    write_bytes(path, text.getvalue().encode())


@with_settings(DistillConfig, without=("k",))
@with_selections
def sweep(
    teacher: Annotated[str, typer.Argument(metavar="TEACHER", help="A .safetensors file or a bundled model's name.")],
    raw: Raw,
    labels: Labels,
    out: Folder,
    config: DistillConfig,
    ks: Annotated[str, typer.Option(help="The students' k, separated by commas.")] = "1,2,4,8",
    val_raw: ScoreRaw = None,
    val_labels: ValLabels = None,
    voxel_size: VoxelSizes = None,
    *,
    selection: dict[str, Any],
) -> None:
    """Distil a teacher into students of several k and show the cost and accuracy of each."""
    from napari_kdunet.core import iter_sweep, load_model

    wanted = _whole_numbers(ks)
    _check_folder(out, teacher, raw, labels, val_raw, val_labels)
    _check_table(out / "sweep.csv", out)
    results: list[Tradeoff] = []

    def add_result(one: Tradeoff) -> None:
        if one.notes not in {"", *(other.notes for other in results)}:  # once, as all are scored on the same labels
            console.print(f"note: {one.notes}")
        results.append(one)
        _write_csv(out / "sweep.csv", map(asdict, results))
        console.print(f"{one.name}  IoU {one.iou:.3f}  {one.parameters:,} parameters")

    pair, val = _opened(raw, labels, val_raw, val_labels, voxel_size, selection)
    items = iter_sweep(load_model(teacher), *pair, wanted, config, val=val, folder=out)
    try:
        follow_runs(["scoring the teacher", *(f"distilling a {k}-Unet" for k in wanted)], items, add_result)
    except (Interrupted, KeyboardInterrupt):
        done = f"{len(results)} of {len(wanted) + 1} networks are done"
        raise Interrupted(f"stopped: {done}; the same command goes on.") from None
    _compare(out, results[0], results[1:])


def _whole_numbers(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise ConfigError(f"ks is {text!r}: give whole numbers separated by commas, such as 1,2,4,8.") from None


def _compare(out: Path, teacher: Tradeoff, students: list[Tradeoff]) -> None:
    from napari_kdunet.cli.figures import draw_sweep
    from napari_kdunet.core import smallest_within

    print_tradeoffs([teacher, *students])
    best, taken = max(students, key=lambda one: one.iou), smallest_within(students)
    draw_sweep(out / "sweep.png", teacher, students, taken)
    print_result(
        f"k = {taken.k} is the smallest within 0.01 IoU of the best student: IoU {taken.iou:.3f} "
        f"(best {best.iou:.3f} at k = {best.k}, teacher {teacher.iou:.3f}), {taken.parameters:,} parameters, "
        f"{taken.seconds_per_megapixel:.3f} s a megapixel here."
    )
    print_result(f"{out / 'sweep.csv'}  {out / 'sweep.png'}")
