"""Speed of prediction: the engines beside each other, and from file to file.

    python benchmarks/prediction.py [--k 1,2,4,8,16,64] [--threads 2] [--rounds 9] [--seconds 20] [--raw RAW]
                                    [--context 0]

**Engines.** The forward pass of a k-Unet with batch normalisation (random weights) on one 768x1024 image, by each
engine at hand: torch as anyone would write it (eager), in other layouts and types, compiled, ONNX Runtime, OpenVINO,
and ours. An engine that is not installed or does not work here is left out, with a note. All take turns within one run:
in its turn an engine computes one image first, since threads of the engine before may still be awake, then at least one
and as many as take 50 ms, one after the other as slices come; medians and minima of these are printed. The largest
error is that of the logits against eager float32. The IoU is that of the two masks at the threshold that makes half of
the pixels foreground, which is the hardest.

**Floor.** The time of the multiply-adds of all convolutions, counted exactly, at the rate that this machine reached in
the same turns with nothing but multiply-adds in registers, on as many threads (without Numba, in a matrix product).

**From file to file.** A zlib-compressed TIFF to a TIFF mask, and OME-Zarr to OME-Zarr, in turns with the engine alone
on images of the same number and size, with the bundled models. At 10 nm the network sees a 5 nm volume shrunk to a
quarter.

**Context.** With ``--context N`` the same networks take turns with ones that also see N slices on each side, with
weights of 0 for these, so that both write the same masks: the engine alone, and from file to file.
"""

from __future__ import annotations

import argparse
import copy
import importlib
import io
import os
import platform
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from machine import cpu_name, peak_on, versions

from napari_kdunet import core
from napari_kdunet.core.devices import cores, using_threads
from napari_kdunet.core.prediction.engine import engine_for, folded
from napari_kdunet.core.prediction.tiler import Tiler
from napari_kdunet.sample import synthetic_em

SIZE = (768, 1024)
TURN = 0.05  # seconds
PACKAGES = ("torch", "numba", "llvmlite", "onnxruntime", "openvino", "numpy", "zarr", "tifffile")
CPU = torch.device("cpu")
Engine = Callable[[torch.Tensor], torch.Tensor]


def multiply_adds(net: core.KUNet, size: tuple[int, int]) -> int:
    """Count the multiply-adds of all convolutions of one image: one for each weight and pixel, padding included."""
    total = 0

    def count(layer: Any, inputs: Any, output: torch.Tensor) -> None:
        nonlocal total
        pixels = output[0, 0].numel() if isinstance(layer, torch.nn.Conv2d) else inputs[0][0, 0].numel()
        total += pixels * layer.weight.numel()

    layers = [m for m in net.modules() if isinstance(m, torch.nn.Conv2d | torch.nn.ConvTranspose2d)]
    hooks = [layer.register_forward_hook(count) for layer in layers]
    small = (net.multiple, net.multiple)
    with torch.inference_mode():
        net(torch.zeros(1, 1, *small))
    for hook in hooks:
        hook.remove()
    return total * (size[0] * size[1]) // (small[0] * small[1])


# Engines


def engines(net: core.KUNet, image: torch.Tensor, threads: int) -> Iterator[tuple[str, Callable[[], Engine]]]:
    """Yield the name of each engine and a function that makes it, or raises where that is not possible."""
    wide = torch.channels_last
    yield "eager float32", lambda: net
    yield "channels_last", lambda: copy.deepcopy(net).to(memory_format=wide)
    yield "folded", lambda: folded(net)
    yield "folded, channels_last", lambda: folded(net).to(memory_format=wide)
    yield "folded, channels_last, bfloat16", lambda: bfloat16(folded(net).to(memory_format=wide))
    yield "torch.compile", lambda: compiled_by_torch(folded(net), image)
    yield "ONNX Runtime", lambda: onnx_runtime(net, image, threads)
    yield "OpenVINO float32", lambda: openvino(net, image, threads, "f32")
    yield "OpenVINO bfloat16", lambda: openvino(net, image, threads, "bf16")
    yield "ours", lambda: compiled(net, threads)


def bfloat16(net: Any) -> Engine:
    half = net.to(torch.bfloat16)
    return lambda image: half(image.to(torch.bfloat16)).float()


def compiled_by_torch(net: Any, image: torch.Tensor) -> Engine:
    made: Any = torch.compile(net)
    made(image)
    return made


def onnx_runtime(net: Any, image: torch.Tensor, threads: int) -> Engine:
    runtime = importlib.import_module("onnxruntime")
    file = io.BytesIO()
    torch.onnx.export(net, (image,), file, dynamo=False)
    options = runtime.SessionOptions()
    options.intra_op_num_threads = threads
    session = runtime.InferenceSession(file.getvalue(), options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda image: torch.from_numpy(session.run(None, {name: image.numpy()})[0])


def openvino(net: Any, image: torch.Tensor, threads: int, precision: str) -> Engine:
    runtime = importlib.import_module("openvino")
    model = runtime.convert_model(net, example_input=image, input=[tuple(image.shape)])
    hints = {"INFERENCE_PRECISION_HINT": precision, "INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY"}
    made = runtime.Core().compile_model(model, "CPU", hints)
    return lambda image: torch.from_numpy(next(iter(made(image.numpy()).values())))


def compiled(net: core.KUNet, threads: int) -> Engine:
    from napari_kdunet.core.prediction.compiled import CompiledUNet

    return CompiledUNet(folded(net), threads)


def engine_table(k: int, arguments: argparse.Namespace) -> None:
    torch.manual_seed(0)
    net = core.KUNet(k)
    with torch.no_grad():  # statistics as after a training
        net.train()(torch.randn(2, 1, 96, 96))
    net.eval()
    image, work = torch.randn(1, 1, *SIZE), multiply_adds(net, SIZE)
    made: dict[str, Engine] = {}
    with torch.inference_mode(), using_threads(arguments.threads):
        for name, make in engines(net, image, arguments.threads):
            try:
                made[name] = make()
                made[name](image)
            except Exception as error:  # noqa: BLE001 - whatever another's engine raises, the others can be measured
                made.pop(name, None)
                print(f"  ({name} left out: {type(error).__name__}: {str(error).splitlines()[0][:90]})")
        expected = net(image).clone()
        seconds, rates = turns(made, image, peak_on(arguments.threads)[1], arguments)
        answers = {name: engine(image).clone() for name, engine in made.items()}
    chosen = type(engine_for(net, CPU, 1)).__name__ == "CompiledUNet"
    floor, eager = work / max(rates), median(seconds["eager float32"])
    print(
        f"\nk = {k}: {work:,} multiply-adds, {work / SIZE[0] / SIZE[1]:,.0f} a pixel; floor {1e3 * floor:.2f} ms ",
        end="",
    )
    print(f"at {max(rates) / 1e9:.0f} billion a second; {len(rates)} turns; used: {'ours' if chosen else 'torch'}\n")
    print("| engine | ms a slice | least | eager / this | this / floor | largest error | IoU of masks |")
    print("|---|---:|---:|---:|---:|---:|---:|")
    for name, taken in seconds.items():
        error = (answers[name] - expected).abs().max().item()
        print(
            f"| {name} | {1e3 * median(taken):.2f} | {1e3 * min(taken):.2f} | {eager / median(taken):.1f} | "
            f"{median(taken) / floor:.2f} | {error:.1e} | {overlap(answers[name], expected):.5f} |",
            flush=True,
        )


def turns(
    made: dict[str, Engine], image: torch.Tensor, peak: Callable[[], float], arguments: argparse.Namespace
) -> tuple[dict[str, list[float]], list[float]]:
    """Let the engines take turns, and return the seconds of each and the peak rates."""
    seconds: dict[str, list[float]] = {name: [] for name in made}
    rates, begin = [], time.perf_counter()
    for i in range(arguments.rounds):
        if i > 1 and time.perf_counter() - begin > arguments.seconds:
            break
        rates.append(peak())
        for name, engine in made.items():
            engine(image)
            turn = time.perf_counter()
            while (start := time.perf_counter()) - turn < TURN:
                engine(image)
                seconds[name].append(time.perf_counter() - start)
    return seconds, rates


def overlap(a: torch.Tensor, b: torch.Tensor) -> float:
    difference = b[0, 1] - b[0, 0]
    level = difference.median()
    one, other = a[0, 1] - a[0, 0] > level, difference > level
    return ((one & other).sum() / (one | other).sum()).item()


# From file to file


def end_to_end(k: int, kind: str, pixel_size: float, raw: Any, folder: Path, arguments: argparse.Namespace) -> None:
    """Print one row: the whole of `predict` to a file, and the engine alone for as many images of that size."""
    model = replace(core.load_model(f"lucchi-{k}unet"), pixel_size=pixel_size)  # the look of a mask counts, too
    volume = core.open_volume(folder / f"raw{kind}")
    tiler = Tiler.of(model, volume, "cpu", arguments.threads)
    image = working_image(tiler, volume)
    whole, alone = [], []
    for _ in range(1 + min(arguments.rounds, 5)):  # the first turn of each compiles
        alone.append(forwards(tiler, image, len(volume), arguments.threads))
        whole.append(files(model, folder, kind, arguments.threads))
    del alone[0], whole[0]
    n, ratio = volume.shape[0], median(w / a for w, a in zip(whole, alone, strict=True))
    print(
        f"| {k} | {kind} | {pixel_size or 'own'} | {tuple(image.shape[2:])} | {1e3 * median(alone) / n:.2f} | "
        f"{1e3 * median(whole) / n:.2f} | {ratio:.2f} |",
        flush=True,
    )


def forwards(tiler: Tiler, image: torch.Tensor, count: int, threads: int) -> float:
    """Return the seconds of the engine alone for `count` images."""
    begin = time.perf_counter()
    with torch.inference_mode(), using_threads(threads):
        for _ in range(count):
            tiler.turns.forward(image)
    return time.perf_counter() - begin


def files(model: core.Model, folder: Path, kind: str, threads: int) -> float:
    """Return the seconds of `predict` from file to file."""
    begin = time.perf_counter()
    source = core.open_volume(folder / f"raw{kind}")
    result = core.predict(model, source, output="labels", device="cpu", threads=threads)
    core.write_volume(result, folder / f"mask{kind}", voxel_size=source.voxel_size, labels=True, overwrite=True)
    return time.perf_counter() - begin


def with_context(model: core.Model, context: int) -> core.Model:
    """Return a model that sees neighbouring slices and gives the same logits, as their weights are 0."""
    net = core.KUNet(**model.form | {"context": context})
    weights = model.net.state_dict()
    first = torch.zeros_like(net.down[0][0].weight)
    first[:, context : context + 1] = weights["down.0.0.weight"]
    net.load_state_dict(weights | {"down.0.0.weight": first})
    return replace(model, net=net)


def context_table(raw: Any, folder: Path, arguments: argparse.Namespace) -> None:
    """Print what neighbouring slices cost: ratios of the times with and without, measured in turns."""
    print(f"\nContext {arguments.context} in parts of the time without, {raw.shape} {raw.dtype}, medians by turns\n")
    print("| k | files | works at, nm | engine alone | file to file |")
    print("|---:|---|---:|---:|---:|")

    for k, pixel_size, kind in product((1, 2, 4), (0.0, 10.0), (".tif", ".zarr")):
        plain = replace(core.load_model(f"lucchi-{k}unet"), pixel_size=pixel_size)
        models, volume = (plain, with_context(plain, arguments.context)), core.open_volume(folder / f"raw{kind}")
        tilers = [Tiler.of(model, volume, "cpu", arguments.threads) for model in models]
        images = [working_image(tiler, volume) for tiler in tilers]
        alone, whole = [], []
        for _ in range(1 + min(arguments.rounds, 5)):
            pairs = zip(tilers, images, strict=True)
            alone.append([forwards(tiler, image, len(raw), arguments.threads) for tiler, image in pairs])
            whole.append([files(model, folder, kind, arguments.threads) for model in models])
        ratios = (median(beside / plain for plain, beside in turns[1:]) for turns in (alone, whole))
        print(
            f"| {k} | {kind} | {pixel_size or 'own'} | " + " | ".join(f"{ratio:.2f}" for ratio in ratios) + " |",
            flush=True,
        )


def working_image(tiler: Tiler, volume: core.Volume) -> torch.Tensor:
    """Return noise of the size that the network sees for a whole slice."""
    seen: list[torch.Size] = []

    def watch(batch: torch.Tensor) -> torch.Tensor:
        seen.append(batch.shape)
        return tiler.turns.forward(batch)

    tiler.by(watch).logits(volume, 0, (0, volume.shape[1]), (0, volume.shape[2]))
    return torch.randn(seen[0])


def end_to_end_table(arguments: argparse.Namespace) -> None:
    if arguments.raw:
        raw = core.open_volume(arguments.raw)[: arguments.slices]
    else:
        raw = np.concatenate([synthetic_em((1, *SIZE), voxel_size=(5.0, 5.0, 5.0), seed=s)[0] for s in range(3)])
        raw = raw[np.arange(arguments.slices) % 3]
    print(f"\nFrom file to file: {raw.shape} {raw.dtype}, median of turns by turns with the engine alone\n")
    print("| k | files | works at, nm | network sees | engine alone, ms a slice | file to file | ratio |")
    print("|---:|---|---:|---|---:|---:|---:|")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for kind in (".tif", ".zarr"):
            core.write_volume(raw, folder / f"raw{kind}", voxel_size=(5.0, 5.0, 5.0))
        for pixel_size in (0.0, 10.0):
            for kind in (".tif", ".zarr"):
                for k in (1, 2, 4):
                    end_to_end(k, kind, pixel_size, raw, folder, arguments)
        if arguments.context:
            context_table(raw, folder, arguments)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--k", default="1,2,4,8,16,64", help="networks, with commas between; empty for none")
    parser.add_argument("--threads", type=int, default=cores(), help="threads of every engine")
    parser.add_argument("--rounds", type=int, default=9, help="turns of each engine, at most")
    parser.add_argument("--seconds", type=float, default=20.0, help="after which no more turns are begun for a network")
    parser.add_argument("--raw", help="8-bit volume for the way from file to file; a synthetic one if not given")
    parser.add_argument("--slices", type=int, default=16, help="of it; 0 leaves this part out")
    parser.add_argument("--context", type=int, default=0, help="slices on each side; 0 leaves this part out")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")  # those of exporters
    print(f"CPU: {cpu_name()}, {cores()} cores; load before {os.getloadavg()[0]:.1f}")
    print(f"{versions(*PACKAGES)}; Python {platform.python_version()}, {platform.system()}")
    print(f"{SIZE[0]}x{SIZE[1]}, {arguments.threads} threads; floor by {peak_on(arguments.threads)[0]}")
    for k in filter(None, arguments.k.split(",")):
        engine_table(int(k), arguments)
    if arguments.slices:
        end_to_end_table(arguments)


if __name__ == "__main__":
    main()
