"""Readers for napari: volumes that napari does not open, or opens without pixel size, sessions and model files.

A plain TIFF is left to napari, which would otherwise ask each time which reader to take; the panels read its pixel size
from the file behind the layer.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import napari
import numpy as np
from napari.layers import Layer
from napari.utils.notifications import show_info
from qtpy.QtWidgets import QApplication, QInputDialog

from napari_kdunet import core
from napari_kdunet.core.reading.formats.hdf5 import HDF5_ENDINGS, dataset_at, split_hdf5
from napari_kdunet.core.reading.formats.zarr_image import is_label_image
from napari_kdunet.widgets.proofreading.session import is_session, read_session, session_layers
from napari_kdunet.widgets.workers.thread import run

__all__ = ["get_reader"]

LayerData = tuple[Any, ...]

_AT_ONCE = 2**26  # bytes of labels that can be read in about a second
_LABELS = re.compile(r"(?<![a-z])(labels?|seg|segmentations?|masks?|instances?|ids)(?![a-z])", re.IGNORECASE)
_CALLED = {"channel": "channel", "time": "time point"}  # what is chosen, by argument of `open_volume`
_LARGE = 4096  # pixels: the longest side of a slice that napari reads and draws whole without a wait


def get_reader(path: str | list[str]) -> Callable[[Any], list[LayerData]] | None:
    """Return the function that reads a path, for napari; None for several paths at once."""
    if not isinstance(path, str):
        return None
    if path.lower().endswith(".safetensors"):
        return _read_model
    return _read_session if is_session(path) else _read_volume


def _read_volume(path: str) -> list[LayerData]:
    """Read a volume as a lazy layer with scale in nm and axis labels; a notification says what was assumed.

    The layer is an image, or labels if the file says so; small labels are read into memory, so that they can be painted
    on. Large slices become a pyramid if the file has one: napari draws the part on screen at the screen's resolution.
    If the file holds several volumes, channels or time points, the user is asked for one, if there is a window.

    Raises the errors of `core.open_volume`.
    """
    if "://" not in path:
        path = str(Path(path).absolute())
    chosen: dict[str, Any] = {"source": path}  # MRC, HDF5, N5, OME-Zarr, a folder, ...
    volume = _opened(path, chosen)
    if volume is None:
        return [(None,)]
    if volume.notes:
        show_info(f"{Path(path).name}: {'; '.join(volume.notes)}")
    ndim = 3 if len(volume) > 1 else 2
    within = chosen["source"].removeprefix(path).strip(":/")
    parts = [f"{_CALLED[what]} {index}" for what, index in chosen.items() if what in _CALLED]
    name = " ".join([Path(path).stem, *([within] if within else ()), *parts])
    options: dict[str, Any] = {"name": name, "axis_labels": ("z", "y", "x")[-ndim:]}
    if volume.voxel_size is not None:
        options |= {"scale": volume.voxel_size[-ndim:], "units": ("nm",) * ndim}
    levels = [level if ndim == 3 else level[0] for level in _levels(chosen, volume)]
    kind = "labels" if _holds_labels(chosen["source"], volume.dtype) else "image"
    if kind == "labels" and len(levels) == 1 and volume.data.nbytes <= _AT_ONCE:
        levels = [np.asarray(levels[0])]
    return [(levels if len(levels) > 1 else levels[0], options | {"multiscale": len(levels) > 1}, kind)]


def _opened(path: str, chosen: dict[str, Any]) -> core.Volume | None:
    """Return the volume at a path, None if cancelled; the user's choices go to `chosen`, arguments of `open_volume`."""
    while True:
        try:
            return core.open_volume(**chosen)
        except core.ChoiceError as several:
            answer = _ask(path, several)
            if answer is None:
                return None
            chosen[several.argument] = answer


def _ask(path: str, several: core.ChoiceError) -> Any:
    """Ask the user which of the `several` volumes, channels or time points of a file to take; None if cancelled.

    Raises `several` if there is no window to ask in.
    """
    if QApplication.instance() is None:
        raise several
    called = _CALLED.get(several.argument, "volume")
    offered = {str(choice).removeprefix(path).strip(":/"): choice for choice in several.choices}
    words = f"{Path(path).name} has {len(offered)} {called}s. Which one?"
    answer, taken = QInputDialog.getItem(None, f"Choose a {called}", words, list(offered), 0, False)
    return offered[answer] if taken else None


def _holds_labels(source: str, dtype: np.dtype[Any]) -> bool:
    """Return whether integers are labels: a saved mask, uint64 ids, or a dataset that its file names so (`_LABELS`).

    The name of the file itself says nothing, as the user chooses it.
    """
    if dtype.kind not in "iu":
        return False
    if dtype == np.uint64 or is_label_image(Path(source)):
        return True
    file, inside = split_hdf5(source)
    if file.name.lower().endswith(HDF5_ENDINGS):
        inside, ours = dataset_at(file, inside)
        return ours or _LABELS.search(inside) is not None
    _, *within = re.split(r"\.(?:zarr|n5)/", Path(source).as_posix(), maxsplit=1)
    return _LABELS.search("".join(within)) is not None


def _levels(chosen: dict[str, Any], volume: core.Volume) -> list[Any]:
    """Return the volume, ZYX, followed by the coarser scale levels of the file if the slices are large."""
    levels = [volume.data]
    if max(volume.shape[1:]) > _LARGE:
        with suppress(core.VolumeError):  # there is no further level
            while max((coarser := core.open_volume(**chosen, level=len(levels)).data).shape) < max(levels[-1].shape):
                levels.append(coarser)
    return levels


def _read_session(path: str) -> list[LayerData]:
    """Read the objects of a session, and their image if it lies beside it; the panel *Objects* takes them up.

    Large ones are read in the background and added when they are ready, if there is a window.
    """
    viewer = napari.current_viewer()
    there = [] if viewer is None else list(viewer.layers)
    ids, *_ = read_session(path)
    if viewer is None or ids.data.nbytes < _AT_ONCE or QApplication.instance() is None:
        return session_layers(path, there)

    def read() -> Iterator[list[LayerData]]:
        yield session_layers(path, there)

    def add(layers: list[LayerData]) -> None:
        for layer in layers:
            viewer.add_layer(Layer.create(*layer))
        viewer.status = f"{Path(path).name} is open."

    run(read, on_event=add, owner=viewer.window._qt_window)
    viewer.status = f"Opening {Path(path).name}, in the background."
    return [(None,)]


def _read_model(path: str) -> list[LayerData]:
    """Add a model to the panels' list of models, without a layer; raises the errors of `core.load_model`."""
    from napari_kdunet.widgets.shared.models import models

    name = models.add(Path(path).stem, core.load_model(path))
    show_info(f"The model “{name}” is now in the lists of models, for example in Segment.")
    return [(None,)]
