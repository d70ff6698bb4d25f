"""Steps per second of the same training in a plain script and in napari while the user scrolls, and the window's gaps.

    xvfb-run -s '-screen 0 1600x1200x24' python benchmarks/napari_training.py [--k 2,16] [--rate 10] [--seconds 20]

Each turn is a process of its own, and four kinds take turns: a plain script that drives `core.iter_train`; napari with
*Train teacher* and its preview at work, while a timer scrolls RATE slices a second without a pause; napari that only
scrolls; and the plain script beside that. The last separates the cost of drawing the window, for which there is no
graphics card under Xvfb, from the cost of training within napari. A gap is the time between two ticks of a 5 ms timer
in the window's event loop: the longest that a click would have to wait.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from statistics import median
from typing import Any

from napari_kdunet import core
from napari_kdunet.sample import VOXEL_SIZE, synthetic_em

KINDS = ("plain", "napari", "scrolling", "beside")
WARM_STEPS = 3
TICK_MS = 5


def volumes(arguments: argparse.Namespace) -> tuple[core.Volume, core.Volume]:
    if arguments.raw:
        return core.open_volume(arguments.raw), core.open_volume(arguments.labels)
    raw, labels = synthetic_em((24, 512, 512))
    return core.open_volume(raw, voxel_size=VOXEL_SIZE), core.open_volume(labels, voxel_size=VOXEL_SIZE)


def settings(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return settings with a validation every ten seconds, and an end that is far away."""
    threads = arguments.threads or None
    return {"k": int(arguments.k), "minutes": 60.0, "validations": 360, "device": "cpu", "threads": threads}


def plain(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the steps per second of a script."""
    begin, first = 0.0, 0
    for event in core.iter_train(*volumes(arguments), core.TrainConfig(**settings(arguments))):
        if isinstance(event, core.Stepped):
            if event.step == WARM_STEPS:
                begin, first = time.perf_counter(), event.step
            elif begin and time.perf_counter() - begin >= arguments.seconds:
                return {"steps": (event.step - first) / (time.perf_counter() - begin)}
    raise AssertionError("the budget is an hour")


class Window:
    """napari with the volume, scrolled by a timer, and the gaps between the ticks of another."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        import napari
        from qtpy.QtCore import Qt, QTimer

        raw, labels = volumes(arguments)
        self.viewer = napari.Viewer()
        space = {"scale": raw.voxel_size or (1, 1, 1), "units": ("nm",) * 3}
        self.viewer.add_image(raw[:], name="em", **space)
        self.viewer.add_labels(labels[:], name="mito", **space)
        _, self.widget = self.viewer.window.add_plugin_dock_widget("napari-kdunet", "Train teacher")
        self.gaps: list[float] = []
        self.scroll_ms = round(1000 / arguments.rate)
        self._last: float | None = None
        self.tick, self.scroll = QTimer(), QTimer()
        self.tick.setTimerType(Qt.TimerType.PreciseTimer)
        self.tick.timeout.connect(self._beat)
        self.scroll.timeout.connect(self._scroll)

    def _beat(self) -> None:
        now = time.perf_counter()
        if self._last is not None:
            self.gaps.append(now - self._last)
        self._last = now

    def _scroll(self) -> None:
        viewer, axis = self.viewer, 0
        last = int(viewer.dims.nsteps[axis]) - 1
        viewer.dims.set_current_step(axis, (viewer.dims.current_step[axis] + 1) % (last + 1))

    def run(self, seconds: float) -> None:
        """Scroll and record the gaps for some seconds, in a real event loop."""
        from qtpy.QtCore import QEventLoop, QTimer

        loop = QEventLoop()
        QTimer.singleShot(round(1000 * seconds), loop.quit)
        self.tick.start(TICK_MS)
        self.scroll.start(self.scroll_ms)
        loop.exec()
        self.tick.stop()
        self.scroll.stop()
        self._last = None


def in_napari(arguments: argparse.Namespace, train: bool) -> dict[str, Any]:
    """Return the steps per second of the worker, and the gaps between the window's events."""
    window = Window(arguments)
    widget, steps = window.widget, 0
    window.run(5)  # the first drawings compile code, and the widget loads torch
    print("ready", flush=True)
    window.gaps.clear()
    if train:
        for name, value in {"steps": None, **settings(arguments)}.items():
            getattr(widget, name).value = value
        widget.view.start_button.click()
        counted = widget.view.curves.runs["training"].steps
        while len(counted) < WARM_STEPS:
            window.run(0.1)
        steps = len(counted)
    begin = time.perf_counter()
    window.run(arguments.seconds)
    spent = time.perf_counter() - begin
    found: dict[str, Any] = {"gaps": sorted(1000 * gap for gap in window.gaps)}
    if train:
        found["steps"] = (len(counted) - steps) / spent
        widget.stop()
        while widget.worker is not None:
            window.run(0.1)
    window.viewer.close()
    return found


def turn(kind: str, k: int, arguments: argparse.Namespace) -> dict[str, Any]:
    """Measure in a process of its own."""
    if kind == "beside":
        with subprocess.Popen(command("scrolling", k, arguments, 3600), stdout=subprocess.PIPE, text=True) as other:
            try:
                assert other.stdout is not None
                other.stdout.readline()
                return turn("plain", k, arguments)
            finally:
                other.terminate()
    done = subprocess.run(command(kind, k, arguments, arguments.seconds), capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"the turn {kind} failed:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def command(kind: str, k: int, arguments: argparse.Namespace, seconds: float) -> list[str]:
    words = [sys.executable, __file__, "--turn", kind, "--k", str(k), "--seconds", str(seconds)]
    words += ["--threads", str(arguments.threads), "--rate", str(arguments.rate)]
    return words + (["--raw", arguments.raw, "--labels", arguments.labels] if arguments.raw else [])


def report(k: int, arguments: argparse.Namespace) -> None:
    turns: dict[str, list[dict[str, Any]]] = {kind: [] for kind in KINDS}
    for _ in range(arguments.rounds):
        for kind in KINDS:
            turns[kind].append(turn(kind, k, arguments))
    reference = median(found["steps"] for found in turns["plain"])
    for kind, done in turns.items():
        cells = ["-"] * 5
        if kind != "scrolling":
            rates = sorted(found["steps"] for found in done)
            cells[:2] = f"{median(rates):.2f} ({rates[0]:.2f}-{rates[-1]:.2f})", f"{median(rates) / reference:.2f}"
        if "gaps" in done[0]:
            gaps = sorted(gap for found in done for gap in found["gaps"])
            late = sum(gap > 100 for gap in gaps)
            cells[2:] = f"{gaps[-1]:.0f}", f"{gaps[int(0.99 * len(gaps))]:.0f}", f"{late} of {len(gaps)}"
        print(f"| {k} | {kind} | {' | '.join(cells)} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--raw", help="volume to train on; a synthetic one if not given")
    parser.add_argument("--labels", help="its labels")
    parser.add_argument("--k", default="2,16", help="networks, with commas between")
    parser.add_argument("--threads", type=int, default=0, help="of the training; 0 as the core chooses")
    parser.add_argument("--rate", type=float, default=10.0, help="slices a second that are scrolled")
    parser.add_argument("--seconds", type=float, default=20.0, help="of a turn")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each kind")
    parser.add_argument("--turn", choices=KINDS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.turn:
        found = plain(arguments) if arguments.turn == "plain" else in_napari(arguments, arguments.turn == "napari")
        print(json.dumps(found))
        return
    print(f"{os.cpu_count()} cores, load before {os.getloadavg()[0]:.1f}; {platform.system()}, ", end="")
    print(
        f"Python {platform.python_version()}; {arguments.rounds} turns of {arguments.seconds:g} s of each kind; ",
        end="",
    )
    print(f"{arguments.rate:g} slices a second\n")
    print("| k | kind | steps/s, median (range) | of plain | longest gap, ms | 99th percentile | gaps over 100 ms |")
    print("|---:|---|---:|---:|---:|---:|---:|")
    for k in map(int, arguments.k.split(",")):
        report(k, arguments)


if __name__ == "__main__":
    main()
