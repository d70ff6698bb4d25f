"""Engines: whichever computes, the logits are those of the plain float32 network."""

from __future__ import annotations

import pickle
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from napari_kdunet import core
from napari_kdunet.core.devices import using_threads
from napari_kdunet.core.prediction.engine import engine_for, folded
from napari_kdunet.core.volumes import sample

CPU = torch.device("cpu")
COMPILED = (
    "prediction.compiled",
    *(f"kernels.{name}" for name in ("inference", "jit", "layout", "pixels", "simd")),
)


def plain(net: core.KUNet, image: torch.Tensor) -> torch.Tensor:
    """The network's logits, of two classes their difference."""
    with torch.inference_mode():
        logits = net(image)
    return logits[:, 1:] - logits[:, :1] if logits.shape[1] == 2 else logits


def is_compiled(engine) -> bool:
    return type(engine).__name__ == "CompiledUNet"


def assert_same(got: torch.Tensor, expected: torch.Tensor) -> None:
    assert got.shape == expected.shape
    assert got.dtype == torch.float32
    assert (got - expected).abs().max() < 1e-4 * max(1.0, expected.abs().max().item())


@pytest.fixture
def without_numba(monkeypatch):
    monkeypatch.setitem(sys.modules, "numba", None)  # what `import numba` then finds
    for name in COMPILED:
        monkeypatch.delitem(sys.modules, f"napari_kdunet.core.{name}", raising=False)
        folder, _, file = f"napari_kdunet.core.{name}".rpartition(".")
        monkeypatch.delattr(sys.modules[folder], file, raising=False)  # where `from folder import file` looks first
    sample.compiled_passes.cache_clear()
    yield
    sample.compiled_passes.cache_clear()


@pytest.mark.parametrize("depth", [1, 2, 3, 4])
@pytest.mark.parametrize("k", [1, 2, 3, 4, 7])
@settings(max_examples=6, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(
    bn=st.booleans(),
    activation=st.sampled_from(["relu", "leaky_relu"]),
    classes=st.sampled_from([2, 3, 5]),
    context=st.sampled_from([0, 0, 1, 3]),
    size=st.tuples(st.integers(1, 12), st.integers(1, 21)),
    threads=st.sampled_from([1, 2, 3]),
    seed=st.integers(0, 99),
)
def test_compiled_logits_are_those_of_the_network(
    model, k, depth, bn, activation, classes, context, size, threads, seed
):
    form = {"bn": bn, "activation": activation, "classes": classes, "depth": depth, "context": context}
    net = model(k, seed, init="torch", **form).net
    image = torch.randn(1, net.channels, *(n * net.multiple for n in size))
    engine = engine_for(net, CPU, threads)
    assert is_compiled(engine)
    again = torch.randn(
        1, net.channels, *(n * net.multiple for n in reversed(size))
    )  # nothing is left of the image before
    with using_threads(threads):
        assert_same(engine(image), plain(net, image))
        assert_same(engine(again), plain(net, again))


@pytest.mark.parametrize("width", [1, 15, 16, 17, 63, 64, 65, 130])
def test_compiled_at_every_kind_of_right_border(model, width):
    """Tiles are 64 pixels wide at most, and a fringe of whole vectors reaches beyond the image."""
    net = model(2, depth=1).net
    image = torch.randn(1, 1, 70, 2 * width)
    with using_threads(2):
        assert_same(engine_for(net, CPU, 2)(image), plain(net, image))


@pytest.mark.parametrize("k", [2, 16, 20])
@pytest.mark.parametrize("bn", [True, False])
def test_folded_and_torch_logits_are_those_of_the_network(model, without_numba, k, bn):
    net, image = model(k, bn=bn, depth=2).net, torch.randn(1, 1, 24, 40)
    assert not any(isinstance(layer, torch.nn.BatchNorm2d) for layer in folded(net).modules())
    engine = engine_for(net, CPU, 1)
    assert not is_compiled(engine)
    with torch.inference_mode():
        assert_same(engine(image), plain(net, image))


def test_the_choice(model):
    assert is_compiled(engine_for(model(2).net, CPU, 1))
    assert not is_compiled(engine_for(model(64, depth=1).net, CPU, 1))  # the general engine is faster
    assert not is_compiled(engine_for(torch.nn.Conv2d(1, 2, 1), CPU, 1))  # a foreign network
    assert not is_compiled(engine_for(model(2).net, torch.device("meta"), 1))


@pytest.mark.parametrize("form", [{}, {"context": 1}])
@pytest.mark.parametrize("shape", [(3, 90, 130), (2, 37, 53), (1, 16, 16), (2, 5, 131)])
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "float32"])
def test_predictions_without_numba_are_the_same(model, request, dtype, shape, form):
    """The first and the last slice too, whose neighbours are mirrored, and a slice cut by black."""
    raw = np.random.default_rng(0).integers(1, 255, shape).astype(dtype)
    raw[0, :, : shape[2] // 3] = 0
    made = model(2, depth=2, **form)
    compiled = core.predict(made, raw).compute()
    volume = core.open_volume(raw)
    statistics = [volume.statistics(z) for z in range(len(raw))]
    request.getfixturevalue("without_numba")
    again = core.open_volume(raw)
    assert [again.statistics(z) for z in range(len(raw))] == statistics
    np.testing.assert_allclose(core.predict(made, raw).compute(), compiled, atol=1e-5)


@pytest.mark.parametrize("numba", [True, False])
@pytest.mark.parametrize("tile", [None, 32])
@pytest.mark.parametrize("size", [5.0, 4.6, (5.0, 5.0, 8.0), 10.0, 15.0])
def test_masks_are_the_probabilities_above_the_threshold(model, request, size, tile, numba):
    """Enlarged from 10 nm alike along both axes or not, not at all, and shrunk; with black at the border."""
    raw = np.random.default_rng(0).integers(1, 255, (3, 75, 110), dtype=np.uint8)
    raw[0, :, :30], raw[1] = 0, 0
    volume, made = core.open_volume(raw, voxel_size=size), model(2, depth=2, pixel_size=10.0)
    probability = core.predict(made, volume, tile=tile).compute()
    level = float(np.median(probability[2]))
    if not numba:
        request.getfixturevalue("without_numba")
    mask = core.predict(made, volume, tile=tile, output="labels", threshold=level).compute()
    surely = abs(probability - level) > 1e-5
    assert mask.dtype == np.uint8
    assert np.array_equal(mask[surely], (probability > level)[surely])
    assert not mask[0, :, :30].any()
    assert not mask[1].any()
    assert 0.4 < mask[2].mean() < 0.6


def test_a_later_change_of_the_network_does_not_matter(model):
    net, image = model(2, depth=1).net, torch.randn(1, 1, 16, 16)
    expected, engine = plain(net, image), engine_for(net, CPU, 1)
    with torch.no_grad():
        net.head.bias.add_(1)
    assert_same(engine(image), expected)


def test_an_engine_can_be_sent_to_a_worker(model):
    net, image = model(2, depth=2).net, torch.randn(1, 1, 32, 32)
    engine = engine_for(net, CPU, 2)
    expected = engine(image).clone()
    sent = pickle.dumps(engine)
    assert len(sent) < 200_000  # no planes
    assert torch.equal(pickle.loads(sent)(image), expected)


def test_threads_do_not_change_a_bit(model):
    net, image = model(2).net, torch.randn(1, 1, 320, 272)
    expected = engine_for(net, CPU, 1)(image).clone()
    for threads in (2, 5):
        engine = engine_for(net, CPU, threads)
        for used in (1, 2, 5):  # as many as the calling thread may use
            with using_threads(used):
                assert all(torch.equal(engine(image), expected) for _ in range(5))


def test_predictions_from_several_threads(model):
    """As napari and dask ask for them."""
    raw = np.random.default_rng(0).integers(0, 255, (6, 64, 80), dtype=np.uint8)
    lazy = core.predict(model(2), raw, threads=2)
    expected = [lazy[z].compute(scheduler="synchronous") for z in range(6)]
    started = threading.Barrier(6)

    def ask(z: int) -> np.ndarray:
        started.wait()
        return lazy[z].compute(scheduler="threads")

    with ThreadPoolExecutor(6) as pool:
        assert all(np.array_equal(a, b) for a, b in zip(pool.map(ask, range(6)), expected, strict=True))
