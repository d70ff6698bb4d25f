"""The order in which compiled code, Numba's and C, reads the weights of a convolution."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["packed_in_fours"]


def packed_in_fours(layer: Any) -> list[NDArray[np.float32]]:
    """Return the weights of a convolution in the order in which compiled code reads them.

    Output channels are grouped in fours, then two, then one. Each group has its biases first, then its weights as
    (inputs, taps, taps, channels).
    """
    weight, bias = (value.detach().cpu().numpy() for value in (layer.weight, layer.bias))
    parts, channel = [], 0
    while channel < len(bias):
        group = slice(channel, channel + next(size for size in (4, 2, 1) if channel + size <= len(bias)))
        parts += [bias[group], weight[group].transpose(1, 2, 3, 0).ravel()]
        channel = group.stop
    return parts
