"""Whether the compiled kernels are available: Numba is installed, and the current folder does not configure it.

Numba reads ``.numba_config.yaml`` of the current folder when it is imported and whenever it compiles. That file can
name a cache folder, from which Numba loads compiled code; and a folder of images may come from a stranger.
"""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path

__all__ = ["is_available"]


def is_available() -> bool:
    """Return whether Numba is installed, and is imported already or can be imported from the current folder."""
    return find_spec("numba") is not None and ("numba" in sys.modules or not Path(".numba_config.yaml").exists())
