"""A Labels layer of true positives, false positives and false negatives, in colours safe for the colour-blind."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pandas as pd
from napari.utils import DirectLabelColormap

from napari_kdunet.widgets.shared.layers import PREVIEW, grid_of, set_grid

if TYPE_CHECKING:
    import napari.viewer
    from napari.layers import Layer

    from napari_kdunet.widgets.comparison.comparison import Comparison

__all__ = ["COLOURS", "LEGEND", "Overlay"]

#: Colours by label: in both, in the prediction only, in the reference only. Okabe and Ito (2008), varied in lightness.
COLOURS: dict[int | None, str] = {1: "#56B4E9", 2: "#D55E00", 3: "#F0E442"}
_NAMES = {
    1: ("both", "true positive"),
    2: ("only the prediction", "false positive"),
    3: ("only the reference", "false negative"),
}
#: What the colours mean, as rich text.
LEGEND = "<br>".join(f'<span style="color:{COLOURS[i]}">■</span> {a} ({b})' for i, (a, b) in _NAMES.items())


class Overlay:
    """A lazy Labels layer that shows a comparison; a slice is computed when it comes on screen.

    Parameters
    ----------
    viewer : napari.viewer.Viewer
        Viewer to show it in.

    Attributes
    ----------
    layer : napari.layers.Labels or None
        The layer, while it is shown.
    """

    def __init__(self, viewer: napari.viewer.Viewer) -> None:
        self.viewer = viewer
        self.layer: Any = None

    def show(self, comparison: Comparison, like: Layer) -> None:
        """Show a comparison on the grid of the layer `like` (scale, …), or update the one that is shown."""
        data = comparison.overlay()
        data = data if like.ndim == 3 else data[0]
        if self.layer is not None and self.layer in self.viewer.layers:
            self.layer.data = data
            set_grid(self.layer, grid_of(like))
            return
        selected = set(self.viewer.layers.selection)
        colours = {None: "transparent", 0: "transparent", **COLOURS}
        names = [f"{one} ({other})" for one, other in _NAMES.values()]
        self.layer = self.viewer.add_labels(
            data,
            name="comparison",
            opacity=0.6,
            colormap=DirectLabelColormap(color_dict=colours),
            features=pd.DataFrame({"index": list(_NAMES), "in": names}),
            metadata={PREVIEW: True},
            **grid_of(like),
        )
        self.viewer.layers.selection = selected

    def hide(self) -> None:
        """Remove the layer."""
        layer, self.layer = self.layer, None
        if layer is not None and layer in self.viewer.layers:
            self.viewer.layers.remove(layer)
