"""The rows of the panel *Objects*: those to find objects, and those to show, correct and save them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from magicgui.widgets import CheckBox, ComboBox, FloatSlider, LineEdit
from napari.layers import Image, Labels, Layer

from napari_kdunet.core import ObjectsConfig
from napari_kdunet.widgets.proofreading.tools import TOOLS
from napari_kdunet.widgets.shared.fields import make_narrow, without_wheel
from napari_kdunet.widgets.shared.layers import is_result, layer_choice, threshold_row
from napari_kdunet.widgets.shared.panel import button, in_a_row
from napari_kdunet.widgets.shared.pixel_size import PixelSize

if TYPE_CHECKING:
    import napari.viewer

__all__ = ["SETTINGS", "controls", "finding_rows", "footer"]

_SLIDERS = {
    "split": (0.0, 1.0, 0.05),
    "min_diameter": (0.0, 1000.0, 10.0),
    "holes": (0.0, 500.0, 10.0),
    "smoothing": (0.0, 100.0, 1.0),
}
_MODES = {"auto": "auto", "3d": "in 3-D", "2d": "in slices, linked"}
#: Fields of `core.ObjectsConfig` that have a row of the same name.
SETTINGS = ("threshold", *_SLIDERS, "mode")


def finding_rows(viewer: napari.viewer.Viewer, accepts: Callable[[Layer], bool]) -> list[Any]:
    """Return the rows ``source``, ``image_pixel_size``, ``raw``, those of `SETTINGS`, and ``live``.

    Parameters
    ----------
    viewer : napari.viewer.Viewer
        Viewer of the layers.
    accepts : callable
        Returns whether a layer can be a mask.
    """
    source = layer_choice(
        viewer,
        kind=Layer,
        accepts=accepts,
        first=_mask_among,
        name="source",
        label="Mask",
        tooltip="Labels (what is not 0 is foreground), or probabilities, 0 to 1, as a floating-point image.",
        placeholder="no mask yet: segment an image",
    )
    raw = layer_choice(
        viewer,
        kind=Image,
        first=lambda _: None,
        none="none",
        name="raw",
        label="Image",
        tooltip="Image in which to measure the mean grey value of each object.",
    )
    live = CheckBox(name="live", text="Preview on the slice", tooltip="Show the objects of the slice on screen.")
    return [source, PixelSize(viewer, source), raw, threshold_row(source), *_settings(), live]


def _mask_among(layers: list[Layer]) -> Layer | None:
    """Return the topmost mask of *Segment*, else the topmost labels layer."""
    masks = [layer for layer in layers if isinstance(layer, Labels)]
    return next(iter(sorted(masks, key=is_result, reverse=True)), None)


def _settings() -> list[Any]:
    help_of = {spec.name: spec.metadata for spec in fields(ObjectsConfig)}
    rows = []
    for name, (low, high, step) in _SLIDERS.items():
        unit = f" ({help_of[name]['unit']})" if help_of[name]["unit"] else ""
        slider = FloatSlider(
            value=getattr(ObjectsConfig(), name),
            min=low,
            max=high,
            step=step,
            name=name,
            label=name.replace("_", " ").capitalize() + unit,
            tooltip=help_of[name]["help"],
        )
        slider.native.setToolTip(slider.tooltip)  # the number beside it needs it too
        rows.append(without_wheel(slider))
    mode = ComboBox(
        name="mode",
        label="Mode",
        choices=[(text, value) for value, text in _MODES.items()],
        tooltip=help_of["mode"]["help"],
    )
    make_narrow(mode.native)
    return [*rows, without_wheel(mode)]


def controls(panel: Any) -> list[Any]:
    """Return the buttons that find objects and stop, and the progress bar."""
    start = button(
        "Find objects", "Number and measure the objects of the volume, in the background.", panel.start, "start_button"
    )
    stop = button("Stop", "Stop finding, measuring or saving.", panel.stop, "stop_button")
    return [in_a_row(start, stop), panel.bar]


def footer(panel: Any) -> list[Any]:
    """Return table and plot with their filter, the tools and buttons that correct and save objects, and the status."""
    tool = ComboBox(name="tool", choices=list(TOOLS), tooltip="\n".join(f"{t}: {w}" for t, w in TOOLS.items()))
    smooth = button("Smooth", "Smooth the outline of the selected object.", panel.smooth, "smooth_button")
    fill = button("Fill", "Fill the selected object in slices where it is missing.", panel.fill, "fill_button")
    delete = button("Delete", "Delete the selected objects.", panel.delete, "delete_button")
    following = button(
        "Next", "Go to the most suspicious object that is not checked yet.", panel.next_suspicious, "next"
    )
    check = button("Checked", "Mark the selected objects as checked, and go to the next.", panel.check, "checks")
    export = button(
        "Export…",
        "Write the measurements of the objects shown as CSV or Parquet.",
        panel.ask_and_export,
        "export_button",
    )
    save = button(
        "Save", "Save objects, measurements and check marks as one OME-Zarr.", panel.ask_and_save, "save_button"
    )
    opened = button("Open…", "Open objects that were saved with Save.", panel.ask_and_open, "open_button")
    image = button(
        "Open image…", "Choose the file of the image that these objects are from.", panel.ask_for_image, "image_button"
    )
    return [
        in_a_row(_filter_row()),
        panel.views,
        in_a_row(tool, smooth, fill, delete),
        in_a_row(following, check),
        in_a_row(export, save, opened, image),
        panel.status,
    ]


def _filter_row() -> LineEdit:
    row = LineEdit(
        name="filter", tooltip="Show and export only the objects that meet these conditions on columns, joined by and."
    )
    row.native.setPlaceholderText("show only, e.g. volume_um3 > 0.1 and not touches_border")
    row.native.setClearButtonEnabled(True)
    for part in row.native.children():
        if hasattr(part, "setToolTip"):
            part.setToolTip(row.tooltip)
    return row
