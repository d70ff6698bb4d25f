"""Tiny volumes and settings that several tests share."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from scipy import ndimage

from napari_kdunet import core


@pytest.fixture(autouse=True)
def one_thread():
    """Tiny networks on one thread: quick, and the same on every machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def blobs() -> Callable[..., tuple[np.ndarray, np.ndarray]]:
    """Raw and labels: bright round blobs in noise, about a quarter of the pixels; easily learnt."""

    def make(shape: tuple[int, int, int] = (6, 64, 64), seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
        rng = np.random.default_rng(seed)
        smooth = np.stack(
            [ndimage.gaussian_filter(rng.standard_normal(shape[1:]), 4, mode="wrap") for _ in range(shape[0])]
        )
        labels = smooth > np.quantile(smooth, 0.75, axis=(1, 2), keepdims=True)
        raw = 100 + 50 * labels + 15 * rng.standard_normal(shape)
        return np.clip(raw, 0, 255).astype(np.uint8), labels.astype(np.uint8)

    return make


@pytest.fixture(scope="session")
def quick() -> Callable[..., core.TrainConfig]:
    """Settings of a training of a few milliseconds a step; any can be given, `mode` and the like make it distil."""

    def make(**settings: Any) -> core.TrainConfig:
        base = {"k": 1, "steps": 6, "batch": 2, "patch": 32, "threads": 1, "validations": 2, "device": "cpu"}
        base["val_share"] = 0.17  # one of six slices
        if settings.keys() & {"minutes"}:
            del base["steps"]
        soft = settings.keys() & {"mode", "tau", "lam", "soft_share", "unlabelled_share", "teacher_views"}
        return (core.DistillConfig if soft else core.TrainConfig)(**{**base, **settings})

    return make


@pytest.fixture(scope="session")
def model() -> Callable[..., core.Model]:
    """A model with random weights; keywords are those of `KUNet` and `Model`."""

    def make(k: int = 1, seed: int = 0, pixel_size: float = 0.0, threshold: float = 0.5, **form: Any) -> core.Model:
        torch.manual_seed(seed)
        net = core.KUNet(k, **form)
        with torch.no_grad():  # statistics as after a training, so that BN is more than nothing
            net.train()(torch.randn(4, net.channels, 64, 64))
        return core.Model(net, pixel_size, threshold)

    return make


@pytest.fixture(scope="session")
def one_line() -> Callable[..., Any]:
    """A context in which an error of a kind must come, its message one line that holds all the words."""

    @contextmanager
    def expect(error: type[Exception], *words: str):
        with pytest.raises(error) as caught:
            yield caught
        message = str(caught.value)
        assert message
        assert "\n" not in message
        assert len(message) < 400
        for word in words:
            assert word in message

    return expect


@pytest.fixture
def pixels() -> np.ndarray:
    """Five slices, to write to a file and read back."""
    return np.random.default_rng(0).integers(0, 200, (5, 37, 53), dtype=np.uint8)


@pytest.fixture(scope="session")
def fails() -> Callable[..., None]:
    """Opening a source, or a call, must fail with one line that holds all the words."""

    def check(source: Any, *words: str, error: type[Exception] = core.VolumeError, **options: Any) -> None:
        with pytest.raises(error) as caught:
            source() if callable(source) else core.open_volume(source, **options)
        message = str(caught.value)
        assert "\n" not in message
        for word in words:
            assert word in message

    return check
