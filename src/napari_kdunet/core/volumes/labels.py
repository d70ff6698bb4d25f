"""What the values of a labels volume mean."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from napari_kdunet.core.errors import LabelsError

__all__ = ["class_index", "class_shares"]


def class_index(labels: NDArray[Any], classes: int = 2, ignore: int | None = None) -> NDArray[np.int16]:
    """Class of each pixel, -1 where nobody has looked.

    With two classes any non-zero label is foreground, so instance ids will do. Where `ignore` is 0 (sparse scribbles:
    unpainted means not looked at), labels start at 1 for the background, 2 for the first class.

    Parameters
    ----------
    labels : ndarray
        Integers or bool, any shape.
    classes : int
        Classes, background included.
    ignore : int, optional
        Label value of pixels that nobody has looked at.

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


def class_shares(labels: NDArray[Any], classes: int = 2, ignore: int | None = None) -> NDArray[np.float32]:
    """Class shares of a YX labels slice: (C, Y, X) float32, one-hot, and 0 throughout where nobody has looked."""
    index = class_index(labels, classes, ignore)
    shares: NDArray[np.float32] = (index == np.arange(classes).reshape(-1, 1, 1)).astype(np.float32)
    return shares
