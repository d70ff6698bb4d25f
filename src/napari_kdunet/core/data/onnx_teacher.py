"""Networks of other tools in ONNX files: computed by onnxruntime, in a process with limits of time and memory."""

from __future__ import annotations

import threading
import time
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from napari_kdunet.core.data.limited_onnx import LimitedNetwork, read_network, seconds_to_start
from napari_kdunet.core.errors import ModelError
from napari_kdunet.core.networks.protocol import UsualUNet

__all__ = ["PROBE_SIDE", "OnnxNetwork"]

PROBE_SIDE = 128
"""Side in pixels of the first patch, which shows whether a network can teach."""

_SLOWER = 30.0  # factor by which a tile may take longer per pixel than the first patch


class OnnxNetwork(UsualUNet, nn.Module):
    """A network in an ONNX file, from (N, 1, Y, X) images to its first output, (N, C, Y, X).

    Images are computed one by one. If the input has fixed sides, larger images are cut into patches of that size, which
    overlap by half, and the middle of each is used; smaller images are padded with their border pixels.

    Parameters
    ----------
    path : Path
        The file. It is read whole and given to onnxruntime as bytes.
    tile_seconds : float
        Seconds that any tile may take; one of a slow network may take 30 times as long per pixel as the first patch.

    Attributes
    ----------
    content : bytes
        Content of the file.

    Raises
    ------
    ModelError
        If it cannot be read or is not a network that can teach, takes too long or too much memory, or onnxruntime is
        not installed.
    """

    def __init__(self, path: Path, tile_seconds: float = 60.0) -> None:
        super().__init__()
        if not path.is_file():
            raise ModelError(f"no teacher {str(path)!r}: give a model, an ONNX file or a probability volume.")
        if find_spec("onnx") is None or find_spec("onnxruntime") is None:
            raise ModelError(f'{path} is ONNX: install what reads it with pip install "napari-kdunet[onnx]".')
        self.content = read_network(path)
        if b"kdunet.threshold" in self.content:  # its graph is from grey values to probabilities
            raise ModelError(f"{path} was written by export: give the .safetensors file that it was made from.")
        self.path, self.tile_seconds = path, tile_seconds
        self._probe_seconds = 0.0
        self._process: LimitedNetwork | None = None
        self._lock = threading.Lock()
        process = self._running(torch.get_num_threads())
        self._weights, side = process.parameters, process.side or (PROBE_SIDE, PROBE_SIDE)
        begin = time.perf_counter()
        self._image(np.zeros(side, np.float32))
        self._probe_seconds = (time.perf_counter() - begin) / (side[0] * side[1])

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, 1, Y, X) to (N, C, Y', X'), on the device of `x`; errors as of the class."""
        images = x.detach().float().cpu()
        return torch.stack([self._any_size(image) for image in images[:, 0]]).to(x.device)

    def _any_size(self, image: Tensor) -> Tensor:
        """Map (Y, X) to (C, Y', X'); in patches, and then to (C, Y, X), if the sides are fixed."""
        side = self._running(torch.get_num_threads()).side
        if side is None or side == tuple(image.shape):
            return torch.from_numpy(self._image(image.numpy()))
        y, x = image.shape
        below, right = max(0, side[0] - y), max(0, side[1] - x)
        image = F.pad(image[None, None], (0, right, 0, below), mode="replicate")[0, 0]
        rows = []
        for top, first, last in _patches(image.shape[0], side[0]):
            row = []
            for left, start, stop in _patches(image.shape[1], side[1]):
                patch = image[top : top + side[0], left : left + side[1]]
                out = torch.from_numpy(self._image(patch.numpy()))
                if out.shape[-2:] != side:
                    out = F.interpolate(out[None], side, mode="bilinear", align_corners=False)[0]
                row.append(out[:, first - top : last - top, start - left : stop - left])
            rows.append(torch.cat(row, dim=-1))
        return torch.cat(rows, dim=-2)[:, :y, :x]

    def _image(self, image: NDArray[np.float32]) -> NDArray[np.float32]:
        """Map (Y, X) to (C, Y', X') in the process."""
        with self._lock:
            process = self._running(torch.get_num_threads())
            seconds = seconds_to_start(self.content)
            if self._probe_seconds:
                seconds = max(self.tile_seconds, _SLOWER * self._probe_seconds * image.size)
            content = np.ascontiguousarray(image, np.float32)
            answer, out = process.ask({"shape": list(image.shape)}, content.tobytes(), seconds)
        return np.frombuffer(bytearray(out), np.float32).reshape(answer["shape"])

    def _running(self, threads: int) -> LimitedNetwork:
        """Return the process, started anew if it has another number of threads."""
        if self._process is None or self._process.threads != threads:
            if self._process is not None:
                self._process.end()
            self._process = LimitedNetwork(self.path, self.content, threads, "teacher")
        return self._process

    @property
    def parameter_count(self) -> int:
        """Number of parameters in the file."""
        return self._weights

    def __getstate__(self) -> dict[str, Any]:
        """Return the state without the process: a copy, here or elsewhere, starts its own."""
        return {name: value for name, value in self.__dict__.items() if name != "_lock"} | {"_process": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore the state of `__getstate__`."""
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self._lock = threading.Lock()


def _patches(size: int, side: int) -> list[tuple[int, int, int]]:
    """Return (start, first, stop) of each patch along an axis: it is used from `first` to `stop`.

    Patches overlap by half, and overlaps are cut in the middle.
    """
    starts = [*range(0, size - side, max(1, side // 2)), size - side]
    cuts = [0, *((first + side + second) // 2 for first, second in pairwise(starts)), size]
    return list(zip(starts, cuts[:-1], cuts[1:], strict=True))
