"""What the command line says of itself, and that each setting has its option."""

from __future__ import annotations

import dataclasses
import re
import subprocess
import sys

import pytest

from command_line import MODULE, run
from napari_kdunet import __version__, core
from napari_kdunet.core.config.training import PAPER


def test_version_and_module():
    assert run("--version") == (0, f"{__version__}\n", "")
    assert subprocess.check_output([*MODULE, "--version"], text=True) == f"{__version__}\n"


def test_help_does_not_import_torch():
    code = "import sys, napari_kdunet.cli.commands; sys.exit('torch' in sys.modules or 'scipy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    "command",
    ["demo", "train", "distill", "adapt", "predict", "objects", "evaluate", "info", "export", "study", "sweep"],
)
def test_help(command, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    result = run(command, "--help")
    arguments = {
        "demo": "",
        "train": " RAW LABELS [RAW LABELS]...",
        "distill": " TEACHER RAW [LABELS] [RAW LABELS]...",
        "adapt": " MODEL RAW",
        "predict": " MODEL RAW...",
        "objects": " MASK|PROB",
        "evaluate": " PRED LABELS",
        "info": " MODEL",
        "export": " MODEL",
        "study": " NAME [RAW] [LABELS]",
        "sweep": " TEACHER RAW LABELS",
    }
    assert result.code == 0
    assert result.err == ""
    (usage,) = re.findall(r"Usage: (.*?) *$", result.out, re.MULTILINE)
    assert usage == f"napari-kdunet {command} [OPTIONS]{arguments[command]}"


def test_nothing_to_do_is_help():
    result = run()
    assert result.code == 2
    assert "Commands" in result.out
    assert result.err == ""


CONFIGS = [("train", core.TrainConfig), ("distill", core.DistillConfig)]


@pytest.mark.parametrize(("command", "config"), CONFIGS)
def test_each_setting_has_an_option_with_its_unit_bounds_and_default(command, config, monkeypatch):
    monkeypatch.setenv("COLUMNS", "250")
    lines = run(command, "--help").out.splitlines()
    for spec in dataclasses.fields(config):
        flag = "--" + spec.name.replace("_", "-")
        (line,) = (line for line in lines if flag in line.split())
        meta = spec.metadata
        assert meta["help"].rstrip(".") in line
        assert meta["unit"] in line
        for name, sign in (("ge", ">="), ("gt", ">"), ("le", "<="), ("lt", "<")):
            assert (f"{sign} {meta[name]:g}" if isinstance(meta.get(name), float) else "") in line
            assert (f"{sign} {meta[name]}" if isinstance(meta.get(name), int) else "") in line
        if spec.type == "bool":
            assert f"--no-{flag[2:]}" in line
            assert f"default {'on' if spec.default else 'off'})" in line
        elif spec.default is not None:
            shown = f"{spec.default:g}" if isinstance(spec.default, float) else spec.default
            assert f"default {shown})" in line
        assert all(str(choice) in line for choice in meta["choices"])


def test_adapt_shows_the_defaults_that_it_uses(monkeypatch):
    monkeypatch.setenv("COLUMNS", "250")
    shown = run("adapt", "--help").out
    lines = {word: line for line in shown.splitlines() for word in line.split() if word.startswith("--")}
    changed = {"--intensity": "0.5", "--teacher-views": "4", "--confidence": "1", "--tau": "1", "--rounds": "4"}
    for option, default in changed.items():
        assert f"default {default})" in lines[option]
    assert "--boundary" not in lines, "an adaptation learns the foreground alone"


def other_value(spec):
    """A value of a setting that is not its default."""
    meta = spec.metadata
    if spec.type == "bool":
        return not spec.default
    if meta["choices"]:
        return meta["choices"][-1]
    if spec.type.startswith("int"):
        return (meta["ge"] if spec.default is None else spec.default) + (16 if spec.name == "patch" else 1)
    return (spec.default or 1.0) / 2


@pytest.fixture
def received(monkeypatch):
    """The settings that training is asked for, which does not take place."""
    configs = []

    def stand_in(*args, **kwargs):
        configs.append(next(a for a in args if isinstance(a, core.TrainConfig)))
        raise core.ConfigError("received")

    monkeypatch.setattr(core, "iter_train", stand_in)
    monkeypatch.setattr(core, "iter_distill", stand_in)
    return configs


@pytest.mark.parametrize(("command", "config"), CONFIGS)
def test_each_option_sets_its_setting(command, config, data, tmp_path, received):
    inputs = [data / "raw.tif", data / "labels.tif"] if command == "train" else ["teacher", data / "raw.tif"]
    start = [command, *inputs, "-o", tmp_path / "m.safetensors"]
    run(*start)
    assert received == [config()]
    for spec in dataclasses.fields(config):
        value, flag = other_value(spec), spec.name.replace("_", "-")
        run(*start, *([f"--{flag}" if value else f"--no-{flag}"] if spec.type == "bool" else [f"--{flag}", value]))
        assert received.pop() == config(**{spec.name: value})
    run(*start, "--slices", "3,5:7", "--class-weights", "1,4")
    assert received.pop() == config(slices=(3, 5, 6), class_weights=(1.0, 4.0))
    run(*start, "--paper", "--lr", 0.5)
    assert received.pop() == config(**{**PAPER, "lr": 0.5})
