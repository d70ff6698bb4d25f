"""The shape of one object: the area of its mesh, and the length, width and branches of its skeleton."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import edt
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.optimize import brentq
from scipy.sparse import coo_array
from scipy.sparse.csgraph import dijkstra
from scipy.spatial import cKDTree
from skimage.measure import marching_cubes

__all__ = ["Mesh", "Skeleton", "find_length", "find_skeleton", "make_mesh", "thinning"]

Mask = NDArray[np.bool_]
Floats = NDArray[np.float64]
Sizes = tuple[float, ...]

_BLUR = 0.8  # standard deviation, in largest sides of a voxel, that blurs the stairs off a surface
_MARGIN = 3  # voxels around an object
_LARGEST = 2**25  # voxels of an object's box; in a larger one every second, third, ... is taken
_MOST_NODES = 2**20  # voxels of the skeleton's grid: some 1 KB of memory each
_FINE = 6.0  # steps of the skeleton's grid per radius
_BODY = 1.4  # radii around a path within which voxels belong to it
_CENTRED = 4  # power of the penalty for paths off the middle
_LEAVES = 2.0  # least distance, in radii, of a branch's tip from the other paths
_SMALL = 2**13  # voxels of a box up to which starting a thread takes longer than computing distances
_STRAIGHT = 1.5  # radii along the middle line that give the direction in which it ends
_MOST_BRANCHES = 200
_FLAT = 0.7  # share of the width in plane: the middle of a thinner body is a surface
_ELLIPSOID = 0.97  # share of the ellipsoid of its moments that an ellipsoid fills; a long tube fills 0.93


@dataclass(frozen=True)
class Mesh:
    """Triangles of a surface: corners in nm from the centre of the box's first voxel, and the area of each in nm²."""

    corners: Floats
    faces: NDArray[np.int64]
    areas: Floats

    @property
    def area(self) -> float:
        """Total area, nm²."""
        return float(self.areas.sum())


@dataclass(frozen=True)
class Skeleton:
    """Length from tip to tip along all branches, in nm, and the number of branches."""

    length: float
    branches: int


def thinning(shape: NDArray[np.int64]) -> int:
    """Return n, for every n-th voxel along each axis of a box of this shape to be taken: 1 unless it is too large."""
    return math.ceil(math.cbrt(math.prod(shape.tolist()) / _LARGEST))


def make_mesh(mask: Mask, voxel_size: Sizes) -> Mesh:
    """Return the mesh of an object's surface, closed where the edge of the volume cuts the object.

    Marching cubes (Lewiner et al. 2003) run on the blurred mask: on the bare mask the mesh would follow the stairs of
    the voxels, and the area of a ball would come out 9 % too large. The areas are scaled to make up for the volume that
    the blur removes.

    Parameters
    ----------
    mask : (Z, Y, X) bool
        Mask of the object in its box.
    voxel_size : tuple of float
        nm, ZYX.
    """
    sigma = [_BLUR * max(voxel_size) / size for size in voxel_size]
    margin = [math.ceil(2 * s) + 1 for s in sigma]
    padded = np.pad(mask, [(m, m) for m in margin]).astype(np.float32)
    blurred = ndimage.gaussian_filter(padded, sigma, mode="constant", truncate=3.0)
    level = min(0.5, 0.5 * float(blurred.max()))  # below 0.5 where all is one voxel thin
    corners, faces, _, _ = marching_cubes(blurred, level, spacing=voxel_size, allow_degenerate=False)
    corners = corners.astype(np.float64)
    a, b, c = (corners[faces[:, i]] for i in range(3))
    normals = np.cross(b - a, c - a)
    volume = abs(float(np.einsum("ij,ij->", a - corners.mean(0), normals))) / 6
    scale = mask.sum() * math.prod(voxel_size) / volume if volume else 1.0
    areas = np.linalg.norm(normals, axis=1) / 2 * scale ** (2 / 3)
    return Mesh(corners - np.array(margin) * voxel_size, faces.astype(np.int64), areas)


def find_length(
    mask: Mask, voxel_size: Sizes, volume: float, surface: float, axes: Sequence[float]
) -> tuple[Skeleton, float]:
    """Return the skeleton and the mean width (nm) of an object.

    The middle of an ellipsoid is a surface or a point, so the length taken is that of its major axis. The middle of a
    body that is much flatter along an axis of the image than it is wide, such as one seen in two or three thick
    sections, is a surface too, so the skeleton taken is that of its outline. The width is that of a tube with round
    ends that has this length and the object's volume; for an object in a single slice, whose thickness is unknown, it
    is that of the outline.

    Parameters
    ----------
    mask : (Z, Y, X) bool
        Mask of the object in its box.
    voxel_size : tuple of float
        nm, ZYX.
    volume, surface : float
        Volume in nm³ and area of the surface in nm².
    axes : sequence of float
        Full lengths of the axes of the ellipsoid with the same second moments, the longest first, nm.
    """
    planes = [int(mask.any(tuple({0, 1, 2} - {axis})).sum()) for axis in range(3)]
    if planes[0] == 1:
        outline, step = np.asarray(mask.any(0)), voxel_size[1:]
        return _of_outline(outline, step, _depth(np.pad(outline, 1), step))
    if volume > _ELLIPSOID * math.pi / 6 * math.prod(axes):
        skeleton = Skeleton(axes[0], 1)
    else:
        skeleton = _of_plate(mask, voxel_size, planes) or find_skeleton(mask, voxel_size, 2 * volume / surface)
    return skeleton, _tube_width(volume, skeleton.length)


def _of_plate(mask: Mask, voxel_size: Sizes, planes: Sequence[int]) -> Skeleton | None:
    """Return the skeleton of the outline of a body that is flat along an axis of the image; None for other bodies."""
    extent = np.multiply(planes, voxel_size)
    flat = int(np.argmin(extent))
    if extent[flat] > _FLAT * np.sort(extent)[1]:  # no outline is wider than the middle extent
        return None
    outline, step = np.asarray(mask.any(flat)), voxel_size[:flat] + voxel_size[flat + 1 :]
    depth = _depth(np.pad(outline, 1), step)
    return _of_outline(outline, step, depth)[0] if extent[flat] < _FLAT * 2 * float(depth.max()) else None


def _of_outline(mask: Mask, step: Sizes, depth: NDArray[np.float32]) -> tuple[Skeleton, float]:
    """Return the skeleton and the width (nm) of an outline.

    The width is the w of a strip with round ends: area = w length - (1 - pi / 4) w². `depth` is the distance of each
    pixel to the outside, nm.
    """
    area = int(mask.sum()) * math.prod(step)
    spread = np.cov(np.argwhere(mask).T * np.reshape(step, (2, 1)), bias=True) + np.diag(np.square(step)) / 12
    minor, major = 4 * np.sqrt(np.linalg.eigvalsh(spread))
    if area > _ELLIPSOID * math.pi / 4 * minor * major:
        skeleton = Skeleton(float(major), 1)
    else:
        skeleton = find_skeleton(mask, step, 2 * float(depth[depth > 0].mean()))
    root = max(skeleton.length**2 - (4 - math.pi) * area, 0.0)
    width = min(2 * area / (skeleton.length + math.sqrt(root)), 2 * math.sqrt(area / math.pi))
    return skeleton, width


def _tube_width(volume: float, length: float) -> float:
    """Return the diameter w of a tube with round ends: volume = pi / 4 w² (length - w / 3)."""
    ball = math.cbrt(6 * volume / math.pi)
    if length <= ball:
        return ball
    width: float = brentq(lambda w: math.pi / 4 * w**2 * (length - w / 3) - volume, 0.0, ball)
    return width


def find_skeleton(mask: Mask, voxel_size: Sizes, radius: float) -> Skeleton:
    """Return the skeleton of an object, or of an outline in a plane.

    Follows TEASAR (Sato et al. 2000) on a cubic grid with a step of a sixth of `radius`: paths lead from a tip, along
    the middle, to the places farthest from it. Voxels near a path belong to it, and the next path leads to the farthest
    place that is left. Branches are measured along the smoothed paths up to the surface.

    Parameters
    ----------
    mask : (Z, Y, X) or (Y, X) bool
        Mask of the object or outline in its box.
    voxel_size : tuple of float
        nm, along each axis of the mask.
    radius : float
        About half the thickness of the object, nm.
    """
    field, step = _on_cubic_grid(mask, voxel_size, _skeleton_step(mask, voxel_size, radius))
    level = min(0.5, 0.5 * float(field.max()))  # below 0.5 where all is thinner than the grid
    solid = field > level
    depth = _depth(solid)
    voxels = np.argwhere(solid)
    radii = depth[tuple(voxels.T)].astype(np.float64)
    pairs = cKDTree(voxels).query_pairs(1.8, output_type="ndarray")
    if not len(pairs):
        return Skeleton(step, 1)
    lengths = np.linalg.norm(voxels[pairs[:, 0]] - voxels[pairs[:, 1]], axis=1)
    off_middle = 1 - radii / (1.01 * radii.max())
    graph = _graph(pairs, lengths, len(voxels))
    some = int(np.argmax(radii))
    tip = _farthest(dijkstra(graph, directed=False, indices=some))
    far = dijkstra(graph, directed=False, indices=tip)
    penalty = 1 + 5000 * (off_middle[pairs[:, 0]] ** _CENTRED + off_middle[pairs[:, 1]] ** _CENTRED)
    _, before = dijkstra(
        _graph(pairs, lengths * penalty, len(voxels)), directed=False, indices=tip, return_predecessors=True
    )
    around = 2 * math.ceil(radius / step) + 1
    bodies = ndimage.maximum_filter(depth, around)[tuple(voxels.T)].astype(np.float64)
    paths = _grow(voxels, bodies, far, before, tip)
    edge = np.argwhere(mask & ~ndimage.binary_erosion(mask)).astype(np.float64)
    surface = (edge + 0.5 + _MARGIN) * np.array(voxel_size) / step - 0.5
    length = _length(paths, depth, solid, surface, min(voxel_size) / step)
    return Skeleton(length * step, _count_branches(paths, bodies))


def _depth(solid: Mask, voxel_size: Sizes | None = None) -> NDArray[np.float32]:
    """Return distances to the outside in nm, or in steps without `voxel_size`; `solid` needs an empty margin."""
    if solid.size > _SMALL:
        return np.asarray(edt.edt(np.ascontiguousarray(solid), anisotropy=voxel_size, black_border=True))
    return np.asarray(ndimage.distance_transform_edt(solid, voxel_size), np.float32)  # starts no thread


def _length(
    paths: list[NDArray[np.int64]], depth: NDArray[np.float32], solid: Mask, surface: Floats, voxel: float
) -> float:
    """Return the length of all smoothed paths up to the surface, in steps of the grid.

    `surface` holds the surface voxels of the mask (n, axes), `voxel` is their smallest side, both in steps.
    """
    total = 0.0
    for i, path in enumerate(paths):
        along = depth[tuple(path.T)].astype(np.float64)
        points, ends = _straight_ends(path, along, solid, both=i == 0)
        points = _smoothed(points, float(np.median(along)))
        total += float(np.linalg.norm(np.diff(points, axis=0), axis=1).sum())
        for end, inner in ends:
            total += _to_surface(surface, end, inner) + voxel / 2
    return total


def _skeleton_step(mask: Mask, voxel_size: Sizes, radius: float) -> float:
    """Return the step of the cubic grid in nm: no finer than the mask, and coarse enough to limit box and graph."""
    voxel = math.prod(voxel_size)
    box, body = mask.size * voxel / _LARGEST, int(mask.sum()) * voxel / _MOST_NODES
    root = 1 / mask.ndim
    return max(min(voxel_size), radius / _FINE, float(box**root), float(body**root))


def _graph(pairs: NDArray[np.int64], weights: Floats, count: int) -> Any:
    return coo_array((weights, (pairs[:, 0], pairs[:, 1])), shape=(count, count)).tocsr()


def _farthest(distance: Floats) -> int:
    return int(np.argmax(np.where(np.isfinite(distance), distance, -1)))


def _grow(
    voxels: NDArray[np.int64], bodies: Floats, far: Floats, before: NDArray[np.int32], tip: int
) -> list[NDArray[np.int64]]:
    """Return paths (n, axes): each from the farthest place that is left, to the tip or to the nearest earlier path.

    For each voxel, `far` is its distance from the tip, `before` its predecessor on the way from there, and `bodies` the
    radius of the thickest place around it.
    """
    places, left = cKDTree(voxels), np.isfinite(far)
    paths: list[NDArray[np.int64]] = []
    while left.any() and len(paths) < _MOST_BRANCHES:
        path = [_farthest(np.where(left, far, -1))]
        while path[-1] != tip and (not paths or left[path[-1]]):
            path.append(int(before[path[-1]]))
        if not paths:
            paths, trunk, thick = [voxels[path]], voxels[path], bodies[path]
        else:
            gaps = np.linalg.norm(trunk - voxels[path[-1]], axis=1)
            nearest, leaves = int(gaps.argmin()), np.linalg.norm(trunk - voxels[path[0]], axis=1)
            if leaves.min() > _LEAVES * thick[nearest]:
                steps = np.linspace(0, 1, math.ceil(gaps[nearest]) + 1)[1:, None]
                gap = np.rint(voxels[path[-1]] + steps * (trunk[nearest] - voxels[path[-1]])).astype(np.int64)
                paths.append(np.concatenate([voxels[path], gap]))
                trunk = np.concatenate([trunk, voxels[path]])
                thick = np.concatenate([thick, bodies[path]])
        left[path] = False
        for near in places.query_ball_point(voxels[path], _BODY * bodies[path] + 1.5):
            left[near] = False
    return paths


def _count_branches(paths: list[NDArray[np.int64]], bodies: Floats) -> int:
    """Return the number of branches between ends and junctions; paths that join near each other share a junction."""
    joints: list[NDArray[np.int64]] = []
    count = 1
    radius = float(np.median(bodies))
    for path in paths[1:]:
        shared = any(np.linalg.norm(path[-1] - joint) <= 1.5 * radius for joint in joints)
        joints.append(path[-1])
        count += 1 if shared else 2
    return count


def _on_cubic_grid(mask: Mask, voxel_size: Sizes, step: float) -> tuple[NDArray[np.float32], float]:
    """Return the mask, with a margin, as shares from 0 to 1 on a grid of about `step` nm, and that grid's step."""
    padded = np.pad(mask, _MARGIN).astype(np.float32)
    factors = [size / step for size in voxel_size]
    if all(abs(f - 1) < 0.05 for f in factors):
        return padded, min(voxel_size)
    values = ndimage.gaussian_filter(padded, [max(0.5, 0.4 / f) for f in factors], mode="constant")
    for axis, factor in enumerate(factors):  # linear interpolation along one axis after the other
        at = (np.arange(math.ceil(values.shape[axis] * factor)) + 0.5) / factor - 0.5
        left = np.clip(np.floor(at).astype(int), 0, values.shape[axis] - 2)
        part = np.clip(at - left, 0, 1).astype(np.float32).reshape([-1 if i == axis else 1 for i in range(mask.ndim)])
        values = values.take(left, axis) * (1 - part) + values.take(left + 1, axis) * part
    return values, step


def _straight_ends(
    path: NDArray[np.int64], radii: Floats, solid: Mask, *, both: bool
) -> tuple[Floats, list[tuple[Floats, Floats]]]:
    """Return a path with its first or both ends made straight, and for each of these its tip and where it begins.

    An end is straight from the last maximal inscribed ball in which its tip lies: within this ball (and everywhere in
    an object that is a ball) the middle is only a point. The steps of the grid would lead from there in a zigzag to the
    tip, which, as the farthest place of all, lies on the outer side of a bend.
    """
    points = path.astype(np.float64)
    first, last = _in_ball(points, radii), len(path) - 1
    if both:
        last -= _in_ball(points[::-1], radii[::-1])
    if first >= last:  # one ball holds both
        points = np.linspace(points[0], points[-1], len(path))
        first, last = len(path) - 1, 0
    else:
        middle = points[first : last + 1].copy()
        tip = _straight_on(middle, radii[first], points[0], solid)
        points[: first + 1] = np.linspace(tip, middle[0], first + 1)
        if both:
            tip = _straight_on(middle[::-1], radii[last], points[-1], solid)
            points[last:] = np.linspace(middle[-1], tip, len(path) - last)
    tips = [(points[0], points[first])] + ([(points[-1], points[last])] if both else [])
    return points, tips


def _straight_on(middle: Floats, radius: float, tip: Floats, solid: Mask) -> Floats:
    """Return where a line straight on from the middle's first point leaves the object, not much farther than `tip`."""
    along = middle[0] - middle[min(math.ceil(_STRAIGHT * radius), len(middle) - 1)]
    if not along.any():  # the path has come back to where it was
        return tip
    far = 1.5 * float(np.linalg.norm(tip - middle[0])) + 1
    line = middle[0] + np.arange(0, far, 0.5)[:, None] * along / np.linalg.norm(along)
    places = np.clip(np.rint(line).astype(np.int64), 0, np.array(solid.shape) - 1)
    inside = solid[tuple(places.T)]
    last = len(line) if inside.all() else int(np.argmin(inside))
    return np.asarray(line[max(last - 1, 0)])


def _to_surface(voxels: Floats, tip: Floats, before: Floats) -> float:
    """Return how far an object extends beyond a tip in the direction of its end, in steps; negative if it falls short.

    `voxels` (n, axes) are the centres of the voxels at the surface: the tip is on a coarser grid and need not be the
    last of them.
    """
    away = (tip - before) / max(float(np.linalg.norm(tip - before)), 1e-9)
    near = voxels[np.abs(voxels - tip).max(1) <= 3]
    return float(((near - tip) @ away).max(initial=-0.5))


def _in_ball(points: Floats, radii: Floats) -> int:
    """Return the index of the last point, from the start on, in whose inscribed ball the start lies."""
    inside = np.linalg.norm(points - points[0], axis=1) <= 1.25 * radii + 0.5
    return len(points) - 1 if inside.all() else int(np.argmin(inside)) - 1


def _smoothed(path: Floats, radius: float) -> Floats:
    """Return a path without the stairs of its voxels; its ends stay.

    A Gaussian alone pulls a bend inwards; what it removes is smoothed too and added back ("twicing", Tukey 1977).
    """
    smooth = _blurred(path, radius)
    return smooth + _blurred(path - smooth, radius)


def _blurred(path: Floats, radius: float) -> Floats:
    """Smooth a path with a Gaussian of three quarters of a radius; its ends stay."""
    ends = 2 * np.array([path[0], path[-1]])
    count = min(len(path) - 1, 3 * math.ceil(radius) + 2)  # mirrored in the ends, which therefore stay
    long = np.concatenate([ends[0] - path[count:0:-1], path, ends[1] - path[-2 : -2 - count : -1]])
    smooth = ndimage.gaussian_filter1d(long, max(0.75 * radius, 1.0), axis=0, mode="nearest")
    return np.asarray(smooth[count : count + len(path)])
