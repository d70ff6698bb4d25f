"""The tiler: tiled equals untiled, nothing is read that was not asked for, and the raw's units do not matter."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from napari_kdunet import core
from napari_kdunet.core.prediction.tiler import Tiler

SIZES = [0.0, 4.6, 8.0, 10.0, 20.0, 55.0]  # nm of the image, for a model that works at 10 nm; 0 is unknown


def noise(shape, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 255, shape, dtype=np.uint8)


def volume(raw, size: float) -> core.Volume:
    return core.open_volume(raw, voxel_size=(40.0, size, size) if size else None)


@settings(max_examples=30, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(
    shape=st.tuples(st.integers(1, 2), st.integers(1, 90), st.integers(1, 90)),
    tile=st.integers(12, 70),
    size=st.sampled_from(SIZES),
    depth=st.integers(1, 3),
    seed=st.integers(0, 99),
)
def test_tiled_equals_untiled(model, shape, tile, size, depth, seed):
    raw = volume(noise(shape, seed), size)
    made = model(1, depth=depth, pixel_size=10.0, seed=seed)
    tiled = core.predict(made, raw, tile=tile).compute()
    whole = core.predict(made, raw, tile=10_000)
    assert whole.numblocks == (shape[0], 1, 1)
    assert tiled.shape == shape
    np.testing.assert_allclose(tiled, whole.compute(), atol=2e-5)


@pytest.mark.parametrize("size", [4.6, 20.0])
def test_tiled_equals_untiled_at_depth_four(model, size):
    raw, made = volume(noise((1, int(1500 / size), 222 if size < 10 else 111)), size), model(2, pixel_size=10.0)
    tiled = core.predict(made, raw, tile=40)
    assert tiled.npartitions > 4
    np.testing.assert_allclose(tiled.compute(), core.predict(made, raw, tile=10_000).compute(), atol=2e-5)


def test_untiled_is_the_network_on_the_mirrored_standardised_slice(model):
    raw, made = noise((2, 32, 48)), model(1, depth=2)
    for z in range(2):
        image = ((raw[z] - raw[z].mean()) / raw[z].std()).astype(np.float32)
        padded = torch.from_numpy(np.pad(image, 4, mode="reflect"))[None, None]
        with torch.no_grad():
            expected = made.net(padded).softmax(dim=1)[0, 1, 4:-4, 4:-4].numpy()
        np.testing.assert_allclose(core.predict(made, raw)[z].compute(), expected, atol=1e-5)


@pytest.mark.parametrize(("size", "factor"), [(5.0, 2), (2.5, 4)])
def test_the_working_pixel_size_is_that_of_the_network(model, size, factor):
    """A model at 10 nm sees the means of the finer pixels, and its logits are enlarged bilinearly."""
    coarse = noise((1, 48, 48))
    fine = coarse.repeat(factor, axis=1).repeat(factor, axis=2)
    made, own = model(1, depth=1, pixel_size=10.0), model(1, depth=1, pixel_size=0.0)
    at_ten = volume(coarse, 10.0)
    logits = Tiler.of(made, at_ten, "cpu").logits(at_ten, 0, (0, 48), (0, 48))
    expected = F.interpolate(logits[None], scale_factor=factor, mode="bilinear")[0, 0].sigmoid().numpy()
    out = core.predict(made, volume(fine, size)).compute()[0]
    inner = slice(12 * factor, -12 * factor)  # how borders are mirrored differs by part of a pixel
    np.testing.assert_allclose(out[inner, inner], expected[inner, inner], atol=1e-5)
    # where either is unknown, the image's own pixels
    assert np.array_equal(core.predict(own, volume(fine, size)).compute(), core.predict(made, fine).compute())


@pytest.mark.parametrize("dtype", ["bool", "uint8", "uint16", "int16", "int32", "float32", "float64", ">u2"])
def test_dtypes(model, dtype):
    raw = (noise((1, 20, 20)) > 90).repeat(2, axis=1).repeat(2, axis=2).astype(dtype)
    out = core.predict(model(), raw)
    assert out.dtype == np.float32
    expected = core.predict(model(), raw.astype(np.float32)).compute()
    np.testing.assert_allclose(out.compute(), expected, atol=1e-6)
    assert 0 <= expected.min() < expected.max() <= 1


def test_gain_and_offset_of_a_slice_do_not_matter(model):
    raw = noise((3, 50, 40)).astype(np.float64)
    gains, offsets = np.array([2.5, 0.01, 300.0])[:, None, None], np.array([-700.0, 5.0, 1e4])[:, None, None]
    made = model()
    expected = core.predict(made, raw).compute()
    np.testing.assert_allclose(core.predict(made, gains * raw + offsets).compute(), expected, atol=1e-4)
    single = core.predict(made, raw[1:2]).compute()  # nor do other slices
    assert np.array_equal(single[0], expected[1])


def test_a_blank_slice(model):
    assert np.isfinite(core.predict(model(), np.full((1, 20, 20), 7, np.uint8)).compute()).all()


class Watched:
    """An array that remembers which slices were read."""

    def __init__(self, array) -> None:
        self.array, self.shape, self.dtype, self.read = array, array.shape, array.dtype, []

    def __getitem__(self, key):
        self.read.append(key[0])
        return self.array[key]


def test_only_what_is_asked_for_is_read(model):
    watched = Watched(noise((50, 64, 64)))
    out = core.predict(model(), watched, tile=32)
    assert watched.read == []
    out[17].compute()
    assert set(watched.read) == {17}


def test_a_slice_that_is_one_tile_is_read_once(model):
    watched = Watched(noise((5, 64, 64)))
    core.predict(model(), watched)[3].compute()
    assert watched.read == [3]


def test_the_graph_and_the_tiles_are_small(model):
    class Endless:
        shape, dtype = (1000, 100_000, 100_000), np.dtype("uint8")

        def __getitem__(self, key):
            raise AssertionError("read")

    made = model(16, pixel_size=10.0)
    out = core.predict(made, core.open_volume(Endless(), voxel_size=(40, 5, 5)))
    assert out.shape == Endless.shape
    assert max(out.chunks[0]) == 1
    assert 512 <= max(out.chunks[1]) <= 2048
    tiler = Tiler.of(made, core.open_volume(Endless()))
    assert all(a % u == 0 for side, u in zip(tiler.tile(), tiler.unit, strict=True) for a in [side])
    y = [w for w, x in tiler.windows((1, 5000, 10))]
    assert y[0][0] == 0
    assert y[-1][1] == 5000
    assert all(a[1] == b[0] for a, b in pairwise(y))


def test_predicting_does_not_copy_the_volume(model):
    """Dask names an array by a hash of all that it is made of: of a volume in memory that would be a copy."""

    class NotToBePickled(Watched):
        def __reduce_ex__(self, protocol):
            raise AssertionError("pickled")

    out = core.predict(model(), NotToBePickled(noise((2, 32, 32))))
    assert out.name != core.predict(model(), NotToBePickled(noise((2, 32, 32)))).name


def test_labels_and_threshold(model):
    raw, made = noise((2, 40, 40)), model()
    p = core.predict(made, raw).compute()
    low, high = np.quantile(p, [0.3, 0.8])
    made = core.Model(made.net, 0.0, float(low))
    labels = core.predict(made, raw, output="labels")
    assert labels.dtype == np.uint8
    assert np.array_equal(labels.compute(), p > low)  # the model's own
    given = core.predict(made, raw, output="labels", threshold=float(high)).compute()
    assert np.array_equal(given, p > high)
    assert 0 < given.sum() < (p > low).sum() < p.size


def test_classes(model):
    raw, made = noise((1, 40, 40)), model(2, classes=4)
    with torch.no_grad():
        tiler = Tiler.of(made, core.open_volume(raw), "cpu")
        shares = tiler.logits(core.open_volume(raw), 0, (0, 40), (0, 40)).softmax(dim=0).numpy()
    p = core.predict(made, raw).compute()[0]
    np.testing.assert_allclose(p, 1 - shares[0], atol=1e-6)
    labels = core.predict(made, raw, output="labels", threshold=0.4).compute()[0]
    assert np.array_equal(labels > 0, p > 0.4)
    assert np.array_equal(labels[labels > 0], shares[1:].argmax(axis=0)[labels > 0] + 1)
    assert len(np.unique(labels)) > 2


def test_a_foreign_network(model):
    class Bright(torch.nn.Module):
        def forward(self, x):
            return torch.cat((-x, x), dim=1)

    raw = noise((1, 70, 45))
    out = core.predict(core.Model(Bright(), 0.0), raw, tile=32).compute()
    z = (raw - raw.mean()) / raw.std()
    np.testing.assert_allclose(out, 1 / (1 + np.exp(-2 * z)), atol=1e-5)


def test_the_model_stays_as_it_is(model):
    made = model(2)
    before = {name: value.clone() for name, value in made.net.state_dict().items()}
    threads = torch.get_num_threads()
    core.predict(made, noise((1, 40, 40)), threads=2).compute()
    assert torch.get_num_threads() == threads
    assert all(torch.equal(value, before[name]) for name, value in made.net.state_dict().items())


@pytest.mark.parametrize(
    "wrong",
    [
        *({"output": "mask"}, {"device": "tpu"}),
        *({"threshold": level} for level in (1.0, math.nan, "half")),
        *({"tile": side} for side in (0, -64, 1.5, "64")),
    ],
    ids=str,
)
def test_wrong_arguments(model, wrong, one_line):
    with one_line(core.ConfigError, str(next(iter(wrong.values())))):
        core.predict(model(), noise((1, 8, 8)), **wrong)


def test_a_network_that_overflows_is_an_error(model, one_line):
    made = model()
    with torch.no_grad():
        for parameter in made.net.parameters():
            parameter *= 1e30
    for output in ("labels", "probability"):
        with one_line(core.ModelError, "NaN", "z=0"):
            core.predict(made, noise((1, 40, 40)), output=output).compute()
        with one_line(core.ModelError, "NaN"):
            core.predict(made, noise((4, 40, 40)), output=output, planes="zyx").compute()


@pytest.mark.parametrize("size", [None, 5.0])
def test_infinite_logits_are_an_error_and_no_empty_mask(model, size, one_line):
    made = model(pixel_size=10.0)
    with torch.no_grad():
        made.net.head.bias[:] = torch.tensor([-3e38, 3e38])
    raw = core.open_volume(noise((1, 40, 40)), voxel_size=size)
    with one_line(core.ModelError, "infinity", "z=0"):
        core.predict(made, raw, output="labels").compute()


@pytest.mark.parametrize("dtype", ["int32", "uint32", "int64", "float64"])
def test_large_offsets_do_not_matter(model, dtype):
    raw, made = noise((1, 60, 50)), model()
    offset = {"int32": 2**30, "uint32": 4 * 10**9, "int64": 2**40, "float64": 1e9}[dtype]
    far = raw.astype(dtype) + np.asarray(offset, dtype)
    expected = core.predict(made, raw).compute()
    np.testing.assert_allclose(core.predict(made, far).compute(), expected, atol=1e-5)
    for scale in (1e-60, 1e60):
        np.testing.assert_allclose(core.predict(made, raw * scale).compute(), expected, atol=1e-5)


def test_wrong_volumes(model, one_line):
    raw = noise((2, 32, 32)).astype(np.float32)
    raw[1, 3, 3] = np.nan
    out = core.predict(model(), raw)
    assert np.isfinite(out[0].compute()).all()
    with one_line(core.VolumeError, "z=1", "NaN"):
        out[1].compute()
    with one_line(core.ConfigError, "0.1 nm"):
        core.predict(model(pixel_size=10.0), volume(raw, 0.1))
