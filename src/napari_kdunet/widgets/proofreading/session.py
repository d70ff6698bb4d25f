"""A session of proofreading: all that belongs to the objects of a layer, and the one OME-Zarr that it is saved in.

The file is a label image that any viewer opens. Its metadata hold the image, settings, measurements and checked ids
under ``napari_kdunet``. The image is stored as a name and a path; from outside of the file's own folder it is opened
only by the user.
"""

from __future__ import annotations

import json
import math
import os
import weakref
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from napari.components import ViewerModel
from napari.layers import Image, Layer

from napari_kdunet.core import ObjectsConfig, OutputError, Volume, VolumeError, open_volume, write_volume
from napari_kdunet.core.files import is_zarr_name, read_json
from napari_kdunet.core.parsing import parse_json
from napari_kdunet.widgets.proofreading.layer_watch import Content
from napari_kdunet.widgets.proofreading.measuring import Measured, Measurement, Measuring
from napari_kdunet.widgets.proofreading.table.object_table import features_of
from napari_kdunet.widgets.shared.layers import OBJECTS, data_of, grid_of, segmented_image, volume_of

__all__ = [
    "IN_MEMORY",
    "Reference",
    "Session",
    "grid_as_json",
    "image_layer",
    "image_of",
    "is_session",
    "read_session",
    "save_session",
    "session_layers",
    "stamp_of",
    "with_checked",
]

IN_MEMORY = 4 * 2**30  # bytes of ids held in memory; more stay lazy, and cannot be corrected
_MOST = 2**30  # most bytes of metadata
_GRID = ("scale", "translate", "rotate", "shear", "affine")


@dataclass(frozen=True)
class Reference:
    """Reference to an image that is not itself part of a session.

    Attributes
    ----------
    name : str
        Name of its layer.
    path : str
        Path of its file, absolute; empty if it came from no file.
    shape : tuple of int
        Shape of its finest level.
    """

    name: str
    path: str = ""
    shape: tuple[int, ...] = ()

    @classmethod
    def of(cls, layer: Layer | None) -> Reference | None:
        """Return the reference to a layer, or None for None."""
        if layer is None:
            return None
        path = getattr(layer.source, "path", None)
        return cls(layer.name, str(Path(path).absolute()) if path else "", tuple(data_of(layer).shape))

    def is_of(self, layer: Layer) -> bool:
        """Return whether a layer is that image: whether its shape, and its file or name, are the same."""
        other = Reference.of(layer)
        assert other is not None
        return other.shape == self.shape and (other.name == self.name or bool(self.path and other.path == self.path))

    def find_beside(self, session: Path) -> Path | None:
        """Return the file if it is in a session's folder or below, where it was or moved along with it; else None."""
        folder = session.resolve().parent
        inside = [Path(self.path)] if self.path else []
        inside += [folder / Path(*Path(self.path).parts[-n:]) for n in (1, 2, 3)] if self.path else []
        return next((each for each in inside if each.exists() and each.resolve().is_relative_to(folder)), None)


@dataclass(eq=False)
class Session:
    """What is known about the objects of a layer besides their voxels.

    Attributes
    ----------
    image, source : Reference or None
        Image for grey values, and mask or probability in which the objects were found.
    config : ObjectsConfig
        Settings with which they were found.
    table : pandas.DataFrame or None
        Their measurements; None until they are measured.
    checked : set of int
        Ids of objects that are marked as checked.
    selected : int
        Id of the selected object.
    path : Path or None
        Path at which the session was saved or opened.
    saved : bool
        Whether nothing has changed since then.
    stale : bool
        Whether the objects have changed since they were measured.
    measured : Measured or None
        State of the objects when `table` was made, and what they were measured with; not saved.
    corrections : MaskCorrections or None
        Carries corrections over to the mask in which the objects were found; not saved.
    layer : weakref.ref or None
        Reference to the layer; not saved.
    stamp : tuple of int or None
        `stamp_of` the file at `path` when it was saved or opened, so that a file that others have put there is not
        replaced.
    left : Content or None
        Content of the layer when the panel last stopped following it; not saved.
    deleted : dict
        Size and place of each checked object that was deleted, by its id, to recognise the object if the deletion is
        undone; not saved.
    """

    image: Reference | None = None
    source: Reference | None = None
    config: ObjectsConfig = field(default_factory=ObjectsConfig)
    table: pd.DataFrame | None = None
    checked: set[int] = field(default_factory=set)
    selected: int = 1
    path: Path | None = None
    saved: bool = False
    stale: bool = False
    measured: Measured | None = None
    corrections: Any = None
    layer: Any = None
    stamp: tuple[int, int] | None = None
    left: Content | None = None
    deleted: dict[int, tuple[float, ...]] = field(default_factory=dict)
    _rows: tuple[pd.DataFrame | None, dict[int, int]] = field(default=(None, {}), init=False, repr=False)

    @property
    def rows(self) -> Mapping[int, int]:
        """Row in `table` of each object, by its id; made once for each table, as every click asks for it."""
        if self._rows[0] is not self.table:
            ids = [] if self.table is None else self.table["id"].tolist()
            self._rows = self.table, {number: row for row, number in enumerate(ids)}
        return self._rows[1]

    def of(self, layer: Layer) -> Session:
        """Return the session of a layer: this one or, for a duplicate of its layer (with the same metadata), a copy."""
        owner = None if self.layer is None else self.layer()
        if owner is None or owner is layer:
            self.layer = weakref.ref(layer)
            return self
        own: dict[str, Any] = {"path": None, "stamp": None, "saved": False, "corrections": None, "left": None}
        return replace(self, checked=set(self.checked), deleted={}, layer=weakref.ref(layer), **own)

    def measuring(self, image: Layer | None, source: Layer | None) -> Measuring:
        """Return what measures the objects, with the grey values of `image` and the probabilities of `source`."""
        raw, probability = (None if layer is None else volume_of(layer) for layer in (image, source))
        last = None if self.table is None else Measurement(self.table, self.measured)
        return Measuring(raw, probability, (Reference.of(image), Reference.of(source)), last)

    def take(self, found: Measurement) -> None:
        """Keep a measurement, and update which objects are checked."""
        before = {} if self.table is None else _places(self.table)
        self.table, self.measured = found
        if self.measured is not None:
            self.image = self.measured.raw or self.image
        now = _places(self.table)
        self.deleted |= {number: before[number] for number in self.checked & (before.keys() - now.keys())}
        self.checked -= before.keys() - now.keys()  # another object may get the id
        self.checked |= {number for number, place in self.deleted.items() if now.get(number) == place}
        self.deleted = {number: place for number, place in self.deleted.items() if number not in now}


def _places(table: pd.DataFrame) -> dict[int, tuple[float, ...]]:
    """Return the size and place of each object, by its id."""
    rows = table[["id", "voxels", "centroid_z_nm", "centroid_y_nm", "centroid_x_nm"]].itertuples(index=False, name=None)
    return {int(row[0]): row[1:] for row in rows}


def save_session(
    path: str | Path,
    ids: Volume,
    session: Session,
    layer: Mapping[str, Any],
    progress: Callable[[int], object] | None = None,
) -> None:
    """Write a session, as a whole or not at all.

    An existing file is replaced only if the session was saved in it or opened from it, and it has not changed since.

    Parameters
    ----------
    path : str or Path
        Path that ends in ``.zarr``.
    ids : Volume
        Ids of the objects.
    session : Session
        The session, whose objects are measured.
    layer : mapping
        Name and grid of the layer, from `grid_as_json`.
    progress : callable, optional
        As in `core.write_volume`.

    Raises
    ------
    OutputError
        If the session cannot be written, or there is something else of that name.
    """
    path = Path(path)
    if not is_zarr_name(path):
        raise OutputError(f"cannot write {path}: objects are saved as OME-Zarr; choose a name that ends in .zarr")
    own = session.path is not None and path.exists() and session.path.exists() and path.samefile(session.path)
    if not own and os.path.lexists(path):
        raise OutputError(f"cannot write {path}: it exists already; choose another name")
    if own and stamp_of(path) != session.stamp:
        raise OutputError(f"cannot write {path}: it has changed since it was opened or saved here; choose another name")
    table = session.table
    assert table is not None
    content = {
        "image": None if session.image is None else asdict(session.image),
        "source": None if session.source is None else asdict(session.source),
        "settings": asdict(session.config),
        "checked": sorted(session.checked & {int(i) for i in table["id"]}),
        "selected": session.selected,
        "layer": dict(layer),
        "table": _pack(table),
    }
    write_volume(ids, path, metadata={"objects": content}, labels=True, overwrite=own, progress=progress)


def stamp_of(path: Path) -> tuple[int, int] | None:
    """Return what tells a session's file from another one that takes its place; None if there is no file."""
    try:
        found = (path / "zarr.json").stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns


def is_session(path: str | Path) -> bool:
    """Return whether a path is a session; quick if it is not."""
    return _content(Path(path)) is not None


def read_session(path: str | Path) -> tuple[Volume, Session, dict[str, Any]]:
    """Read a session.

    Parameters
    ----------
    path : str or Path
        Path of the OME-Zarr.

    Returns
    -------
    ids : Volume
        Ids of the objects, lazy.
    session : Session
        What else is known about them.
    layer : dict
        Name and grid of the layer.

    Raises
    ------
    VolumeError
        If the path is no session, or the session is damaged.
    """
    path = Path(path)
    content = _content(path)
    if content is None:
        raise VolumeError(f"{path} holds no saved objects: open an OME-Zarr that the panel Objects has saved.")
    ids = open_volume(path)
    try:
        settings = content["settings"]
        session = Session(
            image=_reference(content["image"]),
            source=_reference(content["source"]),
            config=ObjectsConfig(**{**settings, "threshold": float(settings["threshold"])}),
            table=_unpack(content["table"]),
            checked={int(i) for i in content["checked"]},
            selected=int(content["selected"]),
            path=path.absolute(),
            saved=True,
            stamp=stamp_of(path),
        )
        layer = {"name": str(content["layer"]["name"]), **_grid(content["layer"])}
        if len(layer["scale"]) not in (2, 3) or (len(layer["scale"]) == 2 and len(ids) > 1):
            raise ValueError("its grid has other axes than its objects")
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise VolumeError(
            f"the session {path} is damaged ({type(error).__name__}): its ids can still be opened as an image, and "
            "used as a mask to find the objects anew."
        ) from error
    return ids, session, layer


def session_layers(path: str | Path, there: Iterable[Layer]) -> list[tuple[Any, dict[str, Any], str]]:
    """Return a session as layer data for napari: its objects and, if it lies beside them and is not `there`, its image.

    Raises the errors of `read_session`; an image that cannot be read is left out.
    """
    ids, session, options = read_session(path)
    flat = len(options["scale"]) == 2
    data: Any = np.asarray(ids) if ids.data.nbytes <= IN_MEMORY else ids.data
    if session.table is not None:
        columns = {"mean_grey": session.image, "mean_probability": session.source}
        with_ = [of if name in session.table else None for name, of in columns.items()]
        in_memory = isinstance(data, np.ndarray)
        volume = open_volume(data, voxel_size=ids.voxel_size)
        session.measured = Measured.of(volume, with_[0], with_[1]) if in_memory else Measured.unread(volume, *with_)
    layers: list[tuple[Any, dict[str, Any], str]] = []
    image = session.image
    if image is not None and not any(image.is_of(layer) for layer in there):
        file = image.find_beside(Path(path))
        if file is not None:
            with suppress(VolumeError):
                layers.append(image_layer(file, image, options))
    options |= {"metadata": {OBJECTS: session}, "features": features_of(with_checked(session))}
    return [*layers, (data[0] if flat else data, options, "labels")]


def image_layer(path: str | Path, image: Reference, objects: Mapping[str, Any]) -> tuple[Any, dict[str, Any], str]:
    """Return the image of a session as layer data for napari, lazy, on the grid of the objects.

    Raises
    ------
    VolumeError
        If the image cannot be read, or has another shape.
    """
    volume = open_volume(path)
    data = volume.data[0] if len(image.shape) == 2 else volume.data
    if tuple(data.shape) != image.shape:
        raise VolumeError(
            f"{path} has shape {data.shape}, but the image of the session {image.shape}: choose that image."
        )
    grid = {name: value for name, value in objects.items() if name != "name"}
    return data, {"name": image.name, "colormap": "gray", **grid}, "image"


def image_of(viewer: ViewerModel, raw: Layer | None, source: Layer | None, objects: Layer | None) -> Layer | None:
    """Return the image of objects: the chosen one, else the one segmented, else the only one of their shape."""
    segmented = None if source is None else segmented_image(source)
    if raw is not None or segmented is not None:
        return raw or segmented
    like = source if objects is None else objects
    images = [layer for layer in viewer.layers if isinstance(layer, Image) and layer is not source]
    same = [layer for layer in images if like is not None and data_of(layer).shape == data_of(like).shape]
    return same[0] if len(same) == 1 else None


def with_checked(session: Session) -> pd.DataFrame:
    """Return the table of a session with a column that says which objects are checked."""
    table = pd.DataFrame({"id": np.empty(0, np.int64)}) if session.table is None else session.table
    return table.assign(checked=table["id"].isin(list(session.checked)))


def grid_as_json(layer: Layer) -> dict[str, Any]:
    """Return the name and grid of a layer as JSON values."""
    grid = grid_of(layer)
    numbers = {name: np.asarray(grid[name], dtype=float).tolist() for name in _GRID}
    return {
        "name": layer.name,
        **numbers,
        "units": [str(unit) for unit in grid["units"]],
        "axis_labels": [str(label) for label in grid["axis_labels"]],
    }


def _grid(layer: Mapping[str, Any]) -> dict[str, Any]:
    grid: dict[str, Any] = {name: np.asarray(layer[name], dtype=float) for name in _GRID}
    if not all(np.isfinite(values).all() for values in grid.values()):
        raise ValueError("its grid is not finite")
    return {**grid, **{name: tuple(str(text) for text in layer[name]) for name in ("units", "axis_labels")}}


def _content(path: Path) -> dict[str, Any] | None:
    """Return the metadata of a session; None for anything else."""
    try:
        content = read_json(path / "zarr.json", _MOST)["attributes"]["napari_kdunet"]["objects"]
    except (ValueError, KeyError, TypeError, OSError):
        return None
    return content if isinstance(content, dict) else None


def _reference(values: Any) -> Reference | None:
    if values is None:
        return None
    return Reference(str(values["name"]), str(values["path"]), tuple(int(n) for n in values["shape"]))


def _pack(table: pd.DataFrame) -> dict[str, Any]:
    """Return a table as JSON, its values as one string, as Zarr would write a line for each number."""
    if table.empty:  # its columns have no type
        table = table.astype({name: np.int64 if name == "id" else np.float64 for name in table})
    values = {name: [v if math.isfinite(v) else str(v) for v in table[name].tolist()] for name in table}
    types = {name: str(table[name].dtype) for name in table}
    return {"types": types, "values": json.dumps(values, separators=(",", ":"), allow_nan=False)}


def _unpack(packed: Mapping[str, Any]) -> pd.DataFrame:
    values, types = parse_json(packed["values"]), packed["types"]
    kinds = {name: np.dtype(kind) for name, kind in types.items()}
    if values.keys() != kinds.keys() or "id" not in kinds or any(kind.kind not in "biuf" for kind in kinds.values()):
        raise ValueError("its table has other columns than it says")
    return pd.DataFrame({name: np.array(values[name], kinds[name]) for name in kinds})
