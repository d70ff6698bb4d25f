"""The objects of the slice on screen, found again whenever a setting or the slice changes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from napari.layers import Labels, Layer
from qtpy.QtWidgets import QWidget

from napari_kdunet.core import ObjectsConfig, instances
from napari_kdunet.core.volumes.probability import read_probability
from napari_kdunet.widgets.shared.layers import PREVIEW, RESULT, current_slice, grid_of, set_grid, volume_of
from napari_kdunet.widgets.workers.latest import LatestRequest, Work

if TYPE_CHECKING:
    import napari.viewer

__all__ = ["SlicePreview"]

_NEAR, _MOST = 100.0, 8  # nm, and slices: how far from the slice on screen others are read to find its objects


class SlicePreview:
    """A Labels layer ``<source> objects preview`` of the slice on screen.

    Parameters
    ----------
    viewer : napari.viewer.Viewer
        Viewer to which the layer is added.
    owner : QWidget
        The panel, which owns the work: it ends with the panel.
    on_error : callable
        Called with an error of the work, after the user has been notified of it.

    Attributes
    ----------
    layer : napari.layers.Labels or None
        The layer that is shown.
    """

    def __init__(self, viewer: napari.viewer.Viewer, owner: QWidget, on_error: Callable[[Exception], Any]) -> None:
        self.viewer = viewer
        self.layer: Labels | None = None
        self._work = LatestRequest(owner, on_error)
        self._outlines: tuple[Any, int, int, Any] | None = None

    @property
    def is_busy(self) -> bool:
        """Whether objects are being found."""
        return self._work.is_busy

    def show(self, source: Layer, config: ObjectsConfig) -> None:
        """Find the objects of the slice on screen, or once it is no longer busy, then only those of the last call.

        Raises
        ------
        KDUNetError
            If the layer is no volume.
        """
        self._work.ask(partial(self._begin, source, config))

    def close(self) -> None:
        """Remove the layer, and drop the work that is running."""
        self._outlines = None
        self._work.drop()
        self._remove()

    def _begin(self, source: Layer, config: ObjectsConfig) -> Work:
        volume, z = volume_of(source), current_slice(self.viewer, source)
        size = volume.voxel_size or (1.0,) * 3
        around = min(math.ceil(_NEAR / size[0]), _MOST)
        first, last = max(z - around, 0), min(z + around + 1, len(volume))

        def find() -> Iterator[Any]:
            slab = np.stack([read_probability(volume, i) for i in range(first, last)])
            outlines = self._outlines_of(source, first, last)
            found = instances(slab, config, boundary=outlines, voxel_size=volume.voxel_size)
            yield found[z - first].compute(scheduler="synchronous")

        grid = grid_of(source, (z, 0, 0))
        return find, lambda ids: self._found(source, ids, grid)

    def _remove(self) -> None:
        layer, self.layer = self.layer, None
        if layer is not None and layer in self.viewer.layers:
            self.viewer.layers.remove(layer)

    def _outlines_of(self, source: Layer, first: int, last: int) -> Any:
        """Return the outline probability in some slices if the model behind `source` has learnt outlines, else None."""
        result = source.metadata.get(RESULT)
        if result is None or result.outlines is None:
            return None
        if self._outlines is None or self._outlines[:3] != (result, first, last):
            computed = result.outlines[first:last].compute(scheduler="synchronous")
            self._outlines = (result, first, last, computed)
        return self._outlines[3]

    def _found(self, source: Layer, ids: Any, grid: dict[str, Any]) -> None:
        if source not in self.viewer.layers:
            return
        ids = ids[None] if source.ndim > 2 else ids
        name = f"{source.name} objects preview"
        if self.layer is None or self.layer not in self.viewer.layers or self.layer.ndim != source.ndim:
            self._remove()
            selected = set(self.viewer.layers.selection)
            self.layer = self.viewer.add_labels(ids, name=name, metadata={PREVIEW: self}, **grid)
            self.viewer.layers.selection = selected
            return
        self.layer.data, self.layer.name = ids, name
        set_grid(self.layer, grid)
