"""Batch normalisation folded into the convolutions before it: when predicting it is but a scale and a shift."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.utils import fuse_conv_bn_weights

from napari_kdunet.core.unet import KUNet

__all__ = ["folded"]


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
