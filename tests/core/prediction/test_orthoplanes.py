"""Ortho-planes: the mean of the logits of three predictions, each of the volume turned, whatever the blocks."""

from __future__ import annotations

import itertools
import pickle
import tracemalloc
from contextlib import closing
from functools import partial

import cloudpickle
import numpy as np
import pytest
import torch
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from napari_kdunet import core
from napari_kdunet.core.prediction.orthoplanes import MEMORY, OrthoPlanes
from napari_kdunet.core.prediction.tiler import Tiler, foreground, labels
from napari_kdunet.core.writing.writer import iter_write, write_volume

ORDERS = [(0, 1, 2), (1, 0, 2), (2, 0, 1)]


def noise(shape, seed: int = 0) -> np.ndarray:
    """Each slice in each direction has a brightness and a contrast of its own."""
    rng = np.random.default_rng(seed)
    gains = rng.uniform(0.5, 1, (shape[0], 1, 1)) * rng.uniform(0.5, 1, (1, shape[1], 1))
    return (rng.integers(0, 255, shape) * gains * rng.uniform(0.5, 1, (1, 1, shape[2]))).astype(np.uint8)


def volume(raw, size: float) -> core.Volume:
    return core.open_volume(raw, voxel_size=(size, size, size) if size else None)


def by_hand(made: core.Model, raw: np.ndarray, size: float = 0.0, **more) -> np.ndarray:
    """Turn the volume, predict, turn back; three times; the mean of the logits as a probability."""
    total = np.zeros(raw.shape)
    for order in ORDERS:
        turned = core.predict(made, volume(np.ascontiguousarray(raw.transpose(order)), size), **more).compute()
        total += np.log(turned / (1 - turned)).transpose(np.argsort(order))
    return 1 / (1 + np.exp(-total / 3))


@settings(max_examples=8, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(
    shape=st.tuples(st.integers(2, 30), st.integers(1, 30), st.integers(1, 30)),
    tile=st.sampled_from([8, 13, 32, None]),
    size=st.sampled_from([0.0, 4.6, 8.0, 20.0]),
    depth=st.integers(1, 2),
    views=st.sampled_from([1, 1, 4]),
    seed=st.integers(0, 99),
)
def test_the_mean_of_three_predictions_whatever_the_blocks(model, shape, tile, size, depth, views, seed):
    raw, made = noise(shape, seed), model(1, depth=depth, pixel_size=10.0, seed=seed)
    mean = core.predict(made, volume(raw, size), planes="zyx", tile=tile, views=views)
    assert (mean.shape, mean.dtype) == (shape, np.float32)
    np.testing.assert_allclose(mean.compute(), by_hand(made, raw, size, views=views), atol=2e-5)


def test_at_depth_four_in_blocks(model):
    raw, made = noise((70, 20, 50)), model(2, pixel_size=10.0)
    mean = core.predict(made, volume(raw, 5.0), planes="zyx", tile=16)
    assert mean.npartitions == 3 * 1 * 2
    np.testing.assert_allclose(mean.compute(), by_hand(made, raw, 5.0), atol=2e-5)


def test_planes_matter(model):
    raw, made = noise((20, 30, 40)), model(2)
    one, three = core.predict(made, raw).compute(), core.predict(made, raw, planes="zyx").compute()
    assert np.abs(one - three).max() > 0.05
    assert np.array_equal(core.predict(made, raw, planes="z").compute(), one)


def test_labels(model):
    raw, made = noise((20, 24, 28)), model(2)
    p = core.predict(made, raw, planes="zyx").compute()
    low, high = (float(level) for level in np.quantile(p, [0.3, 0.8]))
    made = core.Model(made.net, 0.0, low)
    labels = core.predict(made, raw, planes="zyx", output="labels", tile=16)
    assert labels.dtype == np.uint8
    assert (labels.compute() == (p > low)).mean() > 0.9999  # the model's own; one on the line may fall to either side
    given = core.predict(made, raw, planes="zyx", output="labels", threshold=high).compute()
    assert np.array_equal(given, p > high)


def test_classes(model):
    raw, made = noise((16, 20, 24)), model(2, classes=4)
    total = torch.zeros((4, *raw.shape))
    for order in ORDERS:
        turned = core.open_volume(np.ascontiguousarray(raw.transpose(order)))
        tiler = Tiler.of(made, turned, "cpu")
        rows, columns = ((0, n) for n in turned.shape[1:])
        logits = torch.stack([tiler.logits(turned, z, rows, columns) for z in range(turned.shape[0])], dim=1)
        total += logits.permute(0, *(1 + np.argsort(order))) / 3
    shares = total.softmax(dim=0).numpy()
    p = core.predict(made, raw, planes="zyx").compute()
    np.testing.assert_allclose(p, 1 - shares[0], atol=1e-5)
    labels = core.predict(made, raw, planes="zyx", output="labels", threshold=0.6).compute()
    assert np.array_equal(labels, np.where(p > 0.6, shares[1:].argmax(axis=0) + 1, 0))
    assert len(np.unique(labels)) > 2


@pytest.mark.parametrize("dtype", ["bool", "uint16", "int32", "float64", ">u2"])
def test_dtypes_and_offsets(model, dtype):
    raw, made = (noise((12, 20, 16)) > 90).astype(dtype), model()
    if np.dtype(dtype).kind != "b":
        raw = raw * np.dtype(dtype).type(100) + np.dtype(dtype).type(20_000)
    np.testing.assert_allclose(core.predict(made, raw, planes="zyx").compute(), by_hand(made, raw), atol=2e-5)


@pytest.mark.parametrize("suffix", [".tif", ".zarr"])
@pytest.mark.parametrize("output", ["probability", "labels"])
def test_written_as_it_is_computed(model, tmp_path, suffix, output):
    raw, made = noise((40, 20, 30)), model(1, depth=2)
    lazy = core.predict(made, raw, planes="zyx", output=output, tile=16)
    assert lazy.numblocks == (3, 2, 2)
    write_volume(lazy, tmp_path / f"out{suffix}")
    np.testing.assert_array_equal(np.asarray(core.open_volume(tmp_path / f"out{suffix}")), lazy.compute())


class Watched:
    """An array that counts how often each of its slices was read."""

    def __init__(self, array) -> None:
        self.array, self.shape, self.dtype = array, array.shape, array.dtype
        self.read = np.zeros(len(array), int)

    def __getitem__(self, key):
        self.read[key[0]] += 1
        return self.array[key]


def test_blocks_are_computed_once_and_read_what_they_see(model, tmp_path):
    """Each block by itself for the slices along z, with what is above and below for the others; all once before."""
    watched, made = Watched(noise((160, 4, 4))), model(1, depth=1)
    lazy = core.predict(made, watched, planes="zyx", tile=64)
    assert watched.read.max() == 0
    halo = Tiler.of(made, core.open_volume(watched)).halo[0]
    write_volume(lazy, tmp_path / "out.tif")
    z = np.arange(160)
    seen = [(z >= start - halo) & (z < start + 64 + halo) for start in (0, 64, 128)]
    expected = 2 + np.sum(seen, axis=0)
    expected[0] += 1  # where statistics start from
    np.testing.assert_array_equal(watched.read, expected)
    watched.read[:] = 0
    lazy = core.predict(made, watched, planes="zyx")
    lazy.compute()
    assert watched.read[1:].max() == 2  # for statistics, and for the only block


def test_a_stopped_writing_is_gone_on_with(model, tmp_path):
    """Even in the middle of a block, to the same bit."""
    made, raw = model(1, depth=2), noise((40, 20, 30))
    lazy = core.predict(made, raw, planes="zyx", output="labels", tile=16)
    with closing(iter_write(lazy, tmp_path / "out.zarr", resume_key="this")) as writing:
        for _ in range(20):
            next(writing)
    out = tmp_path / "out.zarr"
    assert len(list(iter_write(lazy, out, resume_key="this"))) == 20
    assert np.array_equal(zarr.open_group(out, mode="r")["0"][:], lazy.compute())


def test_blocks_are_as_large_as_memory_allows(model):
    def sides(shape, dtype=np.uint8, result=np.float32):
        class Endless:
            def __init__(self) -> None:
                self.shape, self.dtype = shape, np.dtype(dtype)

            def __getitem__(self, key):
                raise AssertionError("read")

        seen = core.open_volume(Endless(), voxel_size=(5, 5, 5))
        made = model(2, pixel_size=10.0)
        return OrthoPlanes.of(made, seen, Tiler.of(made, seen, "cpu")).block_size(result)

    assert sides((165, 768, 1024)) == (165, 768, 1024)  # of a few hundred slices nothing is computed twice
    assert sides((64, 512, 1024)) == (64, 512, 1024)
    for shape in ((400, 1000, 1000), (5000, 5000, 5000), (600, 20_000, 20_000), (20_000, 90, 90)):
        for dtype, result in itertools.product((np.uint8, np.float32), repeat=2):
            block = sides(shape, dtype, result)
            assert all(side == n or side % 32 == 0 for side, n in zip(block, shape, strict=True))
            assert np.prod(block) * (4 + np.dtype(dtype).itemsize) <= MEMORY
            slab = block[0] * shape[1] * shape[2] * np.dtype(result).itemsize
            assert slab <= MEMORY or block[0] < shape[0] / 50 + 32
    assert sides((2000, 2000, 2000), result=np.uint8)[0] >= 128


@pytest.mark.parametrize("output", ["probability", "labels"])
@pytest.mark.parametrize("shape", [(150, 150, 150), (300, 150, 150), (40, 300, 300)])
def test_memory_does_not_grow_with_the_volume(model, shape, output):
    class Made:
        """Pixels that nobody holds."""

        def __init__(self) -> None:
            self.shape, self.dtype = shape, np.dtype("uint16")

        def __getitem__(self, key):
            z, y, x = (np.atleast_1d(np.arange(n)[part]) for n, part in zip(shape, key, strict=True))
            block = (z[:, None, None] * 7 + y[:, None] * 5 + x * 3) % 251
            return (block if isinstance(key[0], slice) else block[0]).astype(np.uint16)

    limit = 2**21
    made, seen = model(1, depth=1), core.open_volume(Made())
    ortho = OrthoPlanes.of(made, seen, Tiler.of(made, seen), memory=limit)
    finish, dtype = foreground, np.float32
    if output == "labels":
        finish, dtype = partial(labels, threshold=0.5), np.uint8
    sides = ortho.block_size(dtype)
    starts = [range(0, n, side) for n, side in zip(shape, sides, strict=True)]
    blocks = list(itertools.product(*starts))
    assert len(blocks) > 2

    def compute(*start):
        stops = (min(a + side, n) for a, side, n in zip(start, sides, shape, strict=True))
        ortho.compute(finish, *zip(start, stops, strict=True))

    compute(*blocks[0])  # with what is imported on the way
    tracemalloc.start()
    compute(starts[0][-1], 0, 0)
    compute(0, starts[1][-1], 0)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1.5 * limit


def test_it_can_be_pickled(model):
    made, raw = model(1, depth=1), noise((12, 16, 20))
    lazy = core.predict(made, raw, planes="zyx")
    assert np.array_equal(pickle.loads(cloudpickle.dumps(lazy)).compute(), lazy.compute())


def test_wrong(model, one_line):
    made, raw = model(pixel_size=10.0), noise((8, 20, 20))
    with one_line(core.ConfigError, "'yx'", "z or zyx"):
        core.predict(made, raw, planes="yx")
    with one_line(core.ConfigError, "single slice", "planes z"):
        core.predict(made, raw[:1], planes="zyx")
    uneven = core.open_volume(raw, voxel_size=(50, 4.6, 4.6), name="vnc.tif")
    with one_line(core.ConfigError, "vnc.tif", "50 x 4.6 x 4.6 nm", "isotropic"):
        core.predict(made, uneven, planes="zyx")
    nearly = core.open_volume(raw, voxel_size=(5.1, 5.0, 5.0))
    assert np.isfinite(core.predict(made, nearly, planes="zyx").compute()).all()
    with one_line(core.VolumeError, "z=3", "NaN"):
        raw = raw.astype(np.float32)
        raw[3, 9, 9] = np.nan
        core.predict(made, raw, planes="zyx").compute()


def test_a_blank_volume(model):
    assert np.isfinite(core.predict(model(), np.full((3, 20, 20), 7, np.uint8), planes="zyx").compute()).all()
