"""From label values to class indices and target probabilities."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from napari_kdunet.core.errors import LabelsError

__all__ = ["class_index", "target_probabilities"]


def class_index(labels: NDArray[Any], classes: int = 2, ignore: int | None = None) -> NDArray[np.int16]:
    """Class index of each pixel, -1 where it is unlabelled.

    With two classes any non-zero label is foreground, so instance ids will do. Where `ignore` is 0 (sparse scribbles:
    what is not painted is unlabelled), 1 is the background and 2 the first class.

    Parameters
    ----------
    labels : ndarray
        Integers or bool, any shape.
    classes : int
        Number of classes, background included.
    ignore : int, optional
        Label value of unlabelled pixels.

    Returns
    -------
    ndarray of int16
        0 is background; the shape of `labels`.

    Raises
    ------
    LabelsError
        If a label is negative or, with more than two classes, beyond the last class.
    """
    values = labels.astype(np.int64)
    ignored = np.zeros(labels.shape, bool) if ignore is None else values == ignore
    if ignore == 0:
        values = values - 1
    values[ignored] = 0
    if values.min(initial=0) < 0:
        raise LabelsError(f"labels hold the negative value {values.min()}: name it as the ignore value or remove it.")
    if classes == 2:
        values = (values > 0).astype(np.int64)
    elif values.max(initial=0) >= classes:
        raise LabelsError(f"labels hold the class {values.max()}, but there are {classes} classes from 0 up.")
    values[ignored] = -1
    return values.astype(np.int16)


def target_probabilities(labels: NDArray[Any], classes: int = 2, ignore: int | None = None) -> NDArray[np.float32]:
    """One-hot target probabilities (C, Y, X), float32, of a labels slice (Y, X); all 0 where it is unlabelled."""
    index = class_index(labels, classes, ignore)
    targets: NDArray[np.float32] = (index == np.arange(classes).reshape(-1, 1, 1)).astype(np.float32)
    return targets
