"""What computes a network's logits: the fastest engine that is here. All agree to float32 rounding."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor, nn

from napari_kdunet.core.networks.unet import KUNet
from napari_kdunet.core.prediction.folding import folded, with_log_odds

__all__ = ["Forward", "engine_for"]

Forward: TypeAlias = Callable[[Tensor], Tensor]
"""From an image (1, 1, Y, X) on the engine's device to float32 logits (1, C, Y, X), valid until the next call.

Of two classes there is one plane, the difference of their logits: the log odds of the foreground.
"""

_COMPILED_UP_TO = 16  # channels at the top; beyond, little is gained for memory that is kept between two calls
_CHANNELS_LAST_FROM = 2


def engine_for(net: nn.Module, device: torch.device, threads: int) -> Forward:
    """The fastest way to apply `net` on `device`; what happens to `net` later does not matter.

    On the CPU a tiny `KUNet` is compiled if Numba is installed (the extra ``fast``), and uses `threads` threads of its
    own; all else is computed by torch, with batch normalisation folded into the convolutions. One call at a time.
    """
    if not isinstance(net, KUNet):
        with torch.no_grad():  # the copy of a TorchScript module would else hang on the original's graph
            return _Torch(copy.deepcopy(net).to(device) if _elsewhere(net, device) else net)
    plain = with_log_odds(folded(net))
    if device.type == "cpu" and net.k <= _COMPILED_UP_TO and not _elsewhere(net, device):
        try:
            from napari_kdunet.core.prediction.compiled import CompiledUNet
        except ImportError:  # there is no Numba, or none that works with the NumPy that is here
            pass
        else:
            return CompiledUNet(plain, threads)
    plain = plain.to(device)
    if net.k >= _CHANNELS_LAST_FROM:
        plain = plain.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return _Torch(plain)


def _elsewhere(net: nn.Module, device: torch.device) -> bool:
    return any(parameter.device.type != device.type for parameter in net.parameters())


class _Torch:
    """A network as it is."""

    def __init__(self, net: nn.Module) -> None:
        self.net = net

    def __call__(self, batch: Tensor) -> Tensor:
        logits: Tensor = self.net(batch).float()
        return logits[:, 1:] - logits[:, :1] if logits.shape[1] == 2 else logits
