"""The dock widget *Segment*: the slice on screen live, or the whole volume in the background."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

from magicgui.widgets import CheckBox, ComboBox
from qtpy.compat import isalive
from qtpy.QtWidgets import QProgressBar

from napari_kdunet.core.config.limits import VIEWS
from napari_kdunet.core.formatting import clock, format_slices
from napari_kdunet.widgets.segmentation.batch_rows import BatchRows
from napari_kdunet.widgets.segmentation.recipe import Recipe, is_same
from napari_kdunet.widgets.segmentation.volume_segmentation import VolumeSegmentation
from napari_kdunet.widgets.shared.fields import threshold_slider, without_wheel
from napari_kdunet.widgets.shared.layers import chosen_layer, layer_choice, voxel_size_of
from napari_kdunet.widgets.shared.models import ModelChoice, models
from napari_kdunet.widgets.shared.panel import Panel, button, in_a_row, note, wrapped_label
from napari_kdunet.widgets.shared.parts import PartChoice
from napari_kdunet.widgets.shared.pixel_size import PixelSize
from napari_kdunet.widgets.shared.preview import Preview, warm_up
from napari_kdunet.widgets.workers.thread import run

if TYPE_CHECKING:
    import napari.viewer

    from napari_kdunet.core import Model, PixelSizeSearch
    from napari_kdunet.widgets.segmentation.result import Result

__all__ = ["SegmentWidget"]

_AS_MODEL = 0  # value of `views`: as many as the model says
_USUAL_THRESHOLD = 0.1  # distance from 0.5: a threshold that is further away is explained


class SegmentWidget(Panel):
    """Segment an image layer by a model.

    Parameters
    ----------
    napari_viewer : napari.viewer.Viewer
        Viewer that holds the images and gets the results.

    Attributes
    ----------
    image, image_pixel_size, model, inverted, views, planes, threshold, live, show_probability : magicgui widgets
        Image, its pixel size in nm, name of the model, whether bright and dark are exchanged for the model, number of
        views of a slice to average over (0: as many as the model says), axes along which slices are predicted,
        threshold, and what to show.
    segmentation : VolumeSegmentation
        The segmentation of the whole volume: its result, layers and worker.
    batch : BatchRows
        Rows to segment several images and write the masks to disk.
    preview : Preview or None
        Preview of the slice on screen, while `live` is ticked.
    loaded : Model or None
        The chosen model, once it is read, averaged over the chosen views.
    """

    def __init__(self, napari_viewer: napari.viewer.Viewer) -> None:
        self.preview: Preview | None = None
        self.loaded: Model | None = None
        self._read: Model | None = None  # the chosen model before the views are chosen
        self._is_found_inverted = False
        self.bar, self.status = QProgressBar(), wrapped_label()
        self.bar.setToolTip("Slices done so far; counted in tiles where slices are large.")
        start = button(
            "Segment volume",
            "Segment all slices in the background into a new labels layer, beginning with the slice on screen.\n"
            "After a stop, go on with the slices that are missing.",
            self.start,
            "start_button",
        )
        stop = button(
            "Stop",
            "Stop after the current slice (of large slices, the current tile). What is done stays.",
            self.stop,
            "stop_button",
        )
        super().__init__(napari_viewer, self._rows(napari_viewer), [self.status], [in_a_row(start, stop), self.bar])
        self.segmentation = VolumeSegmentation(napari_viewer, self.native, on_error=self.show_error)
        self._connect()
        warm_up(self.native)
        self._read_model(self.model.value)
        self._update()

    def start(self) -> None:
        """Segment the whole volume, or after a stop its remaining slices."""
        with self.telling():
            recipe = self._recipe()
            self._describe()
            self.segmentation.start(chosen_layer(self.image), recipe, self.show_probability.value)

    def stop(self) -> None:
        """Stop after the current tile; what is done so far stays."""
        self.stop_button.enabled = False
        self.segmentation.stop()

    def _rows(self, viewer: napari.viewer.Viewer) -> list[Any]:
        image = layer_choice(
            viewer,
            name="image",
            label="Image",
            tooltip="Image layer to segment: grey values, 2-D or 3-D. Lazy images are read slice by slice.",
        )
        model = ModelChoice(first=lambda _: models.best_for(image.value.name if image.value else ""), sticky=False)
        threshold = threshold_slider(
            "Probability, 0 to 1, above which a voxel is foreground. Nothing is predicted again when it changes.\n"
            "Higher: marks only what the model is sure of. Lower: finds more, with more errors."
        )
        live = CheckBox(
            name="live",
            text="Slice on screen, live",
            tooltip="Segment the slice on screen, and again when you go to another slice or move the threshold.",
        )
        probability = CheckBox(
            name="show_probability",
            text="Probability layer",
            tooltip="Show the foreground probability of the volume, 0 to 1, as an image layer.",
        )
        inverted = CheckBox(
            name="inverted",
            text="Inverted contrast",
            tooltip="Exchange bright and dark before the model sees the image: for images in which membranes and "
            "mitochondria are bright.\nFind ticks it if that makes the model much surer.",
        )
        views = ComboBox(
            name="views",
            label="Views",
            value=_AS_MODEL,
            choices=[("as the model says", _AS_MODEL), *((str(n), n) for n in VIEWS)],
            tooltip="Test-time augmentation: predict each slice this many times, mirrored and turned, and take the "
            "mean.\nA little more exact, most with small networks and on unfamiliar images; it takes that many times "
            "as long.",
        )
        planes = ComboBox(
            name="planes",
            label="Planes",
            choices=[("along z", "z"), ("along z, y and x", "zyx")],
            tooltip="Also predict the slices along y and x of the volume, and take the mean: more exact in isotropic "
            "volumes of about 100 slices or more; takes at least three times as long.\n"
            "Computed block by block, as memory allows; the live preview of the slice on screen uses z alone.",
        )
        for choice in (views, planes):
            without_wheel(choice)
        description = note("description", "What the model is, and at which pixel size it works.")
        pixel_size = PixelSize(
            viewer,
            image,
            lambda: model.value,
            lambda: self.native,
            "“Inverted contrast” is now ticked to correct this.",
        )
        pixel_size.found.connect(self._found)
        part = PartChoice(viewer, image)
        self.batch = BatchRows(viewer, lambda: self, self._recipe)
        rows = [image, part, pixel_size, model.with_buttons(), description, inverted, views, planes, threshold]
        return [*rows, live, probability, self.batch]

    def _recipe(self) -> Recipe:
        """Return how to segment; raises the errors of `ModelChoice.model`."""
        return self._recipe_by(self._take(self.model.model()))

    def _recipe_by(self, model: Model) -> Recipe:
        return Recipe(model, self.model.value, self.threshold.value, self.inverted.value, self.planes.value)

    def _take(self, model: Model) -> Model:
        """Set `loaded` to a model that has been read, averaged over the chosen views, and return it."""
        is_new, self._read = model is not self._read or self.loaded is None, model
        views = self.views.value or model.views
        self.loaded = model if views == model.views else model.with_views(views)
        if is_new:  # else only the list of models has changed, and the user may have set the threshold
            self.threshold.value = min(max(model.threshold, self.threshold.min), self.threshold.max)
        return self.loaded

    def _connect(self) -> None:
        self.image.changed.connect(self._forget_found)
        self.image.changed.connect(lambda: self.model.reset_choices())
        self.planes.changed.connect(lambda: self._update())
        for seen in (self.image, self.image_pixel_size, self.inverted):
            seen.changed.connect(self._show_preview)
            seen.changed.connect(lambda: self._update())
        self.views.changed.connect(self._views_changed)
        self.model.changed.connect(self._read_model)
        self.model.failed.connect(self.show_error)
        self.threshold.changed.connect(self._threshold_changed)
        self.live.changed.connect(self._show_preview)
        self.show_probability.changed.connect(self.segmentation.show_probability)
        self.segmentation.changed.connect(self._update)
        self.viewer.layers.events.removed.connect(self._layer_removed)

    def _found(self, search: PixelSizeSearch) -> None:
        self.inverted.value = self._is_found_inverted = search.inverted

    def _forget_found(self) -> None:
        """Untick `inverted` if a search has ticked it: what was found in one image says nothing about the next."""
        if self._is_found_inverted:
            self.inverted.value = self._is_found_inverted = False

    def _read_model(self, name: str | None) -> None:
        """Read the chosen model on a thread: a bundled one is a file, and the first one imports torch."""

        def read() -> Iterator[tuple[str, Model]]:
            assert name
            yield name, models.get(name)

        if name:
            run(read, on_event=self._model_read, on_error=partial(self._model_failed, name), owner=self.native)
        else:
            self.loaded = None
            self._show_preview()

    def _model_read(self, read: tuple[str, Model]) -> None:
        name, model = read
        if name == self.model.value:  # the latest wins
            if self.loaded is None:
                self.error_label.hide()  # the error of a model that could not be read
            self._take(model)
            self._show_preview()
            self._update()

    def _views_changed(self) -> None:
        if self._read is not None and self.loaded is not None:
            self._take(self._read)
            self._show_preview()
            self._update()

    def _model_failed(self, name: str, error: Exception) -> None:
        if name == self.model.value:
            self.loaded = None
            self.show_error(error)
            self._show_preview()

    def _show_preview(self) -> None:
        """Open, update or close the preview, according to image, model and check box."""
        self._describe()
        image, preview = self.image.value, self.preview
        if preview is not None and (preview.image != image or not self.live.value or self.loaded is None):
            self.preview = None
            preview.close()
        if not self.live.value or image is None or self.loaded is None:
            return
        with self.telling():
            self.preview = self.preview or Preview(self.viewer, image, owner=self.native, on_error=self.show_error)
            self.preview.threshold, self.preview.inverted = self.threshold.value, self.inverted.value
            self.preview.show(self.loaded)

    def _describe(self) -> None:
        """Describe the model, and warn where the pixel size of the image is unknown."""
        image, model = self.image.value, self.loaded
        self.description.visible = model is not None
        if model is None:
            return
        lines = [f"{model.parameter_count:,} parameters."]
        if model.pixel_size:
            lines = [f"{model.parameter_count:,} parameters, works at {model.pixel_size:g} nm a pixel."]
            if image is not None and voxel_size_of(image) is None:
                lines.append(f"The pixel size of {image.name} is not known: its pixels are assumed to be that wide.")
        if model.context:
            lines.append(f"It sees {model.context} neighbouring slices on each side of a slice.")
        if model.views > 1:
            lines.append(f"It looks at each slice {model.views} times, mirrored, and takes the mean.")
        if abs(model.threshold - 0.5) > _USUAL_THRESHOLD:
            lines.append(f"Its threshold is {model.threshold:.2g} rather than 0.5.")
        self.description.value = "\n".join(lines)

    def dock_closed(self) -> None:
        """Stop what is running, and remove the preview, which would no longer follow the user."""
        self.segmentation.abandon()
        self.batch.abandon()
        self.live.value = False

    def _layer_removed(self, event: Any) -> None:
        if isalive(self.native) and self.preview is not None and self.preview.layer == event.value:
            self.live.value = False  # the user took the preview away

    def _threshold_changed(self, value: float) -> None:
        if self.preview is not None:
            self.preview.threshold = value
        result = self.segmentation.result
        if result is not None and self.loaded is not None and is_same(result.model, self.loaded):
            self.segmentation.set_threshold(value)  # the threshold of another model is not for this mask
            self._update()

    def _goes_on(self) -> bool:
        """Return whether a start would continue with the missing slices."""
        image, model = self.image.value, self.loaded
        if image is None or model is None:
            return False
        return self.segmentation.goes_on(image, self._recipe_by(model))

    def _update(self) -> None:
        """Show the progress."""
        segmentation, result = self.segmentation, self.segmentation.result
        self.start_button.enabled = not segmentation.is_running
        self.stop_button.enabled = segmentation.is_running
        self.bar.setVisible(result is not None)
        self.status.setVisible(result is not None)
        if result is None:
            return
        self.show_probability.value = segmentation.probability is not None
        done, total = int(result.done.sum()), len(result.done)
        self.bar.setRange(0, total * result.tiles)
        self.bar.setValue(int(result.tiles_done.sum()))
        text, left = f"{done} of {total} slices", segmentation.seconds_left
        if result.tiles > 1 and done < total:
            text += f", {self.bar.value():,} of {self.bar.maximum():,} tiles"
        if left is not None:
            text += f", {clock(left)} left"
        elif not segmentation.is_running and done + int(result.failed.sum()) < total:
            how = "goes on from here" if self._goes_on() else "begins anew, as set above"
            text += f". Stopped: Segment volume {how}"
        self.status.setText(".\n".join([text, *self._notes(result)]) + ".")

    def _notes(self, result: Result) -> Iterator[str]:
        """Yield what there is to say about a result, without full stops."""
        segmentation = self.segmentation
        if result.failed.any():
            yield f"No result at z = {format_slices(result.failed.nonzero()[0])}: Segment volume tries again"
        if result.lost.any():
            yield f"No image at z = {format_slices(result.lost.nonzero()[0])}: taken as background"
        if result.folder is not None:
            yield f"The result is too large for memory: it is in {result.folder} only while its layer exists. Save it"
        if result.is_pyramid:
            yield "The mask is a pyramid, on which napari cannot paint: to correct it, segment a part of the image"
        if not segmentation.follows:
            yield "The data of the mask layer were replaced: the threshold no longer changes it"
        if segmentation.kept:
            new = "" if segmentation.mask is None else f" “{segmentation.mask.name}”"
            yield f"You have painted on “{segmentation.kept}”: it stays as it is, and the new mask{new} lies beside it"
