"""The network: the paper's parameter counts, what a pixel sees, and that tiny ones are born alive."""

from __future__ import annotations

import math

import pytest
import torch

from napari_kdunet import core

PLAIN = {1: 7_694, 2: 30_534, 4: 121_658, 8: 485_682, 16: 1_940_834, 32: 7_759_554, 64: 31_030_658, 128: 124_107_522}
WITH_BN = {1: 7_878, 2: 30_902, 4: 122_394, 8: 487_154, 16: 1_943_778, 32: 7_765_442, 64: 31_042_434, 128: 124_131_074}
PAPER = {"activation": "relu", "init": "torch"}


def born_dead(seed: int, **form) -> bool:
    """Whether a fresh network gives the same output for different pixels."""
    torch.manual_seed(seed)
    net = core.KUNet(**form).eval()
    with torch.no_grad():
        out = net(torch.randn(1, 1, 32, 32))
    return bool(out.std(dim=(0, 2, 3)).max() < 1e-4)


@pytest.mark.parametrize("k", PLAIN)
@pytest.mark.parametrize("bn", [False, True])
@pytest.mark.parametrize("form", [{}, PAPER], ids=["ours", "paper"])
def test_parameter_counts_of_the_paper(k, bn, form):
    with torch.device("meta"):  # counts only: the largest has half a gigabyte
        net = core.KUNet(k, bn, **form)
    assert net.parameter_count == (WITH_BN if bn else PLAIN)[k]


@pytest.mark.parametrize("bn", [False, True])
def test_counts_of_a_real_network(bn):
    net = core.KUNet(2, bn)
    assert net.parameter_count == sum(p.numel() for p in net.parameters()) == (WITH_BN if bn else PLAIN)[2]
    assert sum(isinstance(m, torch.nn.BatchNorm2d) for m in net.modules()) == (18 if bn else 0)
    assert all(m.bias is not None for m in net.modules() if isinstance(m, torch.nn.Conv2d | torch.nn.ConvTranspose2d))


@pytest.mark.parametrize(("k", "bn"), [(1, True), (2, False), (16, True)])
def test_context_is_more_channels_of_the_first_convolution_alone(k, bn):
    """9 k weights for each slice that is seen beside the slice itself."""
    before = (WITH_BN if bn else PLAIN)[k]
    for context, more in ((0, 0), (1, 18 * k), (3, 54 * k)):
        net = core.KUNet(k, bn, context=context)
        assert (net.channels, net.parameter_count) == (2 * context + 1, before + more)
        plain = {name: value.shape for name, value in core.KUNet(k, bn).state_dict().items()}
        shapes = {name: value.shape for name, value in net.state_dict().items()}
        other = [name for name in shapes if shapes[name] != plain[name]]
        assert other == (["down.0.0.weight"] if context else [])
        assert net.eval()(torch.zeros(1, 2 * context + 1, 16, 32)).shape == (1, 2, 16, 32)


@pytest.mark.parametrize(("k", "depth", "classes"), [(1, 1, 2), (3, 2, 5), (2, 4, 2), (1, 6, 3)])
def test_output_shape(k, depth, classes):
    net = core.KUNet(k, depth=depth, classes=classes).eval()
    assert net.multiple == 2**depth
    side = net.multiple
    assert net(torch.randn(2, 1, side, 3 * side)).shape == (2, classes, side, 3 * side)


@pytest.mark.parametrize(
    "wrong",
    [
        {"k": 0},
        {"k": 1.5},
        {"k": 2.0},
        {"k": "a"},
        {"k": None},
        {"depth": 0},
        {"classes": 1},
        {"k": math.nan},
        {"context": -1},
    ],
)
def test_numbers_out_of_bounds(wrong, one_line):
    with one_line(core.ConfigError, *wrong):
        core.KUNet(**wrong)


@pytest.mark.parametrize("wrong", [{"activation": "gelu"}, {"init": "xavier"}])
def test_unknown_words(wrong, one_line):
    with one_line(core.ConfigError, *wrong.values()):
        core.KUNet(**wrong)


@pytest.mark.parametrize("depth", [1, 2, 3, 4])
def test_nothing_beyond_the_reach_is_seen(depth):
    """For an output pixel at each place of the pooling grid; and the reach is not wastefully large."""
    net = core.KUNet(1, bn=False, depth=depth).double()
    for p in net.parameters():  # positive weights: every path counts, none cancels
        torch.nn.init.constant_(p, 0.1)
    net.pool = torch.nn.AvgPool2d(2)  # every tap of the pooling counts
    side = 2 * net.reach + 2 * net.multiple
    seen = 0
    for offset in range(net.multiple):
        image = torch.ones(1, 1, net.multiple, side, dtype=torch.double, requires_grad=True)
        at = net.reach + net.multiple // 2 + offset
        net(image)[0, 1, 0, at].backward()
        columns = image.grad[0, 0].abs().sum(dim=0).nonzero().ravel()
        seen = max(seen, at - int(columns.min()), int(columns.max()) - at)
    assert net.reach - net.multiple < seen < net.reach
    assert net.reach % net.multiple == 0


def test_head_starts_at_the_prior():
    net = core.KUNet(2, classes=3, prior=[0.9, 0.08, 0.02])
    assert net.head.bias.softmax(0).tolist() == pytest.approx([0.9, 0.08, 0.02], rel=1e-5)
    assert core.KUNet(2, prior=[1.0, 0.0]).head.bias.isfinite().all()
    assert core.KUNet(2).head.bias.tolist() == [0, 0]


def test_he_keeps_the_size_of_the_signal():
    torch.manual_seed(0)
    net = core.KUNet(32, bn=False)
    assert all(not m.bias.any() for m in net.modules() if hasattr(m, "bias") and m.bias is not None)
    with torch.no_grad():
        assert 0.3 < net(torch.randn(2, 1, 64, 64)).std() < 3


@pytest.mark.parametrize("bn", [False, True])
def test_tiny_networks_are_born_alive(bn):
    """Of the paper's 1-Unets about half give a constant before the first step; of ours next to none."""
    assert sum(born_dead(seed, k=1, bn=bn) for seed in range(60)) <= 1
    assert not any(born_dead(seed, k=2, bn=bn) for seed in range(40))


def test_many_of_the_papers_are_born_dead():
    assert sum(born_dead(seed, k=1, bn=False, **PAPER) for seed in range(60)) >= 15
