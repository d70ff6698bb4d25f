"""Write docs/segment.html: the web page of the bundled 2-Unet, with a synthetic example.

python scripts/segment_page.py
"""

from __future__ import annotations

from pathlib import Path

from napari_kdunet import core
from napari_kdunet.sample import synthetic_em

PAGE = Path(__file__).parents[1] / "docs" / "segment.html"
VOXEL_SIZE = (5.0, 5.0, 5.0)  # nm


def write(path: Path) -> None:
    """Write the page."""
    raw, _ = synthetic_em((3, 320, 320), voxel_size=VOXEL_SIZE, seed=3)
    example = core.open_volume(raw, voxel_size=VOXEL_SIZE)
    core.export_web(core.load_model("lucchi-2unet"), path, example, name="lucchi-2unet")


if __name__ == "__main__":
    write(PAGE)
