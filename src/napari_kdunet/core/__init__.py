"""Train, distil and apply k-Unets from a script: torch and numpy, no napari, no Qt.

>>> from napari_kdunet import core
>>> teacher = core.train(raw, labels, core.TrainConfig(k=16, minutes=5))        # doctest: +SKIP
>>> student = core.distill(teacher, raw, labels, core.DistillConfig(k=2))       # doctest: +SKIP
>>> core.evaluate(core.predict(student, raw) > 0.5, labels).iou                 # doctest: +SKIP

The public names stand in ``__init__.pyi``; each is imported when it is first used, so that this import stays light.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
