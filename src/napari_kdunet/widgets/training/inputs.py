"""The controls of the training data: an image layer, its labels, and whether unpainted pixels count."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from napari.layers import Image, Labels
from napari.utils.colormaps import CyclicLabelColormap
from qtpy.QtWidgets import QCheckBox, QHBoxLayout, QPushButton, QWidget

from napari_kdunet.widgets.shared.layers import LayerChooser, grid_of, volume_of
from napari_kdunet.widgets.shared.notify import reporting

if TYPE_CHECKING:
    import napari.viewer

    from napari_kdunet.core import Volume

__all__ = ["Inputs", "beside"]

_STROKES = ("transparent", "#CC79A7", "#E69F00")  # background and mitochondrion, unlike the preview's blue (Okabe, Ito)
_BRUSH = 8  # pixels
_SPARSE_TIP = (
    "Ticked: what is not painted (0) was not looked at and does not count; paint 1 = background, 2 = mitochondrion.\n"
    "Not ticked: 0 = background, anything else = mitochondrion, and slices without any label do not count."
)


class Inputs:
    """The controls of image, labels and sparse labels.

    Parameters
    ----------
    viewer : napari.viewer.Viewer
        Where the layers are.
    no_labels : str
        The choice of no labels; if empty, labels are required.
    """

    def __init__(self, viewer: napari.viewer.Viewer, no_labels: str = "") -> None:
        self._viewer = viewer
        self.image = LayerChooser(viewer, Image)
        self.image.setToolTip("The electron-microscopy image: grey values, 2-D or 3-D.")
        self.labels = LayerChooser(viewer, Labels, no_labels)
        self.labels.setToolTip("Labels of some or all of its slices, of the same shape.")
        self.sparse = QCheckBox("unpainted = not looked at")
        self.sparse.setToolTip(_SPARSE_TIP)
        self.strokes_button = QPushButton("New strokes")
        self.strokes_button.setToolTip(
            "Add an empty labels layer on the image and choose it, to paint 1 = background, 2 = mitochondrion;\n"
            "what is not painted does not count, and the eraser takes strokes back."
        )
        self.strokes_button.clicked.connect(self.add_strokes)
        self.rows: dict[str, QWidget] = {
            "Image": self.image,
            "Labels": beside(self.labels, self.strokes_button),
            "": self.sparse,
        }

    @property
    def ignore(self) -> int | None:
        """The label of pixels that are not annotated; None where all are."""
        return 0 if self.sparse.isChecked() else None

    def add_strokes(self) -> None:
        """Add an empty labels layer on the image, choose it, and start to paint."""
        with reporting():
            image = self.image.wanted()
            shape = volume_of(image).shape[-image.ndim :]
            layer = self._viewer.add_labels(
                np.zeros(shape, np.uint8),
                name=f"{image.name} strokes",
                opacity=0.7,
                colormap=CyclicLabelColormap(colors=_STROKES),
                **grid_of(image),
            )
            layer.selected_label, layer.brush_size, layer.mode = 2, _BRUSH, "paint"
            self._viewer.layers.selection.active = layer
            self.labels.layer = layer
            self.sparse.setChecked(True)

    def raw(self) -> Volume:
        """The image; errors as in `volumes`."""
        return volume_of(self.image.wanted())

    def volumes(self) -> tuple[Volume, Volume | None]:
        """Image and labels.

        Raises
        ------
        VolumeError
            If there is no image, or one of the layers cannot be used.
        """
        image = self.raw()
        labels = self.labels.layer if self.labels.none else self.labels.wanted()
        return image, None if labels is None else volume_of(labels)


def beside(*widgets: QWidget) -> QWidget:
    """Put widgets in one row; the first one stretches, and its tooltip is the row's."""
    row = QWidget()
    row.setToolTip(widgets[0].toolTip())
    layout = QHBoxLayout(row)
    layout.setContentsMargins(0, 0, 0, 0)
    for i, widget in enumerate(widgets):
        layout.addWidget(widget, i == 0)
    return row
