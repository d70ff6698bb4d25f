"""The state of a training between two steps, as one ``.safetensors`` file, from which it goes on exactly."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from napari_kdunet.core.errors import ConfigError, ModelError
from napari_kdunet.core.networks.model import load_tensors, save_tensors

__all__ = ["State", "other_settings", "resume_path"]

#: Settings that say where a training runs and not what it does: they may change when it is resumed.
_MAY_CHANGE = {"device", "threads", "memory", "patience"}


def resume_path(out: Path) -> Path:
    """Where the state of the training that writes `out` is kept: ``NAME.resume.safetensors``."""
    return out.with_suffix(".resume.safetensors")


@dataclass
class State:
    """All that a training needs to go on.

    The batch of a step is a function of seed and step, and the learning rate one of the used share of the budget, so
    neither a random state nor a schedule is kept.
    """

    settings: dict[str, Any]
    """Those of the `TrainConfig`, and the number of `processes`."""
    step: int
    seconds: float
    tensors: dict[str, dict[str, Tensor]]
    """``net``, ``ema``, ``best`` (empty before the first validation) and ``optimizer``."""
    best: dict[str, Any]
    """Score and threshold of the best model; empty before the first validation."""
    validated: int
    stale: int

    def save(self, path: Path) -> None:
        """Write it, whole or not at all."""
        flat = {f"{group}/{name}": t.contiguous() for group, ts in self.tensors.items() for name, t in ts.items()}
        about = {name: value for name, value in vars(self).items() if name != "tensors"}
        save_tensors(path, flat, {"resume": 1, **about})

    @classmethod
    def load(cls, path: Path, settings: dict[str, Any]) -> State:
        """Read the state and check that it is one of the same training.

        Raises
        ------
        ModelError
            If there is none or it is damaged.
        ConfigError
            If it was made with other settings.
        """
        flat, about = load_tensors(path)
        if about.pop("resume", None) != 1:
            raise ModelError(f"{path} is a model, not the state of a training: name its .resume.safetensors file.")
        tensors: dict[str, dict[str, Tensor]] = {"net": {}, "ema": {}, "best": {}, "optimizer": {}}
        for name, value in flat.items():
            group, _, rest = name.partition("/")
            tensors[group][rest] = value
        state = cls(tensors=tensors, **about)
        other = other_settings(state.settings, settings)
        if other:
            raise ConfigError(f"{path} was made with other settings: {other}. Give the same, or start anew.")
        return state


def other_settings(before: dict[str, Any], now: dict[str, Any]) -> str:
    """In which settings that matter two trainings differ, e.g. ``steps 100 (now 200)``; empty where in none."""
    other = [name for name in before | now if before.get(name) != now.get(name) and name not in _MAY_CHANGE]
    return ", ".join(f"{name} {before.get(name)} (now {now.get(name)})" for name in other)


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimiser's state, flat, each tensor named ``parameter/quantity``."""
    state = optimizer.state_dict()["state"]
    return {f"{i}/{name}": torch.as_tensor(value) for i, values in state.items() for name, value in values.items()}


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """The inverse of `optimizer_tensors`; each moment lies in memory as its parameter, as fused optimisers expect."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        i, _, quantity = name.partition("/")
        like = parameters[int(i)].detach()
        state.setdefault(int(i), {})[quantity] = (
            torch.empty_like(like).copy_(value) if value.shape == like.shape else value
        )
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
