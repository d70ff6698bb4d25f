"""The parts of the one training loop: its budget, a step, a validation."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric

from napari_kdunet.core.config import DistillConfig, TrainConfig
from napari_kdunet.core.data.dataset import Dataset
from napari_kdunet.core.data.patches import Batch
from napari_kdunet.core.data.prefetch import BatchMaker
from napari_kdunet.core.devices import precision_notes, training_threads, using_threads
from napari_kdunet.core.errors import DivergedError
from napari_kdunet.core.networks.layers import training_format
from napari_kdunet.core.networks.model import Model
from napari_kdunet.core.networks.unet import KUNet
from napari_kdunet.core.training.checkpoint import Keeper, model_of
from napari_kdunet.core.training.distributed import Team
from napari_kdunet.core.training.events import Done, Started, Stepped, Validated
from napari_kdunet.core.training.initialisation import class_weights, running_average, starting_network
from napari_kdunet.core.training.losses import distillation_loss
from napari_kdunet.core.volumes.volume import Volume

__all__ = ["Fit"]


class Fit:
    """One training: its network, optimiser, averaged weights and best model.

    Parameters
    ----------
    config : TrainConfig
        Settings; a `DistillConfig` where there is a teacher.
    data : Dataset
        What to learn from and to be judged by.
    teacher : Model or Volume, optional
        Who teaches.
    out : Path, optional
        Where the best model goes.
    start : Model, optional
        Where to start from.
    fabric : Fabric
        Launched; where it has several processes, each fits its part of every batch.
    """

    def __init__(
        self,
        config: TrainConfig,
        data: Dataset,
        teacher: Model | Volume | None,
        out: Path | None,
        start: Model | None,
        fabric: Fabric,
    ) -> None:
        self.config, self.data, self.teacher = config, data, teacher
        self.device = data.pool.device
        self.steps, self.seconds = 0, 0.0
        self.validations_done, self.stale = 0, 0
        self.fabric, self.team = fabric, Team(fabric)
        self.threads, helper_threads = training_threads(config.k, config.threads)
        self.batches = BatchMaker(self._make_batch, helper_threads)
        self.memory_format = training_format(config.k, self.device)
        net: Any = starting_network(config, data.pool, start)
        self.raw_net: KUNet = net.to(self.device, memory_format=self.memory_format)
        self.class_weights = class_weights(config, data.pool)
        optimizer = torch.optim.AdamW(
            self.raw_net.parameters(),
            lr=config.lr,
            weight_decay=config.weight_decay,
            fused=self.device.type in ("cpu", "cuda"),  # for tiny networks the plain one is a good part of a step
        )
        self.net, self.optimizer = self.fabric.setup(self.raw_net, optimizer)
        self.average = running_average(self.raw_net, config.ema)
        self.kept = Keeper(config, out, self.raw_net, self.average, self.optimizer, self.team)

    def started(self) -> Started:
        """What is about to be done."""
        data = self.data
        return Started(
            parameters=self.raw_net.parameter_count,
            device=str(self.device),
            step=self.steps,
            labelled_slices=data.labelled_slices,
            unlabelled_slices=data.unlabelled_slices,
            val_slices=data.validation.slices,
            validated_on=data.validation.kind,
            prior_ce=data.validation.prior_ce(),
            notes=(*data.notes, *precision_notes(self.config.precision, self.device)),
        )

    # the budget

    @property
    def fraction(self) -> float:
        """Share of the budget that is used up."""
        steps, seconds = self.config.budget
        return min(1.0, self.steps / steps if steps else self.seconds / (seconds or 1.0))

    def goes_on(self) -> bool:
        """Whether there is more to do, by the first process's clock; `TrainingError` in the others if it stopped."""
        with self.team.connected():
            self.seconds = self.team.first(lambda: self.seconds)
        return not self.reason

    @property
    def reason(self) -> str:
        """Why to stop now, or an empty string."""
        if self.config.patience and self.stale >= self.config.patience:
            return "patience"
        return "budget" if self.fraction >= 1 and not self.validation_is_due else ""

    @property
    def validation_is_due(self) -> bool:
        """Whether the next of the validations, evenly spaced over the budget, is due."""
        return self.fraction >= min(1.0, (self.validations_done + 1) / self.config.validations) and (
            self.validations_done < self.config.validations
        )

    @contextmanager
    def _active(self) -> Iterator[None]:
        """Count the time inside; time between events is the consumer's."""
        begin = time.perf_counter()
        with using_threads(self.threads), self.team.connected():
            yield
        self.seconds += time.perf_counter() - begin

    # a step

    def read_again(self, slices: Iterable[int]) -> None:
        """Take these slices as they are labelled by now; what was best by other labels gives way to what comes next."""
        for z in slices:
            self.data.read_again(z)
            self.kept.forget_score()

    @property
    def lr(self) -> float:
        """Learning rate now: up linearly, down along a cosine."""
        c, at = self.config, self.fraction
        if c.schedule == "constant":
            return c.lr
        if at < c.warmup:
            return c.lr * max(at / c.warmup, 0.04)
        return c.lr * max(0.5 * (1 + math.cos(math.pi * (at - c.warmup) / (1 - c.warmup))), 1e-3)

    @property
    def _phase(self) -> tuple[bool, bool]:
        """Whether the labels and whether the teacher count now."""
        c = self.config
        if self.teacher is None or not isinstance(c, DistillConfig):
            return True, False
        if c.mode == "sequential":
            return self.fraction >= c.soft_share, self.fraction < c.soft_share
        return c.mode == "mixed" and bool(self.data.labelled_slices), True

    def step(self) -> Stepped:
        """Train on one batch.

        Raises
        ------
        DivergedError
            If the loss is not finite; the weights are those before the step.
        """
        with self._active():
            hard, soft = self._phase
            lr = self.optimizer.param_groups[0]["lr"] = self.lr
            begin = time.perf_counter()
            batch = self.batches.batch(self.steps, soft)
            data_seconds = time.perf_counter() - begin
            self.net.train()
            losses = distillation_loss(
                self.net(batch.image.contiguous(memory_format=self.memory_format)).float(),
                batch.target if hard else None,
                batch.taught,
                tau=getattr(self.config, "tau", 1.0),
                lam=getattr(self.config, "lam", 1.0),
                class_weights=self.class_weights,
                dice=self.config.dice,
                total=self.team.total,
            )
            total = losses.total.item()
            if not math.isfinite(total):
                raise self._diverged(f"the loss is {total}")
            self.optimizer.zero_grad()
            self.fabric.backward(losses.total)
            if self.config.clip:
                self.fabric.clip_gradients(
                    self.net, self.optimizer, max_norm=self.config.clip, error_if_nonfinite=False
                )
            self.optimizer.step()
            self.team.average(self.raw_net.buffers())
            self.average.update_parameters(self.raw_net)
            self.steps += 1
        hard_part, soft_part = (math.nan if part is None else part.item() for part in losses[1:])
        return Stepped(self.steps, self.fraction, self.seconds, total, hard_part, soft_part, lr, data_seconds)

    def _diverged(self, what: str) -> DivergedError:
        message = f"training diverged after {self.steps} steps: {what}. Lower lr (now {self.config.lr:g}) or tau."
        return DivergedError(message, self.best)

    def _make_batch(self, step: int, soft: bool) -> Batch:
        return self.data.pool.batch(step, self._unlabelled_share(soft), taught=soft, rank=self.team.rank)

    def _unlabelled_share(self, soft: bool) -> float:
        """Labels alone need labelled patches alone; the teacher alone needs both kinds as they come."""
        if not soft or not isinstance(self.config, DistillConfig):
            return 0.0
        if self.config.mode == "mixed":
            return self.config.unlabelled_share
        pool = self.data.pool
        return len(pool.unlabelled) / (len(pool.labelled) + len(pool.unlabelled))

    # a validation

    def validate(self) -> Validated:
        """Score the averaged network on the validation slices and keep it if it is the best so far.

        Raises
        ------
        DivergedError
            If a weight is not finite: the gradient of the step before was not.
        """
        with self._active():
            model = model_of(copy.deepcopy(self.average.module if self.config.ema else self.raw_net), self.config)
            if not all(value.isfinite().all() for value in model.net.state_dict().values()):
                raise self._diverged("a weight is no longer finite")
            curve = self.team.first(lambda: self.data.validation.score(model, self.device.type, self.config.threads))
            threshold = self.config.threshold or curve.best_threshold()
            iou = curve.iou(threshold)
            while self.validation_is_due:  # one does for all that have fallen due: a step can be a large share
                self.validations_done += 1
        scores = {"iou": iou, "ce": curve.ce, "prior_ce": curve.prior_ce, "step": self.steps}
        model = replace(model, threshold=threshold, summary=self._summary(scores))
        better = self.kept.offer(model, iou, curve.collapsed)
        self.stale = 0 if better else self.stale + 1
        return Validated(self.steps, self.seconds, curve.ce, iou, threshold, curve.iou(0.5), better, model)

    def _summary(self, scores: dict[str, Any]) -> dict[str, Any]:
        data, teacher = self.data, self.teacher
        summary: dict[str, Any] = {
            "settings": self.config.to_dict(),
            "labelled_slices": list(data.labelled_slices),
            "unlabelled_slices": data.unlabelled_slices,
            "validation": {"on": data.validation.kind, "slices": list(data.validation.slices), **scores},
            "seconds": round(self.seconds, 1),
        }
        if self.team.size > 1:
            summary["processes"] = self.team.size
        if isinstance(teacher, Model):
            summary["teacher"] = {"parameters": teacher.parameter_count, "pixel_size": teacher.pixel_size}
        elif teacher is not None:
            summary["teacher"] = {"probability": teacher.name}
        return summary

    # what is kept

    @property
    def best(self) -> Model | None:
        """The best model so far."""
        return self.kept.best

    def save_state(self) -> None:
        """Write the state to resume from, if anything is to be written."""
        self.kept.save_state(step=self.steps, seconds=self.seconds, validated=self.validations_done, stale=self.stale)

    def restore(self) -> None:
        """Go on from the saved state; errors as in `State.load`."""
        state = self.kept.restore()
        self.steps, self.seconds = state.step, state.seconds
        self.validations_done, self.stale = state.validated, state.stale

    def finish(self) -> Done:
        """Write the best model, and tell of it."""
        assert self.best is not None
        path = self.kept.finish()
        return Done(self.steps, self.seconds, self.reason, self.best, self.kept.iou, self.kept.collapsed, path)
