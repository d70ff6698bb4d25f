"""What each widget test starts from: no settings, no models of this session, no notifications."""

import gc
import subprocess
import sys
from contextlib import contextmanager

import dask.array as da
import numpy as np
import pytest

pytest.importorskip("napari")

import torch
from napari.utils.notifications import Notification, notification_manager
from npe2 import PluginManifest
from qtpy.QtCore import QSettings
from superqt.utils._qthreading import WorkerBase

from napari_kdunet import core
from napari_kdunet.sample import synthetic_em
from napari_kdunet.widgets.shared.models import models
from napari_kdunet.widgets.shared.session_folder import SessionFolder
from napari_kdunet.widgets.workers import process as process_worker


@pytest.fixture(scope="session")
def frozen_modules():
    """Names of the modules that are not looked through for garbage again and again."""
    return set()


@pytest.fixture(autouse=True)
def widgets_are_collected_here(frozen_modules):
    """Collected by chance on a worker thread of the next test, a widget would be destroyed there: a crash of Qt."""
    gc.collect()  # at the beginning: until now pytest itself has held some
    if not frozen_modules.issuperset(sys.modules):
        gc.freeze()
        frozen_modules.update(sys.modules)


@pytest.fixture(scope="module", autouse=True)
def widgets_of_the_last_test_are_collected_too():
    yield
    gc.collect()


@pytest.fixture(scope="session", autouse=True)
def manifests_are_read_once():
    """Every new viewer looks for plugins, and reads the manifests of all of them for a third of a second."""
    found = list(PluginManifest.discover())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PluginManifest, "discover", lambda *_, **__: iter(found))
        yield


@pytest.fixture(autouse=True)
def own_settings(tmp_path):
    QSettings.setPath(QSettings.Format.IniFormat, QSettings.Scope.UserScope, str(tmp_path / "settings"))


@pytest.fixture(autouse=True)
def no_models(tmp_path, monkeypatch):
    """Those of earlier sessions of whoever runs the tests neither."""
    monkeypatch.setattr("platformdirs.user_data_dir", lambda *_, **__: str(tmp_path / "data"))
    monkeypatch.setattr(models, "session", SessionFolder(tmp_path / "sessions"))
    models.clear()
    yield
    models.clear()


@pytest.fixture(autouse=True)
def bundle(monkeypatch):
    """Makes files the bundled models; until it is called there are none, whatever the package comes with."""

    def make(*paths):
        found = {path.stem: path for path in paths}
        monkeypatch.setattr(core, "bundled_models", lambda: found)
        for user in ("networks.model", "training.adapt"):
            monkeypatch.setattr(f"napari_kdunet.core.{user}.bundled_models", lambda: found)

    make()
    return make


@pytest.fixture(autouse=True)
def in_this_process(monkeypatch):
    """Trainings start at once, and the tests can put faults in their way; those of `own_process` do as for users."""
    monkeypatch.setattr(process_worker, "OWN_PROCESS", False)


@contextmanager
def processes_of_their_own(folder):
    """Trainings run in processes of their own; gives these. Each has to end with exit code 0 and no word."""
    processes = []

    class Recorded(subprocess.Popen):
        def __init__(self, *args, **options):
            self.log = folder / f"stderr-{len(processes)}"
            with self.log.open("wb") as log:
                super().__init__(*args, stderr=log, **options)
            processes.append(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(process_worker, "Popen", Recorded)
        patch.setattr(process_worker, "OWN_PROCESS", True)
        yield processes
        process_worker.release()
        for process in processes:
            assert (process.wait(60), process.log.read_text()) == (0, "")


@pytest.fixture
def own_process(in_this_process, tmp_path):
    with processes_of_their_own(tmp_path) as processes:
        yield processes


@pytest.fixture(scope="session")
def own_processes():
    """The same for a fixture that several tests share: a context."""
    return processes_of_their_own


@pytest.fixture(autouse=True)
def no_threads_left(qtbot):
    yield
    qtbot.waitUntil(lambda: not WorkerBase._worker_set, timeout=60_000)


@pytest.fixture
def notified():
    """Messages of the notifications of this test, as the user reads them."""
    messages: list[str] = []

    def keep(notification: Notification) -> None:
        messages.append(notification.message)

    notification_manager.notification_ready.connect(keep)
    yield messages
    notification_manager.notification_ready.disconnect(keep)


@pytest.fixture(scope="session")
def em():
    """Raw and labels of a tiny synthetic volume, ZYX, not cubic; do not write to them."""
    raw, labels = synthetic_em((5, 64, 80), voxel_size=(20.0, 20.0, 20.0), seed=3)
    raw.setflags(write=False)
    labels.setflags(write=False)
    return raw, labels


@pytest.fixture(scope="session")
def tiny_model(em):
    """A small network with random weights of a fixed seed, whose threshold calls half of the voxels foreground."""
    torch.manual_seed(0)
    model = core.Model(core.KUNet(k=2, bn=False, depth=2), pixel_size=0)
    middle = float(np.median(core.predict(model, em[0]).compute()))
    return core.Model(model.net, pixel_size=0, threshold=round(middle, 3))


@pytest.fixture
def open_widget(make_napari_viewer, qtbot):
    """Open a dock widget of the plugin by its name in the manifest, in a new viewer; gives both."""

    def open_it(name: str, **options):
        viewer = make_napari_viewer(**options)
        _, widget = viewer.window.add_plugin_dock_widget("napari-kdunet", name)
        return viewer, widget

    return open_it


@pytest.fixture
def damaged_at():
    """The first slice of a lazy copy of an array cannot be read, as where its chunk is damaged; or slice `z`."""

    def damaged(array, z=0):
        def read(block, block_info=None):
            if block_info[None]["chunk-location"][0] == z:
                raise OSError("the chunk is damaged")
            return block

        return da.from_array(array, chunks=(1, -1, -1)).map_blocks(read, dtype=array.dtype, meta=array[:0])

    return damaged


@pytest.fixture(scope="session")
def tiny_em():
    """Raw and labels (8, 96, 96) uint8, 10 nm, mitochondria in each slice."""
    from napari_kdunet.sample import synthetic_em

    return synthetic_em((8, 96, 96))


TINY = {"k": 1, "patch": 32, "batch": 2, "steps": 12, "validations": 3, "device": "cpu"}
ENDLESS = {"steps": None, "minutes": 60.0, "validations": 10_000}
WORLD = {"scale": (10.0, 10.0, 10.0), "translate": (100.0, 200.0, 300.0), "units": ("nm",) * 3}


class Bench:
    """A viewer with an image and its labels, and a hand for the buttons of the widgets that train."""

    def __init__(self, qtbot, viewer, raw, labels):
        self.qtbot, self.viewer = qtbot, viewer
        self.em = viewer.add_image(raw, name="em", **WORLD)
        self.mito = viewer.add_labels(labels, name="mito", **WORLD)

    def open(self, name, **settings):
        _, widget = self.viewer.window.add_plugin_dock_widget("napari-kdunet", name)
        for setting, value in {**TINY, **settings}.items():
            getattr(widget, setting).value = value
        return widget

    def wait(self, condition):
        self.qtbot.waitUntil(condition, timeout=120_000)

    def wait_for(self, widget, run, *, steps=1, validations=1):
        def come():
            seen = widget.view.curves.runs.get(run)
            return seen is not None and len(seen.steps) >= steps and len(seen.ious) >= validations

        self.wait(come)

    def finish(self, widget):
        """Wait until the run and the work of the preview have ended."""
        self.wait(lambda: widget.worker is None)
        self.wait(lambda: widget.preview is None or not widget.preview.is_busy)

    def stop(self, widget):
        widget.view.stop_button.click()
        self.finish(widget)

    def assert_ready(self, widget):
        """The buttons are as before a start."""
        assert widget.worker is None
        assert widget.view.start_button.isEnabled()
        assert not widget.view.pause_button.isEnabled()
        assert not widget.view.stop_button.isEnabled()

    def assert_shown_and_gone(self, widget):
        """The preview has shown a segmentation of the slice on screen, on the grid of the image, and is gone."""
        preview, em = widget.preview, self.em
        assert preview.layer not in self.viewer.layers
        np.testing.assert_allclose(preview.layer.scale, em.scale)
        np.testing.assert_allclose(preview.layer.translate, (100 + 10 * preview.z, 200, 300))
        assert preview.layer.units == em.units
        assert preview.probability.std() > 0
        shown, probability = preview.layer.data[0] > 0, preview.probability
        if shown.any() and not shown.all():  # by the threshold of the model of that moment
            assert probability[shown].min() > probability[~shown].max()


@pytest.fixture
def bench(qtbot, make_napari_viewer, tiny_em):
    return Bench(qtbot, make_napari_viewer(), *tiny_em)


@pytest.fixture
def raise_in(monkeypatch):
    """Let an iterator of the core raise after some events, once."""

    def arrange(name, error, after):
        real = getattr(core, name)

        def events(*args, **kwargs):
            monkeypatch.setattr(core, name, real)
            for count, event in enumerate(real(*args, **kwargs)):
                if count == after:
                    raise error
                yield event

        monkeypatch.setattr(core, name, events)

    return arrange
