"""Networks that see neighbouring slices: which they see, and that tiles, planes and views are of whole stacks."""

from __future__ import annotations

from dataclasses import replace

import dask
import numpy as np
import pytest
import torch
from torch import nn

from napari_kdunet import core
from napari_kdunet.core.prediction import windows
from napari_kdunet.core.prediction.tiler import Tiler


class Shows(nn.Module):
    """The log odds of the foreground are one of five channels."""

    channels, classes, multiple, reach, k = 5, 2, 1, 0, 1

    def __init__(self, channel: int) -> None:
        super().__init__()
        self.channel = channel

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        shown = x[:, self.channel : self.channel + 1]
        return torch.cat((torch.zeros_like(shown), shown), dim=1)


def noise(shape, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 255, shape, dtype=np.uint8)


def standardised(raw: np.ndarray) -> np.ndarray:
    mean, std = (np.expand_dims(each, (1, 2)) for each in (raw.mean(axis=(1, 2)), raw.std(axis=(1, 2))))
    return ((raw - mean) / np.maximum(std, 1)).astype(np.float32)


def odds(probability) -> np.ndarray:
    p = np.asarray(probability).astype(np.float64)
    with np.errstate(divide="ignore"):
        return np.log(p / (1 - p))


def stack(raw: np.ndarray, size: float) -> core.Volume:
    return core.open_volume(raw, voxel_size=(size, 10.0, 10.0))


@pytest.mark.parametrize(("size", "offsets"), [(30.0, [-2, -1, 0, 1, 2]), (10.0, [-6, -3, 0, 3, 6])])
def test_each_channel_is_a_neighbour_standardised_by_itself(size, offsets):
    raw = noise((9, 20, 24)) // np.arange(1, 10, dtype=np.uint8)[:, None, None]
    mirrored, expected = np.pad(np.arange(9), 8, mode="reflect"), standardised(raw)
    for channel, offset in enumerate(offsets):
        model = core.Model(Shows(channel), 10.0, context_distance=30.0)
        seen = odds(core.predict(model, stack(raw, size), tile=16))
        np.testing.assert_allclose(seen, expected[mirrored[8 + offset : 17 + offset]], atol=1e-4)


def test_a_lost_neighbour_and_what_is_outside_the_sample():
    raw = noise((6, 70, 72))
    raw[3], raw[4, :, 40:] = 0, 0
    seen = odds(core.predict(core.Model(Shows(3), 0.0), raw))  # the slice above
    expected = standardised(raw)
    np.testing.assert_allclose(seen[2], expected[1], atol=1e-4)  # that below in its place
    assert np.isneginf(seen[3]).all()
    assert np.isneginf(seen[4][:, 40:]).all()
    np.testing.assert_allclose(seen[4][:, :40], expected[5][:, :40], atol=1e-4)
    sample = raw[4, :, :40].astype(float)
    inside = odds(core.predict(core.Model(Shows(1), 0.0), raw))[5][:, :38]  # by the statistics of the sample alone
    np.testing.assert_allclose(inside, ((sample - sample.mean()) / sample.std())[:, :38], atol=0.01)


def test_an_even_number_of_channels(one_line):
    net = Shows(0)
    net.channels = 2
    with one_line(core.ModelError, "2 input channels"):
        core.Model(net)


@pytest.mark.parametrize(("size", "context", "depth"), [(4.6, 1, 2), (20.0, 2, 1), (10.0, 1, 4)])
def test_tiled_equals_untiled(model, size, context, depth):
    raw = core.open_volume(noise((5, 90, 70)), voxel_size=(20.0, size, size))
    made = replace(model(1, depth=depth, pixel_size=10.0, context=context), context_distance=40.0)
    tiled, whole = core.predict(made, raw, tile=16), core.predict(made, raw, tile=10_000)
    assert tiled.npartitions > whole.npartitions
    np.testing.assert_allclose(tiled.compute(), whole.compute(), atol=2e-5)
    one = whole[3, 20:50, 10:40].compute()  # what is asked for alone is as in the whole
    np.testing.assert_allclose(one, whole.compute()[3, 20:50, 10:40], atol=2e-5)


def test_untiled_is_the_network_on_the_mirrored_standardised_slices(model):
    raw, made = noise((4, 32, 48)), model(1, depth=2, context=1)
    image = torch.from_numpy(np.pad(standardised(raw), ((1, 1), (4, 4), (4, 4)), mode="reflect"))
    with torch.no_grad():
        expected = made.net(torch.stack([image[z : z + 3] for z in range(4)])).softmax(dim=1)[:, 1, 4:-4, 4:-4]
    np.testing.assert_allclose(core.predict(made, raw), expected, atol=1e-5)


class Counted:
    """An array that counts how often each slice is read."""

    def __init__(self, raw: np.ndarray) -> None:
        self.raw, self.shape, self.dtype = raw, raw.shape, raw.dtype
        self.read = [0] * len(raw)

    def __getitem__(self, key):
        assert isinstance(key[0], int)
        self.read[key[0]] += 1
        return self.raw[key]


@pytest.mark.parametrize("scheduler", ["synchronous", "threads"])
def test_a_slice_is_read_once_for_all_that_it_is_a_neighbour_of(model, scheduler):
    seen = Counted(noise((12, 40, 40)))
    lazy = core.predict(model(1, depth=1, context=1), seen)
    with dask.config.set(scheduler=scheduler, num_workers=2):
        for z in range(0, 12, 4):  # as a writer takes them: in batches, each of which dask computes in any order
            lazy[z : z + 4].compute()
    assert seen.read == [1] * 12


def test_windows_that_are_kept_are_few(model, monkeypatch):
    raw, made = core.open_volume(noise((60, 64, 64))), model(1, depth=1, context=1)
    tiler = Tiler.of(made, raw, "cpu")
    kept = tiler._windows._windows
    expected = []
    for z in range(60):
        expected.append(tiler.logits(raw, z, (0, 64), (0, 64)))
        assert len(kept) <= 2 + 32 + 1
    monkeypatch.setattr(windows, "_MOST_BYTES", 20_000)  # one slice and no other
    for z in range(3):
        assert torch.equal(tiler.logits(raw, z, (0, 64), (0, 64)), expected[z])
        assert len(kept) == 1


def test_the_windows_are_of_one_volume(model):
    made = model(1, depth=1, context=1)
    first, second = (core.open_volume(noise((3, 32, 32), seed)) for seed in (0, 1))
    tiler = Tiler.of(made, first, "cpu")
    for volume in (first, second, first):
        expected = core.predict(made, volume)[1].compute()
        got = tiler.logits(volume, 1, (0, 32), (0, 32)).sigmoid()[0].numpy()
        np.testing.assert_allclose(got, expected, atol=1e-6)


@pytest.mark.parametrize(("distance", "tile"), [(0.0, None), (12.0, 8)])
def test_planes_see_the_neighbours_along_their_normal(model, distance, tile):
    raw = noise((20, 22, 24))
    made = replace(model(1, depth=1, context=1, pixel_size=6.0), context_distance=distance)
    logits = np.zeros(raw.shape)
    for order in ((0, 1, 2), (1, 0, 2), (2, 0, 1)):
        turned = core.open_volume(np.ascontiguousarray(raw.transpose(order)), voxel_size=(6.0,) * 3)
        p = core.predict(made, turned).compute().transpose(np.argsort(order))
        logits += np.log(p / (1 - p)) / 3
    cube = core.open_volume(raw, voxel_size=(6.0,) * 3)
    got = core.predict(made, cube, planes="zyx", tile=tile)
    assert (got.npartitions > 1) is (tile is not None)
    np.testing.assert_allclose(got.compute(), 1 / (1 + np.exp(-logits)), atol=2e-5)


def test_views_turn_all_channels_alike(model):
    raw, made = noise((3, 32, 32)), model(1, depth=2, context=1)
    views = [made.net.forward, lambda x: made.net(x.flip(-1)).flip(-1)]
    image = torch.from_numpy(np.pad(standardised(raw), ((1, 1), (4, 4), (4, 4)), mode="reflect"))
    with torch.no_grad():
        logits = sum(view(image[None, 1:4]) for view in views)[0, :, 4:-4, 4:-4] / 2
    np.testing.assert_allclose(core.predict(made, raw, views=2)[1], logits.softmax(dim=0)[1], atol=1e-5)


def test_probes_of_a_volume_have_the_neighbours_that_lie_beside_them_in_it():
    """Statistics are taken, and the pixel size is found, in a few slices far from each other."""
    raw = noise((40, 64, 64))
    raw[1:39:2] = raw[2:40:2]  # below each even slice, of which the probes are, lies its copy
    net = core.KUNet(1, depth=1, context=1)
    variance = {}
    for name, weights in {"below": (-1.0, 1.0, 0.0), "above": (0.0, 1.0, -1.0)}.items():
        with torch.no_grad():  # the first channel is the difference to a neighbour
            net.down[0][0].weight.zero_()
            net.down[0][0].weight[0, :, 1, 1] = torch.tensor(weights)
        adapted = core.adapt_statistics(core.Model(net), raw, threads=1)
        variance[name] = adapted.net.down[0][1].running_var.item()
    assert variance["below"] < 0.7  # of a variance of 0 and of 1 in training, which counts for more than half
    assert variance["above"] > 1.2
    search = core.find_pixel_size(core.Model(Shows(2), 10.0), raw, sizes=[10.0, 20.0], threads=1)
    assert [tried.foreground for tried in search.tried] == pytest.approx([0.5] * 4, abs=0.02)
