"""Plots in the colours of napari's theme."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import pyqtgraph as pg
from napari.utils.theme import get_theme
from qtpy.QtWidgets import QWidget

if TYPE_CHECKING:
    import napari.viewer

__all__ = ["follow_theme"]


def follow_theme(
    owner: QWidget,
    viewer: napari.viewer.Viewer,
    ground: Any,
    plots: Sequence[Any],
    also: Callable[[str], None] = lambda _: None,
) -> None:
    """Draw plots in the colours of the viewer's theme, now and whenever it changes.

    Parameters
    ----------
    owner : QWidget
        As long as this is there.
    viewer : napari.viewer.Viewer
        Of the theme.
    ground : pyqtgraph.PlotWidget or GraphicsLayoutWidget
        Gets the colour of the background.
    plots : sequence of pyqtgraph.PlotWidget or PlotItem
        Their axes get that of texts.
    also : callable
        Called with the colour of texts, for what else there is.
    """

    def draw(event: Any = None) -> None:
        theme = get_theme(viewer.theme)
        text = theme.text.as_hex()
        ground.setBackground(theme.background.as_hex())
        for plot in plots:
            for side in ("left", "bottom"):
                plot.getAxis(side).setPen(pg.mkPen(text, width=1))
                plot.getAxis(side).setTextPen(text)
        also(text)

    emitter = viewer.events.theme
    emitter.connect(draw)
    owner.destroyed.connect(lambda: emitter.disconnect(draw))
    draw()
