"""Checkpoints of a training: its best model, and the state between two steps from which it resumes exactly."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Set
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.optim.swa_utils import AveragedModel

from napari_kdunet.core.config.distillation import DistillConfig
from napari_kdunet.core.config.training import TrainConfig
from napari_kdunet.core.errors import ConfigError, ModelError
from napari_kdunet.core.networks.class_names import BOUNDARY_CLASSES
from napari_kdunet.core.networks.model import Model, load_model
from napari_kdunet.core.networks.model_file import DamagedError, TensorFile, save_tensors
from napari_kdunet.core.networks.unet import KUNet
from napari_kdunet.core.training.distributed import ProcessGroup
from napari_kdunet.core.writing.lock import TargetLock

__all__ = ["Checkpointer", "Progress", "model_of", "other_settings", "resume_path"]

_WHERE = frozenset({"device", "threads"})  # settings that say where a training runs and not what it does
_MAY_CHANGE = _WHERE | {"patience"}  # when it is resumed: no step so far depends on them
_DATA = {"images", "labels", "teacher", "start"}  # fingerprints that a state holds beside the settings
_MOST_WORDS = 150  # characters of the list of settings that differ


def resume_path(out: Path) -> Path:
    """Return the path of the resume state of the training that writes `out`: ``NAME.resume.safetensors``."""
    return out.with_suffix(".resume.safetensors")


def model_of(net: torch.nn.Module, config: TrainConfig, **more: Any) -> Model:
    """Return the model of a network that is trained with these settings; `more` are fields of `Model`."""
    names: dict[str, Any] = {"class_names": BOUNDARY_CLASSES} if config.boundary else {}
    return Model(net, config.pixel_size, **names, **more, context_distance=config.context_distance)


@dataclass
class Progress:
    """Progress of a training."""

    step: int = 0
    """Steps done."""
    seconds: float = 0.0
    """Active seconds, pauses left out."""
    validated: int = 0
    """Number of validations done, of those planned over the budget."""
    stale: int = 0
    """Number of validations since the best one."""
    round: int = 0
    """Number of the round, from 0: `DistillConfig.rounds`."""


class Checkpointer:
    """The best model of a training, and the files of that model and of the state to resume from.

    Parameters
    ----------
    config : TrainConfig
        The training's settings.
    out : Path or None
        Path of the best model; the resume state is written beside it. With None nothing is written.
    net, average, optimizer
        The network, the running average of its weights and the optimiser, saved and restored as a whole.
    group : ProcessGroup
        Only its rank 0 writes.
    resumable : bool
        Whether to keep a resume state.

    Attributes
    ----------
    own : Model or None
        The network as it was at the beginning of this round, if it teaches itself (`DistillConfig.rounds`).
    about : dict of str to str
        Fingerprints that are kept in the state: of the ``images``, the ``labels``, and the ``teacher`` or, in training
        from labels, the ``start`` model that is kept ("none" if there is none).
    """

    def __init__(
        self,
        config: TrainConfig,
        out: Path | None,
        net: KUNet,
        average: AveragedModel,
        optimizer: torch.optim.Optimizer,
        group: ProcessGroup,
        resumable: bool = True,
    ) -> None:
        self.config, self.out, self.group, self.resumable = config, out, group, resumable
        self._settings = {**config.to_dict(), "processes": group.size}
        self.net, self.average, self.optimizer = net, average, optimizer
        self.about: dict[str, str] = {}
        self.own: Model | None = None
        self.best: Model | None = None
        self.iou, self.collapsed, self._outdated = -1.0, True, False
        self._lock: TargetLock | None = None

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other processes from training to the same file during the block.

        Raises
        ------
        OutputError
            If another process does so already, on rank 0.
        TrainingError
            On the other ranks, in that case.
        """
        if self.out is None:
            yield
            return
        lock = TargetLock(self.out)
        self.group.on_rank_zero(lock.acquire)
        self._lock = None if self.group.rank else lock
        try:
            yield
        finally:
            if self._lock is not None:
                self._lock.release()
                self._lock = None

    def _check_lock(self) -> None:
        """Raise `OutputError` if another process has considered this one dead and now trains to the same file."""
        if self._lock is not None:
            self._lock.check()

    def forget_score(self) -> None:
        """Let the next validation be the best so far: the labels that the best model was scored on have changed."""
        self._outdated = True

    def update_best(self, model: Model, iou: float, collapsed: bool, by_iou: bool = True) -> bool:
        """Keep a model if it is the best so far, and return whether it is; a collapsed one is worse than any other.

        Without `by_iou` a later model is better than an earlier one, whatever their IoU.
        """
        score, best = (not collapsed, iou), (not self.collapsed, self.iou)
        better = self.best is None or self._outdated or (score > best if by_iou else score[0] >= best[0])
        if better:
            self.best, self.iou, self.collapsed, self._outdated = model, iou, collapsed, False
        return better

    @property
    def state_path(self) -> Path:
        """Path of the resume state."""
        assert self.out is not None
        return resume_path(self.out)

    def save_state(self, progress: Progress) -> None:
        """Write the resume state, if one is to be kept."""
        if self.out is None or self.group.rank or not self.resumable:
            return
        self._check_lock()
        best: dict[str, Any] = {"iou": -1.0 if self._outdated else self.iou, "collapsed": self.collapsed}
        if self.best is not None:
            best |= {"threshold": self.best.threshold, "summary": self.best.summary}
        tensors = {
            "net": self.net.state_dict(),
            "ema": self.average.state_dict(),
            "best": {} if self.best is None else self.best.net.state_dict(),
            "own": {} if self.own is None else self.own.net.state_dict(),
            "optimizer": _optimizer_tensors(self.optimizer),
        }
        _State(self._settings | self.about, progress, best, tensors).save(self.state_path)

    def _like(self, file: TensorFile) -> dict[str, Tensor]:
        """Return tensors with the names, shapes and kinds of a state of this training, for the parts in `file`."""
        weights, parameters = self.net.state_dict(), list(self.net.parameters())
        like = {f"net/{name}": value for name, value in weights.items()}
        like |= {f"ema/{name}": value for name, value in self.average.state_dict().items()}
        parts = {name.partition("/")[0] for name in file.tensors}
        for part in ("best", "own"):
            if part in parts:
                like |= {f"{part}/{name}": value for name, value in weights.items()}
        if "optimizer" in parts:
            for i, parameter in enumerate(parameters):
                moments = {"step": torch.zeros(()), "exp_avg": parameter, "exp_avg_sq": parameter}
                like |= {f"optimizer/{i}/{name}": value for name, value in moments.items()}
        return like

    def restore(self) -> Progress:
        """Load the saved state into network, average, optimiser and best model, and return its progress.

        Raises
        ------
        ModelError, ConfigError
            If there is no state, it is damaged, or it was made with other settings or from other data.
        """
        if self.out is None:
            raise ConfigError("resume needs the path of the model to go on with: give out.")
        state = self.group.on_rank_zero(self._load)
        self.net.load_state_dict(state.tensors["net"])
        self.average.load_state_dict(state.tensors["ema"])
        _restore_optimizer(self.optimizer, state.tensors["optimizer"])
        self.iou, self.collapsed = state.best["iou"], state.best["collapsed"]
        if state.tensors["best"]:
            threshold, summary = state.best["threshold"], state.best["summary"]
            self.best = self._model(state.tensors["best"], threshold=threshold, summary=summary)
        if state.tensors["own"]:
            self.own = self._model(state.tensors["own"])
        return state.progress

    def _model(self, weights: dict[str, Tensor], **more: Any) -> Model:
        net = copy.deepcopy(self.net)
        net.load_state_dict(weights)
        return model_of(net, self.config, **more)

    def _load(self) -> _State:
        """Read the saved state; errors as in `restore`."""
        path = self.state_path
        if not path.is_file():
            raise ModelError(f"there is no {path} to resume from: start anew without --resume.")
        try:
            file = TensorFile.open(path)
            if file.metadata.get("resume") != 1:
                raise ModelError(f"{path} is a model, not the state of a training: give its .resume.safetensors file.")
            return _State.load(file, self._settings | self.about, self._like(file))
        except DamagedError as error:
            best = f"; the best model so far, {self.out}, is still usable" if self._has_model() else ""
            reason = str(error)[:60]
            raise ModelError(f"{path} is damaged ({reason}): start anew without --resume{best}.") from error

    def _has_model(self) -> bool:
        """Return whether there is a usable model at `out`."""
        try:
            return self.out is not None and load_model(self.out) is not None
        except ModelError:
            return False

    def save_best(self) -> Path | None:
        """Write the best model to `out`, unless there is none or it collapsed."""
        if self.out is None or self.group.rank or self.best is None or self.collapsed:
            return None
        self._check_lock()
        return self.best.save(self.out)

    def finish(self) -> Path | None:
        """Write the best model, unless it collapsed, and then remove the state: there is nothing left to resume."""
        path = self.save_best()
        if self.out is not None and not self.group.rank:
            self.state_path.unlink(missing_ok=True)
        return path


@dataclass
class _State:
    """The state of a training between two steps, as one ``.safetensors`` file.

    A batch depends on seed and step alone, and the learning rate on the used share of the budget alone, so neither a
    random state nor a schedule is kept.
    """

    settings: dict[str, Any]
    """Settings of the `TrainConfig`, the number of `processes`, and the fingerprints of data and models."""
    progress: Progress
    best: dict[str, Any]
    """IoU of the best model, whether it collapsed, and its threshold and summary once there is one."""
    tensors: dict[str, dict[str, Tensor]] = field(repr=False)
    """``net``, ``ema``, ``best`` (empty before the first validation), ``own`` (empty in the first round) and
    ``optimizer``."""

    def save(self, path: Path) -> None:
        """Write the state atomically."""
        flat = {f"{group}/{name}": t.contiguous() for group, ts in self.tensors.items() for name, t in ts.items()}
        metadata = {"settings": self.settings, "best": self.best, **asdict(self.progress)}
        save_tensors(path, flat, {"resume": 1, **metadata})

    @classmethod
    def load(cls, file: TensorFile, settings: dict[str, Any], like: dict[str, Tensor]) -> _State:
        """Read the state after checking that it belongs to the same training.

        Raises
        ------
        DamagedError
            If the file is not what `save` writes.
        ConfigError
            If it was made with other settings, from other images or labels, or with another teacher or start model.
        """
        path, metadata = file.path, {"round": 0} | file.metadata  # states of older versions lack it
        before, best = metadata.get("settings"), metadata.get("best")
        if not isinstance(before, dict) or not isinstance(best, dict):
            raise DamagedError("its metadata has no settings or no best score")
        unknown = {name: settings[name] for name in _DATA if name in settings}  # states of older versions lack some
        other = other_settings(unknown | before, settings, _MAY_CHANGE)
        if other:
            file.verify()  # a flipped bit in a setting is damage, and not another setting
            data = set(_changed(unknown | before, settings, _MAY_CHANGE)) <= _DATA
            what = "from other data or models" if data else "with other settings"
            raise ConfigError(f"{path} was made {what}: {other}. Give the same, or start anew.")
        progress = Progress(
            **{spec.name: _number(metadata, spec.name, type(spec.default) is int) for spec in fields(Progress)}
        )
        best |= {"iou": _number(best, "iou", least=-1.0)}
        if not isinstance(best.get("collapsed"), bool):
            raise DamagedError("its metadata does not say whether the best model collapsed")
        file.expect(like)
        has_best = any(name.startswith("best/") for name in like)
        if has_best and not (0 <= _number(best, "threshold") < 1 and isinstance(best.get("summary"), dict)):
            raise DamagedError("its metadata has no threshold or no summary of the best model")
        tensors: dict[str, dict[str, Tensor]] = {"net": {}, "ema": {}, "best": {}, "own": {}, "optimizer": {}}
        for name, value in file.read().items():
            group, _, rest = name.partition("/")
            tensors[group][rest] = value
        return cls(before, progress, best, tensors)


def _number(values: dict[str, Any], name: str, whole: bool = False, least: float = 0.0) -> Any:
    """Return the finite number `name`, at least `least`, from JSON values; raise `DamagedError` if it is not one."""
    value: Any = values.get(name)
    if type(value) not in ((int,) if whole else (int, float)) or not least <= value < 2**53:
        raise DamagedError(f"its {name} is not a number that is possible")
    return value


def other_settings(before: dict[str, Any], now: dict[str, Any], may_differ: Set[str] = _WHERE) -> str:
    """List the settings in which two trainings differ, e.g. ``steps 100 (now 200)``; empty if there are none.

    Those that `may_differ` are left out, by default those that do not change the result. A setting that is missing in
    `before` is newer than that training, and is taken as its present default.
    """
    changed, before = _changed(before, now, may_differ), _complete(before, now)
    words = ", ".join(f"{name} {before.get(name)} (now {now.get(name)})" for name in changed)
    return words if len(words) <= _MOST_WORDS else f"{words[:_MOST_WORDS]}..."


def _complete(before: dict[str, Any], now: dict[str, Any]) -> dict[str, Any]:
    """Return `before` with the defaults of settings that older versions did not have."""
    return {spec.name: spec.default for spec in fields(DistillConfig) if spec.name in now} | before


def _changed(before: dict[str, Any], now: dict[str, Any], may_differ: Set[str]) -> list[str]:
    before = _complete(before, now)
    return [name for name in before | now if before.get(name) != now.get(name) and name not in may_differ]


def _optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return the tensors of the optimiser's state in one flat dict, each named ``parameter/quantity``."""
    state = optimizer.state_dict()["state"]
    return {f"{i}/{name}": torch.as_tensor(value) for i, values in state.items() for name, value in values.items()}


def _restore_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """Undo `_optimizer_tensors`; each moment gets its parameter's memory format, as fused optimisers expect."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        i, _, quantity = name.partition("/")
        like = parameters[int(i)].detach()
        state.setdefault(int(i), {})[quantity] = (
            torch.empty_like(like).copy_(value) if value.shape == like.shape else value
        )
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
