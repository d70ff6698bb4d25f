"""Where to compute, and with how many threads."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from napari_kdunet.core.errors import ConfigError

if TYPE_CHECKING:  # exported models count the cores where there is no torch
    import torch

__all__ = [
    "TINY",
    "check_default_dtype",
    "cores",
    "pick_device",
    "precision_notes",
    "training_threads",
    "using_threads",
]

#: Channels at the top below which a network is tiny: too small to keep a core busy by itself.
TINY = 8


class _Users:
    """Number of open `using_threads` blocks, and torch's number of threads before the first of them.

    A new thread gets the number that was set last, by any thread; so the last block to end restores the first number.
    """

    lock, count, before = threading.Lock(), 0, 1


def pick_device(name: str = "auto") -> torch.device:
    """Return the device called ``cpu``, ``cuda`` or ``mps``; for ``auto`` the best one of this machine.

    Raises
    ------
    ConfigError
        If this machine does not have it.
    """
    import torch

    have = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        name = next(kind for kind, there in have.items() if there)
    if not have.get(name, False):
        there = ", ".join(kind for kind, ok in have.items() if ok)
        raise ConfigError(f"device {name!r} is not available here: choose auto or one of {there}.")
    return torch.device(name)


def check_default_dtype() -> None:
    """Check that torch makes tensors of float32, in which networks are trained, unless it is told otherwise.

    Raises
    ------
    ConfigError
        If `torch.set_default_dtype` has been called with another one.
    """
    import torch

    if (dtype := torch.get_default_dtype()) != torch.float32:
        raise ConfigError(
            f"torch's default dtype is {dtype}, but networks are trained in float32: call "
            "torch.set_default_dtype(torch.float32) first. For training in bfloat16 there is the setting precision."
        )


def precision_notes(precision: str, device: torch.device, k: int) -> tuple[str, ...]:
    """Return advice, one sentence each, on training a k-Unet in a precision on a device.

    A CPU without instructions for bfloat16 computes in it slowly; one with them is faster in it, except for tiny
    networks.
    """
    import torch

    able = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    if device.type != "cpu" or able.get("architecture") != "x86_64":
        return ()
    has = able.get("avx512_bf16") or able.get("amx_bf16")
    if precision == "bf16-mixed" and not has:
        return ("this CPU has no instructions for bfloat16: 32-true is faster here than bf16-mixed.",)
    if precision == "32-true" and has and k >= TINY:
        return (f"this CPU has instructions for bfloat16: a {k}-Unet learns faster with bf16-mixed as precision.",)
    return ()


def cores() -> int:
    """Return the number of cores that this process may use.

    If several processes of one training run on this machine, each has an equal share of its cores; a dask worker has
    its number of threads.
    """
    if "distributed" in sys.modules:
        with suppress(ValueError, AttributeError):  # not in a worker, or another thread is just importing it
            return int(sys.modules["distributed"].get_worker().state.nthreads)
    found = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, found // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))  # torchrun and `training.distributed` set it


def training_threads(k: int, wanted: int | None = None) -> tuple[int, int]:
    """Return the CPU threads for training a k-Unet, and those for the helper that makes the next batch meanwhile.

    Unless `wanted` is given, tiny networks train on one thread and others on one per core: in a tiny network the work
    between two barriers is so short that a second thread gains nothing on an idle machine and loses threefold on a busy
    one.
    """
    threads = wanted or (1 if k < TINY else cores())
    return threads, max(1, cores() - threads)


@contextmanager
def using_threads(count: int) -> Iterator[None]:
    """Let torch use `count` CPU threads for this thread's work in the block, and restore the number afterwards."""
    import torch

    with _Users.lock:
        before = torch.get_num_threads()
        if not _Users.count:
            _Users.before = before
        _Users.count += 1
        torch.set_num_threads(count)
    try:
        yield
    finally:
        with _Users.lock:
            _Users.count -= 1
            torch.set_num_threads(before if _Users.count else _Users.before)
