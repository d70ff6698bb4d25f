"""Which module imports which: downwards only, without a circle, and each library in its own room."""

from __future__ import annotations

import ast
import tomllib
from collections.abc import Iterable, Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from symtable import symtable
from typing import NamedTuple

import pytest

import napari_kdunet

ROOT = Path(napari_kdunet.__file__).parent

# The order of the house: a wing imports from the floors below its own, and from no neighbour on its floor. A file that
# stands alone (core/metrics.py, widgets/train.py) is a wing of one. New wings are entered here; neighbours of which one
# needs the other get a floor each.
FLOORS = (
    ("__main__",),
    (
        "cli",
        "widgets.train",
        "widgets.distill",
        "widgets.segment",
        "widgets.compare",
        "widgets.objects",
        "widgets.samples",
        "widgets.readers",
        "widgets.writers",
    ),
    ("widgets.training", "widgets.comparison", "widgets.proofreading"),
    ("widgets.segmentation",),
    ("widgets.shared",),
    ("widgets.workers",),
    ("widgets.notify",),
    ("core", "sample"),  # the public face of the core: for the rooms above, not for the core's own wings
    ("core.experiments",),
    ("core.training",),
    ("core.export",),
    ("core.data",),
    ("core.prediction", "core.objects"),
    ("core.networks", "core.metrics", "core.writing"),
    ("core.volumes", "core.config", "core.devices"),
    ("core.reading",),
    ("core.files",),
    ("core.kernels", "core.parsing", "core.formatting", "core.graphs"),
    ("core.errors",),
    ("napari_kdunet",),  # the version
)
GUI = {"napari", "qtpy", "magicgui", "superqt", "pyqtgraph", "vispy", "PyQt5", "PyQt6", "PySide2", "PySide6"}
TORCH = {"torch", "lightning", "lightning_fabric"}


class Import(NamedTuple):
    by: str  # the module that imports, without "napari_kdunet."
    of: str  # what it imports: one of our modules, likewise, or a library's module in full
    line: int

    def __str__(self) -> str:
        return f"{self.by} imports {self.of} (line {self.line})"


def read_imports(root: Path) -> tuple[set[str], list[Import]]:
    """The modules of the package, and all that they import: at the top, in functions and for the type checker.

    What stands in a stub (``core/__init__.pyi``, from which the public names are imported when they are used) counts
    as imported by its module.
    """
    files = [(path, module_name(path.relative_to(root))) for path in sorted(root.rglob("*.py*")) if path.is_file()]
    files = [(path, name) for path, name in files if path.suffix in (".py", ".pyi")]
    modules = {name for _, name in files}
    found = []
    for path, by in files:
        package = path.relative_to(root.parent).parent.parts
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"), path)):
            for name in imported_names(node, package):
                found.append(Import(by, own_module(name, modules) or name, node.lineno))
    return modules, found


def module_name(path: Path) -> str:
    parts = path.with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts) or "napari_kdunet"


def imported_names(node: ast.AST, package: tuple[str, ...]) -> Iterator[str]:
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        start = package[: len(package) + 1 - node.level] if node.level else ()
        yield from (".".join([*start, *filter(None, [node.module]), alias.name]) for alias in node.names)


def own_module(name: str, modules: set[str]) -> str | None:
    """The module of the package that a name comes from: itself, or where a class or function of that name stands."""
    first, *inside = name.split(".")
    if first != "napari_kdunet":
        return None
    while inside and ".".join(inside) not in modules:
        inside.pop()
    return ".".join(inside) or "napari_kdunet"


def wing(module: str) -> str:
    parts = module.split(".")
    return ".".join(parts[:2]) if parts[0] in ("core", "widgets") else parts[0]


def upward(found: Iterable[Import]) -> list[str]:
    """The imports that do not lead to a lower floor."""
    floor = {name: number for number, names in enumerate(FLOORS) for name in names}
    pairs = [(entry, wing(entry.by), wing(entry.of)) for entry in found]
    unknown = {name for _, *ends in pairs for name in ends} - floor.keys()
    assert not unknown, f"give {sorted(unknown)} a floor in FLOORS"
    return [str(entry) for entry, by, of in pairs if by != of and floor[by] >= floor[of]]


def circle(found: Iterable[Import]) -> str:
    """A circle of modules that import each other, or "" where there is none."""
    graph = TopologicalSorter()
    for entry in found:
        graph.add(entry.by, entry.of)
    try:
        graph.prepare()
    except CycleError as error:
        return " -> ".join(error.args[1][::-1])
    return ""


MODULES, FOUND = read_imports(ROOT)
OWN = [entry for entry in FOUND if entry.of in MODULES]
LIBRARIES = [entry._replace(of=entry.of.split(".")[0]) for entry in FOUND if entry.of not in MODULES]


def test_imports_lead_downwards():
    assert upward(OWN) == []


def test_no_circle_between_modules():
    assert circle(OWN) == ""


def test_no_circle_between_wings():
    between = [Import(wing(by), wing(of), line) for by, of, line in OWN if wing(by) != wing(of)]
    assert circle(between) == ""


def test_gui_libraries_stay_in_the_widgets():
    assert [str(entry) for entry in LIBRARIES if entry.of in GUI and not entry.by.startswith("widgets.")] == []


def test_torch_stays_in_the_core():
    assert [str(entry) for entry in LIBRARIES if entry.of in TORCH and not entry.by.startswith("core.")] == []


def test_wings_have_no_face():
    """One name, one place: what a wing holds is imported from its files."""
    wings = [path for room in ("core", "widgets") for path in (ROOT / room).glob("*/__init__.py")]
    assert wings
    for path in [*wings, ROOT / "widgets/__init__.py"]:
        (docstring,) = ast.parse(path.read_text(encoding="utf-8")).body
        assert isinstance(docstring, ast.Expr), f"{path} holds more than a docstring"


def test_the_face_of_the_package():
    assert {path.stem for path in ROOT.glob("*.py")} == {"__init__", "__main__"}


@pytest.mark.parametrize("folder", ["benchmarks", "scripts"])
def test_scripts_import_what_there_is(folder):
    """No test runs them: a name that has been moved would be missed when somebody needs the figures again."""
    scripts = sorted((Path(__file__).parents[1] / folder).glob("*.py"))
    if not scripts:
        pytest.skip(f"no {folder} beside these tests")
    for path in scripts:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"), path)):
            for name in imported_names(node, ()):
                module = own_module(name, MODULES)
                if module is not None:
                    inside = name.removeprefix("napari_kdunet").removeprefix(f".{module}").lstrip(".")
                    assert not inside or inside in names_of(module), f"{path.name} line {node.lineno}: no {name}"


def names_of(module: str) -> set[str]:
    """What stands at the top level of a module and its stub."""
    path = ROOT if module == "napari_kdunet" else ROOT / module.replace(".", "/")
    files = [file for file in (path.with_suffix(".py"), path / "__init__.py", path / "__init__.pyi") if file.exists()]
    tables = [symtable(file.read_text(encoding="utf-8"), str(file), "exec") for file in files]
    return {
        name.get_name() for table in tables for name in table.get_symbols() if name.is_assigned() or name.is_imported()
    }


# And these tests see what they are there to see.


@pytest.fixture
def bad(tmp_path) -> list[Import]:
    """A package with the two errors that are easily made: an import put off into a function, and one for types."""
    root = tmp_path / "napari_kdunet"
    files = {
        "__init__.py": "",
        "core/__init__.py": "",
        "core/__init__.pyi": "from .data.patches import cut",
        "core/errors.py": "if TYPE_CHECKING:\n    from napari_kdunet.core.data.patches import Patch",
        "core/data/__init__.py": "",
        "core/data/patches.py": "import napari_kdunet.core.errors\nfrom napari_kdunet.core.data import splits",
        "core/data/splits.py": "def split():\n    from napari_kdunet.core.data.patches import cut\n    import torch.nn",
    }
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    _, found = read_imports(root)
    return found


def test_imports_in_functions_and_for_types_are_seen(bad):
    assert [(entry.by, entry.of) for entry in bad] == [
        ("core", "core.data.patches"),
        ("core.data.patches", "core.errors"),
        ("core.data.patches", "core.data.splits"),
        ("core.data.splits", "core.data.patches"),
        ("core.data.splits", "torch.nn"),
        ("core.errors", "core.data.patches"),
    ]
    assert upward(bad[:-2] + bad[-1:]) == ["core.errors imports core.data.patches (line 2)"]


def test_circles_are_seen(bad):
    assert circle(bad[:3]) == ""
    for first, second in ((bad[2], bad[3]), (bad[1], bad[5])):  # in a function; for the type checker
        assert (first.by, first.of) == (second.of, second.by)
        assert circle([first, second]).split(" -> ")[1:] in ([first.of, first.by], [first.by, first.of])


def test_a_new_wing_needs_a_floor():
    with pytest.raises(AssertionError, match=r"give \['core.rumours'\] a floor"):
        upward([Import("core.rumours.heard", "core.errors", 1)])


def test_the_requirements_without_torch():
    """They are the base install without torch, and the extra onnx."""
    root = Path(__file__).parents[1]
    if not (root / "requirements-onnx.txt").exists():
        pytest.skip("no requirements beside these tests")
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = [each for each in project["dependencies"] if not each.startswith(("torch", "lightning-fabric"))]
    wanted += project["optional-dependencies"]["onnx"]
    lines = (root / "requirements-onnx.txt").read_text(encoding="utf-8").splitlines()
    assert [line for line in lines if not line.startswith("#")] == sorted(wanted)
