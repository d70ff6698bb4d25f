"""Apply a model that was exported as ONNX, by onnxruntime: torch need not be installed."""

from __future__ import annotations

import hashlib
import math
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

import dask.array as da
import numpy as np
from numpy.typing import NDArray

from napari_kdunet import __version__
from napari_kdunet.core.data.limited_onnx import LimitedNetwork, read_network, seconds_to_start
from napari_kdunet.core.data.onnx_process import RefusedError, check_operators
from napari_kdunet.core.devices import cores
from napari_kdunet.core.errors import ConfigError, ModelError
from napari_kdunet.core.networks.class_names import has_boundary
from napari_kdunet.core.parsing import parse_json
from napari_kdunet.core.prediction.tiling import Tiling
from napari_kdunet.core.volumes.resampling import Grid
from napari_kdunet.core.volumes.sample import standardised
from napari_kdunet.core.volumes.volume import Volume, open_volume

__all__ = ["OnnxModel"]

_KEY = "kdunet."
_BOUNDS = {
    "pixel_size": (0, 1e6),
    "threshold": (0, 1),
    "multiple": (2, 64),
    "reach": (1, 4096),
    "k": (1, 512),
}  # bounds of the numbers that computation depends on
_OUTPUTS = {"probability": "probability", "labels": "mask", "boundary": "boundary"}  # name of each output in the graph
_TOLD = ("name", "version", "precision", *_BOUNDS, "depth", "class_names", "parameter_count")

_PROBE = (1, 1)  # pixels of a first image that shows whether a network can be computed
_TILE_SECONDS = 60.0  # limit for a tile, ten times what the largest known network takes
_BYTES, _BYTES_A_CHANNEL = 256, 64  # limit of memory a pixel, and for each channel of `k`: four times what is used

_lock = threading.Lock()  # one tile at a time: it already uses all threads


@dataclass(frozen=True)
class OnnxModel:
    """A model that `export_onnx` has written.

    >>> OnnxModel.open("model.onnx").predict("volume.zarr")       # doctest: +SKIP

    Attributes
    ----------
    name : str
        Path of the file, also used in messages.
    metadata : dict
        Name, version, precision, working pixel size in nm, threshold, class names, and the form of the network.
    content : bytes
        Content of the file.
    """

    views: ClassVar[int] = 1  # number of mirrored or turned views that are averaged: only the slice as it is

    name: str
    metadata: dict[str, Any]
    content: bytes = field(repr=False)
    _running_with: dict[int, LimitedNetwork] = field(default_factory=dict, init=False, repr=False, compare=False)

    @classmethod
    def open(cls, path: str | Path) -> OnnxModel:
        """Read a file that `export_onnx` has written.

        Raises
        ------
        ModelError
            If there is no file, it is damaged or was not written by `export_onnx`, the network takes too long or too
            much memory, or onnxruntime is not installed.
        """
        path = Path(path)
        try:
            import onnx
            import onnxruntime  # noqa: F401
        except ImportError:
            raise ModelError(f'{path} is ONNX: install what reads it with pip install "napari-kdunet[onnx]".') from None
        content = read_network(path)
        try:
            model = onnx.load_model_from_string(content)
            check_operators(model)
            metadata = _metadata(model)
        except Exception as error:  # protobuf's own, for a file of another format
            reason = str(error) if isinstance(error, RefusedError | ValueError) else "it is not an ONNX file"
            raise ModelError(f"{path} was not exported by napari-kdunet or is damaged ({reason[:150]}).") from error
        opened = cls(str(path), metadata, content)
        opened._running(cores())
        return opened

    @property
    def pixel_size(self) -> float:
        """Pixel size in nm that the network works at; 0 is the image's own."""
        return float(self.metadata["pixel_size"])

    @property
    def threshold(self) -> float:
        """Foreground probability above which a pixel is foreground."""
        return float(self.metadata["threshold"])

    @property
    def boundary(self) -> bool:
        """Whether the last class is the outlines of objects, as in `Model.boundary`."""
        names = self.metadata.get("class_names")
        return isinstance(names, list) and has_boundary(names)

    def predict(
        self,
        raw: Any,
        *,
        output: Literal["probability", "labels", "boundary"] = "probability",
        threshold: float | None = None,
        threads: int | None = None,
    ) -> da.Array:
        """Segment a volume lazily, as `core.predict`.

        Parameters
        ----------
        raw : volume
            Anything that `open_volume` takes.
        output : {"probability", "labels", "boundary"}
            Foreground probability, float32; labels, uint8; or, for a model that has learnt them, the probability of the
            outlines of objects, float32.
        threshold : float, optional
            Foreground probability above which a pixel is labelled; the model's own if None.
        threads : int, optional
            CPU threads; one per core if None.

        Returns
        -------
        dask.array.Array
            ZYX, of the volume's shape, one chunk per tile.

        Raises
        ------
        ConfigError, VolumeError
            If an argument is invalid or the volume cannot be used; bad slices are found when they are read.
        ModelError
            On computing: if the network gives NaN or cannot be computed.
        """
        volume = open_volume(raw)
        level = self.threshold if threshold is None else threshold
        if output not in _OUTPUTS or not 0 <= level < 1:
            raise ConfigError(
                f"output is {output!r:.40} and threshold {level}: output must be probability, labels or boundary, and "
                "threshold from 0 to below 1."
            )
        if output == "boundary" and not self.boundary:
            raise ConfigError(f"output is boundary, but {self.name} has not learnt outlines: train one with boundary.")
        grid = Grid.in_plane(volume.voxel_size, self.pixel_size)
        tiling = Tiling(grid, *(int(self.metadata[name]) for name in ("multiple", "reach", "k")))
        prediction = _Prediction(self, volume, tiling, _OUTPUTS[output], level, threads or cores())
        chunks = (1, *(min(n, side) for n, side in zip(volume.shape[1:], tiling.tile(), strict=True)))
        meta = np.empty((0, 0, 0), prediction.dtype)
        lazy: da.Array = da.from_array(prediction, chunks=chunks, name=False, meta=meta, asarray=False)
        return lazy

    def describe(self) -> dict[str, Any]:
        """Return what the file says about the model, as JSON values; `napari-kdunet info` shows it."""
        return {"format": "ONNX", **{name: self.metadata[name] for name in _TOLD if name in self.metadata}}

    def prediction_key(self, volume: Volume, **settings: Any) -> str:
        """Return a SHA-256 of all that a prediction depends on, like `prediction_key` for other models."""
        text = repr((__version__, volume.identity, sorted(settings.items())))
        return hashlib.sha256(self.content + text.encode()).hexdigest()

    def compute(
        self, image: NDArray[np.float32], numbers: dict[str, Any], output: str, threads: int, pixels: float
    ) -> NDArray[Any]:
        """Return an output (Y, X) of the graph for one image (Y, X).

        Parameters
        ----------
        image : (Y, X) float32
            Raw or standardised values.
        numbers : dict
            The graph's other inputs, such as `pixel_size`, `mean`, `std` and `threshold`.
        output : str
            Name of the output in the graph.
        threads : int
            CPU threads.
        pixels : float
            Number of working pixels, for the limit of memory.

        Raises
        ------
        ModelError
            If it cannot be computed within the limits of time and memory for a network of this `k`.
        """
        with _lock:
            return self._ask(self._running(threads), image, numbers, output, _TILE_SECONDS, pixels)

    def _ask(
        self,
        process: LimitedNetwork,
        image: NDArray[np.float32],
        numbers: dict[str, Any],
        output: str,
        seconds: float,
        pixels: float,
    ) -> NDArray[Any]:
        memory = int((_BYTES + _BYTES_A_CHANNEL * self.metadata["k"]) * max(image.size, pixels))
        request = {"shape": image.shape, "numbers": numbers, "output": output, "memory": memory}
        answer, out = process.ask(request, np.ascontiguousarray(image, np.float32).tobytes(), seconds)
        return np.frombuffer(bytearray(out), np.dtype(answer["dtype"])).reshape(answer["shape"])

    def _running(self, threads: int) -> LimitedNetwork:
        """Return the process with this number of threads, after it has computed a first image."""
        process = self._running_with.get(threads)
        if process is None:
            process = LimitedNetwork(Path(self.name), self.content, threads, "exported")
            self._ask(process, np.zeros(_PROBE, np.float32), {}, "mask", seconds_to_start(self.content), 4096)
            self._running_with[threads] = process
        return process

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_running_with": {}}


def _metadata(model: Any) -> dict[str, Any]:
    """Return the metadata that `export_onnx` wrote; raises `ValueError` where a value is missing or out of bounds."""
    entries = {entry.key: entry.value for entry in model.metadata_props}
    metadata = {key.removeprefix(_KEY): parse_json(text) for key, text in entries.items() if key.startswith(_KEY)}
    for name, (least, most) in _BOUNDS.items():
        value = metadata.get(name)
        if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= most:
            raise ValueError(f"its {name} is missing, or out of bounds")
    return metadata


class _Prediction:
    """Result of which windows are computed when they are read; for `dask.array.from_array`."""

    ndim = 3

    def __init__(
        self, model: OnnxModel, volume: Volume, tiling: Tiling, output: str, threshold: float, threads: int
    ) -> None:
        self.model, self.volume, self.tiling, self.threads = model, volume, tiling, threads
        self.threshold, self.output = threshold, output
        self.shape, self.dtype = volume.shape, np.dtype(np.uint8 if output == "mask" else np.float32)

    def __getitem__(self, key: tuple[Any, Any, Any]) -> NDArray[Any]:
        """Compute a part of the result: dask reads no more of a chunk than is needed."""
        z, y, x = (np.arange(n)[part] for part, n in zip(key, self.shape, strict=True))
        shape = (*z.shape, *y.shape, *x.shape)
        if 0 in shape:
            return np.empty(shape, self.dtype)
        window = ((int(y.min()), int(y.max()) + 1), (int(x.min()), int(x.max()) + 1))
        wanted = np.ix_(np.ravel(y) - window[0][0], np.ravel(x) - window[1][0])
        return np.stack([self._window(int(each), window)[wanted] for each in np.ravel(z)]).reshape(shape)

    def _window(self, z: int, window: tuple[tuple[int, int], ...]) -> NDArray[Any]:
        """Return a window of slice `z`: it is read with its halo, aligned to units; the graph mirrors its borders."""
        volume, inside, inner = self.volume, [], []
        sides = zip(window, volume.shape[1:], self.tiling.unit, self.tiling.halo, strict=True)
        for (start, stop), size, unit, halo in sides:
            first = max((start - halo) // unit * unit, 0)
            inside.append(slice(first, min(-(-stop // unit) * unit + halo, size)))
            inner.append(slice(start - first, stop - first))
        outside = volume.outside(z, *(slice(*each) for each in window))
        if outside is not None and outside.all():
            return np.zeros(outside.shape, self.dtype)
        stored = volume.read(z, *inside)
        mean, std = volume.statistics(z, stored if stored.shape == volume.shape[1:] else None)
        filled = volume.mirrored(z, inside[0], inside[1], max(self.tiling.halo))
        image = standardised(stored if filled is None else filled, mean, std)
        pixel = volume.voxel_size[1:] if volume.voxel_size else (0, 0)
        numbers = {"pixel_size": list(pixel), "mean": 0, "std": 1, "threshold": self.threshold}
        pixels = float(image.size * math.prod(self.tiling.grid.ratio))
        result = self.model.compute(image, numbers, self.output, self.threads, pixels)
        result = result[tuple(inner)].copy()
        if result.dtype.kind == "f" and np.isnan(result).any():
            raise ModelError(f"{self.model.name} gives NaN for slice z={z} of {volume.name}: its weights overflow.")
        if outside is not None:
            result[outside] = 0
        return result
