"""Compare two layers in the background, slice by slice, and compare slices again when they are edited."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
from napari.layers import Labels
from qtpy.QtCore import QObject, Signal
from qtpy.QtWidgets import QWidget
from superqt.utils import qdebounced

from napari_kdunet.core import Confusion, VolumeError
from napari_kdunet.core.metrics import SliceScore
from napari_kdunet.widgets.comparison.comparison import Comparison
from napari_kdunet.widgets.shared.edited_slices import EditedSlices
from napari_kdunet.widgets.shared.layers import current_slice, volume_of
from napari_kdunet.widgets.workers.latest import LatestRequest, Work
from napari_kdunet.widgets.workers.thread import EventWorker, run

if TYPE_CHECKING:
    import napari.viewer

__all__ = ["LiveComparison"]

_SETTLE_MS = 120  # ms without a further change before slices are counted again


class LiveComparison(QObject):
    """Voxel counts (TP, FP, FN, TN) of two layers, slice by slice.

    After each change, the slice on screen and every slice that was painted on are counted again.

    Parameters
    ----------
    viewer : napari.viewer.Viewer
        Viewer whose layers are compared.
    owner : QWidget
        Widget whose destruction stops the workers.
    on_error : callable
        Called with an error of the work, after the user has been notified of it.

    Attributes
    ----------
    comparison : Comparison or None
        The current comparison; None before the first start.
    scores : list of SliceScore or None
        Score of each slice; None where it has not been counted yet.
    """

    changed = Signal()  # the counts, the slice on screen or `is_running` have changed
    edited = Signal()  # the first slice is counted, or the counts of a slice have changed
    replaced = Signal()  # the data of a layer have been replaced
    moved = Signal()  # the first layer lies elsewhere, or its pixels have another size

    def __init__(
        self, viewer: napari.viewer.Viewer, owner: QWidget, on_error: Callable[[Exception], Any] = lambda _: None
    ) -> None:
        super().__init__(owner)
        self.viewer, self.owner, self._on_error = viewer, owner, on_error
        self.comparison: Comparison | None = None
        self.scores: list[SliceScore | None] = []
        self.layers: tuple[Any, ...] = ()
        self._worker: EventWorker | None = None
        self._recount = LatestRequest(owner, on_error)
        self._touched = False
        self._edits: list[EditedSlices] = []
        self._stale: set[int] = set()  # painted on and not counted again yet; used on the worker's thread
        self._count_soon = qdebounced(self._count_again, timeout=_SETTLE_MS, parent=self)
        point, moved = viewer.dims.events.point, self._moved
        point.connect(moved)
        self.destroyed.connect(lambda: point.disconnect(moved))
        self._watched: list[tuple[Any, Callable[..., None]]] = []
        unwatch = self._unwatch
        self.destroyed.connect(lambda: unwatch())

    @property
    def is_running(self) -> bool:
        """Whether slices are being counted for the first time."""
        return self._worker is not None

    @property
    def is_busy(self) -> bool:
        """Whether slices are being counted, or are about to be counted again."""
        return self._worker is not None or self._recount.is_busy or self._touched

    @property
    def z(self) -> int:
        """Slice on screen."""
        return current_slice(self.viewer, self.layers[0]) if self.layers else 0

    @property
    def slices(self) -> list[Confusion | None]:
        """Counts of each slice; None where it has not been counted yet."""
        return [None if score is None else score.counts for score in self.scores]

    @property
    def notes(self) -> tuple[str, ...]:
        """What was assumed of the values in the slices that are counted; none while the rest is being counted."""
        counted = [score for score in self.scores if score is not None]
        return () if self.comparison is None or self.is_running or not counted else self.comparison.notes(counted)

    @property
    def total(self) -> Confusion:
        """Counts of all slices so far."""
        return sum((counts for counts in self.slices if counts is not None), Confusion())

    @property
    def ious(self) -> list[float]:
        """IoU of each slice; nan where it is not counted or has no foreground."""
        return [np.nan if counts is None else counts.iou for counts in self.slices]

    @property
    def worst(self) -> int | None:
        """Slice with the lowest IoU; None if no slice has an IoU."""
        return int(np.nanargmin(self.ious)) if np.isfinite(self.ious).any() else None

    def start(self, prediction: Any, reference: Any, threshold: float, ignore: int | None) -> None:
        """Compare two layers.

        Raises
        ------
        InputError
            If the layers cannot be compared.
        """
        if prediction is None or reference is None or prediction == reference:
            raise VolumeError(
                "choose two different layers to compare: labels, or probabilities as a floating-point image."
            )
        comparison = Comparison(volume_of(prediction), volume_of(reference), threshold, ignore)
        self.clear()
        self.comparison, self.scores, self.layers = comparison, [None] * len(comparison), (prediction, reference)
        self._stale = set()
        self._watch()
        z = self.z
        self._worker = run(
            lambda: comparison.score_all(z),
            on_event=self._counted,
            on_done=self._ended,
            on_error=self._ended,
            owner=self.owner,
        )
        self.changed.emit()

    def stop(self) -> None:
        """Stop counting; the slices counted so far stay."""
        if self._worker is not None:
            self._worker.stop()

    def clear(self) -> None:
        """Stop, and discard the comparison and its counts."""
        if self._worker is not None:
            self._worker.drop()
            self._worker = None
        self._recount.drop()
        self._unwatch()
        self.comparison, self.scores, self.layers = None, [], ()
        self.changed.emit()

    def go_to(self, z: int) -> None:
        """Show slice `z` in the viewer."""
        if self.layers and self.layers[0].ndim == 3:
            layer = self.layers[0]
            self.viewer.dims.set_point(self.viewer.dims.ndim - 3, float(layer.data_to_world((z, 0, 0))[-3]))

    def _watch(self) -> None:
        for layer in self.layers:
            events = layer.events
            self._watched += [(events.set_data, self._touch), (events.data, self._replace)]
            if layer is self.layers[0]:
                grid = ("scale", "translate", "rotate", "shear", "affine", "units")
                self._watched += [(getattr(events, name), self._lies_elsewhere) for name in grid]
            if isinstance(layer, Labels):
                self._edits.append(EditedSlices(self.viewer, layer))
                self._watched += [(events.labels_update, self._touch), (events.paint, self._touch)]
        for source, callback in self._watched:
            source.connect(callback)

    def _unwatch(self) -> None:
        for source, callback in self._watched:
            source.disconnect(callback)
        self._watched.clear()
        self._edits = []

    def _replace(self, event: Any = None) -> None:
        self._edits = []  # the comparison still has the earlier data
        self.replaced.emit()

    def _lies_elsewhere(self, event: Any = None) -> None:
        self.moved.emit()

    def _touch(self, event: Any = None) -> None:
        self._touched = True
        self._count_soon()

    def _moved(self, event: Any = None) -> None:
        if self.comparison is not None:
            self.changed.emit()

    def _count_again(self) -> None:
        self._touched = False
        if self.comparison is not None and self._worker is None:
            self._recount.ask(self._begin_recount)

    def _begin_recount(self) -> Work:
        comparison, z, edits, stale = self.comparison, self.z, self._edits, self._stale
        assert comparison is not None

        def count() -> Iterator[tuple[int, SliceScore]]:
            stale.update(changed for each in edits for changed in each.take())
            stale.discard(z)
            yield z, comparison.score(z)
            # after another change, the slice on screen comes first again, and then the rest
            while stale and not (self._touched or self._recount.is_waiting):
                yield (other := min(stale)), comparison.score(other)
                stale.discard(other)

        return count, self._counted

    def _counted(self, event: tuple[int, SliceScore]) -> None:
        z, score = event
        if self.scores[z] == score:
            return
        first, before = not any(self.scores), self.scores[z]
        self.scores[z] = score
        if first or (before is not None and before.counts != score.counts):
            self.edited.emit()
        self.changed.emit()

    def _ended(self, error: Exception | None = None) -> None:
        self._worker = None
        if error is None:
            self._touch()  # it may have been painted on meanwhile
        else:
            self._on_error(error)
        self.changed.emit()
