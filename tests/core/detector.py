"""A network that knows one thing, and images of it: for tests of what is found where a model is sure."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from scipy.special import expit
from torch import nn


class Detector(nn.Module):
    """Sure of bright discs with a radius of 10 pixels: a difference of Gaussians of a fixed size."""

    classes, in_channels, multiple, reach, k = 2, 1, 1, 14, 1

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(60.0))

    def smooth(self, x: torch.Tensor, sigma: float) -> torch.Tensor:
        at = torch.arange(-14, 15, dtype=torch.float32)
        kernel = torch.softmax(-(at**2) / (2 * sigma**2), 0)
        x = F.conv2d(F.pad(x, (14,) * 4, mode="replicate"), kernel[None, None, :, None])
        return F.conv2d(x, kernel[None, None, None, :])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits = self.gain * (self.smooth(x, 3.5) - self.smooth(x, 7.0) - 0.45)
        return torch.cat((torch.zeros_like(logits), logits), 1)


def discs(size: float, seed: int = 0) -> np.ndarray:
    """Discs with a radius of 100 nm, in pixels of this size."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[: round(1300 / size), : round(1300 / size)] * size
    raw = np.zeros((1, *y.shape))
    for z, row, column in np.ndindex(1, 3, 3):
        at = np.array((row, column)) * 400 + 250 + rng.uniform(-40, 40, 2)
        raw[z] += expit((100 - np.hypot(y - at[0], x - at[1])) / 5)
    return (100 + 80 * raw + rng.normal(0, 6, raw.shape)).clip(0, 255).astype(np.uint8)
