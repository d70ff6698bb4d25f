"""The dock widget *Train teacher*: train a k-Unet on an image and its labels, once or live while they are painted."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from magicgui.widgets import CheckBox, PushButton
from napari.utils.notifications import show_info

from napari_kdunet import core
from napari_kdunet.widgets.shared.edited_slices import EditedSlices
from napari_kdunet.widgets.shared.fields import Folding
from napari_kdunet.widgets.shared.layers import IGNORE_UNLABELLED, chosen_layer, segmented_image, volume_of
from napari_kdunet.widgets.shared.models import ModelChoice, models
from napari_kdunet.widgets.training.check import Agreement, add_agreement, keep_strokes_aside, name_check
from napari_kdunet.widgets.training.corrections import (
    corrected_mask,
    iter_corrections,
    result_of_objects,
    results_of_image,
)
from napari_kdunet.widgets.training.inputs import check, check_image, ignore_box, input_rows, volumes
from napari_kdunet.widgets.training.live import Waiting, iter_live
from napari_kdunet.widgets.training.panel import Job, TrainingPanel
from napari_kdunet.widgets.training.settings import Settings
from napari_kdunet.widgets.workers.process import run_in_process

if TYPE_CHECKING:
    import napari.viewer

    from napari_kdunet.core import Model, TrainConfig

__all__ = ["TrainWidget"]

_SET_BY_MODEL = ("k", "bn", "depth", "classes", "boundary", "activation", "init", "prior_bias", "pixel_size")

_IF_INVERTED = "A fresh network learns either contrast; a model that you start from has to learn this one anew."
_KEEP_TIP = (
    "Ticked: on slices with strokes, the model that you start from teaches what you have not painted, so that strokes\n"
    "add to what it knows. Untick it to learn something else. This has an effect only while\n"
    f"“{IGNORE_UNLABELLED}” is ticked, and none on corrected slices, which count as labelled throughout."
)
_LIVE_TIP = (
    "Ticked: training goes on while you paint, until you press Stop. New strokes count within a second, and every\n"
    "other second the slice on screen is segmented again. Budget, batch, patch and learning rate are chosen for this.\n"
    "Works best from a trained model, on a layer of new strokes: paint where the model is wrong."
)


class TrainWidget(TrainingPanel):
    """Train a k-Unet on the labelled slices of a volume.

    Parameters
    ----------
    viewer : napari.viewer.Viewer
        Viewer of the layers.

    Attributes
    ----------
    image, image_pixel_size, labels_layer, quality : magicgui widgets
        Rows that are in sight.
    origin, keep, live, sparse : magicgui widgets
        Model to start from, whether it teaches the unlabelled pixels, whether to train while the user paints, and
        whether unlabelled pixels are ignored.
    """

    def __init__(self, viewer: napari.viewer.Viewer) -> None:  # napari injects it by this name
        settings = Settings(core.TrainConfig)
        origin = ModelChoice(
            name="origin",
            label="Start from",
            none="a fresh network",
            first=lambda _: None,
            tooltip="Model to continue training from. Its k, batch normalisation and so on are kept, and these "
            "settings are greyed out.",
        )
        keep = CheckBox(name="keep", text="Keep what it knows", value=True, tooltip=_KEEP_TIP)
        live = CheckBox(name="live", text="Live, while I paint", tooltip=_LIVE_TIP)
        corrections = PushButton(
            name="corrections_button",
            text="Train on corrections",
            tooltip="Continue training the model that has segmented the volume (or the one under Start from, if any)\n"
            "on all slices that you have corrected in its mask and in other masks of the image, together with the\n"
            "labels above.",
        )
        more = Folding(
            "Strokes, corrections, going on",
            widgets=[ignore_box(), live, origin.with_buttons(), keep, corrections],
            name="more",
            label="",
            tooltip="Paint a few strokes instead of whole slices, correct a mask, or go on from a model.",
        )
        finds = (lambda: origin.value or models.best_for(""), lambda: self.native, _IF_INVERTED)
        super().__init__(viewer, settings, input_rows(viewer, self.add_strokes, finds), [more], "Train")
        origin.failed.connect(self.show_error)
        origin.changed.connect(lambda name: settings.set_enabled(_SET_BY_MODEL, not name))
        self._start: Any = None  # name of the model that the run starts from
        self._given: Any = None  # name of the model that a run on this image has set as the next start
        self.image.changed.connect(self._take_back_start)
        self.start_with(self.view.start_button, self.job)
        self.start_with(corrections.native, self.corrections_job)

    def job(self) -> Job:
        """Return the job to train on the chosen layers; if `live` is ticked, to train while the user paints.

        Raises
        ------
        KDUNetError
            If something is missing or wrong.
        """
        if self.live.value:
            return self.live_job()
        raw, labels = volumes(self.image, self.labels_layer)
        assert labels is not None  # labels are required
        config, origin, name, keep = self.config(), self._origin(), self.origin.value, self.keep.value
        check(self.image, self.labels_layer, config)

        def events() -> Iterator[Any]:
            start = origin()
            settings, kept = _like(start, config), keep_strokes_aside(labels, config)
            if kept is None:
                events = run_in_process(core.iter_train, raw, labels, settings, start=start, keep=keep)
                yield from add_agreement(events, raw)
                return
            settings = replace(settings, ignore=0, slices="auto", val_share=0.0)
            val = raw, kept.check
            events = run_in_process(core.iter_train, raw, kept.train, settings, start=start, keep=keep, val=val)
            yield from name_check(events, kept)

        called = f"{raw.name} from {name}" if name else f"{raw.name} k{config.k}"
        return Job("training", called, chosen_layer(self.image), events)

    def live_job(self) -> Job:
        """Return the job to train on the chosen layers while the user paints; raises the errors of `job`."""
        raw, _ = volumes(self.image, self.labels_layer)
        check_image(self.image)
        edits = EditedSlices(self.viewer, chosen_layer(self.labels_layer))
        config, origin, keep = self.config().live(), self._origin(), self.keep.value

        def events() -> Iterator[Any]:
            start = origin()
            yield from run_in_process(iter_live, raw, edits.volume, edits, _like(start, config), start, keep)

        return Job("live", f"{raw.name} live", chosen_layer(self.image), events, endless=True)

    def corrections_job(self) -> Job:
        """Return the job to train a model on the corrected slices of its mask; raises the errors of `job`."""
        mask, result = corrected_mask(self.viewer)
        image = segmented_image(mask)
        if image is None or image not in self.viewer.layers:  # removed, and perhaps opened anew
            image = chosen_layer(self.image)
        raw, earlier = volume_of(image), None
        chosen, of_another = self.labels_layer.value, image is not self.image.value
        if chosen not in (None, mask) and result_of_objects(chosen) is not result:  # its own objects do not count
            if of_another:
                show_info(
                    f"{mask.name} is a mask of {image.name}: the labels {chosen.name}, of another image, are not used."
                )
            else:
                raw, earlier = volumes(self.image, self.labels_layer)
        if raw.shape != result.mask.shape:
            raise core.LabelsError(
                f"{mask.name} has shape {result.mask.shape}, but {raw.name} {raw.shape}: choose the image that the "
                "mask is of under Image, or segment this one."
            )
        raw = core.open_volume(raw, invert=result.inverted)  # as the model saw it
        config, origin, keep = self.config().going_on(), self._origin(), self.keep.value
        results = results_of_image(self.viewer, mask)

        def events() -> Iterator[Any]:
            start = origin() or result.model
            yield from iter_corrections(results, raw, earlier, _like(start, config), start, keep)

        return Job("corrections", f"{raw.name} corrected", image, events, inverted=result.inverted)

    def on_event(self, event: Any) -> None:
        """Show what a live training waits for, and the check; let the next run start from a live or corrected model."""
        if isinstance(event, Waiting):
            self.view.waiting(event.what)
        elif isinstance(event, Agreement):
            self.view.show_agreement(event.iou)
        elif isinstance(event, core.Validated) and self._job is not None and self._job.run != "training":
            self._leave_start()

    def _leave_start(self) -> None:
        """Let the next run start from this one's model, unless the user has chosen another start meanwhile."""
        assert self._job is not None
        if self.origin.value == self._start and self._job.image is self.image.value:
            self._start = self._given = self.origin.value = self.model_name

    def _take_back_start(self) -> None:
        """Clear a start that a run has set: the user has not chosen it for another image."""
        if self._given and self.origin.value == self._given:
            self.origin.value = None
        self._given = ""

    def start(self, make_job: Callable[[], Job] | None = None) -> None:
        """Start a run, as in `TrainingPanel.start`, and remember which model it starts from."""
        self._start = self.origin.value
        super().start(make_job)

    def _origin(self) -> Callable[[], Model | None]:
        """Return a function that reads the model to start from; the worker thread calls it, as it may import torch."""
        store, name = self.origin.store, self.origin.value
        return lambda: store.get(name) if name else None


def _like(model: Model | None, config: TrainConfig) -> TrainConfig:
    """Return the settings, with architecture and pixel size of the model to start from."""
    return config if model is None else replace(config, **model.form_and_pixel_size)
