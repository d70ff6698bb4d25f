"""Train, distil and apply k-Unets from a script: torch and numpy, no napari, no Qt.

>>> from napari_kdunet import core
>>> teacher = core.train(raw, labels, core.TrainConfig(k=16, minutes=5))        # doctest: +SKIP
>>> student = core.distill(teacher, raw, labels, core.DistillConfig(k=2))       # doctest: +SKIP
>>> core.evaluate(core.predict(student, raw, output="labels"), labels).iou      # doctest: +SKIP

The public names are listed in ``__init__.pyi``; each is imported when it is first used, so that importing this package
stays cheap.
"""

import os

import lazy_loader

# OpenMP threads that wait must sleep, not spin: if anything else uses the cores, such as the drawing of a window,
# spinning makes a training step several times slower. This takes effect only if torch has not been imported yet.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
