"""The pixel size of an image that does not state it, and a doubt about one that is stated."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from napari_kdunet.cli.arguments import AUTO, Volumes
from napari_kdunet.cli.terminal import console
from napari_kdunet.core.errors import VolumeError

if TYPE_CHECKING:
    from napari_kdunet.core import Model, OnnxModel, PixelSizeSearch, Volume
    from napari_kdunet.core.volumes.voxel_size import VoxelSize

__all__ = ["with_found_pixel_sizes", "with_pixel_size"]

_FACTORS = (1.0, 0.5, 0.7, 1.4, 2.0)  # of a stated size, which the model may be surer at
_SLICES = 2
_COST = 0.05  # share of a run that looking at these may cost ...
_LOOKED_AT = (
    2 * 2 * len(_FACTORS) * _SLICES * 640**2
)  # ... which are so many working pixels, of two views and contrasts
_SURER = 0.6  # of the doubt at the stated size


def with_pixel_size(
    volume: Volume,
    model: Model | OnnxModel,
    name: str,
    asked: str | None,
    invert: bool | None,
    resources: dict[str, Any],
) -> tuple[Volume, VoxelSize | None, dict[str, Any]]:
    """The volume with a pixel size that `model` can work at: the stated one, else that at which it is surest.

    Each finding is printed. Returned are the volume, the voxel size that was stated, for the result, and what is to be
    said of the search in the result's metadata. Where nothing is found the size at which the model is least unsure is
    taken, with a note, or the model's own if it sees nothing at any.

    Raises
    ------
    VolumeError
        If nothing was found, and a search was asked for.
    """
    from napari_kdunet import core

    stated = volume.voxel_size
    if not model.pixel_size:
        return volume, stated, {}
    if isinstance(model, core.OnnxModel):
        if not stated:
            taken = f"taken as the model's {model.pixel_size:g} nm; give --voxel-size."
            console.print(f"note: the pixel size of {volume.name} is not stated: {taken}")
        return volume, stated, {}
    how = {"invert": invert is None, **resources}
    if stated:
        if asked == AUTO or (len(volume) > _SLICES and _COST * _working_pixels(volume, model) > _LOOKED_AT):
            factors = [factor * stated[1] for factor in _FACTORS]
            _print_doubt(
                core.find_pixel_size(model, volume, sizes=factors, slices=_SLICES, **how), stated[1], volume, name
            )
        return volume, stated, {}
    from napari_kdunet.core.prediction.pixel_size import assume_pixel_size  # with torch, which an exported model lacks

    assumed = assume_pixel_size(model, volume, name, **how)
    if asked == AUTO and not assumed.is_found:
        raise VolumeError(
            f"the pixel size of {volume.name} is not stated and not found: {name} is sure at none; give --voxel-size."
        )
    hint = "--voxel-size sets it" if assumed.is_found else "give --voxel-size"
    never = ", --no-invert leaves contrast as it is" if assumed.inverted else ""
    console.print(f"note: {assumed.note}; {hint}{never}.")
    return assumed.volume, None, assumed.metadata


def with_found_pixel_sizes(
    volumes: Volumes, teacher: Any, name: str, invert: bool | None, resources: dict[str, Any]
) -> Volumes:
    """The volumes of a training, those that state no pixel size with that at which `teacher` is surest of them.

    `teacher` is what the training begins from or learns from. Arguments else as in `with_pixel_size`.
    """

    def found(image: Volume) -> Volume:
        return image if image.voxel_size else with_pixel_size(image, teacher, name, None, invert, resources)[0]

    val = volumes.val and [(found(image), labels) for image, labels in volumes.val]
    pairs = [(found(image), labels) for image, labels in volumes.pairs]
    return Volumes(pairs, [found(image) for image in volumes.unlabelled], val)


def _working_pixels(volume: Volume, model: Model) -> float:
    z, y, x = volume.shape
    size = volume.voxel_size or (0.0, 0.0, 0.0)
    return z * y * size[1] * x * size[2] / model.pixel_size**2


def _print_doubt(search: PixelSizeSearch, stated: float, volume: Volume, name: str) -> None:
    """Say so where the model is much surer at another pixel size than the stated one, or with contrast inverted."""
    best = search.best
    if best is None or best.doubt >= _SURER * search.doubt_at(stated):
        return
    inverted = " with --invert" if best.inverted else ""
    if best.inverted or best.pixel_size != stated:
        console.print(
            f"note: {name} is much surer of {volume.name} at {best.pixel_size:.3g} nm{inverted} than at the stated "
            f"{stated:g} nm: is that right? --voxel-size sets it."
        )
