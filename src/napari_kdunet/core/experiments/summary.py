"""One-line summaries of a study's results."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from statistics import fmean
from types import MappingProxyType

from napari_kdunet.core.experiments.studies import SETTINGS, STUDIES
from napari_kdunet.core.experiments.study import RunResult

__all__ = ["finding"]

_NAMES = {"paper": "Paper's setting", "ours": "Our defaults"}


def finding(name: str, results: Sequence[RunResult]) -> str:
    """Summarise the results of the study `name` in one line, setting by setting.

    Losses are given in the paper's convention (twice the mean over pixels).
    """
    sentences = []
    for setting in SETTINGS:
        rows = [row for row in results if row.setting == setting]
        students = [row for row in rows if not _teaches(row.label)]
        if students:
            place = STUDIES[name].place
            parts = [_reliability(students, place), _best(students, place), *_MORE[name](rows, place)]
            sentences.append(f"{_NAMES[setting]}: {'; '.join(part for part in parts if part)}.")
    return " ".join(sentences)


def _teaches(label: str) -> bool:
    return label.startswith("teacher")


def _reliability(rows: Sequence[RunResult], place: str) -> str:
    """Say how many runs trained, and which did not."""
    failed = [row for row in rows if row.outcome != "trained"]
    total = f"{len(rows) - len(failed)} of {len(rows)} runs trained"
    if not failed or len(failed) == len(rows):
        return total
    groups = _by_label(rows)
    counts = {label: sum(row.outcome != "trained" for row in group) for label, group in groups.items()}
    several = len(rows) > len(groups)
    which = [f"{label} ({n} of {len(groups[label])})" if several else label for label, n in counts.items() if n]
    return f"{total}, not {place.format('; '.join(which) if ', ' in which[0] else ', '.join(which))}"


def _best(rows: Sequence[RunResult], place: str) -> str:
    scored = [(row.iou, row.ce, row) for row in rows if row.iou is not None and row.ce is not None]
    if not scored:
        return ""
    iou, ce, row = max(scored, key=lambda entry: entry[0])
    return f"best IoU {iou:.3f} at {place.format(row.label)}, paper CE {2 * ce:.3f} (prior {2 * row.prior_ce:.3f})"


def _by_label(rows: Sequence[RunResult]) -> dict[str, list[RunResult]]:
    groups: dict[str, list[RunResult]] = {}
    for row in rows:
        groups.setdefault(row.label, []).append(row)
    return groups


def _ious(rows: Sequence[RunResult]) -> list[float]:
    """Return the IoU of each run; one that diverged counts as 0."""
    return [row.iou or 0.0 for row in rows]


def _smallest(rows: Sequence[RunResult], place: str) -> list[str]:
    ks = sorted({row.k for row in rows})
    trained = [k for k in ks if all(row.outcome == "trained" for row in rows if row.k == k)]
    return [f"the smallest k that trained each time is {trained[0]}"] if trained else []


def _over_labels(rows: Sequence[RunResult], place: str) -> list[str]:
    """Say how far apart the mean IoUs of the labels are, and the seeds of one label."""
    groups = {label: _ious(group) for label, group in _by_label(rows).items() if not _teaches(label)}
    means = {label: fmean(ious) for label, ious in groups.items()}
    low, high = min(means, key=means.__getitem__), max(means, key=means.__getitem__)
    parts = []
    if f"{means[low]:.3f}" != f"{means[high]:.3f}":
        parts.append(
            f"mean IoU from {means[low]:.3f} at {place.format(low)} to {means[high]:.3f} at {place.format(high)}"
        )
    spread = max(max(ious) - min(ious) for ious in groups.values())
    if any(len(ious) > 1 for ious in groups.values()):
        parts.append(f"seeds of one place up to {spread:.3f} apart")
    return parts


def _after_soft(rows: Sequence[RunResult], place: str) -> list[str]:
    changes = [r.test_loss - r.start_loss for r in rows if r.test_loss is not None and r.start_loss is not None]
    if not changes:
        return []
    return [f"on labels after soft training the paper's test loss changed by {2 * fmean(changes):+.3f} on average"]


def _kept(rows: Sequence[RunResult], place: str) -> list[str]:
    groups = _by_label(rows)
    means = {label: fmean(_ious(group)) for label, group in groups.items()}
    teacher, student = groups["teacher"][0], groups["soft"][0]
    ratio = teacher.parameters / student.parameters
    scores = [f"{label} {iou:.3f}" for label, iou in means.items()]
    return [f"mean IoU: {', '.join(scores)}; the student has 1/{ratio:,.0f} of the teacher's parameters"]


def _lowered(rows: Sequence[RunResult], place: str) -> list[str]:
    """Say by how much batch normalisation changes the lowest test loss (the paper: -22 %)."""
    groups = _by_label(rows)
    losses = [[row.paper_test_loss for row in groups.get(label, [])] for label in ("without BN", "with BN")]
    without, with_ = ([loss for loss in group if loss is not None] for group in losses)
    if not without or not with_:
        return []
    before, after = fmean(without), fmean(with_)
    return [
        f"batch normalisation takes the paper's test loss from {before:.4f} to {after:.4f} ({after / before - 1:+.0%})"
    ]


_MORE: Mapping[str, Callable[[Sequence[RunResult], str], list[str]]] = MappingProxyType(
    {
        "depth": _smallest,
        "temperature": _over_labels,
        "trials": _over_labels,
        "reruns": _over_labels,
        "mixed": _over_labels,
        "sequential": _after_soft,
        "final": _kept,
        "bn": _lowered,
    }
)
