"""Find the pixel size of an image that does not state it: the one at which a model is surest of what it sees."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from napari_kdunet.core.errors import ConfigError
from napari_kdunet.core.metrics import binary_entropy
from napari_kdunet.core.networks.model import Model, ModelLike, load_model
from napari_kdunet.core.prediction.engine import Forward
from napari_kdunet.core.prediction.probes import Probes
from napari_kdunet.core.prediction.tiler import Tiler, foreground
from napari_kdunet.core.prediction.tta import turned
from napari_kdunet.core.volumes.resampling import Grid
from napari_kdunet.core.volumes.volume import Volume, open_volume

__all__ = [
    "Assumed",
    "Limits",
    "PixelSizeSearch",
    "TriedSize",
    "assume_pixel_size",
    "find_pixel_size",
    "iter_find_pixel_size",
]

_OCTAVES = (0.0, -0.5, -1.0, -1.5, -2.0, 0.5, 1.0, 1.5, 2.0)  # from the model's own pixel size
_FINE = 0.25  # octaves to both sides of the best of these, which are tried next
_WIDE, _OFF = 1.0, 0.5  # octaves to both sides of the surest size: for the parabola's doubts, and for its lowest point
_SLICES = 3
_VIEWS_WEIGHT = 0.2
_SURE = 0.1  # largest doubt of a model that sees something in the image; see docs/pixel-size.md
_AT_HOME = 0.065  # largest doubt on tissue that the model has learnt ...
_OF_HOME = 1.3  # ... or, if its file states its doubt in validation, this many times that
_LEAST_FOREGROUND, _MOST_FOREGROUND = 5e-4, 0.3
_LEAST_OF_HOME, _MOST_OF_HOME = 0.2, 3.0  # the same, as multiples of the share in validation
_SURER = 0.6  # contrast is taken as inverted only if that brings the doubt below this share of what it is otherwise
_NEAR = 1.3  # sizes within this factor are not rivals


@dataclass(frozen=True)
class TriedSize:
    """How a model sees an image at one assumed pixel size.

    Attributes
    ----------
    pixel_size : float
        Assumed pixel size in nm.
    inverted : bool
        Whether contrast was inverted.
    doubt : float
        Uncertainty of the model, from 0 (sure of every pixel); infinite if (nearly) nothing or far too much is
        foreground. See `find_pixel_size`.
    foreground : float
        Mean probability of the foreground.
    """

    pixel_size: float
    inverted: bool
    doubt: float
    foreground: float


@dataclass(frozen=True)
class Limits:
    """Shares of foreground between which a size counts, and doubts below which it is found and the tissue known."""

    least_foreground: float = _LEAST_FOREGROUND
    most_foreground: float = _MOST_FOREGROUND
    found: float = _SURE
    known: float = _AT_HOME

    @classmethod
    def of(cls, model: Model) -> Limits:
        """Return the limits by what the model's file states of its validation; the defaults if it states nothing."""
        share, doubt = (_in_validation(model, name) for name in ("foreground", "doubt"))
        limits = cls()
        if share:
            least, most = max(_LEAST_FOREGROUND, _LEAST_OF_HOME * share), min(_MOST_OF_HOME * share, 0.9)
            limits = replace(limits, least_foreground=least, most_foreground=max(_MOST_FOREGROUND, most))
        if doubt:
            limits = replace(limits, found=max(_SURE, _OF_HOME * doubt), known=_OF_HOME * doubt)
        return limits


@dataclass(frozen=True)
class PixelSizeSearch:
    """What a search for the pixel size has found (so far).

    Attributes
    ----------
    tried : tuple of TriedSize
        Sizes in the order in which they were tried.
    steps : int
        Number of sizes that are tried in all.
    limits : Limits
        Limits of the model.
    """

    tried: tuple[TriedSize, ...]
    steps: int
    limits: Limits = Limits()

    @property
    def best(self) -> TriedSize | None:
        """Tried size at which the model is surest; None if it is sure at none."""
        straight, inverted = (min(self._minima(contrast), key=_doubt, default=None) for contrast in (False, True))
        best = straight or inverted
        if straight and inverted and inverted.doubt < _SURER * straight.doubt:
            best = inverted
        return best if best is not None and best.doubt < self.limits.found else None

    @property
    def guess(self) -> float | None:
        """Pixel size (nm) at which the model is least unsure, without inversion, found or not; None if none counts."""
        surest = min(self._minima(False), key=_doubt, default=None)
        return self._smoothed(surest if surest is not None and math.isfinite(surest.doubt) else None)

    def _minima(self, inverted: bool) -> list[TriedSize]:
        """Return the sizes of one contrast whose neighbours are no surer; the largest size is only a neighbour."""
        row = sorted((each for each in self.tried if each.inverted is inverted), key=lambda each: each.pixel_size)
        doubts = [math.inf, *map(_doubt, row)]
        return [row[i] for i in range(max(len(row) - 1, 1)) if row and doubts[i + 1] <= min(doubts[i : i + 3])]

    @property
    def pixel_size(self) -> float | None:
        """Pixel size found, in nm, to three digits; None if none was found."""
        return self._smoothed(self.best)

    def _smoothed(self, surest: TriedSize | None) -> float | None:
        """Return the lowest point, in nm, of a parabola through the doubts around the surest size.

        A single doubt is off by chance, often by more than the doubts a quarter of an octave apart differ.
        """
        if surest is None:
            return None
        doubts = {
            math.log2(each.pixel_size / surest.pixel_size): each.doubt
            for each in self.tried
            if each.inverted is surest.inverted and math.isfinite(each.doubt)
        }
        near = {octave: doubt for octave, doubt in doubts.items() if abs(octave) < _WIDE + 0.01}
        lowest = 0.0
        if len(near) >= 3:
            square, slope, _ = np.polyfit(list(near), list(near.values()), 2)
            if square > 0:
                lowest = min(max(-slope / (2 * square), -_OFF, min(near)), _OFF, max(near))
        return float(f"{surest.pixel_size * 2**lowest:.3g}")

    @property
    def knows_tissue(self) -> bool:
        """Whether the model is as sure as on tissue that it has learnt; else the size is little more than a hint."""
        return self.best is not None and self.best.doubt < self.limits.known

    @property
    def inverted(self) -> bool:
        """Whether the model is surest with inverted contrast, bright and dark exchanged."""
        return self.best is not None and self.best.inverted

    @property
    def margin(self) -> float:
        """Ratio of the next best doubt, at another size or contrast, to the best; 0 if no size was found."""
        best = self.best
        if best is None:
            return 0.0
        rivals = [each.doubt for each in self.tried if each.inverted is not best.inverted or not _near(each, best)]
        return min(rivals, default=math.inf) / max(best.doubt, 1e-9)

    def doubt_at(self, pixel_size: float) -> float:
        """Return the doubt of the tried size nearest to `pixel_size` (nm), without inversion."""
        straight = [each for each in self.tried if not each.inverted]
        return min(straight, key=lambda each: abs(math.log(each.pixel_size / pixel_size))).doubt


def find_pixel_size(
    model: ModelLike,
    raw: Any,
    *,
    sizes: Sequence[float] | None = None,
    slices: int = _SLICES,
    invert: bool = True,
    device: str = "auto",
    threads: int | None = None,
) -> PixelSizeSearch:
    """Find the pixel size of an image, and whether its contrast is inverted, by where a model is surest.

    A few slices are predicted at sizes from a quarter to four times the model's own, half an octave apart, with
    contrast as it is and inverted, then a quarter of an octave to both sides of the best. The result is the lowest
    point of a parabola through the doubts within an octave of the surest size, at most half an octave from that size.
    The doubt at a size is

        mean entropy of the pixels / entropy of their mean + 0.2 * (1 - agreement of two views).

    The entropies are binary, of the foreground probability p. Their ratio is the share of the uncertainty about a pixel
    that is left once the network has seen it: 0 if each p is 0 or 1, and 1 if all p are equal. If the ratio alone is
    too high, the views are not compared. They are the image as it is and after a quarter turn; their agreement is the
    Dice coefficient of the two p.

    A size does not count if there is no foreground (mean p under 0.0005, or under a fifth of the share in validation if
    the model states that), or far more than there should be (over 0.3, or over three times that share). Nor does the
    largest size: enlarged four times, anything dark may look like a mitochondrion.

    Nothing is found if the doubt has no minimum under 0.1, or under 1.3 times the model's doubt in validation if that
    is more: the network does not know this tissue, or the image is empty. A network is surest where structures have the
    size that it has learnt. So on other animals and tissues the answer is off by as much as the sizes of structures
    differ, and a few square micrometres may hold too few structures (docs/pixel-size.md).

    Parameters
    ----------
    model : Model, path or str
        Model with a working pixel size, its file, or the name of a bundled model.
    raw : volume
        Anything that `open_volume` takes, ZYX. Pixels outside its sample do not count. If it states a voxel size, the
        proportion of x to y is kept.
    sizes : sequence of float, optional
        Pixel sizes to try, in nm, in place of those above.
    slices : int
        Number of slices, evenly spaced; lost ones are left out.
    invert : bool
        Whether inverted contrast is tried too.
    device, threads
        As in `predict`.

    Returns
    -------
    PixelSizeSearch
        Its `pixel_size` is None if nothing was found.

    Raises
    ------
    ConfigError
        If the model has no working pixel size, or a size is not a positive number.
    VolumeError
        If the volume cannot be used.
    """
    how: dict[str, Any] = {"sizes": sizes, "slices": slices, "invert": invert, "device": device, "threads": threads}
    *_, search = (PixelSizeSearch((), 0), *iter_find_pixel_size(model, raw, **how))
    return search


class Assumed(NamedTuple):
    """A volume with the pixel size that it is taken to have."""

    volume: Volume
    note: str
    """What was assumed and why: a sentence without its full stop."""
    metadata: dict[str, Any]
    """The assumption, for the metadata of a result."""
    is_found: bool
    """Whether the model was sure at that size."""
    inverted: bool = False
    """Whether bright and dark were exchanged."""


def assume_pixel_size(
    model: Model, volume: Volume, name: str, *, invert: bool = True, device: str = "auto", threads: int | None = None
) -> Assumed:
    """Give a volume that states no pixel size the one at which a model is surest.

    If the model is sure at no size, the volume gets the one at which it is least unsure. If no size counts, the volume
    stays as it is, and its pixels are taken to have the model's pixel size.

    Parameters
    ----------
    model : Model
        Model with a working pixel size.
    volume : Volume
        Volume of unknown voxel size.
    name : str
        Name of the model, for the note.
    invert, device, threads
        As in `find_pixel_size`, whose errors it raises.
    """
    search = find_pixel_size(model, volume, invert=invert, device=device, threads=threads)
    size, best, guess = search.pixel_size, search.best, search.guess
    unstated = f"the pixel size of {volume.name} is not stated"
    metadata: dict[str, Any]
    if size is not None and best is not None:
        contrast = ", bright and dark exchanged" if best.inverted else ""
        hardly = "" if search.knows_tissue else ", though it hardly knows this tissue"
        metadata = {"pixel_size": size, "pixel_size_margin": round(search.margin, 3), "inverted": best.inverted}
        sized = open_volume(volume, voxel_size=(size,) * 3, invert=best.inverted)
        note = f"{unstated}: it is taken as {size:g} nm{contrast}, where {name} is surest{hardly}"
        return Assumed(sized, note, metadata, True, best.inverted)
    unsure = f"{unstated} and not found: {name} is sure at no size. It is taken as"
    if guess is None:
        return Assumed(volume, f"{unsure} the model's {model.pixel_size:g} nm", {"pixel_size": "not found"}, False)
    metadata = {"pixel_size": "not found", "pixel_size_taken": guess}
    sized = open_volume(volume, voxel_size=(guess,) * 3)
    return Assumed(sized, f"{unsure} {guess:g} nm, where it is least unsure", metadata, False)


def iter_find_pixel_size(
    model: ModelLike,
    raw: Any,
    *,
    sizes: Sequence[float] | None = None,
    slices: int = _SLICES,
    invert: bool = True,
    device: str = "auto",
    threads: int | None = None,
) -> Iterator[PixelSizeSearch]:
    """Run `find_pixel_size` size by size: yield the search so far, the last being final; `close()` stops it."""
    model, volume = load_model(model), open_volume(raw)
    if not model.pixel_size:
        raise ConfigError("the model works at the pixels of each image (pixel size 0): there is no pixel size to find.")
    if sizes is not None and not all(0 < size < math.inf for size in sizes):
        raise ConfigError(f"sizes {list(sizes)[:5]} to try: give positive numbers, nm.")
    coarse = [model.pixel_size * 2**octave for octave in _OCTAVES] if sizes is None else list(sizes)
    search = PixelSizeSearch((), (1 + invert) * len(coarse) + 2 * (sizes is None), Limits.of(model))
    probes = Probes.of(model, volume, slices, device, threads)
    if probes is None:
        yield replace(search, steps=0)
        return
    probe = _Probe(model, search.limits, probes, volume)
    for inverted in (False, True)[: 1 + invert]:
        for size in coarse:
            search = replace(search, tried=(*search.tried, probe.at(size, inverted)))
            yield search
    best = search.best
    if best is None or sizes is not None:
        return
    for octave in (-_FINE, _FINE):
        search = replace(search, tried=(*search.tried, probe.at(best.pixel_size * 2**octave, best.inverted)))
        yield search


def _doubt(tried: TriedSize) -> float:
    return tried.doubt


def _in_validation(model: Model, name: str) -> float | None:
    """Return a share that the model's file states of its validation, None if invalid: the file may be a stranger's."""
    validation = model.summary.get("validation")
    value = validation.get(name) if isinstance(validation, dict) else None
    return value if isinstance(value, float) and 0 < value < 1 else None


def _near(one: TriedSize, other: TriedSize) -> bool:
    return abs(math.log(one.pixel_size / other.pixel_size)) < math.log(_NEAR)


@dataclass(frozen=True)
class _Probe:
    """Predicts a few windows of slices at any assumed pixel size."""

    model: Model
    limits: Limits
    probes: Probes
    volume: Volume

    def at(self, size: float, inverted: bool) -> TriedSize:
        """Return the doubt at one pixel size (nm)."""
        grid = self._grid(size)
        if grid is None:
            return TriedSize(size, inverted, math.inf, 0.0)
        tiler = replace(self.probes.tiler, grid=grid)
        forward = _negated(tiler.turns.forward) if inverted else tiler.turns.forward
        first = self._predicted(tiler.by(forward))
        mean, ratio = _uncertainty(first)
        if not self.limits.least_foreground <= mean <= self.limits.most_foreground:
            ratio = math.inf
        if ratio >= self.limits.found:
            return TriedSize(size, inverted, ratio, mean)
        second = self._predicted(tiler.by(turned(forward)))
        return TriedSize(size, inverted, ratio + _VIEWS_WEIGHT * (1 - _agreement(first, second)), mean)

    def _grid(self, size: float) -> Grid | None:
        stated = self.volume.voxel_size
        try:
            return Grid.between((size, size * stated[2] / stated[1] if stated else size), self.model.pixel_size)
        except ConfigError:  # too far from the working pixel size
            return None

    def _predicted(self, tiler: Tiler) -> NDArray[np.float32]:
        """Return the foreground probability (N,) of all pixels of the sample in the middle of each window."""
        windows, (y, x) = self.probes.volume, self.probes.middle(tiler.grid)
        found = []
        for z in self.probes.slices:
            probability = foreground(tiler.window(windows, z, y, x))
            outside = windows.outside(z, slice(*y), slice(*x))
            found.append(probability.ravel() if outside is None else probability[~outside])
        return np.concatenate(found)


def _negated(forward: Forward) -> Forward:
    """Return an engine that inverts the contrast of an image, which is standardised."""

    def inverted(batch: Tensor) -> Tensor:
        return forward(torch.neg(batch))

    return inverted


def _uncertainty(p: NDArray[np.float32]) -> tuple[float, float]:
    """Return the mean probability, and the mean entropy divided by the entropy of the mean."""
    if not p.size:
        return 0.0, math.inf
    mean = float(p.mean(dtype=np.float64))
    return mean, float(binary_entropy(p).mean() / binary_entropy(np.array(mean)))


def _agreement(first: NDArray[np.float32], second: NDArray[np.float32]) -> float:
    """Return the Dice coefficient of two arrays of probabilities (N,)."""
    both = np.dot(first, second)
    return float(2 * both / max(np.dot(first, first) + np.dot(second, second), 1e-12))
