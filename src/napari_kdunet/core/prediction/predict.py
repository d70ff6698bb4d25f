"""From a model and a volume to lazy probabilities or labels, at the image's own resolution."""

from __future__ import annotations

import hashlib
import threading
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from numbers import Integral, Real
from typing import Any, Literal, TypeAlias

import dask.array as da
import numpy as np
import torch
from dask import delayed
from numpy.typing import NDArray

from napari_kdunet import __version__
from napari_kdunet.core.errors import ConfigError
from napari_kdunet.core.networks.model import Model, ModelLike, load_model
from napari_kdunet.core.prediction.orthoplanes import OrthoPlanes
from napari_kdunet.core.prediction.statistics import Statistics, with_statistics
from napari_kdunet.core.prediction.tiler import Tiler, foreground, labels, last_class, mask
from napari_kdunet.core.prediction.tiling import Span
from napari_kdunet.core.volumes.volume import Volume, open_volume

__all__ = ["Blocks", "predict", "prediction_key"]

_Computation: TypeAlias = tuple[tuple[int, int, int], Callable[..., NDArray[Any]]]
"""Sides of a block (Z, Y, X), and the function that computes a block from its spans along Z, Y and X."""

_make_lock = threading.Lock()  # a process sets up one computation at a time


def predict(
    model: ModelLike,
    raw: Any,
    *,
    output: Literal["probability", "labels", "boundary"] = "probability",
    threshold: float | None = None,
    tile: int | None = None,
    views: int | None = None,
    planes: Literal["z", "zyx"] = "z",
    statistics: Statistics = "auto",
    device: str = "auto",
    threads: int | None = None,
) -> da.Array:
    """Segment a volume lazily: a slice is computed when a part of the result that needs it is requested.

    For a model with context, the neighbours of a slice (`Neighbours`) are read too, also along y and x if `planes` is
    ``zyx``. A slice that cannot be read is an error for its neighbours as well.

    Parameters
    ----------
    model : Model, path or str
        Model to apply, its file, or the name of a bundled model.
    raw : volume
        Anything that `open_volume` takes, ZYX; any integer or float dtype.
    output : {"probability", "labels", "boundary"}
        Probability of the foreground, class labels (0 = background), or probability of the outlines of objects, for
        `instances`. Only a model that was trained with `boundary` gives the last; for such a model the outlines belong
        to the foreground, and labels are 0 and 1.
    threshold : float, optional
        Foreground probability above which a pixel is not labelled as background; the model's own if None.
    tile : int, optional
        Side of a tile in working pixels, rounded to what the network needs; by default as large as memory comfortably
        allows. The result does not depend on it, to float rounding.
    views : {1, 2, 4, 8}, optional
        Test-time augmentation: number of flips and quarter turns of a slice over which logits are averaged. 1 is the
        slice as it is, 2 adds its flip along X, 4 the flips of both along Y, 8 the quarter turns of all four. The time
        grows in proportion. If None, the model decides (`Model.views`): 1, except for small generalists.
    planes : {"z", "zyx"}
        Predict the slices along z, or also those along y and x of an isotropic volume (ortho-plane prediction) and
        average the logits of the three, each slice standardised by itself. The latter is computed in blocks of many
        slices, takes at least three times as long, and reads the whole volume once before the first block. In a stack
        thinner than some 100 slices, those along y and x see too little to help.
    statistics : {"auto", "model", "volume"}
        Statistics of batch normalisation: those learnt in training, or those of this volume (`adapt_statistics`), for
        which a few of its windows are read and computed at once. ``auto`` lets the model decide (`Model.adapts`).
    device : str
        ``auto``, ``cpu``, ``cuda`` or ``mps``.
    threads : int, optional
        CPU threads; one per core if None.

    Returns
    -------
    dask.array.Array
        ZYX, with the volume's shape; float32 in [0, 1], or uint8 for labels. A chunk is a tile, or with ``zyx`` a
        block.

    Raises
    ------
    ConfigError, VolumeError
        If an argument is invalid or the volume cannot be used; bad slices raise only when they are read.
    ModelError
        If the network gives NaN or infinity, when the result is computed.
    """
    model, volume = load_model(model), open_volume(raw)
    if output not in ("probability", "labels", "boundary"):
        raise ConfigError(f"output is {output!r}: choose probability, labels or boundary.")
    if output == "boundary" and not model.boundary:
        raise ConfigError("output is boundary, but the model has not learnt outlines: train one with boundary.")
    if planes not in ("z", "zyx"):
        raise ConfigError(f"planes is {planes!r}: choose z or zyx.")
    level = model.threshold if threshold is None else threshold
    if not isinstance(level, Real) or not 0 <= level < 1:
        raise ConfigError(f"threshold is {level!r}: give a number from 0 up to, not including, 1.")
    if tile is not None and not (isinstance(tile, Integral) and tile >= 1):
        raise ConfigError(f"tile is {tile!r}: give a number of pixels, at least 1.")
    views = model.views if views is None else views
    model = with_statistics(model, volume, statistics, device, threads)
    prediction = _Prediction(model, volume, output, level, tile, planes, views, device, threads)
    dtype, blocks = prediction.dtype, Blocks(prediction.computation, volume.shape)
    chunks = tuple(_pieces(n, side) for n, side in zip(volume.shape, blocks.sides, strict=True))
    name = f"kdunet-{uuid.uuid4().hex}"  # otherwise dask hashes model and volume, and copies them to do so
    shared = delayed(blocks, name=f"{name}-blocks", traverse=False)  # one node of the graph: sent to a worker once
    meta = np.empty((0, 0, 0), dtype)
    lazy: da.Array = da.map_blocks(_one_block, blocks=shared, name=name, chunks=chunks, dtype=dtype, meta=meta)
    return lazy


@dataclass(frozen=True)
class _Prediction:
    """Checked arguments of `predict`, and the computation that they define."""

    model: Model
    volume: Volume
    output: str
    level: float
    tile: int | None
    planes: str
    views: int
    device: str
    threads: int | None

    @property
    def dtype(self) -> type[Any]:
        """Dtype of the result."""
        return np.uint8 if self.output == "labels" else np.float32

    def computation(self) -> _Computation:
        """Set up the computation for the device and cores of this machine."""
        tiler = Tiler.of(self.model, self.volume, self.device, self.threads, self.views)
        if self.planes == "zyx":
            ortho = OrthoPlanes.of(self.model, self.volume, tiler)
            return ortho.block_size(self.dtype, self.tile), partial(ortho.compute, self._finish)
        block = (1, *tiler.tile(self.tile))
        if self.output == "labels" and tiler.classes == 2:
            return block, partial(_mask, tiler, self.volume, self.level)
        return block, partial(_slice, tiler, self.volume, self._finish)

    @property
    def _finish(self) -> Callable[[torch.Tensor], NDArray[Any]]:
        """Function that turns the logits of a slice into the output."""
        if self.output == "labels":
            return partial(mask if self.model.boundary else labels, threshold=self.level)
        return foreground if self.output == "probability" else last_class


def _mask(tiler: Tiler, volume: Volume, level: float, z: Span, y: Span, x: Span) -> NDArray[Any]:
    return tiler.mask(level, volume, z[0], y, x)[None]


def _slice(
    tiler: Tiler, volume: Volume, finish: Callable[[torch.Tensor], NDArray[Any]], z: Span, y: Span, x: Span
) -> NDArray[Any]:
    return tiler.compute(finish, volume, z[0], y, x)[None]


def prediction_key(model: Model, volume: Volume, **settings: Any) -> str:
    """Return the SHA-256 of what a prediction depends on: version, weights, sizes in nm, volume and `settings`.

    The volume counts by its `Volume.identity` (name, date, ...), not by its pixels. Predictions with the same key are
    equal, so an interrupted one can be resumed.
    """
    digest = hashlib.sha256()
    for name, value in model.net.state_dict().items():
        digest.update(name.encode())
        digest.update(value.cpu().contiguous().numpy().tobytes())
    sizes = (model.pixel_size, model.context_distance)
    digest.update(repr((__version__, *sizes, volume.identity, sorted(settings.items()))).encode())
    return digest.hexdigest()


def _pieces(size: int, step: int) -> tuple[int, ...]:
    return tuple(min(step, size - start) for start in range(0, size, step))


class Blocks:
    """The blocks of a lazy ZYX array, as one node of its graph.

    They are pickled without their engine: each process makes its own when it computes its first block, for the device,
    the threads and the compiled kernels that it has.

    Parameters
    ----------
    make : callable
        Returns the sides of a block and the function that computes one, which holds what cannot be pickled, such as
        engines and locks. It is called at once, as the model may change later, and again in each other process.
    shape : tuple of int
        Shape of the array (Z, Y, X).
    """

    def __init__(self, make: Callable[[], _Computation], shape: tuple[int, int, int]) -> None:
        self.make, self.shape = make, shape
        self.sides, computation = make()
        self._compute: Callable[..., NDArray[Any]] | None = computation

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_compute": None}

    def __call__(self, block_id: tuple[int, int, int]) -> NDArray[Any]:
        """Compute the block with these indices (Z, Y, X)."""
        with _make_lock:
            compute = self._compute = self._compute or self.make()[1]
        starts = (i * side for i, side in zip(block_id, self.sides, strict=True))
        return compute(*((a, min(a + side, n)) for a, side, n in zip(starts, self.sides, self.shape, strict=True)))


def _one_block(blocks: Blocks, block_id: tuple[int, int, int] = (0, 0, 0)) -> NDArray[Any]:
    """Compute a block, with the arguments that `dask.array.map_blocks` passes."""
    return blocks(block_id)
