"""Register blocking: the innermost loops of the compiled network, as LLVM vector code for this machine.

A register tile is a block of output pixels, some channels by some rows by some vectors along x, that stays in
registers while the loop runs over the input channels. In Numba's own loops LLVM chooses what stays in registers, and
they take a third longer. All planes lie in one flat float32 array and are addressed by their offsets in it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import llvmlite.binding as llvm
from llvmlite import ir

from napari_kdunet.core.kernels.jit import intrinsic, types

__all__ = ["LANES", "VECTORS", "atomic_add", "convolve", "enlarge", "shrink"]


def _host() -> tuple[int, int]:
    """Return this machine's lanes in a float32 vector, and the width in vectors of a tile that fits its registers."""
    has = llvm.get_host_cpu_features()
    if has.get("avx512f"):
        return 16, 4
    return (8, 2) if has.get("avx") else (4, 4 if has.get("neon") else 2)


LANES, VECTORS = _host()

_FLOAT, _INT, _INDEX = ir.FloatType(), ir.IntType(64), ir.IntType(32)
_VECTOR = ir.VectorType(_FLOAT, LANES)
_PREFETCH_TILES = 2  # distance, below the current tile, of what is prefetched
_FUSED = ("contract",)  # a multiplication and an addition may be one instruction


class _Code:
    """Emits the few vector operations that the tiles need."""

    def __init__(self, builder: Any) -> None:
        self.b = builder

    def at(self, pointer: Any, *offsets: Any) -> Any:
        for offset in offsets:
            pointer = self.b.gep(pointer, [_number(offset) if isinstance(offset, int) else offset])
        return pointer

    def times(self, value: Any, factor: int) -> Any:
        return self.b.mul(value, _number(factor))

    def load(self, pointer: Any) -> Any:
        return self.b.load(self.b.bitcast(pointer, _VECTOR.as_pointer()), align=4)

    def store(self, vector: Any, pointer: Any) -> None:
        self.b.store(vector, self.b.bitcast(pointer, _VECTOR.as_pointer()), align=4)

    def spread(self, scalar: Any) -> Any:
        """Return a vector with one value in all lanes."""
        nothing = ir.Constant(_VECTOR, ir.Undefined)
        one = self.b.insert_element(nothing, scalar, ir.Constant(_INDEX, 0))
        return self.pick(one, nothing, [0] * LANES)

    def pick(self, a: Any, b: Any, lanes: list[int]) -> Any:
        """Return the given `lanes` of two vectors laid end to end."""
        return self.b.shuffle_vector(a, b, ir.Constant(ir.VectorType(_INDEX, LANES), lanes))

    def larger(self, a: Any, b: Any) -> Any:
        return self.b.select(self.b.fcmp_ordered(">", a, b), a, b)

    def prefetch(self, pointer: Any) -> None:
        """Bring what is read some thousand instructions later into the L1 cache."""
        name, address = "llvm.prefetch.p0", ir.PointerType()
        function = self.b.module.globals.get(name) or ir.Function(
            self.b.module, ir.FunctionType(ir.VoidType(), [address, *[_INDEX] * 3]), name
        )
        self.b.call(function, [self.b.bitcast(pointer, address), *(ir.Constant(_INDEX, n) for n in (0, 3, 1))])

    def multiply_add(self, a: Any, b: Any, c: Any) -> Any:
        return self.b.fadd(self.b.fmul(a, b, flags=_FUSED), c, flags=_FUSED)


def _number(value: int) -> Any:
    return ir.Constant(_INT, value)


def _data(context: Any, builder: Any, kind: Any, array: Any) -> Any:
    return context.make_array(kind)(context, builder, array).data


def _sums(
    code: _Code, source: Any, plane: Any, row: Any, weights: Any, inputs: Any, shape: tuple[int, int, int], taps: int
) -> dict[tuple[int, int, int], Any]:
    """Emit a convolution with `taps` x `taps` weights, plus bias, for a tile of (channels, rows, vectors).

    The weights are one bias for each channel, then (inputs, taps, taps, channels).
    """
    channels, rows, vectors = shape
    builder, reach = code.b, taps // 2
    cells = [(c, r, v) for c in range(channels) for r in range(rows) for v in range(vectors)]
    biases = [code.spread(builder.load(code.at(weights, c))) for c in range(channels)]
    before, loop, after = builder.block, builder.append_basic_block("input"), builder.append_basic_block("sums")
    builder.branch(loop)
    builder.position_at_end(loop)
    index, sums = builder.phi(_INT), {cell: builder.phi(_VECTOR) for cell in cells}
    index.add_incoming(_number(0), before)
    for cell in cells:
        sums[cell].add_incoming(biases[cell[0]], before)
    start = dict(sums)
    image = code.at(source, builder.mul(index, plane))
    kernel = code.at(weights, channels, code.times(index, taps * taps * channels))
    for dy in range(rows if taps > 1 else 0):  # the hardware prefetches along a row, not from row to row
        for v in range(vectors):
            code.prefetch(code.at(image, code.times(row, _PREFETCH_TILES * rows + dy + reach), v * LANES))
    for dy in range(rows + taps - 1):  # for each input row, loaded once for all output rows that it adds to
        line = code.at(image, code.times(row, dy - reach))
        for dx in range(taps):
            pixels = [code.load(code.at(line, v * LANES + dx - reach)) for v in range(vectors)]
            for c, r in [(c, r) for r in range(rows) if 0 <= dy - r < taps for c in range(channels)]:
                weight = code.spread(builder.load(code.at(kernel, ((dy - r) * taps + dx) * channels + c)))
                for v in range(vectors):
                    sums[c, r, v] = code.multiply_add(pixels[v], weight, sums[c, r, v])
    following = builder.add(index, _number(1))
    index.add_incoming(following, builder.block)
    for cell in cells:
        start[cell].add_incoming(sums[cell], builder.block)
    builder.cbranch(builder.icmp_signed("<", following, inputs), loop, after)
    builder.position_at_end(after)
    return sums


@intrinsic(prefer_literal=True)  # type: ignore[untyped-decorator,unused-ignore]
def convolve(
    typing: Any, memory: Any, weights: Any, source: Any, target: Any, kernel: Any, slope: Any, shape: Any, taps: Any
) -> tuple[Any, Callable[..., Any]]:
    """Compute a tile of a convolution, then ``max(x, slope x)``: LeakyReLU, ReLU for 0, nothing for 1.

    ``source`` is (at, plane, row, inputs) and ``target`` (at, plane, row): the offset of the tile, the strides of a
    plane and a row, and the number of input channels. ``kernel`` is the offset of the tile's weights in `weights`.
    ``shape``, the tile's (channels, rows, vectors), and ``taps`` are literals.
    """
    size, width = tuple(n.literal_value for n in shape), taps.literal_value

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        code, (memory_, weights_, source_, target_, kernel_, slope_, *_) = _Code(builder), arguments
        data = _data(context, builder, signature.args[0], memory_)
        parameters = code.at(_data(context, builder, signature.args[1], weights_), kernel_)
        at, plane, row, inputs = (builder.extract_value(source_, i) for i in range(4))
        sums = _sums(code, code.at(data, at), plane, row, parameters, inputs, size, width)
        at, plane, row = (builder.extract_value(target_, i) for i in range(3))
        steep = code.spread(slope_)
        for (c, r, v), value in sums.items():
            active = code.larger(value, builder.fmul(value, steep))
            code.store(active, code.at(data, at, code.times(plane, c), code.times(row, r), v * LANES))
        return context.get_dummy_value()

    return types.void(memory, weights, source, target, kernel, slope, shape, taps), generate


@intrinsic(prefer_literal=True)  # type: ignore[untyped-decorator,unused-ignore]
def enlarge(
    typing: Any, memory: Any, weights: Any, source: Any, target: Any, kernel: Any, vectors: Any
) -> tuple[Any, Callable[..., Any]]:
    """Compute a tile of one row and one channel of a 2x2 transposed convolution of stride 2.

    ``source`` is (at, plane, row, inputs) as in `convolve`; at ``target``, (at, row), two rows of twice as many pixels
    are written. The weights are four biases, then (inputs, 2, 2).
    """
    count = vectors.literal_value
    low = [lane // 2 + LANES * (lane % 2) for lane in range(LANES)]
    high = [lane + LANES // 2 for lane in low]

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        code, (memory_, weights_, source_, target_, kernel_, _) = _Code(builder), arguments
        data = _data(context, builder, signature.args[0], memory_)
        parameters = code.at(_data(context, builder, signature.args[1], weights_), kernel_)
        at, plane, row, inputs = (builder.extract_value(source_, i) for i in range(4))
        sums = _sums(code, code.at(data, at), plane, row, parameters, inputs, (4, 1, count), 1)
        at, row = (builder.extract_value(target_, i) for i in range(2))
        for dy in range(2):
            for v in range(count):
                for half, lanes in enumerate((low, high)):
                    pair = code.pick(sums[2 * dy, 0, v], sums[2 * dy + 1, 0, v], lanes)
                    code.store(pair, code.at(data, at, code.times(row, dy), (2 * v + half) * LANES))
        return context.get_dummy_value()

    return types.void(memory, weights, source, target, kernel, vectors), generate


@intrinsic  # type: ignore[untyped-decorator,unused-ignore]
def shrink(typing: Any, memory: Any, source: Any, row: Any, target: Any) -> tuple[Any, Callable[..., Any]]:
    """Write the largest of each 2x2 pixels: one vector at `target`, from two at `source` and two a row further on."""
    even = [2 * lane for lane in range(LANES)]
    odd = [lane + 1 for lane in even]

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        code, (memory_, source_, row_, target_) = _Code(builder), arguments
        data = _data(context, builder, signature.args[0], memory_)
        first = code.at(data, source_)
        a, b = (
            code.larger(code.load(code.at(first, i * LANES)), code.load(code.at(first, row_, i * LANES)))
            for i in (0, 1)
        )
        code.store(code.larger(code.pick(a, b, even), code.pick(a, b, odd)), code.at(data, target_))
        return context.get_dummy_value()

    return types.void(memory, source, row, target), generate


@intrinsic  # type: ignore[untyped-decorator,unused-ignore]
def atomic_add(typing: Any, counters: Any, index: Any, amount: Any) -> tuple[Any, Callable[..., Any]]:
    """Add to an int64 counter that threads share, sequentially consistent, and return the value before."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        pointer = _Code(builder).at(_data(context, builder, signature.args[0], arguments[0]), arguments[1])
        return builder.atomic_rmw("add", pointer, arguments[2], "seq_cst")

    return types.int64(counters, types.int64, types.int64), generate
