"""Models as C: what a compiler makes of the file computes what `core.predict` computes."""

from __future__ import annotations

import ctypes
import shutil
import subprocess

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from scipy import ndimage
from torch import nn

from napari_kdunet import core

STRICT = ("-std=c99", "-Wall", "-Wextra", "-Wpedantic", "-Werror", "-O1")
COMPILERS = [name for name in ("gcc", "clang") if shutil.which(name)]
with_compiler = pytest.mark.skipif(not COMPILERS, reason="neither gcc nor clang is installed")


def textured(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    smooth = ndimage.gaussian_filter(rng.standard_normal(shape), 3, mode="wrap")
    return (smooth / smooth.std() * 30 + 120 + rng.normal(0, 6, shape)).clip(0, 255).astype(np.uint8)


class Compiled:
    """A model's file of C as a library, called with memory full of NaN and walls around it."""

    def __init__(self, model, folder, *flags: str, compiler: str = "") -> None:
        source, library = core.export_c(model, folder / "m.c"), folder / "m.so"
        command = [compiler or COMPILERS[0], *STRICT, *flags, "-shared", "-fPIC", source, "-o", library, "-lm"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        self.loaded = ctypes.CDLL(str(library))
        self.loaded.kdunet_bytes.restype = ctypes.c_size_t
        self.threshold = ctypes.c_float.in_dll(self.loaded, "kdunet_threshold").value

    def bytes(self, height, width, pixel) -> int:
        return self.loaded.kdunet_bytes(height, width, *map(ctypes.c_double, pixel))

    def __call__(self, image, pixel=(0.0, 0.0), statistics=None) -> np.ndarray:
        image = np.ascontiguousarray(image, np.float32)
        size, wall = self.bytes(*image.shape, pixel) // 4, 64
        memory, out = np.full(size + 2 * wall, np.nan, np.float32), np.empty_like(image)
        memory[:wall] = memory[-wall:] = 7
        given = None if statistics is None else np.array(statistics, np.float32)
        pointers = (each if each is None else ctypes.c_void_p(each.ctypes.data) for each in (given, out, memory[wall:]))
        source = ctypes.c_void_p(image.ctypes.data)
        failed = self.loaded.kdunet_probability(source, *image.shape, *map(ctypes.c_double, pixel), *pointers)
        assert failed == 0
        assert_array_equal(memory[[*range(wall), *range(-wall, 0)]], 7)
        return out


@pytest.fixture(scope="module", params=COMPILERS or ["none"])
def bundled(request, tmp_path_factory):
    if not COMPILERS:
        pytest.skip("neither gcc nor clang is installed")
    model = core.load_model("lucchi-2unet")
    return model, Compiled(model, tmp_path_factory.mktemp("c"), "-march=native", compiler=request.param)


@pytest.mark.parametrize("size", [(3, 50), (64, 64), (97, 61), (131, 76)])
@pytest.mark.parametrize("pixel", [(10.0, 10.0), (5.0, 5.0), (4.6, 7.0), (13.0, 4.0), (27.0, 8.0)])
def test_it_is_predict(bundled, size, pixel):
    model, compiled = bundled
    image = textured((140, 80))[: size[0], : size[1]]
    expected = np.asarray(core.predict(model, core.open_volume(image[None], voxel_size=(30.0, *pixel))))[0]
    assert_allclose(compiled(image, pixel), expected, atol=1e-4)


@with_compiler
@pytest.mark.parametrize("flags", [(), ("-DKDUNET_SCALAR",)])
@pytest.mark.parametrize(
    "form",
    [
        {"k": 1, "depth": 2, "activation": "relu", "bn": False},
        {"k": 3, "depth": 3, "pixel_size": 8.0},
        {"k": 4, "depth": 1, "pixel_size": 12.0},
    ],
)
def test_other_forms(model, tmp_path, form, flags):
    model = model(**form)
    image = textured((45, 70), seed=1)
    volume = core.open_volume(image, voxel_size=(30.0, 6.0, 12.0))
    assert_allclose(Compiled(model, tmp_path, *flags)(image, (6.0, 12.0)), core.predict(model, volume)[0], atol=1e-4)


def test_statistics_and_threshold(bundled):
    model, compiled = bundled
    image = textured((60, 70)).astype(np.float32)
    plain = compiled(image)
    assert_allclose(compiled(image, (10.0, 10.0)), plain, atol=1e-6)
    assert_allclose(compiled(image, statistics=(image.mean(), image.std())), plain, atol=1e-4)
    assert abs(compiled(image, statistics=(180, 30)) - plain).max() > 0.01
    assert_allclose(compiled(np.full((40, 50), 3.0)), plain[0, 0], atol=1)  # no NaN of a constant one
    assert compiled.threshold == pytest.approx(model.threshold)


def test_wrong_sizes(bundled):
    _, compiled = bundled
    for height, width, pixel in ((0, 5, (5, 5)), (5, -1, (5, 5)), (5, 5, (1e-3, 5)), (5, 5, (5, 1e5))):
        assert compiled.bytes(height, width, pixel) == 0
        arguments = (None, height, width, *map(ctypes.c_double, pixel), None, None, ctypes.c_void_p(8))
        assert compiled.loaded.kdunet_probability(*arguments) == -1


@with_compiler
def test_the_program(tmp_path):
    model, image = core.load_model("lucchi-1unet"), textured((50, 40)).astype(np.float32)
    source = core.export_c(model, tmp_path / "m.c")
    command = [COMPILERS[0], *STRICT, "-DKDUNET_MAIN", source, "-o", tmp_path / "m", "-lm"]
    subprocess.run(command, check=True, timeout=300)
    call = [tmp_path / "m", "50", "40", "8", "8"]
    out = subprocess.run(call, input=image.tobytes(), capture_output=True, check=True, timeout=60).stdout
    expected = np.asarray(core.predict(model, core.open_volume(image[None], voxel_size=(30.0, 8.0, 8.0))))[0]
    assert_allclose(np.frombuffer(out, np.float32).reshape(50, 40), expected, atol=1e-4)
    for wrong in (["50"], ["0", "40", "8", "8"], ["50", "40", "8", "8", "1"]):
        assert subprocess.run([tmp_path / "m", *wrong], capture_output=True, timeout=60).returncode == 2
    assert subprocess.run(call, input=b"short", capture_output=True, timeout=60).returncode == 1


def test_what_cannot_be_exported(model, tmp_path):
    path = tmp_path / "m.c"
    path.write_text("before")
    for wrong in (model(k=5, depth=1), model(k=1, depth=1, classes=3), core.Model(nn.Conv2d(1, 2, 1))):
        with pytest.raises(core.ModelError, match="cannot be exported as C") as told:
            core.export_c(wrong, path)
        assert len(str(told.value)) < 300
    assert path.read_text() == "before"
    core.export_c(model(k=1, depth=1), path, name="a */ name")
    assert "*/ name" not in path.read_text()
