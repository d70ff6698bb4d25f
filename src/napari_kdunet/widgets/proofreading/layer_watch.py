"""Report changes of a layer of objects to the panel *Objects*, as long as the panel works on it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any
from weakref import WeakMethod

from napari.layers import Labels

__all__ = ["Content", "LayerWatch"]

_HISTORIES = ("_undo_history", "_redo_history")  # attributes of a napari layer


@dataclass(frozen=True, eq=False)
class Content:
    """Identity of a layer's ids, which an edit, undo or redo changes: its array, and the last items of its histories.

    The items are kept alive here, so that no new object can be mistaken for one of them.
    """

    items: tuple[Any, ...]

    @classmethod
    def of(cls, layer: Labels) -> Content:
        """Return the present content of a layer."""
        histories = (getattr(layer, name, ()) for name in _HISTORIES)
        return cls((layer.data, *(history[-1] if history else None for history in histories)))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Content) and all(a is b for a, b in zip(self.items, other.items, strict=True))

    __hash__ = None  # type: ignore[assignment]


class LayerWatch:
    """Reports what happens to a layer, until `detach`.

    All callbacks are connected weakly: the layer, which may outlive the panel, keeps neither this nor the panel alive.

    Parameters
    ----------
    layer : napari.layers.Labels
        Layer of the objects.
    edited, selected, resized : callable
        Methods, called when ids were changed (painted, corrected, undone or redone), when another object was selected,
        and when the scale or its units were set.
    mouse : callable
        A method for `mouse_drag_callbacks`.

    Attributes
    ----------
    seen : Content
        Content of the layer when it was last reported.
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
        self.seen = Content.of(layer)
        self._follow = _weakly(mouse)
        events = layer.events
        self._connected: list[tuple[Any, Callable[..., None]]] = [
            (events.selected_label, selected),
            (events.labels_update, self._changed),
            (events.data, self._changed),
            (events.set_data, self._drawn_again),
            (events.scale, resized),
            (events.units, resized),
            (events.affine, resized),
        ]
        for emitter, callback in self._connected:
            emitter.connect(callback)
        layer.mouse_drag_callbacks.append(self._follow)

    def detach(self) -> None:
        """Stop reporting."""
        for emitter, callback in self._connected:
            emitter.disconnect(callback)
        self._connected = []
        if self._follow in self.layer.mouse_drag_callbacks:
            self.layer.mouse_drag_callbacks.remove(self._follow)

    def _changed(self, *_: Any) -> None:
        self.seen = Content.of(self.layer)
        self._edited()

    def _drawn_again(self, *_: Any) -> None:
        """Notice an undo or redo: napari emits the same event as for scrolling, and only its histories differ."""
        if Content.of(self.layer) != self.seen:
            self._changed()


def _weakly(mouse: Callable[[Labels, Any], Iterator[None]]) -> Callable[[Labels, Any], Iterator[None]]:
    """Return a mouse callback that does nothing once its panel is gone."""
    method = WeakMethod(mouse)

    def follow(layer: Labels, event: Any) -> Iterator[None]:
        if (call := method()) is not None:
            yield from call(layer, event)

    return follow
