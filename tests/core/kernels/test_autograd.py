"""The quick way to train tiny convolutions does what PyTorch does: outputs, gradients, running statistics."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from napari_kdunet import core
from napari_kdunet.core.kernels import autograd

pytest.importorskip("numba")


def layers(inputs: int, outputs: int, bn: bool) -> list[nn.Module]:
    torch.manual_seed(inputs + 10 * outputs)
    norm = nn.BatchNorm2d(outputs)
    with torch.no_grad():
        norm.weight.copy_(torch.randn(outputs)), norm.bias.copy_(torch.randn(outputs))
    return [nn.Conv2d(inputs, outputs, 3, padding=1), *([norm] if bn else []), nn.Identity()]


@pytest.mark.parametrize("slope", [0.0, 0.1])
@pytest.mark.parametrize("bn", [True, False])
@pytest.mark.parametrize(("inputs", "outputs"), [(1, 1), (1, 2), (3, 5), (8, 4), (4, 7)])
@pytest.mark.parametrize("size", [(3, 12, 17), (1, 1, 5), (2, 50, 90)])
def test_a_unit_is_what_pytorch_computes(inputs, outputs, bn, slope, size):
    """In float64 PyTorch, whose own rounding does not count."""
    ours = layers(inputs, outputs, bn)
    theirs = [layer.double() for layer in copy.deepcopy(ours)]
    x = 2 + torch.randn(size[0], inputs, *size[1:])
    x1, x2 = x.clone().requires_grad_(), x.double().requires_grad_()
    assert autograd.serves(x1, ours[0])
    y = autograd.run(x1, ours, slope)
    wanted = x2
    for layer in theirs[:-1]:
        wanted = layer(wanted)
    wanted = nn.functional.leaky_relu(wanted, slope)
    torch.testing.assert_close(y.double(), wanted, atol=2e-5, rtol=1e-4)
    grad = torch.randn(y.shape)
    y.backward(grad), wanted.backward(grad.double())
    torch.testing.assert_close(x1.grad.double(), x2.grad, atol=1e-4, rtol=1e-3)
    for one, other in zip(ours, theirs, strict=True):
        for p, q in zip(one.parameters(), other.parameters(), strict=True):
            torch.testing.assert_close(p.grad.double(), q.grad, atol=2e-4 * grad.numel() ** 0.5, rtol=1e-3)
        for p, q in zip(one.buffers(), other.buffers(), strict=True):
            torch.testing.assert_close(p.double(), q.double(), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("size", [(3, 5, 16, 48), (1, 1, 2, 2), (2, 3, 34, 6)])
def test_pooling_is_that_of_pytorch(size):
    """To the bit, and of equal pixels the same one gets the gradient."""
    x1 = torch.randn(size).round(decimals=1).requires_grad_()
    x2 = x1.detach().clone().requires_grad_()
    y, wanted = autograd.resize(x1, nn.MaxPool2d(2)), nn.functional.max_pool2d(x2, 2)
    assert torch.equal(y, wanted)
    grad = torch.randn(y.shape)
    y.backward(grad), wanted.backward(grad)
    assert torch.equal(x1.grad, x2.grad)


@pytest.mark.parametrize("size", [(3, 8, 16, 40), (1, 1, 1, 1), (2, 3, 17, 3)])
@pytest.mark.parametrize("outputs", [1, 4])
def test_an_up_convolution_is_that_of_pytorch(size, outputs):
    """In float64 PyTorch, as above."""
    ours = nn.ConvTranspose2d(size[1], outputs, 2, stride=2)
    theirs = copy.deepcopy(ours).double()
    x1 = torch.randn(size).requires_grad_()
    x2 = x1.detach().double().requires_grad_()
    assert autograd.serves(x1, ours)
    y, wanted = autograd.resize(x1, ours), theirs(x2)
    torch.testing.assert_close(y.double(), wanted, atol=1e-5, rtol=1e-5)
    grad = torch.randn(y.shape)
    y.backward(grad), wanted.backward(grad.double())
    torch.testing.assert_close(x1.grad.double(), x2.grad, atol=1e-5, rtol=1e-5)
    for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(p.grad.double(), q.grad, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("form", [{"bn": True}, {"bn": False, "activation": "relu"}])
def test_a_network_trains_alike_without_it(form, monkeypatch):
    x = torch.randn(4, 1, 48, 32)
    target = nn.functional.one_hot((x[:, 0] > 0.5).long(), 2).permute(0, 3, 1, 2).float()
    weights, taken = [], []
    honest = autograd.run
    for serves in (autograd.serves, lambda *_: False):
        torch.manual_seed(0)
        net = core.KUNet(2, depth=3, **form).train()
        monkeypatch.setattr(autograd, "serves", serves)
        monkeypatch.setattr(autograd, "run", lambda *given: (taken.append(1), honest(*given))[1])
        optimizer = torch.optim.SGD(net.parameters(), lr=0.05)
        for _ in range(3):
            optimizer.zero_grad()
            core.hard_loss(net(x), target).backward()
            optimizer.step()
        weights.append(net.state_dict())
    assert len(taken) == 3 * 11  # all but the three widest of the 14 convolutions
    for name in weights[0]:
        torch.testing.assert_close(weights[0][name], weights[1][name], atol=1e-4, rtol=1e-3, msg=name)


def test_it_serves_training_of_tiny_convolutions_alone():
    conv, wide = nn.Conv2d(2, 4, 3, padding=1), nn.Conv2d(8, 16, 3, padding=1)
    x = torch.randn(1, 2, 16, 16)
    assert autograd.serves(x, conv)
    assert autograd.serves(x, nn.MaxPool2d(2))
    assert not autograd.serves(torch.randn(1, 8, 16, 16), wide)
    assert not autograd.serves(torch.randn(1, 16, 16, 16), nn.ConvTranspose2d(16, 8, 2, stride=2))
    assert not autograd.serves(x.double(), conv)
    assert not autograd.serves(x.to("meta"), conv)
    with torch.no_grad():
        assert not autograd.serves(x, conv)
    with torch.autocast("cpu", torch.bfloat16):
        assert not autograd.serves(x, conv)
