"""Actions of clicks and strokes on the objects, by the chosen tool."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from napari.layers import Labels, Layer

from napari_kdunet.core import LabelsError
from napari_kdunet.widgets.proofreading import edits

__all__ = ["STROKES", "TOOLS", "Tools", "iter_drag"]

TOOLS = {
    "off": "Clicks work as usual in napari.",
    "merge": "Click on two objects: the second becomes part of the first.",
    "split": "Click, or draw, in one object twice, once on either side of the cut.",
    "cut": "Draw a line right across an object: it is split along it.",
    "add": "Click on foreground of the mask or the probability that is not an object yet.",
    "delete": "Click on an object to delete it.",
}
STROKES = ("split", "cut")  # tools for which a drag is a stroke, and does not pan
_TREMBLE = 3  # screen pixels that the mouse may move during a click
_SECOND = {
    "merge": "Now click on the object to merge into it.",
    "split": "Now click or draw on the other side of the cut.",
}


class Tools:
    """The tools of proofreading.

    Parameters
    ----------
    source : callable
        Returns the layer from which objects are added, and the probability above which it is foreground.

    Attributes
    ----------
    first : list of points or None
        First of the two strokes of a tool that takes two, once it is drawn.
    """

    def __init__(self, source: Callable[[], tuple[Layer, float]]) -> None:
        self.source = source
        self.first: list[Any] | None = None

    def hint(self, tool: str) -> str:
        """Return what the user has to do next; empty while no tool is chosen."""
        if tool == "off":
            return ""
        return TOOLS[tool] if self.first is None else _SECOND[tool]

    def use(self, tool: str, layer: Labels, stroke: Sequence[Any]) -> None:
        """Use a tool along a stroke of one point or more, in pixels of the layer.

        Raises
        ------
        KDUNetError
            If the tool cannot be used there; nothing has changed then.
        """
        number = edits.object_along(layer, stroke)
        if tool in ("merge", "split"):
            if not number:
                raise LabelsError("there is no object at that point: click on one.")
            layer.selected_label = number
            if self.first is None:
                self.first = list(stroke)
                return
            first, self.first = self.first, None
            if tool == "merge":
                kept = edits.object_along(layer, first)
                edits.merge_objects(layer, kept, number)
                layer.selected_label = kept
            else:
                edits.split_object(layer, first, stroke)
        elif tool == "cut":
            edits.cut_object(layer, stroke)
            layer.selected_label = number
        elif tool == "delete":
            edits.delete_objects(layer, [number])
        elif tool == "add":
            layer.selected_label = edits.add_object(layer, self.source()[0], stroke[0], self.source()[1])


def iter_drag(layer: Labels, event: Any, done: Callable[[list[Any]], None]) -> Iterator[None]:
    """Follow the mouse from press to release, for `mouse_drag_callbacks`.

    `done` is called with the points of the stroke in pixels of the layer; with one point if the mouse hardly moved.
    """
    start = np.array(event.pos)
    points, moved = [layer.world_to_data(event.position)], 0.0
    yield
    while True:
        moved = max(moved, float(np.abs(np.array(event.pos) - start).max()))
        points.append(layer.world_to_data(event.position))
        if event.type != "mouse_move":
            break
        yield
    done(points if moved > _TREMBLE else points[:1])
