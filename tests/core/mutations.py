"""Damaged and forged files: a seeded mutator, and the promise that each of them has to keep.

A reader gives a value or one `KDUNetError` of one line, within two seconds of computing and half a gigabyte, whatever
a file holds.
"""

from __future__ import annotations

import json
import os
import random
import resource
import time
from collections.abc import Callable, Iterator
from typing import Any

from napari_kdunet.core.errors import KDUNetError

SECONDS, MEGABYTES = 2.0, 500
PATIENCE = 60.0  # s on the clock, which other processes of this machine may take

#: Values that a careful reader has to be asked about.
ODD: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2, 3, 7, 64, 512, 513, 2**31, 2**53, 2**64, -(2**63), 10**6, 10**400, 0.5, -0.0,
    1e-300, 1e300, float("nan"), float("inf"), float("-inf"), "", "2", "auto", "\x1b[31m\n\r\0", "\ud800", "é" * 300,
    "x" * 5000, [], {}, [[]], [1, 2, 3], [None], ["a"] * 3, {"a": {"b": 1}}, [float("nan")], "F32",
    "I64", "BF16", "../x", 1e16,
)  # fmt: skip


def damaged(data: bytes, seed: int) -> bytes:
    """`data` with one to three accidents: flipped bits, a cut, a hole, noise, a repeated or a missing part."""
    rng = random.Random(seed)
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        at = rng.randrange(max(1, len(out)) if rng.random() < 0.5 else max(1, min(len(out), 4096)))
        end = min(len(out), at + rng.choice((1, 2, 4, 8, 64, 1024)))
        match rng.randrange(8):
            case 0 | 1 | 2 if out:
                for _ in range(rng.choice((1, 1, 8))):
                    out[rng.randrange(at, end)] ^= 1 << rng.randrange(8)
            case 3:
                del out[at:]
            case 4:
                del out[at:end]
            case 5:
                out[at:end] = rng.randbytes(end - at)
            case 6:
                out[at:at] = out[at:end] * rng.choice((1, 2, 50))
            case _:
                out[at:end] = rng.choice((b"\x00", b"\xff")) * (end - at)
    return bytes(out)


def forged(value: Any, seed: int) -> Any:
    """A copy of JSON values in which one to three of them, at any depth, are others, missing or of another name."""
    rng = random.Random(seed)
    value = json.loads(json.dumps(value))
    for _ in range(rng.choice((1, 1, 2, 3))):
        places = list(_places(value))
        if not places:
            return rng.choice(ODD)
        parent, key = rng.choice(places)
        match rng.randrange(10):
            case 0:
                del parent[key]
            case 1 if isinstance(parent, dict):
                parent[rng.choice(("a", "k", "__metadata__", "\x1b[2J", "x" * 3000))] = parent.pop(key)
            case 2:
                for _ in range(rng.choice((30, 100, 400))):
                    parent[key] = [parent[key]]
            case _:
                parent[key] = rng.choice(ODD)
    return value


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    keys = value.keys() if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    for key in keys:
        yield value, key
        yield from _places(value[key])


def damaged_json(value: Any, seed: int) -> bytes:
    """JSON that is forged, or its text damaged, or both."""
    text = json.dumps(forged(value, seed) if seed % 3 else value).encode()
    return text if seed % 3 == 1 else damaged(text, seed)


def split_safetensors(data: bytes) -> tuple[dict[str, Any], bytes]:
    """The header and the tensors' bytes of a ``.safetensors`` file."""
    length = 8 + int.from_bytes(data[:8], "little")
    return json.loads(data[8:length]), data[length:]


def join_safetensors(header: dict[str, Any], tensors: bytes, *, length: int | None = None) -> bytes:
    """The inverse; without our checksum, as who forges a file would leave it out."""
    if isinstance(header, dict) and isinstance(header.get("__metadata__"), dict):
        header["__metadata__"].pop("crc32", None)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return (len(text) if length is None else length).to_bytes(8, "little") + text + tensors


def damaged_safetensors(data: bytes, seed: int) -> bytes:
    """A ``.safetensors`` file with accidents, or with a forged header, metadata or weights."""
    rng = random.Random(seed)
    header, tensors = split_safetensors(data)
    match seed % 4:
        case 0:
            return damaged(data, seed)
        case 1:
            metadata = json.loads(header["__metadata__"]["napari_kdunet"])
            header["__metadata__"]["napari_kdunet"] = json.dumps(forged(metadata, seed))
            return join_safetensors(header, tensors)
        case 2:
            return join_safetensors(forged(header, seed), tensors)
        case _:
            length = rng.choice((None, 0, 7, 2**20, 2**40, 2**63, 2**64 - 1))
            return join_safetensors(header, damaged(tensors, seed), length=length)


def keeps_promise(read: Callable[[], Any], seconds: float = SECONDS) -> Any:
    """What `read` gives, or its `KDUNetError`; fails where it takes too long or says too much.

    Counted are the seconds that this process computes, and those of the processes that ended meanwhile.
    """
    clock, begin = time.perf_counter(), _cpu_seconds()
    try:
        result = read()
    except KDUNetError as error:
        message = str(error)
        assert message.isprintable(), message
        assert len(message) < 300, message
        result = error.with_traceback(None)  # which holds what was opened, a process too
    took, waited = _cpu_seconds() - begin, time.perf_counter() - clock
    assert took < seconds, f"{took:.1f} s"
    assert waited < PATIENCE, f"{waited:.1f} s on the clock"
    return result


def _cpu_seconds() -> float:
    return sum(os.times()[:4])


def peak_megabytes(who: int = resource.RUSAGE_SELF) -> float:
    """Largest memory that this process (or any that it has waited for) has had so far."""
    return resource.getrusage(who).ru_maxrss / 1024
