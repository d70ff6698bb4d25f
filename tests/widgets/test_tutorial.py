"""What the pages about napari name is in the panels under that very name."""

import re
from pathlib import Path

import pytest
from napari.components import ViewerModel
from npe2 import PluginManifest
from qtpy.QtWidgets import QAbstractButton, QComboBox, QLabel, QTabBar

from napari_kdunet.widgets.compare import CompareWidget
from napari_kdunet.widgets.distill import DistillWidget
from napari_kdunet.widgets.objects import ObjectsWidget
from napari_kdunet.widgets.segment import SegmentWidget
from napari_kdunet.widgets.train import TrainWidget

ROOT = Path(__file__).parents[2]
PAGES = ("tutorial.md", "objects.md")
NAMED = re.compile(r"(?<![*\w])\*(\w[^*`|]*?)\*(?![*\w])")
#: Controls that are called by the first of their words, names of data, and what has no words of its own on the screen.
OTHER = {"Live", "groundtruth-drosophila-vnc", "tool"}


@pytest.fixture(scope="module")
def menus():
    """The paths of the menus that the manifest gives."""
    manifest = PluginManifest.from_distribution("napari-kdunet")
    name, given = manifest.display_name, manifest.contributions
    widgets = [widget.display_name for widget in given.widgets or []]
    samples = [f"File → Open Sample → {name} → {sample.display_name}" for sample in given.sample_data or []]
    plugins = f"Plugins → {name}"
    return {*widgets, *samples, plugins, *(f"{plugins} → {widget}" for widget in widgets)}


def words_in(panel):
    """Texts of buttons, labels and tabs, and what combo boxes offer."""
    native = panel.native
    words = [each.text() for kind in (QAbstractButton, QLabel) for each in native.findChildren(kind)]
    for kind, text in ((QTabBar, "tabText"), (QComboBox, "itemText")):
        words += [getattr(each, text)(i) for each in native.findChildren(kind) for i in range(each.count())]
    return {word.replace("&", "") for word in words}


@pytest.fixture
def words(qtbot):
    """All words of all panels."""
    panels = [kind(ViewerModel()) for kind in (TrainWidget, DistillWidget, SegmentWidget, CompareWidget, ObjectsWidget)]
    for panel in panels:
        qtbot.addWidget(panel.native)
    return set().union(*map(words_in, panels))


@pytest.mark.skipif(not (ROOT / "docs").exists(), reason="no docs beside these tests")
def test_what_the_pages_name_is_there_under_that_name(words, menus):
    missing = []
    for page in PAGES:
        text = re.sub(r"```.*?```", "", (ROOT / "docs" / page).read_text(encoding="utf-8"), flags=re.DOTALL)
        named = {" ".join(name.split()) for name in NAMED.findall(text)}
        assert len(named) > 20
        missing += [(page, name) for name in sorted(named - words - menus - OTHER)]
    assert missing == []
