"""Training and distillation: one loop, one stream of events, driven by its consumer.

`iter_train` and `iter_distill` return generators. To pause, do not ask for the next event; to stop, call `close()`,
which writes the best model and the state to resume from. `train` and `distill` are the blocking calls on top.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric

from napari_kdunet.core.config.distillation import DistillConfig
from napari_kdunet.core.config.training import TrainConfig
from napari_kdunet.core.data.dataset import Dataset, prepare
from napari_kdunet.core.data.teachers import as_teacher
from napari_kdunet.core.devices import check_default_dtype
from napari_kdunet.core.errors import CollapsedError, LabelsError
from napari_kdunet.core.formatting import counted
from napari_kdunet.core.networks.model import Model, ModelLike, load_model
from napari_kdunet.core.prediction.statistics import with_statistics
from napari_kdunet.core.training.distributed import single_process
from napari_kdunet.core.training.events import Done, Event
from napari_kdunet.core.training.trainer import Edited, Trainer

__all__ = ["distill", "iter_distill", "iter_train", "last_model", "train"]

Pair = tuple[Any, Any]

_STROKES = "little is labelled: the student learns from the teacher alone (mode soft), labels choose the best model."


@torch.inference_mode(False)  # gradients are needed, whatever mode the caller is in
def iter_train(
    raw: Any,
    labels: Any = None,
    config: TrainConfig | None = None,
    *,
    val: Pair | Sequence[Pair] | None = None,
    out: str | Path | None = None,
    resume: bool = False,
    start: ModelLike | None = None,
    keep: bool = True,
    edited: Edited | None = None,
    fabric: Fabric | None = None,
) -> Iterator[Event]:
    """Train a k-Unet from labels, event by event.

    Parameters
    ----------
    raw, labels : volume
        Anything that `open_volume` takes, ZYX (2-D is one slice). Labels: 0 = background, above = foreground (or the
        class, with more than two classes), and `config.ignore` = unlabelled. For several volumes `raw` is a list of
        pairs (raw, labels), and `labels` is left out: each volume has its own voxel size, shape and dtype, patches are
        drawn from them as `config.volume_weights` says, and scores are means over them.
    config : TrainConfig, optional
        Settings.
    val : pair of volumes, or list of pairs, optional
        Raw and labels to validate on; by default a contiguous share of the labelled slices of each volume is held out.
    out : path, optional
        Where the best model is written, at the end or when the generator is closed; the state to resume from is kept
        beside it as ``NAME.resume.safetensors`` until training is done.
    resume : bool
        Continue from that state; the weights are the same as if training had not been stopped.
    start : Model, path or str, optional
        Initial weights instead of a fresh network (its form must be that of `config`). A generalist starts with
        batch normalisation statistics of the volume, if there is only one volume (`adapt_statistics`).
    keep : bool
        Whether `start` teaches the pixels that `config.ignore` leaves unlabelled, as in a distillation, so that strokes
        add to what it knows (Li & Hoiem 2016, arXiv:1606.09282) instead of replacing it. Switch this off to learn
        something else than `start` knows.
    edited : callable, optional
        Called before each step; returns the z of the slices (of the first volume) whose labels have changed since the
        last call. They are read again, so that training can go on while somebody paints. For a single process only.
    fabric : Fabric, optional
        A launched Lightning Fabric, for training in several processes, each of which calls this function. Each process
        trains on its own `config.batch` patches of a step, as one process would on all of them, and only rank 0 writes
        files. Its device and precision replace those of the settings.

    Yields
    ------
    Event
        `Started`, then `Stepped`, `Validated`, `Saved`, at last `Done`.

    Raises
    ------
    InputError
        If an input cannot be used; raised before the first event.
    OutputError
        If `out` cannot be written, or another process trains to it; raised before the first event if known by then.
    DivergedError
        If the loss is no longer finite; the last good model is in its `model`, and at `out`.
    TrainingError
        If another process of this training has ended; on all ranks but 0, if rank 0 was stopped.
    """
    config = config or TrainConfig()
    check_default_dtype()
    fabric = fabric or single_process(config)
    start = None if start is None else load_model(start)
    kept = start if keep and config.ignore is not None else None
    data = prepare(raw, labels, config, fabric.device, val=val, kept=kept, processes=fabric.world_size)
    return Trainer(data.config, data, kept, _as_path(out), _fitted(start, data, config), fabric, resume).run(edited)


@torch.inference_mode(False)
def iter_distill(
    teacher: Any,
    raw: Any,
    labels: Any | None = None,
    config: DistillConfig | None = None,
    *,
    unlabelled: Sequence[Any] = (),
    trust: bool = False,
    val: Pair | Sequence[Pair] | None = None,
    out: str | Path | None = None,
    resume: bool | None = False,
    start: ModelLike | None = None,
    fabric: Fabric | None = None,
) -> Iterator[Event]:
    """Distil a teacher into a k-Unet, event by event (paper, "The Distillation Procedure").

    The teacher predicts each slice once, and its output is augmented together with the student's patches. Slices
    without labels, and `unlabelled` volumes, contribute to the soft loss alone. Without any labels the whole training
    uses the soft loss alone, is validated against the teacher, and keeps its last weights. Teacher and student may each
    see neighbouring slices (`TrainConfig.context`), so the teacher may see more than the student.

    Parameters
    ----------
    teacher : Model, torch.nn.Module, path, or volume
        As in `as_teacher`: a model of ours, anything that gives logits (ONNX files too), or a probability volume of
        `raw`'s shape.
    raw, labels, config, val, out, resume, start, fabric
        As in `iter_train`; labels may be None, also in a pair. With `resume` None no state to resume from is kept.
    unlabelled : sequence of volumes
        More raw volumes, which are trained on with the teacher alone.
    trust : bool
        Allow a teacher that is a TorchScript file. Such a file can run code on this computer, which no other kind can,
        so allow it only if you made the file or trust its maker.

    Yields
    ------
    Event
        As in `iter_train`.

    Raises
    ------
    InputError, OutputError, DivergedError, TrainingError
        As in `iter_train`.
    """
    config = config or DistillConfig()
    check_default_dtype()
    checked = as_teacher(teacher, config, trust=trust)
    fabric = fabric or single_process(config)
    data = prepare(
        raw,
        labels,
        config,
        fabric.device,
        val=val,
        teacher=checked,
        teacher_views=config.teacher_views,
        unlabelled=unlabelled,
        processes=fabric.world_size,
    )
    if config.mode == "sequential" and not data.labelled_slices:
        raise LabelsError("mode sequential ends on labels, but none were given: give labels, or choose mode soft.")
    how = config.settled(data.sampler.sparse)
    if data.labelled_slices and config.mode == "best" and how["mode"] == "soft":
        data = replace(data, notes=(*data.notes, _STROKES))
    settled = replace(data.config, **how)
    return Trainer(settled, data, checked, _as_path(out), _fitted(start, data, config), fabric, resume).run()


def _fitted(start: ModelLike | None, data: Dataset, config: TrainConfig) -> Model | None:
    """Return the start model; a generalist gets statistics of the volume, if there is only one volume."""
    if start is None:
        return None
    start = load_model(start)
    if len(data.volumes) != 1:
        return start
    return with_statistics(start, data.volumes[0].raw, "auto", config.device, config.threads)


def train(
    raw: Any,
    labels: Any = None,
    config: TrainConfig | None = None,
    *,
    on_event: Callable[[Event], Any] | None = None,
    **more: Any,
) -> Model:
    """Train a k-Unet and return the best model; arguments as in `iter_train`, `on_event` is called with each event.

    Raises
    ------
    InputError, OutputError, DivergedError, TrainingError
        As in `iter_train`.
    CollapsedError
        If even the best model gives nearly the same output everywhere; it is in the error's `model`.
    """
    return last_model(iter_train(raw, labels, config, **more), on_event)


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
    return last_model(iter_distill(teacher, raw, labels, config, **more), on_event)


def last_model(events: Iterator[Event], on_event: Callable[[Event], Any] | None) -> Model:
    """Consume the events of a training, hand each to `on_event`, and return the final model; errors as in `train`."""
    for event in events:
        if on_event is not None:
            on_event(event)
        if isinstance(event, Done):
            if event.collapsed:
                raise CollapsedError(collapsed_message(event), event.model)
            return event.model
    raise AssertionError("a training that ends without Done or an error")


def collapsed_message(event: Done) -> str:
    """Return the message for a user whose network collapsed."""
    return (
        f"the network collapsed: after {counted(event.step, 'step')} its output is nearly the same everywhere. "
        "Train longer, from another seed, or with bn and more labels."
    )


def _as_path(out: str | Path | None) -> Path | None:
    return None if out is None else Path(out)
