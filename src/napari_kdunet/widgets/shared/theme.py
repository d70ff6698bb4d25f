"""Plots in the colours of napari's theme."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import pyqtgraph as pg
from napari.utils.theme import get_theme
from qtpy.compat import isalive
from qtpy.QtCore import QObject
from qtpy.QtWidgets import QWidget

if TYPE_CHECKING:
    import napari.viewer

__all__ = ["FollowTheme"]


class FollowTheme(QObject):
    """Draws plots in the colours of the viewer's theme, now and whenever it changes.

    The viewer's event is connected weakly, as in `Panel`.

    Parameters
    ----------
    owner : QWidget
        Parent of this object; the plots follow the theme as long as it exists.
    viewer : napari.viewer.Viewer
        Viewer whose theme is followed.
    ground : pyqtgraph.PlotWidget or GraphicsLayoutWidget
        Widget that gets the colour of the background.
    plots : sequence of pyqtgraph.PlotWidget or PlotItem
        Plots whose axes get the colour of texts.
    also : callable
        Called with the colour of texts, to colour anything else.
    """

    def __init__(
        self,
        owner: QWidget,
        viewer: napari.viewer.Viewer,
        ground: Any,
        plots: Sequence[Any],
        also: Callable[[str], None] = lambda _: None,
    ) -> None:
        super().__init__(owner)
        self._viewer, self._ground, self._plots, self._also = viewer, ground, plots, also
        viewer.events.theme.connect(self._draw)
        self._draw()

    def _draw(self, event: Any = None) -> None:
        if not isalive(self):
            return
        theme = get_theme(self._viewer.theme)
        text = theme.text.as_hex()
        self._ground.setBackground(theme.background.as_hex())
        for plot in self._plots:
            for side in ("left", "bottom"):
                plot.getAxis(side).setPen(pg.mkPen(text, width=1))
                plot.getAxis(side).setTextPen(text)
        self._also(text)
