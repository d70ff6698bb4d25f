"""Every place that reads a file of somebody's, or runs something, is on the page that says why it runs no code."""

from __future__ import annotations

import ast
import json
import pickle
import re
import subprocess
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import napari_kdunet
from napari_kdunet import core

ROOT = Path(napari_kdunet.__file__).parent
PAGE = Path(__file__).parents[1] / "docs/security.md"

#: What reads a format, starts a program or runs code, by its full name.
LOADERS = re.compile(
    r"""(pickle|_pickle|marshal|shelve|dill|cloudpickle|joblib|runpy|ctypes|yaml|xml|subprocess|multiprocessing)\..+
    | torch\.(load|jit\.load|jit\._.*|hub\..*|package\..*|ops\.load_library|classes\.load_library|serialization\..*)
    | numpy\.(load|fromfile|memmap|lib\.format\..*|loadtxt|genfromtxt)
    | importlib\.(import_module|machinery\..*|util\.(spec_from_file_location|module_from_spec))
    | (builtins\.)?(eval|exec|compile|__import__|execfile)
    | os\.(system|popen|exec.*|spawn.*|posix_spawn.*|startfile)
    | json\.(load|loads|JSONDecoder)
    | safetensors\.(.*\.)?(load|load_file|safe_open|deserialize)
    | zarr\.(open.*|load|core\..*|consolidate_metadata) | numcodecs\..*
    | tifffile\.(TiffFile|TiffReader|imread|memmap) | imagecodecs\..* | imageio\..* | skimage\.io\..*
    | PIL\.(Image\.open|.*ImagePlugin\..*File) | h5py\.File | mrcfile\.(open|mmap|read|.*File)
    | tensorstore\.open | nibabel\.load | nrrd\.read.*
    | onnx\.load.* | onnxruntime\.(InferenceSession|.*register_custom_ops_library)
    | pandas\.read_.* | (qtpy|PyQt\d|PySide\d)\.QtCore\.QSettings | pooch\..*""",
    re.VERBOSE,
)
ROW = re.compile(r"^\| `([\w/]+\.py)` \| (`[\w.]+`(?:, `[\w.]+`)*) \| \S.*\|$", re.MULTILINE)


def loaders(source: str) -> set[str]:
    """The full names of the loaders that a module names: called, handed on or inherited from."""
    tree = ast.parse(source)
    names: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for each in node.names:
                first = each.name.partition(".")[0]
                names[each.asname or first] = each.name if each.asname else first
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {each.asname or each.name: f"{node.module}.{each.name}" for each in node.names}
    found = {name for node in ast.walk(tree) for name in full_names(node, names) if LOADERS.fullmatch(name)}
    found = {name for name in found if not any(other.startswith(f"{name}.") for other in found)}
    return found | ({"numba.cache"} if re.search(r"\bcache=True", source) else set())


def full_names(node: ast.AST, names: dict[str, str]) -> Iterator[str]:
    parts: list[str] = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    if isinstance(node, ast.Name) and (parts or isinstance(node.ctx, ast.Load)):
        yield ".".join([names.get(node.id, node.id), *reversed(parts)])


#: Of the same libraries, what reads nothing.
HARMLESS = re.compile(
    r"pickle\.(dumps?|Pickler|PickleError|PicklingError|HIGHEST_PROTOCOL)|imagecodecs\.\w+_encode|xml\..*Error|subprocess\.(PIPE|DEVNULL|TimeoutExpired)"
)


def found_in_source() -> dict[str, set[str]]:
    found = {}
    for path in sorted(ROOT.rglob("*.py")):
        names = {name for name in loaders(path.read_text(encoding="utf-8")) if not HARMLESS.fullmatch(name)}
        if names:
            found[path.relative_to(ROOT).as_posix()] = names
    return found


def listed() -> dict[str, set[str]]:
    return {file: set(re.findall(r"`([^`]+)`", names)) for file, names in ROW.findall(PAGE.read_text(encoding="utf-8"))}


@pytest.mark.skipif(not PAGE.exists(), reason="no documentation beside these tests")
def test_the_page_lists_every_loader():
    assert found_in_source() == listed()


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("import pickle\npickle.load(f)", "pickle.load"),
        ("from pickle import loads as get\nget(b)", "pickle.loads"),
        ("import pickle\nclass A(pickle.Unpickler): pass", "pickle.Unpickler"),
        ("import torch\ndef f():\n    return torch.load(p)", "torch.load"),
        ("import torch as t\nx = t.jit.load", "torch.jit.load"),
        ("import numpy as np\npartial(np.load, allow_pickle=True)", "numpy.load"),
        ("import yaml\nyaml.load(t)", "yaml.load"),
        ("eval(t)", "eval"),
        ("import importlib\nimportlib.import_module(n)", "importlib.import_module"),
        ("import onnxruntime\nonnxruntime.InferenceSession(p)", "onnxruntime.InferenceSession"),
        ("import xml.etree.ElementTree as ET\nET.parse(p)", "xml.etree.ElementTree.parse"),
        ("import os\nos.system(c)", "os.system"),
    ],
)
def test_loaders_are_seen(source, name):
    assert name in loaders(source)


def test_what_is_no_loader_is_not_seen():
    source = "import re, torch\nre.compile('a')\nmodel.eval()\ntorch.save(a, b)\nself.load(p)\nloop.exec()"
    assert loaders(source) == set()


# ---------------------------------------------------------------- nor does the folder that one is in


IN_A_FOLDER = """
import os, sys
from napari_kdunet import core
model = core.Model(core.KUNet(1, depth=1), pixel_size=0.0)
image = [[[1, 2], [3, 4]]]
os.chdir(sys.argv[1])
first = core.predict(model, core.open_volume(__import__("numpy").array(image))).compute()
os.chdir("/")
import numba
from napari_kdunet.core.kernels.inference import run
os.chdir(sys.argv[1])
second = core.predict(model, core.open_volume(__import__("numpy").array(image))).compute()
assert abs(first - second).max() < 1e-5
print(numba.config.CACHE_DIR)
"""


@pytest.mark.parametrize("settings", ["cache_dir: taken\n", "a: [", "1"])
def test_numba_takes_no_settings_of_the_folder(tmp_path, settings):
    """Which may be a stranger's: they name a cache, from which compiled code is taken."""
    pytest.importorskip("numba")
    (tmp_path / ".numba_config.yaml").write_text(settings)
    argv = [sys.executable, "-P", "-c", IN_A_FOLDER, str(tmp_path)]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "taken" not in done.stdout
    assert [path.name for path in tmp_path.iterdir()] == [".numba_config.yaml"]


# ---------------------------------------------------------------- and the formats that could hold code do not run it


class Trap:
    def __reduce__(self):
        return (pytest.fail, ("unpickled",))


def test_objects_in_an_array_are_refused(tmp_path):
    np.save(tmp_path / "a.npy", np.array([[[Trap()]]], dtype=object), allow_pickle=True)
    (tmp_path / "b.npy").write_bytes(pickle.dumps(Trap()))
    for name in ("a.npy", "b.npy"):
        with pytest.raises(core.VolumeError, match=name):
            core.open_volume(tmp_path / name).read(0)


OBJECTS = ["vlen-utf8", "json2", "msgpack2", "categorize"]  # other codecs of numcodecs that give objects
FILTERS = [[{"id": "pickle"}], [{"id": "delta", "dtype": "|u1"}, {"id": "pickle"}], [{"id": "pickle", "protocol": 5}]]
FILTERS += [[{"id": name}, {"id": "pickle"}] for name in OBJECTS]


@pytest.mark.parametrize("compressor", [None, {"id": "pickle"}, {"id": "zlib", "level": 1}])
@pytest.mark.parametrize("filters", [*FILTERS, None])
@pytest.mark.parametrize("dtype", ["|u1", "|O", "|V8", "|S8"])
def test_zarr_2_is_not_unpickled(tmp_path, filters, compressor, dtype):
    path, kind = tmp_path / "a.zarr", (compressor or {}).get("id")
    path.mkdir()
    array = {"zarr_format": 2, "shape": [2, 4, 4], "chunks": [2, 4, 4], "order": "C", "fill_value": 0, "dtype": dtype}
    (path / ".zarray").write_text(json.dumps(array | {"filters": filters, "compressor": compressor}))
    sent = pickle.dumps(Trap())
    (path / "0.0.0").write_bytes(zlib.compress(sent) if kind == "zlib" else sent)
    with pytest.raises(core.VolumeError, match=r"a\.zarr"):
        core.open_volume(path).read(0)


@pytest.mark.parametrize(
    "codec", ["pickle", "numcodecs.pickle", *(f"numcodecs.{name}" for name in OBJECTS), "vlen-utf8"]
)
@pytest.mark.parametrize("kind", ["uint8", "object", "string", "variable_length_bytes", {"name": "numpy.object"}])
def test_zarr_3_is_not_unpickled(tmp_path, codec, kind):
    for codecs in ([{"name": codec}], [{"name": codec}, {"name": "bytes"}], [{"name": "bytes"}, {"name": codec}]):
        path = tmp_path / f"{len(codecs)}-{codecs[0]['name']}.zarr"
        (path / "c" / "0" / "0").mkdir(parents=True)
        grid = {"name": "regular", "configuration": {"chunk_shape": [2, 4, 4]}}
        array = {"zarr_format": 3, "node_type": "array", "shape": [2, 4, 4], "chunk_grid": grid, "codecs": codecs}
        more = {"chunk_key_encoding": {"name": "default"}, "data_type": kind, "fill_value": 0, "attributes": {}}
        (path / "zarr.json").write_text(json.dumps(array | more))
        (path / "c" / "0" / "0" / "0").write_bytes(pickle.dumps(Trap()))
        with pytest.raises(core.VolumeError, match=r"\.zarr"):
            core.open_volume(path).read(0)
