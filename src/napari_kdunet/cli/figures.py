"""Figures of studies and sweeps, in colours and marks that can be told apart by the colour-blind and in grey."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from napari_kdunet.core.experiments.paper import PRIOR
from napari_kdunet.core.files import replacing

if TYPE_CHECKING:
    from napari_kdunet.core.experiments.history import LossCurve
    from napari_kdunet.core.experiments.paper import Reported
    from napari_kdunet.core.experiments.studies import Study
    from napari_kdunet.core.experiments.study import RunResult
    from napari_kdunet.core.experiments.sweep import Tradeoff

__all__ = ["draw_study", "draw_sweep"]

_SERIES = {"paper": ("paper's setting, here", "#d55e00", "s", -0.17), "ours": ("our defaults", "#0072b2", "o", 0.17)}
_GREY = "#555555"
_LOSS = "paper CE (2 × nats a pixel)"


def draw_study(
    path: Path,
    study: Study,
    results: Sequence[RunResult],
    reported: Sequence[Reported],
    curves: Mapping[str, LossCurve],
) -> None:
    """Draw the test loss in the paper's convention, with the values that the paper reports, and beside it the IoU.

    Each label of the table has one place on the x axis. If there are `curves` (averaged test losses by the name of a
    run), they are drawn over the steps instead of the test loss.
    """
    from matplotlib.figure import Figure

    labels = list(dict.fromkeys(row.label for row in results))
    figure = Figure(figsize=(12.5, 4.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    for axis in (right,) if curves else (left, right):
        axis.set_xticks(range(len(labels)), labels, rotation=30 if max(map(len, labels)) > 10 else 0)
        axis.set(xlabel=study.axis, xlim=(-0.6, len(labels) - 0.4))
    for axis in (left, right):
        axis.grid(axis="y", color="#dddddd")
        axis.set_axisbelow(True)
    if curves:
        _draw_curves(left, results, reported, curves)
    else:
        _draw_losses(left, study, labels, results, reported)
    _draw_ious(right, labels, results, reported)
    legends = [axis.get_legend_handles_labels() for axis in (left, right)]
    handles = {label: handle for legend in legends for handle, label in zip(*legend, strict=True)}
    figure.legend(
        handles.values(), handles.keys(), loc="outside lower center", ncols=min(4, len(handles)), frameon=False
    )
    steps = sorted({row.steps for row in results if row.outcome != "diverged"})
    budget = f"{steps[0]:,}" if len(steps) == 1 else f"{steps[0]:,} to {steps[-1]:,}" if steps else "no"
    title = study.title.format(k=results[0].k)
    figure.suptitle(f"{study.source.capitalize()}: {title} ({budget} steps a run here)")
    _save(figure, path)


def _draw_losses(
    axis: Any, study: Study, labels: list[str], results: Sequence[RunResult], reported: Sequence[Reported]
) -> None:
    kind = "minimum" if study.loss == "test_loss_min" else "minimum of windowed means"
    axis.set(title=f"test loss, {kind}", ylabel=_LOSS, yscale="log")
    _priors(axis, results)
    _reference(axis, labels, [(r.label, getattr(r, study.loss)) for r in reported])
    for setting, (name, colour, mark, shift) in _SERIES.items():
        rows = [row for row in results if row.setting == setting and row.outcome != "diverged"]
        points = [(labels.index(r.label) + shift, getattr(r, study.loss), r.outcome == "trained") for r in rows]
        _points(axis, [(x, 2 * y, good) for x, y, good in points if y is not None], name, colour, mark)
    starts = [(labels.index(r.label) + _SERIES[r.setting][3], 2 * r.start_loss) for r in results if r.start_loss]
    starts += [(labels.index(r.label), r.start_loss) for r in reported if r.start_loss and r.label in labels]
    if starts:
        x, y = zip(*starts, strict=True)
        look = {"marker": "_", "s": 60, "color": "black", "label": "before the labels took over"}
        axis.scatter([at - 0.09 for at in x], y, **look)
    lost: list[tuple[float, str]] = [
        (labels.index(r.label), _GREY) for r in reported if r.diverged and r.label in labels
    ]
    for row in results:
        if row.outcome == "diverged":
            _, colour, _, shift = _SERIES[row.setting]
            lost.append((labels.index(row.label) + shift, colour))
    _diverged(axis, lost)
    _plain_numbers(axis.yaxis)


def _priors(axis: Any, results: Sequence[RunResult]) -> None:
    axis.axhline(2 * results[0].test_prior, color=_GREY, linestyle="--", linewidth=1.2, label="class prior, here")
    axis.axhline(PRIOR, color=_GREY, linestyle=":", linewidth=1.2, label="class prior, in the paper")


def _draw_curves(
    axis: Any, results: Sequence[RunResult], reported: Sequence[Reported], curves: Mapping[str, LossCurve]
) -> None:
    """Draw each run's averaged test loss over its steps, with a ring at its lowest, and the paper's lowest as lines."""
    window, every = results[0].test_window, results[0].test_every
    axis.set(title=f"test loss, means of {window} tests, one every {every:g} steps", xlabel="step", yscale="log")
    axis.set_ylabel(_LOSS)
    _priors(axis, results)
    styles = dict(zip(dict.fromkeys(row.label for row in results), ("--", "-"), strict=False))
    for row in results:
        if curve := curves.get(row.run):
            name, colour, *_ = _SERIES[row.setting]
            steps, losses = zip(*((step, 2 * loss) for step, loss in curve), strict=True)
            style = styles.get(row.label, ":")
            axis.plot(steps, losses, color=colour, linestyle=style, linewidth=1.4, label=f"{name}: {row.label}")
            low = min(zip(losses, steps, strict=True))
            axis.scatter(low[1], low[0], facecolors="none", edgecolors=colour, s=46, zorder=3)
    for entry in reported:
        if entry.test_loss:
            look = {"color": "black", "linewidth": 0.8, "linestyle": styles.get(entry.label, ":")}
            axis.axhline(entry.test_loss, label=f"the paper's lowest, {entry.label}", **look)
    _plain_numbers(axis.yaxis)


def _diverged(axis: Any, places: Sequence[tuple[float, str]]) -> None:
    """Mark runs that diverged at the top edge, as there is no loss to draw."""
    if places:
        x, colours = zip(*places, strict=True)
        look = {"marker": "^", "s": 42, "label": "diverged", "transform": axis.get_xaxis_transform()}
        axis.scatter(x, [0.96] * len(x), color=colours, **look)
        axis.set_ylim(top=1.5 * axis.get_ylim()[1])


def _draw_ious(axis: Any, labels: list[str], results: Sequence[RunResult], reported: Sequence[Reported]) -> None:
    axis.set(title="IoU on the whole scored volume", ylabel="IoU of the foreground", ylim=(-0.03, 1))
    _reference(axis, labels, [(r.label, r.iou) for r in reported])
    for setting, (name, colour, mark, shift) in _SERIES.items():
        rows = [row for row in results if row.setting == setting and row.iou is not None]
        points = [(labels.index(r.label) + shift, r.iou, r.outcome == "trained") for r in rows]
        _points(axis, points, name, colour, mark)


def _points(axis: Any, points: Sequence[tuple[float, Any, bool]], name: str, colour: str, mark: str) -> None:
    """Draw full marks for runs that trained, and crosses for runs that collapsed."""
    for wanted, look in ((True, {"marker": mark, "s": 42, "alpha": 0.8}), (False, {"marker": "x", "s": 42})):
        chosen = [(x, y) for x, y, good in points if good is wanted]
        if chosen:
            label = name if wanted else f"{name}: collapsed"
            axis.scatter(*zip(*chosen, strict=True), color=colour, label=label, zorder=3, **look)


def _reference(axis: Any, labels: list[str], figures: Sequence[tuple[str, float | None]]) -> None:
    """Draw the paper's own values, which already are in its convention."""
    points = [(labels.index(label), y) for label, y in figures if y is not None and label in labels]
    if points:
        look = {"marker": "D", "s": 46, "facecolors": "none", "edgecolors": _GREY, "linewidths": 1.3}
        axis.scatter(*zip(*points, strict=True), label="the paper reports (its data, its budget)", zorder=2, **look)


def _plain_numbers(axis: Any) -> None:
    """Label a logarithmic axis with 0.1, 0.2, 0.5, 10k and 2M rather than powers of ten."""
    from matplotlib.ticker import EngFormatter, FuncFormatter, LogLocator, NullFormatter

    large = EngFormatter(sep="")
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}" if value < 1000 else large.format_eng(value)))
    axis.set_minor_formatter(NullFormatter())


def draw_sweep(path: Path, teacher: Tradeoff, students: Sequence[Tradeoff], taken: Tradeoff) -> None:
    """Draw IoU against what a network costs: parameters, file size, seconds per megapixel; `taken` gets a ring."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 4.4), layout="constrained")
    costs = (
        ("parameters", lambda t: t.parameters),
        ("model file, MB", lambda t: t.file_bytes / 1e6),
        ("seconds per megapixel, measured here", lambda t: t.seconds_per_megapixel),
    )
    for axis, (name, cost) in zip(figure.subplots(1, 3, sharey=True), costs, strict=True):
        axis.scatter(*_xy(students, cost), color="#0072b2", marker="o", s=45, label="students", zorder=3)
        axis.scatter(*_xy([teacher], cost), color="#d55e00", marker="s", s=45, label="teacher", zorder=3)
        ring = {"facecolors": "none", "edgecolors": "black", "s": 190, "linewidths": 1.4}
        axis.scatter(
            *_xy([taken], cost), label=f"k = {taken.k}: smallest within 0.01 IoU of the best", zorder=4, **ring
        )
        for one, dy in ((teacher, -22), *((student, 12) for student in students)):
            axis.annotate(str(one.k), (cost(one), one.iou), (0, dy), textcoords="offset points", ha="center")
        axis.set(xlabel=name, xscale="log")
        axis.margins(x=0.12, y=0.18)
        axis.grid(color="#dddddd")
        axis.set_axisbelow(True)
        _plain_numbers(axis.xaxis)
    figure.axes[0].set_ylabel("IoU of the foreground")
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
    figure.suptitle("What each k costs and gives (k beside each point)")
    _save(figure, path)


def _xy(found: Sequence[Tradeoff], cost: Any) -> tuple[list[float], list[float]]:
    return [cost(one) for one in found], [one.iou for one in found]


def _save(figure: Any, path: Path) -> None:
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=110)
