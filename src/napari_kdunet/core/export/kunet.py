"""The network of a model, if it can be exported."""

from __future__ import annotations

from napari_kdunet.core.errors import ModelError
from napari_kdunet.core.networks.model import Model
from napari_kdunet.core.networks.unet import KUNet

__all__ = ["exportable"]


def exportable(model: Model, what: str, most: int | None = None, classes: int | None = None) -> KUNet:
    """Return the network of a model that is to be exported.

    `what` names the format in messages; the format takes up to `most` channels at the top, and only `classes` classes.

    Raises
    ------
    ModelError
        If the format cannot hold the network.
    """
    net = model.net
    if not isinstance(net, KUNet):
        raise ModelError(f"a {type(net).__name__:.60} cannot be exported as {what}: distil it into a k-Unet first.")
    if net.context:
        raise ModelError(
            f"the model cannot be exported as {what}: it has context, which means that it sees neighbouring slices."
        )
    if most is not None and net.k > most:
        raise ModelError(
            f"a {net.k}-Unet cannot be exported as {what}, which is for k up to {most}: distil a smaller one."
        )
    if classes is not None and net.classes != classes:
        raise ModelError(f"a network of {net.classes} classes cannot be exported as {what}, which is for {classes}.")
    return net
