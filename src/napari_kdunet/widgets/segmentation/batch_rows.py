"""The rows *Several images* of *Segment*: layers and files, the progress of each, and where the results go."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from magicgui.widgets import ComboBox, LineEdit
from napari.layers import Image, Layer
from qtpy.QtCore import Qt
from qtpy.QtWidgets import QFileDialog, QHeaderView, QTableWidgetItem

from napari_kdunet import core
from napari_kdunet.core.reading.readers import READERS
from napari_kdunet.widgets.segmentation.batch import Item, Progress, images_in, is_image, iter_batch, target_of
from napari_kdunet.widgets.shared.fields import Folding, without_wheel
from napari_kdunet.widgets.shared.layers import PREVIEW, is_result, volume_of
from napari_kdunet.widgets.shared.panel import button, in_a_row, list_table
from napari_kdunet.widgets.workers.thread import EventWorker, run_stoppable

if TYPE_CHECKING:
    import napari.viewer

    from napari_kdunet.widgets.segmentation.recipe import Recipe
    from napari_kdunet.widgets.shared.panel import Panel

__all__ = ["BatchRows"]

_ROWS_IN_SIGHT = 4


class BatchRows(Folding):
    """Rows to segment several images in the background, one after the other, and to write the masks to disk.

    Parameters
    ----------
    viewer : napari.viewer.Viewer
        Viewer whose selected image layers can be added.
    panel : callable
        Returns the panel, which shows errors.
    recipe : callable
        Returns the `Recipe` set in the panel; raises a `KDUNetError` if there is none.

    Attributes
    ----------
    images : list of Layer or Path
        Images to segment.
    states : list of str
        State of each image, as it is shown.
    folder, ending : magicgui widgets
        ``batch_folder`` and ``batch_ending``: folder of the results (beside each image if empty), and their format.
    worker : EventWorker or None
        Worker of the batch that is running.
    """

    def __init__(self, viewer: napari.viewer.Viewer, panel: Callable[[], Panel], recipe: Callable[[], Recipe]) -> None:
        self.viewer, self._panel, self._recipe = viewer, panel, recipe
        self.images: list[Layer | Path] = []
        self.states: list[str] = []
        self.worker: EventWorker | None = None
        self._targets: dict[int, Path] = {}
        self._done: dict[int, tuple[Path, Recipe, str]] = {}  # target, settings, and the state as it is shown
        self.folder = LineEdit(
            name="batch_folder",
            label="Into",
            tooltip="Folder for the masks; if empty, each mask is written beside its image.",
        )
        self.folder.native.setPlaceholderText("beside each image")
        self.folder.native.setMinimumWidth(40)
        self.ending = ComboBox(
            name="batch_ending",
            label="As",
            choices=[("TIFF", ".tif"), ("OME-Zarr", ".zarr"), ("HDF5", ".h5"), ("MRC", ".mrc")],
            tooltip="File format of the masks. A Zarr that was stopped is continued at the next start.",
        )
        without_wheel(self.ending)
        self.start_button = button(
            "Segment all",
            "Segment all images of the list with the model above, in the background, and write the masks.\n"
            "An image that fails does not stop the others; existing files are not replaced.\n"
            "After a stop or a failure, go on with the images that are missing.",
            self.start,
            "batch_start",
        )
        self.stop_button = button("Stop", "Stop; masks that are complete stay.", self.stop, "batch_stop")
        self.stop_button.enabled = False
        choose = button("Choose…", "Choose the folder for the masks.", self._ask_folder)
        into = in_a_row(self.folder, choose, label=self.folder.label)
        add = in_a_row(
            button(
                "Layers", "Add the selected image layers, or all if none is selected.", self.add_layers, "add_layers"
            ),
            button("Files…", "Add files.", self._ask_files),
            button("Folder…", "Add all images of a folder.", self._ask_images),
            button("Clear", "Empty the list.", self.clear),
            label="Add",
        )
        super().__init__(
            "Several images",
            widgets=[add, into, self.ending, in_a_row(self.start_button, self.stop_button)],
            name="several_images",
            label="",
            tooltip="Segment several layers, or the files of a folder, with the model above, and write the masks.",
        )
        self.table = list_table("Image", "State")
        self._make_table()

    def add(self, images: Iterable[Layer | str | Path]) -> None:
        """Add image layers and files to the list; a folder that is no image itself adds the images in it."""
        if self.worker is not None:
            return
        for image in images:
            if isinstance(image, Layer):
                found: list[Layer | Path] = [image]
            else:
                path = Path(image)
                found = [*images_in(path)] if path.is_dir() and not is_image(path) else [path]
                if not found:
                    self._panel().tell(core.VolumeError(f"there is no image in {path}: add files, or another folder."))
            for each in found:
                if each not in self.images:
                    self.images.append(each)
                    self.states.append("")
        self._show_rows()

    def add_layers(self) -> None:
        """Add the selected image layers, or all if none is selected; results of *Segment* are left out."""
        layers = [x for x in self.viewer.layers if isinstance(x, Image) and PREVIEW not in x.metadata]
        layers = [layer for layer in layers if not is_result(layer)]
        self.add([layer for layer in layers if layer in self.viewer.layers.selection] or layers)

    def clear(self) -> None:
        """Empty the list."""
        if self.worker is None:
            self.images.clear()
            self.states.clear()
            self._done.clear()
            self._show_rows()

    def start(self) -> None:
        """Segment all images of the list that are not done yet; the row of an image that fails says why."""
        if self.worker is not None:
            return
        panel = self._panel()
        with panel.telling():
            if not self.images:
                raise core.VolumeError("there are no images to segment: add layers, files or a folder.")
            recipe = self._recipe()
            items, rows = self._items(recipe)
            self.start_button.enabled, self.stop_button.enabled = False, True
            self.worker = run_stoppable(
                lambda is_stopped: iter_batch(items, recipe, is_stopped),
                on_event=lambda event: self._take(event, rows, recipe),
                on_done=self._ended,
                on_error=self._ended,
                owner=panel.native,
            )

    def stop(self) -> None:
        """Stop; masks that are complete stay."""
        if self.worker is not None:
            self.stop_button.enabled = False
            self.worker.stop()

    def abandon(self) -> None:
        """Stop because the panel is closed; masks that are complete stay."""
        if self.worker is not None:
            self.worker.drop()
            self._ended()

    def _items(self, recipe: Recipe) -> tuple[list[Item], list[int]]:
        """Return the images that are to be segmented, and their rows; the states of the others say why not."""
        try:
            folder = Path(self.folder.value).expanduser() if self.folder.value.strip() else None
        except RuntimeError as error:  # for example of "~nobody"
            raise core.OutputError(f"there is no folder {self.folder.value}: choose another one.") from error
        self._targets.clear()
        items: list[Item] = []
        rows: list[int] = []
        for row, image in enumerate(self.images):
            name = image.name
            try:
                source: core.Volume | Path = volume_of(image) if isinstance(image, Layer) else image
                path = image.source.path if isinstance(image, Layer) else image
                file = Path(path) if path else None
                target = target_of(name, file, folder, self.ending.value, self._targets.values())
                self._targets[row] = target
                if row in self._done and self._done[row][:2] == (target, recipe) and target.exists():
                    self._show(row, self._done[row][2])
                    continue
                items.append(Item(name, source, target))
                rows.append(row)
                self._show(row, "waiting")
            except core.KDUNetError as error:
                self._show(row, f"failed: {error}")
        return items, rows

    def _take(self, event: Progress, rows: list[int], recipe: Recipe) -> None:
        row = rows[event.index]
        note = f" ({event.note})" if event.note else ""
        if event.error:
            self._show(row, f"failed: {event.error}")
        elif event.share < 1:
            self._show(row, f"{event.share:.0%}{note}")
        else:
            self._show(row, f"done: {self._targets[row].name}{note}")
            self._done[row] = self._targets[row], recipe, self.states[row]

    def _ended(self, error: Exception | None = None) -> None:
        self.worker = None
        if error is not None:
            self._panel().show_error(error)
        self.start_button.enabled, self.stop_button.enabled = True, False
        for row, state in enumerate(self.states):
            if state == "waiting" or state.partition(" (")[0].endswith("%"):
                self._show(row, "stopped")

    def _make_table(self) -> None:
        table = self.table
        header, side = table.horizontalHeader(), table.verticalHeader()
        assert header is not None
        assert side is not None
        table.setTextElideMode(Qt.TextElideMode.ElideRight)  # the tooltip has the whole text
        header.setSectionResizeMode(0, QHeaderView.ResizeMode.Interactive)
        table.setMinimumWidth(40)
        rows = _ROWS_IN_SIGHT * side.defaultSectionSize()
        table.setFixedHeight(header.sizeHint().height() + rows + 2 * table.frameWidth())
        layout = self.fold.content().layout()
        assert layout is not None
        layout.addWidget(table)

    def _show_rows(self) -> None:
        self.table.setRowCount(len(self.images))
        for row, (image, state) in enumerate(zip(self.images, self.states, strict=True)):
            item = QTableWidgetItem(image.name)
            item.setToolTip(image.name if isinstance(image, Layer) else str(image))
            self.table.setItem(row, 0, item)
            self._show(row, state)

    def _show(self, row: int, state: str) -> None:
        self.states[row] = state
        item = QTableWidgetItem(state)
        item.setToolTip(state)
        self.table.setItem(row, 1, item)

    def _ask_files(self) -> None:
        endings = " ".join(f"*{ending}" for ending in READERS)
        paths, _ = QFileDialog.getOpenFileNames(self.native, "Add images", "", f"Images ({endings})")
        self.add(paths)

    def _ask_images(self) -> None:
        path = QFileDialog.getExistingDirectory(self.native, "Add the images of a folder")
        self.add([path] if path else [])

    def _ask_folder(self) -> None:
        path = QFileDialog.getExistingDirectory(self.native, "Folder of the results")
        if path:
            self.folder.value = path
