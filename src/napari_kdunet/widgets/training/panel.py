"""What training and distilling share: a form, a run on a thread, curves, the preview, and the best model kept."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from napari.layers import Layer
from napari.utils.notifications import show_warning
from qtpy.QtCore import QEvent
from qtpy.QtWidgets import QPushButton, QVBoxLayout, QWidget

from napari_kdunet import core
from napari_kdunet.widgets.shared.models import ask_and_save, models
from napari_kdunet.widgets.shared.notify import reporting
from napari_kdunet.widgets.shared.preview import Preview, warm_up
from napari_kdunet.widgets.shared.thread_worker import EventWorker, run
from napari_kdunet.widgets.training.form import SettingsForm
from napari_kdunet.widgets.training.inputs import Inputs
from napari_kdunet.widgets.training.run_view import RunView, UpDownScroll

if TYPE_CHECKING:
    import napari.viewer

__all__ = ["Job", "TrainingPanel"]

_REST_MS = 150  # slices that are scrolled past are not worth the training's time


@dataclass(frozen=True)
class Job:
    """One run: what it is called in the plot, and its model in the list; what to do; what to preview."""

    run: str
    model_name: str
    image: Layer
    make_events: Callable[[], Iterator[Any]]
    endless: bool = False
    """It runs until it is stopped, and keeps its latest model: what is best changes while somebody paints."""


class TrainingPanel(QWidget):
    """Base of the widgets that train.

    A subclass gives its inputs and its form, and says what `Job` each of its buttons begins. From the first validation
    on the best model so far is in the list of models, so that nothing that happens later can lose it.

    Parameters
    ----------
    viewer : napari.viewer.Viewer
        Where the layers are.
    form : SettingsForm
        The settings, all but what the inputs say.
    inputs : Inputs
        What is learnt from.
    rows : dict of str to QWidget
        The controls above the form, those of the inputs among them, by label.
    start : str
        What the start button says.

    Attributes
    ----------
    worker : EventWorker or None
        The run under way.
    preview : Preview or None
        The slice on screen, segmented at each validation.
    model_name : str
        Name of the best model of the last run in the list of models; empty before its first validation.
    """

    def __init__(
        self, viewer: napari.viewer.Viewer, form: SettingsForm, inputs: Inputs, rows: dict[str, QWidget], start: str
    ) -> None:
        super().__init__()
        self.viewer, self.form, self.inputs = viewer, form, inputs
        self.view = RunView(viewer, start)
        self.worker: EventWorker | None = None
        self.preview: Preview | None = None
        self.model_name = ""
        self._job: Job | None = None
        self._end = ""
        form.put_on_top(rows)
        self._lay_out()
        self.view.pause_clicked.connect(self.pause_or_resume)
        self.view.stop_clicked.connect(self.stop)
        self.view.save_clicked.connect(lambda: ask_and_save(self.model_name, models, self))
        warm_up(self)  # with the widget's opening rather than amid a training

    # what a subclass says

    def let_begin(self, button: QPushButton, make_job: Callable[[], Job]) -> None:
        """Let a button begin the run that `make_job` makes, which may raise a `KDUNetError`."""
        self.view.add_starter(button)
        button.clicked.connect(lambda: self.begin(make_job))

    def config(self) -> Any:
        """The settings, of the form's kind; errors as in `SettingsForm.config`."""
        return self.form.config(ignore=self.inputs.ignore)

    def on_event(self, event: Any) -> None:
        """Look at an event of the run, after this class has."""

    # what the user does

    def begin(self, make_job: Callable[[], Job]) -> None:
        """Begin a run, unless one is under way; what is wrong with it is notified."""
        if self.worker is not None:
            return
        with reporting():
            job = make_job()
            if self._job is not None and self._job.image != job.image:
                self.view.curves.clear()
            self._prepare_preview(job.image)
            self._job, self._end, self.model_name = job, "", ""
            self.view.preparing(job.run, job.endless)
            told: dict[str, Any] = {"on_event": self._tell, "on_done": self._ended, "on_error": self._ended}
            self.worker = run(job.make_events, **told, owner=self)
            self.worker.paused.connect(lambda: self.view.paused(True))
            self.worker.resumed.connect(lambda: self.view.paused(False))

    def pause_or_resume(self) -> None:
        """Wait after the step under way, or go on."""
        if self.worker is not None:
            self.worker.resume() if self.worker.is_paused else self.worker.pause()

    def stop(self) -> None:
        """End after the step under way; the best model stays."""
        if self.worker is not None:
            self.view.stop_button.setEnabled(False)
            self.view.pause_button.setEnabled(False)
            self.worker.stop()

    def changeEvent(self, event: QEvent | None) -> None:
        """Take the preview away with the widget, when its dock is closed."""
        super().changeEvent(event)
        closed = event is not None and event.type() == QEvent.Type.ParentChange and self.parent() is None
        if closed and self.preview is not None:
            self.preview.close()

    # what the run tells

    def _tell(self, event: Any) -> None:
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
            self.model_name = models.add(self._job.model_name, event.model)
        elif event.best or self._job.endless:
            models.update(self.model_name, event.model)
        self.view.save_button.setEnabled(True)

    def _finish(self, event: core.Done) -> None:
        why = "no more progress" if event.reason == "patience" else "finished"
        self._end = f"Done, {why}: IoU {event.iou:.3f}."
        if event.collapsed:
            from napari_kdunet.core.training.train import collapsed_message

            show_warning(collapsed_message(event))

    def _ended(self, error: Exception | None = None) -> None:
        self.worker = None
        if self.preview is not None and self.model_name:
            self.preview.show(models.get(self.model_name))
        elif self.preview is not None and self.preview.probability is None:
            self.preview.close()
        how = self._end or ("Stopped." if error is None else "Ended by an error, see the notification.")
        kept = f"The best model is “{self.model_name}” in the list of models." if self.model_name else ""
        self.view.ended(f"{how} {kept or 'There was no validation yet, so there is no model.'}")

    def _prepare_preview(self, image: Layer) -> None:
        if self.preview is None or self.preview.image != image or self.preview.is_closed:
            if self.preview is not None:
                self.preview.close()
            self.preview = Preview(self.viewer, image, self, rest=_REST_MS)
            self.preview.get_ready()

    def _lay_out(self) -> None:
        content = QWidget()
        inside = QVBoxLayout(content)
        inside.addWidget(self.form)
        inside.addWidget(self.view, 1)
        outside = QVBoxLayout(self)
        outside.setContentsMargins(0, 0, 0, 0)
        outside.addWidget(UpDownScroll(content))
