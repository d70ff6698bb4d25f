"""The row *Pixel size (nm)*: that of the chosen image, from its layer or from the file behind it, or typed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from magicgui.widgets import Container
from napari.layers import Layer
from numpy.typing import ArrayLike
from qtpy.compat import isalive

from napari_kdunet import core
from napari_kdunet.widgets.shared.fields import Choice, OptionalNumber, without_wheel
from napari_kdunet.widgets.shared.layers import data_of, voxel_size_of

if TYPE_CHECKING:
    import napari.viewer

__all__ = ["PixelSize", "set_pixel_size", "set_voxel_size", "voxel_size_in_file"]

_TIP = (
    "Width of a pixel of the image. A model works at one pixel size and finds little where it is wrong by much.\n"
    "It is that of the layer's scale and units, else that of the file that the layer is from. Type it where neither\n"
    "says so: it is written to the scale of the layer, and of the layers that lie on it."
)
_MARK = "border: 1px solid #E69F00"  # unknown


def voxel_size_in_file(layer: Layer) -> tuple[float, float, float] | None:
    """Voxel size in nm (Z, Y, X) that the file behind a layer states, whoever opened it; only its header is read.

    None where there is no file, it does not say, or it holds an image of another size.
    """
    path = layer.source.path
    if not path:
        return None
    try:
        volume = core.open_volume(path)
    except core.KDUNetError:
        return None
    return volume.voxel_size if volume.shape[1:] == tuple(data_of(layer).shape[-2:]) else None


def set_pixel_size(viewer: napari.viewer.Viewer, layer: Layer, size: float) -> None:
    """Write a pixel size in nm to the scale and units of a layer.

    A known distance of the slices stays; where the scale has no unit of length, its ratios stay.
    """
    known, ratio = voxel_size_of(layer), np.abs(np.asarray(layer.scale, float))[-3:] / abs(float(layer.scale[-2]))
    in_plane = (size, size * float(ratio[-1]))
    has_depth = layer.ndim > 2 and (1 * layer.units[-3]).is_compatible_with("nm")
    depth = known[0] if known is not None and has_depth else size * (float(ratio[0]) if layer.ndim > 2 else 1.0)
    set_voxel_size(viewer, layer, (depth, *in_plane))


def set_voxel_size(viewer: napari.viewer.Viewer, layer: Layer, size: ArrayLike) -> None:
    """Write a voxel size in nm (Z, Y, X) to the scale and units of a layer, and of all layers of the same scale.

    They keep lying on each other, and the slice on screen stays.
    """
    old, units = np.asarray(layer.scale, float), tuple(layer.units)
    spatial = min(layer.ndim, 3)
    new = old.copy()
    new[-spatial:] = np.asarray(size, float)[-spatial:] * np.where(old[-spatial:] < 0, -1, 1)
    step = viewer.dims.current_step
    for each in list(viewer.layers):
        if each.ndim == layer.ndim and tuple(each.units) == units and np.allclose(each.scale, old):
            each.translate = np.asarray(each.translate, float) * new / old
            each.scale = new
            each.units = (*units[:-spatial], *("nm",) * spatial)
    viewer.dims.current_step = step
    viewer.reset_view()


class PixelSize(Container):
    """The row of the pixel size of the chosen image; to its right is room for what finds it.

    Parameters
    ----------
    viewer : napari.viewer.Viewer
        Whose layers on the image get the same scale.
    image : Choice
        The image.
    """

    def __init__(self, viewer: napari.viewer.Viewer, image: Choice) -> None:
        self.viewer, self.chosen = viewer, image
        self.number = OptionalNumber(
            name="image_pixel_size", min=0, max=1e6, step=0.5, empty="not known: type it", tooltip=_TIP
        )
        self.number.native.setKeyboardTracking(False)  # when it is typed to the end
        without_wheel(self.number)
        super().__init__(
            widgets=[self.number], layout="horizontal", labels=False, label="Pixel size (nm)", tooltip=_TIP
        )
        self.margins = (0, 0, 0, 0)
        self._watched: Layer | None = None
        self.number.changed.connect(self._typed)
        image.changed.connect(self._image_changed)
        self._image_changed()

    def _image_changed(self, *_: Any) -> None:
        if not isalive(self.native):
            return
        layer = self.chosen.value
        if layer is not self._watched:
            self._unwatch()
            self._watched = layer
            if layer is not None:
                layer.events.scale.connect(self._show)
                layer.events.units.connect(self._show)
                size = voxel_size_in_file(layer) if voxel_size_of(layer) is None else None
                if size is not None:
                    set_voxel_size(self.viewer, layer, size)
        self._show()

    def _unwatch(self) -> None:
        if self._watched is not None:
            self._watched.events.scale.disconnect(self._show)
            self._watched.events.units.disconnect(self._show)
            self._watched = None

    def _size(self) -> float | None:
        known = None if self._watched is None else voxel_size_of(self._watched)
        return None if known is None else known[1]

    def _show(self, event: Any = None) -> None:
        if not isalive(self.native):
            return
        size = self._size()
        self.number.set_value(size)
        self.number.native.setStyleSheet(_MARK if size is None and self._watched is not None else "")
        self.enabled = self._watched is not None

    def _typed(self, value: float | None) -> None:
        if self._watched is not None and value is not None and not np.isclose(value, self._size() or 0):
            set_pixel_size(self.viewer, self._watched, value)
