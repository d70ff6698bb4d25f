"""What a layer of objects tells the panel *Objects*, as long as that works on it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any
from weakref import WeakMethod

from napari.layers import Labels

__all__ = ["LayerWatch"]

_HISTORIES = ("_undo_history", "_redo_history")  # of a napari layer


class LayerWatch:
    """Tells of what happens to a layer, until `detach`.

    All is connected weakly: the layer, which may outlive the panel, keeps neither this nor the panel.

    Parameters
    ----------
    layer : napari.layers.Labels
        The objects.
    edited, selected, resized : callable
        Methods, called when ids were changed (painted, corrected, undone or redone), when another object was selected,
        and when the scale or its units were set.
    mouse : callable
        A method for `mouse_drag_callbacks`.
    """

    def __init__(
        self,
        layer: Labels,
        *,
        edited: Callable[..., None],
        selected: Callable[..., None],
        resized: Callable[..., None],
        mouse: Callable[[Labels, Any], Iterator[None]],
    ) -> None:
        self.layer, self._edited = layer, edited
        self._history = self._lengths()
        self._follow = _weakly(mouse)
        events = layer.events
        self._connected: list[tuple[Any, Callable[..., None]]] = [
            (events.selected_label, selected),
            (events.labels_update, edited),
            (events.data, edited),
            (events.set_data, self._drawn_again),
            (events.scale, resized),
            (events.units, resized),
        ]
        for emitter, callback in self._connected:
            emitter.connect(callback)
        layer.mouse_drag_callbacks.append(self._follow)

    def detach(self) -> None:
        """Tell of nothing any more."""
        for emitter, callback in self._connected:
            emitter.disconnect(callback)
        self._connected = []
        if self._follow in self.layer.mouse_drag_callbacks:
            self.layer.mouse_drag_callbacks.remove(self._follow)

    def _lengths(self) -> list[int]:
        return [len(getattr(self.layer, name, ())) for name in _HISTORIES]

    def _drawn_again(self, *_: Any) -> None:
        """Take notice of an undo or redo: napari tells of them as it does of scrolling, but for its history."""
        if (history := self._lengths()) != self._history:
            self._history = history
            self._edited()


def _weakly(mouse: Callable[[Labels, Any], Iterator[None]]) -> Callable[[Labels, Any], Iterator[None]]:
    """A callback of the mouse that does nothing once its panel is gone."""
    method = WeakMethod(mouse)

    def follow(layer: Labels, event: Any) -> Iterator[None]:
        if (call := method()) is not None:
            yield from call(layer, event)

    return follow
