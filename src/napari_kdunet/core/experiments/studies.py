"""The paper's tables and figure 4 as runs: what is trained, by which teacher, with which settings."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from napari_kdunet.core.config.distillation import DistillConfig
from napari_kdunet.core.config.training import TrainConfig
from napari_kdunet.core.errors import ConfigError

__all__ = ["SETTINGS", "STUDIES", "Run", "Study", "study_runs"]

#: Settings that each study can be run with: those of the paper, and our defaults.
SETTINGS = ("paper", "ours")

#: Steps of a run at a budget of 1.
STEPS = 500

_SHARED = {"batch": 4, "patch": 128, "validations": 25}
_CURVE_TESTS = 250  # tests of a run whose test loss is shown over the steps


@dataclass(frozen=True)
class Run:
    """One training of a study.

    Attributes
    ----------
    name : str
        Name of its files. Runs of the same name are the same in all studies, so that a folder holds a shared teacher
        once.
    label : str
        Row of the table.
    setting : str
        One of `SETTINGS`.
    config : TrainConfig
        A `DistillConfig` where there is a teacher.
    teacher : str
        Name of the run that teaches it, which comes before it; empty if it learns from labels alone.
    """

    name: str
    label: str
    setting: str
    config: TrainConfig
    teacher: str = ""


@dataclass(frozen=True)
class _Maker:
    """Makes the runs of one setting."""

    setting: str
    steps: int
    seeds: int
    max_k: int
    teachers: Mapping[str, Any]  # settings of teachers alone
    more: Mapping[str, Any]

    def train(self, label: str, k: int, seed: int = 0, variant: str = "", **more: Any) -> Run:
        """Make a run that learns from labels."""
        name = "-".join(part for part in (self.setting, f"{k}-unet", variant, f"seed{seed}") if part)
        return Run(name, label, self.setting, self._config(TrainConfig, k=k, seed=seed, **more))

    def teacher(self, k: int, label: str = "teacher", variant: str = "", **more: Any) -> Run:
        """Make a teacher with at most `max_k` channels at the top."""
        return self.train(label, min(k, self.max_k), variant=variant, **self.teachers, **more)

    def distil(
        self, label: str, teacher: Run, k: int, mode: str, tau: float, seed: int, variant: str = "", **more: Any
    ) -> Run:
        """Make a run that learns from the run `teacher`."""
        taught = f"{mode}-tau{tau:g}-from-{teacher.config.k}-unet"
        parts = (self.setting, f"{k}-unet", variant, taught, f"seed{seed}")
        config = self._config(DistillConfig, k=k, mode=mode, tau=float(tau), seed=seed, **more)
        return Run("-".join(part for part in parts if part), label, self.setting, config, teacher.name)

    def _config(self, kind: type[TrainConfig], **own: Any) -> TrainConfig:
        settings = {**_SHARED, "steps": self.steps, **self.more, **own}
        return kind.paper(**settings) if self.setting == "paper" else kind(**settings)


def _depth(make: _Maker) -> Iterator[Run]:
    for k in (128, 64, 32, 16, 8, 4, 2, 1):
        if k <= make.max_k:
            yield from (make.train(str(k), k, seed) for seed in range(make.seeds))


def _over_tau(make: _Maker, mode: str, taus: Sequence[float]) -> Iterator[Run]:
    teacher = make.teacher(4)
    yield teacher
    for tau in taus:
        yield from (make.distil(f"{tau:g}", teacher, 2, mode, tau, seed) for seed in range(make.seeds))


def _temperature(make: _Maker) -> Iterator[Run]:
    return _over_tau(make, "soft", (0.1, 0.25, 0.5, 1, 2, 4, 5, 7, 10, 15, 20))


def _trials(make: _Maker) -> Iterator[Run]:
    return _over_tau(make, "soft", (1, 2, 3, 5, 6, 10, 15))


def _reruns(make: _Maker) -> Iterator[Run]:
    for k in (2, 1):
        yield from (make.train(f"{k}-Unet", k, seed) for seed in range(make.seeds))


def _mixed(make: _Maker) -> Iterator[Run]:
    return _over_tau(make, "mixed", (2, 5, 10, 15, 20))


def _sequential(make: _Maker) -> Iterator[Run]:
    """Train softly for half a budget (the paper's 10,000 iterations) or a whole one (20,000), then one on labels."""
    teacher = make.teacher(4)
    yield teacher
    for tau, length in ((5, "short"), (5, "long"), (10, "long"), (20, "short"), (20, "long")):
        soft = max(1, make.steps // 2) if length == "short" else make.steps
        own = {"steps": soft + make.steps, "soft_share": soft / (soft + make.steps)}
        for seed in range(make.seeds):
            yield make.distil(f"{tau}, {length}", teacher, 1, "sequential", tau, seed, length, **own)


def _final(make: _Maker) -> Iterator[Run]:
    """Teach as in the paper: its teacher has no BN, and its student has BN and class weights.

    Two runs are ours: an untaught student, and the teacher with BN, from which no run learns.
    """
    paper = make.setting == "paper"
    variant, own = ("bn-weights", {"bn": True, "class_weights": "balanced"}) if paper else ("", {})
    teacher = make.teacher(64)
    yield teacher
    for seed in range(make.seeds):
        yield make.train("untaught", 2, seed, variant, **own)
        yield make.distil("soft", teacher, 2, "soft", 5, seed, variant, **own)
        yield make.distil("mixed", teacher, 2, "mixed", 5, seed, variant, **own)
    if paper:
        yield make.teacher(64, "teacher with BN", "bn", bn=True)


def _bn(make: _Maker) -> Iterator[Run]:
    for seed in range(make.seeds):
        for label, variant, bn in (("without BN", "no-bn", False), ("with BN", "bn", True)):
            yield make.train(label, min(4, make.max_k), seed, f"curve-{variant}", bn=bn, validations=_CURVE_TESTS)


@dataclass(frozen=True)
class Study:
    """One of the paper's tables, or its figure 4."""

    source: str
    """Table or figure of the paper."""
    title: str
    """Title, with ``{k}`` in place of the k of the first run, which is the teacher if there is one."""
    axis: str
    """Meaning of `Run.label`."""
    runs: Callable[[_Maker], Iterator[Run]]
    seeds: int = 1
    place: str = "{}"
    """Format of a label in a sentence."""
    loss: str = "test_loss"
    """Which loss the table shows: ``test_loss`` (minimum of windowed means) or ``test_loss_min``."""
    curve: bool = False
    """Whether its figure shows the test loss over the steps."""


#: The studies by name.
STUDIES: Mapping[str, Study] = MappingProxyType(
    {
        "depth": Study("table 1", "k-Unets from labels", "k", _depth, place="k = {}"),
        "temperature": Study(
            "table 2",
            "2-Unet taught softly by a {k}-Unet",
            "temperature τ",
            _temperature,
            place="τ = {}",
            loss="test_loss_min",
        ),
        "trials": Study(
            "table 3", "2-Unet taught softly by a {k}-Unet, several seeds", "temperature τ", _trials, 3, "τ = {}"
        ),
        "reruns": Study("table 4", "reruns from labels", "network", _reruns, 10),
        "mixed": Study(
            "table 5", "2-Unet taught by labels and a {k}-Unet together", "temperature τ", _mixed, place="τ = {}"
        ),
        "sequential": Study(
            "table 6",
            "1-Unet taught softly by a {k}-Unet, then from labels",
            "temperature τ, length of the soft part",
            _sequential,
            place="τ = {}",
        ),
        "final": Study("table 7", "2-Unet taught by a {k}-Unet at τ = 5", "how the 2-Unet is taught", _final),
        "bn": Study("figure 4", "{k}-Unet with and without batch normalisation", "network", _bn, curve=True),
    }
)


def study_runs(
    name: str,
    *,
    settings: Sequence[str] = SETTINGS,
    budget: float = 1.0,
    seeds: int | None = None,
    max_k: int = 128,
    teacher_budget: float | None = None,
    teacher_precision: str | None = None,
    **more: Any,
) -> list[Run]:
    """Return the runs of a study, in an order in which they can be done.

    Parameters
    ----------
    name : str
        One of `STUDIES`: depth, temperature, trials, reruns, mixed, sequential, final, bn.
    settings : sequence of str
        ``paper`` and/or ``ours``.
    budget : float
        Scales the steps of each run; 1 is 500 steps of 4 patches of 128 x 128 pixels (sequential: up to 1,000).
    seeds : int, optional
        Number of seeds, from 0 up, of each run except teachers; the paper's number of trials if None.
    max_k : int
        Largest k, at least 2: larger networks are left out, and a larger teacher is cut to it.
    teacher_budget : float, optional
        Budget of the teachers in place of `budget`: a study has only one or two, but they are large.
    teacher_precision : str, optional
        `TrainConfig.precision` of the teachers; tiny students gain nothing by another.
    **more
        Fields of `TrainConfig` that all runs have, such as ``batch`` or ``threads``.

    Raises
    ------
    ConfigError
        If there is no such study or setting, or a number is out of bounds.
    """
    if name not in STUDIES:
        raise ConfigError(f"no study {name!r}: choose one of {', '.join(STUDIES)}.")
    if not settings or not set(settings) <= set(SETTINGS):
        raise ConfigError(f"settings are {list(settings)}: choose from {', '.join(SETTINGS)}.")
    teachers: dict[str, Any] = {}
    if teacher_budget is not None:
        teachers["steps"] = _steps("teacher-budget", teacher_budget)
    if teacher_precision is not None:
        teachers["precision"] = teacher_precision
    if max_k < 2:
        raise ConfigError(f"max-k is {max_k}: it must be at least 2.")
    count = STUDIES[name].seeds if seeds is None else seeds
    if count < 1:
        raise ConfigError(f"seeds is {count}: it must be at least 1.")
    steps = _steps("budget", budget)
    makers = (_Maker(setting, steps, count, max_k, teachers, more) for setting in settings)
    return [run for maker in makers for run in STUDIES[name].runs(maker)]


def _steps(name: str, budget: float) -> int:
    if not 0 < budget < 1e6:
        raise ConfigError(f"{name} is {budget}: give a number greater than 0; 1 is {STEPS} steps a run.")
    return max(1, round(STEPS * budget))
