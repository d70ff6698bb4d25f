"""What a training starts from: its network, and the weights of the classes."""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from napari_kdunet.core.checkpoint import Model
from napari_kdunet.core.config import TrainConfig
from napari_kdunet.core.errors import ConfigError, ModelError
from napari_kdunet.core.patches import Pool
from napari_kdunet.core.unet import KUNet

__all__ = ["class_weights", "starting_network"]


def starting_network(config: TrainConfig, pool: Pool, start: Model | None) -> KUNet:
    """A copy of the model to start from, or a fresh network by the settings' seed.

    Raises
    ------
    ModelError
        If the model to start from has another form than the settings.
    """
    c = config
    if start is not None:
        other = [name for name, value in start.form.items() if value != getattr(c, name)]
        if other:
            raise ModelError(
                f"the model to start from has another form than the settings: make {', '.join(other)} alike."
            )
        assert isinstance(start.net, KUNet)
        return copy.deepcopy(start.net)
    with torch.random.fork_rng(devices=[]):  # the caller's random numbers stay as they were
        torch.manual_seed(c.seed)
        return KUNet(
            c.k, c.bn, classes=c.classes, depth=c.depth, activation=c.activation, init=c.init, prior=_prior(c, pool)
        )


def _prior(config: TrainConfig, pool: Pool) -> list[float] | None:
    """Share of each class: of the labels, or else of the teacher's opinion of the first batch."""
    if not config.prior_bias:
        return None
    pixels = pool.class_pixels()
    if not pixels.sum():
        taught = pool.batch(0, taught=True).taught
        assert taught is not None
        pixels = taught.softmax(dim=1).mean(dim=(0, 2, 3)).double().cpu()
    return (pixels / pixels.sum()).tolist()


def class_weights(config: TrainConfig, pool: Pool) -> Tensor | None:
    """(C,) float32 weights of the classes in the cross entropy, on the pool's device; None where all count alike.

    Raises
    ------
    ConfigError
        If they are to be balanced, but a class has no labelled pixel.
    """
    if config.class_weights == "none":
        return None
    if config.class_weights == "balanced":
        pixels = pool.class_pixels()
        if not pixels.all():
            raise ConfigError("class_weights is balanced, but a class has no labelled pixel: give numbers or none.")
        return (pixels.sum() / (len(pixels) * pixels)).float().to(pool.device)
    return torch.tensor(config.class_weights, dtype=torch.float32, device=pool.device)
