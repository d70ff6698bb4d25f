"""A training or a writing on the terminal: a bar, a line a validation, and Ctrl-C between two events."""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, TypeVar

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskProgressColumn, TextColumn, TimeRemainingColumn

from napari_kdunet.core.config import TrainConfig
from napari_kdunet.core.errors import CollapsedError, DivergedError, KDUNetError, TrainingError
from napari_kdunet.core.training.events import Done, Event, Started, Stepped, Validated

if TYPE_CHECKING:
    from napari_kdunet.core.writing.writer import Written

__all__ = [
    "Interrupted",
    "console",
    "follow_runs",
    "follow_slices",
    "follow_to_file",
    "follow_training",
    "interruptible",
    "together",
]

#: Everything but results goes here. What it prints is never markup: a path may hold square brackets.
console = Console(stderr=True, highlight=False, soft_wrap=True, markup=False, emoji=False)

T = TypeVar("T")


class Interrupted(Exception):
    """Ctrl-C was pressed, and what was under way has been closed."""


@contextmanager
def together(config: TrainConfig, devices: int, nodes: int) -> Iterator[Any]:
    """As `core.processes.launched`; all but the first process leave Ctrl-C, and what all of them meet, to that.

    What is wrong with the input all meet on one machine, but not on several.
    """
    from napari_kdunet.core.training.distributed import launched  # not at the top: it imports torch

    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)
    with launched(config, devices, nodes) as fabric:
        if fabric is None or fabric.is_global_zero:
            yield fabric
            return
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
        with suppress(TrainingError if nodes > 1 else KDUNetError):
            yield fabric


@contextmanager
def interruptible(
    events: Iterator[T], numbers: tuple[int, ...] = (signal.SIGINT, signal.SIGTERM)
) -> Iterator[Iterator[T]]:
    """Iterate so that Ctrl-C takes effect between two events, closes `events` and raises `Interrupted`.

    So does the SIGTERM of a cluster's scheduler, unless `numbers` leaves it out. A second Ctrl-C stops at once.
    """
    pressed = False

    def press(number: int, frame: FrameType | None) -> None:
        nonlocal pressed
        if pressed:
            raise KeyboardInterrupt
        pressed = True
        with suppress(OSError):  # straight to stderr: what is interrupted may be a print, and rich would repeat it
            os.write(2, b"\nstopping after this step; press Ctrl-C again to stop at once\n")

    def watched() -> Iterator[T]:
        for event in events:
            yield event
            if pressed:
                raise Interrupted

    before = {number: signal.signal(number, press) for number in numbers}
    try:
        yield watched()
    finally:
        if isinstance(events, Generator):
            events.close()
        for number, handler in before.items():
            signal.signal(number, handler)


def _bar(*extra: str) -> Progress:
    """A progress bar; on anything but a terminal there is none, so that a log holds lines alone."""
    return Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        *(TextColumn(column) for column in extra),
        TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
    )


def follow_training(title: str, events: Iterator[Event]) -> Done:
    """Draw a training until it is done.

    Raises
    ------
    Interrupted
        After Ctrl-C, when the best model and the state to resume from are written.
    CollapsedError
        If the network collapsed.
    """
    from napari_kdunet.core.training.train import collapsed_message  # not at the top: it imports torch

    with interruptible(events) as watched, _bar("{task.fields[told]}") as bar:
        task = bar.add_task(title, total=1.0, told="")
        for event in watched:
            if isinstance(event, Started):
                _tell_start(event)
            elif isinstance(event, Stepped):
                bar.update(task, completed=event.fraction, told=f"step {event.step}  loss {event.loss:.3f}")
            elif isinstance(event, Validated):
                mark = "  best so far" if event.best else ""
                console.print(
                    f"step {event.step:>6}  {event.seconds:>6.0f} s  IoU {event.iou:.3f} at {event.threshold:.2f}  "
                    f"CE {event.ce:.4f}  paper CE {event.paper_ce:.4f}{mark}"
                )
            elif isinstance(event, Done):
                if event.collapsed:
                    raise CollapsedError(collapsed_message(event), event.model)
                return event
    raise AssertionError("a training that ends without Done or an error")


def follow_to_file(title: str, events: Iterator[Event], out: Path, *, resumed: bool = False) -> Done:
    """Draw a training that writes `out` until it is done.

    Raises
    ------
    Interrupted, DivergedError
        Their messages say whether this training has left a model at `out`, and what there is to go on with.
    CollapsedError
        If the network collapsed.
    """
    from napari_kdunet.core.training.resume import resume_path  # not at the top: it imports torch

    state, before = resume_path(out), _stamp(out)
    if state.exists() and not resumed:
        console.print(f"note: starting anew, {state} of a training that was stopped will be replaced (see --resume)")
    try:
        return follow_training(title, events)
    except (Interrupted, KeyboardInterrupt):
        found = _stamp(out) != before
        best = f"the best model so far is {out}" if found else "no model was good enough to be saved yet"
        more = f"; go on with --resume (from {state.name})" if state.exists() else ""
        raise Interrupted(f"stopped: {best}{more}.") from None
    except DivergedError as error:
        kept = f" The best model so far is {out}." if _stamp(out) != before else ""
        raise DivergedError(f"{error}{kept}", error.model) from error


def follow_runs(titles: Sequence[str], items: Iterator[Any], on_result: Callable[[Any], None]) -> None:
    """Draw trainings that come one after the other, each with a result at its end, which is told to `on_result`.

    Raises
    ------
    Interrupted
        After Ctrl-C, when what is under way can be gone on with.
    """
    done, noted = 0, set()
    with interruptible(items) as watched, _bar("{task.fields[told]}") as bar:
        task = bar.add_task(titles[0], total=1.0, told="")
        for item in watched:
            if isinstance(item, Started):
                for note in item.notes:
                    if note not in noted:
                        console.print(f"note: {note}")
                        noted.add(note)
            elif isinstance(item, Stepped):
                bar.update(task, completed=item.fraction, told=f"step {item.step}  loss {item.loss:.3f}")
            elif not isinstance(item, Event):
                on_result(item)
                done += 1
                bar.reset(task, description=titles[min(done, len(titles) - 1)], told="")


def _stamp(path: Path) -> tuple[int, int] | None:
    """What tells a file from another written in its place; None if there is none."""
    try:
        about = path.stat()
    except OSError:
        return None
    return about.st_ino, about.st_mtime_ns


def _tell_start(event: Started) -> None:
    taught = f" and {event.unlabelled_slices} taught" if event.unlabelled_slices else ""
    resumed = f"resumed after step {event.step}; " if event.step else ""
    console.print(
        f"{resumed}{event.parameters:,} parameters on {event.device}; "
        f"{len(event.labelled_slices)} labelled{taught} slices; "
        f"validated on {event.validated_on}, z = {_ranges(event.val_slices)}; prior CE {event.prior_ce:.4f}"
    )
    for note in event.notes:
        console.print(f"note: {note}")


def _ranges(numbers: tuple[int, ...]) -> str:
    """``0-3, 7`` for (0, 1, 2, 3, 7)."""
    runs: list[list[int]] = []
    for n in numbers:
        if runs and n == runs[-1][-1] + 1:
            runs[-1].append(n)
        else:
            runs.append([n])
    return ", ".join(str(r[0]) if len(r) == 1 else f"{r[0]}-{r[-1]}" for r in runs)


def follow_slices(title: str, slices: Iterator[Written], count: int, *, resumable: bool) -> None:
    """Draw the writing of `count` slices until the last; `Interrupted` after Ctrl-C, when nothing is left behind.

    What is `resumable` is left behind by the SIGTERM that ends a cluster's job: that kills the process, as it is.
    """
    numbers = (signal.SIGINT,) if resumable else (signal.SIGINT, signal.SIGTERM)
    with interruptible(slices, numbers) as watched, _bar("slice {task.completed}/{task.total}") as bar:
        task = bar.add_task(title, total=count)
        for turn, (_, done) in enumerate(watched):
            if done > 1 and not turn:
                console.print(f"note: going on after {done - 1} slices that a killed run had written")
            bar.update(task, completed=done)
