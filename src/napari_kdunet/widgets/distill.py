"""The dock widget *Distil student*: distil a teacher into a small k-Unet, with or without labels."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from napari.layers import Layer
from qtpy.QtWidgets import QPushButton

from napari_kdunet import core
from napari_kdunet.widgets.shared.layers import chosen_layer, layer_choice, volume_of, warn_if_apart
from napari_kdunet.widgets.shared.models import ModelChoice, models
from napari_kdunet.widgets.shared.panel import wrapped_label
from napari_kdunet.widgets.training.inputs import check, ignore_box, input_rows, volumes
from napari_kdunet.widgets.training.panel import Job, TrainingPanel
from napari_kdunet.widgets.training.settings import Settings
from napari_kdunet.widgets.training.teacher_file import TeacherFile
from napari_kdunet.widgets.workers.process import run_in_process

if TYPE_CHECKING:
    import napari.viewer

    from napari_kdunet.core import DistillConfig, Model, TrainConfig, Volume

__all__ = ["DistillWidget", "TeacherScored"]

_IF_INVERTED = "This model would find little as a teacher: invert the image first."
_WHAT_TO_DO = "take a teacher that knows such images better (trained longer, larger, or on more of them), or lower λ."
_LOWER_K = "lower k, or take a larger teacher."


@dataclass(frozen=True)
class TeacherScored:
    """The IoU of the teacher on the validation slices of its student."""

    parameters: int | None
    """Number of learnable parameters; None if it is not known, as for a probability layer."""
    iou: float | None
    """IoU at the teacher's best threshold, like the student's; None before a slice is scored, and if the student is
    validated against the teacher."""


class DistillWidget(TrainingPanel):
    """Distil a teacher into a k-Unet, and train the same k-Unet without the teacher as a control.

    Parameters
    ----------
    viewer : napari.viewer.Viewer
        Viewer of the layers.
    """

    def __init__(self, viewer: napari.viewer.Viewer) -> None:  # napari injects it by this name
        teacher = ModelChoice(
            name="teacher",
            label="Teacher",
            first=lambda _: models.newest_teacher(),
            sticky=False,
            tooltip="Model that the student learns from; at first the newest that you have trained, else the best "
            "bundled one.",
        )
        layer = layer_choice(
            viewer,
            accepts=_is_probability,
            first=lambda _: None,
            none="none: take the model",
            name="teacher_layer",
            label="or a layer",
            tooltip="Image layer of foreground probabilities (0 to 1), from any tool, to use as the teacher instead of "
            "a model.",
        )
        finds = (lambda: teacher.value, lambda: self.native, _IF_INVERTED)
        rows = input_rows(viewer, self.add_strokes, finds, no_labels="none: teacher alone")
        inputs = [teacher.with_buttons(), *rows]
        self.size_label = wrapped_label()
        self.size_label.setToolTip(
            "Learnable parameters of teacher and student, and how many times smaller the student is."
        )
        self.control_button = QPushButton("Control run")
        self.control_button.setToolTip(
            "Train the same student with the same settings from the labels alone: the gap between the two IoU\n"
            "curves is what the teacher adds."
        )
        settings = Settings(core.DistillConfig)
        settings.advanced.insert(0, layer)
        settings.advanced.insert(1, TeacherFile(name="teacher_file", label="or a file"))
        settings.advanced.insert(2, ignore_box())
        super().__init__(viewer, settings, inputs, [], "Distil")
        self.view.buttons.insertWidget(1, self.control_button, 1)
        self.view.add_line(self.size_label)
        self.verdict_label = wrapped_label()
        self.view.add_line(self.verdict_label)
        self.start_with(self.view.start_button, self.job)
        self.start_with(self.control_button, self.control_job)
        self._teacher_parameters: int | None = None
        self._compared: tuple[str | None, int] | None = None
        self.teacher.changed.connect(self._compare_sizes)
        self.teacher.failed.connect(self.show_error)
        self.k.changed.connect(self._compare_sizes)
        self.teacher_file.changed.connect(self._compare_sizes)
        self.teacher_layer.changed.connect(self._compare_sizes)
        self._compare_sizes()

    def job(self) -> Job:
        """Return the job to distil the chosen teacher.

        Raises
        ------
        KDUNetError
            If something is missing or wrong.
        """
        (raw, labels), config = volumes(self.image, self.labels_layer), self.config()
        get_teacher, trust = self._teacher(config), self.teacher_file.trusted
        self.teacher.held = True  # the model of a control run would be newer, but is no teacher
        check(self.image, self.labels_layer, config)

        def events() -> Iterator[Any]:
            given, teacher = get_teacher()
            for event in _training(given, raw, labels, config, trust):
                yield event
                if isinstance(event, core.Started):
                    yield from _score(teacher, raw, labels, event, config)

        name, image = f"{raw.name} k{config.k} distilled", chosen_layer(self.image)
        return Job("student", name, image, events, settings=(_from_labels(config), self.labels_layer.value))

    def control_job(self) -> Job:
        """Return the job to train the same student without the teacher; raises the errors of `job`."""
        (raw, labels), config = volumes(self.image, self.labels_layer), self.config()
        if labels is None:
            raise core.LabelsError("a control run learns from labels alone: choose a labels layer.")
        check(self.image, self.labels_layer, config)
        same = _from_labels(config)

        def events() -> Iterator[Any]:
            yield from run_in_process(core.iter_train, raw, labels, same)

        name, image = f"{raw.name} k{config.k} control", chosen_layer(self.image)
        return Job("control", name, image, events, settings=(same, self.labels_layer.value), is_control=True)

    def on_event(self, event: Any) -> None:
        """Show the IoU of the teacher and the numbers of parameters."""
        if isinstance(event, TeacherScored):
            self.view.curves.set_teacher(event.iou)
            self._teacher_parameters = event.parameters
            self._show_size()
        elif isinstance(event, core.Started):
            self._student_parameters = event.parameters
            self._show_size()
        if isinstance(event, TeacherScored | core.Started | core.Validated):
            self._compare_to_control()

    def _teacher(self, config: DistillConfig) -> Callable[[], tuple[Model | Volume | Path, Model | Volume]]:
        """Return a function for the worker thread that reads the teacher: as the training gets it, and opened."""
        if self.teacher_layer.value is not None:
            volume = volume_of(self.teacher_layer.value)
            warn_if_apart(chosen_layer(self.image), self.teacher_layer.value)
            return lambda: (volume, volume)
        path, trust = self.teacher_file.path, self.teacher_file.trusted
        if path is not None:
            return lambda: (path, _opened(path, config, trust))
        store, name = self.teacher.store, self.teacher.value
        if not name:
            raise core.ModelError("there is no teacher: train one, open one from a file, or choose a layer.")

        def model() -> tuple[Model, Model]:
            teacher = store.get(name)
            return teacher, teacher

        return model

    def _compare_to_control(self) -> None:
        """Show how student and control run did, and warn if the teacher scores below the control run."""
        curves, lines = self.view.curves, []
        student, control = (
            max(curves.runs[run].ious, default=None) if run in curves.runs else None for run in ("student", "control")
        )
        teacher = curves.teacher_iou
        if self.view.has_score and control is not None:
            if student is not None:
                lines.append(f"Best IoU: student {student:.3f}, control run {control:.3f}.")
            if teacher is not None and teacher < control:
                scores = f"IoU {teacher:.3f} and {control:.3f}"
                lines.append(
                    f"The teacher is no better than a student trained on the labels alone ({scores}): {_WHAT_TO_DO}"
                )
        self.verdict_label.setText(" ".join(lines))

    def _show_size(self) -> None:
        student = f"Student: {self._student_parameters:,} parameters"
        if self._teacher_parameters is None:
            self.size_label.setText(f"{student}.")
        else:
            ratio = self._teacher_parameters / self._student_parameters
            how = f"{ratio:.3g}× smaller." if ratio > 1 else f"not smaller ({1 / ratio:.3g}×): {_LOWER_K}"
            self.size_label.setText(f"Teacher: {self._teacher_parameters:,} parameters. {student}, {how}")

    def _compare_sizes(self) -> None:
        """Warn if the student would not be smaller than its teacher."""
        other = self.teacher_layer.value is not None or self.teacher_file.path is not None
        name = None if other else self.teacher.value
        self.teacher.enabled = not other
        if (name, self.k.value) == self._compared:
            return
        self._compared = name, self.k.value
        k = None
        with suppress(core.ModelError):  # shown when the model is read
            k = models.about(name)["k"] if name else None
        if k is not None and k <= self.k.value:
            self.size_label.setText(f"The student is not smaller than its teacher, a {k}-Unet: {_LOWER_K}")
        else:
            self.size_label.clear()


def _from_labels(config: DistillConfig) -> TrainConfig:
    """Return the settings of the same student without a teacher."""
    return core.TrainConfig(**{spec.name: getattr(config, spec.name) for spec in fields(core.TrainConfig)})


def _is_probability(layer: Layer) -> bool:
    return not getattr(layer, "rgb", False) and layer.dtype.kind == "f"


def _opened(path: Path, config: DistillConfig, trust: bool) -> Model | Volume:
    """Open the teacher in a file of another tool, in this process too, to score it."""
    from napari_kdunet.core.data.teachers import as_teacher

    return as_teacher(path, config, trust=trust)


def _training(
    teacher: Model | Volume | Path, raw: Volume, labels: Volume | None, config: DistillConfig, trust: bool
) -> Iterator[Any]:
    """Return the events of a distillation or, if a model teaches without labels, of an adaptation to the image."""
    if labels is None and isinstance(teacher, core.Model) and _adapts(teacher, config):
        from napari_kdunet.core.training.adapt import begin_as

        start, config = begin_as(teacher, config.for_adapting())
        return run_in_process(core.iter_adapt, teacher, raw, config, start=start)
    return run_in_process(core.iter_distill, teacher, raw, labels, config, trust=trust)


def _adapts(teacher: Model, config: DistillConfig) -> bool:
    """Return whether an adaptation, which learns only foreground and single slices, can make such a student."""
    foreground_alone = teacher.boundary or teacher.traits.classes == 2
    return foreground_alone and config.classes == 2 and not config.boundary and not config.context


def _score(
    teacher: Model | Volume, raw: Volume, labels: Volume | None, started: core.Started, config: DistillConfig
) -> Iterator[Any]:
    """Yield the size of the teacher, then its IoU, updated as more validation slices are scored."""
    from napari_kdunet.core.data.validation import Validation

    parameters = None if isinstance(teacher, core.Volume) else teacher.parameter_count or None
    yield TeacherScored(parameters, None)
    if labels is None:  # the student is validated against the teacher itself
        return
    validation = Validation.against(raw, labels, started.val_slices, config)
    for curve in validation.iter_score(teacher, config.device, config.threads, config.teacher_views):
        yield TeacherScored(parameters, curve.iou(curve.best_threshold()))
