"""The only tiler: from a model and a volume to lazy probabilities, at the image's own resolution."""

from __future__ import annotations

import hashlib
import itertools
import math
import threading
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeVar

import dask.array as da
import numpy as np
import torch
from dask import delayed
from numpy.typing import NDArray

from napari_kdunet import __version__
from napari_kdunet.core.devices import cores, pick_device, using_threads
from napari_kdunet.core.errors import ConfigError
from napari_kdunet.core.networks.model import Model
from napari_kdunet.core.prediction.blocks import Blocks, Computation, one_block
from napari_kdunet.core.prediction.engine import Forward, engine_for
from napari_kdunet.core.prediction.orthoplanes import OrthoPlanes, Span, labels, probability
from napari_kdunet.core.prediction.tta import averaged
from napari_kdunet.core.volumes.resampling import Grid
from napari_kdunet.core.volumes.volume import Volume, open_volume

T = TypeVar("T")

__all__ = ["FOREIGN_MULTIPLE", "Tiler", "fingerprint", "foreground", "predict"]

FOREIGN_MULTIPLE, _FOREIGN_REACH = 32, 128  # of a network that does not say: enough for the usual U-Nets
_TILE_BYTES = 2**28  # of activations at the top of the network, about a quarter of its peak
_TILE_SIDE = 2048  # image pixels: of a shrunk image the pixels themselves take more than the activations

_AT_ONCE = 2  # tiles in memory, whatever the number of dask's threads: one is read, the other computed

_forward_lock = threading.Lock()  # one forward at a time: each already uses all its threads, or the whole GPU


def predict(
    model: Model,
    raw: Any,
    *,
    output: Literal["probability", "labels"] = "probability",
    threshold: float | None = None,
    tile: int | None = None,
    views: int = 1,
    planes: Literal["z", "zyx"] = "z",
    device: str = "auto",
    threads: int | None = None,
) -> da.Array:
    """Segment a volume lazily: nothing is computed before a part of the result is asked for.

    Parameters
    ----------
    model : Model
        What to apply.
    raw : volume
        Anything that `open_volume` takes, ZYX; any integer or float dtype.
    output : {"probability", "labels"}
        Probability of the foreground, or class labels (0 = background).
    threshold : float, optional
        Foreground probability above which a label is not background; the model's own if None.
    tile : int, optional
        Side of a tile in working pixels, rounded to what the network needs; by default as large as memory allows
        comfortably. The result does not depend on it, to float rounding.
    views : {1, 2, 4, 8}
        Over how many views of a slice the logits are averaged: as it is, with its mirror image, with all four
        mirrorings, with their quarter turns too. The time grows alike.
    planes : {"z", "zyx"}
        See the slices along z, or those along y and x of an isotropic volume too: the mean of three probabilities,
        each of a slice standardised by itself. It is computed in blocks of many slices, in at least three times the
        time, and the volume is read through once before the first.
    device : str
        ``auto``, ``cpu``, ``cuda`` or ``mps``.
    threads : int, optional
        CPU threads; one a core if None.

    Returns
    -------
    dask.array.Array
        ZYX of the volume's shape, one chunk a tile, or a block of three planes; float32 in [0, 1] or uint8.

    Raises
    ------
    ConfigError, VolumeError
        If an argument is off or the volume cannot be used; bad slices are found when they are read.
    """
    volume = open_volume(raw)
    if output not in ("probability", "labels"):
        raise ConfigError(f"output is {output!r}: choose probability or labels.")
    if planes not in ("z", "zyx"):
        raise ConfigError(f"planes is {planes!r}: choose z or zyx.")
    level = model.threshold if threshold is None else threshold
    if not 0 <= level < 1:
        raise ConfigError(f"threshold is {level}: give a number from 0 up to, not including, 1.")
    dtype = np.float32 if output == "probability" else np.uint8
    blocks = Blocks(
        partial(_computation, model, volume, dtype, level, tile, planes, views, device, threads), volume.shape
    )
    chunks = tuple(_pieces(n, side) for n, side in zip(volume.shape, blocks.sides, strict=True))
    name = f"kdunet-{uuid.uuid4().hex}"  # else dask hashes model and volume, and copies them to do so
    shared = delayed(blocks, name=f"{name}-blocks", traverse=False)  # one node of the graph: sent to a worker once
    meta = np.empty((0, 0, 0), dtype)
    lazy: da.Array = da.map_blocks(one_block, blocks=shared, name=name, chunks=chunks, dtype=dtype, meta=meta)
    return lazy


def _computation(
    model: Model,
    volume: Volume,
    dtype: type[np.float32] | type[np.uint8],
    level: float,
    tile: int | None,
    planes: str,
    views: int,
    device: str,
    threads: int | None,
) -> Computation:
    tiler = Tiler.of(model, volume, device, threads, views)
    if planes == "zyx":
        ortho = OrthoPlanes.of(model, volume, tiler)
        found = probability if dtype is np.float32 else partial(labels, threshold=level)
        return ortho.block_size(dtype, tile), partial(ortho.compute, found)
    finish = foreground if dtype is np.float32 else partial(_labels, threshold=level)
    return (1, *tiler.tile(tile)), partial(_slice, tiler, volume, finish)


def _slice(
    tiler: Tiler, volume: Volume, finish: Callable[[torch.Tensor], NDArray[Any]], z: Span, y: Span, x: Span
) -> NDArray[Any]:
    return tiler.compute(finish, volume, z[0], y, x)[None]


def fingerprint(model: Model, volume: Volume, **settings: Any) -> str:
    """What tells one prediction from another: a digest of the weights, the volume's name and date, and `settings`."""
    digest = hashlib.sha256()
    for name, value in model.net.state_dict().items():
        digest.update(name.encode())
        digest.update(value.cpu().contiguous().numpy().tobytes())
    path = Path(volume.name)
    date = path.stat().st_mtime_ns if path.exists() else 0
    about = (__version__, model.pixel_size, volume.name, date, volume.shape, str(volume.dtype), volume.voxel_size)
    digest.update(repr((about, sorted(settings.items()))).encode())
    return digest.hexdigest()


def _pieces(size: int, step: int) -> tuple[int, ...]:
    return tuple(min(step, size - start) for start in range(0, size, step))


def foreground(logits: torch.Tensor) -> NDArray[np.float32]:
    """Probability of not being background, from what `Tiler.logits` gives."""
    if logits.shape[0] == 1:
        return torch.sigmoid(logits[0]).numpy()
    return (1 - logits.softmax(dim=0)[0]).clamp(0, 1).numpy()


def _labels(logits: torch.Tensor, threshold: float) -> NDArray[np.uint8]:
    """Most probable foreground class where the foreground's probability is above the threshold, else 0."""
    if logits.shape[0] == 1:
        level = math.log(threshold / (1 - threshold)) if threshold else -math.inf
        return (logits[0] > level).numpy().view(np.uint8)
    found = foreground(logits) > threshold
    return np.where(found, logits[1:].argmax(dim=0).numpy() + 1, 0).astype(np.uint8)


@dataclass(frozen=True)
class Tiler:
    """Logits of any window of a slice, equal to float rounding to the window cut from the whole slice's logits.

    The image is mirrored at its borders by one unit of the grid. A window is read with a halo that covers the
    network's reach, and starts and ends at whole units, so that poolings fall on the same pixels in each window and
    in its mirror images.
    """

    forward: Forward
    grid: Grid
    device: torch.device
    threads: int
    multiple: int
    reach: int
    k: int
    _slots: threading.Semaphore = field(
        default_factory=lambda: threading.BoundedSemaphore(_AT_ONCE), init=False, compare=False, repr=False
    )

    @classmethod
    def of(
        cls, model: Model, volume: Volume, device: str = "auto", threads: int | None = None, views: int = 1
    ) -> Tiler:
        """The tiler that applies `model`, averaged over so many `views`, to `volume`."""
        net, where, threads = model.net, pick_device(device), threads or cores()
        return cls(
            averaged(engine_for(net, where, threads), views),
            Grid.between(volume.voxel_size[1:] if volume.voxel_size else None, model.pixel_size),
            where,
            threads,
            getattr(net, "multiple", FOREIGN_MULTIPLE),
            getattr(net, "reach", _FOREIGN_REACH),
            getattr(net, "k", 64),
        )

    @property
    def unit(self) -> tuple[int, int]:
        """Windows start at multiples of this, in image pixels (Y, X)."""
        return self.grid.unit(self.multiple)

    @property
    def halo(self) -> tuple[int, int]:
        """How far beyond its whole units a window is read, in image pixels (Y, X): multiples of `unit`."""
        reaches = (math.ceil(self.reach / r) + (r > 1) for r in self.grid.ratio)  # enlarging looks at the next pixel
        y, x = (-(-reach // unit) * unit for reach, unit in zip(reaches, self.unit, strict=True))
        return y, x

    def tile(self, working: int | None = None) -> tuple[int, int]:
        """Sides of a tile in image pixels: about `working` working pixels, or what memory allows if None."""
        most = int(min(1536, (_TILE_BYTES / (4 * self.k)) ** 0.5))
        sides = (int(working / r) if working else min(int(most / r), _TILE_SIDE) for r in self.grid.ratio)
        ty, tx = (max(1, side // u) * u for side, u in zip(sides, self.unit, strict=True))
        return ty, tx

    def windows(self, shape: tuple[int, ...]) -> Iterator[tuple[tuple[int, int], tuple[int, int]]]:
        """(Y, X) windows, each a start and a stop, that tile the slices of a volume of this ZYX shape."""
        starts = ([(a, min(a + s, n)) for a in range(0, n, s)] for n, s in zip(shape[1:], self.tile(), strict=True))
        return ((y, x) for y, x in itertools.product(*starts))

    def window(self, volume: Volume, z: int, y: tuple[int, int], x: tuple[int, int]) -> torch.Tensor:
        """As `logits`, of any window: tile by tile, and with no need to begin at a multiple of `unit`."""
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
        """(C, y1 - y0, x1 - x0) float32 logits on the CPU of a window of slice `z`; y0 and x0 multiples of `unit`.

        Of two classes (1, ...) log odds of the foreground: the difference of the two logits.
        """
        return self.compute(torch.clone, volume, z, y, x)

    def compute(
        self, finish: Callable[[torch.Tensor], T], volume: Volume, z: int, y: tuple[int, int], x: tuple[int, int]
    ) -> T:
        """What `finish` makes of the `logits`, which stay valid only while it runs."""
        with self._slots, torch.inference_mode():
            image, inner = self._read(volume, z, (y, x))
            working = self.grid.to_working(torch.from_numpy(image)[None, None].to(self.device))
            del image  # it is larger
            with _forward_lock, using_threads(self.threads):
                out = self.grid.to_image(self.forward(working))
                return finish(out[0][(slice(None), *inner)].cpu())

    def _read(
        self, volume: Volume, z: int, window: tuple[tuple[int, int], ...]
    ) -> tuple[NDArray[np.float32], tuple[slice, ...]]:
        """Read a window with its halo and mirrored borders, standardised; where in that the window itself lies."""
        inside, pads, inner = [], [], []
        for (start, stop), size, unit, halo in zip(window, volume.shape[1:], self.unit, self.halo, strict=True):
            first = max(start - halo, -unit)
            last = min(-(-stop // unit) * unit + halo, -(-(size + unit) // unit) * unit)
            inside.append(slice(max(first, 0), min(last, size)))
            pads.append((max(-first, 0), max(last - size, 0)))
            inner.append(slice(start - first, stop - first))
        stored = volume.read(z, *inside)
        mean, std = volume.statistics(z, stored if stored.shape == volume.shape[1:] else None)
        image = np.pad(stored, pads, mode="reflect").astype(np.float32)
        image -= np.float32(mean)
        image /= np.float32(std or 1.0)
        return image, tuple(inner)
