"""Statistics of batch normalisation that are taken from the image, not from what was learnt from."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from napari_kdunet import core
from napari_kdunet.core.networks.model import Model
from napari_kdunet.core.training.adapt import lesson
from napari_kdunet.sample import synthetic_em


def norms(model: Model) -> list[nn.BatchNorm2d]:
    return [layer for layer in model.net.modules() if isinstance(layer, nn.BatchNorm2d)]


def spoilt(model: Model) -> Model:
    """Its statistics as if it had learnt from an image of quite other channels."""
    net = copy.deepcopy(model.net)
    for norm in norms(replace(model, net=net)):
        norm.running_mean.sub_(norm.running_var.sqrt())
    return replace(model, net=net)


@pytest.fixture(scope="module")
def tissue():
    raw, labels = synthetic_em((5, 256, 320), seed=1)
    return core.open_volume(raw, voxel_size=(10, 10, 10)), labels


def iou(model: Model, tissue, **how) -> float:
    raw, labels = tissue
    return core.evaluate(core.predict(model, raw, output="labels", views=1, threads=1, **how), labels).iou


def test_what_the_statistics_were_hardly_matters(tissue) -> None:
    model = core.load_model("mito-2unet")
    other = spoilt(model)
    assert iou(other, tissue, statistics="model") < 0.1
    adapted = iou(model, tissue, statistics="volume")
    assert adapted > 0.4
    assert iou(other, tissue, statistics="volume") == pytest.approx(adapted, abs=0.05)


def test_the_first_layer_has_the_mean_and_variance_of_its_channels(model) -> None:
    """Of noise, so that mirrored borders do not matter; by the formula of the paper, with its prior."""
    given = model(k=2, bn=True, pixel_size=0.0)
    raw = np.random.default_rng(0).integers(0, 256, (2, 256, 256), dtype=np.uint8)
    mean, variance = (0.5, 4.0)
    with torch.no_grad():
        first = norms(given)[0]
        first.running_mean.fill_(mean)
        first.running_var.fill_(variance)
        image = torch.from_numpy(raw).float()[:, None]
        image = (image - image.mean((2, 3), keepdim=True)) / image.std((2, 3), keepdim=True)
        channels = given.net.down[0][0](image)
    adapted = norms(core.adapt_statistics(given, raw, threads=1))[0]
    share = 2**15 / (2**15 + 2 * 288 * 288)  # of training; a tile has borders of a unit of 16
    for got, before, seen in (
        (adapted.running_mean, mean, channels.mean((0, 2, 3))),
        (adapted.running_var, variance, channels.var((0, 2, 3))),
    ):
        assert got.tolist() == pytest.approx((share * before + (1 - share) * seen).tolist(), abs=0.01)


def test_the_model_that_was_given_stays_as_it_is(tissue) -> None:
    model = core.load_model("mito-2unet")
    before = [norm.running_mean.clone() for norm in norms(model)]
    adapted = core.adapt_statistics(model, tissue[0], threads=1)
    assert all(torch.equal(norm.running_mean, mean) for norm, mean in zip(norms(model), before, strict=True))
    assert not torch.allclose(norms(adapted)[0].running_mean, before[0], rtol=1e-3)
    assert (adapted.threshold, adapted.pixel_size) == (model.threshold, model.pixel_size)
    again = core.adapt_statistics(model, tissue[0], threads=1)
    assert all(torch.equal(a.running_var, b.running_var) for a, b in zip(norms(adapted), norms(again), strict=True))


def test_they_are_taken_once(tissue) -> None:
    """A model that has statistics of a volume is not given them again, as they would count twice."""
    model = generalist("mito-1unet")
    adapted = core.adapt_statistics(model, tissue[0], threads=1)
    assert (model.adapts, adapted.adapts) == (True, False)
    volume = core.open_volume(tissue[0])
    by_itself, fitted = (core.predict(m, volume, threads=1).compute() for m in (model, adapted))
    np.testing.assert_array_equal(by_itself, fitted)


def test_a_training_that_goes_on_forgets_the_image(tissue) -> None:
    """Its statistics are those of its last batches again: so far on they are the same from any beginning."""
    config = core.TrainConfig(k=2, steps=60, batch=1, patch=64, lr=1e-4, ema=0, validations=1, seed=0)
    given = core.load_model("mito-2unet")
    plain, adapted = (
        core.train(*tissue, config, start=replace(given, summary={"statistics": which}))
        for which in ("model", "volume")
    )
    for one, other in zip(norms(plain), norms(adapted), strict=True):
        assert torch.allclose(one.running_var, other.running_var, rtol=0.02)


def test_auto_is_as_the_model_says(tissue) -> None:
    plain = core.load_model("lucchi-2unet")
    saying = replace(plain, summary=plain.summary | {"statistics": "volume"})
    assert (plain.adapts, saying.adapts) == (False, True)
    maps = {
        (name, how): core.predict(model, tissue[0], statistics=how, threads=1).compute()
        for name, model in (("plain", plain), ("saying", saying))
        for how in ("auto", "model", "volume")
    }
    assert np.array_equal(maps["plain", "auto"], maps["plain", "model"])
    assert np.array_equal(maps["saying", "auto"], maps["plain", "volume"])
    assert np.array_equal(maps["saying", "model"], maps["plain", "model"])
    assert not np.allclose(maps["plain", "volume"], maps["plain", "model"], atol=0.01)


def test_a_preview_reads_the_windows_once(tissue) -> None:
    """It asks for slice after slice; what is read again is the slice alone."""
    read = 0

    class Counting:
        shape, dtype, ndim = tissue[0].shape, np.dtype(np.uint8), 3

        def __getitem__(self, at):
            nonlocal read
            read += 1
            return np.asarray(tissue[0].data)[at]

    model = core.load_model("mito-1unet")
    volume = core.open_volume(Counting(), voxel_size=(10, 10, 10))
    counts = []
    for z in (0, 0, 0):
        before = read
        core.predict(model, volume, statistics="volume", threads=1)[z].compute(scheduler="synchronous")
        counts.append(read - before)
    assert counts[0] > counts[1] == counts[2]


def test_nothing_to_adapt(model, tissue) -> None:
    without = model(k=2, bn=False)
    assert core.adapt_statistics(without, tissue[0]) is without
    known = core.load_model("mito-1unet")
    nothing = core.open_volume(np.zeros((2, 64, 64), np.uint8), name="black.tif")
    with pytest.raises(core.VolumeError, match=r"black\.tif shows nothing .*, or keep the statistics of training"):
        core.adapt_statistics(known, nothing)
    assert not core.predict(known, nothing, statistics="volume").compute().any(), "which is background"
    with pytest.raises(core.ConfigError, match="statistics is 'image': choose auto, model or volume"):
        core.predict(known, tissue[0], statistics="image")  # type: ignore[arg-type]


def generalist(name: str) -> Model:
    model = core.load_model(name)
    return replace(model, summary=model.summary | {"statistics": "volume"})


def test_a_training_from_a_generalist_begins_with_statistics_of_the_volume(tissue) -> None:
    model = generalist("mito-1unet")
    config = core.TrainConfig(**model.form_and_pixel_size, steps=1, lr=1e-9, patch=192, batch=4, threads=1)
    trained = core.train(tissue[0], tissue[1], config, start=model)
    far, near = (
        sum(
            float((a.running_mean - b.running_mean).abs().sum()) for a, b in zip(norms(trained), norms(to), strict=True)
        )
        for to in (model, core.adapt_statistics(model, tissue[0], threads=1))
    )
    assert near < 0.7 * far  # a step has moved them


def test_a_generalist_teaches_by_statistics_of_the_whole_volume(tissue) -> None:
    model = core.load_model("mito-1unet")
    config = core.DistillConfig.adapting(teacher_views=1, threads=1)
    by = {
        name: lesson(teacher, tissue[0], config, pixels=2e4)[1]
        for name, teacher in (
            ("generalist", generalist("mito-1unet")),
            ("fitted", replace(core.adapt_statistics(model, tissue[0], threads=1), summary={})),
            ("plain", replace(model, summary={})),
        )
    }
    assert np.allclose(by["generalist"], by["fitted"], atol=1e-5)
    assert not np.allclose(by["generalist"], by["plain"], atol=0.02)


def test_weights_that_change_are_asked_again(tissue) -> None:
    """A preview of a network in training: the same network, the same volume, other weights."""
    model = core.load_model("mito-1unet")
    volume = core.open_volume(tissue[0])
    core.predict(model, volume, statistics="volume", threads=1).compute()
    with torch.no_grad():
        for weight in model.net.parameters():
            weight.mul_(0.7)
    again = core.predict(model, volume, statistics="volume", threads=1).compute()
    fresh = core.predict(model, core.open_volume(volume.data, voxel_size=volume.voxel_size), statistics="volume")
    np.testing.assert_array_equal(again, fresh.compute())


def test_slices_that_cannot_be_read_are_passed_over(tissue, tmp_path) -> None:
    """So that `predict --on-error skip` can name them; an image without any other is an error."""
    path, (raw, _) = tmp_path / "raw.zarr", tissue
    core.write_volume(raw, path)
    rest = core.adapt_statistics("mito-2unet", core.open_volume(np.asarray(raw)[[1, 2, 4]], voxel_size=(10, 10, 10)))
    for z in (0, 3):
        (path / "0" / "c" / str(z) / "0" / "0").write_bytes(b"damaged")
    found = core.adapt_statistics("mito-2unet", path)
    for one, other in zip(norms(rest), norms(found), strict=True):
        torch.testing.assert_close(one.running_mean, other.running_mean)
    for chunk in path.glob("0/c/*/0/0"):
        chunk.write_bytes(b"damaged")
    with pytest.raises(core.VolumeError, match="cannot read slice z="):
        core.adapt_statistics("mito-2unet", path)
