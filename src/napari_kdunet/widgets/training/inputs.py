"""The training data: rows of image and labels, and the checks of them when a button is pressed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np
from magicgui.widgets import CheckBox
from napari.layers import Labels
from napari.utils.colormaps import CyclicLabelColormap
from numpy.typing import NDArray

from napari_kdunet.core.volumes.volume import check_labels, shows_nothing
from napari_kdunet.widgets.shared.fields import Choice
from napari_kdunet.widgets.shared.layers import (
    chosen_layer,
    data_of,
    grid_of,
    layer_choice,
    sparse_box,
    volume_of,
    warn_if_apart,
)
from napari_kdunet.widgets.shared.panel import button, in_a_row
from napari_kdunet.widgets.shared.parts import PartChoice
from napari_kdunet.widgets.shared.pixel_size import PixelSize

if TYPE_CHECKING:
    import napari.viewer

    from napari_kdunet.core import TrainConfig, Volume

__all__ = ["check", "check_image", "ignore_box", "input_rows", "new_strokes", "volumes"]

_STROKES = ("transparent", "#CC79A7", "#E69F00")  # background and mitochondrion, unlike the preview (Okabe, Ito)
_BRUSH = 8  # pixels


def input_rows(
    viewer: napari.viewer.Viewer, strokes: Any, finds: tuple[Any, Any, str], no_labels: str = ""
) -> list[Any]:
    """Return the rows ``image``, ``part``, ``image_pixel_size`` and ``labels_layer``.

    Parameters
    ----------
    viewer : napari.viewer.Viewer
        Viewer of the layers.
    strokes : callable
        Called by the button that adds a layer to paint on.
    finds : tuple
        Arguments `model`, `owner` and `if_inverted` of `PixelSize`, which finds the pixel size.
    no_labels : str
        Text of the choice of no labels; if empty, labels are required.
    """
    image = layer_choice(
        viewer, name="image", label="Image", tooltip="The electron-microscopy image: grey values, 2-D or 3-D."
    )
    labels = layer_choice(
        viewer,
        Labels,
        name="labels_layer",
        label="Labels",
        none=no_labels,
        tooltip="Your labels of some or all slices, of the same shape. Masks and objects of the plugin come last.",
    )
    paint = button(
        "New strokes",
        "Add an empty labels layer on the image and choose it, to paint 1 = background, 2 = mitochondrion;\n"
        "what is not painted does not count, and the eraser takes strokes back.",
        strokes,
        "strokes_button",
    )
    row = in_a_row(labels, paint, label=labels.label)
    return [image, PartChoice(viewer, image), PixelSize(viewer, image, *finds), row]


def ignore_box() -> CheckBox:
    """Return the check box that says whether unlabelled pixels are ignored, for a training."""
    return sparse_box(" Slices without any label do not count.")


def new_strokes(viewer: napari.viewer.Viewer, image: Any) -> Labels:
    """Add an empty labels layer on the image, and start to paint."""
    shape = volume_of(image).shape[-image.ndim :]
    layer: Labels = viewer.add_labels(
        np.zeros(shape, np.uint8),
        name=f"{image.name} strokes",
        opacity=0.7,
        colormap=CyclicLabelColormap(colors=_STROKES),
        **grid_of(image),
    )
    layer.selected_label, layer.brush_size, layer.mode = 2, _BRUSH, "paint"
    viewer.layers.selection.active = layer
    return layer


def volumes(image: Choice, labels: Choice) -> tuple[Volume, Volume | None]:
    """Return image and labels, None for no labels; warn if the layers lie in different places.

    Raises
    ------
    VolumeError, LabelsError
        If there is no image, one of the layers cannot be used, or they do not fit.
    """
    raw = volume_of(chosen_layer(image))
    if labels.value is None and labels.null_string:
        return raw, None
    truth = volume_of(chosen_layer(labels))
    check_labels(raw, truth)
    warn_if_apart(image.value, labels.value)
    return raw, truth


def check(image: Choice, labels: Choice, config: TrainConfig) -> None:
    """Check that something is labelled and that the image shows something there, before a process is started.

    Lazy layers are left to that process.

    Raises
    ------
    UnlabelledError, ConfigError
        If nothing is labelled, or nothing as foreground.
    VolumeError
        If the image is constant in all slices to train on.
    """
    if labels.value is None:
        check_image(image)
    elif isinstance(data_of(labels.value), np.ndarray):
        slices = _labelled(volume_of(labels.value), config)
        check_image(image, chain([next(slices)], slices))


def check_image(image: Choice, slices: Iterable[int] | None = None) -> None:
    """Check that the image is not constant in all of the `slices`, by default all of the volume, unless it is lazy.

    Raises
    ------
    VolumeError
        If the image is constant there.
    """
    layer = chosen_layer(image)
    raw = volume_of(layer)
    slices = range(len(raw)) if slices is None else slices
    if isinstance(data_of(layer), np.ndarray) and all(_is_constant(raw.read(z)) for z in slices):
        raise shows_nothing(raw, "in the slices to train on", "choose others")


def _labelled(labels: Volume, config: TrainConfig) -> Iterator[int]:
    """Yield the slices to learn from, beginning with the first that has foreground, so the rest may stay unread."""
    from napari_kdunet.core.data.splits import is_labelled, labelled_slices  # they import torch

    first = next((z for z in range(len(labels)) if is_labelled(labels, z, config)[1]), None)
    if first is None or isinstance(config.slices, tuple):
        yield from labelled_slices(labels, config)
    else:
        yield first
        yield from (z for z in range(len(labels)) if is_labelled(labels, z, config)[0])


def _is_constant(pixels: NDArray[Any]) -> bool:
    """Return whether all pixels (YX) have one value, or are NaN; for most images the first row is enough to tell."""
    first = pixels[0, 0]
    return all((row == first).all() or (row != row).all() for row in pixels)
