"""Make the pictures of the documentation: napari with each widget at work.

    xvfb-run -s '-screen 0 1600x1200x24' python scripts/screenshots.py [--out docs/images] [--only live,compare]
    ... [--raw RAW --labels LABELS --voxel Z,Y,X --model M.safetensors]

Without a volume the pictures show the synthetic one that comes with the package. A model that is given is the teacher,
and *Live* starts from it.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import napari
import numpy as np
from PIL import Image
from qtpy.QtCore import QEventLoop, QSettings, QTimer
from scipy import ndimage

from napari_kdunet import core
from napari_kdunet.widgets.shared.layers import grid_of
from napari_kdunet.widgets.shared.models import models
from napari_kdunet.widgets.shared.session_folder import SessionFolder

SIZE, COLOURS = (1400, 1000), 256
BRUSH = 8  # pixels
LIVE_STEPS = 600  # budgets here are in steps, so that the pictures do not depend on how busy the machine is
NAMES = ("train", "distill", "segment", "compare", "live", "objects")


def wait(seconds: float) -> None:
    loop = QEventLoop()
    QTimer.singleShot(round(1000 * seconds), loop.quit)
    loop.exec()


def wait_until(condition: Callable[[], Any]) -> None:
    while not condition():
        wait(0.1)


def strokes(truth: np.ndarray, inside: int = 6, outside: int = 9) -> Iterator[tuple[int, np.ndarray]]:
    """Yield label and points (N, 2) of lines, each inside one class according to the truth of a slice."""
    rng = np.random.default_rng(0)
    for label, where, count in ((2, truth, inside), (1, ~truth, outside)):
        free = ndimage.distance_transform_edt(where) > BRUSH
        for start in rng.permutation(np.argwhere(free))[:count]:
            angle = rng.uniform(0, 2 * np.pi)
            points = np.round(start + np.arange(50)[:, None] * (np.sin(angle), np.cos(angle))).astype(int)
            points = points[((points >= 0) & (points < free.shape)).all(axis=1)]
            stays = free[tuple(points.T)]
            yield label, points[: len(points) if stays.all() else int(np.argmin(stays))]


class Studio:
    """Takes each picture in a new viewer with the volume; models are kept from one to the next."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.arguments = arguments
        self.student = ""
        arguments.out.mkdir(parents=True, exist_ok=True)

    def viewer(self, name: str, *, labelled: int = 1, **settings: Any) -> tuple[Any, Any]:
        """Open a viewer and a widget, with every `labelled`-th slice labelled, at the slice with most mitochondria."""
        viewer = napari.Viewer(show=True)
        viewer.window._qt_window.resize(*SIZE)
        arguments = self.arguments
        if arguments.raw:
            raw, labels = (np.asarray(core.open_volume(path)) for path in (arguments.raw, arguments.labels))
            space = {"scale": arguments.voxel, "units": ("nm",) * 3, "axis_labels": ("z", "y", "x")}
            viewer.add_image(raw, name=Path(arguments.raw).stem.removesuffix("-raw"), **space)
            viewer.add_labels(labels, name="mitochondria", opacity=0.5, **space)
        else:
            viewer.open_sample("napari-kdunet", "synthetic")
        image, layer = viewer.layers
        z = int((layer.data > 0).sum(axis=(1, 2)).argmax())
        layer.data = layer.data * (np.arange(len(layer.data)) % labelled == z % labelled)[:, None, None]
        _, widget = viewer.window.add_plugin_dock_widget("napari-kdunet", name)
        for setting, value in settings.items():
            getattr(widget, setting).value = value
        viewer.dims.set_current_step(0, z)
        viewer.layers.selection.active = image
        wait(1)
        viewer.reset_view()
        return viewer, widget

    def shoot(self, viewer: Any, name: str) -> None:
        """Write the window as it is, in few colours."""
        wait(1)
        pixels = viewer.window.screenshot(flash=False, canvas_only=False)
        path = self.arguments.out / f"{name}.png"
        image = Image.fromarray(pixels).convert("RGB")
        method = Image.Quantize.MAXCOVERAGE  # the others drop rare colours, which the pictures are about
        image.quantize(COLOURS, method, dither=Image.Dither.NONE).save(path, optimize=True)
        print(path, pixels.shape[1::-1], f"{path.stat().st_size / 1e3:.0f} kB", flush=True)

    def leave_labels(self, viewer: Any) -> None:
        """Go to a slice without labels, where the preview has something to say."""
        viewer.layers[-1].visible = False
        viewer.dims.set_current_step(0, viewer.dims.current_step[0] + 2)
        wait(2)

    def train(self) -> None:
        viewer, widget = self.viewer("Train teacher", labelled=6, k=8, steps=400, patch=128, batch=4)
        widget.view.start_button.click()
        wait_until(lambda: len(widget.view.curves.runs["training"].ious) == 7)
        self.leave_labels(viewer)
        self.shoot(viewer, "train")
        wait_until(lambda: widget.worker is None)
        viewer.close()

    def distill(self) -> None:
        viewer, widget = self.viewer("Distil student", labelled=6, steps=600, patch=128, batch=4)
        widget.view.start_button.click()
        wait_until(lambda: widget.worker is None)
        widget.control_button.click()
        wait_until(lambda: len(widget.view.curves.runs["control"].ious) == 8)
        self.student = next(name for name in models.session_names() if "distilled" in name)
        self.leave_labels(viewer)
        self.shoot(viewer, "distill")
        wait_until(lambda: widget.worker is None)
        viewer.close()

    def segment(self) -> None:
        viewer, widget = self.viewer("Segment")
        viewer.layers.pop(1)
        self.choose(widget)
        widget.start()
        wait_until(lambda: widget.bar.value() > 0)
        self.shoot(viewer, "segment")
        viewer.close()

    def choose(self, widget: Any) -> None:
        """Let *Segment* use the student."""
        widget.model.value = self.student or models.session_names()[0]
        wait_until(lambda: widget.loaded is models.get(widget.model.value))

    def compare(self) -> None:
        viewer, segment = self.viewer("Segment")
        self.choose(segment)
        segment.start()
        wait_until(lambda: not segment.segmentation.is_running)
        viewer.window.remove_dock_widget(segment.native)
        _, widget = viewer.window.add_plugin_dock_widget("napari-kdunet", "Compare with ground truth")
        widget.start()
        wait(0.5)
        wait_until(lambda: not widget.live_comparison.is_running)
        widget.go_to_worst()
        for layer in viewer.layers:
            layer.visible = layer.name == "comparison" or isinstance(layer, napari.layers.Image)
        self.shoot(viewer, "compare")
        viewer.close()

    def live(self) -> None:
        viewer, widget = self.viewer("Train teacher")
        truth = viewer.layers.pop(1).data
        z = viewer.dims.current_step[0]
        widget.origin.value = self.student or models.session_names()[0]
        widget.add_strokes()
        widget.live.value = True
        layer = widget.labels_layer.value
        widget.view.start_button.click()
        for label, points in strokes(truth[z] > 0):
            for point in points:
                layer.paint((z, *point), label)
            wait(0.5)
        wait_until(lambda: widget.view.curves.runs["live"].steps[-1:] >= [LIVE_STEPS])
        self.shoot(viewer, "live")
        widget.view.stop_button.click()
        wait_until(lambda: widget.worker is None)
        viewer.close()

    def objects(self) -> None:
        """Four pictures: the preview, the plot, proofreading, and the errors of a prediction made worse."""
        viewer, widget = self.viewer("Objects")
        image, labels = viewer.layers
        labels.visible = False
        widget.live.value = True
        wait_until(lambda: widget.preview.layer is not None and not widget.preview.is_busy)
        self.shoot(viewer, "objects-find")
        widget.raw.value = image
        widget.start()
        wait_until(lambda: widget.worker is None and widget.table is not None)
        viewer.layers.selection.active = widget.layer
        widget.views.setCurrentWidget(widget.plot)
        widget.plot.show_columns("volume_um3", "skeleton_length_nm")
        length = widget.table.set_index("id")["skeleton_length_nm"]
        widget.select_all(length[length > length.quantile(0.7)].index.tolist())
        self.shoot(viewer, "objects-plot")
        widget.views.setCurrentWidget(widget.rows)
        widget.filter.value = "volume_um3 > 0.002"
        widget.next_suspicious()
        for _ in range(3):
            widget.check()
        widget.tool.value = "split"
        self.shoot(viewer, "objects-proofread")
        self.errors(viewer, widget)
        viewer.close()

    def errors(self, viewer: Any, widget: Any) -> None:
        """Merge the two largest objects and delete the third, and compare with what there was."""
        truth = viewer.add_labels(widget.layer.data.copy(), name="truth", visible=False, **grid_of(widget.layer))
        one, other, lost = widget.table.sort_values("voxels", ascending=False)["id"].tolist()[:3]
        data = widget.layer.data
        data[data == one], data[data == lost] = other, 0
        widget.layer.refresh()
        viewer.window.remove_dock_widget(widget.native)
        _, compare = viewer.window.add_plugin_dock_widget("napari-kdunet", "Compare with ground truth")
        compare.prediction.value, compare.reference.value = widget.layer, truth
        compare.pages.setCurrentIndex(1)
        compare.compare_objects()
        wait_until(lambda: compare.object_worker is None)
        compare.objects.table.selectRow(0)
        self.shoot(viewer, "objects-errors")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("docs/images"))
    parser.add_argument("--raw", help="volume to show")
    parser.add_argument("--labels", help="its labels")
    parser.add_argument(
        "--voxel", type=lambda text: tuple(map(float, text.split(","))), help="its voxel size, nm, Z,Y,X"
    )
    parser.add_argument(
        "--model", help="that teaches, segments and goes live; trained by the first picture if not given"
    )
    parser.add_argument("--only", default=",".join(NAMES), help="which pictures, with commas between")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:  # the user's own settings are neither shown nor changed
        QSettings.setPath(QSettings.Format.IniFormat, QSettings.Scope.UserScope, folder)
        models.session = SessionFolder(Path(folder) / "sessions")
        if arguments.model:
            models.add(Path(arguments.model).stem, core.load_model(arguments.model))
        studio = Studio(arguments)
        for name in arguments.only.split(","):
            getattr(studio, name)()


if __name__ == "__main__":
    main()
