"""What the documentation names is there."""

import importlib.util
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
PAGES = [page for page in PAGES if page.exists()]
FILE = re.compile(r"(?<![\w/.-])(?:[\w-]+/)+[\w-]+\.(?:py|pyi|sh|md)\b")
FOLDER = re.compile(r"`((?:core|cli|widgets|tests|benchmarks|scripts|docs)(?:/[\w-]+)*/)`(?! \(to come\))")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_that_a_page_names_are_there(page):
    text = page.read_text(encoding="utf-8")
    named = {*FILE.findall(text), *FOLDER.findall(text)}
    starts = [ROOT, ROOT / "src/napari_kdunet", page.parent]
    assert sorted(name for name in named if not any((start / name).exists() for start in starts)) == []


def test_the_page_that_segments_is_up_to_date(tmp_path):
    """But for its example, which another version of Pillow compresses in another way."""
    script = ROOT / "scripts/segment_page.py"
    if not script.exists():
        pytest.skip("no scripts beside these tests")
    spec = importlib.util.spec_from_file_location("segment_page", script)
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    made.write(tmp_path / "page.html")
    fresh, kept = (
        re.sub(r'"data": "[^"]*"', "", page.read_text(encoding="utf-8")) for page in (tmp_path / "page.html", made.PAGE)
    )
    assert fresh == kept, "run scripts/segment_page.py"
