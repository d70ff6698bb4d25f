"""Exported models beside each other and beside napari's engine: size, speed and IoU.

    OMP_NUM_THREADS=1 python benchmarks/export.py RAW LABELS --calibrate RAW [--models lucchi-2unet,...] [--rounds 9]

Models are scored on RAW and LABELS, and int8 learns its ranges from the images of --calibrate. Each arm computes, on
one thread, the probability of one 1024 x 1024 image at the model's working pixel size, from raw values: it standardises
them and applies the network. All arms of a model take turns, so that other load on the machine affects them alike;
printed are the median and the least of the rounds. The IoU is that of RAW at its own pixel size.

Arms: the engine of `core.predict` (Numba); ONNX Runtime with float32, float16 weights and int8; the file of C by gcc
and by clang (-O3 -march=native); that C as WebAssembly, as in the web page, and onnxruntime-web (its WebAssembly with
vectors), both in Chromium. The last is fetched from npm into a temporary folder, or is taken from --web, a folder
where `npm install onnxruntime-web` was run. An arm that is not installed, or for which the model is too large, is left
out.
"""

from __future__ import annotations

import argparse
import base64
import ctypes
import json
import re
import shutil
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from machine import cpu_name, versions

import napari_kdunet
from napari_kdunet import core
from napari_kdunet.sample import synthetic_em

SIDE = 1024
WEB = Path(napari_kdunet.__file__).parent / "core/export/web"
RUNTIME = ("ort.wasm.min.js", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm")
Arm = Callable[[np.ndarray, float], np.ndarray]  # from an image and its pixel size (nm) to probabilities
PAGE = """<!doctype html><script src="ort.wasm.min.js"></script><script>%s</script><script>
const bytes = (text) => Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
let engine, session;
async function prepare(page, onnx) {
  if (page) {
    const model = JSON.parse(page.model);
    engine = await Engine.open(bytes(page.wasm), new Float32Array(bytes(page.weights).buffer), model);
  }
  if (onnx) {
    ort.env.wasm.numThreads = 1;
    session = await ort.InferenceSession.create(onnx, { executionProviders: ["wasm"], graphOptimizationLevel: "all" });
  }
}
async function compute(arm, image, side, pixel) {
  const data = Float32Array.from(bytes(image));
  const shape = [data.length / side, side];
  const before = performance.now();
  const out = arm === "wasm" ? await engine.segment(new Slice(data, ...shape), [pixel, pixel], async () => true)
    : (await session.run({
        image: new ort.Tensor("float32", data, [1, 1, ...shape]),
        pixel_size: new ort.Tensor("float32", [pixel, pixel], [2]),
      }, ["probability"])).probability.data;
  const milliseconds = performance.now() - before;
  const rounded = Uint16Array.from(out, (p) => Math.round(p * 65535));
  let text = "";
  const all = new Uint8Array(rounded.buffer);
  for (let i = 0; i < all.length; i += 8192) text += String.fromCharCode(...all.subarray(i, i + 8192));
  return [milliseconds, btoa(text)];
}
</script>"""


class Timed:
    """An arm and the milliseconds that it took; an arm that times itself leaves them in `own`."""

    def __init__(self, apply: Arm, size: int) -> None:
        self.apply, self.size, self.own = apply, size, None
        self.times: list[float] = []

    def turn(self, image: np.ndarray, pixel: float) -> None:
        self.apply(image, pixel)  # regain the caches and memory that the arms before have taken
        before, self.own = time.perf_counter(), None
        self.apply(image, pixel)
        self.times.append(self.own or 1000 * (time.perf_counter() - before))


class Compiled:
    """A model's C file, compiled as a library."""

    def __init__(self, source: Path, compiler: str) -> None:
        library = source.with_suffix(f".{compiler}.so")
        flags = ["-std=c99", "-O3", "-march=native", "-shared", "-fPIC"]
        subprocess.run([compiler, *flags, source, "-o", library, "-lm"], check=True)
        self.code = ctypes.CDLL(str(library))
        self.code.kdunet_bytes.restype = ctypes.c_size_t
        self.memory = np.zeros(0, np.uint8)

    def __call__(self, image: np.ndarray, pixel: float) -> np.ndarray:
        image, size = image.astype(np.float32), ctypes.c_double(pixel)
        needed = self.code.kdunet_bytes(*image.shape, size, size)
        if needed > len(self.memory):
            self.memory = np.zeros(needed, np.uint8)
        at, room = (ctypes.c_void_p(each.ctypes.data) for each in (image, self.memory))
        assert self.code.kdunet_probability(at, *image.shape, size, size, None, at, room) == 0
        return image


class Chromium:
    """Browser that computes two of the arms."""

    def __init__(self, folder: Path, address: str) -> None:
        from selenium import webdriver

        options = webdriver.ChromeOptions()
        options.binary_location = shutil.which("chromium") or shutil.which("google-chrome") or ""
        for switch in ("headless=new", "no-sandbox", "disable-dev-shm-usage", "disable-gpu"):
            options.add_argument(f"--{switch}")
        self.driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(shutil.which("chromedriver")))
        self.driver.set_script_timeout(600)
        self.folder, self.address = folder, address
        self.version = self.driver.capabilities["browserVersion"]
        (folder / "index.html").write_text(PAGE % (WEB / "engine.js").read_text())

    def prepare(self, page: Path | None, onnx: Path | None) -> None:
        self.driver.get(self.address)
        found = {}
        if page is not None:
            text = page.read_text()
            found = {each: re.search(rf'id="{each}">([^<]*)<', text)[1] for each in ("model", "wasm", "weights")}
        self._run("prepare(arguments[0], arguments[1])", found or None, onnx and onnx.name)

    def compute(self, arm: str, image: np.ndarray, pixel: float) -> tuple[float, np.ndarray]:
        content = base64.b64encode(np.ascontiguousarray(image).tobytes()).decode()
        call = "compute(arguments[0], arguments[1], arguments[2], arguments[3])"
        milliseconds, text = self._run(call, arm, content, image.shape[1], pixel)
        return milliseconds, np.frombuffer(base64.b64decode(text), "<u2").reshape(image.shape) / np.float32(65535)

    def _run(self, call: str, *arguments: Any) -> Any:
        script = f"const done = arguments[arguments.length - 1]; {call}.then((v) => done([v]), (e) => done(String(e)))"
        answer = self.driver.execute_async_script(script, *arguments)
        if isinstance(answer, str):
            raise RuntimeError(answer)
        return answer[0]


@contextmanager
def browser(folder: Path, web: Path | None) -> Iterator[Chromium | None]:
    """Yield Chromium on a page that is served by this process; None where it is not installed."""
    if not shutil.which("chromedriver"):
        yield None
        return
    if web is None and shutil.which("npm"):
        web = folder / "npm"
        web.mkdir()
        command = ["npm", "install", "--silent", "--no-audit", "--no-fund", "--ignore-scripts", "onnxruntime-web"]
        subprocess.run(command, cwd=web, check=True)
    for name in RUNTIME if web is not None else ():
        shutil.copy(web / "node_modules/onnxruntime-web/dist" / name, folder)
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    started = Chromium(folder, f"http://127.0.0.1:{server.server_port}/index.html")
    try:
        yield started
    finally:
        started.driver.quit()
        server.shutdown()


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *arguments: Any) -> None:
        pass


def arms_of(
    name: str, model: core.Model, folder: Path, calibrate: core.Volume, chromium: Chromium | None
) -> dict[str, Timed]:
    paths = {
        kind: folder / f"{name}.{kind}" for kind in ("safetensors", "onnx", "float16.onnx", "int8.onnx", "c", "html")
    }
    model.save(paths["safetensors"])

    def size(kind: str) -> int:
        return paths[kind].stat().st_size

    def engine(image: np.ndarray, pixel: float) -> np.ndarray:
        return np.asarray(core.predict(model, as_volume(image, pixel), statistics="model", views=1, threads=1))[0]

    def runtime(opened: core.OnnxModel, image: np.ndarray, pixel: float) -> np.ndarray:
        return np.asarray(opened.predict(as_volume(image, pixel), threads=1))[0]

    arms = {"napari's engine": Timed(engine, size("safetensors"))}
    core.export_onnx(model, paths["onnx"])
    core.export_onnx(model, paths["float16.onnx"], "float16")
    core.export_onnx(model, paths["int8.onnx"], "int8", calibrate=calibrate)
    for precision, kind in (("float32", "onnx"), ("float16", "float16.onnx"), ("int8", "int8.onnx")):
        arms[f"ONNX Runtime, {precision}"] = Timed(partial(runtime, core.OnnxModel.open(paths[kind])), size(kind))
    tiny = True
    try:
        core.export_c(model, paths["c"])
        core.export_web(model, paths["html"])
    except core.ModelError:
        tiny = False
    for compiler in ("gcc", "clang") if tiny else ():
        if shutil.which(compiler):
            arms[f"C, {compiler}"] = Timed(Compiled(paths["c"], compiler), size("c"))
    if chromium is not None:
        has_runtime = (folder / RUNTIME[0]).exists()
        chromium.prepare(paths["html"] if tiny else None, for_web(paths["onnx"]) if has_runtime else None)
        for title, arm, kind in (("C, WebAssembly", "wasm", "html"), ("onnxruntime-web", "ort", "onnx")):
            if tiny if arm == "wasm" else has_runtime:
                more = sum((folder / each).stat().st_size for each in RUNTIME) if arm == "ort" else 0
                arms[title] = in_browser(chromium, arm, size(kind) + more)
    return arms


def for_web(onnx: Path) -> Path:
    """Write the graph with the pixel size as an input without a default: onnxruntime-web takes no others."""
    import onnx as library

    graph = library.load(onnx)
    kept = [each for each in graph.graph.initializer if each.name != "pixel_size"]
    del graph.graph.initializer[:]
    graph.graph.initializer.extend(kept)
    path = onnx.with_suffix(".web.onnx")
    library.save(graph, path)
    return path


def in_browser(chromium: Chromium, arm: str, size: int) -> Timed:
    def apply(image: np.ndarray, pixel: float) -> np.ndarray:
        timed.own, probability = chromium.compute(arm, image, pixel)
        return probability

    timed = Timed(apply, size)
    return timed


def as_volume(image: np.ndarray, pixel: float) -> core.Volume:
    return core.open_volume(image[None], voxel_size=(pixel,) * 3)


def iou(arm: Timed, raw: core.Volume, labels: np.ndarray, threshold: float) -> float:
    masks = [arm.apply(raw[z], raw.voxel_size[2]) > threshold for z in range(len(raw))]
    return core.evaluate(np.stack(masks), labels).iou


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("raw")
    parser.add_argument("labels")
    parser.add_argument("--calibrate", required=True)
    parser.add_argument("--models", default="lucchi-1unet,lucchi-2unet,lucchi-4unet,mito-16unet")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--slices", type=int, help="score the first so many")
    parser.add_argument("--web", type=Path)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    raw, labels = core.open_volume(given.raw), np.asarray(core.open_volume(given.labels)[: given.slices])
    raw = raw if given.slices is None else core.open_volume(raw[: given.slices], voxel_size=raw.voxel_size)
    image = synthetic_em((1, SIDE, SIDE))[0][0]
    print(f"{cpu_name()}; {versions('numba', 'onnxruntime', 'torch')}")
    rows = []
    with tempfile.TemporaryDirectory() as name, browser(Path(name), given.web) as chromium:
        print(f"Chromium {chromium.version}" if chromium else "no Chromium")
        for which in given.models.split(","):
            model = core.load_model(which)
            if model.adapts:  # an exported model has one mean and variance
                model = core.adapt_statistics(model, raw)
            arms = arms_of(which, model, Path(name), core.open_volume(given.calibrate), chromium)
            for arm in arms.values():  # warm up: just-in-time compilers find the hot code
                for _ in range(3):
                    arm.apply(image, model.pixel_size)
            for _ in range(given.rounds):
                for arm in arms.values():
                    arm.turn(image, model.pixel_size)
            for title, arm in arms.items():
                scored = iou(arm, raw, labels, model.threshold)
                milliseconds = [each / (SIDE * SIDE / 1e6) for each in arm.times]
                row = {"model": which, "arm": title, "kB": arm.size / 1000, "ms": median(milliseconds)}
                rows.append(row | {"least_ms": min(milliseconds), "iou": scored})
                print(
                    f"{which:14} {title:22} {row['kB']:8.0f} kB {row['ms']:7.0f} ms (least {min(milliseconds):.0f})"
                    f"  IoU {scored:.3f}",
                    flush=True,
                )
    if given.json:
        given.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
