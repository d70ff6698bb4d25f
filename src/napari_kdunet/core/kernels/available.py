"""Whether the compiled kernels can be had: Numba is installed, and this folder does not meddle with it.

Numba reads ``.numba_config.yaml`` of the current folder, when it is imported and whenever it compiles. That can name a
folder as its cache, from which it takes compiled code; and a folder of images may be a stranger's.
"""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path

__all__ = ["is_available"]


def is_available() -> bool:
    """Whether Numba is installed, and has been imported already or can be from this folder."""
    return find_spec("numba") is not None and ("numba" in sys.modules or not Path(".numba_config.yaml").exists())
