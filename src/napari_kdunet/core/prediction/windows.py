"""The last windows that a tiler has read, for slices that are neighbours of each other."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from weakref import ReferenceType, ref

import torch

from napari_kdunet.core.volumes.volume import Volume

__all__ = ["Windows"]

_MOST_BYTES = 2**28
_BATCH = 32  # slices that dask may be asked for at once, and computes in an order of its own


class Windows:
    """Windows of the slices around one, as a network sees them; the oldest make room for others.

    So each is read, standardised and resampled once, and not once for each slice that it is a neighbour of. They take
    256 MB at most: enough for three slices of 22 million working pixels each; of larger ones all are read anew.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._volume: ReferenceType[Volume] | None = None
        self._windows: OrderedDict[tuple[int, Hashable], torch.Tensor] = OrderedDict()

    def get(
        self, volume: Volume, z: int, window: Hashable, read: Callable[[int], torch.Tensor], reach: int
    ) -> torch.Tensor:
        """A window of slice `z`, by ``read(z)`` where it is not kept; what is too far for both is forgotten."""
        with self._lock:  # two threads do not read the same
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
