"""The dock widget *Objects*: from a mask to numbered objects, their table, and corrections."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from napari.layers import Labels, Layer
from qtpy.QtWidgets import QFileDialog

from napari_kdunet.core import LabelsError, instances, open_volume
from napari_kdunet.core.objects.measure import write_table
from napari_kdunet.widgets.comparison.layer_pair import can_be_compared
from napari_kdunet.widgets.proofreading import edits
from napari_kdunet.widgets.proofreading.background import Check
from napari_kdunet.widgets.proofreading.measuring import MaskCorrections, Measurement
from napari_kdunet.widgets.proofreading.panel import ProofreadingPanel
from napari_kdunet.widgets.proofreading.session import (
    IN_MEMORY,
    Reference,
    Session,
    grid_as_json,
    image_layer,
    save_session,
    session_layers,
    stamp_of,
)
from napari_kdunet.widgets.proofreading.snapshot import Snapshot
from napari_kdunet.widgets.proofreading.table.object_table import suspicion
from napari_kdunet.widgets.shared.layers import OBJECTS, RESULT, grid_of

if TYPE_CHECKING:
    import napari.viewer

__all__ = ["ObjectsWidget"]

_NONE = "there are no objects: lower the threshold or the minimum diameter, and press Find objects again."


class ObjectsWidget(ProofreadingPanel):
    """Split a mask or probabilities into objects, measure and correct them.

    Attributes are those of `ProofreadingPanel`.

    Parameters
    ----------
    viewer : napari.viewer.Viewer
        Viewer of the layers.
    """

    def __init__(self, viewer: napari.viewer.Viewer) -> None:
        super().__init__(viewer, can_be_compared)

    def start(self) -> None:
        """Find the objects of the chosen layer and measure them, in the background."""
        if self.worker is not None:
            return
        with self.telling():
            source = self._chosen_source()
            volume, config = self._volume_to_measure(source), self.config
            session = Session(Reference.of(self._image_layer()), Reference.of(source), config)
            measuring = session.measuring(self.raw.value, source)
            result, grid, name = source.metadata.get(RESULT), grid_of(source), f"{source.name} objects"
            done = len(volume) if result is None else int(np.count_nonzero(result.done))
            self.source.held = True

            def work(check: Check) -> Iterator[Any]:
                outlines = None if result is None else result.outlines
                found = instances(volume, config, boundary=outlines, progress=check)
                ids = np.asarray(found) if found.nbytes <= IN_MEMORY else found
                objects = open_volume(ids, voxel_size=volume.voxel_size)
                if result is not None and isinstance(ids, np.ndarray):
                    session.corrections = MaskCorrections(result, objects)
                yield ids[0] if source.ndim == 2 else ids
                yield measuring.measure(objects, check, in_memory=isinstance(ids, np.ndarray))

            def take(event: Any) -> None:
                if isinstance(event, Measurement):
                    self._take_table(session, event)
                    if not len(event.table):
                        self._say(f"{_NONE[0].upper()}{_NONE[1:]}")
                    if done < len(volume):
                        self._say(f"Only {done} of {len(volume)} slices were segmented when the objects were found.")
                else:
                    self.live.value = False
                    self.viewer.add_layer(Labels(event, name=name, metadata={OBJECTS: session}, **grid))

            def lost() -> None:
                session.stale = True

            self.background.run(work, take, lost)

    def stop(self) -> None:
        """Stop what runs in the background, which then has no result."""
        self.background.stop()

    def next_suspicious(self) -> None:
        """Go to the most suspicious of the objects that are not checked."""
        with self.telling():
            table = self._measured()
            if not len(table):
                raise LabelsError(_NONE)
            left = table[~table["id"].isin(list(self.checked))]
            if not len(left):
                raise LabelsError("all objects are checked.")
            self.select(int(left["id"][suspicion(table)[left.index].idxmax()]))

    def check(self) -> None:
        """Mark the selected objects as checked, and go to the next suspicious one."""
        with self.telling():
            table = self._measured()
            chosen = self.session.rows.keys() & self._selected()
            if not chosen:
                raise LabelsError(edits.NOT_SELECTED)
            self.checked.update(chosen)
            self._changed()
            self._show_table()
            if len(self.checked & self.session.rows.keys()) < len(table):
                self.next_suspicious()

    def smooth(self) -> None:
        """Smooth the outline of the selected object."""
        with self.telling():
            edits.smooth_object(self._objects(), self._selected()[0])

    def fill(self) -> None:
        """Fill the selected object in slices where it is missing, between slices that have it."""
        with self.telling():
            edits.fill_between(self._objects(), self._selected()[0])

    def delete(self) -> None:
        """Delete the selected objects, as one step."""
        with self.telling():
            edits.delete_objects(self._objects(), self._selected())

    def export(self, path: str) -> None:
        """Write the objects that the table shows, with all measurements, as CSV or (.parquet) Parquet."""
        with self.telling():
            shown = self._shown()
            if self.worker is not None or self.session.stale:
                self._measure_soon()
                raise LabelsError("objects are still being found, measured or saved: export them when that has ended.")
            write_table(shown, path)
            self._say(f"Wrote {len(shown)} of {len(self._measured())} objects to {Path(path).name}.")

    def save(self, path: str) -> None:
        """Save the present objects, measurements and checks as a session, in the background."""
        if self.worker is not None:
            return
        with self.telling():
            layer, session = self._objects(), self.session
            session.image = Reference.of(self._image_layer()) or session.image
            session.selected = int(layer.selected_label)
            snapshot, options, stale = Snapshot(layer), grid_as_json(layer), session.stale
            measuring = session.measuring(self.raw.value, self._source_layer())
            now = replace(session, checked=set(session.checked))
            session.saved, session.stale = True, False

            def work(check: Check) -> Iterator[Any]:
                ids = snapshot.read(check)
                if stale or now.table is None:
                    found = measuring.measure(ids, check, in_memory=snapshot.in_memory)
                    now.table = found.table
                    yield found
                save_session(path, ids, now, options, lambda z: check(z / len(ids)))
                session.stamp = stamp_of(Path(path))
                yield Path(path).absolute()

            def take(event: Any) -> None:
                if isinstance(event, Measurement):
                    self._take_table(session, event)
                else:
                    session.path = event
                    self._say(f"Saved in {event.name}.")

            def lost(_: Any = None) -> None:
                session.saved, session.stale = False, session.stale or stale

            self.background.run(work, take, lost)

    def open(self, path: str) -> None:
        """Open a session that was saved, in the background."""
        if self.worker is not None:
            return
        there = list(self.viewer.layers)

        def work(_: Check) -> Iterator[Any]:
            yield session_layers(path, there)

        def take(layers: Any) -> None:
            for data, options, kind in layers:
                self.viewer.add_layer(Layer.create(data, options, kind))

        self.background.run(work, take)

    def show_image(self, path: str) -> None:
        """Open the image of a session from where it is now."""
        with self.telling():
            layer, image = self._objects(), self.session.image
            if image is None:
                raise LabelsError("this session has no image: open one, and choose it under Image.")
            self.viewer.add_layer(Layer.create(*image_layer(path, image, grid_of(layer))))
            self.viewer.layers.move(len(self.viewer.layers) - 1, 0)
            self._find_image()

    def click(self, point: Any) -> None:
        """Use the chosen `tool` at a point, in pixels of the objects' layer."""
        self.stroke([point])

    def stroke(self, points: list[Any]) -> None:
        """Use the chosen `tool` along a stroke, in pixels of the objects' layer."""
        with self.telling():
            self.tools.use(self.tool.value, self._objects(), points)
        self._update()

    def ask_and_export(self) -> None:
        """Ask for a file, and export the table to it."""
        path, _ = QFileDialog.getSaveFileName(
            self.native, "Export measurements", "objects.csv", "Tables (*.csv *.parquet)"
        )
        if path:
            self.export(path if Path(path).suffix else f"{path}.csv")

    def ask_and_save(self) -> None:
        """Save the session where it was saved before, or else ask where."""
        path = "" if self.session.path is None else str(self.session.path)
        if not path and self.layer is not None:
            image = self.session.image
            folder = Path(image.path).parent if image is not None and image.path else Path()
            path, _ = QFileDialog.getSaveFileName(
                self.native, "Save objects", str(folder / f"{self.layer.name}.zarr"), "OME-Zarr (*.zarr)"
            )
        if path:
            self.save(path if path.lower().endswith(".zarr") else f"{path}.zarr")

    def ask_and_open(self) -> None:
        """Ask which session, and open it."""
        path = QFileDialog.getExistingDirectory(self.native, "Open objects (the .zarr folder)")
        if path:
            self.open(path)

    def ask_for_image(self) -> None:
        """Ask where the image of the session is, and open it."""
        image = self.session.image
        before = "" if image is None else image.path
        if before.endswith(".zarr"):
            path = QFileDialog.getExistingDirectory(self.native, "Open the image", before)
        else:
            path, _ = QFileDialog.getOpenFileName(self.native, "Open the image", before)
        if path:
            self.show_image(path)
