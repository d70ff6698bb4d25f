"""What a training keeps: its best model, and the state between two steps from which it resumes exactly."""

from __future__ import annotations

import copy
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.optim.swa_utils import AveragedModel

from napari_kdunet.core.config import TrainConfig
from napari_kdunet.core.errors import ConfigError, ModelError
from napari_kdunet.core.networks.model import Model, load_tensors, save_tensors
from napari_kdunet.core.networks.unet import KUNet
from napari_kdunet.core.training.distributed import ProcessGroup

__all__ = ["Checkpointer", "Progress", "model_of", "other_settings", "resume_path"]

#: Settings that say where a training runs and not what it does: they may change when it is resumed.
_MAY_CHANGE = {"device", "threads", "memory", "patience"}


def resume_path(out: Path) -> Path:
    """Where the state of the training that writes `out` is kept: ``NAME.resume.safetensors``."""
    return out.with_suffix(".resume.safetensors")


def model_of(net: torch.nn.Module, config: TrainConfig, **more: Any) -> Model:
    """The model of a network that is trained with these settings."""
    classes = config.classes
    names = Model.class_names if classes == 2 else ("background", *(f"class {i}" for i in range(1, classes)))
    return Model(net, config.pixel_size, class_names=names, **more)


@dataclass
class Progress:
    """How far a training is."""

    step: int = 0
    """Steps done."""
    seconds: float = 0.0
    """Active seconds, pauses left out."""
    validated: int = 0
    """Validations done of those planned over the budget."""
    stale: int = 0
    """Validations since the best one."""


class Checkpointer:
    """The best model of a training, and the files of that model and of the state to resume from.

    Parameters
    ----------
    config : TrainConfig
        The training's settings.
    out : Path or None
        Where the best model goes; the state goes beside it. None writes nothing.
    net, average, optimizer
        The network, the running average of its weights and the optimiser, saved and restored as a whole.
    group : ProcessGroup
        Only its rank 0 writes.
    """

    def __init__(
        self,
        config: TrainConfig,
        out: Path | None,
        net: KUNet,
        average: AveragedModel,
        optimizer: torch.optim.Optimizer,
        group: ProcessGroup,
    ) -> None:
        self.config, self.out, self.group = config, out, group
        self._settings = {**config.to_dict(), "processes": group.size}
        self.net, self.average, self.optimizer = net, average, optimizer
        self.best: Model | None = None
        self.forget_score()

    def forget_score(self) -> None:
        """Let the next validation be the best so far: the labels that the best model was scored on have changed."""
        self.iou, self.collapsed = -1.0, True

    def update_best(self, model: Model, iou: float, collapsed: bool) -> bool:
        """Keep a model if it is the best so far, and return whether it is; a collapsed one is worse than any other."""
        better = self.best is None or (not collapsed, iou) > (not self.collapsed, self.iou)
        if better:
            self.best, self.iou, self.collapsed = model, iou, collapsed
        return better

    @property
    def state_path(self) -> Path:
        """Where the state to resume from goes."""
        assert self.out is not None
        return resume_path(self.out)

    def save_state(self, progress: Progress) -> None:
        """Write the state to resume from, if anything is to be written."""
        if self.out is None or self.group.rank:
            return
        best: dict[str, Any] = {"iou": self.iou, "collapsed": self.collapsed}
        if self.best is not None:
            best |= {"threshold": self.best.threshold, "summary": self.best.summary}
        tensors = {
            "net": self.net.state_dict(),
            "ema": self.average.state_dict(),
            "best": {} if self.best is None else self.best.net.state_dict(),
            "optimizer": _optimizer_tensors(self.optimizer),
        }
        _State(self._settings, progress, best, tensors).save(self.state_path)

    def restore(self) -> Progress:
        """Load the state that was saved into network, average, optimiser and best model.

        Raises
        ------
        ModelError, ConfigError
            If there is no state, it is damaged, or it was made with other settings.
        """
        if self.out is None:
            raise ConfigError("there is nothing to resume from without the path of the model: name it.")
        state = self.group.on_rank_zero(lambda: _State.load(self.state_path, self._settings))
        self.net.load_state_dict(state.tensors["net"])
        self.average.load_state_dict(state.tensors["ema"])
        _restore_optimizer(self.optimizer, state.tensors["optimizer"])
        self.iou, self.collapsed = state.best["iou"], state.best["collapsed"]
        if state.tensors["best"]:
            net = copy.deepcopy(self.net)
            net.load_state_dict(state.tensors["best"])
            threshold, summary = state.best["threshold"], state.best["summary"]
            self.best = model_of(net, self.config, threshold=threshold, summary=summary)
        return state.progress

    def save_best(self) -> Path | None:
        """Write the best model to `out`, unless there is none or it collapsed."""
        if self.out is None or self.group.rank or self.best is None or self.collapsed:
            return None
        return self.best.save(self.out)

    def finish(self) -> Path | None:
        """Write the best model and, once that stands, remove the state."""
        path = self.save_best()
        if path is not None:
            self.state_path.unlink(missing_ok=True)
        return path


@dataclass
class _State:
    """The state of a training between two steps, as one ``.safetensors`` file.

    The batch of a step is a function of seed and step, and the learning rate one of the used share of the budget, so
    neither a random state nor a schedule is kept.
    """

    settings: dict[str, Any]
    """Those of the `TrainConfig`, and the number of `processes`."""
    progress: Progress
    best: dict[str, Any]
    """Score of the best model, and its threshold and summary once there is one."""
    tensors: dict[str, dict[str, Tensor]] = field(repr=False)
    """``net``, ``ema``, ``best`` (empty before the first validation) and ``optimizer``."""

    def save(self, path: Path) -> None:
        """Write it, whole or not at all."""
        flat = {f"{group}/{name}": t.contiguous() for group, ts in self.tensors.items() for name, t in ts.items()}
        metadata = {"settings": self.settings, "best": self.best, **asdict(self.progress)}
        save_tensors(path, flat, {"resume": 1, **metadata})

    @classmethod
    def load(cls, path: Path, settings: dict[str, Any]) -> _State:
        """Read the state and check that it is one of the same training; errors as in `Checkpointer.restore`."""
        flat, metadata = load_tensors(path)
        if metadata.pop("resume", None) != 1:
            raise ModelError(f"{path} is a model, not the state of a training: name its .resume.safetensors file.")
        tensors: dict[str, dict[str, Tensor]] = {"net": {}, "ema": {}, "best": {}, "optimizer": {}}
        for name, value in flat.items():
            group, _, rest = name.partition("/")
            tensors[group][rest] = value
        before, best = metadata.pop("settings"), metadata.pop("best")
        other = other_settings(before, settings)
        if other:
            raise ConfigError(f"{path} was made with other settings: {other}. Give the same, or start anew.")
        return cls(before, Progress(**metadata), best, tensors)


def other_settings(before: dict[str, Any], now: dict[str, Any]) -> str:
    """In which settings that matter two trainings differ, e.g. ``steps 100 (now 200)``; empty where in none."""
    other = [name for name in before | now if before.get(name) != now.get(name) and name not in _MAY_CHANGE]
    return ", ".join(f"{name} {before.get(name)} (now {now.get(name)})" for name in other)


def _optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimiser's state, flat, each tensor named ``parameter/quantity``."""
    state = optimizer.state_dict()["state"]
    return {f"{i}/{name}": torch.as_tensor(value) for i, values in state.items() for name, value in values.items()}


def _restore_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """The inverse of `_optimizer_tensors`; each moment gets its parameter's memory format, as fused ones expect."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        i, _, quantity = name.partition("/")
        like = parameters[int(i)].detach()
        state.setdefault(int(i), {})[quantity] = (
            torch.empty_like(like).copy_(value) if value.shape == like.shape else value
        )
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
