"""Initialisation of a training: the network, the running average of its weights, and the class weights."""

from __future__ import annotations

import copy
import threading
from typing import Any

import torch
from torch import Tensor
from torch.optim.swa_utils import AveragedModel

from napari_kdunet.core.config.training import TrainConfig
from napari_kdunet.core.data.patches import PatchSampler
from napari_kdunet.core.errors import ConfigError, ModelError
from napari_kdunet.core.networks.model import Model
from napari_kdunet.core.networks.unet import KUNet

__all__ = ["class_weights", "running_average", "starting_network"]

_seeding = threading.Lock()  # all threads draw from the same random numbers


def starting_network(config: TrainConfig, sampler: PatchSampler, start: Model | None) -> KUNet:
    """Return a copy of the network to start from, or a fresh one initialised from the settings' seed.

    Raises
    ------
    ModelError
        If the model to start from has another form than the settings.
    """
    c = config
    if start is not None:
        other = [name for name, value in start.form.items() if value != getattr(c, name)]
        other += ["boundary"] if start.boundary != c.boundary else []
        if other:
            raise ModelError(
                f"the model to start from and the settings differ in form: make {', '.join(other)} the same."
            )
        assert isinstance(start.net, KUNet)
        return copy.deepcopy(start.net)
    form, prior = {name: getattr(c, name) for name in KUNet.FORM}, _prior(c, sampler)
    with _seeding, torch.random.fork_rng(devices=[]):  # the caller's random numbers stay as they were
        torch.manual_seed(c.seed)
        return KUNet(**form, init=c.init, prior=prior)


def _prior(config: TrainConfig, sampler: PatchSampler) -> list[float] | None:
    """Return the prior probability of each class, from the labels or else the teacher's output for the first batch."""
    if not config.prior_bias:
        return None
    pixels = sampler.class_pixels()
    if not pixels.sum():
        for rank in range(sampler.processes):  # the patches of all ranks, so that they start alike
            logits = sampler.batch(0, teacher=True, rank=rank).teacher_logits
            assert logits is not None
            pixels += logits.softmax(dim=1).mean(dim=(0, 2, 3)).double().cpu()
    return (pixels / pixels.sum()).tolist()


def running_average(net: KUNet, decay: float) -> AveragedModel:
    """Return a running average of weights and buffers that forgets its start: the decay grows from 0.1 to `decay`."""

    def update(averaged: list[Tensor], current: list[Tensor], count: Tensor | int) -> None:
        keep = min(decay, (1 + int(count)) / (10 + int(count)))
        for mean, value in zip(averaged, current, strict=True):
            if mean.is_floating_point():
                mean.lerp_(value, 1 - keep)
            else:
                mean.copy_(value)

    update_all: Any = update
    return AveragedModel(net, multi_avg_fn=update_all, use_buffers=True)


def class_weights(config: TrainConfig, sampler: PatchSampler) -> Tensor | None:
    """Return the weights (C,) of the classes in the cross entropy, or None if all classes count alike.

    They are float32 on the sampler's device.

    Raises
    ------
    ConfigError
        If the weights are to be balanced, but a class has no labelled pixel.
    """
    if config.class_weights == "none":
        return None
    if config.class_weights == "balanced":
        pixels = sampler.class_pixels()
        if not pixels.all():
            raise ConfigError("class_weights is balanced, but a class has no labelled pixel: give numbers or none.")
        return (pixels.sum() / (len(pixels) * pixels)).float().to(sampler.device)
    return torch.tensor(config.class_weights, dtype=torch.float32, device=sampler.device)
