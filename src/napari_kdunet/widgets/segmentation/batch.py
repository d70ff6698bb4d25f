"""Segment many images by one model and write the masks; one image that fails does not stop the others."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from napari_kdunet import core
from napari_kdunet.core.files import is_zarr_name, make_folder
from napari_kdunet.core.formatting import counted, format_slices
from napari_kdunet.core.reading.readers import READERS
from napari_kdunet.core.writing.target import check_target
from napari_kdunet.widgets.workers.stopping import stoppable, was_stopped

if TYPE_CHECKING:
    from napari_kdunet.core import Volume
    from napari_kdunet.widgets.segmentation.recipe import Recipe

__all__ = ["Item", "Progress", "images_in", "is_image", "iter_batch", "target_of"]

_RESULT = " mask"  # ends the name of a result, before the ending


@dataclass(frozen=True)
class Item:
    """An image to segment, and where the result goes."""

    name: str
    source: Volume | Path
    target: Path


@dataclass(frozen=True)
class Progress:
    """Progress of one image of a batch."""

    index: int
    share: float
    """Share of the slices that are done, 0 to 1."""
    note: str = ""
    """What was assumed about the image."""
    error: str = ""
    """Why the image has failed, if it has; the batch goes on."""


def images_in(folder: Path) -> list[Path]:
    """Return the images in a folder, sorted by name, without the results of a batch."""
    paths = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    return [path for path in paths if is_image(path) and not path.stem.endswith(_RESULT)]


def is_image(path: Path) -> bool:
    """Return whether a file, or a folder such as a Zarr, is an image, judging by its name."""
    return path.suffix.lower() in READERS or is_zarr_name(path)


def target_of(name: str, file: Path | None, folder: Path | None, ending: str, taken: Iterable[Path]) -> Path:
    """Return the path for the result of an image: in `folder`, else beside its file, and not one of the `taken`.

    Raises
    ------
    OutputError
        If there is neither a folder nor a file.
    """
    where = folder or (None if file is None else file.parent)
    if where is None:
        raise core.OutputError(f"the layer {name} has no file beside which to write its mask: choose a folder.")
    stem = (name if file is None else file.stem).replace("/", "_").replace("\\", "_")
    path, number = where / f"{stem}{_RESULT}{ending}", 2
    while path in taken:
        path, number = where / f"{stem} {number}{_RESULT}{ending}", number + 1
    return path


def iter_batch(items: Iterable[Item], recipe: Recipe, is_stopped: Callable[[], bool]) -> Iterator[Progress]:
    """Segment image after image and write the masks; yields after each slice. Existing files are not replaced.

    A slice that cannot be read is 0 in the mask, and the note says so; with `Recipe.planes` "zyx" the image fails.
    A result gets its final name when it is complete. If it is stopped, nothing of it is left; only a Zarr is kept and
    continued the next time.
    """
    for index, item in enumerate(items):
        yield Progress(index, 0.0)
        try:
            yield from _segment(index, item, recipe, is_stopped)
        except core.KDUNetError as error:
            if is_stopped() or was_stopped(error):
                return
            yield Progress(index, 0.0, error=str(error))


def _segment(index: int, item: Item, recipe: Recipe, is_stopped: Callable[[], bool]) -> Iterator[Progress]:
    from napari_kdunet.core.prediction.pixel_size import assume_pixel_size
    from napari_kdunet.core.prediction.predict import prediction_key
    from napari_kdunet.core.prediction.to_file import iter_write_prediction
    from napari_kdunet.core.volumes.fingerprint import data_fingerprint

    make_folder(item.target.parent)
    check_target(item.target, inputs=[item.source] if isinstance(item.source, Path) else [], overwrite=True)
    if item.target.exists():
        raise core.OutputError(f"{item.target.name} already exists: move it away, or choose another folder.")
    skips = recipe.planes != "zyx"  # along all axes, each block needs all slices
    volume = core.open_volume(item.source, invert=recipe.inverted, on_error="skip" if skips else "stop")
    stated, notes, found = volume.voxel_size, [], {}
    volume = stoppable(volume, is_stopped)
    if stated is None and recipe.model.pixel_size:
        assumed = assume_pixel_size(recipe.model, volume, recipe.model_name, invert=not recipe.inverted)
        volume, found = assumed.volume, assumed.metadata
        notes = [assumed.note.replace(volume.name, item.name)]
        found["inverted"] = recipe.inverted or assumed.inverted
    notes += volume.notes
    how: dict[str, Any] = {"output": "labels", "threshold": recipe.threshold, "views": recipe.model.views}
    how["planes"] = recipe.planes
    metadata = {"model": recipe.model_name, "inverted": recipe.inverted, **how, **found}
    unread: list[core.VolumeError] = []

    def skip(error: core.VolumeError) -> None:
        if was_stopped(error):
            raise error
        unread.append(error)

    pixels = "" if isinstance(item.source, Path) else data_fingerprint(volume)  # a layer has no file date
    slices = iter_write_prediction(
        core.predict(recipe.model, volume, **how),
        volume,
        item.target,
        voxel_size=stated,
        metadata=metadata,
        labels=True,
        on_error=skip if skips else None,
        resume_key=prediction_key(recipe.model, volume, pixels=pixels, **how),
    )
    with closing(slices):
        for written in slices:
            if written.done == len(volume):
                if "lost" in metadata:
                    notes.append(f"no image at z = {format_slices(metadata['lost'])}: taken as background")
                if unread:
                    notes.append(f"{counted(len(unread), 'slice')} not segmented, 0 in the mask: {unread[0]}")
            yield Progress(index, written.done / len(volume), "; ".join(notes))
