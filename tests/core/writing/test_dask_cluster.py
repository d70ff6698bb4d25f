"""Prediction on a dask cluster of worker processes: to the bit what one process gives, though workers die."""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
from pathlib import Path

import dask.array as da
import numpy as np
import pytest
import zarr

from napari_kdunet import core
from napari_kdunet.core.devices import cores
from napari_kdunet.core.prediction.predict import Blocks
from napari_kdunet.core.prediction.tiler import Tiler
from napari_kdunet.core.writing.dask_cluster import connect
from napari_kdunet.core.writing.writer import iter_write

distributed = pytest.importorskip("distributed")

pytestmark = pytest.mark.slow  # worker processes import torch

DEPTH = 24


def local_cluster(workers: int, processes: bool):
    settings = {"threads_per_worker": 1, "dashboard_address": ":0", "silence_logs": logging.CRITICAL}
    return distributed.LocalCluster(n_workers=workers, processes=processes, **settings)


@pytest.fixture(scope="module")
def cluster():
    with local_cluster(2, processes=True) as cluster:
        yield cluster


@pytest.fixture
def raw(tmp_path, monkeypatch) -> str:
    """Its name in the folder where the client is, and the workers are not."""
    monkeypatch.chdir(tmp_path)
    pixels = np.random.default_rng(0).integers(0, 255, (DEPTH, 90, 130), dtype=np.uint8)
    core.write_volume(pixels, "raw.zarr", voxel_size=(20, 10, 10))
    for folder in ("here", "there"):
        Path(folder).mkdir()
    return "raw.zarr"


@pytest.fixture
def idle(monkeypatch):
    """This process neither computes tiles nor writes pixels, from when it is called on."""

    def fail(*args):
        raise AssertionError("in the client's process")

    def start():
        monkeypatch.setattr(Tiler, "_compute", fail)
        monkeypatch.setattr(zarr.Array, "__setitem__", fail)

    return start


def tree(folder: str) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in Path(folder).rglob("*") if path.is_file()}


def test_a_worker_is_killed(cluster, raw, model, idle):
    lazy = core.predict(model(2, pixel_size=10.0), raw, tile=64)
    core.write_volume(lazy, "here/out.zarr", voxel_size=(20, 10, 10))
    idle()
    order = []
    with distributed.Client(cluster) as client:
        processes = client.run(os.getpid)
        for z, done in iter_write(lazy, "there/out.zarr", voxel_size=(20, 10, 10), resume_key="this"):
            order.append(z)
            assert done == len(order)
            if done == 3:
                os.kill(next(iter(processes.values())), signal.SIGKILL)
    assert sorted(order) == list(range(DEPTH))
    assert tree("there") == tree("here")


def test_the_model_is_sent_once(cluster, raw, model, monkeypatch):
    """The scheduler of a local cluster is in this process: what it and the client send is pickled here."""
    sent = []
    honest = Blocks.__getstate__
    monkeypatch.setattr(Blocks, "__getstate__", lambda self: sent.append(self) or honest(self))
    lazy = core.predict(model(2, pixel_size=10.0), raw, output="labels", tile=64)
    expected = lazy.compute(scheduler="threads")
    with distributed.Client(cluster):
        assert np.array_equal(lazy.compute(), expected)
        assert 1 <= len(sent) < 5
        sent.clear()
        core.write_volume(lazy, "there/out.zarr")
        assert 1 <= len(sent) < 5
    assert np.array_equal(np.asarray(core.open_volume("there/out.zarr")), expected)


def test_a_worker_takes_the_threads_that_it_was_given(cluster):
    with distributed.Client(cluster) as client:
        assert client.submit(cores, pure=False).result() == 1


def test_a_slice_that_cannot_be_read(cluster, raw, model, one_line, idle):
    Path(raw, "0", "c", "7", "0", "0").write_bytes(b"damaged")
    lazy = core.predict(model(pixel_size=10.0), raw)
    told: list[core.VolumeError] = []
    core.write_volume(lazy, "here/out.zarr", metadata={"a": 1}, on_error=told.append)
    idle()
    with connect(cluster.scheduler_address):
        with one_line(core.VolumeError, "z=7", raw):
            core.write_volume(lazy, "there/out.zarr")
        assert tree("there") == {}
        core.write_volume(lazy, "there/out.zarr", metadata={"a": 1}, on_error=told.append)
    assert tree("there") == tree("here")
    assert len(told) == 2
    assert str(told[0]) == str(told[1])
    assert all(word in str(told[0]) for word in ("z=7", raw))


def test_a_cluster_that_is_gone_can_be_gone_on_without(raw, model, one_line):
    lazy = core.predict(model(pixel_size=10.0), raw)
    core.write_volume(lazy, "here/out.zarr")
    with local_cluster(1, processes=False) as cluster, distributed.Client(cluster):
        written = iter_write(lazy, "there/out.zarr", resume_key="this")
        next(written)
        cluster.close()
        with one_line(core.OutputError, "the cluster did not finish", "the same command"):
            list(written)
    assert not Path("there/out.zarr").exists()
    going_on = list(iter_write(lazy, "there/out.zarr", resume_key="this"))
    assert 0 < len(going_on) < DEPTH
    assert going_on[-1].done == DEPTH
    assert tree("there") == tree("here")


def test_a_folder_that_workers_do_not_see(cluster, raw, model, one_line, monkeypatch):
    lazy = core.predict(model(pixel_size=10.0), raw)
    monkeypatch.setattr(Path, "absolute", lambda path: Path("/nowhere", path.name))
    with connect(cluster.scheduler_address), one_line(core.OutputError, "does not see /nowhere/"):
        core.write_volume(lazy, "there/out.zarr")


def test_no_scheduler(one_line, tmp_path):
    wrong = tmp_path / "scheduler.json"
    wrong.write_text(json.dumps({"address": "tcp://127.0.0.1:1"}))
    for scheduler in ("tcp://127.0.0.1:1", "127.0.0.1:1", "nonsense", "carrier://pigeon", str(wrong)):
        with one_line(core.ConfigError, scheduler), connect(scheduler, timeout=0.3):
            pass
        assert da.ones(3).sum().compute() == 3  # here, as before


def test_distributed_is_not_installed(monkeypatch, one_line):
    monkeypatch.setitem(sys.modules, "distributed", None)
    with one_line(core.ConfigError, "napari-kdunet[cluster]"), connect("tcp://127.0.0.1:1"):
        pass
