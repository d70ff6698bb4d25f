"""The only import of Numba, which makes it ignore the settings of the current folder; see `available`."""

from __future__ import annotations

import os

from napari_kdunet.core.kernels.available import is_available

if not is_available():
    raise ImportError("there is no Numba, or .numba_config.yaml in this folder has settings for it")

from numba import njit, types
from numba.core import config
from numba.extending import intrinsic

__all__ = ["can_cache", "copy", "intrinsic", "njit", "types"]

config._config_fname = os.devnull  # whoever imported it before us may have been in another folder
config.reload_config()  # type: ignore[no-untyped-call]


def can_cache() -> bool:
    """Return whether Numba has a folder to keep compiled code in: beside these files, or else the user's."""
    try:
        njit(cache=True)(lambda: None)
    except RuntimeError:
        return False
    return True


@njit(nogil=True, cache=can_cache())
def copy(source, target):  # type: ignore[no-untyped-def]
    """Copy a line. A slice assignment would take long to compile, with all its messages about shapes that differ."""
    for i in range(len(target)):
        target[i] = source[i]
