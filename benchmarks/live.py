"""*Live* on another volume: IoU on slices that nobody has painted, seconds after the first stroke.

    xvfb-run -s "-screen 0 1600x1200x24" python benchmarks/live.py DATA [--model M] [--seeds 0,1,2] [--forget] [--fresh]

DATA is a folder with ``vnc-train-{raw,labels}.tif``. napari opens the fly volume with *Train teacher*, *Live* ticked,
and a script paints one stroke a second for half a minute on four of the sixteen slices, each time going to the slice as
a user would. A stroke is a straight line of at most 90 pixels that lies in one class according to the truth: it is
alternately inside a mitochondrion and in the background, and there alternately near a mitochondrion and anywhere. The
scores are those of the models that *Live* had made by then, on the twelve slices without a stroke, at the models' own
thresholds; they are computed afterwards.
"""

from __future__ import annotations

import argparse
import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import napari
import numpy as np
from qtpy.QtCore import QEventLoop, Qt, QTimer
from strokes import BRUSH, STROKES, strokes

from napari_kdunet import core
from napari_kdunet.widgets.shared.edited_slices import EditedSlices
from napari_kdunet.widgets.shared.models import models

VNC_NM = (50.0, 4.6, 4.6)
PAINTED = (2, 6, 10, 14)
MOMENTS = (0, 10, 30, 60)  # s after the first stroke
TAKE = EditedSlices.take


@dataclass
class Record:
    """Times of what happened, in seconds of `time.perf_counter`."""

    painted: list[tuple[float, int]] = field(default_factory=list)
    asked: list[tuple[float, set[int]]] = field(default_factory=list)
    shown: list[float] = field(default_factory=list)
    made: list[tuple[float, core.Model]] = field(default_factory=list)
    ticks: list[float] = field(default_factory=list)
    begun: float = 0.0  # time of the first step


class Session:
    """napari with the volume and *Live*; a script paints, a timer watches."""

    def __init__(self, raw: core.Volume, truth: np.ndarray, start: str, keep: bool = True) -> None:
        self.truth, self.record = truth, Record()
        self.viewer = napari.Viewer()
        self.viewer.add_image(raw[:], name="vnc", scale=raw.voxel_size, units=("nm",) * 3)
        _, self.widget = self.viewer.window.add_plugin_dock_widget("napari-kdunet", "Train teacher")
        self.widget.origin.value = start or None
        self.widget.keep.value = keep
        self.widget.add_strokes()
        self.widget.live.value = True
        self.layer = self.widget.labels_layer.value
        self.timer = QTimer()
        self.timer.setTimerType(Qt.TimerType.PreciseTimer)
        self.timer.timeout.connect(self._watch)
        self._seen: tuple[Any, Any] = (None, None)

    def wait(self, seconds: float) -> None:
        """Run the window's event loop for some seconds."""
        loop = QEventLoop()
        QTimer.singleShot(round(1000 * seconds), loop.quit)
        loop.exec()

    def run(self, seed: int, threads: int, train: bool = True) -> Record:
        """Paint, and train until a minute after the first stroke; without `train` paint only."""
        self._watch_training()
        self.widget.threads.value = threads or None
        self.wait(3)  # the first drawings compile code
        plan = list(strokes(self.truth, PAINTED, seed))
        if train:
            self.widget.view.start_button.click()
        self.wait(2)
        self.timer.start(5)
        begin = time.perf_counter()
        for i, (z, label, points) in enumerate(plan):
            self.wait(max(0.0, begin + i - time.perf_counter()))
            self._paint(z, label, points)
        if train:
            self.wait(max(0.0, begin + MOMENTS[-1] + 1 - time.perf_counter()))
        self.timer.stop()
        self.widget.stop()
        while self.widget.worker is not None:
            self.wait(0.1)
        self.viewer.close()
        return self.record

    def _paint(self, z: int, label: int, points: np.ndarray) -> None:
        self.viewer.dims.set_current_step(0, z)
        self.record.painted.append((time.perf_counter(), z))  # before, as it may be taken while it is painted
        self.layer.brush_size = BRUSH
        with self.layer.block_history():
            for i, (y, x) in enumerate(points):
                self.layer.paint((z, y, x), label, refresh=i == len(points) - 1)

    def _watch_training(self) -> None:
        """Record when the training, in its own process, asks which slices have changed, and the answers."""
        record = self.record

        def taken(edits: EditedSlices) -> list[int]:
            found = TAKE(edits)
            record.asked.append((time.perf_counter(), set(found)))
            return found

        EditedSlices.take = taken

    def _watch(self) -> None:
        now, widget = time.perf_counter(), self.widget
        self.record.ticks.append(now)
        run = widget.view.curves.runs.get("live")
        if not self.record.begun and run is not None and run.steps:
            self.record.begun = now
        shown = widget.preview and widget.preview.probability
        made = models.get(widget.model_name) if widget.model_name else None
        if shown is not None and shown is not self._seen[0]:
            self.record.shown.append(now)
        if made is not None and made is not self._seen[1]:
            self.record.made.append((now, made))
        self._seen = shown, made


def report(name: str, seed: int, record: Record, start: core.Model | None, raw: core.Volume, truth: np.ndarray) -> None:
    others = [z for z in range(len(truth)) if z not in PAINTED]
    begin = record.painted[0][0]
    cells = []
    for moment in MOMENTS:
        model = next((made for at, made in reversed(record.made) if at - begin <= moment), start)
        cells.append("-" if model is None else f"{score(model, raw, truth, others):.3f}")
    late = [
        min(at - when for at, found in record.asked if at >= when and z in found)
        for when, z in record.painted
        if when > record.begun  # earlier strokes are read when the training begins
    ]
    pauses = np.diff([at for at in record.shown if at >= begin])
    cells += [f"{median(late):.2f}", f"{max(late):.2f}", f"{median(pauses):.1f}", f"{max(pauses):.1f}"]
    print(f"| {name} | {seed} | {' | '.join(cells)} | {gap(record):.0f} |", flush=True)


def gap(record: Record) -> float:
    """Return the longest time between two ticks, ms."""
    return 1000 * max(np.diff(record.ticks))


def score(model: core.Model, raw: core.Volume, truth: np.ndarray, slices: list[int]) -> float:
    lazy = core.predict(model, raw)
    found = np.stack([lazy[z].compute() for z in slices])
    return core.evaluate(found, truth[slices], threshold=model.threshold).iou


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--model", default="lucchi-2unet", help="to start from: a file or the name of a bundled model")
    parser.add_argument("--seeds", default="0,1,2", help="of the strokes, with commas between")
    parser.add_argument("--threads", type=int, default=0, help="of the training; 0 as the core chooses")
    parser.add_argument("--forget", action="store_true", help="without 'Keep what it knows'")
    parser.add_argument("--fresh", action="store_true", help="from a fresh 2-Unet too")
    arguments = parser.parse_args()
    raw = core.open_volume(arguments.data / "vnc-train-raw.tif", voxel_size=VNC_NM)
    truth = core.open_volume(arguments.data / "vnc-train-labels.tif")[:]
    start = core.load_model(arguments.model)
    print(f"{os.cpu_count()} cores, load before {os.getloadavg()[0]:.1f}; from {arguments.model}")
    print(f"{STROKES} strokes, one a second, on slices {PAINTED}; scored on the others\n")
    columns = [f"IoU after {moment} s" for moment in MOMENTS]
    columns += ["stroke taken after, s", "at most", "between previews, s", "at most", "longest gap of the window, ms"]
    print(f"| from | strokes | {' | '.join(columns)} |")
    print("|---|---:" + "|---:" * len(columns) + "|")
    alone = Session(raw, truth, "").run(0, arguments.threads, train=False)
    print(
        f"| painting without training | 0 | {' | '.join(['-'] * (len(columns) - 1))} | {gap(alone):.0f} |", flush=True
    )
    for name, model in (("the model", start), ("nothing", None))[: 1 + arguments.fresh]:
        for seed in map(int, arguments.seeds.split(",")):
            models.clear()
            origin = models.add("start", model) if model is not None else ""
            session = Session(raw, truth, origin, not arguments.forget)
            if model is None:
                session.widget.k.value = 2
            report(name, seed, session.run(seed, arguments.threads), model, raw, truth)


if __name__ == "__main__":
    main()
