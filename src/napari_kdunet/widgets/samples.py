"""Sample data for napari: a synthetic volume made on the spot, and the EPFL hippocampus as a checked download."""

from __future__ import annotations

import threading
import zipfile
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from napari_kdunet.core.errors import VolumeError
from napari_kdunet.sample import VOXEL_SIZE, synthetic_em

__all__ = ["lucchi_test", "lucchi_train", "synthetic"]

LayerData = tuple[Any, dict[str, Any], str]
Result = TypeVar("Result")

URL = "http://www.casser.io/files/lucchi_pp.zip"  # the server has no https: the hash makes the download safe
SHA256 = "770ce9e98fc6f29c1b1a250c637e6c5125f2b5f1260e5a7687b55a79e2e8844d"
_LUCCHI_NM = (5.0, 5.0, 5.0)
_CITE = "Lucchi et al. 2012 and 2013, labels by Casser et al. 2018 (arXiv:1812.06024)"


def synthetic() -> list[LayerData]:
    """Make the embedded synthetic volume: image and labels layers, 10 nm voxels."""
    raw, labels = _in_background(lambda _: synthetic_em(), "Making a synthetic volume")
    return _layers("synthetic EM", raw, labels, VOXEL_SIZE)


def lucchi_train() -> list[LayerData]:
    """Fetch the EPFL hippocampus volume for training, once: image and labels layers, 5 nm voxels."""
    return _lucchi("Train")


def lucchi_test() -> list[LayerData]:
    """Fetch the EPFL hippocampus volume for testing, once: image and labels layers, 5 nm voxels."""
    return _lucchi("Test")


def _lucchi(part: str) -> list[LayerData]:
    def read(progress: _Progress) -> list[NDArray[Any]]:
        with zipfile.ZipFile(_fetch(progress)) as archive:
            return [_read_slices(archive, f"{part}_{kind}") for kind in ("In", "Out")]

    raw, labels = _in_background(read, "Downloading Lucchi++")
    layers = _layers(f"EPFL hippocampus {part.lower()}", raw, (labels > 127).astype(np.uint8), _LUCCHI_NM)
    for _, options, _ in layers:
        options["metadata"] = {"source": URL, "cite": _CITE}
    return layers


def _fetch(progress: _Progress) -> Path:
    """Return the archive's path in the user's cache, downloading it if needed; raises `VolumeError` if that fails."""
    import pooch  # type: ignore[import-untyped]

    download = pooch.HTTPDownloader(progressbar=progress, chunk_size=2**16)
    try:
        return Path(pooch.retrieve(URL, SHA256, "lucchi_pp.zip", pooch.os_cache("napari-kdunet"), downloader=download))
    except ValueError as error:
        raise VolumeError(
            f"the file at {URL} is not the expected one (its SHA-256 differs), so it is not opened: try again, and if "
            "that does not help, tell the developers."
        ) from error
    except OSError as error:
        raise VolumeError(
            f"cannot download {URL} ({type(error).__name__}): check the internet connection and try again, "
            "or take the sample 'Synthetic EM (embedded)', which needs none."
        ) from error


def _read_slices(archive: zipfile.ZipFile, folder: str) -> NDArray[np.uint8]:
    """Stack the PNG slices of a folder, ZYX uint8; colour images by their first channel."""
    from PIL import Image

    names = [n for n in archive.namelist() if Path(n).parent.name == folder and n.endswith(".png")]
    names = [n for n in names if not Path(n).name.startswith(".")]
    names.sort(key=lambda n: int("".join(filter(str.isdigit, Path(n).stem)) or 0))

    def read(file: IO[bytes]) -> NDArray[np.uint8]:
        pixels = np.asarray(Image.open(file))
        return pixels if pixels.ndim == 2 else pixels[..., 0]

    slices = []
    for name in names:
        with archive.open(name) as file:
            slices.append(read(file))
    return np.stack(slices)


def _layers(name: str, raw: NDArray[Any], labels: NDArray[Any], nm: tuple[float, ...]) -> list[LayerData]:
    """Return image and labels as layer data for napari, with a scale in nm."""
    space: dict[str, Any] = {"scale": nm, "units": ("nm",) * 3, "axis_labels": ("z", "y", "x")}
    return [
        (raw, {"name": name, "colormap": "gray", **space}, "image"),
        (labels, {"name": f"{name} labels", "opacity": 0.5, **space}, "labels"),
    ]


class _Progress:
    """Progress bar for pooch, updated from its thread; `update` raises after the download was cancelled."""

    def __init__(self) -> None:
        self.total, self.done, self.cancelled = 0, 0, threading.Event()

    def update(self, count: int) -> None:
        """Add `count` bytes."""
        self.done += count
        if self.cancelled.is_set():
            raise VolumeError("the download was cancelled.")

    def reset(self) -> None:
        """Start over."""
        self.done = 0

    def close(self) -> None:
        """Nothing to close."""


def _in_background(make: Callable[[_Progress], Result], title: str) -> Result:
    """Call `make` on a thread, and wait for it with the window alive; where there is no window, just call it."""
    from napari.utils import progress
    from qtpy.QtCore import QEventLoop, QThread, QTimer
    from qtpy.QtWidgets import QApplication

    report, app = _Progress(), QApplication.instance()
    if app is None or QThread.currentThread() is not app.thread():
        return make(report)
    loop, timer, bar = QEventLoop(), QTimer(), progress(desc=title, total=0)

    def look(future: Future[Result]) -> None:
        if report.total:
            bar.total, bar.n = report.total, min(report.done, report.total)
        bar.refresh()
        if future.done():
            loop.quit()

    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(make, report)
        timer.timeout.connect(lambda: look(future))
        timer.start(100)
        try:
            loop.exec()
        finally:
            timer.stop()
            bar.close()
            report.cancelled.set()
        return future.result()
