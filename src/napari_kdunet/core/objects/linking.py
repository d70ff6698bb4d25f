"""Outlines in neighbouring slices that overlap become one object: for stacks whose slices are far apart."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from napari_kdunet.core.graphs import components

__all__ = ["link_outlines"]


def link_outlines(slices: Iterable[NDArray[np.int64]], count: int, least: float) -> NDArray[np.int64]:
    """Link the outlines of neighbouring slices whose intersection over union is above `least`.

    Parameters
    ----------
    slices : iterable of (Y, X) int64
        Ids of the outlines, from 1, each in one slice only; 0 is background.
    count : int
        Number of outlines.
    least : float
        IoU, from 0, above which two outlines are linked.

    Returns
    -------
    (count,) int64
        Object of each outline, numbered from 0 in the order of the objects' first outlines.
    """
    size = np.zeros(count + 1, np.int64)
    links, before = [np.empty((2, 0), np.int64)], None
    for outlines in slices:
        size += np.bincount(outlines.ravel(), minlength=count + 1)
        if before is not None:
            both = (before > 0) & (outlines > 0)
            pairs, shared = np.unique(before[both] * (count + 1) + outlines[both], return_counts=True)
            first, second = np.divmod(pairs, count + 1)
            # the sizes of both are complete, as an outline lies in one slice and both slices have been counted
            links.append(np.stack([first, second])[:, shared > least * (size[first] + size[second] - shared)])
        before = outlines
    number, part = components(np.concatenate(links, axis=1) - 1, count)
    earliest = np.full(number, count, np.int64)
    np.minimum.at(earliest, part, np.arange(count))
    final = np.empty(number, np.int64)
    final[np.argsort(earliest)] = np.arange(number)
    return np.asarray(final[part], np.int64)
