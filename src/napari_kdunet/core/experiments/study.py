"""A study: runs that are done one after the other, each only once, and measured as in the paper."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from napari_kdunet.core.config.distillation import DistillConfig
from napari_kdunet.core.config.training import TrainConfig
from napari_kdunet.core.data.splits import hold_out
from napari_kdunet.core.data.validation import Validation
from napari_kdunet.core.errors import DivergedError, ModelError, TrainingError
from napari_kdunet.core.experiments.history import History, LossCurve, lowest_mean
from napari_kdunet.core.experiments.run_store import forget_partial, iter_once, load_record, save_record
from napari_kdunet.core.experiments.studies import Run
from napari_kdunet.core.files import make_folder
from napari_kdunet.core.networks.model import Model, load_model
from napari_kdunet.core.training.events import Event, Started, Stepped, Validated
from napari_kdunet.core.training.train import iter_distill, iter_train
from napari_kdunet.core.volumes.fingerprint import data_fingerprint
from napari_kdunet.core.volumes.slices import spaced
from napari_kdunet.core.volumes.volume import Volume, open_pair

__all__ = ["RunResult", "iter_study", "test_curve"]

#: IoU below which a run counts as collapsed, as it does with a nearly constant output.
COLLAPSED_IOU = 0.3

_TRAIN_WINDOW = 1 / 20  # of the steps: alpha_t (the paper's 5,000 of some 300,000 would be too few losses here)
_TEST_WINDOW = 1 / 25  # of the tests: beta_t (figure 4 of the paper: 500 of 12,000)
_TEST_SLICES = 8  # at most, of the scored volume, to test on during training
_LEAST_WINDOW = 3  # tests


@dataclass(frozen=True, kw_only=True)
class RunResult:
    """Result of one run: a row of a study's CSV. Losses are nats a pixel; a value that does not apply is None."""

    run: str
    label: str
    """Row of the table."""
    setting: str
    """``paper`` or ``ours``."""
    outcome: str
    """``trained``, ``collapsed`` (IoU below 0.3, or a nearly constant output) or ``diverged``."""
    k: int
    bn: bool
    mode: str
    """``labels``, ``soft``, ``mixed`` or ``sequential``."""
    tau: float | None
    teacher: str
    """Name of the run that taught it."""
    seed: int
    parameters: int
    batch: int
    patch: int
    steps: int
    """Steps done."""
    seconds: float
    """Seconds of training, without tests."""
    train_window: int
    """Number of losses in a window: the paper's alpha_t."""
    test_window: int
    """Number of tests in a window: the paper's beta_t."""
    test_every: float
    """Steps between two tests: the paper's n_t."""
    test_slices: int
    """Number of slices of a test, evenly spaced over the scored volume."""
    train_loss: float | None
    """Minimum of the windowed means of the total loss: cross entropy, Dice and teacher, as configured."""
    train_hard: float | None
    """Minimum of the windowed means of the loss from the labels."""
    train_soft: float | None
    """Minimum of the windowed means of the loss from the teacher, tau squared included."""
    start_loss: float | None
    """`test_loss` of a sequential distillation before the labels took over."""
    test_loss: float | None
    """Minimum of the windowed means of the cross entropy on the test slices (sequential: after labels took over)."""
    test_loss_step: int | None
    """Step of the last test in the window of `test_loss`."""
    test_loss_min: float | None
    """Smallest cross entropy of a single test."""
    test_prior: float
    """Cross entropy of the class prior on the test slices: the value of a collapsed network."""
    paper_test_loss: float | None
    """Twice `test_loss`: the sum over both softmax channels, as the paper counts."""
    ce: float | None
    """Cross entropy, on the whole scored volume, of the model with the best held-out IoU."""
    paper_ce: float | None
    """Twice `ce`."""
    prior_ce: float
    """Cross entropy of the class prior on the whole scored volume."""
    iou: float | None
    """Foreground IoU of that model on the whole scored volume at `threshold`, to a histogram's bin width (1/512)."""
    threshold: float | None
    """Foreground threshold, chosen on held-out slices of the training volume."""


_OF_RUN = ("run", "label", "setting", "teacher")  # fields of a result that the `Run` gives


@dataclass(frozen=True)
class _Data:
    """Volumes that all runs learn from and are scored on."""

    raw: Volume
    labels: Volume
    test: Volume
    test_labels: Volume
    test_slices: tuple[int, ...]

    @classmethod
    def of(cls, raw: Any, labels: Any, val: tuple[Any, Any] | None) -> _Data:
        """Open and check the volumes."""
        train, test = hold_out(raw, labels) if val is None else (open_pair(raw, labels), open_pair(*val))
        return cls(*train, *test, spaced(range(len(test[0])), _TEST_SLICES))

    def scored(self, slices: Sequence[int], config: TrainConfig) -> Validation:
        """Return the validation on `slices` of the scored volume."""
        return Validation.against(self.test, self.test_labels, slices, config)


def iter_study(
    runs: Sequence[Run],
    raw: Any,
    labels: Any,
    *,
    val: tuple[Any, Any] | None = None,
    folder: str | Path,
) -> Iterator[Event | RunResult]:
    """Do the runs of a study one by one.

    What is done is kept: a study that was stopped, and is called again with the same `folder`, continues within the run
    that was stopped. A run leaves its model in ``NAME.safetensors``, its losses in ``NAME.history.json`` and its result
    in ``NAME.json``.

    At each validation of a run, the cross entropy on some slices of the scored volume is measured, for the paper's
    minima; these are minima over the scored data itself, as in the paper. The model and its threshold are chosen on
    held-out slices of the training volume, and that model is scored on the whole scored volume.

    Parameters
    ----------
    runs : sequence of Run
        Runs as `study_runs` returns them; a teacher comes before its students.
    raw, labels : volume
        Volume to train on: anything that `open_volume` takes, ZYX.
    val : pair of volumes, optional
        Raw and labels to score on; by default the last quarter of the slices, which are then not trained on.
    folder : path
        Where all files are kept.

    Yields
    ------
    Event or RunResult
        The events of each training, then its `RunResult`. For a run that was done before, the result alone.

    Raises
    ------
    InputError
        As in `iter_train`; also `ConfigError` if the folder holds runs with other settings or volumes.
    TrainingError
        If a run's teacher does not come before it, or diverged before there was a model to learn from. A student that
        diverges is a result.
    """
    data = _Data.of(raw, labels, val)
    folder = Path(folder)
    shared = {
        "data": data_fingerprint(data.raw, data.test, labels=(data.labels, data.test_labels)),
        "test_slices": len(data.test_slices),
    }
    make_folder(folder)
    known = [
        (run, _model_path(folder, run.name), shared | {"settings": run.config.to_dict(), "teacher": run.teacher})
        for run in runs
    ]
    # read all records before the first result is yielded, so that a wrong one is found at once
    results = [load_record(path, metadata, RunResult, _OF_RUN) for _, path, metadata in known]
    for (run, path, metadata), result in zip(known, results, strict=True):
        if result is None:
            history = History.load(_history_path(path))
            yield from _iter_run(run, data, path, metadata, history)
            result = _measure(run, data, path, history)
            save_record(path, metadata, result)
        yield RunResult(run=run.name, label=run.label, setting=run.setting, teacher=run.teacher, **result)


def test_curve(folder: str | Path, result: RunResult) -> LossCurve:
    """Return the averaged test loss of a run over its steps, nats a pixel, from the `folder` of its study."""
    return History.load(_history_path(_model_path(Path(folder), result.run))).test_curve(result.test_window)


def _history_path(path: Path) -> Path:
    return path.with_suffix(".history.json")


def _model_path(folder: Path, name: str) -> Path:
    return folder / f"{name}.safetensors"


def _iter_run(run: Run, data: _Data, path: Path, metadata: dict[str, Any], history: History) -> Iterator[Event]:
    """Train a run and record its losses; afterwards model and `history` are complete, or can be resumed."""
    kept = _history_path(path)
    tests = data.scored(data.test_slices, run.config)
    with closing(iter_once(path, metadata, _training(run, data, path.parent))) as events:  # type: ignore[type-var]
        try:
            for event in events:
                if isinstance(event, Started):
                    history.cut(event.step)
                    history.parameters = event.parameters
                elif isinstance(event, Stepped):
                    history.add(event)
                elif isinstance(event, Validated):
                    ce = tests.score(event.model, run.config.device, run.config.threads).ce
                    history.tests.append((event.step, ce))
                    history.save(kept)  # before the resume state is, which it must not be behind
                yield event
        except DivergedError as error:
            history.diverged = True
            if error.model is not None:
                error.model.save(path)
            forget_partial(path)
        finally:
            if history.steps:
                history.save(kept)


def _training(run: Run, data: _Data, folder: Path) -> Any:
    """Return the training of a run as the argument `train` of `iter_once`."""

    def train(out: Path, resume: bool) -> Iterator[Event]:
        if not run.teacher:
            return iter_train(data.raw, data.labels, run.config, out=out, resume=resume)
        teacher = _model_path(folder, run.teacher)
        if not teacher.exists():
            why = "that run is not listed before, or diverged at once"
            raise TrainingError(f"{run.name} has no teacher, for there is no model of {run.teacher}: {why}.")
        assert isinstance(run.config, DistillConfig)
        return iter_distill(load_model(teacher), data.raw, data.labels, run.config, out=out, resume=resume)

    return train


def _measure(run: Run, data: _Data, path: Path, history: History) -> dict[str, Any]:
    """Return the fields of `RunResult` that are not in `_OF_RUN`."""
    config, settings = run.config, run.config.to_dict()
    if not history.steps and not history.diverged:
        kept = _history_path(path).name
        raise ModelError(f"{path} has no {kept}, its losses: remove it with its .json, and it is trained again.")
    model = None if history.diverged else load_model(path)
    return {
        "k": config.k,
        "bn": config.bn,
        "mode": settings.get("mode", "labels"),
        "tau": settings.get("tau"),
        "seed": config.seed,
        "parameters": history.parameters,
        "batch": config.batch,
        "patch": config.patch,
        "steps": history.steps[-1][0] if history.steps else 0,
        "seconds": round(history.seconds, 2),
        **_losses(config, history),
        "test_slices": len(data.test_slices),
        "test_prior": data.scored(data.test_slices, config).prior_ce(),
        **_scores(model, data.scored(range(len(data.test)), config), config),
    }


def _losses(config: TrainConfig, history: History) -> dict[str, Any]:
    """Return the paper's minima; those of a sequential distillation are split where the labels take over (table 6)."""
    steps = config.steps or 0
    switch = round(steps * config.labels_from)
    tests = max(1, min(config.validations, steps))
    test_window = max(_LEAST_WINDOW, round(tests * _TEST_WINDOW))
    before = [ce for step, ce in history.tests if step <= switch]
    after = [(step, ce) for step, ce in history.tests if step > switch]
    test_loss, at = lowest_mean([ce for _, ce in after], test_window)
    window = max(1, round(steps * _TRAIN_WINDOW))
    return {
        "train_window": window,
        "test_window": test_window,
        "test_every": steps / tests,
        "train_loss": history.train_loss(1, window),
        "train_hard": history.train_loss(2, window),
        "train_soft": history.train_loss(3, window),
        "start_loss": lowest_mean(before, test_window)[0],
        "test_loss": test_loss,
        "test_loss_step": after[at][0] if after else None,
        "test_loss_min": min((ce for _, ce in after), default=None),
        "paper_test_loss": None if test_loss is None else 2 * test_loss,
    }


def _scores(model: Model | None, whole: Validation, config: TrainConfig) -> dict[str, Any]:
    """Return the scores of a model on the whole scored volume; the model is None if the run diverged."""
    if model is None:
        nothing = dict.fromkeys(("ce", "paper_ce", "iou", "threshold"))
        return {"outcome": "diverged", "prior_ce": whole.prior_ce(), **nothing}
    curve = whole.score(model, config.device, config.threads)
    iou = curve.iou(model.threshold)
    return {
        "outcome": "collapsed" if curve.collapsed or iou < COLLAPSED_IOU else "trained",
        "ce": curve.ce,
        "paper_ce": 2 * curve.ce,
        "prior_ce": curve.prior_ce,
        "iou": iou,
        "threshold": model.threshold,
    }
