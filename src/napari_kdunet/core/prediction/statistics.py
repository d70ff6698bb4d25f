"""Batch normalisation by statistics of the image that is predicted, in place of those of the training images."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, Literal, NamedTuple, TypeAlias
from weakref import WeakKeyDictionary, ref

import torch
from torch import Tensor, nn

from napari_kdunet.core.errors import ConfigError
from napari_kdunet.core.networks.model import Model, ModelLike, load_model
from napari_kdunet.core.networks.unet import KUNet
from napari_kdunet.core.prediction.engine import ByTorch
from napari_kdunet.core.prediction.probes import Probes
from napari_kdunet.core.volumes.volume import Volume, open_volume, shows_nothing

__all__ = ["Statistics", "adapt_statistics", "with_statistics"]

Statistics: TypeAlias = Literal["auto", "model", "volume"]

_SLICES = 5
_PRIOR = 2**15  # working pixels that the statistics of training count as


def adapt_statistics(
    model: ModelLike, raw: Any, *, slices: int = _SLICES, device: str = "auto", threads: int | None = None
) -> Model:
    """Make a model fit another microscope: take the statistics of batch normalisation from the image, without labels.

    Another stain or detector shifts the activations in the channels of a network, and with them those of the next
    layer. Mean and variance of each channel become those in a few windows of the image, averaged with those of
    training, which count as 32,768 working pixels (Schneider et al. 2020, arXiv:2006.16971, equation 3). For the gain,
    see docs/unseen.md.

    Parameters
    ----------
    model : Model, path or str
        Model, its file, or the name of a bundled model. A model without batch normalisation, or whose network is not a
        k-Unet, is returned as it is.
    raw : volume
        Anything that `open_volume` takes, ZYX, at the pixel size at which it is to be predicted.
    slices : int
        Number of slices, evenly spaced, of at most 640 x 640 working pixels each; lost ones are left out.
    device, threads
        As in `predict`.

    Returns
    -------
    Model
        A copy with other statistics, which `predict` uses as they are. The same volume gives the same statistics.

    Raises
    ------
    VolumeError
        If the volume cannot be used, or shows nothing.
    """
    model, volume = load_model(model), open_volume(raw)
    adapted = _adapted_to(volume, model, slices, device, threads)
    if adapted is None:
        advice = "give another image, or keep the statistics of training"
        raise shows_nothing(volume, "to take statistics from", advice)
    return adapted


def with_statistics(
    model: Model, volume: Volume, statistics: Statistics, device: str = "auto", threads: int | None = None
) -> Model:
    """Return the model that `predict` applies: with statistics of training or of the volume.

    With ``auto`` the model decides (`Model.adapts`). If the volume shows nothing, the statistics of training stay.
    Those of the last volume are cached for each network, as a preview asks for slice after slice.

    Raises
    ------
    ConfigError
        If `statistics` is not ``auto``, ``model`` or ``volume``.
    """
    if statistics not in ("auto", "model", "volume"):
        raise ConfigError(f"statistics is {statistics!r}: choose auto, model or volume.")
    if statistics == "model" or (statistics == "auto" and not model.adapts):
        return model
    known, state = _last.get(model.net), _state(model.net)
    if known is None or known.volume() is not volume or known.state != state:
        adapted = _adapted_to(volume, model, _SLICES, device, threads) or model
        known = _last[model.net] = _Adapted(ref(volume), state, adapted.net)
    return _settled(model, known.net)


class _Adapted(NamedTuple):
    """Last volume of a network, the network's `_state` then, and the network with statistics of that volume."""

    volume: ref[Volume]
    state: tuple[int, ...]
    net: nn.Module


_last: WeakKeyDictionary[nn.Module, _Adapted] = WeakKeyDictionary()


def _state(net: nn.Module) -> tuple[int, ...]:
    """Return how often each weight and buffer has been written to, which changes whenever one of them does."""
    return tuple(value._version for value in net.state_dict(keep_vars=True).values())


def _adapted_to(volume: Volume, model: Model, slices: int, device: str, threads: int | None) -> Model | None:
    """Adapt a model to an open volume, as `adapt_statistics` does; None if the volume shows nothing."""
    if not isinstance(model.net, KUNet) or not model.net.bn:
        return model
    probes = Probes.of(model, volume, slices, device, threads)
    return None if probes is None else _adapted(model, probes)


def _adapted(model: Model, probes: Probes) -> Model:
    """Return `model` with statistics of these windows."""
    tiler = probes.tiler
    net = copy.deepcopy(model.net).to(tiler.device, torch.float32)  # weights may be in half precision
    before = [(norm.running_mean.clone(), norm.running_var.clone(), norm.momentum) for norm in _norms(net)]
    seen, by_torch = 0, ByTorch(net)

    def forward(batch: Tensor) -> Tensor:
        nonlocal seen
        seen += batch.shape[-2] * batch.shape[-1]
        return by_torch(batch)

    for norm in _norms(net):
        norm.reset_running_stats()
        norm.momentum = None  # the mean over all windows
        norm.train()
    y, x = probes.middle(tiler.grid)
    for z in probes.slices:
        tiler.by(forward).window(probes.volume, z, y, x)
    prior = _PRIOR / (_PRIOR + seen)
    for norm, (mean, variance, momentum) in zip(_norms(net), before, strict=True):
        norm.running_mean.lerp_(mean, prior)
        norm.running_var.lerp_(variance, prior)
        norm.momentum = momentum  # so that further training follows its own batches
    return _settled(model, net.eval().to(next(model.net.parameters()).device))


def _settled(model: Model, net: nn.Module) -> Model:
    """Return `model` with an adapted network, and a summary that no longer asks for statistics of the volume."""
    summary = {name: value for name, value in model.summary.items() if name != "statistics"}
    return replace(model, net=net, summary=summary)


def _norms(net: nn.Module) -> Iterator[Any]:
    return (layer for layer in net.modules() if isinstance(layer, nn.BatchNorm2d))
