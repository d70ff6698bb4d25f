"""Segment a volume in the background, from the current slice outwards, into layers that follow the threshold."""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable, Iterator
from itertools import count
from typing import TYPE_CHECKING, Any

from napari.layers import Labels
from napari.utils import Colormap
from qtpy.QtCore import QObject, Signal
from qtpy.QtWidgets import QWidget

from napari_kdunet.core.volumes.volume import check_planes
from napari_kdunet.widgets.segmentation.recipe import is_same
from napari_kdunet.widgets.segmentation.result import Focus, Result, segment
from napari_kdunet.widgets.shared.layers import (
    IMAGE,
    RESULT,
    current_slice,
    data_of,
    grid_of,
    one_colour,
    segmented_image,
    volume_of,
    voxel_size_of,
)
from napari_kdunet.widgets.shared.preview import close_previews
from napari_kdunet.widgets.workers.thread import EventWorker, run, run_stoppable

if TYPE_CHECKING:
    import napari.viewer

    from napari_kdunet.widgets.segmentation.recipe import Recipe

__all__ = ["VolumeSegmentation"]

_COLOUR = "#56B4E9"  # Okabe and Ito's sky blue
_RAMP = [(0.27, 0.0, 0.33, 0.0), (0.13, 0.57, 0.55, 0.6), (0.99, 0.91, 0.14, 0.9)]  # viridis, clear where unlikely
_REFRESH_3D = 1.0  # s between two redraws in the 3-D view, which needs the whole volume
_AT_ONCE = 2048**2  # pixels of a slice that follows the threshold without a thread, in some 20 ms
_MOST_DRAWING = 0.1  # largest share of the time spent on redraws: one of a very large slice takes a second


class VolumeSegmentation(QObject):
    """The segmentation of a volume: its result, its layers, and the workers that fill them.

    Parameters
    ----------
    viewer : napari.viewer.Viewer
        Viewer to which the layers are added.
    owner : QWidget
        Widget whose destruction stops the workers.
    on_error : callable
        Called with an error of the segmentation, after the user has been notified of it.

    Attributes
    ----------
    result : Result or None
        None before the first start, and after the user has removed the mask.
    mask, probability : napari layer or None
        The Labels layer, and the Image layer of probabilities if it is shown.
    kept : str
        Names of earlier masks of the image that stay beside the new one because the user has painted on them, or empty.
    """

    changed = Signal()  # it has started or ended, a tile is done, or a layer was removed

    def __init__(
        self, viewer: napari.viewer.Viewer, owner: QWidget, on_error: Callable[[Exception], Any] = lambda _: None
    ) -> None:
        super().__init__(owner)
        self.viewer, self.owner, self._on_error = viewer, owner, on_error
        self.result: Result | None = None
        self.mask: Any = None
        self.probability: Any = None
        self._image: Any = None
        self._seen: tuple[Any, ...] = (None,)  # pixels and voxel size that the model sees
        self._name = ""
        self.kept = ""
        self._focus = Focus()
        self._worker: EventWorker | None = None
        self._updater: EventWorker | None = None
        self._began, self._at_first, self._drawn, self._cost = 0.0, 0, 0.0, 0.0
        point, removed, moved, gone = viewer.dims.events.point, viewer.layers.events.removed, self._moved, self._removed
        point.connect(moved)
        removed.connect(gone)
        self.destroyed.connect(lambda: (point.disconnect(moved), removed.disconnect(gone)))

    @property
    def is_running(self) -> bool:
        """Whether slices are being segmented."""
        return self._worker is not None

    @property
    def is_busy(self) -> bool:
        """Whether slices are being segmented, or a new threshold is being applied to them."""
        return self._worker is not None or self._updater is not None

    @property
    def follows(self) -> bool:
        """Whether the mask still shows the result, so that it follows the threshold; else its data were replaced."""
        return self.mask is None or self.result is None or self.result.is_shown_by(data_of(self.mask))

    @property
    def seconds_left(self) -> float | None:
        """Estimated time to the end in s; None while nothing runs or no tile is done."""
        if self.result is None or self._worker is None:
            return None
        done = int(self.result.tiles_done.sum())
        left = len(self.result.done) * self.result.tiles - done
        spent = time.monotonic() - self._began
        return spent / (done - self._at_first) * left if done > self._at_first else None

    def start(self, image: Any, recipe: Recipe, probability: bool) -> None:
        """Segment an image or, after a stop, its remaining slices; show the probability layer too if it is wanted.

        Raises
        ------
        VolumeError, ConfigError, OutputError
            If the layer cannot be segmented, or neither memory nor disk hold the result.
        """
        if self._worker is not None:
            return
        volume = volume_of(image)
        if recipe.planes == "zyx":
            check_planes(volume)
        result = self.result
        if result is None or not self.goes_on(image, recipe):
            self._make_room(image)
            name, shape = recipe.model_name, volume.shape
            result = Result(recipe.model, shape, recipe.threshold, inverted=recipe.inverted, planes=recipe.planes)
            self.result, self._image, self._seen = result, image, _seen(image)
            self._name = name if name.startswith(image.name) else f"{image.name} {name}"
            self._add_mask()
        self.show_probability(probability)
        self._moved()
        self._began, self._at_first = time.monotonic(), int(result.tiles_done.sum())
        self._worker = run_stoppable(
            lambda is_stopped: segment(volume, result, self._focus, is_stopped),
            on_event=self._segmented,
            on_done=self._ended,
            on_error=self._ended,
            owner=self.owner,
        )
        self.changed.emit()

    def goes_on(self, image: Any, recipe: Recipe) -> bool:
        """Return whether `start` with these arguments would continue with the missing slices rather than begin anew."""
        result, seen = self.result, _seen(image)
        if result is None or result.done.all() or not is_same(result.model, recipe.model):
            return False
        same = self._image == image and self._seen[0] is seen[0] and self._seen[1:] == seen[1:]
        how = (result.inverted, result.planes, result.model.views)
        return same and how == (recipe.inverted, recipe.planes, recipe.model.views)

    def stop(self) -> None:
        """Stop after the current tile; what is done so far stays."""
        if self._worker is not None:
            self._worker.stop()

    def abandon(self) -> None:
        """Stop because the panel is closed; what is done so far stays."""
        for worker in (self._worker, self._updater):
            if worker is not None:
                worker.drop()
        self._worker = self._updater = None
        self.changed.emit()

    def set_threshold(self, threshold: float) -> None:
        """Apply another threshold to the mask: to the current slice at once, to others and large ones on a thread."""
        if self.result is not None:
            self.result.threshold = threshold
            if self.result.mask[0].size <= _AT_ONCE:
                self.result.apply(self._focus.z)
                self._draw(self._focus.z)
            self._catch_up()

    def show_probability(self, wanted: bool) -> None:
        """Add or remove the probability layer."""
        if wanted and self.result is not None and self.probability is None:
            look = {"colormap": Colormap(_RAMP, name="probability"), "opacity": 0.8, "contrast_limits": (0, 1)}
            self.probability = self._add(self.viewer.add_image, self.result.probability, "probability", **look)
        elif not wanted and self.probability is not None:
            layer, self.probability = self.probability, None
            self.viewer.layers.remove(layer)

    def _make_room(self, image: Any) -> None:
        """Remove earlier masks of the image, which the new one replaces, unless somebody has painted on them."""
        earlier = [layer for layer in self.viewer.layers if segmented_image(layer) is image]
        painted = [layer for layer in earlier if isinstance(layer, Labels) and _is_painted_on(layer)]
        self.kept = "”, “".join(layer.name for layer in painted)
        stay = [layer.metadata[RESULT] for layer in painted]
        for layer in earlier:
            if not any(layer.metadata[RESULT] is result for result in stay):
                self.viewer.layers.remove(layer)

    def _add_mask(self) -> None:
        assert self.result is not None
        close_previews(self.viewer, self._image)
        self.probability = None  # the probability layer of an earlier result belongs to its mask
        look = {} if self.result.is_multiclass else {"colormap": one_colour(_COLOUR)}
        self.mask = self._add(self.viewer.add_labels, self.result.mask, "mask", opacity=0.5, **look)

    def _add(self, add: Any, data: Any, what: str, **look: Any) -> Any:
        """Add a layer on the grid of the image; its metadata keep the result, and so any temporary files, alive."""
        assert self.result is not None
        levels = self.result.levels(data if self._image.ndim == 3 else data[0])
        metadata, taken = {RESULT: self.result, IMAGE: weakref.ref(self._image)}, {x.name for x in self.viewer.layers}
        name = next(name for name in _numbered(f"{self._name} {what}") if name not in taken)
        look = {**look, **grid_of(self._image), "multiscale": self.result.is_pyramid}
        return add(levels, name=name, metadata=metadata, **look)

    def _segmented(self, z: int) -> None:
        self._draw(z)
        self.changed.emit()

    def _draw(self, z: int) -> None:
        """Redraw the layers if slice `z` is on screen."""
        flat, begin = self.viewer.dims.ndisplay == 2, time.monotonic()
        rest = self._cost / _MOST_DRAWING if flat else _REFRESH_3D
        if (flat and z != self._focus.z) or begin - self._drawn < rest:
            return
        for layer in (self.mask, self.probability):
            if layer is not None:
                layer.refresh()
        self._drawn = time.monotonic()
        self._cost = self._drawn - begin

    def _ended(self, error: Exception | None = None) -> None:
        self._worker = None
        if error is not None:
            self._on_error(error)
        self._settle()
        self.changed.emit()

    def _settle(self) -> None:
        """Redraw, and emit that the mask has changed as a whole, for other users of the layer such as *Compare*."""
        self._drawn = 0.0
        self._draw(self._focus.z)
        if self.mask is not None:
            self.mask.events.data(value=self.mask.data)

    def _catch_up(self) -> None:
        result, focus = self.result, self._focus
        if self._updater is None and result is not None and result.outdated(focus.z) is not None:
            self._updater = run(
                lambda: result.catch_up(focus),
                on_event=self._draw,
                on_done=self._caught_up,
                on_error=lambda _: setattr(self, "_updater", None),
                owner=self.owner,
            )

    def _caught_up(self) -> None:
        self._updater = None
        self._settle()
        self._catch_up()  # the threshold may have changed again meanwhile

    def _moved(self, event: Any = None) -> None:
        if self._image is not None:
            self._focus.z = current_slice(self.viewer, self._image)

    def _removed(self, event: Any) -> None:
        if self.mask is not None and event.value == self.mask:
            self.stop()
            self.result = self.mask = self._image = None
            self._seen = (None,)
            self.changed.emit()
        elif self.probability is not None and event.value == self.probability:
            self.probability = None
            self.changed.emit()


def _seen(image: Any) -> tuple[Any, ...]:
    """Return the pixels and voxel size that a model sees."""
    return data_of(image), voxel_size_of(image)


def _is_painted_on(mask: Labels) -> bool:
    """Return whether the user has painted on a mask, or its layer was given other data."""
    result = mask.metadata[RESULT]
    return not result.is_shown_by(data_of(mask)) or (not result.is_pyramid and result.is_corrected)


def _numbered(name: str) -> Iterator[str]:
    """Yield a name, then the name with numbers from 2 on."""
    yield name
    for number in count(2):
        yield f"{name} {number}"
