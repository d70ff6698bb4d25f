"""Tiled prediction: logits of any window of a slice, at the image's own resolution."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TypeAlias, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from napari_kdunet.core.devices import cores, pick_device
from napari_kdunet.core.errors import ModelError
from napari_kdunet.core.networks.model import Model
from napari_kdunet.core.prediction.engine import Forward, engines_for
from napari_kdunet.core.prediction.tiling import Tiling
from napari_kdunet.core.prediction.tta import averaged
from napari_kdunet.core.prediction.turns import Turns
from napari_kdunet.core.prediction.windows import Windows
from napari_kdunet.core.volumes.neighbours import Neighbours
from napari_kdunet.core.volumes.resampling import Grid
from napari_kdunet.core.volumes.sample import Pad, standardised
from napari_kdunet.core.volumes.volume import Volume

__all__ = ["Tiler", "foreground", "labels", "last_class", "mask", "set_background"]

T = TypeVar("T")
Inner: TypeAlias = tuple[slice, slice]
"""Position of a window within the window with its halo, in image pixels (Y, X)."""
Outside: TypeAlias = NDArray[np.bool_] | None
"""Pixels of a window that are outside the sample, (Y, X) bool; None where none are."""


@dataclass(frozen=True)
class Tiler(Tiling):
    """Computes the logits of any window of a slice, equal to float rounding to those cut from the whole slice's.

    The image is mirrored at its borders by one unit of the grid. A window is read with a halo that covers the
    receptive field, and starts and ends at whole units, so that pooling falls on the same pixels in each window and in
    its flips.

    Attributes
    ----------
    turns : Turns
        Turns at the engines, which include test-time augmentation if it is wanted.
    device : torch.device
        Device the engines run on.
    classes : int
        Number of classes of the network.
    neighbours : Neighbours
        Slices that the network sees with a slice. Their windows are cached (`Windows`), so that each is read once.
    network : str
        Name of the network in errors.
    """

    turns: Turns
    device: torch.device
    classes: int
    neighbours: Neighbours
    network: str = "the network"
    _windows: Windows = field(default_factory=Windows, init=False, compare=False, repr=False)

    @classmethod
    def of(
        cls,
        model: Model,
        volume: Volume,
        device: str = "auto",
        threads: int | None = None,
        views: int = 1,
        *,
        network: str = "the network",
    ) -> Tiler:
        """Return the tiler that applies `model` to `volume`, with test-time augmentation over `views` views."""
        net, where, threads = model.traits, pick_device(device), threads or cores()
        engines = [averaged(engine, views) for engine in engines_for(model.net, where, threads)]
        return cls(
            Grid.in_plane(volume.voxel_size, model.pixel_size),
            net.multiple,
            net.reach,
            net.k,
            Turns(engines, threads),
            where,
            net.classes,
            Neighbours.between(model.context, model.context_distance, volume.voxel_size),
            network,
        )

    def by(self, forward: Forward) -> Tiler:
        """Return the same tiler with another engine."""
        return replace(self, turns=Turns([forward], self.turns.threads))

    def windows(self, shape: tuple[int, ...]) -> Iterator[tuple[tuple[int, int], tuple[int, int]]]:
        """Iterate over the windows, (start, stop) along Y and X, that tile the slices of a volume of this ZYX shape."""
        starts = ([(a, min(a + s, n)) for a in range(0, n, s)] for n, s in zip(shape[1:], self.tile(), strict=True))
        return ((y, x) for y, x in itertools.product(*starts))

    def window(self, volume: Volume, z: int, y: tuple[int, int], x: tuple[int, int]) -> torch.Tensor:
        """Return the `logits` of a window of any size that starts anywhere, computed tile by tile."""
        first_y, first_x = (start // unit * unit for start, unit in zip((y[0], x[0]), self.unit, strict=True))
        step_y, step_x = self.tile()
        rows = []
        for top in range(first_y, y[1], step_y):
            row = [
                self.logits(volume, z, (top, min(top + step_y, y[1])), (left, min(left + step_x, x[1])))
                for left in range(first_x, x[1], step_x)
            ]
            rows.append(torch.cat(row, dim=-1))
        return torch.cat(rows, dim=-2)[:, y[0] - first_y :, x[0] - first_x :]

    def logits(self, volume: Volume, z: int, y: tuple[int, int], x: tuple[int, int]) -> torch.Tensor:
        """Return the float32 logits (C, Y, X), on the CPU, of a window of slice `z` that starts at multiples of `unit`.

        `y` and `x` are (start, stop) in image pixels. For two classes C is 1: the log odds of the foreground, which
        are the difference of the two logits.
        """
        return self.compute(torch.clone, volume, z, y, x)

    def compute(
        self, finish: Callable[[torch.Tensor], T], volume: Volume, z: int, y: tuple[int, int], x: tuple[int, int]
    ) -> T:
        """Return what `finish` makes of the `logits`, which are valid only while it runs."""

        def finished(working: torch.Tensor | None, inner: Inner, outside: Outside) -> T:
            if working is None:
                planes = 1 if self.classes == 2 else self.classes
                out = torch.empty(planes, *(s.stop - s.start for s in inner), dtype=torch.float32)
            else:
                out = self.grid.to_image(working)[0][(slice(None), *inner)].cpu()
            return finish(out if outside is None else set_background(out, outside))

        return self._compute(finished, volume, z, y, x)

    def mask(
        self, threshold: float, volume: Volume, z: int, y: tuple[int, int], x: tuple[int, int]
    ) -> NDArray[np.uint8]:
        """Return the same as `labels` of the `logits` for a two-class network, without full-size logits if possible."""

        def finished(working: torch.Tensor | None, inner: Inner, outside: Outside) -> NDArray[np.uint8]:
            if working is None:
                return np.zeros([s.stop - s.start for s in inner], np.uint8)
            found = self.grid.above(working[0, 0], log_odds(threshold), inner)
            if outside is not None:
                found[outside] = 0
            return found

        return self._compute(finished, volume, z, y, x)

    def _compute(
        self,
        finished: Callable[[torch.Tensor | None, Inner, Outside], T],
        volume: Volume,
        z: int,
        y: tuple[int, int],
        x: tuple[int, int],
    ) -> T:
        """Return ``finished(logits, inner, outside)``, logits at working pixels, None if all is outside the sample.

        Raises
        ------
        ModelError
            If the network gives NaN, with which every comparison is false, or infinity, which is NaN once resampled.
        """
        with self.turns.tile() as forward, torch.inference_mode():
            working, inner = self._input(volume, z, (y, x))  # first, as it also finds what `outside` returns
            outside = volume.outside(z, slice(*y), slice(*x))
            if outside is not None and outside.all():
                return finished(None, inner, outside)
            with self.turns.turn():
                logits = forward(working)
                if not logits.isfinite().all():
                    raise ModelError(
                        f"{self.network} gives NaN or infinity for slice z={z} of {volume.name}: its weights overflow."
                    )
                return finished(logits, inner, outside)

    def _input(self, volume: Volume, z: int, window: tuple[tuple[int, int], ...]) -> tuple[torch.Tensor, Inner]:
        """Return a window with its halo and mirrored borders (1, channels, Y, X), and the window's position in that."""
        inside, pads, inner = [], [], []
        for (start, stop), size, unit, halo in zip(window, volume.shape[1:], self.unit, self.halo, strict=True):
            first = max(start - halo, -unit)
            last = min(-(-stop // unit) * unit + halo, -(-(size + unit) // unit) * unit)
            inside.append(slice(max(first, 0), min(last, size)))
            pads.append((max(-first, 0), max(last - size, 0)))
            inner.append(slice(start - first, stop - first))
        read = partial(self._read, volume, inside=(inside[0], inside[1]), pads=(pads[0], pads[1]))
        if not self.neighbours.context:
            return read(z), (inner[0], inner[1])

        def kept(z: int) -> torch.Tensor:
            return self._windows.get(volume, z, window, read, self.neighbours.reach)

        own, channels = kept(z), []
        for choices in self.neighbours.choices(z, len(volume)):
            # the window is read first: if it is a whole slice, is_lost need not read the slice again
            images = ((kept(other), volume.is_lost(other)) for other in choices)
            channels.append(next((image for image, lost in images if not lost), own))
        return torch.cat(channels, dim=1), (inner[0], inner[1])

    def _read(self, volume: Volume, z: int, inside: tuple[slice, slice], pads: tuple[Pad, Pad]) -> torch.Tensor:
        """Return a window (1, 1, Y, X) of a slice: standardised, at the working pixel size, on the engine's device."""
        stored = volume.read(z, *inside)
        mean, std = volume.statistics(z, stored if stored.shape == volume.shape[1:] else None)
        filled = volume.mirrored(z, *inside, max(self.halo))
        pixels = stored if filled is None else filled
        image = torch.from_numpy(standardised(pixels, mean, std, pads))[None, None]
        return self.grid.to_working(image.to(self.device))


def set_background(logits: torch.Tensor, outside: NDArray[np.bool_]) -> torch.Tensor:
    """Make the probability of the background 1 where `outside` (Y, X) is true, in place; return `logits` (C, Y, X)."""
    where = torch.from_numpy(outside)
    logits[:, where] = -math.inf
    if logits.shape[0] > 1:
        logits[0, where] = 0
    return logits


def log_odds(threshold: float) -> float:
    """Return the log odds of a probability from 0 up to, not including, 1."""
    return math.log(threshold / (1 - threshold)) if threshold else -math.inf


def foreground(logits: torch.Tensor) -> NDArray[np.float32]:
    """Return the probability (Y, X) of the foreground, all classes but the background, from `Tiler.logits`."""
    if logits.shape[0] == 1:
        return torch.sigmoid(logits[0]).numpy()
    return (1 - logits.softmax(dim=0)[0]).clamp(0, 1).numpy()


def labels(logits: torch.Tensor, threshold: float) -> NDArray[np.uint8]:
    """Return labels (Y, X) from `Tiler.logits`: the most probable foreground class, or 0.

    A label is 0 where the probability of the foreground, all its classes together, is not above the threshold.
    """
    if logits.shape[0] == 1:
        above: NDArray[np.bool_] = logits[0].numpy() > log_odds(threshold)  # torch takes three times as long
        return above.view(np.uint8)
    is_foreground = foreground(logits) > threshold
    return np.where(is_foreground, logits[1:].argmax(dim=0).numpy() + 1, 0).astype(np.uint8)


def mask(logits: torch.Tensor, threshold: float) -> NDArray[np.uint8]:
    """Return 1 where the probability of the foreground is above the threshold, else 0, (Y, X), from `Tiler.logits`."""
    return (foreground(logits) > threshold).view(np.uint8)


def last_class(logits: torch.Tensor) -> NDArray[np.float32]:
    """Return the probability (Y, X) of the last of three or more classes, from `Tiler.logits`."""
    return logits.softmax(dim=0)[-1].numpy()
