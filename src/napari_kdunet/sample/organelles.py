"""Where mitochondria and other organelles lie: tubes inside the tubes of neurites."""

from __future__ import annotations

from enum import IntEnum

import numpy as np

from napari_kdunet.sample.geometry import STEP, Image, Index, Space, Tube, paint
from napari_kdunet.sample.look import Look

__all__ = ["WALL", "Kind", "fit_organelles", "place_organelles"]

WALL = 24.0  # nm between an organelle and the membrane of its cell, at least
_BODY = 1000.0  # nm: a tube of larger radius is a cell body


class Kind(IntEnum):
    """Kind of an organelle."""

    MITOCHONDRION = 0
    LYSOSOME = 1
    VACUOLE = 2
    LIPID = 3
    NUCLEUS = 4


_IN_NEURITES = (Kind.MITOCHONDRION, Kind.LYSOSOME, Kind.VACUOLE, Kind.LIPID)


def place_organelles(space: Space, neurites: list[Tube], look: Look) -> list[Tube]:
    """String organelles along the wider neurites; the first is a mitochondrion in the middle of the volume."""
    rng, first = space.rng, neurites[0]
    near = ((first.points - space.middle) ** 2).sum(1) < (2.2 * STEP) ** 2
    placed = [Tube(first.points[near], np.minimum(0.7 * first.radii[near], 115), 0)]
    for host, tube in enumerate(neurites[1:], 1):
        if tube.radii[0] > _BODY:
            placed += _in_a_body(host, tube, rng, look)
            continue
        at = int(rng.integers(3))
        while at < len(tube.points):
            kind = int(rng.choice(_IN_NEURITES, p=look.organelles))
            count = int(rng.integers(2, 9)) if kind == Kind.MITOCHONDRION else 1
            points, width = tube.points[at : at + count], tube.radii[at : at + count]
            radius = rng.uniform(*(look.mitochondrion_radius, (45, 95), (45, 120), (50, 200))[kind])
            radii = np.minimum(radius * rng.uniform(0.85, 1.15, len(width)), 0.78 * width)
            if radii.max() > (min(85, 0.85 * look.mitochondrion_radius[0]) if kind == Kind.MITOCHONDRION else 40):
                sideways = rng.uniform(-0.6, 0.6, 3) * max(float((width - radii).min()) - WALL, 0)
                placed.append(Tube(points + sideways, radii, host, kind))
            at += count + int(rng.integers(1, 5))
    return placed


def _in_a_body(host: int, body: Tube, rng: np.random.Generator, look: Look) -> list[Tube]:
    """Return the nucleus of a cell body, and mitochondria and lysosomes around it."""
    (centre,), (radius,) = body.points, body.radii
    placed = [Tube(body.points, 0.7 * body.radii, host, Kind.NUCLEUS)]
    for _ in range(rng.integers(100, 500)):
        way = rng.standard_normal(3)
        points = centre + radius * rng.uniform(0.76, 0.95) * way / np.linalg.norm(way)
        kind = Kind.MITOCHONDRION if rng.random() < 0.8 else Kind.LYSOSOME
        count = int(rng.integers(1, 5)) if kind == Kind.MITOCHONDRION else 1
        steps = STEP * (np.arange(count)[:, None] - count / 2) * rng.uniform(-1, 1, 3)
        size = rng.uniform(*(look.mitochondrion_radius if kind == Kind.MITOCHONDRION else (45, 150)))
        placed.append(Tube(points + steps, size * rng.uniform(0.85, 1.15, count), host, kind))
    return placed


def fit_organelles(space: Space, organelles: list[Tube], cell: Index, depth: Image, most: float) -> tuple[Index, Image]:
    """Return each voxel's nearest organelle and the signed distance in nm to it.

    Organelles are cut to lie inside their cells, and mitochondria beyond the share `most` of the volume are left out.
    """
    organelle, surface, _ = paint(space, organelles, 30.0)
    surface = np.maximum(surface, WALL - depth)
    surface[cell != np.array([o.host for o in organelles])[organelle]] = 1000
    order = 1 + space.rng.permutation(len(organelles) - 1)
    order = np.array([0, *(i for i in order if organelles[i].kind == Kind.MITOCHONDRION)])
    voxels = np.bincount(organelle[surface < 0], minlength=len(organelles))[order]
    surface[np.isin(organelle, order[np.cumsum(voxels) - voxels > most * surface.size])] = 1000
    return organelle, surface
