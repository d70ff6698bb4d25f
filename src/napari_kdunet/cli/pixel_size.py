"""The pixel size of an image that does not state it, and doubt about one that is stated."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from napari_kdunet.cli.arguments import AUTO, Volumes
from napari_kdunet.cli.terminal import console
from napari_kdunet.core.errors import VolumeError

if TYPE_CHECKING:
    from napari_kdunet.core import Model, OnnxModel, PixelSizeSearch, Volume
    from napari_kdunet.core.reading.voxel_size import VoxelSize

__all__ = ["with_found_pixel_sizes", "with_pixel_size"]

_FACTORS = (1.0, 0.5, 0.7, 1.4, 2.0)  # multiples of a stated size at which the model may be surer
_SLICES = 2
_COST = 0.05  # share of a run that trying these may cost ...
_LOOKED_AT = 2 * 2 * len(_FACTORS) * _SLICES * 640**2  # ... in working pixels, with two views and two contrasts of each
_LEAST_LOOKED_AT = 200**2  # working pixels of a slice that shows whether contrast is inverted
_LIKELY = 0.75  # share of the doubt with contrast as it is, below which inverted contrast is mentioned
_SURER = 0.6  # share of the doubt at the stated size, below which another is mentioned


def with_pixel_size(
    volume: Volume,
    model: Model | OnnxModel,
    name: str,
    asked: str | None,
    invert: bool | None,
    resources: dict[str, Any],
) -> tuple[Volume, VoxelSize | None, dict[str, Any]]:
    """Return the volume with a pixel size that `model` can work at: the stated one, else that at which it is surest.

    Each finding is printed. If no size is found, the one at which the model is least unsure is taken, with a note, or
    the model's own if it sees nothing at any size.

    Returns
    -------
    volume : Volume
        The volume with its pixel size.
    stated : tuple of float or None
        Voxel size that the volume stated, nm (Z, Y, X), for the result.
    metadata : dict
        Facts of the search, for the result's metadata.

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
            sizes = [factor * stated[1] for factor in _FACTORS]
            search = core.find_pixel_size(model, volume, sizes=sizes, slices=_SLICES, **how)
            _print_surer(search, stated[1], volume, name)
        elif invert is None and _working_pixels(volume, model) >= _LEAST_LOOKED_AT * len(volume):
            search = core.find_pixel_size(model, volume, sizes=[stated[1]], slices=1, **how)
            _print_surer(search, stated[1], volume, name)
        return volume, stated, {}
    from napari_kdunet.core.prediction.pixel_size import assume_pixel_size  # imports torch, so not for ONNX

    assumed = assume_pixel_size(model, volume, name, **how)
    if asked == AUTO and not assumed.is_found:
        raise VolumeError(
            f"the pixel size of {volume.name} is not stated and not found: {name} is sure at no size; "
            "give --voxel-size."
        )
    hint = "--voxel-size sets it" if assumed.is_found else "give --voxel-size"
    never = ", --no-invert leaves contrast as it is" if assumed.inverted else ""
    console.print(f"note: {assumed.note}; {hint}{never}.")
    return assumed.volume, None, assumed.metadata


def with_found_pixel_sizes(
    volumes: Volumes, teacher: Any, name: str, invert: bool | None, resources: dict[str, Any]
) -> Volumes:
    """Return the volumes of a training; those that state no pixel size get that at which `teacher` is surest of them.

    `teacher` is the model that the training starts or learns from. Other arguments are as in `with_pixel_size`.
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


def _print_surer(search: PixelSizeSearch, stated: float, volume: Volume, name: str) -> None:
    """Print a note if the model is much surer at another pixel size than the stated one, or if contrast is inverted."""
    best, doubt = search.best, search.doubt_at(stated)
    if best is not None and best.pixel_size != stated and best.doubt < _SURER * doubt:
        inverted = " with --invert" if best.inverted else ""
        console.print(
            f"note: {name} is much surer of {volume.name} at {best.pixel_size:.3g} nm{inverted} than at the stated "
            f"{stated:g} nm: is that right? --voxel-size sets it."
        )
    elif any(each.doubt < _LIKELY * doubt for each in search.tried if each.inverted and each.pixel_size == stated):
        console.print(
            f"note: {name} is surer of {volume.name} with bright and dark exchanged: if its contrast is inverted, give "
            "--invert; --no-invert omits this check."
        )
