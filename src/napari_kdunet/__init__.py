"""Train a good U-Net on electron-microscopy volumes and distil it into a tiny k-Unet.

Importing this package imports neither torch nor napari; scripts start from `napari_kdunet.core`.
"""

__version__ = "0.1.0"
