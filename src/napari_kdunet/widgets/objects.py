"""The dock widget *Objects*: from a mask to numbered objects, their table, and corrections."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields
from threading import Event
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from magicgui.widgets import CheckBox, ComboBox, FloatSlider
from napari.layers import Image, Labels, Layer
from qtpy.compat import isalive
from qtpy.QtWidgets import QFileDialog, QProgressBar
from superqt.utils import qdebounced

from napari_kdunet.core import LabelsError, ObjectsConfig, instances, measure
from napari_kdunet.core.objects.measure import write_table
from napari_kdunet.widgets.comparison.layer_pair import can_be_compared
from napari_kdunet.widgets.proofreading import edits
from napari_kdunet.widgets.proofreading.object_table import ObjectTable, suspicion
from napari_kdunet.widgets.proofreading.slice_preview import SlicePreview
from napari_kdunet.widgets.shared.fields import threshold_slider, without_wheel
from napari_kdunet.widgets.shared.layers import chosen_layer, grid_of, layer_choice, volume_of, voxel_size_of
from napari_kdunet.widgets.shared.panel import Panel, button, in_a_row, wrapped_label
from napari_kdunet.widgets.shared.pixel_size import PixelSize
from napari_kdunet.widgets.shared.thread_worker import EventWorker, run

if TYPE_CHECKING:
    import napari.viewer

__all__ = ["ObjectsWidget"]

_IN_MEMORY = 4 * 2**30  # bytes of ids; more stay lazy, and cannot be corrected
_SETTLE_MS, _EDIT_MS = 300, 600
_SLIDERS = {"split": (0.0, 1.0, 0.05), "min_diameter": (0.0, 1000.0, 10.0), "smoothing": (0.0, 100.0, 1.0)}
_TOOLS = {
    "off": "Clicks do what napari does with them.",
    "merge": "Click on two objects: the second becomes part of the first.",
    "split": "Click on two places in one object, one on either side of the cut.",
    "add": "Click on foreground that is no object yet, of the mask or the probability.",
    "delete": "Click on an object to delete it.",
}


class _StoppedError(Exception):
    """The user has stopped the work."""


class ObjectsWidget(Panel):
    """Split a mask or probabilities into objects, measure and correct them.

    Parameters
    ----------
    napari_viewer : napari.viewer.Viewer
        Where the layers are.

    Attributes
    ----------
    source, raw, image_pixel_size, threshold, split, min_diameter, smoothing, live, tool : magicgui widgets
        Mask or probability, image for grey values, pixel size in nm, settings of `core.ObjectsConfig`, preview on the
        slice, and what a click on the objects does.
    layer : napari.layers.Labels or None
        The objects; its features are the measurements.
    table : pandas.DataFrame or None
        The measurements.
    checked : set of int
        Ids that are marked as checked.
    """

    def __init__(self, napari_viewer: napari.viewer.Viewer) -> None:
        self.layer: Labels | None = None
        self.table: pd.DataFrame | None = None
        self.checked: set[int] = set()
        self.worker: EventWorker | None = None
        self._stop, self._again = Event(), False
        self._clicks: list[Any] = []
        self.bar, self.status, self.rows = QProgressBar(), wrapped_label(), ObjectTable()
        self.bar.setRange(0, 0)
        self.bar.setToolTip("Objects are being found or measured.")
        super().__init__(napari_viewer, self._rows(napari_viewer), self._footer())
        self.native.layout().setStretch(self.native.layout().indexOf(self.rows), 2)
        self.preview = SlicePreview(napari_viewer, self.native)
        self._preview_soon = qdebounced(self._show_preview, timeout=_SETTLE_MS, parent=self.native)
        self._measure_soon = qdebounced(self._measure_again, timeout=_EDIT_MS, parent=self.native)
        self._connect()
        self._update()

    @property
    def config(self) -> ObjectsConfig:
        """The settings in the panel."""
        return ObjectsConfig(
            threshold=min(self.threshold.value, 0.99),
            split=self.split.value,
            min_diameter=self.min_diameter.value,
            smoothing=self.smoothing.value,
        )

    def start(self) -> None:
        """Find the objects of the chosen layer and measure them, in the background."""
        if self.worker is not None:
            return
        with self.telling():
            source = self._chosen_source()
            volume, config, raw = volume_of(source), self.config, self._image()
            self._stop.clear()
            self.source.held = True

            def work() -> Iterator[Any]:
                found = instances(volume, config, progress=self._check_stopped)
                ids = np.asarray(found) if found.nbytes <= _IN_MEMORY else found
                yield ids
                yield measure(ids, raw, voxel_size=volume.voxel_size, progress=self._check_stopped)

            grid, name = grid_of(source), f"{source.name} objects"
            self._run(work, lambda event: self._take(event, source, grid, name))

    def stop(self) -> None:
        """Stop finding or measuring objects; there is no result then."""
        self._stop.set()

    def select(self, number: int) -> None:
        """Go to an object and select it in its layer and in the table."""
        if self.table is None or self.layer is None or number not in set(self.table["id"]):
            return
        row = self.table.set_index("id").loc[number]
        size = np.array(voxel_size_of(self.layer) or (1.0,) * 3)
        place = np.array([row[f"centroid_{axis}_nm"] for axis in "zyx"]) / size - 0.5
        world = self.layer.data_to_world(place[-self.layer.ndim :])
        self.viewer.dims.set_point(range(-self.layer.ndim, 0), world)
        getattr(self.viewer, "scene", self.viewer).camera.center = tuple(world[-3:])  # napari 0.9, and before
        self.layer.selected_label = number
        self.rows.select(number)

    def next_suspicious(self) -> None:
        """Go to the object that most asks to be looked at, of those that are not checked."""
        with self.telling():
            table = self._measured()
            left = table[~table["id"].isin(list(self.checked))]
            if not len(left):
                raise LabelsError("all objects are checked.")
            self.select(int(left["id"][suspicion(table)[left.index].idxmax()]))

    def check(self) -> None:
        """Mark the selected object as checked, and go to the next suspicious one."""
        with self.telling():
            table, number = self._measured(), self._selected()
            self.checked.add(number)
            self._show_table()
            if len(self.checked & set(table["id"])) < len(table):
                self.next_suspicious()

    def smooth(self) -> None:
        """Smooth the outline of the selected object."""
        with self.telling():
            edits.smooth_object(self._objects(), self._selected())

    def fill(self) -> None:
        """Fill the selected object in slices between others, in which it is missing."""
        with self.telling():
            edits.fill_between(self._objects(), self._selected())

    def export(self, path: str) -> None:
        """Write the table with all its columns, CSV or (.parquet) Parquet."""
        with self.telling():
            write_table(self._with_checked(self._measured()), path)

    def click(self, point: Any) -> None:
        """Do what `tool` says at a point in the pixels of the objects' layer."""
        with self.telling():
            layer, tool = self._objects(), self.tool.value
            number = edits.object_at(layer, point)
            if tool in ("merge", "split"):
                if not number:
                    raise LabelsError("there is no object at that point.")
                self._clicks.append(point)
                layer.selected_label = number
                if len(self._clicks) < 2:
                    return
                (first, second), self._clicks = self._clicks, []
                if tool == "merge":
                    edits.merge_objects(layer, edits.object_at(layer, first), number)
                else:
                    edits.split_object(layer, first, second)
            elif tool == "delete":
                edits.delete_object(layer, number)
            elif tool == "add":
                edits.add_object(layer, self._chosen_source(), point, self.threshold.value)

    def _rows(self, viewer: napari.viewer.Viewer) -> list[Any]:
        source = layer_choice(
            viewer,
            kind=Layer,
            accepts=lambda layer: can_be_compared(layer) and layer is not self.layer,
            first=lambda layers: next((layer for layer in layers if isinstance(layer, Labels)), None),
            sticky=False,
            name="source",
            label="Mask",
            tooltip="Labels (what is not 0 is foreground), or probabilities, 0 to 1, as a floating-point image.",
            placeholder="no mask yet: segment an image",
        )
        raw = layer_choice(
            viewer,
            kind=Image,
            first=lambda _: None,
            none="none",
            name="raw",
            label="Image",
            tooltip="Image for the mean grey value of each object.",
        )
        help_of = {spec.name: spec.metadata for spec in fields(ObjectsConfig)}
        sliders = []
        for name, (low, high, step) in _SLIDERS.items():
            unit = f" ({help_of[name]['unit']})" if help_of[name]["unit"] else ""
            label = name.replace("_", " ").capitalize() + unit
            slider = FloatSlider(
                value=getattr(ObjectsConfig(), name), min=low, max=high, step=step, name=name, label=label
            )
            slider.tooltip = help_of[name]["help"]
            slider.native.setToolTip(slider.tooltip)
            sliders.append(without_wheel(slider))
        threshold = threshold_slider("Probability, 0 to 1, above which a voxel is foreground. Of no matter for labels.")
        live = CheckBox(name="live", text="Preview on the slice", tooltip="Show the objects of the slice on screen.")
        return [source, PixelSize(viewer, source), raw, threshold, *sliders, live]

    def _footer(self) -> list[Any]:
        start = button("Find objects", "Number and measure the objects of the volume, in the background.", self.start)
        stop = button("Stop", "Stop finding or measuring.", self.stop, "stop_button")
        start.name = "start_button"
        tool = ComboBox(name="tool", choices=list(_TOOLS), tooltip="\n".join(f"{t}: {w}" for t, w in _TOOLS.items()))
        smooth = button("Smooth", "Smooth the outline of the selected object.", self.smooth, "smooth_button")
        fill = button("Fill", "Fill the selected object in slices in which it is missing.", self.fill, "fill_button")
        following = button("Next", "Go to the object that most asks to be looked at.", self.next_suspicious, "next")
        check = button("Checked", "Mark the selected object as checked, and go to the next.", self.check, "checks")
        export = button("Export...", "Write all measurements to a CSV.", self._ask_and_export, "export_button")
        return [
            in_a_row(start, stop),
            self.bar,
            self.rows,
            in_a_row(tool, smooth, fill),
            in_a_row(following, check, export),
            self.status,
        ]

    def _connect(self) -> None:
        for row in (self.source, self.threshold, self.split, self.min_diameter, self.smoothing, self.live):
            row.changed.connect(lambda: self._preview_soon())
        self.viewer.dims.events.current_step.connect(self._stepped)
        self.viewer.layers.events.removed.connect(self._removed)
        self.rows.chosen.connect(self.select)
        self.tool.changed.connect(self._tool_changed)

    def _stepped(self, *_: Any) -> None:
        if isalive(self.native):
            self._preview_soon()

    def _removed(self, event: Any) -> None:
        if not isalive(self.native):
            return
        if event.value is self.layer:
            self.layer = self.table = None
            self.checked.clear()
            self._show_table()
        elif event.value is self.preview.layer:
            self.live.value = False

    def _tool_changed(self) -> None:
        self._clicks = []
        if self.layer is not None and self.tool.value != "off":
            self.layer.mode = "pan_zoom"
            self.viewer.layers.selection.active = self.layer
        self._update()

    def _show_preview(self) -> None:
        if not self.live.value or self.source.value is None:
            self.preview.close()
            return
        with self.telling():
            self.preview.show(self.source.value, self.config)

    def _chosen_source(self) -> Layer:
        if self.source.value is None:
            raise LabelsError("no mask is chosen: segment an image, or add a labels layer.")
        return chosen_layer(self.source)

    def _image(self) -> Any:
        return None if self.raw.value is None else volume_of(self.raw.value)

    def _check_stopped(self, _: float) -> None:
        if self._stop.is_set():
            raise _StoppedError

    def _run(self, work: Any, on_event: Any) -> None:
        def events() -> Iterator[Any]:
            try:
                yield from work()
            except _StoppedError:
                return

        self.worker = run(
            events,
            on_event=on_event,
            on_done=self._ended,
            on_error=lambda error: self._failed(error),
            owner=self.native,
        )
        self._update()

    def _take(self, event: Any, source: Layer, grid: dict[str, Any], name: str) -> None:
        """Take the ids, then the table."""
        if isinstance(event, pd.DataFrame):
            self.table = event
            self._show_table()
            return
        ids = event[0] if source.ndim == 2 else event
        self.layer = self.table = None
        self.checked.clear()
        self.live.value = False
        layer = self.layer = Labels(ids, name=name, **grid)  # before it is added: it is not offered as a mask
        self.viewer.add_layer(layer)
        layer.events.selected_label.connect(lambda: self._label_selected(layer))
        layer.events.labels_update.connect(lambda: self._edited(layer))
        layer.mouse_drag_callbacks.append(self._mouse)
        self._tool_changed()

    def _label_selected(self, layer: Labels) -> None:
        if isalive(self.native) and self.layer is not None and layer is self.layer:
            self.rows.select(int(self.layer.selected_label))

    def _edited(self, layer: Labels) -> None:
        if isalive(self.native) and layer is self.layer:
            self._measure_soon()

    def _measure_again(self) -> None:
        """Measure what has been corrected or painted."""
        if self.layer is None:
            return
        if self.worker is not None:
            self._again = True
            return
        layer = self.layer
        ids, raw = volume_of(layer), self._image()
        self._stop.clear()

        def work() -> Iterator[Any]:
            yield measure(ids, raw, voxel_size=ids.voxel_size, progress=self._check_stopped)

        self._run(work, lambda table: self._take(table, layer, {}, "") if layer is self.layer else None)

    def _ended(self) -> None:
        self.worker = None
        self._update()
        if self._again:
            self._again = False
            self._measure_soon()

    def _failed(self, error: Exception) -> None:
        self.worker = None
        self.tell(error)
        self._update()

    def _mouse(self, layer: Labels, event: Any) -> Iterator[None]:
        """A click, not a drag, with a tool."""
        if self.tool.value == "off" or self.viewer.dims.ndisplay == 3 or not isalive(self.native):
            return
        point = layer.world_to_data(event.position)
        yield
        dragged = False
        while event.type == "mouse_move":
            dragged = True
            yield
        if not dragged:
            self.click(point)

    def _objects(self) -> Labels:
        if self.layer is None:
            raise LabelsError("there are no objects yet: press Find objects.")
        return self.layer

    def _measured(self) -> pd.DataFrame:
        if self.table is None:
            raise LabelsError("nothing is measured yet: press Find objects, and wait for the table.")
        return self.table

    def _selected(self) -> int:
        return int(self._objects().selected_label)

    def _with_checked(self, table: pd.DataFrame) -> pd.DataFrame:
        return table.assign(checked=table["id"].isin(list(self.checked)))

    def _show_table(self) -> None:
        """Show the measurements in the panel and in the features of the layer."""
        table = pd.DataFrame({"id": []}) if self.table is None else self._with_checked(self.table)
        self.rows.show_table(table)
        if self.layer is not None:
            self.layer.features = table.assign(index=table["id"].astype(int))
            self.rows.select(int(self.layer.selected_label))
        self._update()

    def _ask_and_export(self) -> None:
        path, _ = QFileDialog.getSaveFileName(
            self.native, "Export measurements", "objects.csv", "Tables (*.csv *.parquet)"
        )
        if path:
            self.export(path)

    def _update(self) -> None:
        busy, there = self.worker is not None, self.table is not None
        self.start_button.enabled, self.stop_button.enabled = not busy, busy
        self.bar.setVisible(busy)
        for name in ("smooth_button", "fill_button", "tool"):
            getattr(self, name).enabled = self.layer is not None
        for name in ("next", "checks", "export_button"):
            getattr(self, name).enabled = there
        text = ""
        if self.table is not None:
            total = len(self.table)
            text = f"{total} objects, {len(self.checked & set(self.table['id']))} checked."
        if self.tool.value != "off":
            text = f"{text} {_TOOLS[self.tool.value]}".strip()
        self.status.setText(text)
