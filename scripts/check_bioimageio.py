"""Checks a bioimage.io package with the format's library; bioimageio.core and napari-kdunet must be installed.

Exits with 1 if the library does not find the package valid, or either kind of weights does not give the test output.
"""

import sys
import tempfile
from pathlib import Path

from bioimageio.core import test_model

from napari_kdunet import core
from napari_kdunet.sample import synthetic_em


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        example = core.open_volume(synthetic_em((1, 320, 320))[0], voxel_size=(10, 10, 10))
        package = Path(folder) / "m.zip"
        core.export_bioimageio(core.load_model("lucchi-1unet"), package, example, author="Nobody", license="MIT")
        summary = test_model(package)
    if summary.status != "passed":
        sys.exit(summary.format())
    print("bioimage.io check: the package is valid, and both kinds of weights give its test output")


if __name__ == "__main__":
    main()
