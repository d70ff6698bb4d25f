"""What is learnt from: an image layer, the labels of some of its slices, and what unpainted pixels mean."""

from __future__ import annotations

from typing import TYPE_CHECKING

from napari.layers import Image, Labels
from qtpy.QtWidgets import QCheckBox, QWidget

from napari_kdunet.widgets.layers import LayerChooser, volume_of

if TYPE_CHECKING:
    import napari.viewer

    from napari_kdunet.core import Volume

__all__ = ["Inputs"]

_SPARSE_TIP = (
    "Ticked: what is not painted (0) was not looked at and does not count; paint 1 = background, 2 = mitochondrion.\n"
    "Not ticked: 0 = background, anything else = mitochondrion, and slices without any label do not count."
)


class Inputs:
    """The controls for image, labels and sparse mode.

    Parameters
    ----------
    viewer : napari.viewer.Viewer
        Where the layers are.
    no_labels : str
        What to call having no labels, where that is allowed; not allowed if empty.
    """

    def __init__(self, viewer: napari.viewer.Viewer, no_labels: str = "") -> None:
        self.image = LayerChooser(viewer, Image)
        self.image.setToolTip("The electron-microscopy image: grey values, 2-D or 3-D.")
        self.labels = LayerChooser(viewer, Labels, no_labels)
        self.labels.setToolTip("Labels of some or all of its slices, of the same shape.")
        self.sparse = QCheckBox("unpainted = not looked at")
        self.sparse.setToolTip(_SPARSE_TIP)
        self.rows: dict[str, QWidget] = {"Image": self.image, "Labels": self.labels, "": self.sparse}

    @property
    def ignore(self) -> int | None:
        """The label value of pixels that nobody has looked at."""
        return 0 if self.sparse.isChecked() else None

    def volumes(self) -> tuple[Volume, Volume | None]:
        """Image and labels.

        Raises
        ------
        VolumeError
            If there is no image, or one of the layers cannot be used.
        """
        image = volume_of(self.image.wanted())
        labels = self.labels.layer if self.labels.none else self.labels.wanted()
        return image, None if labels is None else volume_of(labels)
