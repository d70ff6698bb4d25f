"""From probabilities or a mask to objects: block by block, with the same result as in a single block."""

from __future__ import annotations

import math
import os
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
from numpy.typing import NDArray

from napari_kdunet.core.config.objects import ObjectsConfig
from napari_kdunet.core.errors import VolumeError
from napari_kdunet.core.objects.blocks import Probability, Scratch, cut_blocks, iter_windows
from napari_kdunet.core.objects.foreground import Landscape, Window
from napari_kdunet.core.objects.linking import link_outlines
from napari_kdunet.core.objects.watershed import Basins, Saddles, find_basins, join_parts, merge_basins
from napari_kdunet.core.reading.voxel_size import VoxelSize
from napari_kdunet.core.volumes.volume import Volume, open_volume

__all__ = ["instances", "is_flat"]

_ANISOTROPIC = 2.0  # distance of slices, in pixels, above which each is segmented on its own
_WORKERS = 2  # blocks at a time: each takes some 500 MB


def instances(
    prediction: Any,
    config: ObjectsConfig | None = None,
    *,
    boundary: Any = None,
    voxel_size: VoxelSize | None = None,
    block: tuple[int, int, int] | None = None,
    scratch: str | Path | None = None,
    progress: Callable[[float], object] | None = None,
) -> da.Array:
    """Split a mask, or foreground probabilities, into objects, and number them.

    The landscape of a watershed is the distance to the background in nm (up to 150 nm, on a grid of some 15 nm) times
    the probability; its seeds are the maxima between which it falls below `ObjectsConfig.split` of the lower one. All
    foreground is kept, except objects that are too small.

    Parameters
    ----------
    prediction : volume
        Anything that `open_volume` takes, ZYX: floats in [0, 1], uint8 or uint16 that look like probabilities, or a
        mask, in which whatever is not 0 is foreground.
    config : ObjectsConfig, optional
        Threshold, where to split, least size, holes, smoothing, 2-D or 3-D.
    boundary : volume, optional
        Probability of the outlines of objects, in the shape of the prediction: `predict` returns it for a model that
        was trained with `TrainConfig.boundary`. It lowers the landscape, so that objects come apart where they touch,
        however wide the contact is. The foreground does not depend on it.
    voxel_size : tuple of float, optional
        nm (Z, Y, X), in place of the one that the prediction states.
    block : tuple of int, optional
        Shape (Z, Y, X) of the blocks in which a volume is worked on, by default as large as 1 GB of memory allows.
        The result does not depend on it.
    scratch : str or Path, optional
        Folder for intermediate results of volumes above 64 megavoxels, by default the system's temporary folder. They
        take some 2 % of the volume's size in uint32 where 5 % is foreground, and are removed with the result.
    progress : callable, optional
        Called with the share of the work done, from 0 to 1. An exception that it raises stops the work.

    Returns
    -------
    dask.array.Array, shape (Z, Y, X), uint32
        Object ids from 1, in the order (along z, then y, then x) of each object's first maximum of the landscape; 0 is
        background. Everything but the numbering has been computed; the array is lazy so that it need not fit in memory.

    Raises
    ------
    VolumeError
        The prediction cannot be read, is no mask or probability, or has no known voxel size; or the boundary cannot be
        read or has another shape.
    OutputError
        Intermediate results cannot be written.
    """
    config = config or ObjectsConfig()
    volume = open_volume(prediction, voxel_size=voxel_size)
    size = known_voxel_size(volume)
    report = progress or (lambda share: None)
    threshold = volume.threshold if config.threshold is None else config.threshold
    landscape = Landscape(size, threshold, is_flat(size, config.mode, len(volume)), config.smoothing, config.holes)
    folder = None if scratch is None else Path(scratch)
    edges = None if boundary is None else _boundary_of(volume, boundary)
    probability = Probability(volume, folder, lambda share: report(0.3 * share))
    outline = None if edges is None else Probability(edges, folder, lambda share: report(0.3))
    kept = Scratch(volume.shape, np.uint32, folder)
    found = _find_all((probability, outline), landscape, kept, block, lambda share: report(0.3 + 0.6 * share))
    owner = found.objects(config.split)
    sizes = np.bincount(owner, found.sizes, int(owner.max(initial=-1)) + 1)
    if landscape.flat and volume.shape[0] > 1:
        table = np.append(0, owner + 1)
        outlines = (table[kept[z]] for z in range(volume.shape[0]))
        linked = link_outlines(outlines, len(sizes), config.link)
        owner, sizes = linked[owner], np.bincount(linked, sizes)
    large = sizes >= _least_voxels(config.min_diameter, size, volume.shape[0])
    number = np.where(large, np.cumsum(large), 0)
    ids = np.append(0, number[owner]).astype(np.uint32)
    report(1.0)
    lazy: da.Array = da.from_array(kept, chunks=(kept.chunks[0], *volume.shape[1:]), name=False, asarray=False)
    meta = np.empty((0, 0, 0), np.uint32)
    numbered: da.Array = da.map_blocks(_numbered, lazy, ids, dtype=np.uint32, meta=meta)
    return numbered


def _numbered(basins: Any, ids: NDArray[np.uint32]) -> Any:
    return ids[basins]


def known_voxel_size(volume: Volume) -> VoxelSize:
    """Return the voxel size of a volume in nm, ZYX; raises `VolumeError` where it is not known."""
    if volume.voxel_size is None:
        raise VolumeError(f"the voxel size of {volume.name} is not known: give it in nm (Z, Y, X), e.g. 50,5,5")
    return volume.voxel_size


def is_flat(voxel_size: VoxelSize, mode: str, depth: int) -> bool:
    """Return whether each slice is segmented on its own, as a single slice always is."""
    return mode == "2d" or depth == 1 or (mode == "auto" and voxel_size[0] > _ANISOTROPIC * max(voxel_size[1:]))


def _boundary_of(volume: Volume, boundary: Any) -> Volume:
    """Open the probability of outlines; raises `VolumeError` where its shape is not that of the prediction."""
    outlines = open_volume(boundary)
    if outlines.shape != volume.shape:
        raise VolumeError(
            f"{outlines.name} has shape {outlines.shape}, but {volume.name} {volume.shape}: give outlines of its shape."
        )
    return outlines


def _least_voxels(diameter: float, voxel_size: VoxelSize, depth: int) -> float:
    if depth == 1:
        return math.pi / 4 * diameter**2 / math.prod(voxel_size[1:])
    return math.pi / 6 * diameter**3 / math.prod(voxel_size)


@dataclass
class _Table:
    """Basins and saddles of the blocks added so far."""

    roots: list[NDArray[np.int64]] = field(default_factory=list)
    peaks: list[NDArray[np.float32]] = field(default_factory=list)
    counts: list[NDArray[np.int64]] = field(default_factory=list)
    saddles: list[Saddles] = field(default_factory=list)
    waiting: list[Saddles] = field(default_factory=list)
    shells: list[tuple[NDArray[np.int64], NDArray[np.int64]]] = field(default_factory=list)
    before: int = 0
    total: int = 0

    def add(self, basins: Basins) -> int:
        """Add the basins of a block, and return the offset to add to its labels."""
        start = self.total
        self.roots.append(basins.roots)
        self.peaks.append(basins.peaks)
        self.counts.append(np.bincount(basins.labels.ravel(), minlength=len(basins.roots) + 1)[1:])
        inner, outer = basins.inner, basins.outer
        self.saddles.append(Saddles(inner.first + start, inner.second + start, inner.heights))
        self.waiting.append(Saddles(outer.first + start, outer.second, outer.heights))
        places, labels = basins.shell
        self.shells.append((places, labels + start))
        self.total += len(basins.roots)
        if self.total >= 2**32:
            raise VolumeError("the volume has more than 4 billion local maxima: set smoothing, or give a part of it")
        return start

    def end_layer(self) -> None:
        """Resolve the saddles across faces whose two blocks are known, and keep only the shells of this layer."""
        places = np.concatenate([place for place, _ in self.shells])
        labels = np.concatenate([label for _, label in self.shells])
        order = np.argsort(places)
        places, labels = places[order], labels[order]
        waiting = Saddles.join(self.waiting)
        at = np.minimum(np.searchsorted(places, waiting.second), max(len(places) - 1, 0))
        found = places[at] == waiting.second if len(places) else np.zeros(len(at), bool)
        resolved = Saddles(waiting.first[found], labels[at[found]], waiting.heights[found])
        # each face cuts a basin into as many parts as paths cross it: unless joined, saddles would grow with the volume
        self.saddles = join_parts(Saddles.join([*self.saddles, resolved]), self.total)
        self.waiting = [waiting[~found]]
        self.shells, self.before = self.shells[self.before :], len(self.shells) - self.before

    def objects(self, split: float) -> NDArray[np.int64]:
        """Return the object of each basin (n,), from 0."""
        roots = np.concatenate([np.empty(0, np.int64), *self.roots])
        peaks = np.concatenate([np.empty(0, np.float32), *self.peaks])
        return merge_basins(roots, peaks, Saddles.join(self.saddles), split)

    @property
    def sizes(self) -> NDArray[np.int64]:
        """Number of voxels of each basin (n,)."""
        return np.concatenate([np.empty(0, np.int64), *self.counts])


def _find_all(
    given: tuple[Probability, Probability | None],
    landscape: Landscape,
    kept: Scratch,
    block: tuple[int, int, int] | None,
    progress: Callable[[float], object],
) -> _Table:
    """Find the basins of all blocks and write them, numbered consecutively, to `kept`.

    `given` is the probability of the foreground, and that of the outlines if there is one.
    """
    probability, outlines = given
    shape, table = probability.shape, _Table()
    _, cuts = cut_blocks(shape, landscape.halo, block)
    done, count = 0, math.prod(map(len, cuts))

    def work(part: Window) -> Basins:
        window = _around(part, landscape, shape)
        outline = None if outlines is None else outlines.read(window)
        heights = landscape.heights(probability.read(window), window, part, outline)
        return find_basins(heights, tuple(p.start for p in part), shape, flat=landscape.flat)

    with ThreadPoolExecutor(min(_WORKERS, os.cpu_count() or 1), "kdunet-objects") as pool:
        for z in cuts[0]:
            for part, basins in _ahead(pool, work, iter_windows(cuts, z)):
                start = table.add(basins)
                labels = basins.labels
                if len(basins.roots):
                    labels[labels > 0] += np.uint32(start)
                    kept[part] = labels
                done += 1
                progress(done / count)
            table.end_layer()
    return table


def _around(part: Window, landscape: Landscape, shape: tuple[int, ...]) -> Window:
    """Return the window to read for a block: extended by `halo` and to whole cells of the coarse grid."""
    z, y, x = (
        slice(max(p.start - h, 0) // f * f, min(-(-(p.stop + h) // f) * f, n))
        for p, h, f, n in zip(part, landscape.halo, landscape.pool, shape, strict=True)
    )
    return z, y, x


def _ahead(
    pool: ThreadPoolExecutor, work: Callable[[Window], Basins], windows: Iterator[Window]
) -> Iterator[tuple[Window, Basins]]:
    """Yield each window with its basins, in order, computed ahead in threads; errors cancel what has not begun."""
    running: deque[tuple[Window, Future[Basins]]] = deque()
    try:
        for window in windows:
            running.append((window, pool.submit(work, window)))
            if len(running) > _WORKERS:
                first, future = running.popleft()
                yield first, future.result()
        while running:
            first, future = running.popleft()
            yield first, future.result()
    finally:
        for _, future in running:
            future.cancel()
