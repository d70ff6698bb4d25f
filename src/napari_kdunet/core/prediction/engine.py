"""Engines that compute a network's logits; the fastest one here is chosen. All agree to float32 rounding."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.utils import fuse_conv_bn_weights

from napari_kdunet.core.devices import TINY
from napari_kdunet.core.networks.unet import KUNet

__all__ = ["ByTorch", "Forward", "engine_for", "engines_for", "folded", "with_log_odds"]

Forward: TypeAlias = Callable[[Tensor], Tensor]
"""Function from an image (1, channels, Y, X) on the engine's device to its float32 logits (1, C, Y, X).

They are valid until the next call. For two classes they are one plane (1, 1, Y, X), the log odds of the foreground: the
difference of the two logits.
"""

_COMPILED_UP_TO = 16  # channels at full resolution; with more, little is gained for the memory kept between calls
_CHANNELS_LAST_FROM = 2  # channels at full resolution


def engines_for(net: nn.Module, device: torch.device, threads: int) -> list[Forward]:
    """Return engines that may compute at the same time: two for a tiny compiled network, otherwise one."""
    engine = engine_for(net, device, threads)
    two = isinstance(net, KUNet) and net.k < TINY and threads > 1 and not isinstance(engine, ByTorch)
    return [engine, engine_for(net, device, threads)] if two else [engine]


def engine_for(net: nn.Module, device: torch.device, threads: int) -> Forward:
    """Return the fastest engine for `net` on `device`; it serves one call at a time.

    On the CPU a small `KUNet` is compiled if Numba is installed (the extra ``fast``), and uses up to `threads` threads.
    All other networks are computed by torch, a `KUNet` with fused batch normalisation. An engine does not depend on
    later changes to a `KUNet`; another module is copied only if it has to be moved to `device`.
    """
    if not isinstance(net, KUNet):
        with torch.no_grad():  # otherwise the copy of a TorchScript module stays in the original's autograd graph
            return ByTorch(copy.deepcopy(net).to(device) if _elsewhere(net, device) else net)
    plain = with_log_odds(folded(net))
    if device.type == "cpu" and net.k <= _COMPILED_UP_TO and not _elsewhere(net, device):
        try:
            from napari_kdunet.core.prediction.compiled import CompiledUNet
        except ImportError:  # Numba is not installed, or does not work with the installed NumPy
            pass
        else:
            return CompiledUNet(plain, threads)
    plain = plain.to(device)
    if net.k >= _CHANNELS_LAST_FROM:
        plain = plain.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return ByTorch(plain)


def _elsewhere(net: nn.Module, device: torch.device) -> bool:
    return any(parameter.device.type != device.type for parameter in net.parameters())


class ByTorch:
    """Engine that computes a network with torch."""

    def __init__(self, net: nn.Module) -> None:
        self.net = net

    def __call__(self, batch: Tensor) -> Tensor:
        """Return the logits of an image; see `Forward`."""
        logits: Tensor = self.net(batch).float()
        return logits[:, 1:] - logits[:, :1] if logits.shape[1] == 2 else logits


@torch.no_grad()
def folded(net: KUNet) -> KUNet:
    """Return a copy of `net` with batch normalisation fused into the convolutions, in ``eval`` mode.

    Its logits are the same to float32 rounding.
    """
    with torch.device("meta"):  # makes no initial weights, and so draws none of the caller's random numbers
        plain = KUNet(**net.form | {"bn": False}, init="torch")
    for target, source in zip((*plain.down, *plain.merge), (*net.down, *net.merge), strict=True):
        norms: list[nn.BatchNorm2d | None] = [layer for layer in source if isinstance(layer, nn.BatchNorm2d)]
        convolutions = [[layer for layer in stage if isinstance(layer, nn.Conv2d)] for stage in (target, source)]
        for goal, convolution, norm in zip(*convolutions, norms or [None, None], strict=True):
            values = (convolution.weight.double(), convolution.bias.double())
            if norm is not None:
                mean, variance, scale, shift = (
                    getattr(norm, name).double() for name in ("running_mean", "running_var", "weight", "bias")
                )
                values = fuse_conv_bn_weights(*values, mean, variance, norm.eps, scale, shift)
            goal.weight, goal.bias = (nn.Parameter(value.float(), requires_grad=False) for value in values)
    plain.up, plain.head = copy.deepcopy(net.up).float(), copy.deepcopy(net.head).float()
    return plain.eval()


@torch.no_grad()
def with_log_odds(net: KUNet) -> KUNet:
    """Give a two-class `net`, in place, a head for the difference of its logits; leave others alone. Return `net`."""
    if net.classes == 2:
        weight, bias = net.head.weight, net.head.bias
        assert bias is not None
        net.head = nn.Conv2d(net.k, 1, 1, device="meta")  # no initial weights, as in `folded`
        net.head.weight, net.head.bias = (
            nn.Parameter((value[1:].double() - value[:1].double()).float(), requires_grad=False)
            for value in (weight, bias)
        )
    return net
