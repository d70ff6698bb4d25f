"""The base of the panel *Objects*: the layer it works on, its table and plot, and what is selected in them."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from napari.layers import Image, Labels, Layer
from qtpy.compat import isalive
from qtpy.QtWidgets import QProgressBar
from superqt.utils import qdebounced

from napari_kdunet.core import LabelsError, ObjectsConfig, Volume, VolumeError
from napari_kdunet.widgets.proofreading import edits
from napari_kdunet.widgets.proofreading.background import Background, Check
from napari_kdunet.widgets.proofreading.layer_watch import LayerWatch
from napari_kdunet.widgets.proofreading.measuring import Measurement
from napari_kdunet.widgets.proofreading.rows import SETTINGS, controls, finding_rows, footer
from napari_kdunet.widgets.proofreading.session import (
    Reference,
    Session,
    image_of,
    with_checked,
)
from napari_kdunet.widgets.proofreading.slice_preview import SlicePreview
from napari_kdunet.widgets.proofreading.snapshot import Snapshot
from napari_kdunet.widgets.proofreading.table.filter import filter_table
from napari_kdunet.widgets.proofreading.table.object_table import features_of
from napari_kdunet.widgets.proofreading.table.views import TableViews
from napari_kdunet.widgets.proofreading.tools import STROKES, Tools, iter_drag
from napari_kdunet.widgets.shared.layers import (
    OBJECTS,
    RESULT,
    chosen_layer,
    current_slice,
    data_of,
    go_to,
    volume_of,
    voxel_size_of,
)
from napari_kdunet.widgets.shared.panel import Panel, wrapped_label
from napari_kdunet.widgets.workers.thread import EventWorker

if TYPE_CHECKING:
    import napari.viewer

__all__ = ["ProofreadingPanel"]

_NOT_OPEN = "is not open"
_SETTLE_MS, _EDIT_MS = 300, 600


class ProofreadingPanel(Panel):
    """Base of the panel *Objects*, which adds the actions of its buttons.

    It works on the objects layer that was found, opened or selected last; the metadata of each layer hold its session.

    Parameters
    ----------
    viewer : napari.viewer.Viewer
        Viewer of the layers.
    accepts : callable
        Returns whether a layer can be a mask or a probability.

    Attributes
    ----------
    source, raw, image_pixel_size, threshold, split, min_diameter, holes, smoothing, mode, live, filter, tool : widgets
        magicgui widgets: mask or probability, image for grey values, pixel size in nm, settings of
        `core.ObjectsConfig`, preview on the slice, filter of the objects that the table shows, and what a click on the
        objects does.
    layer : napari.layers.Labels or None
        Layer of the objects; its features are the measurements.
    session : Session
        Session of that layer.
    selection : list of int
        Ids of the selected objects; the first one is also the selected label of the layer.
    """

    def __init__(self, viewer: napari.viewer.Viewer, accepts: Callable[[Layer], bool]) -> None:
        self.layer: Labels | None = None
        self.session = Session()
        self.selection: list[int] = []
        self._again = False
        self._image_layer_before: weakref.ref[Layer] | None = None
        self._watch: LayerWatch | None = None
        self._is_closed = False
        self._note = ""
        self.tools = Tools(lambda: (self._chosen_source(), self.threshold.value))
        self.bar, self.status, self.views = QProgressBar(), wrapped_label(), TableViews(viewer)
        self.rows, self.plot = self.views.rows, self.views.plot
        self.bar.setRange(0, 0)
        self.bar.setToolTip("Objects are being found, measured or saved.")
        rows = finding_rows(viewer, lambda layer: accepts(layer) and OBJECTS not in layer.metadata)
        super().__init__(viewer, rows, footer(self), controls(self))
        self.give_room_to(self.views)
        self.background = Background(self.native, self._background_changed)
        self.preview = SlicePreview(viewer, self.native, self.show_error)
        self._preview_soon = qdebounced(self._show_preview, timeout=_SETTLE_MS, parent=self.native)
        self._measure_soon = qdebounced(self._measure_again, timeout=_EDIT_MS, parent=self.native)
        self._connect()
        self._update()
        for layer in reversed(viewer.layers):
            if OBJECTS in layer.metadata and self.layer is None:
                self._work_on(layer)

    @property
    def config(self) -> ObjectsConfig:
        """Settings in the panel."""
        values = {name: getattr(self, name).value for name in SETTINGS}
        return ObjectsConfig(**{**values, "threshold": min(values["threshold"], 0.99)})

    @property
    def _is_there(self) -> bool:
        """Whether the panel is neither closed nor destroyed."""
        return isalive(self.native) and not self._is_closed

    @property
    def worker(self) -> EventWorker | None:
        """Worker that is running in the background."""
        return self.background.worker

    @property
    def table(self) -> pd.DataFrame | None:
        """Measurements of the objects; None until they are measured."""
        return self.session.table

    @property
    def checked(self) -> set[int]:
        """Ids that are marked as checked."""
        return self.session.checked

    def select(self, number: int) -> None:
        """Go to an object and select it in its layer and in the table."""
        self.select_all([number], go=True)

    def select_all(self, numbers: list[int], *, go: bool = False) -> None:
        """Select objects in table and layer; show the first if `go`, or if it is the only one and not on screen."""
        self.selection = [number for number in numbers if number in self.session.rows]
        self.views.select(self.selection)
        self._update()
        if self.layer is None or not self.selection:
            return
        number = self.selection[0]
        self.layer.selected_label = number
        if go or (len(self.selection) == 1 and not self._is_on_screen(number)):
            self._show(number)

    def _connect(self) -> None:
        for name in ("source", "live", *SETTINGS):
            getattr(self, name).changed.connect(lambda: self._preview_soon())
        self.viewer.dims.events.current_step.connect(self._stepped)
        self.viewer.layers.events.inserted.connect(self._inserted)
        self.viewer.layers.events.removed.connect(self._removed)
        self.viewer.layers.selection.events.active.connect(self._activated)
        self.rows.chosen.connect(lambda numbers: self.select_all(numbers, go=len(numbers) == 1))
        self.plot.chosen.connect(self.select_all)
        self.tool.changed.connect(self._tool_changed)
        self.filter.changed.connect(lambda: self._filter_changed())
        self.raw.changed.connect(lambda: self._image_chosen())

    def dock_closed(self) -> None:
        """Stop the running work, the preview and following the layer."""
        self._is_closed = True
        self.background.abandon()
        self._let_go()
        self.live.value = False
        self.preview.close()

    def docked(self) -> None:
        """Follow the layer again."""
        self._is_closed = False
        if self.layer is not None and self._watch is None:
            self._take_up(self.layer)

    def _stepped(self, *_: Any) -> None:
        if self._is_there:
            self._preview_soon()

    def _inserted(self, event: Any) -> None:
        if not self._is_there:
            return
        if OBJECTS in event.value.metadata:
            self._work_on(event.value)
        elif _NOT_OPEN in self._note:
            self._find_image()

    def _activated(self, event: Any) -> None:
        if self._is_there and event.value is not None and OBJECTS in event.value.metadata:
            self._work_on(event.value)

    def _removed(self, event: Any) -> None:
        if not isalive(self.native):
            return
        if event.value is self.layer:
            self._let_go()
            self.layer, self.session, self._note = None, Session(), ""
            self._show_table()
        elif event.value is self.preview.layer:
            self.live.value = False

    def _work_on(self, layer: Labels) -> None:
        """Show and correct the objects of a layer."""
        if layer is self.layer:
            return
        self._let_go()
        layer.metadata[OBJECTS] = self.session = layer.metadata[OBJECTS].of(layer)
        self.layer = layer
        self.selection, self.tools.first, self._note = [], None, ""
        for name in SETTINGS:
            getattr(self, name).value = getattr(self.session.config, name)
        self._find_image()
        self._take_up(layer)

    def _take_up(self, layer: Labels) -> None:
        """Follow the layer from now on, and measure what has changed in the meantime."""
        self._watch = LayerWatch(
            layer, edited=self._edited, selected=self._label_selected, resized=self._resized, mouse=self._mouse
        )
        layer.selected_label = self.session.selected
        self._tool_changed()
        self._show_table()
        self._resized()
        if self.session.left is not None and self._watch.seen != self.session.left:
            self._edited()  # it changed while no panel followed it
        elif self.session.stale:
            self._measure_soon()

    def _let_go(self) -> None:
        """Stop following the layer, and leave its mouse as napari has it without a tool."""
        if self._watch is not None:
            layer = self._watch.layer
            self.session.selected, self.session.left = int(layer.selected_label), self._watch.seen
            layer.mouse_pan = layer.mode == "pan_zoom"
            self._watch.detach()
            self._watch = None

    def _find_image(self) -> None:
        """Choose the image of the session, or say that it is not open."""
        image, self._note = self.session.image, ""
        if image is None or self.layer is None:
            return
        found = next((x for x in self.viewer.layers if isinstance(x, Image) and image.is_of(x)), None)
        if found is None:
            where = f" ({image.path})" if image.path else ""
            self._note = f"The image {image.name}{where} {_NOT_OPEN}: press Open image to look for it."
        elif self.session.table is not None and "mean_grey" in self.session.table:
            with self.raw.changed.blocked():  # the objects are measured with it
                self.raw.value = found
            self._image_layer_before = weakref.ref(found)
        self._update()

    def _tool_changed(self) -> None:
        self.tools.first = None
        if self.layer is not None:
            if self.tool.value != "off":
                self.layer.mode = "pan_zoom"
                self.viewer.layers.selection.active = self.layer
            self.layer.mouse_pan = self.tool.value not in STROKES and self.layer.mode == "pan_zoom"
        self._update()

    def _show_preview(self) -> None:
        if not self.live.value or self.source.value is None:
            self.preview.close()
            return
        with self.telling():
            self._volume_to_measure(self.source.value)
            self.preview.show(self.source.value, self.config)

    def _chosen_source(self) -> Layer:
        if self.source.value is None:
            raise LabelsError("no mask is chosen: segment an image, or add a labels layer.")
        return chosen_layer(self.source)

    def _volume_to_measure(self, source: Layer) -> Volume:
        """Return a mask or probability as a volume; raise before objects are found if they could not be measured."""
        volume, image = volume_of(source), self._image()
        if volume.voxel_size is None:
            raise VolumeError(f"the pixel size of {source.name} is not known: type it under Pixel size.")
        if image is not None and image.shape != volume.shape:
            raise VolumeError(
                f"{image.name} has shape {image.shape}, but {source.name} {volume.shape}: choose the image of that "
                "mask, or none, under Image."
            )
        return volume

    def _source_layer(self) -> Layer | None:
        """Return the mask or probability if it has the shape of the objects, else None."""
        source, layer = self.source.value, self.layer
        fits = source is not None and layer is not None and data_of(source).shape == data_of(layer).shape
        return source if fits else None

    def _image(self) -> Volume | None:
        return None if self.raw.value is None else volume_of(self.raw.value)

    def _image_layer(self) -> Layer | None:
        return image_of(self.viewer, self.raw.value, self.source.value, self.layer)

    def _background_changed(self, error: Exception | None) -> None:
        if error is not None:
            self.show_error(error)
        self._update()
        if self._again and self.worker is None:
            self._again = False
            self._measure_soon()

    def _take_table(self, session: Session, found: Measurement) -> None:
        first = session.table is None
        session.take(found)
        if session is self.session:
            self._show_table()
            if first:
                self.views.make_room(self.native)

    def _label_selected(self, *_: Any) -> None:
        if self._is_there and self.layer is not None:
            number = int(self.layer.selected_label)
            if number not in self.selection[:1]:
                self.select_all([number])

    def _edited(self, *_: Any) -> None:
        if self._is_there:
            self.session.stale = True
            self._changed()
            self._measure_soon()

    def _resized(self, *_: Any) -> None:
        """Measure again if the voxel size is not the one that the objects were measured with."""
        size, measured = None if self.layer is None else voxel_size_of(self.layer), self.session.measured
        if size is not None and measured is not None and not measured.has_size(size):
            self._edited()

    def _image_chosen(self) -> None:
        """Measure again with another image; one of another shape is for another mask, and no image changes nothing."""
        if self.layer is None or not self._is_there:
            return
        with self.telling():
            image, measured = self._image(), self.session.measured
            fits = image is not None and image.shape == volume_of(self.layer).shape
            is_new = fits and self._is_new_image()
            if fits and (measured is None or measured.raw != Reference.of(self.raw.value) or is_new):
                self._edited()
            elif self.session.stale:
                self._measure_soon()

    def _is_new_image(self) -> bool:
        """Return whether the image is another layer than before; it may have the name of one that was removed."""
        before, self._image_layer_before = self._image_layer_before, weakref.ref(self.raw.value)
        return before is not None and before() is not self.raw.value

    def _changed(self) -> None:
        self.session.saved = False

    def _measure_again(self) -> None:
        """Measure what has been corrected or painted, and carry it over to the mask that the objects are from."""
        if self.layer is None or not self.session.stale or not self._is_there:
            return
        if self.worker is not None:
            self._again = True
            return
        with self.telling():
            self._begin_measuring(self.layer, self.session)

    def _begin_measuring(self, layer: Labels, session: Session) -> None:
        corrections, measuring = session.corrections, session.measuring(self.raw.value, self._source_layer())
        snapshot = Snapshot(layer)
        session.stale = False  # only now that nothing keeps them from being measured

        def work(check: Check) -> Iterator[Any]:
            ids = snapshot.read(check)
            if corrections is not None:
                yield corrections.hand_on(ids)
            yield measuring.measure(ids, check, in_memory=snapshot.in_memory)

        def take(event: Any) -> None:
            if isinstance(event, Measurement):
                self._take_table(session, event)
                return
            for layer in self.viewer.layers:
                if event and layer.metadata.get(RESULT) is corrections.result:
                    layer.refresh()

        def lost() -> None:
            session.stale = True

        self.background.run(work, take, lost)

    def _mouse(self, layer: Labels, event: Any) -> Iterator[None]:
        """Handle a click or a stroke with a tool."""
        tool = self.tool.value if self._is_there else "off"
        if tool == "off" or self.viewer.dims.ndisplay == 3:
            return
        yield from iter_drag(layer, event, lambda points: self.stroke(points) if self._means(points) else None)

    def _means(self, points: list[Any]) -> bool:
        """Return whether points are for the tool: a click is, a drag only if the tool takes strokes."""
        return len(points) == 1 or self.tool.value in STROKES

    def _objects(self) -> Labels:
        if self.layer is None:
            raise LabelsError("there are no objects yet: press Find objects.")
        return self.layer

    def _measured(self) -> pd.DataFrame:
        if self.table is None:
            raise LabelsError("nothing is measured yet: press Find objects, and wait for the table.")
        return self.table

    def _selected(self) -> list[int]:
        number = int(self._objects().selected_label)
        if not number:
            raise LabelsError(edits.NOT_SELECTED)
        return self.selection if number in self.selection else [number]

    def _is_on_screen(self, number: int) -> bool:
        if self.layer is None or self.layer.ndim < 3 or self.viewer.dims.ndisplay == 3:
            return True
        return bool((np.asarray(data_of(self.layer)[current_slice(self.viewer, self.layer)]) == number).any())

    def _show(self, number: int) -> None:
        """Go to an object in the viewer."""
        assert self.layer is not None
        row = self._measured().iloc[self.session.rows[number]]
        size = np.array(voxel_size_of(self.layer) or (1.0,) * 3)
        go_to(self.viewer, self.layer, np.array([row[f"centroid_{axis}_nm"] for axis in "zyx"]) / size - 0.5)

    def _shown(self) -> pd.DataFrame:
        """Return the measurements that the filter lets through."""
        self._measured()
        return filter_table(with_checked(self.session), self.filter.value)

    def _filter(self) -> None:
        self.error_label.hide()
        if self.table is None:
            return
        with self.telling():
            self.views.show_table(self._shown())
        self._update()

    def _filter_changed(self) -> None:
        """Show what the filter lets through; deselect what it hides, so that no button changes it."""
        self._filter()
        if self.layer is None or not self.selection:
            return
        shown = [number for number in self.selection if number in self.rows.measurements.row_of]
        if shown != self.selection:
            self.layer.selected_label = shown[0] if shown else 0
            self.select_all(shown)

    def _show_table(self) -> None:
        """Show the measurements in the panel and in the features of the layer."""
        table = with_checked(self.session)
        self.views.show_table(table)
        self._filter()
        if self.layer is not None:
            self.layer.features = features_of(table)
            self.rows.select(self.selection or [int(self.layer.selected_label)])
        self._update()

    def _say(self, text: str) -> None:
        self._note = text
        self._update()

    def _update(self) -> None:
        busy, there = self.worker is not None, self.table is not None
        self.start_button.enabled, self.stop_button.enabled = not busy, busy
        self.bar.setVisible(busy)
        for name in ("smooth_button", "fill_button", "delete_button", "tool"):
            getattr(self, name).enabled = self.layer is not None
        for name in ("next", "checks"):
            getattr(self, name).enabled = there
        self.export_button.enabled = there and not busy
        self.save_button.enabled = self.layer is not None and not busy
        self.image_button.visible = _NOT_OPEN in self._note
        text = []
        if self.table is not None:
            total, shown = len(self.table), self.rows.measurements.rowCount()
            some = f", {shown} shown" if shown < total else ""
            saved = "" if self.session.saved else ", not saved"
            text.append(f"{total} objects{some}, {len(self.checked & self.session.rows.keys())} checked{saved}.")
            if len(self.selection) > 1:
                text.append(f"{len(self.selection)} selected.")
        elif self.layer is not None and not busy:
            text.append(
                "The objects are not measured: press Save to measure and save them, or Find objects to find them anew."
            )
        self.status.setText(" ".join([*text, self.tools.hint(self.tool.value), self._note]).strip())
