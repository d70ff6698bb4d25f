"""Tasks for another process without torch, whose import is most of the start of a training."""

import threading
import time
from pathlib import Path

from napari_kdunet.core.errors import UnlabelledError


def sums(volume):
    """The sum of each slice."""
    for z in range(volume.shape[0]):
        yield int(volume.read(z).sum())


def description(volume):
    """What a volume says of itself, and a number of its pixels and of those of its sample."""
    names = ("name", "shape", "voxel_size", "notes", "threshold", "fill", "inverted")
    told = {name: getattr(volume, name) for name in names}
    return told | {"pixels": int(volume.read(1).sum()), "sample": sum(int(part.sum()) for part in volume.sample)}


def describe(volume):
    """That, as an event."""
    yield description(volume)


def endless(log):
    """Numbers without end; each is a line of the log before it is sent, and so is that it was closed."""
    number = 0
    with Path(log).open("w", buffering=1) as file:
        try:
            while True:
                number += 1
                print(number, file=file)
                yield number
        finally:
            print("closed", file=file)


def stuck():
    """One event, and a step of ten minutes."""
    yield 1
    threading.Event().wait(600)


class Slow:
    """Whoever unpickles it is within torch for three seconds."""

    def __reduce__(self):
        return compute, (3.0,)


def compute(seconds):
    """Compute in torch, which lets other threads run meanwhile."""
    import torch

    begin = time.monotonic()
    while time.monotonic() - begin < seconds:
        torch.ones(1_000_000).add(1)


def slow():
    """An event that is received slowly."""
    yield 1
    yield Slow()


def unlabelled(name):
    """Fail as a training can."""
    yield 1
    raise UnlabelledError(f"{name} has no foreground")
