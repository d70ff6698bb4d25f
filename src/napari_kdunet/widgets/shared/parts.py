"""The row that chooses a channel or time point of an image with more axes than a volume."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import dask.array as da
import numpy as np
from napari.layers import Image, Layer
from napari.utils.transforms import Affine
from qtpy.compat import isalive

from napari_kdunet.widgets.shared.fields import Choice
from napari_kdunet.widgets.shared.layers import CHANNELS, data_of, volume_in_file

if TYPE_CHECKING:
    import napari.viewer

__all__ = ["PartChoice", "extra_axis"]

_TIMES = {"t", "time", "times", "frame", "frames", "timepoint", "timepoints"}  # labels of a time axis
_PART = "kdunet-part"  # key in a part's metadata: the pixels, axis and index that it was taken from
_FEW = 4  # an unlabelled third axis from the end, no longer than this, is of channels if there is another axis
_TIP = (
    "The image has more axes than a volume. Choose a channel or a time point: it becomes a layer of its own, without\n"
    "copying its pixels, and is used as the image."
)


def extra_axis(layer: Layer) -> tuple[int, str] | None:
    """Return the index and kind ("channel" or "time point") of the first axis that a volume does not have, or None.

    The labels of the axes decide. If none of four axes has a telling label, the third from the end is taken as channels
    if it is short, else the first as time points. If there are more than three axes, one of length 1 counts as well.
    """
    shape, labels = data_of(layer).shape, [str(label).lower() for label in layer.axis_labels]
    if getattr(layer, "rgb", False):
        return None
    before = [i for i, length in enumerate(shape[:-2]) if length > 1]
    for i in before:
        if labels[i] in CHANNELS:
            return i, "channel"
        if labels[i] in _TIMES and len(before) > 1:  # with three axes, "frames" are mostly slices
            return i, "time point"
    single = [i for i in range(len(shape) - 2) if i not in before]
    if len(before) < 2:
        return None if len(shape) < 4 else (single[0], "channel" if labels[single[0]] in CHANNELS else "time point")
    return (before[-1], "channel") if shape[before[-1]] <= _FEW else (before[0], "time point")


class PartChoice(Choice):
    """Choice of a channel or time point, visible only if the image has several; magicgui has no such widget.

    Parameters
    ----------
    viewer : napari.viewer.Viewer
        Viewer to which the layer of the part is added.
    image : Choice
        Choice of the image; the layer of the part is chosen in it once there is one.
    """

    def __init__(self, viewer: napari.viewer.Viewer, image: Choice) -> None:
        self.viewer, self.image = viewer, image
        super().__init__(
            self._parts, first=lambda _: None, none="choose one", name="part", label="Channel", tooltip=_TIP
        )
        self.visible = False
        self.changed.connect(self._take)
        image.changed.connect(self._image_changed)
        self._image_changed()

    def _parts(self, _: Any) -> list[tuple[str, int]]:
        found = None if self.image.value is None else extra_axis(self.image.value)
        if found is None:
            return []
        axis, kind = found
        return [(f"{kind} {i}", i) for i in range(data_of(self.image.value).shape[axis])]

    def _image_changed(self, *_: Any) -> None:
        if not isalive(self.native):
            return
        layer = self.image.value
        if layer is not None:
            _label_channels(layer)
        found = None if layer is None else extra_axis(layer)
        with self.changed.blocked():
            self.held = False
            self.reset_choices()
            self.set_value(None)
            self.held = False
        if found is not None:
            self.label = found[1].capitalize()
        self.visible = found is not None

    def _take(self, index: int | None) -> None:
        layer = self.image.value
        found = None if layer is None or index is None else extra_axis(layer)
        if found is None:
            return
        axis, kind = found
        taken = (layer.data, axis, index)
        part = next((each for each in self.viewer.layers if _is_same(each.metadata.get(_PART), taken)), None)
        if part is None:
            part = self.viewer.add_layer(_part(layer, axis, index, f"{layer.name} {kind} {index}"))
            part.metadata[_PART] = taken
        self.image.value = part


def _is_same(one: tuple[Any, ...] | None, other: tuple[Any, ...]) -> bool:
    """Return whether two parts are the same position along the same axis of the same pixels."""
    return one is not None and one[0] is other[0] and one[1:] == other[1:]


def _part(layer: Layer, axis: int, index: int | None, name: str) -> Image:
    """Return a layer of one position along an axis of another layer, without copying the pixels."""
    levels = list(layer.data) if layer.multiscale else [layer.data]
    arrays = [level if isinstance(level, np.ndarray | da.Array) else da.from_array(level) for level in levels]
    parts = [array[(slice(None),) * axis + (index,)] for array in arrays]
    names = ("scale", "translate", "rotate", "shear")
    placed = _without(Affine(**{key: getattr(layer, key) for key in names}), axis)
    grid = {key: getattr(placed, key) for key in names} | {"affine": _without(layer.affine, axis)}
    if np.array_equal(layer.rotate, np.eye(layer.ndim)) and not np.any(layer.shear):  # keeps negative scales
        grid |= {"scale": np.delete(layer.scale, axis), "rotate": None, "shear": None}
    words = {key: tuple(np.delete(np.array(getattr(layer, key), object), axis)) for key in ("units", "axis_labels")}
    return Image(parts if layer.multiscale else parts[0], name=name, multiscale=layer.multiscale, **grid, **words)


def _without(transform: Affine, axis: int) -> Affine:
    """Return a transform without one of its axes."""
    return Affine(affine_matrix=np.delete(np.delete(transform.affine_matrix, axis, 0), axis, 1))


def _label_channels(layer: Layer) -> None:
    """Label the first of three axes as channels where the file behind the layer says so: napari shows them as slices.

    Only the header of the file is read.
    """
    if layer.ndim != 3 or str(layer.axis_labels[0]).lower() in CHANNELS:
        return
    volume = volume_in_file(layer, channel=1)  # None if the file has a single channel
    if volume is not None and len(volume) == 1 and len(data_of(layer)) > 1:
        layer.axis_labels = ("c", *layer.axis_labels[1:])
