"""Synthetic volumes: tissue, its labels, and the microscope."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from napari_kdunet.sample.drawing import draw_cells, draw_organelles, draw_synapses, myelin_sheaths
from napari_kdunet.sample.geometry import Index, Triple, grow_neurites, paint, warped_space
from napari_kdunet.sample.look import Look
from napari_kdunet.sample.microscope import acquire
from napari_kdunet.sample.organelles import Kind, fit_organelles, place_organelles

__all__ = ["VOXEL_SIZE", "synthetic_em", "synthetic_family"]

VOXEL_SIZE: Triple = (10.0, 10.0, 10.0)  # nm, ZYX; the default
_GLIA = 30.0  # nm from the nearest neurite beyond which the gap is glia


def synthetic_em(
    shape: tuple[int, int, int] = (48, 256, 256),
    *,
    voxel_size: Triple = VOXEL_SIZE,
    seed: int = 0,
    instances: bool = False,
    look: Look | None = None,
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
        The same arguments and seed give the same bytes.
    instances
        Number the mitochondria instead of marking them.
    look
        Tissue, stain and microscope; by default those of `Look()`.

    Returns
    -------
    raw
        uint8, `shape`. Membranes and organelles are dark, unless `look` has it otherwise.
    labels
        uint8, `shape`: 1 = mitochondrion (there is always some), 0 = anything else. With `instances` uint16: each
        connected visible part of a mitochondrion has its own id, from 1.

    Raises
    ------
    ValueError
        If the shape is too small or a voxel size is not in (0, 100].
    """
    if len(shape) != 3 or any(n < least for n, least in zip(shape, (1, 32, 32), strict=True)):
        raise ValueError(f"shape must be ZYX and at least (1, 32, 32), not {shape}")
    if len(voxel_size) != 3 or not all(0 < v <= 100 for v in voxel_size):
        raise ValueError(f"voxel_size must be three numbers in (0, 100] nm, ZYX, not {voxel_size}")
    look = look or Look()
    space = warped_space(shape, voxel_size, np.random.default_rng(seed))
    neurites = grow_neurites(space, look.neurite_radius, look.soma)
    cell, best, second = paint(space, neurites, 130.0)
    cell[best > _GLIA] = -1
    depth = np.minimum(np.abs(best - _GLIA), np.where(cell < 0, second, (second - best) / 2))  # nm to the membrane
    sheath = myelin_sheaths(neurites, look.myelin, space.rng)
    organelles = place_organelles(space, neurites, look)
    organelle, surface = fit_organelles(space, organelles, cell, depth - sheath[cell], look.mitochondria)
    image, vesicular = draw_cells(space, neurites, cell, depth, sheath, look)
    draw_synapses(space, image, np.where(surface < 15, -1, cell), depth, vesicular & (sheath == 0), look)
    draw_organelles(space, image, organelles, organelle, surface, look)
    raw, sample = acquire(space, image, look)
    labels = (surface < 0) & sample & (np.array([o.kind for o in organelles])[organelle] == Kind.MITOCHONDRION)
    return raw, _numbered(labels, organelle) if instances else labels.astype(np.uint8)


def _numbered(labels: NDArray[np.bool_], organelle: Index) -> NDArray[np.uint16]:
    """Return ids, from 1, of the connected parts (26 neighbours) of each organelle."""
    ids = np.zeros(labels.shape, np.uint16)
    for index in np.unique(organelle[labels]):
        parts, _ = ndimage.label(labels & (organelle == index), np.ones((3, 3, 3)))
        ids[parts > 0] = parts[parts > 0] + ids.max()
    return ids


def synthetic_family(
    members: int, shape: tuple[int, int, int] = (2, 384, 384), *, seed: int = 0
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Make a stack in which tissue, stain and microscope change every few slices, to learn from beside real images.

    Parameters
    ----------
    members
        Number of volumes in the stack, each with its own look (`Look.drawn`).
    shape
        Shape of each volume, ZYX. Slices are 40 nm apart; pixels are 8 to 12 nm wide, to be treated as 10 nm.
    seed
        The same arguments and seed give the same bytes.

    Returns
    -------
    raw, labels
        uint8, (members * Z, Y, X); labels as in `synthetic_em`.

    Raises
    ------
    ValueError
        As in `synthetic_em`.
    """
    stacks = []
    for child in np.random.SeedSequence(seed).spawn(members):
        rng = np.random.default_rng(child)
        look, pixel = Look.drawn(rng), rng.uniform(8, 12)
        stacks.append(synthetic_em(shape, voxel_size=(40, pixel, pixel), seed=int(rng.integers(2**31)), look=look))
    raw, labels = (np.concatenate(parts) for parts in zip(*stacks, strict=True))
    return raw, labels
