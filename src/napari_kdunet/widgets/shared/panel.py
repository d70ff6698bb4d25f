"""Base of the dock widgets: magicgui containers whose rows scroll, above controls that always stay in sight."""

from __future__ import annotations

import gc
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import groupby
from typing import TYPE_CHECKING, Any

from magicgui.widgets import Container, Label, PushButton
from magicgui.widgets.bases import Widget
from qtpy.compat import isalive
from qtpy.QtCore import QEvent, QObject, QSize, Qt, QTimer
from qtpy.QtWidgets import (
    QAbstractItemView,
    QFrame,
    QHeaderView,
    QLabel,
    QScrollArea,
    QSizePolicy,
    QTableWidget,
    QVBoxLayout,
    QWidget,
)

from napari_kdunet.core.errors import KDUNetError
from napari_kdunet.widgets.notify import line_of, report
from napari_kdunet.widgets.shared.fields import AlignedLabels, Folding

if TYPE_CHECKING:
    import napari.viewer

__all__ = ["Panel", "button", "in_a_row", "list_table", "note", "wrapped_label"]

_LEAST_HEIGHT = 110  # pixels: height left for each of five docks above each other on a screen of 768
_ROWS = 90  # pixels: least height of the rows where another widget gets the room that is left
_FIRST = 100  # stretch factor of the rows, against 1 of the other widget, until they reach their full height
_MARGIN = 4  # pixels


class Scrolling(Container):
    """Container that scrolls within another one: magicgui would insert the inner widget without its scroll area."""

    def __init__(self, **options: Any) -> None:
        super().__init__(scrollable=True, **options)
        self.native.setFrameShape(QFrame.Shape.NoFrame)
        self.native.setMinimumWidth(0)  # magicgui sets it to the width that the rows ask for
        self.native.setMinimumHeight(40)
        super().native.layout().setAlignment(Qt.AlignmentFlag.AlignTop)

    @property
    def native(self) -> Any:
        """Scroll area."""
        return self.root_native_widget


class _WholePanel(QScrollArea):
    """Scrolls all of a panel but its controls where the panel is low, as with several docks above each other."""

    def __init__(self, panel: QWidget, controls: Sequence[QWidget]) -> None:
        super().__init__(panel)
        inside = QWidget()
        layout = panel.layout()
        assert layout is not None
        inside.setLayout(layout)  # magicgui goes on adding widgets to this layout
        self.setWidget(inside)
        self.setWidgetResizable(True)
        self.setFrameShape(QFrame.Shape.NoFrame)
        self.setMinimumSize(0, 0)
        panel.setMinimumHeight(_LEAST_HEIGHT)
        outer = QVBoxLayout(panel)
        outer.setContentsMargins(0, 0, 0, 0)
        outer.addWidget(self, 1)
        below = QVBoxLayout()
        below.setContentsMargins(_MARGIN, 0, _MARGIN, _MARGIN if controls else 0)
        outer.addLayout(below)
        for control in controls:
            below.addWidget(control)

    def sizeHint(self) -> QSize:
        """Return the size hint of the whole content."""
        inside = self.widget()
        return super().sizeHint() if inside is None else inside.sizeHint()


class Panel(Container):
    """Base of the dock widgets.

    The rows scroll, with texts and plots below them; where the panel is low both scroll as one, so that several docks
    above each other fit on the screen of a laptop. The buttons that start and stop, and the progress, never scroll.

    Signals of the viewer are connected weakly, and their slots check that the widget is alive. They are not
    disconnected when Qt destroys the widget, because a container that was never docked belongs to Python, whose garbage
    collector clears its connections first, and calling a cleared slot crashes.

    A script reads and sets the values by the names of the rows, whatever group they are in: ``panel.k.value = 4``.

    Parameters
    ----------
    viewer : napari.viewer.Viewer
        Viewer of the layers.
    rows : sequence of magicgui widgets
        Rows of the form, which scroll where the panel is low.
    footer : sequence of magicgui widgets or QWidget
        Widgets below the rows.
    controls : sequence of magicgui widgets or QWidget
        Widgets below everything else, always in sight.

    Attributes
    ----------
    body : QLayout
        Layout of rows and footer, one below the other.
    """

    def __init__(
        self,
        viewer: napari.viewer.Viewer,
        rows: Sequence[Widget],
        footer: Sequence[Widget | QWidget],
        controls: Sequence[Widget | QWidget] = (),
    ) -> None:
        blocks = _blocks(rows)
        super().__init__(widgets=[Scrolling(widgets=blocks, labels=False)], labels=False)
        AlignedLabels(self.native, [block for block in blocks if type(block) is Container])
        self.viewer = viewer
        self.margins = (_MARGIN,) * 4
        self.error_label = wrapped_label()
        self.error_label.setStyleSheet("color: #D55E00; font-weight: bold")
        self.error_label.hide()
        self.body = layout = self.native.layout()
        layout.setStretch(0, 1)
        layout.addWidget(self.error_label)
        for widget in (*footer, *controls):
            if isinstance(widget, Widget):
                self.append(widget)
            layout.addWidget(_native(widget))
        _WholePanel(self.native, [_native(widget) for widget in controls])
        events = viewer.layers.events  # napari connects only what is docked
        for source in (events.inserted, events.removed, events.reordered, events.renamed):
            source.connect(self.reset_choices)
        self.native_parent_changed.connect(self._moved)

    def __getattr__(self, name: str) -> Any:
        """Return the row of this name, whatever group it is in."""
        if not name.startswith("_") and (found := _find(self, name)) is not None:
            return found
        return super().__getattr__(name)

    def asdict(self) -> dict[str, Any]:
        """Return the values by the names of their rows."""
        return {widget.name: widget.value for widget in _leaves(self) if widget.name and hasattr(widget, "value")}

    def reset_choices(self, *_: Any) -> None:
        """Update the choices of layers, unless Qt has destroyed the panel."""
        if isalive(self.native):
            super().reset_choices()

    def dock_closed(self) -> None:
        """Release what must not go on without the panel; called when its dock is closed."""

    def docked(self) -> None:
        """Called when the panel is docked, for the first time or again."""

    def _moved(self, *_: Any) -> None:
        if self.native.parent() is not None:
            self.docked()
            return
        self.dock_closed()
        QTimer.singleShot(0, gc.collect)  # collected here, as Qt crashes if the collector runs on a worker thread

    def give_room_to(self, widget: QWidget) -> None:
        """Give the rows the height that they need where there is room, and the rest to `widget`, one of the footer."""
        rows = self[0].native
        rows.setMinimumHeight(_ROWS)
        _AsHighAsInside(rows)
        self.body.setStretch(0, _FIRST)
        self.body.setStretch(self.body.indexOf(widget), 1)

    @contextmanager
    def telling(self) -> Iterator[None]:
        """Show a `KDUNetError` that the block raises, in full in the panel and as a notification."""
        self.error_label.hide()
        try:
            yield
        except KDUNetError as error:
            self.tell(error)

    def tell(self, error: Exception) -> None:
        """Show an error in full in the panel, and as a notification, which napari cuts if it is long."""
        self.show_error(error)
        report(error)

    def show_error(self, error: Exception) -> None:
        """Show an error in full in the panel if its cause is known, without notifying the user again."""
        if line := line_of(error):
            self.error_label.setText(line)
            self.error_label.show()


def _blocks(rows: Sequence[Widget]) -> list[Widget]:
    """Put labelled rows in containers; texts and folding groups stay outside, as magicgui would label them too."""
    blocks: list[Widget] = []
    for alone, some in groupby(rows, lambda row: isinstance(row, Folding | Label)):
        if alone:
            blocks += some
        else:
            block = Container(widgets=list(some))
            block.margins = (0, 0, 0, 0)
            blocks.append(block)
    return blocks


def _native(widget: Widget | QWidget) -> QWidget:
    native: QWidget = widget.native if isinstance(widget, Widget) else widget
    return native


def _leaves(container: Container) -> Iterator[Any]:
    for widget in container:
        if isinstance(widget, Container):
            yield from _leaves(widget)
        else:
            yield widget


def _find(container: Container, name: str) -> Widget | None:
    for widget in container:
        if widget.name == name:
            return widget
        found = _find(widget, name) if isinstance(widget, Container) else None
        if found is not None:
            return found
    return None


def button(text: str, tooltip: str, call: Any, name: str = "") -> PushButton:
    """Return a button that calls a function without arguments."""
    made = PushButton(text=text, name=name, tooltip=tooltip)
    made.changed.connect(lambda: call())
    made.native.setMinimumWidth(40)
    return made


def note(name: str, tooltip: str = "") -> Label:
    """Return a row of wrapped text without a label."""
    made = Label(name=name, tooltip=tooltip)
    made.native.setWordWrap(True)
    made.native.setMinimumWidth(1)
    made.native.setSizePolicy(QSizePolicy.Policy.Ignored, QSizePolicy.Policy.Preferred)
    _FitHeight(made.native)
    return made


class _AsHighAsInside(QObject):
    """Limits the height of a scroll area to that of its content; its own hint dates from before it was shown."""

    def __init__(self, area: QScrollArea) -> None:
        super().__init__(area)
        inside = area.widget()
        assert inside is not None
        inside.installEventFilter(self)
        self._area, self._inside = area, inside

    def eventFilter(self, watched: QObject | None, event: QEvent | None) -> bool:
        """Set the limit whenever the height of the content may have changed."""
        if event is not None and event.type() in (QEvent.Type.Show, QEvent.Type.LayoutRequest):
            self._area.setMaximumHeight(self._inside.sizeHint().height() + 2 * self._area.frameWidth())
        return False


class _FitHeight(QObject):
    """Gives a wrapped label the height of its text: Qt asks for far more, or within a scroll area for less."""

    def __init__(self, label: QLabel) -> None:
        super().__init__(label)
        label.installEventFilter(self)

    def eventFilter(self, watched: QObject | None, event: QEvent | None) -> bool:
        """Fit the height whenever the label is resized, or is painted, as it is when its text changes."""
        if event is not None and event.type() in (QEvent.Type.Resize, QEvent.Type.Paint):
            assert isinstance(watched, QLabel)
            needed = max(watched.heightForWidth(watched.width()), 0)  # negative without a text
            if needed != watched.minimumHeight():
                watched.setMinimumHeight(needed)
        return False


def in_a_row(*widgets: Widget, label: str = "") -> Container:
    """Return a row of widgets side by side; the first one stretches."""
    row = Container(widgets=widgets, layout="horizontal", labels=False, label=label, tooltip=widgets[0].tooltip)
    row.margins = (0, 0, 0, 0)
    row.native.layout().setStretch(0, 1)
    return row


class _WrappedLabel(QLabel):
    """A label that never asks for more width than it is given, and has no height without text."""

    def minimumSizeHint(self) -> QSize:
        return QSize(0, super().minimumSizeHint().height() if self.text() else 0)

    def sizeHint(self) -> QSize:
        return super().sizeHint() if self.text() else QSize(0, 0)


def list_table(*titles: str) -> QTableWidget:
    """Return an empty read-only table with columns of equal width."""
    table = QTableWidget(0, len(titles))
    table.setHorizontalHeaderLabels(list(titles))
    table.setEditTriggers(QAbstractItemView.EditTrigger.NoEditTriggers)
    above, left = table.horizontalHeader(), table.verticalHeader()
    assert above is not None
    assert left is not None
    above.setSectionResizeMode(QHeaderView.ResizeMode.Stretch)
    left.hide()
    return table


def wrapped_label(text: str = "") -> QLabel:
    """Return a label that wraps its text."""
    label = _WrappedLabel(text)
    label.setWordWrap(True)
    label.setSizePolicy(QSizePolicy.Policy.Ignored, QSizePolicy.Policy.Minimum)
    label.setTextInteractionFlags(Qt.TextInteractionFlag.TextSelectableByMouse)
    return label
