"""The dock widget *Train teacher*: train a k-Unet on an image and its labels, once or live while they are painted."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from qtpy.QtWidgets import QCheckBox, QPushButton

from napari_kdunet import core
from napari_kdunet.widgets.shared.models import ModelChooser
from napari_kdunet.widgets.shared.process_worker import run_in_process
from napari_kdunet.widgets.training.corrections import corrected_mask, iter_corrections
from napari_kdunet.widgets.training.edits import Edits
from napari_kdunet.widgets.training.form import SettingsForm
from napari_kdunet.widgets.training.inputs import Inputs, beside
from napari_kdunet.widgets.training.live import Waiting, iter_live
from napari_kdunet.widgets.training.panel import Job, TrainingPanel

if TYPE_CHECKING:
    import napari.viewer

    from napari_kdunet.core import Model, TrainConfig

__all__ = ["TrainWidget"]

_SET_BY_MODEL = ("k", "bn", "depth", "classes", "activation", "init", "prior_bias", "pixel_size")

_LIVE_TIP = (
    "Ticked: train on while you paint, until you press Stop. New strokes count within a second, and every other\n"
    "second the slice on screen is segmented again. Budget, batch, patch and learning rate are chosen for that.\n"
    "Best from a model that is trained already, on a layer of new strokes: paint where it is wrong."
)


class TrainWidget(TrainingPanel):
    """Train a k-Unet on the labelled slices of a volume.

    Parameters
    ----------
    viewer : napari.viewer.Viewer
        Where the layers are.
    """

    def __init__(self, viewer: napari.viewer.Viewer) -> None:  # napari goes by the name of the parameter
        inputs = Inputs(viewer)
        origin = ModelChooser(none="a fresh network")
        origin.setToolTip("The model to go on from: its k, BN and so on hold then, and those below are greyed out.")
        live = QCheckBox("Live, while I paint")
        live.setToolTip(_LIVE_TIP)
        corrections = QPushButton("Train on corrections")
        corrections.setToolTip(
            "Go on from the model that has segmented the volume (or the one to start from, if there is one), on the\n"
            "slices of its mask that you have painted on, together with the labels above."
        )
        rows = {**inputs.rows, "Start from": origin, " ": beside(live, corrections)}
        super().__init__(
            viewer, SettingsForm(core.TrainConfig, hidden=("ignore", "volume_weights")), inputs, rows, "Train"
        )
        self.origin, self.live, self.corrections_button = origin, live, corrections
        origin.changed.connect(lambda name: self.form.set_enabled(_SET_BY_MODEL, not name))
        self.start_with(self.view.start_button, lambda: self.live_job() if live.isChecked() else self.job())
        self.start_with(corrections, self.corrections_job)

    def job(self) -> Job:
        """Train on the chosen layers.

        Raises
        ------
        KDUNetError
            If something is missing or wrong.
        """
        raw, labels = self.inputs.volumes()
        config, origin, name = self.config(), self._origin(), self.origin.name

        def events() -> Iterator[Any]:
            start = origin()
            yield from run_in_process(core.iter_train, raw, labels, _like(start, config), start=start)

        called = f"{raw.name} from {name}" if name else f"{raw.name} k{config.k}"
        return Job("training", called, self.inputs.image.wanted(), events)

    def live_job(self) -> Job:
        """Train on the chosen layers while the user paints; errors as in `job`."""
        raw, edits = self.inputs.raw(), Edits(self.viewer, self.inputs.labels.wanted())
        config, origin = self.config().live(), self._origin()

        def events() -> Iterator[Any]:
            start = origin()
            yield from run_in_process(iter_live, raw, edits.volume, edits, _like(start, config), start)

        return Job("live", f"{raw.name} live", self.inputs.image.wanted(), events, endless=True)

    def corrections_job(self) -> Job:
        """Train the model whose mask the user has corrected on the corrected slices; errors as in `job`."""
        mask, result = corrected_mask(self.viewer)
        labels = self.inputs.labels.layer
        raw, earlier = self.inputs.volumes() if labels not in (None, mask) else (self.inputs.raw(), None)
        config, origin = self.config().going_on(), self._origin()

        def events() -> Iterator[Any]:
            start = origin() or result.model
            yield from iter_corrections(result, raw, earlier, _like(start, config), start)

        return Job("corrections", f"{raw.name} corrected", self.inputs.image.wanted(), events)

    def on_event(self, event: Any) -> None:
        """Show what a live training waits for; the next run starts from the model of a live or corrections run."""
        if isinstance(event, Waiting):
            self.view.waiting(event.what)
        elif isinstance(event, core.Validated) and self._job is not None and self._job.run != "training":
            self.origin.name = self.model_name

    def _origin(self) -> Callable[[], Model | None]:
        """A function that reads the model to start from; for the worker thread, as the first one imports torch."""
        store, name = self.origin.store, self.origin.name
        return lambda: store.get(name) if name else None


def _like(model: Model | None, config: TrainConfig) -> TrainConfig:
    """The settings, with architecture and pixel size of the model to start from."""
    return config if model is None else replace(config, **model.form_and_pixel_size)
