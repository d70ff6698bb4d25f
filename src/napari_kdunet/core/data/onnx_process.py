"""The process that computes somebody else's ONNX network, after checking it, within limits of memory.

`core.data.limited_onnx` starts the process, sets a time limit for each answer, and ends the process when that has
passed. A message in either direction is a line of JSON, followed by the bytes that the line announces. Messages hold no
code, and neither does a network: its operators are those of ONNX, computed by onnxruntime, and none of them reads or
writes a file.
"""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

__all__ = ["RefusedError", "check_operators"]

_MORE_BYTES = 96 * 2**20  # for a small network, besides what its file and its patch take
_BYTES_A_PIXEL = 8192  # of a patch: twice what a 64-Unet takes at the top
_STACK_BYTES = 16 * 2**20  # for each thread
_DOMAINS = ("", "ai.onnx")  # of ONNX's own operators
_TYPES = {1: np.float32, 10: np.float16, 11: np.float64}  # of inputs and weights, by ONNX's numbers of types
_MOST_CHANNELS, _MOST_SIDES = 64, 2  # of an output; its sides are relative to those of the input


class RefusedError(Exception):
    """A network cannot be used; the message says why, in words for its owner."""


def main() -> None:
    """Answer requests until the input ends."""
    requests, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints must not be among the answers
    import onnx  # noqa: F401 - before the limits: the memory it takes is not the network's
    import onnxruntime  # noqa: F401

    base = _address_space()
    _send(answers, {"ready": True})
    network: _Network | None = None
    while line := requests.readline():
        request = json.loads(line)
        content = requests.read(request["bytes"])
        try:
            if network is None:
                threads = request["threads"]
                kind = _Exported if request["kind"] == "exported" else _Network
                network = kind(content, threads, base + _MORE_BYTES + _STACK_BYTES * threads + 6 * len(content))
                _send(answers, {"side": network.side, "parameters": network.parameters})
            else:
                out = network.compute(np.frombuffer(content, np.float32).reshape(request["shape"]), request)
                _send(answers, {"shape": out.shape, "dtype": str(out.dtype)}, out.tobytes())
        except Exception as error:  # noqa: BLE001 - a damaged network makes its libraries raise anything
            _send(answers, {"error": " ".join(str(error).split())[:150] or type(error).__name__})


def _send(answers: BinaryIO, answer: dict[str, Any], content: bytes = b"") -> None:
    answers.write(json.dumps(answer | {"bytes": len(content)}).encode() + b"\n" + content)
    answers.flush()


def _address_space() -> int:
    """Return the number of bytes that this process has mapped; 0 where the system does not say."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError):
        return 0


def _limit_memory(size: int) -> None:
    """Limit this process to `size` bytes of address space, where the system can count them."""
    if _address_space():
        import resource

        hard = resource.getrlimit(resource.RLIMIT_AS)[1]
        with suppress(ValueError):  # there is a stricter limit
            resource.setrlimit(resource.RLIMIT_AS, (size, hard))


class _Network:
    """A network with one (N, 1, Y, X) input, whose first output is used.

    Attributes
    ----------
    side : (int, int) or None
        Sides (Y, X) of its patches in pixels, if they are fixed.
    parameters : int
        Number of parameters.
    """

    def __init__(self, content: bytes, threads: int, memory: int) -> None:
        import onnx
        import onnxruntime

        self._memory = memory
        _limit_memory(memory)
        try:
            model = onnx.load_model_from_string(content)
        except Exception as error:
            raise RefusedError("it is not an ONNX file") from error
        self.parameters = check_operators(model)
        self._input, self._dtype, self.side = _input_of(model)
        del model
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        options.enable_cpu_mem_arena = False  # it takes more than it needs, and keeps it
        options.log_severity_level = 4
        options.add_session_config_entry("session.load_model_format", "ONNX")
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # others compute between patches
        self._session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        self._output = self._session.get_outputs()[0].name

    def compute(self, image: NDArray[np.float32], request: dict[str, Any]) -> NDArray[Any]:
        """Compute the logits (C, Y, X), float32, of an image (Y, X)."""
        _limit_memory(self._memory + _BYTES_A_PIXEL * image.size)
        (out,) = self._session.run([self._output], {self._input: image[None, None].astype(self._dtype)})
        if not isinstance(out, np.ndarray) or out.dtype.kind != "f" or out.ndim != 4 or out.shape[0] != 1:
            raise RefusedError("it must give (N, classes, Y, X) logits for (N, 1, Y, X)")
        sides = zip(out.shape[2:], image.shape, strict=True)
        if not 1 <= out.shape[1] <= _MOST_CHANNELS or not all(1 <= a <= _MOST_SIDES * b for a, b in sides):
            raise RefusedError(f"it gives an output of shape {out.shape} for an image of {image.shape}")
        return np.ascontiguousarray(out[0], np.float32)


class _Exported(_Network):
    """A network that `export_onnx` has written, from an image and some numbers to a probability and a mask."""

    def compute(self, image: NDArray[np.float32], request: dict[str, Any]) -> NDArray[Any]:
        """Compute the output (Y, X) that the request names, from an image (Y, X) and the numbers of the request."""
        _limit_memory(self._memory + request["memory"])
        numbers = {name: np.array(value, np.float32) for name, value in request["numbers"].items()}
        (out,) = self._session.run([request["output"]], {self._input: image[None, None]} | numbers)
        if not isinstance(out, np.ndarray) or out.dtype not in (np.float32, np.uint8):
            raise RefusedError("its output is not numbers")
        if out.shape != (1, 1, *image.shape):
            raise RefusedError(f"it gives an output of shape {out.shape} for an image of {image.shape}")
        return np.ascontiguousarray(out[0, 0])


def check_operators(model: Any) -> int:
    """Return a model's number of parameters, after checking that it refers to nothing outside of its file.

    Raises
    ------
    RefusedError
        If it refers to other files, or has operators that are not ONNX's own.
    """
    for message in _messages(model):
        match type(message).__name__:
            case "TensorProto":
                if message.data_location or message.external_data:
                    raise RefusedError("it refers to other files: save it with its weights inside")
            case "NodeProto" if message.domain not in _DOMAINS:
                raise RefusedError(f"not all of its operators are standard ONNX: one is of {message.domain[:40]!r}")
    return sum(math.prod(tensor.dims) for tensor in model.graph.initializer if tensor.data_type in _TYPES)


def _messages(model: Any) -> Iterator[Any]:
    """Yield a protobuf message and all those inside it, however deep."""
    found = [model]
    while found:
        message = found.pop()
        yield message
        for kind, value in message.ListFields():
            if kind.message_type is not None:
                found.extend([value] if hasattr(value, "ListFields") else value)


def _input_of(model: Any) -> tuple[str, Any, tuple[int, int] | None]:
    """Return name, dtype and fixed sides (Y, X), if any, of the only input; raise `RefusedError` if it is no image."""
    weights = {tensor.name for tensor in model.graph.initializer}
    inputs = [each for each in model.graph.input if each.name not in weights]
    if len(inputs) != 1 or not model.graph.output:
        raise RefusedError(f"it has {len(inputs)} inputs and {len(model.graph.output)} outputs: it must take one image")
    tensor = inputs[0].type.tensor_type
    sizes = [each.dim_value if each.WhichOneof("value") == "dim_value" else 0 for each in tensor.shape.dim]
    if tensor.elem_type not in _TYPES or len(sizes) != 4 or sizes[0] not in (0, 1) or sizes[1] not in (0, 1):
        raise RefusedError("its input must be of floats and of shape (N, 1, Y, X)")
    y, x = sizes[2:]
    if bool(y) != bool(x) or (y and not (16 <= y <= 4096 and 16 <= x <= 4096)):
        raise RefusedError(f"its input is {y} x {x} pixels: both sides must be free (dynamic), or from 16 to 4096")
    return inputs[0].name, _TYPES[tensor.elem_type], (y, x) if y else None


if __name__ == "__main__":
    main()
    sys.exit()
