"""Which slices of a labels layer its user changes: told by napari on the GUI thread, asked for on another."""

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

__all__ = ["Edits"]


class Edits:
    """The slices of a labels layer whose content changes by painting, filling, erasing, undo and redo.

    napari says of a stroke where it is, but only that something is drawn again after an undo. So each slice that may
    have changed is looked at, and counts if its content has. Where the layer is given other data, all slices count of
    which it is not known that they are the same.

    Parameters
    ----------
    viewer : napari.viewer.Viewer
        Where it is painted.
    layer : napari.layers.Labels
        What is painted on.

    Attributes
    ----------
    volume : Volume
        The labels as they are whenever they are read.
    """

    remote_methods = ("take", "wait")  # to a training in another process

    def __init__(self, viewer: napari.viewer.Viewer, layer: Labels) -> None:
        self.viewer, self.layer = viewer, layer
        self.volume = volume_of(layer, following=True)
        self._painted: set[int] = set()
        self._sums: dict[int, int | None] = {}  # None is unlike any
        self._suspects = {current_slice(viewer, layer)}
        self._lock = threading.Lock()
        self._told = threading.Event()
        layer.events.paint.connect(self._stroke_ended)  # napari holds methods weakly: this can go when nobody asks
        layer.events.labels_update.connect(self._stroke_goes_on)
        layer.events.set_data.connect(self._drawn_again)
        layer.events.data.connect(self._replaced)

    def take(self) -> list[int]:
        """The z of the slices that have changed since the last time, from any one thread."""
        self._told.clear()
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
        """Return when there may be something to take, and after `seconds` at the latest."""
        self._told.wait(seconds)

    def _stroke_ended(self, event: Any) -> None:
        slices = set().union(*(_slices_of(atom, self.layer.ndim) for atom in event.value))
        QTimer.singleShot(0, lambda: self._suspect(slices, painted=True))  # a single stroke is told before it is done

    def _stroke_goes_on(self, event: Any = None) -> None:
        self._suspect({current_slice(self.viewer, self.layer)}, painted=True)

    def _drawn_again(self, event: Any = None) -> None:
        """After an undo, but after scrolling too."""
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
        self._told.set()


def _slices_of(atom: Any, ndim: int) -> set[int]:
    """The z that one change of napari's undo history touches: a window, or indices."""
    if ndim < 3:
        return {0}
    window = getattr(atom, "slice_key", None)
    if window is not None:
        return set(range(window[-3].start, window[-3].stop))
    return {int(z) for z in np.unique(atom[0][-3])}
