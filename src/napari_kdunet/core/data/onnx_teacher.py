"""Networks of other tools in ONNX files: computed by onnxruntime, in a process with limits of time and memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Sequence
from contextlib import suppress
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from napari_kdunet.core.errors import ModelError
from napari_kdunet.core.networks.protocol import UsualUNet

__all__ = ["PROBE_SIDE", "OnnxNetwork"]

PROBE_SIDE = 128
"""Side of the first patch, in pixels, with which a network shows that it can teach."""

_MOST_BYTES = 2**30  # of a file
_START_SECONDS = 60.0  # to import the libraries, on a machine that is busy
_PROBE_SECONDS, _BYTES_A_SECOND = 1.0, 4e6  # the first patch: a second, and one more for each 4 MB of the file
_SLOWER = 30.0  # times as long as the first patch, a pixel, a tile may take
_PATIENCE = 10.0  # times as long, where the cores are busy with other work
_NO_WINDOW: int = getattr(subprocess, "CREATE_NO_WINDOW", 0)  # on Windows a console would open


class OnnxNetwork(UsualUNet, nn.Module):
    """A network in an ONNX file, from (N, 1, Y, X) images to the (N, C, Y, X) of its first output.

    Images are computed one by one. Where its input has fixed sides, larger images are cut into patches of that size,
    which overlap by half and of which the middle counts; smaller ones are continued at their borders.

    Parameters
    ----------
    path : Path
        The file. It is read whole and given to onnxruntime as bytes.
    tile_seconds : float
        Seconds that every tile may take; one of a slow network has 30 times as long a pixel as the first patch.

    Raises
    ------
    ModelError
        If it cannot be read or is not a network that can teach, takes too long or too much memory, or onnxruntime is
        not installed.

    Attributes
    ----------
    content : bytes
        Of the file.
    """

    def __init__(self, path: Path, tile_seconds: float = 60.0) -> None:
        super().__init__()
        if not path.is_file():
            raise ModelError(f"no teacher {str(path)!r}: give a model, an ONNX file or a probability volume.")
        if find_spec("onnx") is None or find_spec("onnxruntime") is None:
            raise ModelError(f'{path} is ONNX: install what reads it with pip install "napari-kdunet[onnx]".')
        try:
            if path.stat().st_size > _MOST_BYTES:
                raise ModelError(f"{path} has more than {_MOST_BYTES // 2**20} MB: give a smaller network.")
            self.content = path.read_bytes()
        except OSError as error:
            raise ModelError(f"{path} cannot be read: {error.strerror}.") from error
        self.path, self.tile_seconds = path, tile_seconds
        self._probe_seconds = 0.0
        self._process: _Process | None = None
        self._lock = threading.Lock()
        side = self._running(torch.get_num_threads()).side or (PROBE_SIDE, PROBE_SIDE)
        begin = time.perf_counter()
        self._image(np.zeros(side, np.float32))
        self._probe_seconds = (time.perf_counter() - begin) / (side[0] * side[1])

    def forward(self, x: Tensor) -> Tensor:
        """(N, 1, Y, X) to (N, C, Y', X'), on the device of `x`; errors as of the class."""
        images = x.detach().float().cpu()
        return torch.stack([self._any_size(image) for image in images[:, 0]]).to(x.device)

    def _any_size(self, image: Tensor) -> Tensor:
        """(Y, X) to (C, Y, X), in patches where the sides are fixed."""
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
        """(Y, X) to (C, Y', X'), by the process."""
        with self._lock:
            process = self._running(torch.get_num_threads())
            seconds = self._seconds_to_start()
            if self._probe_seconds:
                seconds = max(self.tile_seconds, _SLOWER * self._probe_seconds * image.size)
            content = np.ascontiguousarray(image, np.float32)
            answer, out = process.ask({"shape": list(image.shape)}, content.tobytes(), seconds)
        return np.frombuffer(bytearray(out), np.float32).reshape(answer["shape"])

    def _running(self, threads: int) -> _Process:
        """The process with so many threads, started anew where it has others."""
        if self._process is None or self._process.threads != threads:
            if self._process is not None:
                self._process.end()
            self._process = _Process(self.path, self.content, threads, self._seconds_to_start())
        return self._process

    def _seconds_to_start(self) -> float:
        return _PROBE_SECONDS + len(self.content) / _BYTES_A_SECOND

    @property
    def parameter_count(self) -> int:
        """Numbers in the file's weights."""
        return self._running(torch.get_num_threads()).parameters

    def __getstate__(self) -> dict[str, Any]:
        """Without the process: a copy, here or elsewhere, starts its own."""
        return {name: value for name, value in self.__dict__.items() if name != "_lock"} | {"_process": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """The inverse of `__getstate__`."""
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self._lock = threading.Lock()


def _patches(size: int, side: int) -> list[tuple[int, int, int]]:
    """(where a patch starts, from where and to where it counts) along an axis: half overlaps, cut in the middle."""
    starts = [*range(0, size - side, max(1, side // 2)), size - side]
    cuts = [0, *((first + side + second) // 2 for first, second in pairwise(starts)), size]
    return list(zip(starts, cuts[:-1], cuts[1:], strict=True))


class _Process:
    """`core.data.onnx_process`, as its parent sees it."""

    def __init__(self, path: Path, model: bytes, threads: int, seconds: float) -> None:
        self.path, self.threads = path, threads
        folders = os.pathsep.join(each for each in sys.path if each)
        self._process = subprocess.Popen(
            [
                sys.executable,
                "-P",
                "-m",
                "napari_kdunet.core.data.onnx_process",
            ],  # -P: nothing of this folder is imported
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=os.environ | {"PYTHONPATH": folders, "MALLOC_ARENA_MAX": "1"},
            creationflags=_NO_WINDOW,
            start_new_session=True,  # Ctrl-C is for the training, which may still ask
        )
        self.end = weakref.finalize(self, _end, self._process)
        self._answer(_START_SECONDS)
        answer, _ = self.ask({"threads": threads}, model, seconds)
        self.side: tuple[int, int] | None = tuple(answer["side"]) if answer["side"] else None
        self.parameters: int = answer["parameters"]

    def ask(self, request: dict[str, Any], content: bytes, seconds: float) -> tuple[dict[str, Any], bytes]:
        """Send a request and wait for its answer, at most so long; `ModelError` where there is none."""
        line = json.dumps(request | {"bytes": len(content)}).encode() + b"\n"
        return self._answer(seconds, (line, content))

    def _answer(self, seconds: float, message: Sequence[bytes] = ()) -> tuple[dict[str, Any], bytes]:
        process, done, late = self._process, threading.Event(), threading.Event()
        assert process.stdin is not None
        assert process.stdout is not None

        def end_late() -> None:
            if _is_late(process.pid, seconds, done):
                late.set()
                process.kill()

        watch = threading.Thread(target=end_late, name="kdunet-onnx", daemon=True)
        watch.start()
        answer: dict[str, Any] = {}
        try:
            with suppress(OSError):
                process.stdin.writelines(message)
                process.stdin.flush()
                line = process.stdout.readline()
                answer = json.loads(line) if line else {}
                content = process.stdout.read(answer.get("bytes", 0))
        finally:
            done.set()
            watch.join()
        if late.is_set():
            raise ModelError(
                f"{self.path} takes more than {seconds:.0f} s for a patch: give a faster or other network."
            )
        if not answer or len(content) < answer["bytes"]:
            process.kill()
            raise ModelError(f"{self.path} cannot be computed: it is damaged, or needs too much memory.")
        if "error" in answer:
            reason = "".join(letter if letter.isprintable() else "?" for letter in answer["error"])
            raise ModelError(f"{self.path} cannot teach ({reason}).")
        return answer, content


def _is_late(pid: int, seconds: float, done: threading.Event) -> bool:
    """Wait until `done`, at most so long; where other work has the cores, until the process has computed so long."""
    begin, before = time.monotonic(), _cpu_seconds(pid)
    left = seconds
    while not done.wait(left):
        left = seconds - (_cpu_seconds(pid) - before)
        if left <= 0 or time.monotonic() - begin > _PATIENCE * seconds or not before:
            return True
        left = max(left, 0.05)
    return False


def _cpu_seconds(pid: int) -> float:
    """Time that a process has computed, by fields 14 and 15 of Linux' ``/proc/PID/stat``; 0 if unknown."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError, AttributeError):
        return 0.0


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with suppress(OSError):
                pipe.close()
    process.wait()
