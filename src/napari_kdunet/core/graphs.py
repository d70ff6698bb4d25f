"""Which nodes of a graph are connected."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

__all__ = ["components"]


def components(edges: NDArray[Any], count: int) -> tuple[int, NDArray[np.int64]]:
    """Find the connected components of an undirected graph.

    Parameters
    ----------
    edges : ndarray, shape (2, n)
        The two nodes that each edge connects, numbered from 0.
    count : int
        Number of nodes.

    Returns
    -------
    int, ndarray of int64
        Number of components, and the component of each node, numbered from 0.
    """
    graph = coo_array((np.ones(edges.shape[1], bool), (edges[0], edges[1])), shape=(count, count))
    number, part = connected_components(graph, directed=False)
    return int(number), part.astype(np.int64)
