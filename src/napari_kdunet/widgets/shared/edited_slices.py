"""Track which slices of a labels layer the user changes: events on the GUI thread, queries from another thread."""

from __future__ import annotations

import threading
import zlib
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np
from napari.layers import Labels
from qtpy.QtCore import QTimer

from napari_kdunet.widgets.shared.layers import current_slice, volume_of

if TYPE_CHECKING:
    import napari.viewer

__all__ = ["EditedSlices"]


class EditedSlices:
    """Tracks the slices of a labels layer that change by painting, filling, erasing, undo and redo.

    napari reports where a stroke is, but after an undo only that the layer was redrawn. So each slice that may have
    changed is compared with a checksum of its earlier content. When the layer's data are replaced, every slice counts
    as changed unless its checksum shows that it is the same.

    Parameters
    ----------
    viewer : napari.viewer.Viewer
        The viewer of the layer.
    layer : napari.layers.Labels
        The layer that is painted on.

    Attributes
    ----------
    volume : Volume
        The labels; reading a slice gives its current content.
    """

    remote_methods = ("take", "wait")  # may be called by a training in another process

    def __init__(self, viewer: napari.viewer.Viewer, layer: Labels) -> None:
        self.viewer, self.layer = viewer, layer
        self.volume = volume_of(layer, following=True)
        self._painted: set[int] = set()
        self._sums: dict[int, int | None] = {}  # checksum by z; None: the slice counts as changed
        self._suspects = {current_slice(viewer, layer)}
        self._lock = threading.Lock()
        self._may_have_changed = threading.Event()
        layer.events.paint.connect(self._stroke_ended)  # napari holds bound methods by weak references
        layer.events.labels_update.connect(self._stroke_goes_on)
        layer.events.set_data.connect(self._drawn_again)
        layer.events.data.connect(self._replaced)

    def take(self) -> list[int]:
        """Return the z of the slices that have changed since the last call; to be called by one thread at a time."""
        self._may_have_changed.clear()
        with self._lock:
            suspects, self._suspects = sorted(self._suspects), set()
            painted = set(self._painted)
        changed = []
        for z in suspects:
            now = zlib.crc32(self.volume.read(z).tobytes())
            if now != self._sums.get(z, None if z in painted else now):
                changed.append(z)
            self._sums[z] = now
        return changed

    def wait(self, seconds: float) -> None:
        """Wait until a slice may have changed, at most `seconds`."""
        self._may_have_changed.wait(seconds)

    def _stroke_ended(self, event: Any) -> None:
        slices = set().union(*(_slices_of(atom, self.layer.ndim) for atom in event.value))
        QTimer.singleShot(
            0, lambda: self._suspect(slices, painted=True)
        )  # napari emits the event of a single stroke before it paints

    def _stroke_goes_on(self, event: Any = None) -> None:
        self._suspect({current_slice(self.viewer, self.layer)}, painted=True)

    def _drawn_again(self, event: Any = None) -> None:
        """Handle `set_data`, which napari emits after an undo, but also after scrolling."""
        self._suspect({current_slice(self.viewer, self.layer), *self._painted})

    def _replaced(self, event: Any = None) -> None:
        every = range(self.volume.shape[0])
        for z in every:
            self._sums.setdefault(z, None)
        self._suspect(every)

    def _suspect(self, slices: Iterable[int], *, painted: bool = False) -> None:
        with self._lock:
            self._suspects.update(slices)
            if painted:
                self._painted.update(slices)
        self._may_have_changed.set()


def _slices_of(atom: Any, ndim: int) -> set[int]:
    """Return the z of one item of napari's undo history, which holds either a slice window or voxel indices."""
    if ndim < 3:
        return {0}
    window = getattr(atom, "slice_key", None)
    if window is not None:
        return set(range(window[-3].start, window[-3].stop))
    return {int(z) for z in np.unique(atom[0][-3])}
