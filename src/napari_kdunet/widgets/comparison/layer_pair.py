"""Default choice of the two layers to compare, until the user has chosen."""

from __future__ import annotations

from collections.abc import Sequence

from napari.layers import Image, Labels, Layer

from napari_kdunet.widgets.shared.layers import is_of_plugin, is_result

__all__ = ["can_be_compared", "default_pair"]


def default_pair(layers: Sequence[Layer]) -> tuple[Layer | None, Layer | None]:
    """Return the default prediction and reference among `layers`, which are ordered from the topmost down.

    The prediction is a mask of *Segment*, else probabilities, else the topmost layer; the reference is the user's
    lowest labels layer, which often is the ground truth, else another layer. So a mask is the prediction and the user's
    labels are the reference, whatever the order of the layers.
    """
    ranked = sorted(layers, key=lambda layer: (not is_result(layer), isinstance(layer, Image) == is_result(layer)))
    prediction = next(iter(ranked), None)
    others = [layer for layer in reversed(layers) if layer is not prediction]
    own_labels = [layer for layer in others if isinstance(layer, Labels) and not is_of_plugin(layer)]
    return prediction, next(iter(own_labels or others), None)


def can_be_compared(layer: Layer) -> bool:
    """Return whether a layer is labels, or an image that can hold probabilities."""
    return isinstance(layer, Labels) or (isinstance(layer, Image) and not layer.rgb and layer.dtype.kind == "f")
