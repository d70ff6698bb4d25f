"""napari's layers as volumes of the core: choosing them, their data, voxel sizes and grids."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from magicgui.widgets import FloatSlider
from napari.layers import Image, Labels, Layer
from napari.utils.colormaps import CyclicLabelColormap
from napari.utils.notifications import show_warning
from napari.utils.transforms import Affine

from napari_kdunet.core import KDUNetError, Volume, VolumeError, open_volume
from napari_kdunet.widgets.shared.fields import Choice, threshold_slider

if TYPE_CHECKING:
    import napari.viewer

__all__ = [
    "CHANNELS",
    "IMAGE",
    "OBJECTS",
    "PREVIEW",
    "RESULT",
    "camera_of",
    "chosen_layer",
    "current_slice",
    "data_of",
    "go_to",
    "grid_of",
    "is_of_plugin",
    "is_result",
    "layer_choice",
    "one_colour",
    "segmented_image",
    "set_grid",
    "threshold_row",
    "users_own",
    "volume_in_file",
    "volume_of",
    "voxel_size_of",
    "voxel_size_of_grid",
    "warn_if_apart",
]

#: Key in the metadata of layers that are for display only and are not offered as inputs.
PREVIEW = "napari-kdunet preview"
#: Key in the metadata of layers that show a `Result`; its value is that result.
RESULT = "napari-kdunet result"
#: Key in the metadata of the same layers; its value is a weak reference to the image that was segmented.
IMAGE = "napari-kdunet image"
#: Key in the metadata of layers that hold objects, of *Objects*; its value is their `Session`.
OBJECTS = "napari-kdunet objects"

#: Labels of an axis of channels.
CHANNELS = {"c", "ch", "channel", "channels"}


def voxel_size_of(layer: Layer) -> tuple[float, float, float] | None:
    """Voxel size of a layer in nm (Z, Y, X), from its scale and units; None where the units are not lengths.

    Where only the units in plane are lengths, the size along y is taken along z too.
    """
    return voxel_size_of_grid(layer.scale, layer.units)


def voxel_size_of_grid(scales: Iterable[float], units: Iterable[Any]) -> tuple[float, float, float] | None:
    """As `voxel_size_of`, from the scale and the units (pint's) alone."""
    sizes: list[float | None] = []
    for scale, unit in zip(scales, units, strict=True):
        length = (1 * unit).is_compatible_with("nm")
        sizes.append(abs(float(scale)) * float((1 * unit).to("nm").magnitude) if length else None)
    y, x = sizes[-2:]
    if not y or not x:
        return None
    z = sizes[-3] if len(sizes) > 2 else None
    return (z or y, y, x)


def data_of(layer: Layer) -> Any:
    """The array of a layer; of a pyramid the finest level."""
    return layer.data[0] if getattr(layer, "multiscale", False) else layer.data


class _Following:
    """The current array of a layer, which may be replaced by another one of the same shape."""

    def __init__(self, layer: Layer) -> None:
        self.layer = layer
        self.shape, self.dtype = data_of(layer).shape, data_of(layer).dtype

    def __getitem__(self, key: Any) -> Any:
        data = data_of(self.layer)
        if data.shape != self.shape:
            raise ValueError(f"the layer had shape {self.shape} and has {data.shape} by now")
        return data[key]


def volume_of(layer: Layer, *, following: bool = False) -> Volume:
    """A layer as a volume: 2-D as one slice, of a pyramid the finest level; nothing is read yet.

    Parameters
    ----------
    layer : napari.layers.Layer
        The layer.
    following : bool
        Read from the data that the layer has at the time of reading, rather than from its data now.

    Raises
    ------
    VolumeError
        If the layer is RGB, has channels or time points, or is neither 2-D nor 3-D.
    """
    if getattr(layer, "rgb", False):
        raise VolumeError(
            f"the layer {layer.name} is RGB: convert it to grey values first (right-click it, Split RGB, take one)."
        )
    shape = data_of(layer).shape
    if len(shape) > 3:
        raise VolumeError(
            f"the layer {layer.name} has {len(shape)} axes {shape}: choose a time point or channel under Image, or "
            "right-click it, Split Stack, and take one."
        )
    if len(shape) > 2 and shape[-3] > 1 and str(layer.axis_labels[-3]).lower() in CHANNELS:
        raise VolumeError(
            f"the layer {layer.name} has {shape[-3]} channels, which are no slices: choose one under Image, or "
            "right-click it, Split Stack, and take one."
        )
    data = _Following(layer) if following else data_of(layer)
    return open_volume(data, voxel_size=voxel_size_of(layer), name=layer.name)


def volume_in_file(layer: Layer, **options: Any) -> Volume | None:
    """The volume in the file behind a layer, whoever opened it; only its header is read.

    None where there is no file, it holds an image of another size, or it cannot be opened with these `options` of
    `open_volume`.
    """
    path = layer.source.path
    if not path:
        return None
    try:
        volume = open_volume(path, **options)
    except KDUNetError:
        return None
    return volume if volume.shape[1:] == tuple(data_of(layer).shape[-2:]) else None


def _threshold_of(layer: Layer) -> float:
    """Above which a probability is foreground: of *Segment* or a file of ours that of its model, else 0.5."""
    if is_result(layer):
        return float(layer.metadata[RESULT].threshold)
    volume = volume_in_file(layer)
    return 0.5 if volume is None else volume.threshold


def grid_of(layer: Layer, first: Sequence[int] = (0, 0, 0)) -> dict[str, Any]:
    """The grid of a layer (scale, translation, units, …), as arguments of a layer that covers it.

    Or that covers a part of it, which begins at its voxel `first` (Z, Y, X).
    """
    names = ("scale", "translate", "rotate", "shear", "affine", "units", "axis_labels")
    grid = {name: getattr(layer, name) for name in names}
    steps = Affine(scale=grid["scale"], rotate=grid["rotate"], shear=grid["shear"]).linear_matrix
    axes = len(steps)
    grid["translate"] = np.asarray(grid["translate"]) + steps @ np.array([0] * (axes - 3) + list(first)[-axes:])
    return grid


def set_grid(layer: Layer, grid: dict[str, Any]) -> None:
    """Lay a layer on a grid, as of `grid_of`."""
    for name, value in grid.items():
        setattr(layer, name, value)


def warn_if_apart(one: Layer, other: Layer) -> None:
    """Show a warning where layers begin half a voxel or more apart, as they are taken voxel by voxel all the same.

    Either by its own voxels, so that one of known and one of unknown pixel size may lie on each other.
    """
    axes = min(one.ndim, other.ndim)
    first, second = (np.asarray(layer.translate[-axes:]) / layer.scale[-axes:] for layer in (one, other))
    if (abs(first - second) >= 0.5).any():
        voxels = ", ".join(f"{shift:+.0f}" for shift in second - first)
        show_warning(
            f"{other.name} lies elsewhere than {one.name} ({voxels} voxels), but their first voxels are taken for the "
            "same one: if they show different parts of a volume, take the same part of both."
        )


def one_colour(colour: str) -> CyclicLabelColormap:
    """A colormap that shows all labels alike; cyclic, as the first use of a direct one compiles code for seconds."""
    return CyclicLabelColormap(colors=["transparent", colour])


def camera_of(viewer: napari.viewer.Viewer) -> Any:
    """The camera; of the viewer itself before napari 0.9."""
    return getattr(viewer, "scene", viewer).camera


def go_to(viewer: napari.viewer.Viewer, layer: Layer, place: Sequence[float]) -> None:
    """Show a place (Z, Y, X) of a layer, in its voxels, in the middle of the screen."""
    world = layer.data_to_world(place[-layer.ndim :])
    viewer.dims.set_point(range(-layer.ndim, 0), world)
    camera_of(viewer).center = tuple(world[-3:])


def current_slice(viewer: napari.viewer.Viewer, layer: Layer) -> int:
    """The z of `layer` that the viewer shows, or the nearest one to it; 0 of a 2-D layer."""
    if layer.ndim < 3:
        return 0
    point = layer.world_to_data(viewer.dims.point[-layer.ndim :])
    return int(min(max(round(float(point[-3])), 0), data_of(layer).shape[-3] - 1))


def threshold_row(*choices: Choice) -> FloatSlider:
    """The slider *Threshold*, which begins at that of the first of the chosen layers that is a probability."""
    slider = threshold_slider("Probability, 0 to 1, above which a voxel is foreground. Of no matter for labels.")
    followed: Layer | None = None

    def follow() -> None:
        nonlocal followed
        before, followed = followed, next((c.value for c in choices if isinstance(c.value, Image)), None)
        if followed is not None and followed is not before:
            slider.value = min(max(_threshold_of(followed), slider.min), slider.max)

    for choice in choices:
        choice.changed.connect(follow)
    follow()
    return slider


def layer_choice(
    viewer: napari.viewer.Viewer,
    kind: type[Layer] = Image,
    *,
    accepts: Callable[[Layer], bool] | None = None,
    first: Callable[[list[Layer]], Layer | None] | None = None,
    **options: Any,
) -> Choice:
    """The choice among the layers of a viewer: the topmost first, results of *Segment* last, and no previews.

    Until somebody chooses, it is the topmost layer that the user has brought. It follows the viewer as all choices of
    magicgui do, by `reset_choices`, to which napari connects what it docks.

    Parameters
    ----------
    viewer : napari.viewer.Viewer
        The viewer of the layers; magicgui's own search finds none before the panel is docked.
    kind : type
        `napari.layers.Image`, `napari.layers.Labels`, or `napari.layers.Layer`.
    accepts : callable, optional
        Whether to offer a layer; all by default.
    first : callable, optional
        The layer to take at first, of those that are offered.
    **options
        As of `Choice`.
    """

    def offered(_: Any) -> list[tuple[str, Layer]]:
        layers = [
            layer for layer in reversed(viewer.layers) if isinstance(layer, kind) and PREVIEW not in layer.metadata
        ]
        layers = [layer for layer in layers if accepts is None or accepts(layer)]
        return [(layer.name, layer) for layer in sorted(layers, key=is_of_plugin)]

    options.setdefault("placeholder", f"no {kind.__name__.lower()} yet: open or add one")
    return Choice(offered, first=first or users_own, annotation=kind, **options)


def is_result(layer: Layer) -> bool:
    """Whether *Segment* has made the layer."""
    return RESULT in layer.metadata


def is_of_plugin(layer: Layer) -> bool:
    """Whether it is a result: of *Segment*, or objects. Who learns from one without a word learns its mistakes."""
    return is_result(layer) or OBJECTS in layer.metadata


def segmented_image(layer: Layer) -> Layer | None:
    """The image that *Segment* has made the layer of, if that still exists; None of any other layer."""
    image: Layer | None = layer.metadata[IMAGE]() if IMAGE in layer.metadata else None
    return image


def users_own(layers: Iterable[Layer]) -> Layer | None:
    """The first layer that the user has brought; None where there are only results of the plugin."""
    return next((layer for layer in layers if not is_of_plugin(layer)), None)


def chosen_layer(choice: Choice) -> Layer:
    """The layer of a choice.

    Raises
    ------
    VolumeError
        If there is none.
    """
    if choice.value is None:
        kind = choice.annotation
        words = "a labels" if kind is Labels else "an image"
        raise VolumeError(f"no {kind.__name__.lower()} layer is chosen: add {words} layer to the viewer.")
    layer: Layer = choice.value
    return layer
