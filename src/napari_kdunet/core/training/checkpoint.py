"""What is kept of a training: its best model, and the state to resume from."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from torch.optim.swa_utils import AveragedModel

from napari_kdunet.core.config import TrainConfig
from napari_kdunet.core.errors import ConfigError
from napari_kdunet.core.networks.model import Model
from napari_kdunet.core.networks.unet import KUNet
from napari_kdunet.core.training.distributed import Team
from napari_kdunet.core.training.resume import State, optimizer_tensors, restore_optimizer, resume_path

__all__ = ["Keeper", "model_of"]


def model_of(net: torch.nn.Module, config: TrainConfig, **more: Any) -> Model:
    """The model of a network that is trained with these settings."""
    classes = config.classes
    names = Model.class_names if classes == 2 else ("background", *(f"class {i}" for i in range(1, classes)))
    return Model(net, config.pixel_size, class_names=names, **more)


class Keeper:
    """The best model of a training, and the files of that model and of the state.

    Parameters
    ----------
    config : TrainConfig
        The training's settings.
    out : Path or None
        Where the best model goes; the state goes beside it.
    net, average, optimizer
        What trains, and is saved and restored as a whole.
    team : Team
        Of its processes only the first writes.
    """

    def __init__(
        self,
        config: TrainConfig,
        out: Path | None,
        net: KUNet,
        average: AveragedModel,
        optimizer: torch.optim.Optimizer,
        team: Team,
    ) -> None:
        self.config, self.out, self.team = config, out, team
        self._settings = {**config.to_dict(), "processes": team.size}
        self.net, self.average, self.optimizer = net, average, optimizer
        self.best: Model | None = None
        self.forget_score()

    def forget_score(self) -> None:
        """Let whatever comes next be better than the best so far, which was judged by other labels."""
        self.iou, self.collapsed = -1.0, True

    def offer(self, model: Model, iou: float, collapsed: bool) -> bool:
        """Keep a model if it is the best so far, and say whether it is."""
        better = self.best is None or (not collapsed, iou) > (not self.collapsed, self.iou)
        if better:
            self.best, self.iou, self.collapsed = model, iou, collapsed
        return better

    @property
    def state_path(self) -> Path:
        """Where the state to resume from goes."""
        assert self.out is not None
        return resume_path(self.out)

    def save_state(self, *, step: int, seconds: float, validated: int, stale: int) -> None:
        """Write the state to resume from, if anything is to be written."""
        if self.out is None or self.team.rank:
            return
        about: dict[str, Any] = {"iou": self.iou, "collapsed": self.collapsed}
        if self.best is not None:
            about |= {"threshold": self.best.threshold, "summary": self.best.summary}
        tensors = {
            "net": self.net.state_dict(),
            "ema": self.average.state_dict(),
            "best": {} if self.best is None else self.best.net.state_dict(),
            "optimizer": optimizer_tensors(self.optimizer),
        }
        State(self._settings, step, seconds, tensors, about, validated, stale).save(self.state_path)

    def restore(self) -> State:
        """Take up the state that was saved, and give it for the counts in it; errors as in `State.load`."""
        if self.out is None:
            raise ConfigError("there is nothing to resume from without the path of the model: name it.")
        state = self.team.first(lambda: State.load(self.state_path, self._settings))
        self.net.load_state_dict(state.tensors["net"])
        self.average.load_state_dict(state.tensors["ema"])
        restore_optimizer(self.optimizer, state.tensors["optimizer"])
        self.iou, self.collapsed = state.best["iou"], state.best["collapsed"]
        if state.tensors["best"]:
            net = copy.deepcopy(self.net)
            net.load_state_dict(state.tensors["best"])
            threshold, summary = state.best["threshold"], state.best["summary"]
            self.best = model_of(net, self.config, threshold=threshold, summary=summary)
        return state

    def save_best(self) -> Path | None:
        """Write the best model to where it was asked for, unless there is none or it collapsed."""
        if self.out is None or self.team.rank or self.best is None or self.collapsed:
            return None
        return self.best.save(self.out)

    def finish(self) -> Path | None:
        """Write the best model; the state is no longer needed once that stands."""
        path = self.save_best()
        if path is not None:
            self.state_path.unlink(missing_ok=True)
        return path
