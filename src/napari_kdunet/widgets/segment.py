"""The dock widget *Segment*: the slice on screen live, or the whole volume in the background."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from qtpy.QtWidgets import QCheckBox, QFormLayout, QHBoxLayout, QLabel, QProgressBar, QPushButton, QWidget
from superqt import QLabeledDoubleSlider

from napari_kdunet.core.parsing import clock
from napari_kdunet.widgets.segmentation.volume_segmentation import VolumeSegmentation
from napari_kdunet.widgets.shared.layers import LayerChooser, voxel_size_of
from napari_kdunet.widgets.shared.models import ModelChooser, models
from napari_kdunet.widgets.shared.notify import reporting
from napari_kdunet.widgets.shared.preview import Preview
from napari_kdunet.widgets.shared.thread_worker import run

if TYPE_CHECKING:
    import napari.viewer

    from napari_kdunet.core import Model

__all__ = ["SegmentWidget"]


class SegmentWidget(QWidget):
    """Segment an image layer by a model.

    Parameters
    ----------
    napari_viewer : napari.viewer.Viewer
        Where the images are and the results go.

    Attributes
    ----------
    segmentation : VolumeSegmentation
        The segmentation of the whole volume: its result, layers and worker.
    preview : Preview or None
        The slice on screen, while that is wanted.
    model : Model or None
        The chosen model, once it is read.
    """

    def __init__(self, napari_viewer: napari.viewer.Viewer) -> None:
        super().__init__()
        self.viewer = napari_viewer
        self.segmentation = VolumeSegmentation(napari_viewer, self)
        self.preview: Preview | None = None
        self.model: Model | None = None
        self._build()
        self._connect()
        self._read_model(self.model_chooser.name)
        self._update()

    def start(self) -> None:
        """Segment the whole volume, or after a stop its remaining slices."""
        with reporting():
            model, name = self.model_chooser.model(), self.model_chooser.name
            self._describe()
            self.segmentation.start(self.image.wanted(), model, name, self.threshold.value())
            self.segmentation.show_probability(self.show_probability.isChecked())

    def stop(self) -> None:
        """Stop after the current slice; the slices done so far stay."""
        self.stop_button.setEnabled(False)
        self.segmentation.stop()

    def _build(self) -> None:
        self.image = LayerChooser(self.viewer)
        self.image.setToolTip("Image layer to segment: grey values, 2-D or 3-D. Lazy images are read slice by slice.")
        self.model_chooser = ModelChooser()
        self.description, self.status = QLabel(), QLabel()
        for label in (self.description, self.status):
            label.setWordWrap(True)
        self.description.setToolTip("What the model is, and at which pixel size it works.")
        self.threshold = QLabeledDoubleSlider()
        self.threshold.setToolTip(
            "Probability, 0 to 1, above which a voxel is foreground. Nothing is predicted again when it changes."
        )
        self.threshold.setRange(0.01, 0.99)
        self.threshold.setSingleStep(0.01)  # type: ignore[arg-type]
        self.threshold.setDecimals(2)
        self.threshold.setValue(0.5)
        self.live = QCheckBox("Slice on screen, live")
        self.live.setToolTip("Show the slice on screen segmented, and follow to other slices and thresholds.")
        self.show_probability = QCheckBox("Probability layer")
        self.show_probability.setToolTip("Show the foreground probability of the volume, 0 to 1, as an image layer.")
        self.start_button = QPushButton("Segment volume")
        self.start_button.setToolTip(
            "Segment all slices in the background into a new labels layer, beginning with the slice on screen.\n"
            "After a stop, go on with the slices that are missing."
        )
        self.stop_button = QPushButton("Stop")
        self.stop_button.setToolTip("Stop after the slice under way. What is done stays.")
        self.bar = QProgressBar()
        self.bar.setToolTip("Slices done.")
        buttons, boxes = QHBoxLayout(), QHBoxLayout()
        buttons.addWidget(self.start_button, 1)
        buttons.addWidget(self.stop_button)
        boxes.addWidget(self.live)
        boxes.addWidget(self.show_probability)
        form = QFormLayout(self)
        form.setFieldGrowthPolicy(QFormLayout.FieldGrowthPolicy.AllNonFixedFieldsGrow)
        form.addRow("Image", self.image)
        form.addRow("Model", self.model_chooser)
        form.addRow("", self.description)
        form.addRow("Threshold", self.threshold)
        for row in (boxes, buttons):
            form.addRow(row)
        form.addRow(self.bar)
        form.addRow(self.status)

    def _connect(self) -> None:
        self.image.changed.connect(self._show_preview)
        self.model_chooser.changed.connect(self._read_model)
        self.threshold.valueChanged.connect(self._threshold_changed)
        self.live.toggled.connect(self._show_preview)
        self.show_probability.toggled.connect(self.segmentation.show_probability)
        self.start_button.clicked.connect(self.start)
        self.stop_button.clicked.connect(self.stop)
        self.segmentation.changed.connect(self._update)
        removed, gone = self.viewer.layers.events.removed, self._layer_removed
        removed.connect(gone)
        self.destroyed.connect(lambda: removed.disconnect(gone))

    def _read_model(self, name: str) -> None:
        """Read the chosen model on a thread: a bundled one is a file, and the first one imports torch."""

        def read() -> Iterator[tuple[str, Model]]:
            yield name, models.get(name)

        if name:
            run(read, on_event=self._model_read, owner=self)
        else:
            self.model = None
            self._show_preview()

    def _model_read(self, read: tuple[str, Model]) -> None:
        name, model = read
        if name == self.model_chooser.name:  # the latest wins
            self.model = model
            self.threshold.setValue(model.threshold)
            self._show_preview()

    def _show_preview(self) -> None:
        """Open, update or close the preview, according to image, model and check box."""
        self._describe()
        image, preview = self.image.layer, self.preview
        if preview is not None and (preview.image != image or not self.live.isChecked()):
            self.preview = None
            preview.close()
        if not self.live.isChecked() or image is None or self.model is None:
            return
        with reporting():
            self.preview = self.preview or Preview(self.viewer, image, owner=self)
            self.preview.threshold = self.threshold.value()
            self.preview.show(self.model)

    def _describe(self) -> None:
        """Describe the model, and warn where the pixel size of the image is unknown."""
        image, model = self.image.layer, self.model
        self.description.setVisible(model is not None)
        if model is not None:
            text = f"{model.parameter_count:,} parameters, works at {model.pixel_size:g} nm a pixel."
            if model.pixel_size and image is not None and voxel_size_of(image) is None:
                text += f"\nThe scale of {image.name} has no unit of length: its pixels are taken as that wide."
            self.description.setText(text if model.pixel_size else f"{model.parameter_count:,} parameters.")

    def _layer_removed(self, event: Any) -> None:
        if self.preview is not None and self.preview.layer == event.value:
            self.live.setChecked(False)  # the user took the preview away

    def _threshold_changed(self, value: float) -> None:
        if self.preview is not None:
            self.preview.threshold = value
        self.segmentation.set_threshold(value)

    def _update(self) -> None:
        """Show the progress."""
        segmentation, result = self.segmentation, self.segmentation.result
        self.start_button.setEnabled(not segmentation.is_running)
        self.stop_button.setEnabled(segmentation.is_running)
        self.bar.setVisible(result is not None)
        self.status.setVisible(result is not None)
        if result is None:
            return
        if segmentation.probability is None and not segmentation.is_running:
            self.show_probability.setChecked(False)
        done, total = int(result.done.sum()), len(result.done)
        self.bar.setRange(0, total)
        self.bar.setValue(done)
        text, left = f"{done} of {total} slices", segmentation.seconds_left
        if left is not None:
            text += f", {clock(left)} left"
        elif not segmentation.is_running and done < total:
            text += ". Stopped: Segment volume goes on from here"
        if result.folder is not None:
            text += f".\nToo large for memory: it is in {result.folder} for as long as the layer is there. Save it"
        self.status.setText(text + ".")
