"""A k-Unet on the CPU by the compiled kernels; importing this needs Numba (the extra ``fast``)."""

from __future__ import annotations

import os
import time
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from napari_kdunet.core.kernels.inference import run
from napari_kdunet.core.kernels.layout import MemoryPlan, WeightOffsets, plan_memory
from napari_kdunet.core.kernels.packing import packed_in_fours
from napari_kdunet.core.networks.unet import KUNet

__all__ = ["CompiledUNet"]


class CompiledUNet:
    """A `KUNet` compiled for this machine: the same logits to float32 rounding.

    It serves one call at a time. The first call in a process loads the kernels from Numba's cache, or compiles them for
    some seconds.

    Parameters
    ----------
    net : KUNet
        Network on the CPU, with fused batch normalisation: see `engine.folded`.
    threads : int
        Maximum number of CPU threads, the caller's included. A call uses no more than torch has in the calling thread
        (`using_threads`).
    """

    def __init__(self, net: KUNet, threads: int) -> None:
        self.net, self.threads = net, threads
        self._slope = np.float32(net.slope)
        self._weights, self._offsets = _pack(net)
        self._plan: MemoryPlan | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.net, self.threads)  # without the memory, which is planned for this machine's vectors

    def __call__(self, batch: Tensor) -> Tensor:
        """Return the logits (1, C, Y, X) of an image (1, channels, Y, X), valid until the next call overwrites them."""
        size = (batch.shape[2], batch.shape[3])
        if self._plan is None or self._plan.size != size:
            self._plan = None  # frees its memory first
            net = self.net
            ends = (net.channels, net.head.out_channels)
            self._plan = plan_memory(net.k, net.depth, ends, self._offsets, size, self.threads)
        self._plan.progress[:] = 0
        work = partial(self._work, np.ascontiguousarray(batch[0].numpy(), np.float32))
        used = self._plan.scratch[: torch.get_num_threads()]
        others = [_pool(self.threads, os.getpid()).submit(work, scratch) for scratch in used[1:]]
        work(self._plan.scratch[0])
        for other in others:
            other.result()
        return torch.from_numpy(self._plan.logits)[None]

    def _work(self, image: NDArray[np.float32], scratch: int) -> None:
        plan, band = self._plan, -1
        assert plan is not None
        tasks = (plan.stages, plan.bands, plan.progress)
        while (band := run(plan.memory, self._weights, image, *tasks, self._slope, scratch, band)) >= 0:
            time.sleep(0)  # yield the core: the thread that computes the band waited for may need it


@cache
def _pool(threads: int, process: int) -> ThreadPoolExecutor:
    """Return the threads beside the caller's. A forked process has none of its parent's, and needs its own."""
    return ThreadPoolExecutor(threads - 1, "kdunet")


def _pack(net: KUNet) -> tuple[NDArray[np.float32], WeightOffsets]:
    """Return all weights in the order in which the kernels read them, and the offsets of each stage's weights."""
    parts: list[NDArray[np.float32]] = []
    offsets: WeightOffsets = []
    following = [None] * net.depth + [*net.up, net.head]
    for stage, last in zip([*net.down, *net.merge], following, strict=True):
        first, second = (layer for layer in stage if isinstance(layer, nn.Conv2d))
        starts = []
        for layer, pack in ((first, packed_in_fours), (second, packed_in_fours), (last, _pack_last)):
            starts.append(sum(part.size for part in parts))
            parts += [] if layer is None else pack(layer)
        offsets.append((starts[0], starts[1], starts[2]))
    return np.concatenate(parts), offsets


def _pack_last(layer: Any) -> list[NDArray[np.float32]]:
    """Return the packed head, or an up-convolution: by output channel, four biases, then weights (inputs, 2, 2)."""
    if not isinstance(layer, nn.ConvTranspose2d):
        return packed_in_fours(layer)
    weight, bias = layer.weight.detach().numpy(), layer.bias.detach().numpy()  # type: ignore[union-attr]
    return [part for c in range(len(bias)) for part in (bias[[c] * 4], weight[:, c].ravel())]
