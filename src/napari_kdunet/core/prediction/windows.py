"""Cache of the last windows that a tiler has read, for slices that are neighbours of each other."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from weakref import ReferenceType, ref

import torch

from napari_kdunet.core.volumes.volume import Volume

__all__ = ["Windows"]

_MOST_BYTES = 2**28
_BATCH = 32  # slices that dask may be asked for together, and computes in any order


class Windows:
    """Cache of windows of neighbouring slices, as a network sees them; the oldest make room for others.

    A window is thus read, standardised and resampled once, rather than once for each slice that it is a neighbour of.
    The cache takes 256 MB at most: enough for three slices of 22 million working pixels each. Larger ones are read
    anew each time.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._volume: ReferenceType[Volume] | None = None
        self._windows: OrderedDict[tuple[int, Hashable], torch.Tensor] = OrderedDict()

    def get(
        self, volume: Volume, z: int, window: Hashable, read: Callable[[int], torch.Tensor], reach: int
    ) -> torch.Tensor:
        """Return a window of slice `z`, by ``read(z)`` if it is not cached; drop windows of slices far from `z`."""
        with self._lock:  # so that two threads do not read the same window
            if self._volume is None or self._volume() is not volume:
                self._volume = ref(volume)
                self._windows.clear()
            if (z, window) not in self._windows:
                image = read(z)
                far = [key for key in self._windows if abs(key[0] - z) > 2 * reach + _BATCH]
                for key in far:
                    del self._windows[key]
                self._windows[z, window] = image
                while sum(kept.nbytes for kept in self._windows.values()) > _MOST_BYTES:
                    self._windows.popitem(last=False)
                return image
            self._windows.move_to_end((z, window))
            return self._windows[z, window]
