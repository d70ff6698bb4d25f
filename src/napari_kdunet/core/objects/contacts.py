"""Contacts of one object with another mask: which part of its surface is near, and in how many patches."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.spatial import cKDTree
from skimage.measure import marching_cubes

from napari_kdunet.core.graphs import components
from napari_kdunet.core.objects.shape import Mesh

__all__ = ["find_contacts", "margin_of"]

Floats = NDArray[np.float64]

_NEAREST = 12  # triangles of the other surface, nearest by centroid, that are searched for the nearest point


def margin_of(within: float, voxel_size: Floats) -> NDArray[np.int64]:
    """Return how many voxels (3,) around an object are needed to find what is within `within` nm of its surface."""
    return np.floor(within / voxel_size).astype(np.int64) + 1


def find_contacts(
    mesh: Mesh, volume: float, other: NDArray[np.bool_], voxel_size: tuple[float, float, float], within: float
) -> dict[str, float]:
    """Return area and number of the connected patches of a surface that are close to another mask, or inside it.

    Distances are measured from the centroid of each triangle to the nearest point of the other mask's surface. That
    surface (marching cubes) runs halfway between the centres of voxels inside and outside the mask, so that no thin
    sheet is lost. Where within a voxel a surface runs is not known, and areas are uncertain accordingly; sharp edges of
    the object are rounded by about the longest side of a voxel.

    Parameters
    ----------
    mesh : Mesh
        Surface of the object.
    volume : float
        Volume of the object, nm³.
    other : (Z, Y, X) bool
        The other mask in the object's box with a margin of `margin_of` voxels.
    voxel_size : tuple of float
        Voxel size in nm, ZYX.
    within : float
        Distance in nm up to which the surface is in contact.

    Returns
    -------
    dict
        `contact_area_um2`, `contact_fraction` (share of the object's surface) and `contacts` (number of patches).
    """
    middles = _grown(mesh, volume)[mesh.faces].mean(1)  # centroids, nm from the centre of the box's first voxel
    near = ndimage.map_coordinates(other.view(np.uint8), (middles / voxel_size).T, order=0, mode="nearest") > 0
    if other.any() and not other.all():
        corners, faces, _, _ = marching_cubes(other.view(np.uint8), 0.5, spacing=voxel_size)
        reach = within + 2 * max(voxel_size)
        near |= _distances(middles, corners[faces].astype(np.float64), reach) <= within * (1 + 1e-6)
    area = float(mesh.areas[near].sum())
    return {
        "contact_area_um2": area / 1e6,
        "contact_fraction": area / mesh.area,
        "contacts": _count_patches(mesh.faces[near]),
    }


def _grown(mesh: Mesh, volume: float) -> Floats:
    """Return a mesh's corners, moved outwards until it encloses `volume`: the blur has shrunk what is round."""
    a, b, c = (mesh.corners[mesh.faces[:, i]] for i in range(3))
    normals = np.cross(b - a, c - a) / 2
    inside = float(_dot(a - mesh.corners.mean(0), normals).sum()) / 3  # below 0 where the normals point inwards
    away = np.zeros_like(mesh.corners)
    for i in range(3):
        np.add.at(away, mesh.faces[:, i], normals)
    away /= np.maximum(np.linalg.norm(away, axis=1, keepdims=True), 1e-12)
    area = float(np.linalg.norm(normals, axis=1).sum())
    return np.asarray(mesh.corners + away * (math.copysign(volume, inside) - inside) / max(area, 1e-12))


def _distances(points: Floats, triangles: Floats, reach: float) -> Floats:
    """Return distances (n,) of points (n, 3) to the nearest triangle (m, 3, 3); inf if no centroid is in `reach`."""
    found = np.full(len(points), math.inf)
    gaps, which = cKDTree(triangles.mean(1)).query(points, k=min(_NEAREST, len(triangles)), distance_upper_bound=reach)
    gaps, which = gaps.reshape(len(points), -1), which.reshape(len(points), -1)
    for gap, index in zip(gaps.T, which.T, strict=True):
        known = np.flatnonzero(np.isfinite(gap))
        found[known] = np.minimum(found[known], _to_triangles(points[known], triangles[index[known]]))
    return found


def _to_triangles(points: Floats, triangles: Floats) -> Floats:
    """Return the distance (n,) of each point (n, 3) to the triangle (n, 3, 3) with the same index."""
    nearest = np.full(len(points), math.inf)
    above = np.ones(len(points), bool)  # whether the point lies above or below the triangle, not beside it
    normal = np.cross(triangles[:, 1] - triangles[:, 0], triangles[:, 2] - triangles[:, 0])
    for i in range(3):
        start, side = triangles[:, i], triangles[:, (i + 1) % 3] - triangles[:, i]
        to = points - start
        along = np.clip(_dot(to, side) / np.maximum(_dot(side, side), 1e-12), 0, 1)
        nearest = np.minimum(nearest, np.linalg.norm(to - along[:, None] * side, axis=1))
        above &= _dot(np.cross(side, to), normal) >= 0
    height = np.abs(_dot(points - triangles[:, 0], normal)) / np.maximum(np.linalg.norm(normal, axis=1), 1e-12)
    return np.where(above, height, nearest)


def _dot(a: Floats, b: Floats) -> Any:
    return np.einsum("ij,ij->i", a, b)


def _count_patches(faces: NDArray[np.int64]) -> int:
    """Return the number of connected patches of triangles (n, 3); triangles that share a corner are connected."""
    if not len(faces):
        return 0
    corners, faces = np.unique(faces, return_inverse=True)
    faces = faces.reshape(-1, 3)
    ends = np.concatenate([faces[:, :2], faces[:, 1:]])
    return components(ends.T, len(corners))[0]
