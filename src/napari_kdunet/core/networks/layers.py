"""Layers of a U-Net: those of torch, with the same names in a state dict.

When tiny networks train, the compiled kernels compute these layers, plane by plane, where they are faster.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn

from napari_kdunet.core.devices import TINY
from napari_kdunet.core.kernels import autograd

__all__ = ["DoubleConv", "MaxPool", "UpConv", "training_format", "trains_by_planes"]


def trains_by_planes(k: int) -> bool:
    """Return whether the compiled kernels help to train a U-Net with `k` channels at the top on a CPU."""
    return k < TINY and autograd.is_available()


def training_format(k: int, device: torch.device) -> torch.memory_format:
    """Return the memory format in which a U-Net trains fastest: channels last, or contiguous planes for the kernels."""
    by_planes = trains_by_planes(k) and device.type == "cpu"
    return torch.contiguous_format if by_planes else torch.channels_last


def _served(module: DoubleConv | MaxPool | UpConv, layer: nn.Module, x: Tensor) -> bool:
    """Return whether the kernels compute `layer` of `module` for this input."""
    return module.by_planes and module.training and autograd.serves(x, layer)


class DoubleConv(nn.Sequential):
    """Two padded 3x3 convolutions with bias, each followed by BN (optional) and the activation.

    Parameters
    ----------
    inputs, outputs : int
        Numbers of channels.
    bn : bool
        Whether batch normalisation follows each convolution.
    slope : float
        Slope of the activation for negative values: LeakyReLU, or ReLU for 0.
    by_planes : bool
        Whether the layer is part of a network that `trains_by_planes`.
    """

    def __init__(self, inputs: int, outputs: int, bn: bool, slope: float, by_planes: bool) -> None:
        layers: list[nn.Module] = []
        for a, b in pairwise((inputs, outputs, outputs)):
            norm = [nn.BatchNorm2d(b)] if bn else []
            act = nn.LeakyReLU(slope, inplace=True) if slope else nn.ReLU(inplace=True)
            layers += [nn.Conv2d(a, b, 3, padding=1), *norm, act]
        super().__init__(*layers)
        self.slope, self.by_planes = slope, by_planes

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, inputs, Y, X) to (N, outputs, Y, X)."""
        layers = list(self)
        for unit in (layers[: len(layers) // 2], layers[len(layers) // 2 :]):
            if _served(self, unit[0], x):
                x = autograd.run(x, unit, self.slope)
            else:
                for layer in unit:
                    x = layer(x)
        return x


class MaxPool(nn.MaxPool2d):
    """2x2 max-pooling."""

    def __init__(self, by_planes: bool) -> None:
        super().__init__(2)
        self.by_planes = by_planes

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, Y, X) to (N, C, Y / 2, X / 2)."""
        return autograd.resize(x, self) if _served(self, self, x) else super().forward(x)


class UpConv(nn.ConvTranspose2d):
    """Transposed 2x2 convolution of stride 2, with bias."""

    def __init__(self, inputs: int, outputs: int, by_planes: bool) -> None:
        super().__init__(inputs, outputs, 2, stride=2)
        self.by_planes = by_planes

    def forward(self, x: Tensor, output_size: list[int] | None = None) -> Tensor:
        """Map (N, inputs, Y, X) to (N, outputs, 2 Y, 2 X)."""
        return autograd.resize(x, self) if _served(self, self, x) else super().forward(x, output_size)
