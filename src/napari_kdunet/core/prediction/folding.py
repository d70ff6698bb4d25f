"""What prediction can do without: normalisation is but a scale and a shift, and of two logits the difference counts."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.utils import fuse_conv_bn_weights

from napari_kdunet.core.networks.unet import KUNet

__all__ = ["folded", "with_log_odds"]


@torch.no_grad()
def folded(net: KUNet) -> KUNet:
    """A copy of `net` without batch normalisation, in ``eval`` mode, of the same logits to float32 rounding."""
    with torch.device("meta"):  # no initial weights, and so none of the caller's random numbers
        plain = KUNet(net.k, False, classes=net.classes, depth=net.depth, activation=net.activation)
    plain.to_empty(device=next(net.parameters()).device)
    for target, source in zip((*plain.down, *plain.merge), (*net.down, *net.merge), strict=True):
        norms: list[nn.BatchNorm2d | None] = [layer for layer in source if isinstance(layer, nn.BatchNorm2d)]
        convolutions = [[layer for layer in stage if isinstance(layer, nn.Conv2d)] for stage in (target, source)]
        for goal, convolution, norm in zip(*convolutions, norms or [None, None], strict=True):
            if norm is None:
                goal.load_state_dict(convolution.state_dict())
                continue
            mean, variance, scale, shift = (
                getattr(norm, name).double() for name in ("running_mean", "running_var", "weight", "bias")
            )
            exact = (convolution.weight.double(), convolution.bias.double())
            goal.weight, goal.bias = (
                nn.Parameter(value.float(), requires_grad=False)
                for value in fuse_conv_bn_weights(*exact, mean, variance, norm.eps, scale, shift)
            )
    plain.up.load_state_dict(net.up.state_dict())
    plain.head.load_state_dict(net.head.state_dict())
    return plain.eval()


@torch.no_grad()
def with_log_odds(net: KUNet) -> KUNet:
    """`net` itself, where it has two classes with a head that gives the difference of their logits, else as it is."""
    if net.classes == 2:
        weight, bias = net.head.weight, net.head.bias
        assert bias is not None
        net.head = nn.Conv2d(net.k, 1, 1, device="meta")  # as above
        net.head.weight, net.head.bias = (
            nn.Parameter((value[1:].double() - value[:1].double()).float(), requires_grad=False)
            for value in (weight, bias)
        )
    return net
