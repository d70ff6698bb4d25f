"""What napari finds of the plugin, and that finding it costs nothing."""

import subprocess
import sys
from pathlib import Path

import npe2
import pytest
from qtpy.QtWidgets import QAbstractButton, QAbstractSpinBox, QComboBox
from superqt import QCollapsible

import napari_kdunet

PACKAGE = Path(napari_kdunet.__file__).parent
WIDGETS = ("Train teacher", "Distil student", "Segment", "Compare with ground truth", "Objects")


START = """
import sys, time
import napari
from qtpy.QtWidgets import QApplication
viewer = napari.Viewer(show=False)
from napari.plugins import _npe2
assert "napari-kdunet" in dict(plugin for _, plugin in _npe2.widget_iterator())
heavy = {"torch", "kornia", "lightning_fabric", "pyqtgraph", "napari_kdunet.widgets"} & set(sys.modules)
print("imported:", sorted(heavy))

viewer.window.add_plugin_dock_widget("napari-kdunet", "Train teacher")
end = time.monotonic() + 60
while "napari_kdunet.core.prediction.predict" not in sys.modules and time.monotonic() < end:
    QApplication.processEvents()
print("with the widget:", "napari_kdunet.core.prediction.predict" in sys.modules)
viewer.close()
"""


@pytest.fixture(scope="module")
def manifest():
    return npe2.PluginManifest.from_file(PACKAGE / "napari.yaml")


def test_manifest_names_what_exists(manifest):
    manifest.validate_imports()
    assert manifest.name == "napari-kdunet"
    assert tuple(widget.display_name for widget in manifest.contributions.widgets) == WIDGETS
    assert [sample.display_name for sample in manifest.contributions.sample_data[:2]] == [
        "Synthetic EM (embedded)",
        "EPFL hippocampus (Lucchi++, download)",
    ]
    assert (PACKAGE / manifest.icon.split(":")[1]).read_text().startswith("<svg")
    assert len(manifest.contributions.menus["napari/layers/segment"]) == 3


@pytest.mark.parametrize("name", WIDGETS)
def test_each_widget_opens(make_napari_viewer, notified, name):
    viewer = make_napari_viewer()
    dock, widget = viewer.window.add_plugin_dock_widget("napari-kdunet", name)
    assert dock.widget() is not None
    assert not notified
    widget = getattr(widget, "native", widget)
    controls = [c for kind in (QAbstractButton, QComboBox, QAbstractSpinBox) for c in widget.findChildren(kind)]
    assert controls
    assert not [control for control in controls if not tooltip(control, widget)], "a control without a tooltip"


def tooltip(control, widget):
    """What Qt shows over a control: its own tooltip, or that of what it is part of."""
    while control is not widget and not control.toolTip():
        if isinstance(control, QCollapsible):
            return "says what it is"
        control = control.parentWidget()
    return control.toolTip()


def test_segment_menu_opens_the_widget(make_napari_viewer):
    from napari._app_model import get_app_model

    viewer = make_napari_viewer()
    commands = {
        item.command.id for item in get_app_model().menus.get_menu("napari/layers/segment") if hasattr(item, "command")
    }
    assert {"napari-kdunet.train", "napari-kdunet.distill", "napari-kdunet.segment"} <= commands
    get_app_model().commands.execute_command("napari-kdunet.segment").result()
    assert any("Segment" in name for name in viewer.window.dock_widgets)


def test_torch_is_loaded_with_a_training_widget_and_no_sooner(tmp_path):
    ran = subprocess.run(
        [sys.executable, "-c", START], capture_output=True, text=True, timeout=120, cwd=tmp_path, check=False
    )
    assert ran.returncode == 0, ran.stderr
    assert "imported: []" in ran.stdout, ran.stdout
    assert "with the widget: True" in ran.stdout, ran.stdout
