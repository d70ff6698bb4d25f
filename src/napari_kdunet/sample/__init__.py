"""Synthetic electron-microscopy volumes: neuropil with labelled mitochondria, made on the spot from a seed.

Everything is geometry in nanometres. Neurites are tubes, grown where there is room; a voxel belongs to the tube whose
surface is nearest, voxels far from all tubes are glia, and membranes run in between. Organelles are tubes inside the
tubes. A smooth warp bends everything. A simulated microscope then adds blur, noise, and a contrast that flickers from
slice to slice.
"""

from napari_kdunet.sample.look import Look
from napari_kdunet.sample.volume import VOXEL_SIZE, synthetic_em, synthetic_family

__all__ = ["VOXEL_SIZE", "Look", "synthetic_em", "synthetic_family"]
