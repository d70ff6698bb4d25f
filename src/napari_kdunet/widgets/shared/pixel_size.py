"""The row *Pixel size (nm)* of the chosen image: read from the layer or its file, typed, or found by a model.

The distance of the slices is shown below it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
from magicgui.widgets import Container
from napari.layers import Image, Layer
from numpy.typing import ArrayLike
from psygnal import Signal
from qtpy.compat import isalive
from qtpy.QtWidgets import QWidget

from napari_kdunet import core
from napari_kdunet.widgets.notify import report
from napari_kdunet.widgets.shared.fields import Choice, OptionalNumber, without_wheel
from napari_kdunet.widgets.shared.layers import (
    chosen_layer,
    data_of,
    stretch_of,
    volume_in_file,
    volume_of,
    voxel_size_of,
)
from napari_kdunet.widgets.shared.models import models
from napari_kdunet.widgets.shared.panel import button, in_a_row, note
from napari_kdunet.widgets.workers.thread import EventWorker, run

if TYPE_CHECKING:
    import napari.viewer

    from napari_kdunet.core import PixelSizeSearch

__all__ = ["PixelSize", "set_pixel_size", "set_voxel_size", "voxel_size_in_file"]

_TIP = (
    "Width of a pixel of the image. A model works at one pixel size, and finds little if this width is far off.\n"
    "It is read from the scale and units of the layer, else from the file of the layer. Type it if neither states it:\n"
    "it is then written to the scale of the layer, and of the layers that lie on it."
)
_DEPTH_TIP = (
    "Distance between slices. Volumes, surfaces and distances depend on it, and whether objects are found in 3-D.\n"
    "If neither layer nor file states it, the width of a pixel is assumed: type the distance if it differs."
)
_FIND_TIP = (
    "Find the pixel size: try sizes from a quarter to four times the model's own on a few slices, with contrast as it\n"
    "is and inverted, and take the size at which the model is surest. Press again to stop and change nothing."
)
_MARK = "border: 1px solid #E69F00"  # frame of an unknown pixel size


def voxel_size_in_file(layer: Layer) -> tuple[float, float, float] | None:
    """Return the voxel size in nm (Z, Y, X) that the file behind a layer states (`volume_in_file`), or None."""
    volume = volume_in_file(layer)
    return None if volume is None else volume.voxel_size


def set_pixel_size(viewer: napari.viewer.Viewer, layer: Layer, size: float) -> list[Layer]:
    """Write a pixel size in nm to the scale and units of a layer; returns the layers that have it now.

    A known distance of the slices stays; if the scale has no unit of length, its ratios stay.
    """
    known, widths = voxel_size_of(layer), np.abs(layer.scale) * stretch_of(layer)
    ratio = widths[-3:] / widths[-2]
    in_plane = (size, size * float(ratio[-1]))
    has_depth = layer.ndim > 2 and (1 * layer.units[-3]).is_compatible_with("nm")
    depth = known[0] if known is not None and has_depth else size * (float(ratio[0]) if layer.ndim > 2 else 1.0)
    return set_voxel_size(viewer, layer, (depth, *in_plane))


def set_voxel_size(viewer: napari.viewer.Viewer, layer: Layer, size: ArrayLike) -> list[Layer]:
    """Write a voxel size in nm (Z, Y, X) to the scale and units of a layer, and of all layers of the same scale.

    Layers on the same grid stay aligned, and the slice on screen stays. An image of another shape, or of another file
    and with a voxel size already, is another image, which may have another one. Returns the layers that have it now.
    """
    old, units, stretch = np.asarray(layer.scale, float), tuple(layer.units), stretch_of(layer)
    spatial = min(layer.ndim, 3)
    new = old.copy()
    new[-spatial:] = np.asarray(size, float)[-spatial:] / stretch[-spatial:] * np.where(old[-spatial:] < 0, -1, 1)
    step, written = viewer.dims.current_step, []
    for each in list(viewer.layers):
        same = each.ndim == layer.ndim and tuple(each.units) == units and np.allclose(each.scale, old)
        if same and np.allclose(stretch_of(each), stretch) and not _is_another_image(each, layer):
            each.translate = np.asarray(each.translate, float) * new / old
            each.scale = new
            each.units = (*units[:-spatial], *("nm",) * spatial)
            written.append(each)
    viewer.dims.current_step = step
    viewer.reset_view()
    return written


def _is_another_image(layer: Layer, image: Layer) -> bool:
    if not isinstance(layer, Image):
        return False
    if data_of(layer).shape != data_of(image).shape:
        return True
    return _is_of_another_file(layer, image) and bool(voxel_size_of(layer) or voxel_size_in_file(layer))


def _is_of_another_file(layer: Layer, image: Layer) -> bool:
    return bool(layer.source.path and image.source.path) and layer.source.path != image.source.path


def _has_depth(layer: Layer) -> bool:
    return layer.ndim > 2 and data_of(layer).shape[layer.ndim - 3] > 1


class PixelSize(Container):
    """The row of the chosen image's pixel size, with a button that finds it, and below it what was found.

    Parameters
    ----------
    viewer : napari.viewer.Viewer
        Viewer whose layers of the same scale as the image get its new scale too.
    image : Choice
        Choice of the image.
    model : callable, optional
        Returns the name of the model that searches for the size, or None. Without `model` there is no search, as for a
        layer that is no image.
    owner : callable
        Returns the widget that owns a search, which ends with it (see `workers.thread.run`).
    if_inverted : str
        Text to show if the contrast of the image is found to be inverted.

    Attributes
    ----------
    found : psygnal.Signal
        Emitted with the `PixelSizeSearch` when it has found a size and the size has been written to the layer.
    """

    found = Signal(object)

    def __init__(
        self,
        viewer: napari.viewer.Viewer,
        image: Choice,
        model: Callable[[], str | None] | None = None,
        owner: Callable[[], QWidget | None] = lambda: None,
        if_inverted: str = "",
    ) -> None:
        self.viewer, self.chosen = viewer, image
        self._model, self._owner, self._if_inverted = model or (lambda: None), owner, if_inverted
        self._worker: EventWorker | None = None
        self.number = OptionalNumber(
            name="image_pixel_size", min=0, max=1e6, step=0.5, empty="not known: type it", tooltip=_TIP
        )
        self.number.native.setKeyboardTracking(False)  # emits only when typing has ended
        without_wheel(self.number)
        self.depth = OptionalNumber(
            name="slice_distance", min=0, max=1e6, step=5, empty="distance of slices not known", tooltip=_DEPTH_TIP
        )
        self.depth.native.setPrefix("slices ")
        self.depth.native.setSuffix(" nm apart")
        self.depth.native.setKeyboardTracking(False)
        without_wheel(self.depth)
        self.find_button = button("Find", _FIND_TIP, self.find_or_stop, "find_button")
        self.find_button.visible = model is not None
        self.finding = note("pixel_size_finding")
        self.finding.visible = False
        row = in_a_row(self.number, self.find_button)
        super().__init__(widgets=[row, self.depth, self.finding], labels=False, label="Pixel size (nm)", tooltip=_TIP)
        self.margins = (0, 0, 0, 0)
        self._watched: Layer | None = None
        self.number.changed.connect(self._typed)
        self.depth.changed.connect(self._depth_typed)
        image.changed.connect(self._image_changed)
        self._image_changed()

    def _image_changed(self, *_: Any) -> None:
        if not isalive(self.native):
            return
        layer = self.chosen.value
        if layer is not self._watched:
            self._unwatch()
            self.stop()
            self._watched = layer
            if layer is not None:
                for event in (layer.events.scale, layer.events.units, layer.events.affine):
                    event.connect(self._show)
                size = voxel_size_in_file(layer) if voxel_size_of(layer) is None else None
                if size is not None:
                    set_voxel_size(self.viewer, layer, size)
        self._show()

    def _unwatch(self) -> None:
        if self._watched is not None:
            events = self._watched.events
            for event in (events.scale, events.units, events.affine):
                event.disconnect(self._show)
            self._watched = None

    def _voxel_size(self) -> tuple[float, float, float] | None:
        return None if self._watched is None else voxel_size_of(self._watched)

    def _show(self, event: Any = None) -> None:
        if not isalive(self.native):
            return
        size, layer = self._voxel_size(), self._watched
        self.number.set_value(None if size is None else size[1])
        self.number.native.setStyleSheet(_MARK if size is None and layer is not None else "")
        self.depth.set_value(None if size is None else size[0])
        self.depth.visible = size is not None and layer is not None and _has_depth(layer)
        self.enabled = layer is not None

    def _typed(self, value: float | None) -> None:
        known = self._voxel_size()
        if self._watched is not None and value is not None and (known is None or not np.isclose(value, known[1])):
            self.stop()
            written = set_pixel_size(self.viewer, self._watched, value)
            images = [each for each in written if isinstance(each, Image)]
            if others := [each.name for each in images if _is_of_another_file(each, self._watched)]:
                self._say(f"Taken for {', '.join(others)} too, of the same shape: choose that image to change it.")

    def _depth_typed(self, value: float | None) -> None:
        known = self._voxel_size()
        if self._watched is not None and value is not None and known is not None and not np.isclose(value, known[0]):
            set_voxel_size(self.viewer, self._watched, (value, *known[1:]))

    def find_or_stop(self) -> None:
        """Start a search for the pixel size on a thread, or stop the one that runs."""
        if self._worker is not None and self._worker.is_running:
            self.stop()
            return
        try:
            layer, name = chosen_layer(self.chosen), self._model()
            volume = volume_of(layer)
            if not name:
                raise core.ModelError(
                    "there is no model to find the pixel size with: train or open one, or type the pixel size."
                )
        except core.KDUNetError as error:
            self._failed(error)
            report(error)
            return
        searches: list[PixelSizeSearch] = []

        def search() -> Iterator[PixelSizeSearch]:
            yield from core.iter_find_pixel_size(models.get(name), volume)

        def tried(found: PixelSizeSearch) -> None:
            searches[:] = [found]
            self._say(f"Looking with {name}: {len(found.tried)} of {found.steps} sizes tried…")

        def done() -> None:
            self._worker, self.find_button.text = None, "Find"
            self._take(searches[0], layer, name)

        self._say(f"Looking with {name}…")
        self.find_button.text = "Stop"
        self._worker = run(search, on_event=tried, on_done=done, on_error=self._failed, owner=self._owner())

    def stop(self) -> None:
        """Stop the search, and clear what this or an earlier one has found."""
        if self._worker is not None:
            self._worker.drop()
            self._worker = None
        self.find_button.text = "Find"
        self._say("")

    def _take(self, search: PixelSizeSearch, layer: Layer, name: str) -> None:
        """Write the size that was found to the layer, and tell the user."""
        size = search.pixel_size
        if size is None:
            self._say(f"Not found: {name} is not sure at any pixel size. Type the pixel size of your image.")
            return
        set_pixel_size(self.viewer, layer, size)
        words = [f"Found {size:g} nm, where {name} is surest."]
        if not search.knows_tissue:
            words.append("It hardly knows this tissue: check the size against what you know of the image.")
        if search.inverted:
            words.append(f"Bright and dark are reversed compared with the images that {name} knows.")
            words.append(self._if_inverted)
        self._say(" ".join(words).strip())
        self.found.emit(search)

    def _failed(self, error: Exception) -> None:
        self._worker, self.find_button.text = None, "Find"
        self._say(str(error))

    def _say(self, text: str) -> None:
        if isalive(self.native):
            self.finding.value, self.finding.visible = text, bool(text)
