"""An ONNX network that is computed by a process with limits of time and memory; torch is not needed."""

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
from pathlib import Path
from typing import Any, Literal

from napari_kdunet.core.errors import ModelError

__all__ = ["LimitedNetwork", "read_network", "seconds_to_start"]

_MOST_BYTES = 2**30  # of a file
_START_SECONDS = 60.0  # for importing the libraries on a busy machine
_PROBE_SECONDS, _BYTES_A_SECOND = 1.0, 4e6  # for the first patch: a second, and one more for each 4 MB of the file
_PATIENCE = 10.0  # factor by which a time limit is exceeded at most if the cores are busy with other work
_NO_WINDOW: int = getattr(subprocess, "CREATE_NO_WINDOW", 0)  # on Windows a console would open


def read_network(path: Path) -> bytes:
    """Return the content of a file; raise `ModelError` if it cannot be read or is too large."""
    try:
        if path.exists() and not path.is_file():  # reading a pipe would block
            raise ModelError(f"{path} is no regular file: give an ONNX file.")
        if path.stat().st_size > _MOST_BYTES:
            raise ModelError(f"{path} has more than {_MOST_BYTES // 2**20} MB: give a smaller network.")
        return path.read_bytes()
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror}.") from error


def seconds_to_start(content: bytes) -> float:
    """Return how many seconds a network of this content may take to be loaded, and as many for its first patch."""
    return _PROBE_SECONDS + len(content) / _BYTES_A_SECOND


class LimitedNetwork:
    """A network that a process of its own computes: the parent's side of `core.data.onnx_process`.

    Parameters
    ----------
    path : Path
        Path of the file, for messages.
    content : bytes
        Content of the file.
    threads : int
        Number of CPU threads.
    kind : {"teacher", "exported"}
        A network that takes one image, or one that `export_onnx` has written.

    Attributes
    ----------
    side : (int, int) or None
        Sides (Y, X) of a patch in pixels, if they are fixed.
    parameters : int
        Number of parameters.
    end : callable
        Ends the process.

    Raises
    ------
    ModelError
        If the network is refused, or takes too long or too much memory.
    """

    def __init__(self, path: Path, content: bytes, threads: int, kind: Literal["teacher", "exported"]) -> None:
        self.path, self.threads = path, threads
        folders = os.pathsep.join(each for each in sys.path if each)
        module = ["-P", "-m", "napari_kdunet.core.data.onnx_process"]  # -P: imports nothing from this folder
        self._process = subprocess.Popen(
            [sys.executable, *module],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=os.environ | {"PYTHONPATH": folders, "MALLOC_ARENA_MAX": "1"},
            creationflags=_NO_WINDOW,
            start_new_session=True,  # Ctrl-C is for the training, which may need it still
        )
        self.end = weakref.finalize(self, _end, self._process)
        self._answer(_START_SECONDS)
        answer, _ = self.ask({"threads": threads, "kind": kind}, content, seconds_to_start(content))
        self.side: tuple[int, int] | None = tuple(answer["side"]) if answer["side"] else None
        self.parameters: int = answer["parameters"]

    def ask(self, request: dict[str, Any], content: bytes, seconds: float) -> tuple[dict[str, Any], bytes]:
        """Send a request and return the answer and its bytes; raise `ModelError` if none comes within `seconds`."""
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
            raise ModelError(f"{self.path} cannot be used ({answer['error']}).")
        return answer, content


def _is_late(pid: int, seconds: float, done: threading.Event) -> bool:
    """Wait until `done`, for `seconds` at most, and return whether the time ran out.

    If other work has the cores, the limit is in CPU seconds of the process, and `_PATIENCE` times as long overall.
    """
    begin, before = time.monotonic(), _cpu_seconds(pid)
    left = seconds
    while not done.wait(left):
        now = _cpu_seconds(pid)
        if before is None or now is None or time.monotonic() - begin > _PATIENCE * seconds:
            return True
        left = seconds - (now - before)
        if left <= 0:
            return True
        left = max(left, 0.05)
    return False


def _cpu_seconds(pid: int) -> float | None:
    """Return the CPU seconds of a process, by fields 14 and 15 of Linux' ``/proc/PID/stat``; None if unknown."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError, AttributeError):
        return None


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with suppress(OSError):
                pipe.close()
    process.wait()
