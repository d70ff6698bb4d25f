"""napari's layers as volumes of the core: choosing them, their data, voxel sizes and grids."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from magicgui.widgets import CheckBox, FloatSlider
from napari.layers import Image, Labels, Layer
from napari.utils.colormaps import CyclicLabelColormap
from napari.utils.notifications import show_warning
from napari.utils.transforms import Affine
from numpy.typing import ArrayLike, NDArray

from napari_kdunet.core import KDUNetError, Volume, VolumeError, open_volume
from napari_kdunet.widgets.shared.fields import Choice, threshold_slider

if TYPE_CHECKING:
    import napari.viewer

__all__ = [
    "CHANNELS",
    "IGNORE_UNLABELLED",
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
    "sparse_box",
    "stretch_of",
    "stretch_of_grid",
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
#: Key in the metadata of layers that show a `Result`; its value is a weak reference to the image that was segmented.
IMAGE = "napari-kdunet image"
#: Key in the metadata of layers that hold the objects of the *Objects* panel; its value is their `Session`.
OBJECTS = "napari-kdunet objects"

#: Text of the check box that says whether unlabelled pixels are ignored.
IGNORE_UNLABELLED = "Ignore unlabelled pixels"
#: Axis labels that denote channels.
CHANNELS = {"c", "ch", "channel", "channels"}


def voxel_size_of(layer: Layer) -> tuple[float, float, float] | None:
    """Return the voxel size of a layer in nm (Z, Y, X), as napari draws it; None if its units are not lengths.

    It follows from scale, units and affine transform. If the layer is 2-D, or only its in-plane units are lengths, the
    size along y is used along z too.
    """
    return voxel_size_of_grid(layer.scale * stretch_of(layer), layer.units)


def stretch_of(layer: Layer) -> NDArray[np.float64]:
    """Return how many times as long the affine transform of a layer makes its voxels along each of their axes."""
    return stretch_of_grid(layer.rotate, layer.affine.affine_matrix)


def stretch_of_grid(rotate: ArrayLike, affine: ArrayLike) -> NDArray[np.float64]:
    """Return the stretch as `stretch_of` does, from the matrices of rotation (n, n) and affine transform alone."""
    turned, linear = np.asarray(rotate, float), np.asarray(affine, float)[:-1, :-1]
    if np.array_equal(linear, np.eye(len(linear))):
        return np.ones(len(linear))
    return np.asarray(np.linalg.norm(linear @ turned, axis=0))


def voxel_size_of_grid(scales: Iterable[float], units: Iterable[Any]) -> tuple[float, float, float] | None:
    """Return the voxel size in nm (Z, Y, X) from scales and pint units, None if these are not lengths."""
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
    """Return the array of a layer; for a pyramid, its finest level."""
    return layer.data[0] if getattr(layer, "multiscale", False) else layer.data


class _Following:
    """Gives access to the current array of a layer, which may be replaced by another of the same shape."""

    def __init__(self, layer: Layer) -> None:
        self.layer = layer
        self.shape, self.dtype = data_of(layer).shape, data_of(layer).dtype

    def __getitem__(self, key: Any) -> Any:
        data = data_of(self.layer)
        if data.shape != self.shape:
            raise ValueError(f"the shape of the layer has changed from {self.shape} to {data.shape}")
        return data[key]


def volume_of(layer: Layer, *, following: bool = False) -> Volume:
    """Return a layer as a volume: a 2-D layer as one slice, a pyramid by its finest level; nothing is read yet.

    Parameters
    ----------
    layer : napari.layers.Layer
        The layer.
    following : bool
        Whether to read from the data that the layer has at the time of reading, rather than from its present data.

    Raises
    ------
    VolumeError
        If the layer is RGB, has channels or time points, or is neither 2-D nor 3-D.
    """
    if getattr(layer, "rgb", False):
        raise VolumeError(
            f"the layer {layer.name} is RGB: convert it to grey values first (right-click it, Split RGB, and take one "
            "channel)."
        )
    shape = data_of(layer).shape
    if len(shape) > 3:
        raise VolumeError(
            f"the layer {layer.name} has {len(shape)} axes {shape}: {_how_to_choose(layer, 'a time point or channel')}"
        )
    if len(shape) > 2 and shape[-3] > 1 and str(layer.axis_labels[-3]).lower() in CHANNELS:
        raise VolumeError(
            f"the layer {layer.name} has {shape[-3]} channels rather than slices: {_how_to_choose(layer, 'one')}"
        )
    data = _Following(layer) if following else data_of(layer)
    return open_volume(data, voxel_size=voxel_size_of(layer), name=layer.name)


def volume_in_file(layer: Layer, **options: Any) -> Volume | None:
    """Return the volume in the file behind a layer, whichever reader opened it; only its header is read.

    None if there is no file, if its slices have another size, or if it cannot be opened with these `options` of
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
    """Return the model's threshold for a result of *Segment* or a file that states it, else 0.5."""
    if is_result(layer):
        return float(layer.metadata[RESULT].threshold)
    volume = volume_in_file(layer)
    return 0.5 if volume is None else volume.threshold


def grid_of(layer: Layer, first: Sequence[int] = (0, 0, 0)) -> dict[str, Any]:
    """Return the grid of a layer (scale, translation, units, …) as keyword arguments for a layer that covers it.

    With `first` (Z, Y, X), it is the grid of a part of the layer that begins at this voxel.
    """
    names = ("scale", "translate", "rotate", "shear", "affine", "units", "axis_labels")
    grid = {name: getattr(layer, name) for name in names}
    steps = Affine(scale=grid["scale"], rotate=grid["rotate"], shear=grid["shear"]).linear_matrix
    axes = len(steps)
    grid["translate"] = np.asarray(grid["translate"]) + steps @ np.array([0] * (axes - 3) + list(first)[-axes:])
    return grid


def set_grid(layer: Layer, grid: dict[str, Any]) -> None:
    """Lay a layer on a grid returned by `grid_of`."""
    for name, value in grid.items():
        setattr(layer, name, value)


def _how_to_choose(layer: Layer, part: str) -> str:
    if isinstance(layer, Labels):  # there is no row to choose a part of labels, and napari splits images alone
        return "right-click the layer, Convert to Image, Split Stack, and Convert to Labels for the part of your image."
    return f"choose {part} under Image, or right-click it, Split Stack, and take one part."


def warn_if_apart(one: Layer, other: Layer) -> None:
    """Warn if two layers lie half a voxel or more apart, since they are compared voxel by voxel all the same.

    The offset of each layer is measured in its own voxels, and of its axes only the directions count, so that a layer
    of known and one of unknown pixel size can coincide.
    """
    axes = min(one.ndim, other.ndim)
    (first, ahead), (second, aside) = _place(one, axes), _place(other, axes)
    if (abs(first - second) >= 0.5).any():
        voxels = ", ".join(f"{shift:+.0f}" for shift in second - first)
        show_warning(
            f"{other.name} is shifted from {one.name} (by {voxels} voxels), but both are used as if they began at the "
            "same voxel: if they show different parts of a volume, choose layers of the same part."
        )
    elif abs(ahead - aside).max() * max(data_of(one).shape[-axes:]) >= 0.5:
        show_warning(
            f"{other.name} is turned, mirrored or sheared against {one.name}, but both are used as if their voxels lay "
            "on each other: give both layers the same transform, or choose another one."
        )


def _place(layer: Layer, axes: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return where the last axes of a layer begin, in its own voxels, and their directions in the world (columns)."""
    corner = np.asarray(layer.data_to_world(np.zeros(layer.ndim)))
    steps = np.transpose([layer.data_to_world(step) - corner for step in np.eye(layer.ndim)])
    return np.linalg.solve(steps, corner)[-axes:], (steps / np.linalg.norm(steps, axis=0))[-axes:, -axes:]


def one_colour(colour: str) -> CyclicLabelColormap:
    """Return a colormap that shows all labels alike; cyclic, as the first use of a direct one compiles for seconds."""
    return CyclicLabelColormap(colors=["transparent", colour])


def camera_of(viewer: napari.viewer.Viewer) -> Any:
    """Return the camera of a viewer; before napari 0.9 it is an attribute of the viewer itself."""
    return getattr(viewer, "scene", viewer).camera


def go_to(viewer: napari.viewer.Viewer, layer: Layer, place: Sequence[float]) -> None:
    """Show a place (Z, Y, X) of a layer, in its voxels, in the middle of the screen."""
    world = layer.data_to_world(place[-layer.ndim :])
    viewer.dims.set_point(range(-layer.ndim, 0), world)
    camera_of(viewer).center = tuple(world[-3:])


def current_slice(viewer: napari.viewer.Viewer, layer: Layer) -> int:
    """Return the z of `layer` that is nearest to the slice on screen; 0 for a 2-D layer."""
    if layer.ndim < 3:
        return 0
    point = layer.world_to_data(viewer.dims.point[-layer.ndim :])
    return int(min(max(round(float(point[-3])), 0), data_of(layer).shape[-3] - 1))


def threshold_row(*choices: Choice) -> FloatSlider:
    """Return the slider *Threshold*, set to the threshold of the first chosen layer that is a probability map."""
    slider = threshold_slider("Probability, 0 to 1, above which a voxel is foreground. It has no effect on labels.")
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


def sparse_box(more: str = "") -> CheckBox:
    """Return the check box that says whether unlabelled pixels (0) are ignored; `more` is added to its tooltip."""
    return CheckBox(
        name="sparse",
        text=IGNORE_UNLABELLED,
        tooltip="Ticked: 0 is the ignore value, so that what is not labelled does not count; 1 = background, "
        f"2 = mitochondrion.\nNot ticked: 0 = background, anything else = mitochondrion.{more}",
    )


def layer_choice(
    viewer: napari.viewer.Viewer,
    kind: type[Layer] = Image,
    *,
    accepts: Callable[[Layer], bool] | None = None,
    first: Callable[[list[Layer]], Layer | None] | None = None,
    **options: Any,
) -> Choice:
    """Return the choice among the layers of a viewer: the topmost first, the plugin's results last, and no previews.

    Until the user or a script chooses, it selects the topmost layer that the plugin has not made. Like all choices of
    magicgui it follows the viewer through `reset_choices`, to which napari connects the widgets that it docks.

    Parameters
    ----------
    viewer : napari.viewer.Viewer
        Viewer whose layers are offered; magicgui's own search finds none before the panel is docked.
    kind : type
        `napari.layers.Image`, `napari.layers.Labels`, or `napari.layers.Layer`.
    accepts : callable, optional
        Returns whether to offer a layer; all are offered by default.
    first : callable, optional
        Called with the offered layers; returns the one to select at first.
    **options
        Options of `Choice`.
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
    """Return whether the layer is a result of *Segment*."""
    return RESULT in layer.metadata


def is_of_plugin(layer: Layer) -> bool:
    """Return whether the layer is a result of *Segment* or of *Objects*.

    Training on such a layer without asking the user would teach a model the mistakes of the result.
    """
    return is_result(layer) or OBJECTS in layer.metadata


def segmented_image(layer: Layer) -> Layer | None:
    """Return the image that *Segment* made the layer from, if it still exists; None for any other layer."""
    image: Layer | None = layer.metadata[IMAGE]() if IMAGE in layer.metadata else None
    return image


def users_own(layers: Iterable[Layer]) -> Layer | None:
    """Return the first layer that the plugin has not made; None if there are only results of the plugin."""
    return next((layer for layer in layers if not is_of_plugin(layer)), None)


def chosen_layer(choice: Choice) -> Layer:
    """Return the chosen layer.

    Raises
    ------
    VolumeError
        If no layer is chosen.
    """
    if choice.value is None:
        kind = choice.annotation
        words = "a labels" if kind is Labels else "an image"
        raise VolumeError(f"no {kind.__name__.lower()} layer is chosen: add {words} layer to the viewer.")
    layer: Layer = choice.value
    return layer
