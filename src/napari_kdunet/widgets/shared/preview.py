"""Preview: segment the current slice on a thread, following the user from slice to slice."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from napari.layers import Layer
from numpy.typing import NDArray
from qtpy.QtWidgets import QWidget
from superqt.utils import qdebounced

from napari_kdunet import core
from napari_kdunet.core.errors import KDUNetError
from napari_kdunet.widgets.notify import report
from napari_kdunet.widgets.shared.layers import (
    PREVIEW,
    camera_of,
    current_slice,
    data_of,
    grid_of,
    one_colour,
    set_grid,
    volume_of,
)
from napari_kdunet.widgets.workers.latest import LatestRequest, Work
from napari_kdunet.widgets.workers.thread import run

if TYPE_CHECKING:
    import napari.viewer

    from napari_kdunet.core import Model

__all__ = ["Preview", "close_previews", "warm_up"]

_COLOUR = "#009E73"  # Okabe and Ito's green: visible on grey, and neither that of masks nor of strokes
_CONTOUR = 3  # pixels: width of the outline, inside which a mask that is painted on stays visible
_MOST = 2048  # pixels: longest side that is segmented; of a larger slice only a part
_STEP = 256  # pixels: steps in which that part moves
_SEEN = ("data", "scale", "units", "affine", "translate", "rotate", "shear")  # what the model sees, and where it lies

_Place: TypeAlias = tuple[int, slice, slice]
"""Slice (z), rows and columns."""


def warm_up(owner: QWidget) -> None:
    """Import on a thread what the first segmentation needs: torch, and pandas for napari's first labels layer.

    On the GUI thread these imports would block the window for seconds.
    """

    def load() -> Iterator[Any]:
        import pandas  # noqa: F401

        network = core.Model(core.KUNet(k=1), pixel_size=0.0)
        yield core.predict(network, np.zeros((1, 64, 64), np.uint8)).compute(scheduler="synchronous")

    run(load, on_event=lambda _: None, owner=owner)


def close_previews(viewer: napari.viewer.Viewer, image: Layer) -> None:
    """Close the preview of an image, whichever panel has opened it."""
    for layer in list(viewer.layers):
        preview = layer.metadata.get(PREVIEW)
        if isinstance(preview, Preview) and preview.image == image:
            preview.close()


class Preview:
    """A Labels layer ``<image> preview`` of the current slice, segmented.

    It is one slice thick and moves with the user, so that its cost does not depend on the size of the volume; if a
    slice has more than 2048 pixels along a side, only the part in the middle of the screen is segmented. The latest
    request wins: one slice is segmented at a time, and a slice that the user has left is not shown. The preview is
    closed when the user removes its layer or the image, or when another preview of the image is opened. It is drawn as
    an outline, named after the image, and segmented again when the data or the place of the image change.

    Parameters
    ----------
    viewer : napari.viewer.Viewer
        The viewer of the layer.
    image : napari.layers.Image
        The image to segment.
    owner : QWidget, optional
        Widget whose destruction ends the preview: it no longer follows the user.
    on_error : callable, optional
        Called with an error of the segmentation, after the user has been notified of it.
    rest : int
        Time in ms without scrolling before a slice is segmented; 0 segments at every move. A pause leaves the
        processor to a training that is running.

    Attributes
    ----------
    inverted : bool
        Whether bright and dark are exchanged for the model, from the next `show` on.
    place : tuple of int, slice and slice
        Slice index, rows and columns that are shown.
    probability : ndarray or None
        Foreground probability at `place`, YX float32.

    Raises
    ------
    VolumeError
        If the layer cannot be segmented.
    """

    def __init__(
        self,
        viewer: napari.viewer.Viewer,
        image: Layer,
        owner: QWidget | None = None,
        *,
        on_error: Callable[[Exception], Any] | None = None,
        rest: int = 0,
    ) -> None:
        self.viewer, self.image = viewer, image
        volume_of(image)  # raises now if it cannot be segmented
        self.layer: Layer | None = None
        self.probability: NDArray[np.float32] | None = None
        self.inverted = False
        self.place: _Place = (-1, slice(0, 0), slice(0, 0))
        self._seen: tuple[Any, ...] = (None,)  # data, voxel size and inversion of `_volume`
        self._volume: core.Volume | None = None
        self._model: Model | None = None
        self._threshold: float | None = None
        self._on_error, self._told = on_error, ""
        self._work = LatestRequest(owner, on_error)
        self._wanted = self.place
        self._closed = False
        self._request_soon = qdebounced(self._request, timeout=rest)
        self._resting: Future[None] | None = None
        self._camera = camera_of(viewer)
        self._camera.events.center.connect(self._moved)
        viewer.dims.events.point.connect(self._moved)
        viewer.layers.events.removed.connect(self._removed)
        image.events.name.connect(self._renamed)
        for name in _SEEN:
            image.events[name].connect(self._request)
        if owner is not None:
            owner.destroyed.connect(self._disconnect)

    @property
    def threshold(self) -> float:
        """Foreground probability above which a pixel is shown; by default the model's."""
        if self._threshold is not None:
            return self._threshold
        return 0.5 if self._model is None else self._model.threshold

    @threshold.setter
    def threshold(self, value: float | None) -> None:
        """Set the threshold, or None for the model's; nothing is predicted again."""
        self._threshold = value
        self._draw()

    @property
    def z(self) -> int:
        """Index of the slice that is shown; -1 while there is none."""
        return self.place[0]

    @property
    def is_busy(self) -> bool:
        """Whether a slice is being segmented, or is about to be."""
        return self._work.is_busy or (self._resting is not None and not self._resting.done())

    @property
    def is_closed(self) -> bool:
        """Whether the preview was closed, or its layer or image was removed."""
        return self._closed

    def get_ready(self) -> None:
        """Add the layer, still empty, so that the first prediction has less to do."""
        self.place = _, rows, columns = self._on_screen()
        self._put(np.zeros((rows.stop - rows.start, columns.stop - columns.start), np.uint8))

    def show(self, model: Model) -> None:
        """Segment the current slice by this model, and from then on each slice that the user goes to.

        If the image cannot be segmented any more, the user is told.
        """
        self._model = model
        self._request()

    def close(self, *_: Any) -> None:
        """Remove the layer, and stop following the user."""
        self._disconnect()
        if self.layer is not None and self.layer in self.viewer.layers:
            self.viewer.layers.remove(self.layer)

    def _disconnect(self, *_: Any) -> None:
        if self._closed:
            return
        self._closed = True
        self._work.drop()
        self._request_soon.cancel()
        self._resting = None
        self._camera.events.center.disconnect(self._moved)
        self.viewer.dims.events.point.disconnect(self._moved)
        self.viewer.layers.events.removed.disconnect(self._removed)
        self.image.events.name.disconnect(self._renamed)
        for name in _SEEN:
            self.image.events[name].disconnect(self._request)

    def _removed(self, event: Any) -> None:
        if event.value == self.image:
            self.close()
        elif self.layer is not None and event.value == self.layer:
            self.layer = None
            self.close()

    def _moved(self, event: Any = None) -> None:
        if self._model is not None and self._on_screen() != self._wanted:
            self._resting = self._request_soon()

    def _renamed(self, event: Any = None) -> None:
        if self.layer is not None:
            self.layer.name = self._name

    @property
    def _name(self) -> str:
        return f"{self.image.name} preview"

    def _request(self, event: Any = None) -> None:
        if not self._closed and self._model is not None:
            self._wanted = self._on_screen()
            try:
                self._work.ask(self._begin)
                self._told = ""
            except KDUNetError as error:
                self._tell(error)

    def _tell(self, error: KDUNetError) -> None:
        """Tell the user of an error, once: a training asks for the slice several times a second."""
        if str(error) != self._told:
            self._told = str(error)
            report(error)
            if self._on_error is not None:
                self._on_error(error)

    def _on_screen(self) -> _Place:
        """Return what to segment: the slice on screen or, if it is large, its part in the middle of the screen."""
        shape, point = data_of(self.image).shape, np.array(self.viewer.dims.point[-self.image.ndim :])
        if max(shape[-2:]) > _MOST:
            point[-2:] = self._camera.center[-2:]
            point = np.asarray(self.image.world_to_data(point))
        starts = (
            min(max(round((middle - _MOST / 2) / _STEP) * _STEP, 0), max(n - _MOST, 0))
            for middle, n in zip(point[-2:], shape[-2:], strict=True)
        )
        rows, columns = (slice(start, min(start + _MOST, n)) for start, n in zip(starts, shape[-2:], strict=True))
        return current_slice(self.viewer, self.image), rows, columns

    def _volume_now(self) -> core.Volume:
        """Return the present image as a volume, the same one until it changes, as it caches statistics of slices."""
        volume = volume_of(self.image)
        seen = data_of(self.image), volume.voxel_size, self.inverted
        if self._volume is None or self._seen[0] is not seen[0] or self._seen[1:] != seen[1:]:
            self._volume, self._seen = core.open_volume(volume, invert=self.inverted), seen
        return self._volume

    def _begin(self) -> Work:
        model, place, volume = self._model, self._wanted, self._volume_now()
        assert model is not None

        def predict() -> Iterator[tuple[_Place, NDArray[np.float32]]]:
            yield place, core.predict(model, volume)[place].compute(scheduler="synchronous")

        return predict, self._predicted

    def _predicted(self, result: tuple[_Place, NDArray[np.float32]]) -> None:
        # shown for an outdated model too: otherwise a fast training would never show anything
        if result[0] == self._wanted:
            self.place, self.probability = result
            self._draw()

    def _draw(self) -> None:
        if not self._closed and self.probability is not None:
            self._put((self.probability > self.threshold).astype(np.uint8))

    def _put(self, mask: NDArray[np.uint8]) -> None:
        z, rows, columns = self.place
        grid = grid_of(self.image, (z, rows.start, columns.start))
        mask = mask.reshape((1,) * (self.image.ndim - 2) + mask.shape)
        if self.layer is None:
            close_previews(self.viewer, self.image)
            selected = set(self.viewer.layers.selection)
            look = {"opacity": 0.9, "colormap": one_colour(_COLOUR), "metadata": {PREVIEW: self}}
            layers = self.viewer.layers
            self.layer = self.viewer.add_labels(mask, name=self._name, **look, **grid)
            self.layer.contour = _CONTOUR
            if self.image in layers:  # just above the image, so that labels to paint on stay on top
                layers.move(len(layers) - 1, layers.index(self.image) + 1)
            layers.selection = selected
            return
        self.layer.data = mask  # first, as the grid has as many axes
        set_grid(self.layer, grid)
