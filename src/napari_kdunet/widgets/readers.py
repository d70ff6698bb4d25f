"""Readers for napari: volumes that it does not open, or opens without their pixel size, sessions and model files.

A plain TIFF is none of them: napari would ask each time which reader to take, and the panels ask the file of a layer.
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
from napari_kdunet.core.volumes.formats.hdf5 import HDF5_ENDINGS, hdf5_volumes, is_label_dataset
from napari_kdunet.core.volumes.formats.zarr_image import is_label_image
from napari_kdunet.widgets.proofreading.session import is_session, read_session, session_layers
from napari_kdunet.widgets.shared.thread_worker import run

__all__ = ["get_reader"]

LayerData = tuple[Any, ...]

_AT_ONCE = 2**26  # bytes of labels that are read in less than a second or so
_LABELS = re.compile(r"(?<![a-z])(labels?|seg|segmentations?|masks?|instances?|ids)(?![a-z])", re.IGNORECASE)
_LARGE = 4096  # pixels: the longest side of a slice that napari reads and draws whole without making one wait


def get_reader(path: str | list[str]) -> Callable[[Any], list[LayerData]] | None:
    """The function that reads a path, for napari; None for several paths at once."""
    if not isinstance(path, str):
        return None
    if path.lower().endswith(".safetensors"):
        return _read_model
    return _read_session if is_session(path) else _read_volume


def _read_volume(path: str) -> list[LayerData]:
    """A layer, lazy, with scale in nm and axis labels; what was assumed is a notification.

    An image, or labels where the file says so; small ones in memory, to paint on. Of large slices it is a pyramid where
    the file has one: napari draws the part on screen at the resolution of that.

    Errors as of `core.open_volume`.
    """
    inside = _choose_inside(path)
    if inside is None:
        return [(None,)]
    source = f"{path}:{inside}" if inside else path  # MRC, HDF5, N5, OME-Zarr, a folder, ...
    volume = core.open_volume(source)
    if volume.notes:
        show_info(f"{Path(path).name}: {'; '.join(volume.notes)}")
    ndim = 3 if len(volume) > 1 else 2
    name = f"{Path(path).stem} {inside.strip('/')}".strip()
    options: dict[str, Any] = {"name": name, "axis_labels": ("z", "y", "x")[-ndim:]}
    if volume.voxel_size is not None:
        options |= {"scale": volume.voxel_size[-ndim:], "units": ("nm",) * ndim}
    levels = [level if ndim == 3 else level[0] for level in _levels(source, volume)]
    kind = "labels" if _holds_labels(path, inside, volume.dtype) else "image"
    if kind == "labels" and len(levels) == 1 and volume.data.nbytes <= _AT_ONCE:
        levels = [np.asarray(levels[0])]
    return [(levels if len(levels) > 1 else levels[0], options | {"multiscale": len(levels) > 1}, kind)]


def _holds_labels(path: str, inside: str, dtype: np.dtype[Any]) -> bool:
    """Whether whole numbers are labels: a mask that was saved, ids of 64 bits, or a volume of such a name in its file.

    The name of the file itself says nothing: it is the user's.
    """
    if dtype.kind not in "iu":
        return False
    if dtype == np.uint64 or is_label_image(Path(path)):
        return True
    within = _within(path, inside)
    ours = path.lower().endswith(HDF5_ENDINGS) and is_label_dataset(Path(path), within)
    return ours or _LABELS.search(within) is not None


def _within(path: str, inside: str) -> str:
    """The path of a volume in its HDF5 file, Zarr or N5."""
    if path.lower().endswith(HDF5_ENDINGS):
        return inside or "".join(hdf5_volumes(Path(path)))
    _, *within = re.split(r"\.(?:zarr|n5)/", Path(path).as_posix(), maxsplit=1)
    return "".join(within)


def _levels(source: str, volume: core.Volume) -> list[Any]:
    """The volume, ZYX, and of large slices the coarser scale levels that the file has."""
    levels = [volume.data]
    if max(volume.shape[1:]) > _LARGE:
        with suppress(core.VolumeError):  # there is none more
            while max((coarser := core.open_volume(source, level=len(levels)).data).shape) < max(levels[-1].shape):
                levels.append(coarser)
    return levels


def _choose_inside(path: str) -> str | None:
    """The path of the volume in an HDF5 file of several, which the user is asked for; None if that was cancelled.

    Empty where there is no choice, or no window to ask in: an error then says which volumes there are.
    """
    if not path.lower().endswith(HDF5_ENDINGS) or QApplication.instance() is None:
        return ""
    try:
        volumes = hdf5_volumes(Path(path))
    except OSError:
        return ""  # damaged, which the reader says in one line
    if len(volumes) < 2:
        return ""
    words = f"{Path(path).name} has {len(volumes)} volumes. Which one?"
    chosen, taken = QInputDialog.getItem(None, "Choose a volume", words, volumes, 0, False)
    return chosen if taken else None


def _read_session(path: str) -> list[LayerData]:
    """The objects of a session, and their image where it lies beside it; the panel *Objects* takes them up.

    Large ones come in when they have been read in the background, where there is a window to wait for it.
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
    """Add a model to the list of the panels; no layer. Errors as of `core.load_model`."""
    from napari_kdunet.widgets.shared.models import models

    models.add(Path(path).stem, core.load_model(path))
    return [(None,)]
