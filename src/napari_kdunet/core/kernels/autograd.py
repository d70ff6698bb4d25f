"""Autograd functions for the training of layers with few channels on the CPU, compiled by Numba.

With fewer than about eight channels PyTorch's layers leave most of a core's arithmetic unused, as they vectorise along
the channels. These kernels vectorise along the rows of each plane, and convolution, batch normalisation and activation
are fused, with one backward pass. Without Numba (the extra ``fast``) training does the same in plain PyTorch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from napari_kdunet.core.kernels.available import is_available

__all__ = ["is_available", "resize", "run", "serves"]

_WIDEST = 8  # channels; with more, PyTorch is as fast


def serves(x: Tensor, layer: nn.Module) -> bool:
    """Return whether `run` or `resize` can train this layer on this input, and does so faster than PyTorch."""
    channels = (getattr(layer, "in_channels", 0), getattr(layer, "out_channels", 0))
    return (
        max(channels) <= _WIDEST
        and x.device.type == "cpu"
        and x.dtype == torch.float32
        and torch.is_grad_enabled()
        and not torch.is_autocast_enabled("cpu")
        and is_available()
    )


def run(x: Tensor, layers: Sequence[nn.Module], slope: float) -> Tensor:
    """Apply a padded 3x3 convolution, its batch normalisation (if any) and its (Leaky)ReLU as one autograd function.

    Parameters
    ----------
    x : Tensor
        (N, C, Y, X) float32 on the CPU.
    layers : sequence of nn.Module
        A `nn.Conv2d` for which `serves` holds, perhaps a `nn.BatchNorm2d` in training mode, whose running statistics
        are updated, and the activation.
    slope : float
        Slope of the activation below 0.

    Returns
    -------
    Tensor
        (N, K, Y, X) float32, contiguous.
    """
    conv, *norm, _ = layers
    weights = (norm[0].weight, norm[0].bias, norm[0]) if norm else (None, None, None)
    return _Unit.apply(x, conv.weight, conv.bias, *weights, slope)  # type: ignore[no-any-return,no-untyped-call]


def resize(x: Tensor, layer: nn.Module) -> Tensor:
    """Apply a 2x2 max-pooling or a transposed 2x2 convolution of stride 2 as an autograd function.

    Parameters
    ----------
    x : Tensor
        (N, C, Y, X) float32 on the CPU.
    layer : nn.MaxPool2d or nn.ConvTranspose2d
        The layer, for which `serves` holds.

    Returns
    -------
    Tensor
        (N, C, Y / 2, X / 2) or (N, K, 2 Y, 2 X) float32, contiguous.
    """
    if isinstance(layer, nn.ConvTranspose2d):
        return _Enlarge.apply(x, layer.weight, layer.bias)  # type: ignore[no-any-return,no-untyped-call]
    return _Pool.apply(x)  # type: ignore[no-any-return,no-untyped-call]


class _Unit(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        gamma: Tensor | None,
        beta: Tensor | None,
        norm: nn.BatchNorm2d | None,
        slope: float,
    ) -> Tensor:
        from napari_kdunet.core.kernels import training as kernels

        x, weight = x.detach().contiguous(), weight.detach().contiguous()
        z = x.new_empty(x.shape[0], weight.shape[0], *x.shape[2:])
        kernels.convolve(x.numpy(), weight.numpy(), bias.detach().numpy(), z.numpy())
        mean, rstd = torch.zeros(len(weight)), torch.ones(len(weight))
        scale, shift = torch.ones(len(weight)), torch.zeros(len(weight))
        if norm is not None and gamma is not None and beta is not None:
            mean, rstd = _statistics(z, norm)
            scale = gamma.detach() * rstd
            shift = beta.detach() - mean * scale
        y = torch.empty_like(z)
        kernels.activate(z.numpy(), scale.numpy(), shift.numpy(), slope, y.numpy())
        ctx.save_for_backward(x, weight, z, mean, rstd, scale, shift)
        ctx.slope, ctx.normalised, ctx.wants_x = slope, norm is not None, ctx.needs_input_grad[0]
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        from napari_kdunet.core.kernels import training as kernels

        x, weight, z, mean, rstd, scale, shift = ctx.saved_tensors
        grad = grad.contiguous()
        sums = torch.zeros(2, len(weight))
        parts = (t.numpy() for t in (z, mean, rstd, scale, shift))
        dz = torch.empty_like(z)
        kernels.backward_activate(grad.numpy(), *parts, ctx.slope, ctx.normalised, dz.numpy(), sums.numpy())
        dweight, dx = torch.empty_like(weight), None
        kernels.correlate(x.numpy(), dz.numpy(), dweight.numpy())
        if ctx.wants_x:
            dx = torch.empty_like(x)
            turned = weight.transpose(0, 1).flip(-2, -1).contiguous()
            kernels.convolve(dz.numpy(), turned.numpy(), torch.zeros(len(turned)).numpy(), dx.numpy())
        dbias = torch.zeros(len(weight)) if ctx.normalised else sums[0]  # normalisation removes any bias
        dgamma, dbeta = (sums[1], sums[0]) if ctx.normalised else (None, None)
        return dx, dweight, dbias, dgamma, dbeta, None, None


class _Pool(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        from napari_kdunet.core.kernels import training as kernels

        x = x.detach().contiguous()
        largest = x.new_empty(*x.shape[:2], x.shape[2] // 2, x.shape[3] // 2)
        kernels.pool(x.numpy(), largest.numpy())
        ctx.save_for_backward(x, largest)
        return largest

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        from napari_kdunet.core.kernels import training as kernels

        x, largest = ctx.saved_tensors
        dx = torch.empty_like(x)
        kernels.backward_pool(grad.contiguous().numpy(), x.numpy(), largest.numpy(), dx.numpy())
        return dx


class _Enlarge(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        from napari_kdunet.core.kernels import training as kernels

        x, weight = x.detach().contiguous(), weight.detach().contiguous()
        y = x.new_empty(x.shape[0], weight.shape[1], 2 * x.shape[2], 2 * x.shape[3])
        kernels.enlarge(x.numpy(), weight.numpy(), bias.detach().numpy(), y.numpy())
        ctx.save_for_backward(x, weight)
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:
        from napari_kdunet.core.kernels import training as kernels

        x, weight = ctx.saved_tensors
        grads = torch.empty_like(x), torch.empty_like(weight), weight.new_empty(weight.shape[1])
        kernels.backward_enlarge(grad.contiguous().numpy(), x.numpy(), weight.numpy(), *(t.numpy() for t in grads))
        return grads


def _statistics(z: Tensor, norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """Return mean and inverse standard deviation of each channel, and update the running statistics."""
    from napari_kdunet.core.kernels import training as kernels

    moments = torch.empty(2, z.shape[1], dtype=torch.float64)
    kernels.moments(z.numpy(), moments.numpy())
    mean, variance = moments.float()
    count = z.numel() // z.shape[1]
    assert norm.running_mean is not None
    assert norm.running_var is not None
    assert norm.num_batches_tracked is not None
    momentum = norm.momentum or 0.0
    norm.running_mean.lerp_(mean, momentum)
    norm.running_var.lerp_(variance * (count / max(count - 1, 1)), momentum)
    norm.num_batches_tracked += 1
    return mean, (variance + norm.eps).rsqrt()
