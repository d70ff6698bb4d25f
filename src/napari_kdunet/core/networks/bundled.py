"""The models that come with the package; torch is not imported, so that a window can list them at once."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

__all__ = ["bundled_models"]


def bundled_models() -> dict[str, Path]:
    """Return the names and files of the models that come with the package."""
    folder = Path(str(resources.files("napari_kdunet"))) / "models"
    return {path.stem: path for path in sorted(folder.glob("*.safetensors"))}
