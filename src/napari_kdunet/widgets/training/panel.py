"""The base of the panels that train: settings, a run in the background, curves, the preview and the best model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from magicgui.widgets.bases import Widget
from napari.layers import Layer
from napari.utils.notifications import show_warning
from qtpy.QtWidgets import QPushButton

from napari_kdunet import core
from napari_kdunet.widgets.shared.layers import chosen_layer
from napari_kdunet.widgets.shared.models import ask_and_save, models
from napari_kdunet.widgets.shared.panel import Panel
from napari_kdunet.widgets.shared.preview import Preview, warm_up
from napari_kdunet.widgets.shared.session_folder import SessionFolder
from napari_kdunet.widgets.training.closing import CloseGuard
from napari_kdunet.widgets.training.inputs import new_strokes
from napari_kdunet.widgets.training.run_view import RunView
from napari_kdunet.widgets.training.settings import Settings
from napari_kdunet.widgets.workers.process import prepare, release
from napari_kdunet.widgets.workers.thread import EventWorker, run

if TYPE_CHECKING:
    import napari.viewer

__all__ = ["Job", "TrainingPanel"]

_REST_MS = 150  # ms without scrolling before a slice is predicted: each prediction slows the training down


@dataclass(frozen=True)
class Job:
    """A training run: its name in the plot, its model's name in the list, its image, and what makes its events."""

    run: str
    model_name: str
    image: Layer
    make_events: Callable[[], Iterator[Any]]
    endless: bool = False
    """Whether the run has no budget: it runs until it is stopped, and its latest model is kept, not its best, as labels
    that change make scores incomparable."""
    inverted: bool = False
    """Whether bright and dark of the image are exchanged for the network."""
    settings: Any = None
    """Settings that another run on the same image must share to be shown in the same plot."""
    is_control: bool = False
    """Whether the model is there only for comparison, and is never suggested for use."""


class TrainingPanel(Panel):
    """Base of the widgets that train.

    A subclass gives its rows and makes the `Job` that each of its buttons starts. From the first validation on, the
    best model so far is in the list of models and in the folder of the session, so that no later error can lose it.

    Parameters
    ----------
    viewer : napari.viewer.Viewer
        Viewer of the layers.
    settings : Settings
        The settings of the kind of training.
    inputs : sequence of magicgui widgets
        The rows of the training data, above the settings.
    more : sequence of magicgui widgets
        Rows below the quality.
    start : str
        Text of the start button.

    Attributes
    ----------
    worker : EventWorker or None
        The worker of the current run.
    preview : Preview or None
        The segmentation of the current slice, updated at each validation.
    model_name : str
        Name of the best model of the last run in the list of models; empty before its first validation.
    """

    def __init__(
        self,
        viewer: napari.viewer.Viewer,
        settings: Settings,
        inputs: Sequence[Widget],
        more: Sequence[Widget],
        start: str,
    ) -> None:
        self.settings = settings
        self.view = RunView(viewer, start)
        quality, *groups = settings.rows
        super().__init__(viewer, [*inputs, quality, *more, *groups], [self.view], [self.view.controls])
        self.worker: EventWorker | None = None
        self.guard = CloseGuard(self, lambda: self.model_name, self.stop)
        self.preview: Preview | None = None
        self.model_name = ""
        self._job: Job | None = None
        self._end = ""
        self.view.pause_clicked.connect(self.pause_or_resume)
        self.view.stop_clicked.connect(self.stop)
        self.view.save_clicked.connect(lambda: ask_and_save(self.model_name, models, self.native))
        warm_up(self.native)  # when the panel opens rather than during a training
        prepare()
        self.native.destroyed.connect(release)  # a module's function, which the collector does not clear

    # for subclasses

    def start_with(self, button: QPushButton, make_job: Callable[[], Job]) -> None:
        """Connect a button to the start of the run that `make_job` makes, which may raise a `KDUNetError`."""
        self.view.add_starter(button)
        button.clicked.connect(lambda: self.start(make_job))

    def job(self) -> Job:
        """Return the job that the start button starts."""
        raise NotImplementedError

    def config(self) -> Any:
        """Return the settings, with 0 ignored if `sparse` is ticked; raises the errors of `Settings.config`."""
        return self.settings.config(ignore=0 if self.sparse.value else None)

    def on_event(self, event: Any) -> None:
        """Handle an event of the run, after this class has handled it."""

    # actions of the user

    def add_strokes(self) -> None:
        """Add an empty labels layer on the image, choose it, and start to paint."""
        with self.telling():
            self.labels_layer.value = new_strokes(self.viewer, chosen_layer(self.image))
            self.sparse.value = True

    def start(self, make_job: Callable[[], Job] | None = None) -> None:
        """Start a run, unless one is running; errors in its inputs are shown before anything starts."""
        if self.worker is not None:
            return
        with self.telling():
            job = (make_job or self.job)()
            if self._job is not None and (self._job.image, self._job.settings) != (job.image, job.settings):
                self.view.curves.clear()
            self._prepare_preview(job.image, job.inverted)
            self._job, self._end, self.model_name = job, "", ""
            self.view.preparing(job.run, job.endless)
            self.body.setStretchFactor(self.view, 1)  # the curves grow with the panel
            self.worker = run(
                partial(_on_disk, job, models.session),
                on_event=self._on_any_event,
                on_done=self._ended,
                on_error=self._ended,
                owner=self.native,
            )
            self.guard.watch(job.image)
            self.worker.paused.connect(lambda: self.view.paused(True))
            self.worker.resumed.connect(lambda: self.view.paused(False))

    def pause_or_resume(self) -> None:
        """Pause after the current step, or resume."""
        if self.worker is not None:
            self.worker.resume() if self.worker.is_paused else self.worker.pause()

    def stop(self) -> None:
        """Stop after the current step; the best model is kept."""
        if self.worker is not None:
            self.view.stop_button.setEnabled(False)
            self.view.pause_button.setEnabled(False)
            self.worker.stop()

    def dock_closed(self) -> None:
        """Remove the preview, and end the process that waits for a start."""
        release()
        self.worker = None  # the worker is dropped with the panel
        self.guard.leave()
        if self.preview is not None:
            self.preview.close()

    # events of the run

    def _on_any_event(self, event: Any) -> None:
        view = self.view
        if isinstance(event, core.Started):
            view.started(event)
        elif isinstance(event, core.Stepped):
            view.stepped(event)
        elif isinstance(event, core.Validated):
            view.validated(event)
            self._keep(event)
            if self.preview is not None:
                self.preview.show(event.model)
        elif isinstance(event, core.Done):
            self._finish(event)
        self.on_event(event)

    def _keep(self, event: core.Validated) -> None:
        assert self._job is not None
        if not self.model_name:
            image, is_control = self._job.image.name, self._job.is_control
            self.model_name = models.add(self._job.model_name, event.model, image, is_control=is_control)
        elif event.best or self._job.endless:
            models.update(self.model_name, event.model)
        self.view.save_button.setEnabled(True)

    def _finish(self, event: core.Done) -> None:
        why = "no more progress" if event.reason == "patience" else "finished"
        self._end = f"Done, {why}: IoU {event.iou:.3f}." if self.view.has_score else f"Done, {why}."
        if event.collapsed:
            from napari_kdunet.core.training.train import collapsed_message

            message = collapsed_message(event)
            self._end += f" {message[0].upper()}{message[1:]}"  # as the notification disappears
            show_warning(message)

    def _ended(self, error: Exception | None = None) -> None:
        self.worker = None
        self.guard.leave()
        prepare()
        if error is not None:
            self.show_error(error)
        if self.preview is not None:
            self.preview.close()  # the model is in the list now, for *Segment*
        how = self._end or ("Stopped." if error is None else "Ended by an error.")
        kept = f"Its model is “{self.model_name}” in the list of models." if self.model_name else ""
        self.view.ended(f"{how} {kept or 'There was no validation yet, so there is no model.'}")

    def _prepare_preview(self, image: Layer, inverted: bool) -> None:
        if self.preview is None or self.preview.image != image or self.preview.is_closed:
            if self.preview is not None:
                self.preview.close()
            self.preview = Preview(self.viewer, image, self.native, on_error=self.show_error, rest=_REST_MS)
            self.preview.get_ready()
        self.preview.inverted = inverted


def _on_disk(job: Job, session: SessionFolder) -> Iterator[Any]:
    """Yield the events of a job, each best model after it is written; if writing fails, the training goes on."""
    path, is_said = None, False  # a run without a model takes no name
    for event in job.make_events():
        if isinstance(event, core.Validated) and (event.best or job.endless):
            path = path or session.new_path(job.model_name)
            try:
                session.write(event.model, path)
            except core.OutputError as error:
                if not is_said:
                    show_warning(f"The model is only in memory, so save it before you close napari: {error}")
                is_said = True
        yield event
