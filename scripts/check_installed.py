"""Checks an installed wheel: run it with the Python of a fresh environment that holds nothing else.

Exits with 1 and one line if something that a user relies on does not hold.
"""

import importlib.metadata
import importlib.resources
import importlib.util
import sys
from pathlib import Path

PARAMETERS_OF_THE_PAPER = 30_902  # the 2-Unet with batch normalisation


def check(holds: bool, what: str) -> None:
    if not holds:
        sys.exit(f"wheel check: {what}")


def main() -> None:
    import napari_kdunet

    package = Path(napari_kdunet.__file__).resolve()
    check(package.is_relative_to(Path(sys.prefix).resolve()), f"{package} is not what was installed")
    check("torch" not in sys.modules, "importing napari_kdunet imports torch")
    check(importlib.metadata.version("napari-kdunet") == napari_kdunet.__version__, "the metadata has another version")

    for name in ("napari", "qtpy", "magicgui", "pyqtgraph", "PyQt5", "PyQt6", "PySide6"):
        check(importlib.util.find_spec(name) is None, f"the base install brings {name}")

    (entry,) = importlib.metadata.entry_points(group="napari.manifest", name="napari-kdunet")
    manifest = importlib.resources.files(entry.module) / entry.attr
    check(manifest.is_file(), f"the manifest {entry.value} is not in the wheel")

    from napari_kdunet import core

    learnable = sum(p.numel() for p in core.KUNet(k=2, bn=True).parameters() if p.requires_grad)
    check(learnable == PARAMETERS_OF_THE_PAPER, f"the 2-Unet has {learnable} parameters")

    names = {*(f"lucchi-{k}unet" for k in (1, 2, 4)), *(f"mito-{k}unet" for k in (1, 2, 4, 16))}
    check(set(core.bundled_models()) == names, f"the bundled models are {set(core.bundled_models())}")
    check(core.load_model("lucchi-2unet").parameter_count == PARAMETERS_OF_THE_PAPER, "lucchi-2unet is another network")
    card = importlib.resources.files("napari_kdunet") / "models" / "README.md"
    check(card.is_file(), "the models' card is not in the wheel")
    print(f"wheel check: napari-kdunet {napari_kdunet.__version__} works in an empty environment")


if __name__ == "__main__":
    main()
