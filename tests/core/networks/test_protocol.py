"""What a network says of itself, and what is assumed of one that does not say."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from napari_kdunet import core
from napari_kdunet.core.networks.protocol import Network


class Silent(torch.nn.Module):
    """Somebody's network; it notes the sizes of the images that it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[tuple[int, ...]] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.sizes.append(tuple(x.shape))
        return torch.cat((-x, x), dim=1)


class Pointwise(Silent):
    channels, classes, multiple, reach, k = 1, 2, 4, 0, 2


def test_a_k_unet_speaks_for_itself():
    net = core.KUNet(3, classes=4, depth=3)
    traits = core.Model(net).traits
    assert traits is net
    assert isinstance(net, Network)
    said = (traits.channels, traits.classes, traits.multiple, traits.k)
    assert said == (1, 4, 8, 3)
    assert traits.channels == net.down[0][0].in_channels


@pytest.mark.parametrize(("net", "side"), [(Silent(), 96), (Pointwise(), 12)])
def test_a_network_is_given_what_it_says_that_it_needs(net, side):
    """Of one that does not say the receptive field is taken to be wide, and mirrored borders are a unit of 32."""
    raw = np.random.default_rng(0).integers(0, 255, (1, 10, 10), dtype=np.uint8)
    core.predict(core.Model(net, 0.0), raw).compute()
    assert net.sizes == [(1, 1, side, side)]


def test_layers_are_those_of_torch_in_a_state_dict():
    names = core.KUNet(1, bn=True, depth=1).state_dict()
    weights = {name for name in names if name.endswith("weight")}
    stages = {f"{stage}.{layer}.weight" for stage in ("down.0", "down.1", "merge.0") for layer in (0, 1, 3, 4)}
    assert weights == stages | {"up.0.weight", "head.weight"}
