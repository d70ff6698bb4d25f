"""The k-Unet: a U-Net with k channels at the top (paper, "U-net Architecture")."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from napari_kdunet.core.errors import ConfigError
from napari_kdunet.core.networks.layers import DoubleConv, MaxPool, UpConv, trains_by_planes

__all__ = ["KUNet"]

_SLOPE = 0.1  # of LeakyReLU below 0: enough to keep a one-channel stage alive


class KUNet(nn.Module):
    """U-Net with `k` channels at the top, doubled at each of `depth` max-poolings.

    Each stage has two padded 3x3 convolutions; up-sampling is by 2x2 transposed convolutions of stride 2, skips are
    concatenated, and the head is a 1x1 convolution. With BN, k = 2 has 30,902 parameters and k = 64 has 31,042,434, the
    two figures of the paper; each slice of `context`, above and below, adds 9 k.

    Parameters
    ----------
    k : int
        Channels at the top, at least 1.
    bn : bool
        Batch normalisation after each 3x3 convolution.
    classes : int
        Number of classes, background included, at least 2.
    depth : int
        Number of down-samplings, at least 1.
    activation : {"leaky_relu", "relu"}
        The paper has ReLU; LeakyReLU keeps tiny networks alive.
    init : {"he", "torch"}
        He initialisation with zero biases, or PyTorch's own (the paper's framework does not say).
    prior : sequence of float, optional
        Share of each class, at whose logarithm the head's bias starts; with None it starts as `init` says.
    context : int
        Number of neighbouring slices that the network sees on each side, as input channels; 0 is the slice alone.

    Raises
    ------
    ConfigError
        If an argument is out of bounds.
    """

    FORM = ("k", "bn", "classes", "depth", "activation", "context")
    """The arguments that determine which weights there are and how they are applied."""

    def __init__(
        self,
        k: int = 2,
        bn: bool = True,
        *,
        classes: int = 2,
        depth: int = 4,
        activation: str = "leaky_relu",
        init: str = "he",
        prior: Sequence[float] | None = None,
        context: int = 0,
    ) -> None:
        super().__init__()
        for name, value, least in (("k", k, 1), ("depth", depth, 1), ("classes", classes, 2), ("context", context, 0)):
            if not isinstance(value, int) or value < least:
                raise ConfigError(f"{name} is {value!r}: give a whole number of at least {least}.")
        if activation not in ("leaky_relu", "relu") or init not in ("he", "torch"):
            raise ConfigError(f"unknown activation {activation!r} or init {init!r}.")
        self.k, self.bn, self.classes, self.depth, self.activation = k, bn, classes, depth, activation
        self.context = context
        slope, by_planes = self.slope, trains_by_planes(k)
        widths = [k * 2**level for level in range(depth + 1)]
        self.down = nn.ModuleList(DoubleConv(a, b, bn, slope, by_planes) for a, b in pairwise([self.channels, *widths]))
        self.pool = MaxPool(by_planes)
        self.up = nn.ModuleList(UpConv(b, a, by_planes) for a, b in reversed(list(pairwise(widths))))
        self.merge = nn.ModuleList(DoubleConv(2 * a, a, bn, slope, by_planes) for a in reversed(widths[:-1]))
        self.head = nn.Conv2d(k, classes, 1)
        if init == "he":
            self._init_he()
        if prior is not None:
            with torch.no_grad():
                self.head.bias.copy_(torch.tensor(prior).clamp_min(1e-4).log())  # type: ignore[union-attr]

    def _init_he(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
                # an output pixel of the transposed convolution sees one tap, so its fan-in is the input channels
                fan = module.in_channels * (9 if module.kernel_size == (3, 3) else 1)
                gain = 1.0 if module.kernel_size != (3, 3) else (2.0 / (1 + self.slope**2)) ** 0.5
                nn.init.normal_(module.weight, std=gain / fan**0.5)
                nn.init.zeros_(module.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        """Compute the logits of a batch.

        Parameters
        ----------
        x : Tensor
            (N, channels, Y, X) float, the slice itself in the middle; Y and X multiples of ``2**depth``.

        Returns
        -------
        Tensor
            (N, classes, Y, X) logits.
        """
        skips = []
        for level, stage in enumerate(self.down):
            x = stage(self.pool(x) if level else x)
            skips.append(x)
        skips.pop()
        for up, merge in zip(self.up, self.merge, strict=True):
            x = merge(torch.cat((skips.pop(), up(x)), dim=1))
        return self.head(x)  # type: ignore[no-any-return]

    @property
    def form(self) -> dict[str, Any]:
        """The values of the arguments `FORM`."""
        return {name: getattr(self, name) for name in self.FORM}

    @property
    def channels(self) -> int:
        """Number of input channels: the slice itself, between the neighbours below and above it."""
        return 2 * self.context + 1

    @property
    def slope(self) -> float:
        """Slope of the activation for negative values."""
        return _SLOPE if self.activation == "leaky_relu" else 0.0

    @property
    def multiple(self) -> int:
        """Sides of an input must be multiples of this, in pixels."""
        return int(2**self.depth)

    @property
    def reach(self) -> int:
        """Radius of the receptive field in pixels, rounded up to a multiple of `multiple`."""
        convolutions = 2 * sum(2**level for level in range(self.depth)) * 2 + 2 * 2**self.depth
        return int(-(-(convolutions + self.multiple - 1) // self.multiple) * self.multiple)

    @property
    def parameter_count(self) -> int:
        """Number of learnable parameters."""
        return sum(p.numel() for p in self.parameters() if p.requires_grad)
