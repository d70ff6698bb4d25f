"""The dock widget *Train teacher*: a k-Unet from an image and its labels."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from napari_kdunet import core
from napari_kdunet.widgets.form import SettingsForm
from napari_kdunet.widgets.inputs import Inputs
from napari_kdunet.widgets.training_panel import Job, TrainingPanel

if TYPE_CHECKING:
    import napari.viewer

__all__ = ["TrainWidget"]


class TrainWidget(TrainingPanel):
    """Train a k-Unet on the labelled slices of a volume, and see it learn.

    Parameters
    ----------
    viewer : napari.viewer.Viewer
        Where the layers are.
    """

    def __init__(self, viewer: napari.viewer.Viewer) -> None:  # napari goes by these very words
        inputs = Inputs(viewer)
        super().__init__(viewer, SettingsForm(core.TrainConfig, hidden=("ignore",)), inputs.rows, "Train")
        self.inputs = inputs

    def job(self) -> Job:
        """Train on the chosen layers; errors as in `TrainingPanel.job`."""
        raw, labels = self.inputs.volumes()
        config = self.form.config(ignore=self.inputs.ignore)

        def events() -> Iterator[Any]:
            yield from core.iter_train(raw, labels, config)

        return Job("training", f"{raw.name} k{config.k}", self.inputs.image.wanted(), events)
