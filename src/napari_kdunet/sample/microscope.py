"""From grey values to 8 bits: blur, noise, flicker, and the faults of preparation and microscope."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from napari_kdunet.sample.geometry import Image, Space
from napari_kdunet.sample.look import Look

__all__ = ["acquire"]


def acquire(space: Space, image: Image, look: Look) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """Return the image in 8 bits, with a few very noisy slices, and where it shows the sample; both (Z, Y, X)."""
    rng, slices = space.rng, (len(image), 1, 1)
    image = ndimage.gaussian_filter(image, [look.blur / v for v in space.voxel_size])
    shot = look.shot * np.sqrt(np.maximum(image, 10) / 140) * rng.standard_normal(image.shape, np.float32)
    shot += look.grain * ndimage.gaussian_filter(rng.standard_normal(image.shape, np.float32), (0, 0.8, 0.8))
    noisy = np.where(rng.random(slices) < 0.04, 2.5, rng.uniform(0.9, 1.1, slices))
    gain, offset = rng.normal(1, look.flicker, slices), rng.normal(0, look.drift, slices)
    seen = (image + noisy * shot) * gain + offset
    sample = np.ones(image.shape, np.bool_)
    for z, shown in enumerate(seen):
        _spoil(shown, sample[z], look, rng)
    return np.clip(np.rint(seen), 0, 255).astype(np.uint8), sample


def _spoil(shown: NDArray[np.float64], sample: NDArray[np.bool_], look: Look, rng: np.random.Generator) -> None:
    """Add knife marks, folds, charging, shading and a frame in place; `sample` becomes False in the frame."""
    for _ in range(rng.poisson(look.knife_marks) if look.knife_marks else 0):
        shown += rng.normal(0, 30) * (np.abs(_from_a_line(shown, rng)) < rng.uniform(0.5, 2))
    for _ in range(rng.poisson(look.folds) if look.folds else 0):
        shown -= rng.uniform(40, 100) * np.exp(-((_from_a_line(shown, rng) / rng.uniform(3, 12)) ** 2))
    if look.charging:
        clouds = ndimage.gaussian_filter(rng.standard_normal(shown.shape), 40)
        streaks = ndimage.gaussian_filter(rng.standard_normal((len(shown), 1)), 2)
        for fault in (clouds, streaks):
            shown += look.charging * np.clip(fault / fault.std() - 0.7, 0, 2)
    if look.shading:
        slope = _from_a_line(shown, rng)
        shown += look.shading * slope / np.abs(slope).max()
    if look.frame and rng.random() < look.frame:
        edges = [_from_a_line(shown, rng, quarter) for quarter in range(4)]
        sample &= np.min(edges, axis=0) > -0.4 * min(shown.shape)
        shown[~sample] = rng.choice([0, 255])


def _from_a_line(
    shown: NDArray[np.float64], rng: np.random.Generator, quarter: int | None = None
) -> NDArray[np.float64]:
    """Return signed distances in pixels from a random line; with `quarter`, from one near the middle at that angle."""
    angle = rng.uniform(0, np.pi) if quarter is None else rng.normal(0, 0.1) + quarter * np.pi / 2
    spread = 0.3 if quarter is None else 0.05
    y, x = (np.arange(n) - n / 2 + spread * n * rng.standard_normal() for n in shown.shape)
    return np.sin(angle) * y[:, None] + np.cos(angle) * x
