"""Tubes in nanometres, the voxel grid that shows them, and neurites that fill it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

__all__ = ["STEP", "Image", "Index", "Points", "Space", "Triple", "Tube", "grow_neurites", "paint", "warped_space"]

Triple = tuple[float, float, float]
Image = NDArray[np.float32]
Index = NDArray[np.int32]
Points = NDArray[np.float64]

STEP = 140.0  # nm between the points of a neurite's centre line


@dataclass(frozen=True)
class Tube:
    """A chain of points (n, 3) in nm with a radius (n,) at each; an organelle also knows its neurite and its kind."""

    points: Points
    radii: Points
    host: int = -1
    kind: int = 0


@dataclass(frozen=True)
class Space:
    """A voxel grid and, for each voxel, the place (3, Z, Y, X) in nm that it shows, at most `slack` nm from its own."""

    shape: tuple[int, int, int]
    voxel_size: Triple
    places: Image
    slack: float
    rng: np.random.Generator

    @property
    def middle(self) -> Points:
        """Place (3,) in nm that the voxel in the middle shows."""
        z, y, x = (n // 2 for n in self.shape)
        return self.places[:, z, y, x].astype(np.float64)

    def noise(self, size: float) -> Image:
        """Return smooth noise, mean 0 and standard deviation about 1, with features of `size` nm."""
        steps = np.minimum(4 / size * np.array(self.voxel_size), 1)  # steps of the coarse grid per voxel
        sigma = 1.5 * np.minimum(size / 4 / np.array(self.voxel_size), 1)
        field = self.rng.standard_normal([int(n * s) + 14 for n, s in zip(self.shape, steps, strict=True)], np.float32)
        field = ndimage.gaussian_filter(field, sigma)[6:-6, 6:-6, 6:-6] * np.sqrt(np.prod(2 * np.sqrt(np.pi) * sigma))
        for axis in range(3):  # linear interpolation to the voxel grid
            node, part = np.divmod(np.arange(self.shape[axis]) * steps[axis], 1)
            left, right = (field.take(node.astype(int) + i, axis) for i in (0, 1))
            field = left + (right - left) * np.moveaxis(part.astype(np.float32)[:, None, None], 0, axis)
        return np.asarray(field, np.float32)

    def capsules(self, tube: Tube, reach: float) -> Iterator[tuple[tuple[slice, ...], Image]]:
        """Yield box and signed distance in nm (negative inside) of each segment of a tube, up to `reach` nm or more."""
        last = len(tube.radii) - 1
        for i in range(max(last, 1)):
            (a, ra), (b, rb) = ((tube.points[j], tube.radii[j]) for j in (i, min(i + 1, last)))
            margin = max(ra, rb) + reach + self.slack
            low = np.maximum((np.minimum(a, b) - margin) / self.voxel_size, 0).astype(int)
            high = np.minimum((np.maximum(a, b) + margin) / self.voxel_size + 1, self.shape).astype(int)
            if (low < high).all():
                box = tuple(map(slice, low, high))
                start, axis = (v.astype(np.float32)[:, None, None, None] for v in (a, b - a))
                offset = self.places[:, *box] - start
                along = np.clip((offset * axis).sum(0) / max((axis**2).sum(), np.float32(1e-6)), 0, 1)
                offset -= along * axis
                yield box, np.sqrt((offset**2).sum(0)) - (np.float32(ra) + along * np.float32(rb - ra))


def warped_space(shape: tuple[int, int, int], voxel_size: Triple, rng: np.random.Generator) -> Space:
    """Return a grid whose places are bent by at most 110 nm."""
    flat = Space(shape, voxel_size, np.indices(shape, np.float32), 110.0, rng)
    for place, step in zip(flat.places, voxel_size, strict=True):
        bend = np.clip(42 * flat.noise(450.0) + 13 * flat.noise(160.0), -flat.slack, flat.slack)
        place[:] = place * np.float32(step) + bend
    return flat


def grow_neurites(space: Space, typical: float, soma: float, pad: float = 250.0, pitch: float = 50.0) -> list[Tube]:
    """Fill the volume, and `pad` nm around it, with tubes that wind through the room left, until little is left.

    `typical` is the median radius of the tubes in nm, `soma` the probability that the second tube is a cell body, which
    has a single point, and `pitch` the step in nm of the grid on which room is measured.
    """
    rng = space.rng
    z, y, x = (int((n * v + 2 * pad) / pitch) + 2 for n, v in zip(space.shape, space.voxel_size, strict=True))
    coarse = Space((z, y, x), (pitch,) * 3, np.indices((z, y, x), np.float32) * np.float32(pitch), 0.0, rng)
    room = np.full(coarse.shape, 450, np.float32)  # nm to the nearest tube
    tubes: list[Tube] = []
    while (widest := float(room.max())) > 65:
        radius = min(float(np.clip(rng.lognormal(np.log(typical), 0.6), 65, 420)), widest)
        start = rng.choice(np.argwhere(room >= radius)) * pitch
        if not tubes:  # the middle always shows a neurite wide enough for a mitochondrion
            start, radius = space.middle + pad, 230.0
        if soma and len(tubes) == 1 and rng.random() < soma:
            tube = _beside(space.middle + pad, rng)
        else:
            tube = _grow(start, radius, room, pitch, rng)
        for box, distance in coarse.capsules(tube, 450):
            np.minimum(room[box], distance, out=room[box])
        tubes.append(Tube(tube.points - pad, tube.radii))
    return tubes


def _beside(middle: Points, rng: np.random.Generator) -> Tube:
    """Return a ball as large as a cell body whose surface is near `middle`, about in the plane of the slices."""
    radius, angle = rng.uniform(1600, 3000), rng.uniform(0, 2 * np.pi)
    distance = radius + rng.uniform(300, 1200)
    way = np.array([rng.uniform(-0.2, 0.2), np.sin(angle), np.cos(angle)])
    return Tube((middle + distance * way)[None], np.array([radius]))


def _grow(start: Points, radius: float, room: Image, pitch: float, rng: np.random.Generator) -> Tube:
    """Grow one tube both ways from `start`, each step towards the most room, thinner where there is less room."""
    heading = rng.standard_normal(3) + np.array([0, 0.8, 1.2])  # most neurites run in roughly the same direction
    points, radii = [start], [radius]
    for sense in (-1, 1):
        point, direction = start, sense * heading / np.linalg.norm(heading)
        for _ in range(rng.integers(3, 18)):
            options = direction + 0.3 * rng.standard_normal((8, 3))
            options /= np.linalg.norm(options, axis=1, keepdims=True)
            clearance = ndimage.map_coordinates(room, (point + STEP * options).T / pitch, order=1, cval=-1.0)
            best = int(np.argmax(np.minimum(clearance, radius)))
            if clearance[best] < max(40.0, 0.4 * radius):
                break
            point, direction = point + STEP * options[best], options[best]
            points.append(point)
            radii.append(min(float(clearance[best]), radius * rng.uniform(0.85, 1.1)))
        points, radii = points[::-1], radii[::-1]
    return Tube(np.array(points), np.array(radii))


def paint(space: Space, tubes: list[Tube], reach: float) -> tuple[Index, Image, Image]:
    """Return each voxel's nearest tube (-1: none in reach), its signed distance in nm, and that of the next tube."""
    owner = np.full(space.shape, -1, np.int32)
    best, second = (np.full(space.shape, 1000, np.float32) for _ in range(2))
    for index, tube in enumerate(tubes):
        for box, distance in space.capsules(tube, reach):
            runner_up = np.minimum(np.maximum(best[box], distance), second[box])
            np.copyto(second[box], runner_up, where=owner[box] != index)
            np.copyto(owner[box], index, where=distance < best[box])
            np.minimum(best[box], distance, out=best[box])
    return owner, best, second
