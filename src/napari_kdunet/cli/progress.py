"""Show events on the terminal (a progress bar, a line for each validation), and stop between two on Ctrl-C."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, TypeVar

from rich.progress import BarColumn, Progress, SpinnerColumn, TaskProgressColumn, TextColumn, TimeRemainingColumn

from napari_kdunet.cli.signals import handling, ignore_stop_signals
from napari_kdunet.cli.terminal import console
from napari_kdunet.core.config.training import TrainConfig
from napari_kdunet.core.errors import CollapsedError, DivergedError, KDUNetError, TrainingError
from napari_kdunet.core.formatting import counted, format_slices
from napari_kdunet.core.training.events import Done, Event, Started, Stepped, Validated

if TYPE_CHECKING:
    from napari_kdunet.core.writing.writer import Written

__all__ = [
    "Interrupted",
    "follow_runs",
    "follow_share",
    "follow_slices",
    "follow_to_file",
    "follow_training",
    "interruptible",
    "launch_processes",
]

T = TypeVar("T")


class Interrupted(Exception):
    """The user pressed Ctrl-C, and the running operation has been closed."""


@contextmanager
def launch_processes(config: TrainConfig, devices: int, nodes: int) -> Iterator[Any]:
    """Launch the processes of a training, see `core.training.distributed`; only rank 0 handles Ctrl-C and errors.

    On one machine all processes raise the same error about wrong input, on several machines they may not.
    """
    from napari_kdunet.core.training.distributed import launch  # not at the top: it imports torch

    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)
    with launch(config, devices, nodes) as fabric:
        if fabric is None or fabric.is_global_zero:
            yield fabric
            return
        ignore_stop_signals()
        with suppress(TrainingError if nodes > 1 else KDUNetError):
            yield fabric


@contextmanager
def interruptible(events: Iterator[T]) -> Iterator[Iterator[T]]:
    """Iterate over `events`; on Ctrl-C finish the current one, close `events` and raise `Interrupted`.

    SIGTERM (from a cluster's scheduler) and SIGHUP (from a terminal that is closed) do the same. A second signal raises
    `KeyboardInterrupt` at once.
    """
    stopping = False

    def request_stop(number: int, frame: FrameType | None) -> None:
        nonlocal stopping
        if stopping:
            raise KeyboardInterrupt
        stopping = True
        with suppress(OSError):  # not through rich: the signal may interrupt a print, which rich would repeat
            os.write(2, b"\nstopping after this step; press Ctrl-C again to stop at once\n")

    def until_stopped() -> Iterator[T]:
        for event in events:
            yield event
            if stopping:
                raise Interrupted

    with handling(request_stop):
        try:
            yield until_stopped()
        finally:
            if isinstance(events, Generator):
                events.close()


def _progress_bar(*extra: str) -> Progress:
    """Return a progress bar that is only shown on a terminal, so that a log file holds lines only."""
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
    """Show the progress of a training until it ends.

    Raises
    ------
    Interrupted
        After Ctrl-C; the best model and the state to resume from have been written.
    CollapsedError
        If the network collapsed.
    """
    from napari_kdunet.core.training.train import collapsed_message  # not at the top: it imports torch

    with interruptible(events) as watched, _progress_bar("{task.fields[status]}") as bar:
        task = bar.add_task(title, total=1.0, status="")
        chosen = True
        for event in watched:
            if isinstance(event, Started):
                _print_start(event)
                chosen = event.has_truth
            elif isinstance(event, Stepped):
                bar.update(task, completed=event.fraction, status=f"step {event.step}  loss {event.loss:.3f}")
            elif isinstance(event, Validated):
                mark = "  best so far" if event.best and chosen else ""
                several = f" ({', '.join(f'{iou:.3f}' for iou in event.volume_ious)})" if event.volume_ious[1:] else ""
                console.print(
                    f"step {event.step:>6}  {event.seconds:>6.0f} s  IoU {event.iou:.3f}{several} "
                    f"at {event.threshold:.2f}  CE {event.ce:.4f}  paper CE {event.paper_ce:.4f}{mark}"
                )
            elif isinstance(event, Done):
                if event.collapsed:
                    raise CollapsedError(collapsed_message(event), event.model)
                return event
    raise AssertionError("the training ended without Done or an error")


def follow_to_file(title: str, events: Iterator[Event], out: Path, *, resumed: bool | None = False) -> Done:
    """Show the progress of a training that writes `out` until it ends.

    `resumed` says whether an earlier training goes on; None if this training cannot be resumed.

    Raises
    ------
    Interrupted, DivergedError
        The message says whether this training has written a model to `out`, and what it can be resumed from.
    CollapsedError
        If the network collapsed.
    """
    from napari_kdunet.core.training.checkpoint import resume_path  # not at the top: it imports torch

    state, before = resume_path(out), _file_identity(out)
    if state.exists() and not resumed:
        how = "removed" if resumed is None else "replaced (see --resume)"
        console.print(f"note: starting anew: {state}, of a stopped training, will be {how}")
    try:
        return follow_training(title, events)
    except (Interrupted, KeyboardInterrupt):
        saved = _file_identity(out) != before
        best = f"the best model so far is {out}" if saved else "no model was good enough to be saved yet"
        more = f"; go on with --resume (from {state.name})" if state.exists() and resumed is not None else ""
        raise Interrupted(f"stopped: {best}{more}.") from None
    except DivergedError as error:
        kept = f" The best model so far is {out}." if _file_identity(out) != before else ""
        raise DivergedError(f"{error}{kept}", error.model) from error


def follow_runs(titles: Sequence[str], items: Iterator[Any], on_result: Callable[[Any], None]) -> None:
    """Show the progress of several trainings in turn; `on_result` is called with the result of each.

    Raises
    ------
    Interrupted
        After Ctrl-C; the running training can be resumed.
    """
    done, printed = 0, set()
    with interruptible(items) as watched, _progress_bar("{task.fields[status]}") as bar:
        task = bar.add_task(titles[0], total=1.0, status="")
        for item in watched:
            if isinstance(item, Started):
                for note in item.notes:
                    if note not in printed:
                        console.print(f"note: {note}")
                        printed.add(note)
            elif isinstance(item, Stepped):
                bar.update(task, completed=item.fraction, status=f"step {item.step}  loss {item.loss:.3f}")
            elif not isinstance(item, Event):
                on_result(item)
                done += 1
                bar.reset(task, description=titles[min(done, len(titles) - 1)], status="")


def _file_identity(path: Path) -> tuple[int, int] | None:
    """Return inode and modification time of a file, which change when it is replaced; None if there is none."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns


def _print_start(event: Started) -> None:
    labelled = counted(len(event.labelled_slices), "labelled slice")
    if event.unlabelled_slices:
        labelled = f"{len(event.labelled_slices)} labelled and {counted(event.unlabelled_slices, 'unlabelled slice')}"
    resumed = f"resumed after step {event.step}; " if event.step else ""
    several = len(event.val_volumes) > 1
    where = f"of {', '.join(event.val_volumes)}" if several else f"z = {format_slices(event.val_slices)}"
    console.print(
        f"{resumed}{event.parameters:,} parameters on {event.device}; {labelled}; "
        f"validated on {event.validated_on}{' ' if several else ', '}{where}; prior CE {event.prior_ce:.4f}"
    )
    for note in event.notes:
        console.print(f"note: {note}")


def follow_slices(title: str, slices: Iterator[Written], count: int, *, resumable: bool) -> None:
    """Show the progress of writing `count` slices.

    Raises
    ------
    Interrupted
        After Ctrl-C; the message says whether the slices written so far are kept, as they are if `resumable`.
    """
    done = 0
    try:
        with interruptible(slices) as watched, _progress_bar("slice {task.completed}/{task.total}") as bar:
            task = bar.add_task(title, total=count)
            for i, (_, done) in enumerate(watched):
                if done > 1 and i == 0:
                    console.print(f"note: going on after {counted(done - 1, 'slice')} that an earlier run had written")
                bar.update(task, completed=done)
    except (Interrupted, KeyboardInterrupt):
        kept = f"{done} of {count} slices are kept, and the same command goes on" if resumable and done else ""
        raise Interrupted(f"stopped: {kept or 'nothing was written'}.") from None
    except KDUNetError as error:
        if not (resumable and done):
            raise
        raise type(error)(f"{error}; {done} of {count} slices are kept for the next run") from error


@contextmanager
def follow_share(title: str) -> Iterator[Callable[[float], None]]:
    """Show the progress of work; yields a function to be called with the share that is done, from 0 to 1."""
    with _progress_bar() as bar:
        task = bar.add_task(title, total=1.0)
        yield lambda share: bar.update(task, completed=share)
