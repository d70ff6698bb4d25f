"""Compile the engine of the page that `export --format web` writes: core/export/web/engine.c to kdunet.wasm beside it.

    python scripts/wasm.py

It needs Debian 12's emscripten 3.1.6 (`apt-get install emscripten`), with which the module in the repository is made:
another version writes other bytes. Users need none of it, as the module is in the package.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

FOLDER = Path(__file__).parents[1] / "src/napari_kdunet/core/export/web"
VERSION = "3.1.6"
EXPORTED = ("bytes", "open", "probability", "ratio", "turned", "unit")
FLAGS = (
    "-std=c99",
    "-O3",
    "-msimd128",
    "--no-entry",
    "-sSTANDALONE_WASM",
    "-sFILESYSTEM=0",
    "-sALLOW_MEMORY_GROWTH",
    "-sMAXIMUM_MEMORY=4GB",
    "-sEXPORTED_FUNCTIONS=" + ",".join(f"_kdunet_{name}" for name in EXPORTED),
    "-Wl,--export=__heap_base",
)


def compiler() -> str:
    """Return the version of emscripten that is installed; empty where there is none."""
    try:
        words = subprocess.run(["emcc", "--version"], capture_output=True, text=True, check=True).stdout.split()
    except (OSError, subprocess.CalledProcessError):
        return ""
    return next((word for word in words if word[0].isdigit()), "")


def compiled() -> bytes:
    """Return the compiled module."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "kdunet.wasm"
        subprocess.run(["emcc", *FLAGS, "engine.c", "-o", out], cwd=FOLDER, check=True)
        return out.read_bytes()


if __name__ == "__main__":
    if compiler() != VERSION:
        sys.exit(f"emscripten {VERSION} is what the module is made with; here is {compiler() or 'none'}.")
    (FOLDER / "kdunet.wasm").write_bytes(compiled())
