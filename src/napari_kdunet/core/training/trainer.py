"""The training loop: `Trainer.run` reads from top to bottom."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from lightning_fabric import Fabric

from napari_kdunet.core.config.training import TrainConfig
from napari_kdunet.core.data.dataset import Dataset
from napari_kdunet.core.data.patches import Batch
from napari_kdunet.core.data.prefetch import Prefetcher
from napari_kdunet.core.data.teachers import TeacherOutput, teacher_fingerprint
from napari_kdunet.core.devices import precision_notes, training_threads, using_threads
from napari_kdunet.core.errors import DivergedError
from napari_kdunet.core.formatting import counted
from napari_kdunet.core.metrics import MeanCurve
from napari_kdunet.core.networks.layers import training_format
from napari_kdunet.core.networks.model import Model
from napari_kdunet.core.networks.unet import KUNet
from napari_kdunet.core.training import schedule
from napari_kdunet.core.training.checkpoint import Checkpointer, Progress, model_of
from napari_kdunet.core.training.distributed import ProcessGroup
from napari_kdunet.core.training.events import Done, Event, Saved, Started, Stepped, Validated
from napari_kdunet.core.training.initialisation import class_weights, running_average, starting_network
from napari_kdunet.core.training.losses import Losses, distillation_loss
from napari_kdunet.core.volumes.volume import Volume

__all__ = ["Edited", "Trainer"]

Edited = Callable[[], Iterable[int]]

_OWN_VIEWS = 8  # over which the student's answers are averaged where they teach it


class Trainer:
    """One training: its data, network, optimiser, averaged weights and best model.

    Parameters
    ----------
    config : TrainConfig
        Settings; a `DistillConfig` for a distillation.
    data : Dataset
        Training and validation data.
    teacher : Model or Volume, optional
        Network or probability volume that teaches. Without a `DistillConfig` it teaches unlabelled pixels only.
    out : Path, optional
        Where the best model is written.
    start : Model, optional
        Initial weights; the trained model is marked with the same number of views.
    fabric : Fabric
        A launched Fabric; each of its processes trains on its part of every batch.
    resume : bool or None
        Whether to continue from the saved state (errors as in `Checkpointer.restore`); with None no state is kept.
    """

    def __init__(
        self,
        config: TrainConfig,
        data: Dataset,
        teacher: Model | Volume | None,
        out: Path | None,
        start: Model | None,
        fabric: Fabric,
        resume: bool | None = False,
    ) -> None:
        self.config, self.data, self.teacher = config, data, teacher
        self.device = data.sampler.device
        self.fabric, self.group = fabric, ProcessGroup(fabric)
        self.threads, helper_threads = training_threads(config.k, config.threads)
        self.batches = Prefetcher(self._make_batch, helper_threads)
        self.memory_format = training_format(config.k, self.device)
        net: Any = starting_network(config, data.sampler, start)
        self.views = 1 if start is None else start.views
        self.raw_net: KUNet = net.to(self.device, memory_format=self.memory_format)
        self.class_weights = class_weights(config, data.sampler)
        optimizer = torch.optim.AdamW(
            self.raw_net.parameters(),
            lr=config.lr,
            weight_decay=config.weight_decay,
            fused=self.device.type in ("cpu", "cuda"),  # unfused, it is a good part of a tiny network's step
        )
        self.net, self.optimizer = self.fabric.setup(self.raw_net, optimizer)
        self.average = running_average(self.raw_net, config.ema)
        kept = (self.raw_net, self.average, self.optimizer)
        self.checkpoints = Checkpointer(config, out, *kept, self.group, resumable=resume is not None)
        if out is not None and not self.group.rank:
            role = "teacher" if config.teaches_labelled else "start"
            taught = "none" if teacher is None else teacher_fingerprint(teacher)
            self.checkpoints.about = data.fingerprint() | {role: taught}
        self.progress = self.checkpoints.restore() if resume else Progress()
        if self.checkpoints.own is not None:
            self._learn_from(self.checkpoints.own)
        self._is_edited = False  # whether labels have changed since the last state

    @torch.inference_mode(False)  # while it runs, rather than while its consumer does
    def run(self, edited: Edited | None = None) -> Iterator[Event]:
        """Train until the budget or the patience is used up.

        Parameters
        ----------
        edited : callable, optional
            Called before each step; returns the z of the slices of the first volume whose labels have changed.

        Yields
        ------
        Event
            As in `iter_train`. When the generator is closed, it writes the best model and the state to resume from.

        Raises
        ------
        OutputError
            If another process trains to the same file; before the first event.
        """
        with self.checkpoints.locked():
            yield from self._run(edited)

    def _run(self, edited: Edited | None) -> Iterator[Event]:
        try:
            yield self._started()
            while not (reason := self._stop_reason()):
                for z in edited() if edited is not None else ():
                    self.data.read_again(z)
                    self.checkpoints.forget_score()
                    self._is_edited = True
                if not self._validation_is_due:
                    yield self.step()
                else:
                    yield self.validate()
                    if self.checkpoints.out is not None and self.checkpoints.resumable:
                        self.group.on_rank_zero(self._save_state)
                        yield Saved(self.progress.step, self.checkpoints.state_path)
        except GeneratorExit:  # between two steps, so that resuming is exact
            self.group.stop()
            self.checkpoints.save_best()  # first: the state is several times as large, and a disk may be full
            self._save_state()
            raise
        except BaseException:  # perhaps within a step: the state of the last validation is kept
            self.checkpoints.save_best()
            raise
        finally:
            self.batches.close()
        path, best = self.checkpoints.finish(), self.checkpoints.best
        assert best is not None
        score, collapsed = self.checkpoints.iou, self.checkpoints.collapsed
        yield Done(self.progress.step, self.progress.seconds, reason, best, score, collapsed, path)

    def _save_state(self) -> None:
        if self._is_edited and self.checkpoints.about:  # not at each stroke, as it reads all labels
            self.checkpoints.about |= self.data.fingerprint()
        self._is_edited = False
        self.checkpoints.save_state(self.progress)

    def step(self) -> Stepped:
        """Train on one batch.

        Raises
        ------
        DivergedError
            If the loss is not finite; the weights are those before the step.
        """
        with self._active():
            if self.teacher is not None and (begun := self.config.round_of(self._used)) > self.progress.round:
                self.progress.round, self.checkpoints.own = begun, self._averaged()
                self._learn_from(self.checkpoints.own)
            hard, soft = self._loss_weights()
            lr = self.optimizer.param_groups[0]["lr"] = schedule.learning_rate(self.config, self._used)
            begin = time.perf_counter()
            batch = self.batches.batch(self.progress.step, soft is not None)
            data_seconds = time.perf_counter() - begin
            self.net.train()
            losses = self._losses(batch, hard, soft)
            loss = losses.total.item()
            if not math.isfinite(loss):
                raise self._diverged(f"the loss is {loss}")
            self.optimizer.zero_grad()
            self.fabric.backward(losses.total)
            if self.config.clip:
                self.fabric.clip_gradients(
                    self.net, self.optimizer, max_norm=self.config.clip, error_if_nonfinite=False
                )
            self.optimizer.step()
            self.group.average(self.raw_net.buffers())
            self.average.update_parameters(self.raw_net)
            self.progress.step += 1
        progress = self.progress
        hard_loss, soft_loss = (math.nan if part is None else part.item() for part in (losses.hard, losses.soft))
        return Stepped(progress.step, self._used, progress.seconds, loss, hard_loss, soft_loss, lr, data_seconds)

    def validate(self) -> Validated:
        """Score the averaged network on the validation slices and keep it if it is the best so far.

        Where there are no labels to choose by, the latest is the best.

        Raises
        ------
        DivergedError
            If a weight is not finite, because the gradient of the step before was not.
        """
        config, progress = self.config, self.progress
        with self._active():
            model = self._averaged()
            curve = self.group.on_rank_zero(lambda: self._score(model))
            threshold = config.threshold or curve.best_threshold()
            iou = curve.iou(threshold)
        self._agree_on_seconds()
        while self._validation_is_due:  # one stands for all that are due, those that fell due during it too
            progress.validated += 1
        model = replace(model, threshold=threshold, summary=self._summary(curve, threshold))
        better = self.checkpoints.update_best(model, iou, curve.collapsed, self.data.has_truth)
        progress.stale = 0 if better else progress.stale + 1
        ious = tuple(each.iou(threshold) for each in curve.curves)
        return Validated(progress.step, progress.seconds, curve.ce, iou, threshold, better, model, ious)

    def _averaged(self) -> Model:
        """Return the network as it is now, with averaged weights; errors as in `validate`."""
        model = model_of(copy.deepcopy(self.average.module if self.config.ema else self.raw_net), self.config)
        if not all(value.isfinite().all() for value in model.net.state_dict().values()):
            raise self._diverged("a weight is no longer finite")
        return model

    def _learn_from(self, student: Model) -> None:
        """Let what the student says now teach it from here on, in place of the teacher (`DistillConfig.rounds`)."""
        self.batches.forget()
        device, threads = self.device.type, self.batches.threads
        self.data.sampler.teach(lambda raw: TeacherOutput(student, raw, device, threads, _OWN_VIEWS))

    def _score(self, model: Model) -> MeanCurve:
        """Score a model on the validation slices of each volume."""
        validations, config = self.data.validations, self.config
        return MeanCurve(tuple(each.score(model, self.device.type, config.threads) for each in validations))

    @property
    def _used(self) -> float:
        """Share of the budget that is used up."""
        return schedule.budget_used(self.config, self.progress.step, self.progress.seconds)

    @property
    def _validation_is_due(self) -> bool:
        return schedule.validation_is_due(self.config, self._used, self.progress.validated)

    def _stop_reason(self) -> str:
        """Return why to stop now, or ""; raise `TrainingError` on the other ranks if rank 0 has stopped."""
        self._agree_on_seconds()
        return schedule.stop_reason(self.config, self._used, self.progress.validated, self.progress.stale)

    def _agree_on_seconds(self) -> None:
        """Set the active seconds to those of rank 0, so that all processes decide alike."""
        with self.group.connected():
            self.progress.seconds = self.group.on_rank_zero(lambda: self.progress.seconds)

    @contextmanager
    def _active(self) -> Iterator[None]:
        """Count the time in the block as active; the time between events is the consumer's."""
        begin = time.perf_counter()
        with using_threads(self.threads), self.group.connected():
            yield
        self.progress.seconds += time.perf_counter() - begin

    def _loss_weights(self) -> tuple[float | None, float | None]:
        """Return `TrainConfig.loss_weights`, with None for a loss whose source (labels or teacher) is missing."""
        if self.teacher is None:
            return 1.0, None
        hard, soft = self.config.loss_weights(self._used)
        return (hard if self.data.labelled_slices else None), soft

    def _losses(self, batch: Batch, hard: float | None, soft: float | None) -> Losses:
        inside = batch.inside
        if soft is not None and not self.config.teaches_labelled:
            unlabelled = (batch.target.sum(dim=1) < 0.5).float()
            inside = unlabelled if inside is None else inside * unlabelled
        return distillation_loss(
            self.net(batch.image.contiguous(memory_format=self.memory_format)).float(),
            None if hard is None else batch.target,
            batch.teacher_logits,
            tau=self.config.temperature,
            lam=1.0 if soft is None else soft,
            class_weights=self.class_weights,
            dice=self.config.dice,
            inside=inside,
            confidence=self.config.confidence_power,
            total=self.group.total,
        )

    def _make_batch(self, step: int, teacher: bool) -> Batch:
        sampler = self.data.sampler
        share = self.config.unlabelled_patches(len(sampler.labelled), len(sampler.unlabelled)) if teacher else 0.0
        return sampler.batch(step, share, teacher=teacher, rank=self.group.rank)

    def _diverged(self, what: str) -> DivergedError:
        return DivergedError(
            f"training diverged after {counted(self.progress.step, 'step')}: {what}. "
            f"Lower lr (now {self.config.lr:g}) or tau.",
            self.checkpoints.best,
        )

    def _started(self) -> Started:
        data = self.data
        return Started(
            parameters=self.raw_net.parameter_count,
            device=str(self.device),
            step=self.progress.step,
            labelled_slices=data.labelled_slices,
            unlabelled_slices=data.unlabelled_slices,
            val_slices=data.val_slices,
            validated_on=data.validated_on,
            prior_ce=fmean(validation.prior_ce() for validation in data.validations),
            notes=(*data.notes, *precision_notes(self.config.precision, self.device, self.config.k)),
            val_volumes=tuple(validation.raw.name for validation in data.validations),
            has_truth=data.has_truth,
        )

    def _summary(self, curve: MeanCurve, threshold: float) -> dict[str, Any]:
        """Return how the model was trained, for its file's metadata."""
        data, teacher = self.data, self.teacher
        scores = {**curve.summary(threshold), "step": self.progress.step}
        summary: dict[str, Any] = {
            "settings": self.config.to_dict(),
            "labelled_slices": list(data.labelled_slices),
            "unlabelled_slices": data.unlabelled_slices,
            "validation": {"on": data.validated_on, "slices": list(data.val_slices), **scores},
            "seconds": round(self.progress.seconds, 1),
        }
        if self.views > 1:
            summary["views"] = self.views
        if self.group.size > 1:
            summary["processes"] = self.group.size
        if isinstance(teacher, Model):
            context = {"context": teacher.context} if teacher.context else {}
            summary["teacher" if self.config.teaches_labelled else "kept"] = {
                "parameters": teacher.parameter_count,
                "pixel_size": teacher.pixel_size,
                **context,
            }
        elif teacher is not None:
            summary["teacher"] = {"probability": teacher.name}
        return summary
