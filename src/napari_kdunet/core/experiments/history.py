"""The losses of one run and what the paper makes of them: minima of windowed means."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

from napari_kdunet.core.errors import ModelError
from napari_kdunet.core.files import read_json, write_bytes
from napari_kdunet.core.training.events import Stepped

__all__ = ["History", "LossCurve", "crossing", "lowest_mean"]

#: A test loss over the steps: (step, mean of a window of tests that ends at this step).
LossCurve = list[tuple[int, float]]

_MOST_BYTES = 2**28  # of a history: some four million steps


def lowest_mean(values: Sequence[float], window: int) -> tuple[float | None, int]:
    """Return the smallest mean of `window` consecutive values, and the index of the last of them.

    With a window of alpha_t training losses this is the paper's L*_train, with a window of beta_t tests its averaged
    test loss ("Performance Metrics"). Fewer values than `window` count as one window; without values it is (None, -1).
    """
    if not values:
        return None, -1
    means = _means(values, window)
    at = int(means.argmin())
    return float(means[at]), at + len(values) - len(means)


def _means(values: Sequence[float], window: int) -> np.ndarray:
    """Return the mean of each `window` consecutive values, or of all values if there are fewer."""
    size = min(window, len(values))
    means: np.ndarray = np.lib.stride_tricks.sliding_window_view(np.asarray(values, np.float64), size).mean(axis=1)
    return means


def crossing(lower: LossCurve, upper: LossCurve) -> int | None:
    """Return the step from which `lower` stays below `upper`, None if it ends above; both have the same steps."""
    found = None
    for (step, low), (_, high) in zip(reversed(lower), reversed(upper), strict=True):
        if low >= high:
            break
        found = step
    return found


@dataclass
class History:
    """All losses of a run, kept beside its model so that a resumed run has those from before it was stopped.

    Attributes
    ----------
    steps : list of [step, loss, hard, soft]
        Training losses, nats a pixel; a part that is left out is None.
    tests : list of [step, ce]
        Cross entropy on the test slices, nats a pixel.
    parameters : int
        Number of parameters of the network.
    seconds : float
        Seconds of training, without tests.
    diverged : bool
        Whether a loss was no longer finite.
    """

    steps: list[tuple[int, float, float | None, float | None]] = field(default_factory=list)
    tests: list[tuple[int, float]] = field(default_factory=list)
    parameters: int = 0
    seconds: float = 0.0
    diverged: bool = False

    @classmethod
    def load(cls, path: Path) -> History:
        """Read what `save` wrote, or return an empty history if there is no file.

        Raises
        ------
        ModelError
            If the file is not what `save` writes.
        """
        if not path.exists():
            return cls()
        try:
            match read_json(path, _MOST_BYTES):
                case {
                    "steps": [*steps],
                    "tests": [*tests],
                    "parameters": int(),
                    "seconds": int() | float(),
                    "diverged": bool(),
                } as values if len(values) == 5 and all(map(_is_step, steps)) and all(map(_is_test, tests)):
                    return cls(**values)
        except ValueError:
            pass
        raise ModelError(f"{path} is damaged: remove it and the other files of its run, and the run is done again.")

    def save(self, path: Path) -> None:
        """Write the history as JSON, atomically."""
        write_bytes(path, json.dumps(asdict(self)).encode())

    def cut(self, step: int) -> None:
        """Drop the entries after `step`, which a resumed training makes again."""
        self.steps = [entry for entry in self.steps if entry[0] <= step]
        self.tests = [entry for entry in self.tests if entry[0] <= step]
        self.diverged = False

    def add(self, event: Stepped) -> None:
        """Append the losses of one step."""
        hard, soft = (value if math.isfinite(value) else None for value in (event.hard, event.soft))
        self.steps.append((event.step, event.loss, hard, soft))
        self.seconds = event.seconds

    def test_curve(self, window: int) -> LossCurve:
        """Return the averaged test loss: means of `window` consecutive tests, each at the step of its last test."""
        if not self.tests:
            return []
        means = _means([ce for _, ce in self.tests], window).tolist()
        return list(zip([step for step, _ in self.tests][-len(means) :], means, strict=True))

    def train_loss(self, part: int, window: int) -> float | None:
        """Return `lowest_mean` of the total loss (`part` 1), of its hard (2) or its soft (3) part."""
        return lowest_mean([entry[part] for entry in self.steps if entry[part] is not None], window)[0]  # type: ignore[misc]


def _is_step(entry: object) -> bool:
    """Return whether a JSON value is an entry of `History.steps`."""
    match entry:
        case [int(), int() | float(), None | int() | float(), None | int() | float()]:
            return True
    return False


def _is_test(entry: object) -> bool:
    """Return whether a JSON value is an entry of `History.tests`."""
    match entry:
        case [int(), int() | float()]:
            return True
    return False
