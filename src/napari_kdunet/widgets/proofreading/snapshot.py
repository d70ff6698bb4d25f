"""The ids of a layer as they are at one moment, copied in the background while editing goes on."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from typing import Any
from weakref import WeakKeyDictionary, WeakSet

import numpy as np
from napari.layers import Labels

from napari_kdunet.core import Volume, open_volume
from napari_kdunet.widgets.shared.layers import volume_of

__all__ = ["Snapshot"]


class Snapshot:
    """The ids of a layer at the moment at which this is made.

    Nothing is copied at that moment. `read` copies slice after slice, on any thread; a slice that napari is about to
    change, by painting, a correction, undo or redo, is copied just before. Writing to `layer.data` past napari's
    history goes unnoticed.

    Parameters
    ----------
    layer : napari.layers.Labels
        The layer. Data that are not in memory cannot be edited, and are not copied.

    Attributes
    ----------
    in_memory : bool
        Whether the data are in memory.
    """

    def __init__(self, layer: Labels) -> None:
        self._live, self._data = volume_of(layer), layer.data
        self.in_memory = isinstance(self._data, np.ndarray)
        self._left = set(range(len(self._data))) if self.in_memory else set()
        self._lock = threading.Lock()
        if self.in_memory:
            self._copy = np.empty_like(self._data)
            _snapshots_of(layer).add(self)

    def read(self, progress: Callable[[float], object]) -> Volume:
        """Return the ids as they were; `progress` is called with the share copied (0 to 1), and may raise to stop."""
        if not self.in_memory:
            return self._live
        for z in range(len(self._data)):
            progress(z / len(self._data))
            self.keep([z])
        live = self._live
        return open_volume(self._copy.reshape(live.shape), voxel_size=live.voxel_size, name=live.name)

    def keep(self, slices: Iterable[int]) -> None:
        """Copy slices that are not copied yet."""
        for z in slices:
            with self._lock:
                if z in self._left:
                    self._copy[z] = self._data[z]
                    self._left.remove(z)


_snapshots: WeakKeyDictionary[Labels, WeakSet[Snapshot]] = WeakKeyDictionary()


def _snapshots_of(layer: Labels) -> WeakSet[Snapshot]:
    """Return the snapshots that are notified of each edit of a layer before it is made.

    napari has no event for that: its events come when edits are made, and for undo there is none.
    """
    if layer in _snapshots:
        return _snapshots[layer]
    snapshots = _snapshots[layer] = WeakSet()
    save_history, load_history = layer._save_history, layer._load_history

    def keep(edits: Iterable[Any]) -> None:
        for edit in edits:  # (indices, old ids, new ids), or since napari 0.9 an object with the box painted in
            box = edit.slice_key if hasattr(edit, "slice_key") else edit[0]
            for snapshot in snapshots:
                snapshot.keep(np.unique(np.arange(len(layer.data))[box[0]]).tolist())

    def before_edit(edit: Any) -> None:
        keep([edit])
        save_history(edit)

    def before_undo(before: Any, after: Any, undoing: bool = True) -> None:
        keep(before[-1] if before else [])
        load_history(before, after, undoing)

    layer._save_history, layer._load_history = before_edit, before_undo
    return snapshots
