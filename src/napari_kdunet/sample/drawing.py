"""Tissue in grey values: cells and membranes, synapses, organelles."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from napari_kdunet.sample.geometry import Image, Index, Points, Space, Tube
from napari_kdunet.sample.look import Look
from napari_kdunet.sample.organelles import Kind

__all__ = ["draw_cells", "draw_organelles", "draw_synapses", "myelin_sheaths"]


def myelin_sheaths(neurites: list[Tube], share: float, rng: np.random.Generator) -> Points:
    """Return the thickness (n + 1,) in nm of the sheath in each neurite, and 0 for glia as the last."""
    thickness = np.zeros(len(neurites) + 1)
    for index, tube in enumerate(neurites[1:] if share else (), 1):
        width = float(np.median(tube.radii))
        if 140 < width < 1000 and rng.random() < share:
            thickness[index] = rng.uniform(0.15, 0.4) * width
    return thickness


def draw_cells(
    space: Space, neurites: list[Tube], cell: Index, depth: Image, sheath: Points, look: Look
) -> tuple[Image, NDArray[np.bool_]]:
    """Return cytoplasm, reticulum and membranes in grey values, and which neurites (last: glia, no) hold vesicles."""
    rng, width, count = space.rng, np.array([np.median(tube.radii) for tube in neurites]), len(neurites)
    grey = rng.normal(look.cytoplasm, look.cytoplasm_spread, count)
    grey[(rng.random(count) < look.dark_neurites) & (width < 230)] -= 60
    vesicular = np.append((width > 110) & (rng.random(count) < 0.45), False)
    image = np.append(grey, look.cytoplasm - 10).astype(np.float32)[cell]
    image += look.texture * (11 * space.noise(45.0) + 9 * space.noise(130.0))
    reticulum = np.exp(-((space.noise(350.0) / 0.09) ** 2)) * np.clip(3 * space.noise(300.0) - 1, 0, 1)
    image -= look.reticulum * reticulum * np.clip(depth / 20 - 1.5, 0, 1)
    image -= (image - look.membrane) * np.exp(-((depth / look.membrane_width) ** 2))
    if sheath.any():
        wrapped = depth < sheath[cell]
        image[wrapped] = look.membrane - 15 + 12 * np.sin(depth[wrapped] / 5)  # lamellae, some 30 nm apart
    return image, vesicular


def draw_synapses(
    space: Space, image: Image, cell: Index, depth: Image, vesicular: NDArray[np.bool_], look: Look
) -> None:
    """Draw densities across the membrane of vesicular neurites, vesicle clusters behind them, and stray vesicles."""
    rng, spacing = space.rng, 44.0
    membrane = np.flatnonzero((depth < 8) & (cell >= 0) & vesicular[cell])
    chance = np.full(space.shape, 0.05, np.float32)
    wanted = rng.poisson(look.synapses * image.size * np.prod(space.voxel_size) / 1e9)
    for seed in rng.permutation(membrane)[:wanted]:
        place = space.places.reshape(3, -1)[:, seed].astype(np.float64)
        width, cluster = rng.uniform(90, 170), rng.uniform(170, 400)
        for box, distance in space.capsules(Tube(place[None], np.array([cluster])), 0.0):
            inside = cell[box] == cell.flat[seed]
            chance[box][inside & (distance < 0)] = look.vesicles
            density = np.clip((width - cluster - distance) / 30, 0, 1) * np.exp(-((depth[box] / 27) ** 2))
            image[box] -= (image[box] - (look.membrane - 11)) * np.where(inside, 0.3, 0.9) * density
    sites = np.indices([int(n * v / spacing) + 1 for n, v in zip(space.shape, space.voxel_size, strict=True)])
    centres = spacing * (sites.reshape(3, -1).T + rng.uniform(-0.38, 0.38, (sites[0].size, 3)))
    at = tuple(np.clip(np.rint(centres / space.voxel_size).astype(int), 0, np.array(space.shape) - 1).T)
    _draw_vesicles(
        space,
        image,
        centres[(rng.random(len(centres)) < chance[at]) & (depth[at] > 28) & (cell[at] >= 0)],
        look.membrane + 6,
    )


def _draw_vesicles(space: Space, image: Image, centres: Points, grey: float) -> None:
    """Draw rings some 40 nm wide around `centres` (n, 3) in nm."""
    half = np.ceil(30 / np.array(space.voxel_size)).astype(int)
    stamp = np.indices(tuple(2 * half + 1)).reshape(3, -1).T - half
    voxels = np.rint(centres[:, None] / space.voxel_size).astype(int) + stamp
    radius = np.sqrt(((voxels * space.voxel_size - centres[:, None]) ** 2).sum(-1))
    inside = ((voxels >= 0) & (voxels < space.shape)).all(-1)
    shade = np.zeros(space.shape, np.float32)
    np.maximum.at(shade, tuple(voxels[inside].T), np.exp(-(((radius[inside] - 15) / 9) ** 2)).astype(np.float32))
    image -= (image - grey) * 0.9 * shade


def draw_organelles(
    space: Space, image: Image, organelles: list[Tube], organelle: Index, surface: Image, look: Look
) -> None:
    """Draw mitochondria with double membrane and cristae, granular lysosomes, vacuoles, lipid droplets and nuclei."""
    rng, count = space.rng, len(organelles)
    at = np.flatnonzero(surface < 15)
    index, depth = organelle.flat[at], -surface.flat[at]
    kinds = np.array([o.kind for o in organelles])
    nucleus = (look.cytoplasm - 15, look.cytoplasm + 5)
    low, high = np.array([look.matrix, look.lysosome, look.vacuole, look.lipid, nucleus])[kinds].T
    kind, value = kinds[index], rng.uniform(low, high)[index]
    value += np.array([5, 16, 5, 2, 8])[kind] * space.noise(40.0).flat[at]
    waves = rng.standard_normal((3, count))
    waves *= 2 * np.pi / (np.linalg.norm(waves, axis=0) * rng.uniform(*look.cristae_period, count))
    phase = (space.places.reshape(3, -1)[:, at] * waves[:, index]).sum(0) + 2.2 * space.noise(160.0).flat[at]
    cristae = np.sin(phase) * np.clip(1 + space.noise(120.0).flat[at], 0, 1.5) * np.clip(depth / 10 - 1.5, 0, 1)
    ring = np.exp(-(((depth - 5) / 7) ** 2))
    inner = 10 * np.exp(-(((depth - 19) / 6) ** 2)) + rng.uniform(*look.cristae, count)[index] * cristae
    single = np.isin(kind, (Kind.VACUOLE, Kind.NUCLEUS)) * (look.vacuole[1] - look.membrane - 39) * -ring
    value += np.where(kind == Kind.MITOCHONDRION, inner - look.outline * ring, single)
    if (kinds == Kind.NUCLEUS).any():
        chromatin = np.clip(space.noise(260.0).flat[at] - 0.3, 0, 1) + np.exp(-((depth / 90) ** 2))
        value -= np.where(kind == Kind.NUCLEUS, 0.35 * (look.cytoplasm - look.membrane) * chromatin, 0)
    image.flat[at] += (value - image.flat[at]) * np.clip(0.5 + depth / 8, 0, 1)
