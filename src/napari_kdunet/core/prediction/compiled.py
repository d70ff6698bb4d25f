"""A k-Unet on the CPU by the compiled kernels; importing this needs Numba (the extra ``fast``)."""

from __future__ import annotations

import os
import time
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from napari_kdunet.core.kernels.inference import run
from napari_kdunet.core.kernels.layout import Layout, Weights, lay_out
from napari_kdunet.core.networks.unet import KUNet

__all__ = ["CompiledUNet"]


class CompiledUNet:
    """A `KUNet` compiled for this machine: the same logits to float32 rounding.

    It works for one caller at a time. The first call of a process loads what Numba has kept from an earlier one, or
    compiles for some seconds.

    Parameters
    ----------
    net : KUNet
        On the CPU, without batch normalisation: see `engine.folded`.
    threads : int
        How many to compute with, the caller's included.
    """

    def __init__(self, net: KUNet, threads: int) -> None:
        self.net, self.threads = net, threads
        self._slope = np.float32(net.slope)
        self._weights, self._places = _pack(net)
        self._layout: Layout | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.net, self.threads)  # what is packed for this machine stays here

    def __call__(self, batch: Tensor) -> Tensor:
        """Logits (1, C, Y, X) of one image (1, 1, Y, X); valid until the next call, which writes there again."""
        _, _, height, width = batch.shape
        if self._layout is None or self._layout.image.shape != (height, width):
            self._layout = None  # its memory first
            net = self.net
            self._layout = lay_out(net.k, net.depth, net.head.out_channels, self._places, (height, width), self.threads)
        self._layout.image[:] = batch[0, 0].numpy()
        self._layout.progress[:] = 0
        helpers = [_helpers(self.threads, os.getpid()).submit(self._work, own) for own in self._layout.scratch[1:]]
        self._work(self._layout.scratch[0])
        for helper in helpers:
            helper.result()
        return torch.from_numpy(self._layout.logits)[None]

    def _work(self, scratch: int) -> None:
        layout, band = self._layout, -1
        assert layout is not None
        about = (layout.memory, self._weights, layout.stages, layout.bands, layout.progress, self._slope, scratch)
        while (band := run(*about, band)) >= 0:
            time.sleep(0)  # whoever has the band that this one waits for may need the core


@cache
def _helpers(threads: int, process: int) -> ThreadPoolExecutor:
    """Threads beside the caller's; a forked process has none of its parent's, and needs its own."""
    return ThreadPoolExecutor(threads - 1, "kdunet")


def _pack(net: KUNet) -> tuple[NDArray[np.float32], Weights]:
    """All weights in the order in which the kernels read them, and where those of each stage begin."""
    parts: list[NDArray[np.float32]] = []
    places: Weights = []
    following = [None] * net.depth + [*net.up, net.head]
    for stage, last in zip([*net.down, *net.merge], following, strict=True):
        first, second = (layer for layer in stage if isinstance(layer, nn.Conv2d))
        begins = []
        for layer, pack in ((first, _pack_convolution), (second, _pack_convolution), (last, _pack_last)):
            begins.append(sum(part.size for part in parts))
            parts += [] if layer is None else pack(layer)
        places.append((begins[0], begins[1], begins[2]))
    return np.concatenate(parts), places


def _pack_convolution(layer: Any) -> list[NDArray[np.float32]]:
    """Output channels in fours, then two, then one: biases, then (inputs, taps, taps, channels)."""
    weight, bias = layer.weight.detach().numpy(), layer.bias.detach().numpy()
    parts, channel = [], 0
    while channel < len(bias):
        block = slice(channel, channel + next(size for size in (4, 2, 1) if channel + size <= len(bias)))
        parts += [bias[block], weight[block].transpose(1, 2, 3, 0).ravel()]
        channel = block.stop
    return parts


def _pack_last(layer: Any) -> list[NDArray[np.float32]]:
    """The head, or output channel by output channel an up-convolution: four biases, then (inputs, 2, 2)."""
    if not isinstance(layer, nn.ConvTranspose2d):
        return _pack_convolution(layer)
    weight, bias = layer.weight.detach().numpy(), layer.bias.detach().numpy()  # type: ignore[union-attr]
    return [part for c in range(len(bias)) for part in (bias[[c] * 4], weight[:, c].ravel())]
