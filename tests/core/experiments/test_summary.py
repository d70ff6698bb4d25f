"""The line that says what a study shows, from rows made by hand."""

from __future__ import annotations

import dataclasses

from napari_kdunet import core
from napari_kdunet.core.experiments.summary import finding


def row(label: str, iou: float | None, outcome: str = "trained", **more) -> core.RunResult:
    fields = {spec.name: None for spec in dataclasses.fields(core.RunResult)}
    base = {"label": label, "iou": iou, "ce": 0.1, "outcome": outcome, "setting": "ours", "k": 2, "prior_ce": 0.25}
    return core.RunResult(**{**fields, **base, **more})


def test_depth():
    rows = [row("4", 0.8, k=4), row("2", 0.7, k=2), row("1", 0.1, "collapsed", k=1)]
    assert finding("depth", rows) == (
        "Our defaults: 2 of 3 runs trained, not k = 1; best IoU 0.800 at k = 4, paper CE 0.200 (prior 0.500); "
        "the smallest k that trained each time is 2."
    )
    paper = [dataclasses.replace(one, setting="paper", outcome="collapsed") for one in rows]
    told = finding("depth", [*paper, *rows])
    assert told.startswith("Paper's setting: 0 of 3 runs trained; best IoU 0.800 at k = 4")
    assert told.endswith(finding("depth", rows))


def test_trials_tell_seeds_apart_from_temperatures():
    rows = [row("teacher", 0.9), row("1", 0.5), row("1", 0.7), row("5", 0.1, "collapsed"), row("5", 0.6)]
    assert finding("trials", rows) == (
        "Our defaults: 3 of 4 runs trained, not τ = 5 (1 of 2); best IoU 0.700 at τ = 1, paper CE 0.200 (prior 0.500); "
        "mean IoU from 0.350 at τ = 5 to 0.600 at τ = 1; seeds of one place up to 0.500 apart."
    )


def test_a_diverged_run_counts_as_nothing_found():
    rows = [row("teacher", 0.9), row("0.1", None, "diverged", ce=None), row("1", 0.6)]
    assert "1 of 2 runs trained, not τ = 0.1;" in finding("temperature", rows)
    assert "mean IoU from 0.000 at τ = 0.1 to 0.600 at τ = 1" in finding("temperature", rows)
    assert finding("temperature", rows[:2]) == "Our defaults: 0 of 1 runs trained."


def test_sequential():
    rows = [row("5, short", 0.4, start_loss=0.2, test_loss=0.35), row("5, long", 0.4, start_loss=0.3, test_loss=0.35)]
    assert "the paper's test loss changed by +0.200 on average" in finding("sequential", rows)


def test_final():
    rows = [
        row("teacher", 0.8, parameters=2000),
        *(row(at, 0.7, parameters=100) for at in ("untaught", "soft", "mixed")),
    ]
    told = finding("final", rows)
    assert "mean IoU: teacher 0.800, untaught 0.700, soft 0.700, mixed 0.700" in told
    assert told.endswith("the student has 1/20 of the teacher's parameters.")


def test_bn():
    rows = [row("without BN", 0.7, paper_test_loss=0.1), row("with BN", 0.8, paper_test_loss=0.08)]
    assert "batch normalisation takes the paper's test loss from 0.1000 to 0.0800 (-20%)" in finding("bn", rows)
    lost = row("without BN", None, "diverged", ce=None)
    assert "batch normalisation" not in finding("bn", [lost, rows[1]])
