"""Scoring a teacher on the slices that its student is validated on, by the same measure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from napari_kdunet.core.config import DistillConfig
from napari_kdunet.core.data.teachers import read_probability
from napari_kdunet.core.devices import pick_device
from napari_kdunet.core.metrics import Curve
from napari_kdunet.core.networks.model import Model
from napari_kdunet.core.prediction.tiler import Tiler, foreground
from napari_kdunet.core.volumes.labels import class_index
from napari_kdunet.core.volumes.volume import Volume

__all__ = ["iter_score"]


def iter_score(
    source: Model | Volume, raw: Volume, labels: Volume, slices: Sequence[int], config: DistillConfig
) -> Iterator[Curve]:
    """Score a model, or a probability volume, on some slices, slice by slice.

    Parameters
    ----------
    source : Model or Volume
        As `as_teacher` gives it.
    raw, labels : Volume
        ZYX, of one shape.
    slices : sequence of int
        The z to score on, as in `Started.val_slices`.
    config : DistillConfig
        Classes, ignore value, device, threads, and over how many views a model is averaged.

    Yields
    ------
    Curve
        One and the same, after each slice: all slices up to there.
    """
    curve = Curve()
    device, views = pick_device(config.device).type, config.teacher_views
    tiler = Tiler.of(source, raw, device, config.threads, views) if isinstance(source, Model) else None
    for z in slices:
        if tiler is None:
            assert isinstance(source, Volume)
            truth = class_index(labels.read(z), config.classes, config.ignore)
            curve.add(read_probability(source, z), truth)
        else:
            for y, x in tiler.windows(raw.shape):
                truth = class_index(labels.read(z, slice(*y), slice(*x)), config.classes, config.ignore)
                curve.add(foreground(tiler.logits(raw, z, y, x)), truth)
        yield curve
