"""A TorchScript file is a program of its maker's: it is not opened unless somebody says to trust it."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch
from torch import nn

from napari_kdunet import core

CONFIG = core.DistillConfig(k=1, depth=1, patch=32, steps=2, batch=2, validations=1, threads=1, pixel_size=0.0)


class Writer(nn.Module):
    """Writes bytes of its choice to a file of its choice while it is asked for logits."""

    def __init__(self, path: str, size: int) -> None:
        super().__init__()
        self.path, self.size = path, size

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        written = torch.from_file(self.path, shared=True, size=self.size, dtype=torch.uint8).fill_(80)
        return torch.cat((x, -x), 1) + 0 * written.sum()  # what is not used is not computed


class Endless(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        while bool((x == x).all()):
            x = x + 0
        return torch.cat((x, -x), 1)


def scripted(net: nn.Module, path: Path) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.script(net).save(path)
    return path


@pytest.mark.parametrize("name", ["t.pt", "t.pth", "t.ts", "T.PT"])
def test_a_file_that_would_write_is_not_opened(blobs, tmp_path, monkeypatch, one_line, name):
    target = tmp_path / "startup.sh"
    path = scripted(Writer(str(target), 64), tmp_path / name)
    opened = []
    monkeypatch.setattr(torch.jit, "load", lambda *args, **kwargs: opened.append(args))
    with one_line(core.ModelError, str(path), "can run code", ".onnx", "--trust-teacher"):
        core.iter_distill(path, *blobs(), CONFIG)
    with one_line(core.ModelError, str(path), "trust=True"):
        core.distill(str(path), *blobs(), CONFIG)
    assert not target.exists()
    assert not opened


def test_what_trust_means(blobs, tmp_path):
    """The attack is real: this is why the file is refused without `trust`."""
    target = tmp_path / "startup.sh"
    path = scripted(Writer(str(target), 64), tmp_path / "t.pt")
    core.iter_distill(path, *blobs(), CONFIG, trust=True)
    assert target.read_bytes() == b"P" * 64


def test_an_endless_file_is_not_run(blobs, tmp_path, one_line):
    path = scripted(Endless(), tmp_path / "t.pt")
    with one_line(core.ModelError, str(path), "can run code"):
        core.iter_distill(path, *blobs(), CONFIG)
