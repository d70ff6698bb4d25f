"""Training and distillation: one loop, one stream of events, driven by its consumer.

`iter_train` and `iter_distill` are generators. Pausing is not asking for the next event; stopping is `close()`, which
writes the best model and the state to resume from. `train` and `distill` are the blocking calls on top.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from lightning_fabric import Fabric

from napari_kdunet.core.config import DistillConfig, TrainConfig
from napari_kdunet.core.data.dataset import prepare
from napari_kdunet.core.data.teachers import as_teacher
from napari_kdunet.core.errors import CollapsedError, LabelsError
from napari_kdunet.core.networks.model import Model
from napari_kdunet.core.training.distributed import alone
from napari_kdunet.core.training.events import Done, Event, Saved
from napari_kdunet.core.training.trainer import Fit

__all__ = ["distill", "iter_distill", "iter_train", "train"]

Pair = tuple[Any, Any]
Edited = Callable[[], Iterable[int]]


def iter_train(
    raw: Any,
    labels: Any,
    config: TrainConfig | None = None,
    *,
    val: Pair | None = None,
    out: str | Path | None = None,
    resume: bool = False,
    start: Model | None = None,
    edited: Edited | None = None,
    fabric: Fabric | None = None,
) -> Iterator[Event]:
    """Train a k-Unet from labels, event by event.

    Parameters
    ----------
    raw, labels : volume
        Anything that `open_volume` takes, ZYX (2-D is one slice). Labels: 0 = background, above = foreground (or the
        class, with more than two classes), and `config.ignore` where nobody has looked.
    config : TrainConfig, optional
        Settings.
    val : pair of volumes, optional
        Raw and labels to validate on; else a contiguous share of the labelled slices is held out.
    out : path, optional
        Where the best model is written at the end or when closed; the state to resume from is kept beside it as
        ``NAME.resume.safetensors`` until training is done.
    resume : bool
        Go on from that state; the weights are those of never having stopped.
    start : Model, optional
        Go on training this model rather than a fresh network (its form must be that of `config`).
    edited : callable, optional
        Asked before each step for the z of the slices whose labels have changed since: they are read again, so that
        training can go on while somebody paints; in one process.
    fabric : Fabric, optional
        Launched: Lightning Fabric's several processes, in each of which this is called. Each trains on its own
        `config.batch` patches of a step, as one process would on all of them, and only the first writes. Its device and
        precision count in place of those of the settings.

    Yields
    ------
    Event
        `Started`, then `Stepped`, `Validated`, `Saved`, at last `Done`.

    Raises
    ------
    InputError
        If something cannot be used; before the first event.
    DivergedError
        If the loss is no longer finite; the last good model is in its `model`, and at `out`.
    TrainingError
        If another of several processes has ended; in all but the first, if that was stopped.
    """
    config = config or TrainConfig()
    fabric = fabric or alone(config)
    data = prepare(raw, labels, config, fabric.device, val=val, processes=fabric.world_size)
    return _run(Fit(config, data, None, _as_path(out), start, fabric), resume, edited)


def iter_distill(
    teacher: Any,
    raw: Any,
    labels: Any | None = None,
    config: DistillConfig | None = None,
    *,
    unlabelled: Sequence[Any] = (),
    val: Pair | None = None,
    out: str | Path | None = None,
    resume: bool = False,
    start: Model | None = None,
    fabric: Fabric | None = None,
) -> Iterator[Event]:
    """Distil a teacher into a k-Unet, event by event (paper, "The Distillation Procedure").

    The teacher is asked once a slice, and what it says is warped with the student's patches. Slices without labels,
    and `unlabelled` volumes, are learnt from through the teacher alone. Without labels the student learns softly and
    is validated against the teacher.

    Parameters
    ----------
    teacher : Model, torch.nn.Module, path, or volume
        As in `as_teacher`: a model of ours, anything that gives logits, or a probability volume of `raw`'s shape.
    raw, labels, config, val, out, resume, start, fabric
        As in `iter_train`; labels may be None.
    unlabelled : sequence of volumes
        More raw volumes.

    Yields
    ------
    Event
        As `iter_train`.

    Raises
    ------
    InputError, DivergedError
        As `iter_train`.
    """
    config = config or DistillConfig()
    if labels is None and config.mode == "sequential":
        raise LabelsError("a sequential distillation ends on labels, but none were given: give labels or choose soft.")
    guide = as_teacher(teacher, config)
    fabric = fabric or alone(config)
    more: dict[str, Any] = {"teacher": guide, "unlabelled": unlabelled, "processes": fabric.world_size}
    data = prepare(raw, labels, config, fabric.device, val=val, **more)
    return _run(Fit(config, data, guide, _as_path(out), start, fabric), resume)


def train(
    raw: Any,
    labels: Any,
    config: TrainConfig | None = None,
    *,
    on_event: Callable[[Event], Any] | None = None,
    **more: Any,
) -> Model:
    """Train a k-Unet and return the best model; arguments as in `iter_train`, each event is told to `on_event`.

    Raises
    ------
    InputError, DivergedError
        As `iter_train`.
    CollapsedError
        If even the best model gives nearly the same output everywhere; it is in the error's `model`.
    """
    return _last(iter_train(raw, labels, config, **more), on_event)


def distill(
    teacher: Any,
    raw: Any,
    labels: Any | None = None,
    config: DistillConfig | None = None,
    *,
    on_event: Callable[[Event], Any] | None = None,
    **more: Any,
) -> Model:
    """Distil a teacher and return the best student; arguments as in `iter_distill`, errors as in `train`."""
    return _last(iter_distill(teacher, raw, labels, config, **more), on_event)


def _run(fit: Fit, resume: bool, edited: Edited | None = None) -> Iterator[Event]:
    """The loop of all training."""
    if resume:
        fit.restore()
    return _events(fit, edited)


def _events(fit: Fit, edited: Edited | None) -> Iterator[Event]:
    try:
        yield fit.started()
        while fit.goes_on():
            fit.read_again(edited() if edited is not None else ())
            if not fit.validation_is_due:
                yield fit.step()
                continue
            yield fit.validate()
            if fit.kept.out is not None:
                fit.team.first(fit.save_state)
                yield Saved(fit.steps, fit.kept.state_path)
    except GeneratorExit:  # between two steps, so that resuming is exact
        fit.team.stop()
        fit.save_state()
        fit.kept.save_best()
        raise
    except BaseException:  # perhaps within a step: the state of the last validation stands
        fit.kept.save_best()
        raise
    finally:
        fit.batches.close()
    yield fit.finish()


def _last(events: Iterator[Event], on_event: Callable[[Event], Any] | None) -> Model:
    for event in events:
        if on_event is not None:
            on_event(event)
        if isinstance(event, Done):
            if event.collapsed:
                raise CollapsedError(collapsed_message(event), event.model)
            return event.model
    raise AssertionError("a training that ends without Done or an error")


def collapsed_message(event: Done) -> str:
    """What to tell a user whose network collapsed."""
    return (
        f"the network collapsed: after {event.step} steps its output is nearly the same everywhere "
        f"(validation IoU {event.iou:.3f}). Train longer, from another seed, or with bn and more labels."
    )


def _as_path(out: str | Path | None) -> Path | None:
    return None if out is None else Path(out)
