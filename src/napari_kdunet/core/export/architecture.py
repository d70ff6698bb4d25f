"""The k-Unet in torch alone, with a softmax: a bioimage.io package holds a copy of this file beside its weights.

It therefore imports nothing of napari-kdunet. Its layers have the same names in a state dict as those of `core.KUNet`.
"""

import torch
from torch import nn

__all__ = ["KUNetProbability"]


class KUNetProbability(nn.Module):
    """U-Net with `k` channels at the top that gives probabilities (Mangalam & Salzmann, arXiv:1812.00249).

    Parameters
    ----------
    k, classes, depth : int
        Channels at the top, classes including the background, and number of down-samplings.
    bn : bool
        Whether each 3x3 convolution is followed by batch normalisation.
    activation : {"leaky_relu", "relu"}
    """

    def __init__(
        self, k: int = 2, bn: bool = True, classes: int = 2, depth: int = 4, activation: str = "leaky_relu"
    ) -> None:
        super().__init__()

        def twice(inputs: int, outputs: int) -> nn.Sequential:
            layers: list[nn.Module] = []
            for a in (inputs, outputs):
                layers.append(nn.Conv2d(a, outputs, 3, padding=1))
                layers += [nn.BatchNorm2d(outputs)] if bn else []
                layers.append(nn.LeakyReLU(0.1) if activation == "leaky_relu" else nn.ReLU())
            return nn.Sequential(*layers)

        widths = [k * 2**level for level in range(depth + 1)]
        self.down = nn.ModuleList(twice(a, b) for a, b in zip([1, *widths[:-1]], widths, strict=True))
        self.up = nn.ModuleList(nn.ConvTranspose2d(2 * a, a, 2, stride=2) for a in reversed(widths[:-1]))
        self.merge = nn.ModuleList(twice(2 * a, a) for a in reversed(widths[:-1]))
        self.head = nn.Conv2d(k, classes, 1)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Map (N, 1, Y, X) standardised pixels to (N, classes, Y, X) probabilities; sides are multiples of 2**depth."""
        x, skips = image, []
        for level, stage in enumerate(self.down):
            x = stage(nn.functional.max_pool2d(x, 2) if level else x)
            skips.append(x)
        skips.pop()
        for up, merge in zip(self.up, self.merge, strict=True):
            x = merge(torch.cat((skips.pop(), up(x)), dim=1))
        probability: torch.Tensor = self.head(x).softmax(dim=1)
        return probability
