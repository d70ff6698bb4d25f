"""The look of a synthetic volume: tissue, stain and microscope as numbers, which can be drawn at random."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

__all__ = ["Look"]

Range = tuple[float, float]


@dataclass(frozen=True)
class Look:
    """A tissue, a stain and a microscope. The defaults resemble FIB-SEM of the hippocampus at 8 bits.

    Grey values are those at 8 bits before noise. From a range, one number per cell or organelle is drawn uniformly.

    Attributes
    ----------
    cytoplasm, cytoplasm_spread
        Mean grey value of the neurites and its standard deviation between neurites.
    dark_neurites
        Share of the thin neurites whose cytoplasm is darker by 60 grey values.
    texture
        Strength of the cytoplasm's unevenness.
    membrane, membrane_width
        Grey value of membranes, and how far they reach in nm.
    reticulum
        How much darker endoplasmic reticulum is than its cell.
    synapses, vesicles
        Synapses per cubic micrometre, and the share of sites in their clusters that hold a vesicle.
    neurite_radius
        Median radius in nm.
    matrix
        Grey values of mitochondria.
    cristae, cristae_period
        How much darker cristae are than the matrix, and their period in nm.
    outline
        How much darker the two membranes around a mitochondrion are.
    mitochondrion_radius
        Radius in nm.
    mitochondria
        Share of the volume that mitochondria fill at most.
    organelles
        Shares of mitochondria, lysosomes, vacuoles and lipid droplets among the organelles of a neurite.
    lysosome, vacuole, lipid
        Grey values of these organelles.
    myelin
        Share of the wide neurites that have a sheath of myelin.
    soma
        Probability of a cell body with a nucleus in or near the field of view.
    blur
        Standard deviation of the Gaussian blur in nm.
    shot, grain
        Strength of white noise, and of noise that is correlated over neighbouring pixels.
    flicker, drift
        Standard deviation, from slice to slice, of gain and of offset (grey values).
    charging, shading
        Strength, in grey values, of bright clouds and streaks, and of uneven illumination.
    knife_marks, folds
        Mean number of each in a slice.
    frame
        Probability that a slice is rotated in a black or white frame.
    """

    cytoplasm: float = 185
    cytoplasm_spread: float = 11
    dark_neurites: float = 0.16
    texture: float = 1
    membrane: float = 66
    membrane_width: float = 13
    reticulum: float = 75
    synapses: float = 9
    vesicles: float = 0.9
    neurite_radius: float = 150
    matrix: Range = (78, 113)
    cristae: Range = (11, 23)
    cristae_period: Range = (38, 60)
    outline: float = 30
    mitochondrion_radius: Range = (100, 175)
    mitochondria: float = 0.075
    organelles: tuple[float, float, float, float] = (0.64, 0.18, 0.18, 0)
    lysosome: Range = (50, 80)
    vacuole: Range = (160, 200)
    lipid: Range = (225, 245)
    myelin: float = 0
    soma: float = 0
    blur: float = 6
    shot: float = 5
    grain: float = 9
    flicker: float = 0.035
    drift: float = 4
    charging: float = 0
    shading: float = 0
    knife_marks: float = 0
    folds: float = 0
    frame: float = 0

    @staticmethod
    def drawn(rng: np.random.Generator) -> Look:
        """Draw one of a wide family: other stains, cells, organelles and sizes, and SEM, TEM or FIB with its faults.

        A network that learns from many of them thus meets looks on both sides of that of a real image (domain
        randomisation: Tobin et al. 2017, arXiv:1703.06907).
        """
        u = rng.uniform
        cytoplasm = u(130, 215)
        membrane = max(cytoplasm - u(60, 150), 15)
        share = u(-0.3, 0.1) if rng.random() < 0.12 else u(0.25, 1.05)  # matrix from cytoplasm (0) to membrane (1)
        darker = max(share * (cytoplasm - membrane), -20)
        plain = abs(darker) < 0.35 * (cytoplasm - membrane)  # then only outline and cristae reveal a mitochondrion
        matrix, cristae = cytoplasm - darker, u(14, 40) if plain else u(0, 35)
        size, few = u(0.6, 1.6), rng.random() < 0.15
        shares = np.array([0.5 if few else 0.65, u(0, 0.3), u(0, 0.3), u(0, 0.2) * (rng.random() < 0.4)])
        mito, lysosome, vacuole, lipid = map(float, shares / shares.sum())
        pale = rng.random() < 0.5

        def often(chance: float, low: float, high: float) -> float:
            """Return a number from `low` to `high` with probability `chance`, else 0."""
            return u(low, high) if rng.random() < chance else 0.0

        return Look(
            cytoplasm=cytoplasm,
            cytoplasm_spread=u(3, 20),
            dark_neurites=u(0, 0.3),
            texture=u(0.3, 1.8),
            membrane=membrane,
            membrane_width=u(9, 20),
            reticulum=u(0, 90),
            synapses=u(0, 14),
            vesicles=u(0.2, 0.95),
            neurite_radius=u(100, 240),
            matrix=(matrix - u(5, 18), matrix + u(5, 18)),
            cristae=(0.6 * cristae, 1.2 * cristae),
            cristae_period=(u(30, 45), u(45, 90)),
            outline=u(25, 60) if plain else u(5, 45),
            mitochondrion_radius=(75 * size, u(120, 190) * size),
            mitochondria=u(0.03, 0.14),
            organelles=(mito, lysosome, vacuole, lipid),
            lysosome=(max(membrane - 30, 10), membrane + u(0, 50)),
            vacuole=(cytoplasm - 25, min(cytoplasm + 35, 245)),
            lipid=(u(215, 235), 245) if pale else (membrane, membrane + 40),
            myelin=often(0.3, 0.1, 0.5),
            soma=float(rng.random() < 0.3),
            blur=u(2, 16),
            shot=u(1, 16),
            grain=u(0, 16),
            flicker=u(0, 0.1),
            drift=u(0, 10),
            charging=often(0.25, 5, 40),
            shading=often(0.4, 5, 40),
            knife_marks=often(0.2, 0.5, 4),
            folds=often(0.15, 0.3, 1),
            frame=often(0.1, 0.3, 1),
        )
