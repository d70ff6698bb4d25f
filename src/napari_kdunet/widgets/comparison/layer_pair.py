"""Choose the two layers to compare; until the user chooses, the topmost layer and the lowest labels are taken."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from napari.layers import Image, Labels, Layer
from qtpy.QtCore import QObject, Signal
from qtpy.QtWidgets import QWidget

from napari_kdunet.widgets.shared.layers import LayerChooser

if TYPE_CHECKING:
    import napari.viewer

__all__ = ["LayerPair"]


class LayerPair(QObject):
    """The layer choosers of prediction and reference.

    Until the user chooses, the prediction is the topmost layer and the reference the lowest labels layer, which often
    is the ground truth.

    Parameters
    ----------
    viewer : napari.viewer.Viewer
        Whose layers.
    owner : QWidget
        Parent of this object.
    """

    changed = Signal()

    def __init__(self, viewer: napari.viewer.Viewer, owner: QWidget) -> None:
        super().__init__(owner)
        self.prediction = LayerChooser(viewer, Layer, accepts=_can_be_compared)
        self.prediction.setToolTip("Labels, or probabilities (0 to 1) as a floating-point image.")
        self.reference = LayerChooser(viewer, Layer, accepts=_can_be_compared)
        self.reference.setToolTip("What to hold it against: the ground truth, or another prediction.")
        self.hold = False  # the user has chosen, or has started a comparison of the default layers
        for chooser in (self.prediction, self.reference):
            chooser.changed.connect(self.changed)
            chooser.activated.connect(self._chosen)
        choose, events = self._choose, viewer.layers.events
        for event in (events.inserted, events.removed):
            event.connect(choose, position="last")  # after the choosers
        self.destroyed.connect(lambda: [event.disconnect(choose) for event in (events.inserted, events.removed)])
        self._choose()

    @property
    def layers(self) -> tuple[Any, Any]:
        """Prediction and reference; None where there is none."""
        return self.prediction.layer, self.reference.layer

    @property
    def has_probability(self) -> bool:
        """Whether one of the layers is an image of probabilities, so that a threshold is needed."""
        return any(isinstance(layer, Image) for layer in self.layers)

    def _chosen(self) -> None:
        self.hold = True

    def _choose(self, event: Any = None) -> None:
        offered = [self.reference.itemData(i) for i in range(self.reference.count())]
        if self.hold or len(offered) < 2:
            return
        under = [layer for layer in offered[:0:-1] if isinstance(layer, Labels)]
        self.prediction.layer, self.reference.layer = offered[0], next(iter(under), offered[-1])


def _can_be_compared(layer: Layer) -> bool:
    """Labels, and images that can be probabilities."""
    return isinstance(layer, Labels) or (isinstance(layer, Image) and not layer.rgb and layer.dtype.kind == "f")
