"""Figures that the paper reports in its tables and its figure 4, as data to compare one's own with.

Source: K. Mangalam and M. Salzmann, slides of 17 January 2018 and arXiv:1812.00249. Losses are in the paper's
convention, the cross entropy summed over both softmax channels: twice the usual mean over pixels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

__all__ = ["PRIOR", "REPORTED", "Reported"]

#: The recurring loss of a network that always answers the class prior (slides, "Initialization Matters").
PRIOR = 0.480


@dataclass(frozen=True, kw_only=True)
class Reported:
    """One entry of a table; what the paper does not say is None."""

    label: str
    """Row of the table, as in `Run.label`."""
    trial: int = 1
    test_loss: float | None = None
    """Minimum of windowed means ("avg")."""
    test_loss_min: float | None = None
    """Plain minimum ("min")."""
    start_loss: float | None = None
    """Test loss before the labels took over (table 6)."""
    train_loss: float | None = None
    """Hard training loss."""
    train_soft: float | None = None
    """Soft training loss, times tau squared."""
    iterations: int | None = None
    iou: float | None = None
    diverged: bool = False


def _depth() -> list[Reported]:
    rows = (
        (128, 0.1170, 0.0281, 63_000),
        (64, 0.1021, 0.0256, 80_000),
        (32, 0.0871, 0.0220, 125_000),
        (16, 0.0822, 0.0220, 150_000),
        (8, 0.0830, 0.0221, 280_000),
        (4, 0.0974, 0.0286, 300_000),
        (2, 0.8227, 0.3423, 290_000),
        (1, 0.8337, 0.3438, 320_000),
    )
    return [Reported(label=str(k), test_loss=test, train_loss=train, iterations=n) for k, test, train, n in rows]


def _temperature() -> list[Reported]:
    rows = (
        (1, 0.111, 15_000),
        (2, 0.480, 15_000),
        (4, 0.104, 50_000),
        (5, 0.610, 50_000),
        (7, 0.481, 9_000),
        (10, 0.480, 14_000),
        (15, 0.480, 14_500),
        (20, 0.134, 48_800),
    )
    return [
        Reported(label="teacher", test_loss_min=0.0910, iterations=300_000),
        *(Reported(label=tau, diverged=True) for tau in ("0.1", "0.25", "0.5")),
        *(Reported(label=str(tau), test_loss_min=loss, iterations=n) for tau, loss, n in rows),
    ]


def _trials() -> list[Reported]:
    rows = {
        1: ((0.481, 0.212, 0.483), (0.480, 0.210, 0.480)),
        2: ((0.488, 0.488, 0.485), (0.480, 0.480, 0.480)),
        3: ((0.482, 0.482, 0.223), (0.480, 0.480, 0.215)),
        5: ((0.123, 0.482, 0.489), (0.097, 0.480, 0.480)),
        6: ((0.151, 0.525, 0.482), (0.126, 0.496, 0.480)),
        10: ((0.120, 0.482, 0.482), (0.093, 0.480, 0.480)),
        15: ((0.209, 0.482, 0.491), (0.201, 0.480, 0.480)),
    }
    return [
        Reported(label=str(tau), trial=trial, test_loss=mean, test_loss_min=least)
        for tau, (means, lows) in rows.items()
        for trial, (mean, least) in enumerate(zip(means, lows, strict=True), 1)
    ]


def _reruns() -> list[Reported]:
    rows = {
        2: (0.156, 0.142, 1.371, 0.138, 1.376, 1.379, 1.380, 1.381, 0.223, 1.384),
        1: (1.37, 1.35, 1.36, 1.33, 1.38, 1.38, 1.36, 1.33, 1.30, 1.31),
    }
    return [
        Reported(label=f"{k}-Unet", trial=trial, test_loss=loss)
        for k, losses in rows.items()
        for trial, loss in enumerate(losses, 1)
    ]


def _mixed() -> list[Reported]:
    rows = (
        (2, 0.490, 0.480, 0.268, 0.167),
        (5, 0.505, 0.481, 0.267, 0.239),
        (10, 0.506, 0.480, 0.268, 0.305),
        (15, 0.507, 0.479, 0.270, 0.326),
        (20, 0.507, 0.480, 0.271, 0.334),
    )
    return [
        Reported(label=str(tau), test_loss=mean, test_loss_min=least, train_loss=hard, train_soft=soft)
        for tau, mean, least, hard, soft in rows
    ]


def _sequential() -> list[Reported]:
    rows = (
        ("5, short", 0.480, 10_000, 0.883),
        ("5, long", 0.480, 20_000, 0.595),
        ("10, long", 0.550, 20_000, 0.497),
        ("20, short", 0.480, 10_000, 0.590),
        ("20, long", 0.480, 20_000, 0.498),
    )
    return [Reported(label=where, start_loss=start, iterations=n, test_loss=end) for where, start, n, end in rows]


def _final() -> list[Reported]:
    # Iterations are left out: the slides have those of the two students the wrong way round. The teacher's IoU is from
    # the report.
    return [
        Reported(label="teacher", iou=0.804),
        Reported(label="soft", test_loss=0.134, iou=0.752),
        Reported(label="mixed", test_loss=0.135, iou=0.759),
    ]


def _bn() -> list[Reported]:
    # As the slides compare them; the caption of figure 4, with wider windows, has 0.0766.
    return [
        Reported(label="without BN", test_loss=0.0930),
        Reported(label="with BN", test_loss=0.0727, iterations=1_600_000),
    ]


#: The tables and the figure by the name of the study that repeats them.
REPORTED: Mapping[str, tuple[Reported, ...]] = MappingProxyType(
    {
        "depth": tuple(_depth()),
        "temperature": tuple(_temperature()),
        "trials": tuple(_trials()),
        "reruns": tuple(_reruns()),
        "mixed": tuple(_mixed()),
        "sequential": tuple(_sequential()),
        "final": tuple(_final()),
        "bn": tuple(_bn()),
    }
)
