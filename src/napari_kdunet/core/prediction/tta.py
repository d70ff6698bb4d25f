"""Test-time augmentation: the mean of a network's logits over flips and quarter turns of the image."""

from __future__ import annotations

from dataclasses import dataclass
from functools import reduce
from itertools import islice, product

import torch
from torch import Tensor

from napari_kdunet.core.config.limits import check_views
from napari_kdunet.core.prediction.engine import Forward

__all__ = ["averaged", "turned"]


def averaged(forward: Forward, views: int) -> Forward:
    """Return an engine that averages logits over the first `views` of the square's eight symmetries.

    Parameters
    ----------
    forward : Forward
        Engine to average. The sides of images must be multiples of the network's `multiple`, so that pooling falls on
        the same pixels in each view, and tiled prediction stays equal to untiled.
    views : int
        1 is the image as it is; 2 adds its flip along X; 4 the flips of both along Y; 8 all of these with Y and X
        exchanged, which are the quarter turns and their flips.

    Raises
    ------
    ConfigError
        If `views` is another number.
    """
    check_views(views)
    return forward if views == 1 else _Averaged(forward, views)


def turned(forward: Forward) -> Forward:
    """Return an engine that gives the logits of another view: of the image after a quarter turn, turned back."""

    def view(batch: Tensor) -> Tensor:
        logits = forward(batch.transpose(-2, -1).flip(-1).contiguous())
        return logits.flip(-1).transpose(-2, -1).contiguous()

    return view


@dataclass(frozen=True)
class _Averaged:
    forward: Forward
    views: int

    def __call__(self, batch: Tensor) -> Tensor:
        """Return the mean logits (1, C, Y, X) of one image (1, channels, Y, X)."""
        views = islice(product((False, True), repeat=3), self.views)
        total: Tensor = reduce(torch.add, (self._view(batch, *view) for view in views))
        return total / self.views

    def _view(self, batch: Tensor, transpose: bool, flip_y: bool, flip_x: bool) -> Tensor:
        """Return the logits of one view, turned back: a copy, as the engine's are valid only until its next call."""
        axes = [axis for axis, wanted in ((-2, flip_y), (-1, flip_x)) if wanted]
        view = batch.transpose(-2, -1) if transpose else batch
        logits = self.forward(view.flip(axes).contiguous()).flip(axes)
        return logits.transpose(-2, -1) if transpose else logits
