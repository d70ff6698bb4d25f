"""Facts of the machine that benchmarks print: its name, what is installed, and how fast it multiplies and adds."""

from __future__ import annotations

import importlib.metadata
import platform
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from napari_kdunet.core.devices import using_threads


def cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def versions(*names: str) -> str:
    found = []
    for name in names:
        try:
            found.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            found.append(f"no {name}")
    return ", ".join(found)


def multiply_add_loop() -> Callable[[], float]:
    """Return a function that measures a thread's multiply-adds a second, on 16 vectors in registers in turn."""
    from llvmlite import ir
    from numba import njit, types
    from numba.extending import intrinsic

    from napari_kdunet.core.kernels.simd import LANES

    chains, turns = 16, 200_000
    number, vector = ir.IntType(64), ir.VectorType(ir.FloatType(), LANES)

    @intrinsic
    def loop(typing: Any, count: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            before, body = builder.block, builder.append_basic_block("body")
            after = builder.append_basic_block("after")
            builder.branch(body)
            builder.position_at_end(body)
            index, values = builder.phi(number), [builder.phi(vector) for _ in range(chains)]
            factor = ir.Constant(vector, [0.999] * LANES)
            following = builder.add(index, ir.Constant(number, 1))
            index.add_incoming(ir.Constant(number, 0), before)
            index.add_incoming(following, body)
            for i, value in enumerate(values):
                value.add_incoming(ir.Constant(vector, [float(i)] * LANES), before)
                product = builder.fmul(value, factor, flags=("contract",))
                value.add_incoming(builder.fadd(product, factor, flags=("contract",)), body)
            builder.cbranch(builder.icmp_signed("<", following, arguments[0]), body, after)
            builder.position_at_end(after)
            total = values[0]
            for value in values[1:]:
                total = builder.fadd(total, value)
            return builder.extract_element(total, ir.Constant(number, 0))

        return types.float32(types.int64), generate

    @njit(nogil=True)
    def run(count: int) -> float:
        return loop(count)

    def rate() -> float:
        begin = time.perf_counter()
        run(turns)
        return turns * chains * LANES / (time.perf_counter() - begin)

    return rate


def matrix_product() -> float:
    a = torch.ones(1024, 1024)
    begin = time.perf_counter()
    torch.mm(a, a)
    return 1024**3 / (time.perf_counter() - begin)


def peak_on(threads: int) -> tuple[str, Callable[[], float]]:
    """Return the name of a loop, and a function that measures its multiply-adds a second on all threads together."""
    try:
        loop = multiply_add_loop()
    except ImportError:

        def product() -> float:
            with using_threads(threads):
                return matrix_product()

        return "a matrix product", product
    pool = ThreadPoolExecutor(threads)
    loop()
    return "multiply-adds in registers", lambda: sum(pool.map(lambda _: loop(), range(threads)))
