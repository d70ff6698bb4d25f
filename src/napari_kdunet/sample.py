"""A synthetic electron-microscopy volume: neuropil with labelled mitochondria, made on the spot from a seed.

Everything is geometry in nanometres. Neurites are tubes, grown where there is room; a voxel belongs to the tube whose
surface is nearest, what is far from all is glia, and membranes run in between. Organelles are tubes inside the tubes.
A smooth warp bends it all. Then the "microscope": blur, noise, and a contrast that flickers from slice to slice.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

__all__ = ["VOXEL_SIZE", "synthetic_em"]

VOXEL_SIZE = (10.0, 10.0, 10.0)  # nm, ZYX: what `synthetic_em` shows unless told otherwise
Triple = tuple[float, float, float]
Image = NDArray[np.float32]
Index = NDArray[np.int32]
Points = NDArray[np.float64]

_MITO, _DARK, _PALE = 0, 1, 2  # kinds of organelle: mitochondrion, lysosome, vacuole
_TARGET = 0.075  # mitochondria are kept until they fill this share of the volume
_STEP = 140.0  # nm between the points of a neurite's centre line
_GLIA = 30.0  # nm from the nearest neurite beyond which the gap is glia
_WALL = 24.0  # nm between an organelle and the membrane of its cell, at least


def synthetic_em(
    shape: tuple[int, int, int] = (48, 256, 256),
    *,
    voxel_size: Triple = VOXEL_SIZE,
    seed: int = 0,
    instances: bool = False,
) -> tuple[NDArray[np.uint8], NDArray[Any]]:
    """Make a volume that looks like FIB-SEM of neuropil, and its mitochondria labels.

    Vesicle clusters, post-synaptic densities, lysosomes, vacuoles, reticulum and neurites with dark cytoplasm are as
    dark as mitochondria or shaped like them, so that no threshold finds the mitochondria, blurred or not.

    Parameters
    ----------
    shape
        Voxels along ZYX, at least (1, 32, 32).
    voxel_size
        In nm, ZYX, up to 100. Structures keep their size in nm: smaller voxels show less tissue in more detail.
    seed
        Same arguments and seed, same bytes.
    instances
        Number the mitochondria instead of marking them.

    Returns
    -------
    raw
        uint8, `shape`. Membranes and organelles are dark.
    labels
        uint8, `shape`: 1 = mitochondrion (there is always some), 0 = anything else. With `instances` uint16: each
        mitochondrion, of what is seen of it each connected part, has an id from 1.

    Raises
    ------
    ValueError
        If the shape is too small or a voxel size is not in (0, 100].
    """
    if len(shape) != 3 or any(n < least for n, least in zip(shape, (1, 32, 32), strict=True)):
        raise ValueError(f"shape must be ZYX and at least (1, 32, 32), not {shape}")
    if len(voxel_size) != 3 or not all(0 < v <= 100 for v in voxel_size):
        raise ValueError(f"voxel_size must be three numbers in (0, 100] nm, ZYX, not {voxel_size}")
    space = _warped_space(shape, voxel_size, np.random.default_rng(seed))
    neurites = _grow_neurites(space)
    cell, best, second = _paint(space, neurites, 130.0)
    cell[best > _GLIA] = -1
    depth = np.minimum(np.abs(best - _GLIA), np.where(cell < 0, second, (second - best) / 2))  # nm to the membrane
    organelles = _place_organelles(space, neurites)
    organelle, surface = _fit_organelles(space, organelles, cell, depth)
    image, vesicular = _draw_cells(space, neurites, cell, depth)
    _draw_synapses(space, image, np.where(surface < 15, -1, cell), depth, vesicular)
    _draw_organelles(space, image, organelles, organelle, surface)
    labels = (surface < 0) & (np.array([o.kind for o in organelles])[organelle] == _MITO)
    raw = _acquire(space, image)
    return raw, _numbered(labels, organelle) if instances else labels.astype(np.uint8)


def _numbered(labels: NDArray[np.bool_], organelle: Index) -> NDArray[np.uint16]:
    """Ids from 1 of the connected parts (26 neighbours) of each organelle."""
    ids = np.zeros(labels.shape, np.uint16)
    for index in np.unique(organelle[labels]):
        parts, _ = ndimage.label(labels & (organelle == index), np.ones((3, 3, 3)))
        ids[parts > 0] = parts[parts > 0] + ids.max()
    return ids


@dataclass(frozen=True)
class _Tube:
    """A chain of points (n, 3) in nm with a radius (n,) at each; an organelle also knows its neurite and its kind."""

    points: Points
    radii: Points
    host: int = -1
    kind: int = _MITO


@dataclass(frozen=True)
class _Space:
    """A voxel grid and, for each voxel, the place (3, Z, Y, X) in nm that it shows, at most `slack` from its own."""

    shape: tuple[int, int, int]
    voxel_size: Triple
    places: Image
    slack: float
    rng: np.random.Generator

    @property
    def middle(self) -> Points:
        """The place (3,) that the voxel in the middle shows."""
        z, y, x = (n // 2 for n in self.shape)
        return self.places[:, z, y, x].astype(np.float64)

    def noise(self, size: float) -> Image:
        """Smooth noise, mean 0 and deviation about 1, with features of `size` nm."""
        steps = np.minimum(4 / size * np.array(self.voxel_size), 1)  # of the coarse grid, between voxels
        sigma = 1.5 * np.minimum(size / 4 / np.array(self.voxel_size), 1)
        field = self.rng.standard_normal([int(n * s) + 14 for n, s in zip(self.shape, steps, strict=True)], np.float32)
        field = ndimage.gaussian_filter(field, sigma)[6:-6, 6:-6, 6:-6] * np.sqrt(np.prod(2 * np.sqrt(np.pi) * sigma))
        for axis in range(3):  # linear enlargement to the voxel grid
            node, part = np.divmod(np.arange(self.shape[axis]) * steps[axis], 1)
            left, right = (field.take(node.astype(int) + i, axis) for i in (0, 1))
            field = left + (right - left) * np.moveaxis(part.astype(np.float32)[:, None, None], 0, axis)
        return np.asarray(field, np.float32)

    def capsules(self, tube: _Tube, reach: float) -> Iterator[tuple[tuple[slice, ...], Image]]:
        """Box and signed distance in nm (negative inside) of each segment of a tube, `reach` nm around it and more."""
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


def _warped_space(shape: tuple[int, int, int], voxel_size: Triple, rng: np.random.Generator) -> _Space:
    """A grid whose places are bent by at most 110 nm."""
    flat = _Space(shape, voxel_size, np.indices(shape, np.float32), 110.0, rng)
    for place, step in zip(flat.places, voxel_size, strict=True):
        bend = np.clip(42 * flat.noise(450.0) + 13 * flat.noise(160.0), -flat.slack, flat.slack)
        place[:] = place * np.float32(step) + bend
    return flat


def _grow_neurites(space: _Space, pad: float = 250.0, pitch: float = 50.0) -> list[_Tube]:
    """Fill the volume, and `pad` nm around it, with tubes that wind through whatever room is left, until little is."""
    rng = space.rng
    z, y, x = (int((n * v + 2 * pad) / pitch) + 2 for n, v in zip(space.shape, space.voxel_size, strict=True))
    coarse = _Space((z, y, x), (pitch,) * 3, np.indices((z, y, x), np.float32) * np.float32(pitch), 0.0, rng)
    room = np.full(coarse.shape, 450, np.float32)  # nm to the nearest tube
    tubes: list[_Tube] = []
    while (widest := float(room.max())) > 65:
        radius = min(float(np.clip(rng.lognormal(np.log(150), 0.6), 65, 420)), widest)
        start = rng.choice(np.argwhere(room >= radius)) * pitch
        if not tubes:  # the middle always shows a neurite wide enough for a mitochondrion
            start, radius = space.middle + pad, 230.0
        tube = _grow(start, radius, room, pitch, rng)
        for box, distance in coarse.capsules(tube, 450):
            np.minimum(room[box], distance, out=room[box])
        tubes.append(_Tube(tube.points - pad, tube.radii))
    return tubes


def _grow(start: Points, radius: float, room: Image, pitch: float, rng: np.random.Generator) -> _Tube:
    """Grow one tube both ways from `start`, each step towards the most room, thinner where there is less."""
    heading = rng.standard_normal(3) + np.array([0, 0.8, 1.2])  # most neurites run more or less alike
    points, radii = [start], [radius]
    for sense in (-1, 1):
        point, direction = start, sense * heading / np.linalg.norm(heading)
        for _ in range(rng.integers(3, 18)):
            options = direction + 0.3 * rng.standard_normal((8, 3))
            options /= np.linalg.norm(options, axis=1, keepdims=True)
            clearance = ndimage.map_coordinates(room, (point + _STEP * options).T / pitch, order=1, cval=-1.0)
            best = int(np.argmax(np.minimum(clearance, radius)))
            if clearance[best] < max(40.0, 0.4 * radius):
                break
            point, direction = point + _STEP * options[best], options[best]
            points.append(point)
            radii.append(min(float(clearance[best]), radius * rng.uniform(0.85, 1.1)))
        points, radii = points[::-1], radii[::-1]
    return _Tube(np.array(points), np.array(radii))


def _paint(space: _Space, tubes: list[_Tube], reach: float) -> tuple[Index, Image, Image]:
    """Nearest tube of each voxel (-1 = none in reach), its signed distance in nm, and that of the second nearest."""
    owner = np.full(space.shape, -1, np.int32)
    best, second = (np.full(space.shape, 1000, np.float32) for _ in range(2))
    for index, tube in enumerate(tubes):
        for box, distance in space.capsules(tube, reach):
            runner_up = np.minimum(np.maximum(best[box], distance), second[box])
            np.copyto(second[box], runner_up, where=owner[box] != index)
            np.copyto(owner[box], index, where=distance < best[box])
            np.minimum(best[box], distance, out=best[box])
    return owner, best, second


def _place_organelles(space: _Space, neurites: list[_Tube]) -> list[_Tube]:
    """String organelles along the wider neurites; the first is a mitochondrion in the middle of the volume."""
    rng, first = space.rng, neurites[0]
    near = ((first.points - space.middle) ** 2).sum(1) < (2.2 * _STEP) ** 2
    placed = [_Tube(first.points[near], np.minimum(0.7 * first.radii[near], 115), 0)]
    for host, tube in enumerate(neurites[1:], 1):
        at = int(rng.integers(3))
        while at < len(tube.points):
            kind = int(rng.choice([_MITO, _DARK, _PALE], p=[0.64, 0.18, 0.18]))
            count = int(rng.integers(2, 9)) if kind == _MITO else 1
            points, width = tube.points[at : at + count], tube.radii[at : at + count]
            radius = rng.uniform(*((100, 175), (45, 95), (45, 120))[kind])
            radii = np.minimum(radius * rng.uniform(0.85, 1.15, len(width)), 0.78 * width)
            if radii.max() > (85 if kind == _MITO else 40):
                sideways = rng.uniform(-0.6, 0.6, 3) * max(float((width - radii).min()) - _WALL, 0)
                placed.append(_Tube(points + sideways, radii, host, kind))
            at += count + int(rng.integers(1, 5))
    return placed


def _fit_organelles(space: _Space, organelles: list[_Tube], cell: Index, depth: Image) -> tuple[Index, Image]:
    """Nearest organelle and signed distance in nm to it: all inside their cells, no more mitochondria than wanted."""
    organelle, surface, _ = _paint(space, organelles, 30.0)
    surface = np.maximum(surface, _WALL - depth)
    surface[cell != np.array([o.host for o in organelles])[organelle]] = 1000
    order = 1 + space.rng.permutation(len(organelles) - 1)
    order = np.array([0, *(i for i in order if organelles[i].kind == _MITO)])
    voxels = np.bincount(organelle[surface < 0], minlength=len(organelles))[order]
    surface[np.isin(organelle, order[np.cumsum(voxels) - voxels > _TARGET * surface.size])] = 1000
    return organelle, surface


def _draw_cells(space: _Space, neurites: list[_Tube], cell: Index, depth: Image) -> tuple[Image, NDArray[np.bool_]]:
    """Cytoplasm, reticulum and membranes in grey values; and which neurites hold synaptic vesicles (last: glia, no)."""
    rng, width, count = space.rng, np.array([np.median(tube.radii) for tube in neurites]), len(neurites)
    grey = rng.normal(185, 11, count)
    grey[(rng.random(count) < 0.16) & (width < 230)] -= 60
    vesicular = np.append((width > 110) & (rng.random(count) < 0.45), False)
    image = np.append(grey, 175).astype(np.float32)[cell] + 11 * space.noise(45.0) + 9 * space.noise(130.0)
    reticulum = np.exp(-((space.noise(350.0) / 0.09) ** 2)) * np.clip(3 * space.noise(300.0) - 1, 0, 1)
    image -= 75 * reticulum * np.clip(depth / 20 - 1.5, 0, 1)
    image -= (image - 66) * np.exp(-((depth / 13) ** 2))
    return image, vesicular


def _draw_synapses(space: _Space, image: Image, cell: Index, depth: Image, vesicular: NDArray[np.bool_]) -> None:
    """Densities across the membrane of vesicular neurites, vesicle clusters behind them, and stray vesicles."""
    rng, spacing = space.rng, 44.0
    membrane = np.flatnonzero((depth < 8) & (cell >= 0) & vesicular[cell])
    chance = np.full(space.shape, 0.05, np.float32)
    wanted = rng.poisson(9 * image.size * np.prod(space.voxel_size) / 1e9)  # 9 per cubic micrometre
    for seed in rng.permutation(membrane)[:wanted]:
        place = space.places.reshape(3, -1)[:, seed].astype(np.float64)
        width, cluster = rng.uniform(90, 170), rng.uniform(170, 400)
        for box, distance in space.capsules(_Tube(place[None], np.array([cluster])), 0.0):
            inside = cell[box] == cell.flat[seed]
            chance[box][inside & (distance < 0)] = 0.9
            density = np.clip((width - cluster - distance) / 30, 0, 1) * np.exp(-((depth[box] / 27) ** 2))
            image[box] -= (image[box] - 55) * np.where(inside, 0.3, 0.9) * density
    sites = np.indices([int(n * v / spacing) + 1 for n, v in zip(space.shape, space.voxel_size, strict=True)])
    centres = spacing * (sites.reshape(3, -1).T + rng.uniform(-0.38, 0.38, (sites[0].size, 3)))
    at = tuple(np.clip(np.rint(centres / space.voxel_size).astype(int), 0, np.array(space.shape) - 1).T)
    _draw_vesicles(space, image, centres[(rng.random(len(centres)) < chance[at]) & (depth[at] > 28) & (cell[at] >= 0)])


def _draw_vesicles(space: _Space, image: Image, centres: Points) -> None:
    """Dark rings some 40 nm wide around `centres` (n, 3) in nm."""
    half = np.ceil(30 / np.array(space.voxel_size)).astype(int)
    stamp = np.indices(tuple(2 * half + 1)).reshape(3, -1).T - half
    voxels = np.rint(centres[:, None] / space.voxel_size).astype(int) + stamp
    radius = np.sqrt(((voxels * space.voxel_size - centres[:, None]) ** 2).sum(-1))
    inside = ((voxels >= 0) & (voxels < space.shape)).all(-1)
    shade = np.zeros(space.shape, np.float32)
    np.maximum.at(shade, tuple(voxels[inside].T), np.exp(-(((radius[inside] - 15) / 9) ** 2)).astype(np.float32))
    image -= (image - 72) * 0.9 * shade


def _draw_organelles(space: _Space, image: Image, organelles: list[_Tube], organelle: Index, surface: Image) -> None:
    """Mitochondria with double membrane and cristae; dense granular lysosomes; pale vacuoles with one membrane."""
    rng, count = space.rng, len(organelles)
    at = np.flatnonzero(surface < 15)
    index, depth = organelle.flat[at], -surface.flat[at]
    kinds = np.array([o.kind for o in organelles])
    low, high = np.array([(78, 113), (50, 80), (160, 200)])[kinds].T
    kind, value = kinds[index], rng.uniform(low, high)[index]
    value += np.where(kind == _DARK, 16, 5) * space.noise(40.0).flat[at]
    waves = rng.standard_normal((3, count))
    waves *= 2 * np.pi / (np.linalg.norm(waves, axis=0) * rng.uniform(38, 60, count))  # cristae are 38 to 60 nm apart
    phase = (space.places.reshape(3, -1)[:, at] * waves[:, index]).sum(0) + 2.2 * space.noise(160.0).flat[at]
    cristae = np.sin(phase) * np.clip(1 + space.noise(120.0).flat[at], 0, 1.5) * np.clip(depth / 10 - 1.5, 0, 1)
    ring = np.exp(-(((depth - 5) / 7) ** 2))
    inner = 10 * np.exp(-(((depth - 19) / 6) ** 2)) + rng.uniform(11, 23, count)[index] * cristae
    value += np.where(kind == _MITO, inner - 30 * ring, np.where(kind == _PALE, -95 * ring, 0))
    image.flat[at] += (value - image.flat[at]) * np.clip(0.5 + depth / 8, 0, 1)


def _acquire(space: _Space, image: Image) -> NDArray[np.uint8]:
    """Blur, shot and correlated noise (now and then a very noisy slice), contrast flicker along z, 8 bits."""
    rng, slices = space.rng, (len(image), 1, 1)
    image = ndimage.gaussian_filter(image, [6 / v for v in space.voxel_size])
    shot = 5 * np.sqrt(np.maximum(image, 10) / 140) * rng.standard_normal(image.shape, np.float32)
    shot += 9 * ndimage.gaussian_filter(rng.standard_normal(image.shape, np.float32), (0, 0.8, 0.8))
    noisy = np.where(rng.random(slices) < 0.04, 2.5, rng.uniform(0.9, 1.1, slices))
    gain, offset = rng.normal(1, 0.035, slices), rng.normal(0, 4, slices)
    return np.clip(np.rint((image + noisy * shot) * gain + offset), 0, 255).astype(np.uint8)
