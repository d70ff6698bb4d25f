"""Model files that are damaged, forged or made to hurt: a model, or one clear line, soon and in little memory."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch

from mutations import MEGABYTES, damaged_safetensors, join_safetensors, keeps_promise, peak_megabytes, split_safetensors
from napari_kdunet import core

QUICK, MANY = range(50), range(50, 1050)


@pytest.fixture(scope="module")
def saved(model, tmp_path_factory) -> bytes:
    made = model(2, depth=2, pixel_size=10.0)
    summary = {"settings": {"k": 2}, "labelled_slices": [0, 1, 2], "validation": {"iou": 0.5, "slices": [3]}}
    made = core.Model(made.net, 10.0, 0.5, summary=summary)
    return made.save(tmp_path_factory.mktemp("saved") / "m.safetensors").read_bytes()


def forge(data: bytes, **changes: Any) -> bytes:
    header, tensors = split_safetensors(data)
    metadata = json.loads(header["__metadata__"]["napari_kdunet"]) | changes
    header["__metadata__"]["napari_kdunet"] = json.dumps(metadata)
    return join_safetensors(header, tensors)


@pytest.mark.parametrize("seeds", [QUICK, pytest.param(MANY, marks=pytest.mark.exhaustive)], ids=["quick", "many"])
def test_any_file_is_a_model_or_one_line(saved, seeds, tmp_path):
    path = tmp_path / "m.safetensors"
    before, refused = peak_megabytes(), 0
    for seed in seeds:
        path.write_bytes(damaged_safetensors(saved, seed))
        try:
            result = keeps_promise(lambda: core.load_model(path))
            if isinstance(result, core.Model):
                assert all(value.isfinite().all() for value in result.net.state_dict().values())
                json.dumps(result.describe())
        except BaseException as error:
            raise AssertionError(f"seed {seed}") from error
        refused += isinstance(result, core.ModelError)
    assert peak_megabytes() - before < MEGABYTES
    assert refused > len(seeds) / 2


def test_every_flipped_bit_is_found(saved, tmp_path, one_line):
    path = tmp_path / "m.safetensors"
    for bit in range(0, 8 * len(saved), 8 * len(saved) // 199):
        data = bytearray(saved)
        data[bit // 8] ^= 1 << bit % 8
        path.write_bytes(data)
        with one_line(core.ModelError, str(path)):
            core.load_model(path)


def test_files_without_a_checksum_are_read(saved, tmp_path):
    path = tmp_path / "m.safetensors"
    path.write_bytes(forge(saved))
    assert b"crc32" in saved
    assert b"crc32" not in path.read_bytes()
    assert core.load_model(path).summary["validation"] == {"iou": 0.5, "slices": [3]}


FORGED = {
    "depth of a million": {"depth": 10**6},
    "depth 20": {"depth": 20},
    "depth 12": {"depth": 12},
    "k 512": {"k": 512},
    "k 512, depth 6": {"k": 512, "depth": 6},
    "k of 400 digits": {"k": 10**400},
    "k true": {"k": True},
    "65 classes": {"classes": 65},
    "one class": {"classes": 1, "class_names": ["a"]},
    "bn 1": {"bn": 1},
    "long activation": {"activation": "x" * 10_000},
    "pixel size nan": {"pixel_size": math.nan},
    "pixel size inf": {"pixel_size": math.inf},
    "pixel size -1": {"pixel_size": -1},
    "pixel size 1e-9": {"pixel_size": 1e-9},
    "pixel size 1e7": {"pixel_size": 1e7},
    "pixel size true": {"pixel_size": True},
    "pixel size of 400 digits": {"pixel_size": 10**400},
    "threshold nan": {"threshold": math.nan},
    "threshold 1": {"threshold": 1},
    "threshold -0.1": {"threshold": -0.1},
    "three names": {"class_names": ["a", "b", "c"]},
    "a name of 101": {"class_names": ["a", "b" * 101]},
    "a number as name": {"class_names": ["a", 1]},
    "names as one string": {"class_names": "ab"},
    "summary a list": {"summary": [1]},
}


@pytest.mark.parametrize("case", FORGED)
def test_each_field_is_bounded(saved, tmp_path, case):
    path = tmp_path / "m.safetensors"
    path.write_bytes(forge(saved, **FORGED[case]))
    refused = keeps_promise(lambda: core.load_model(path))
    assert isinstance(refused, core.ModelError)
    assert str(path) in str(refused)
    assert "damaged" in str(refused)


@pytest.mark.parametrize("size", [0, 0.1, 1e6])
def test_pixel_sizes_that_can_be(saved, tmp_path, size):
    path = tmp_path / "m.safetensors"
    path.write_bytes(forge(saved, pixel_size=size))
    assert core.load_model(path).pixel_size == size
    assert core.TrainConfig(pixel_size=size).pixel_size == size


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", ["head.bias", "down.0.1.running_mean"])
def test_weights_are_finite(model, tmp_path, one_line, name, value):
    made = model(1, depth=2)
    with torch.no_grad():
        made.net.state_dict()[name][0] = value
    path = made.save(tmp_path / "m.safetensors")
    with one_line(core.ModelError, str(path), name, "finite"):
        core.load_model(path)


def test_weights_are_finite_as_they_are_used(model, tmp_path, one_line):
    """1e300 is finite in 64 bits, and not in 32."""
    made = model(1, depth=2)
    made.net.double()
    with torch.no_grad():
        made.net.head.bias[0] = 1e300
    path = made.save(tmp_path / "m.safetensors")
    with one_line(core.ModelError, str(path), "head.bias", "finite"):
        core.load_model(path)


def test_numbers_of_a_model_are_pythons(model, tmp_path):
    made = core.Model(model(1, depth=2).net, pixel_size=np.float32(8), threshold=np.float64(0.12))
    assert (type(made.pixel_size), type(made.threshold)) == (float, float)
    assert "kdunet_threshold = 0.12f;" in core.export_c(made, tmp_path / "m.c").read_text()
    assert core.load_model(made.save(tmp_path / "m.safetensors")).pixel_size == 8


def test_a_variance_is_not_negative(model, tmp_path, one_line):
    made = model(1, depth=2)
    made.net.state_dict()["down.0.1.running_var"][0] = -1
    path = made.save(tmp_path / "m.safetensors")
    with one_line(core.ModelError, "running_var"):
        core.load_model(path)


HEADERS = {
    "repeated name": lambda text: text.replace(
        b'{"', b'{"head.bias":{"dtype":"F32","shape":[0],"data_offsets":[0,0]},"', 1
    ),
    "nested": lambda text: b'{"__metadata__":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "nested objects": lambda text: b'{"a":' * 30_000 + b"1" + b"}" * 30_000,
    "not UTF-8": lambda text: text.replace(b"head", b"\xff\xfe\xfd\xfc"),
    "a number": lambda text: b"1",
    "many lists": lambda text: b"[" + b"[]," * 60_000 + b"[]]",
}


@pytest.mark.parametrize("case", HEADERS)
def test_headers_made_to_hurt(saved, tmp_path, case):
    path, length = tmp_path / "m.safetensors", int.from_bytes(saved[:8], "little")
    text = HEADERS[case](saved[8 : 8 + length])
    path.write_bytes(len(text).to_bytes(8, "little") + text + saved[8 + length :])
    refused = keeps_promise(lambda: core.load_model(path))
    assert isinstance(refused, core.ModelError)
    assert str(path) in str(refused)


@pytest.mark.parametrize("change", [{"depth": 10**6}, {"depth": 20}, {"depth": 12}, {"k": 512}, {"k": 512, "depth": 6}])
def test_a_small_file_takes_little_time_and_memory(saved, tmp_path, change):
    """In a process of its own, whose peak is that of loading alone."""
    path = tmp_path / "m.safetensors"
    path.write_bytes(forge(saved, **change))
    script = f"""
import resource, sys, time
from napari_kdunet import core
core.KUNet(1), core.load_model
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
before, begin = peak(), time.process_time()
try:
    core.load_model({str(path)!r})
except core.ModelError:
    print(time.process_time() - begin, (peak() - before) / 1024)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60)
    seconds, megabytes = map(float, done.stdout.split())
    assert seconds < 1
    assert megabytes < 200
