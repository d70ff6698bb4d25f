"""A k-Unet as an ONNX graph: the network alone, or all of a prediction from raw values to a mask.

The graph is written node by node from the folded weights, so that height and width are free and nothing depends on how
an exporter traces a network.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from napari_kdunet.core.errors import ModelError
from napari_kdunet.core.networks.unet import KUNet
from napari_kdunet.core.volumes.resampling import LARGEST_DENOMINATOR

__all__ = ["network_graph", "prediction_graph"]

_OPSET = 17  # version of the operators: in onnxruntime from 1.12 on, and in browsers
_IR = 8  # version of the file format that goes with these operators


class _Graph:
    """A graph in the making. An operand is the name of a tensor, or an array, which becomes a constant.

    `half` stores the weights in 16 bits; the nodes get them as float32 either way.
    """

    def __init__(self, half: bool = False) -> None:
        self.half = half
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    def add(self, operator: str, *operands: str | NDArray[Any], name: str = "", **attributes: Any) -> str:
        """Append a node, and return the name of its output."""
        inputs = [each if isinstance(each, str) else self.constant(each) for each in operands]
        output = name or f"{operator.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, inputs, [output], name=f"node_{output}", **attributes))
        return output

    def constant(self, value: NDArray[Any], name: str = "") -> str:
        """Append a constant, and return its name."""
        name = name or f"constant_{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(value.copy(order="C"), name))
        return name

    def weights(self, layer: nn.Conv2d | nn.ConvTranspose2d, name: str) -> list[str]:
        """Append weight and bias of a layer, and return their names."""
        names = []
        for kind in ("weight", "bias"):
            value, full = getattr(layer, kind).detach().cpu().numpy(), f"{name}.{kind}"
            if self.half:
                stored = self.constant(_halved(value), f"{full}.float16")
                names.append(self.add("Cast", stored, name=full, to=TensorProto.FLOAT))
            else:
                names.append(self.constant(value, full))
        return names

    def model(self, inputs: dict[str, tuple[int, list[Any]]], outputs: dict[str, int]) -> onnx.ModelProto:
        """Return the finished model; `inputs` are types and shapes, `outputs` the types of (N, C, Y, X) tensors."""
        given = [helper.make_tensor_value_info(name, kind, shape) for name, (kind, shape) in inputs.items()]
        made = [helper.make_tensor_value_info(name, kind, ["n", "c", "y", "x"]) for name, kind in outputs.items()]
        graph = helper.make_graph(self.nodes, "kdunet", given, made, self.constants)
        opset = [helper.make_opsetid("", _OPSET)]
        return helper.make_model(graph, producer_name="napari-kdunet", opset_imports=opset, ir_version=_IR)


def _halved(weights: NDArray[np.float32]) -> NDArray[np.float16]:
    largest, most = float(np.abs(weights).max()), float(np.finfo(np.float16).max)
    if largest > most:
        raise ModelError(f"a weight is {largest:.3g}, but float16 only goes up to {most:g}: choose float32.")
    return weights.astype(np.float16)


def network_graph(net: KUNet) -> onnx.ModelProto:
    """Return the network alone, from (N, 1, Y, X) standardised working pixels to (N, classes, Y, X) probabilities.

    Parameters
    ----------
    net : KUNet
        Network with fused batch normalisation: see `engine.folded`.
    """
    graph = _Graph()
    graph.add("Softmax", _network(graph, net, "image"), name="probability", axis=1)
    return graph.model({"image": (TensorProto.FLOAT, ["n", 1, "y", "x"])}, {"probability": TensorProto.FLOAT})


def prediction_graph(
    net: KUNet, pixel_size: float, threshold: float, half: bool = False, boundary: bool = False
) -> onnx.ModelProto:
    """Return a whole prediction, as `core.predict` computes it for slices without padding around the sample.

    Inputs: `image` (N, 1, Y, X) float32, raw values. The others have defaults and may be left out: `pixel_size` (2,)
    float32, nm along Y and X, by default the working pixel size; `mean` and `std`, float32, of the sample in raw
    values, by default those of each image; `threshold`, float32. Outputs: `probability` of the foreground (N, 1, Y, X)
    float32, and `mask` (N, 1, Y, X) uint8, 0 for the background.

    Parameters
    ----------
    net : KUNet
        Network with fused batch normalisation, and one channel of log odds in place of two classes: see `engine`.
    pixel_size : float
        Working pixel size in nm; 0 is the image's own.
    threshold : float
        Default of the input `threshold`.
    half : bool
        Whether to store the weights in 16 bits.
    boundary : bool
        Whether the last class is the outlines of objects: then the mask is 0 and 1, and there is a third output,
        `boundary` (N, 1, Y, X) float32, the probability of the outlines.
    """
    graph = _Graph(half)
    graph.constant(np.full(2, pixel_size, np.float32), "pixel_size")
    for name, value in (("mean", np.nan), ("std", np.nan), ("threshold", threshold)):
        graph.constant(np.array(value, np.float32), name)
    up, down = _ratio(graph, pixel_size)
    unit = _unit(graph, up, down, net.depth)
    size = graph.add("Slice", graph.add("Shape", "image"), _ints(2), _ints(4), _ints(0))
    image = _mirrored(graph, _standardised(graph), size, unit)
    logits = _network(graph, net, _resampled(graph, image, 1, up, down))
    logits = _resampled(graph, logits, net.head.out_channels, down, up)
    logits = graph.add("Slice", logits, unit, graph.add("Add", unit, size), _ints(2, 3))
    outputs: dict[str, int] = {"probability": TensorProto.FLOAT, "mask": TensorProto.UINT8}
    if boundary:
        outputs["boundary"] = TensorProto.FLOAT
    _outputs(graph, logits, net.head.out_channels, boundary)
    scalar: tuple[int, list[Any]] = (TensorProto.FLOAT, [])
    return graph.model(
        {
            "image": (TensorProto.FLOAT, ["n", 1, "y", "x"]),
            "pixel_size": (TensorProto.FLOAT, [2]),
            "mean": scalar,
            "std": scalar,
            "threshold": scalar,
        },
        outputs,
    )


def _network(graph: _Graph, net: KUNet, x: str) -> str:
    skips = []
    for level, stage in enumerate(net.down):
        x = graph.add("MaxPool", x, kernel_shape=[2, 2], strides=[2, 2]) if level else x
        x = _double_convolution(graph, net, stage, x, f"down.{level}")
        skips.append(x)
    skips.pop()
    for i, (up, merge) in enumerate(zip(net.up, net.merge, strict=True)):
        assert isinstance(up, nn.ConvTranspose2d)
        x = graph.add("ConvTranspose", x, *graph.weights(up, f"up.{i}"), kernel_shape=[2, 2], strides=[2, 2])
        x = graph.add("Concat", skips.pop(), x, axis=1)
        x = _double_convolution(graph, net, merge, x, f"merge.{i}")
    return graph.add("Conv", x, *graph.weights(net.head, "head"), kernel_shape=[1, 1])


def _double_convolution(graph: _Graph, net: KUNet, stage: Any, x: str, name: str) -> str:
    for i, layer in enumerate(each for each in stage if isinstance(each, nn.Conv2d)):
        x = graph.add("Conv", x, *graph.weights(layer, f"{name}.{i}"), kernel_shape=[3, 3], pads=[1, 1, 1, 1])
        x = graph.add("LeakyRelu", x, alpha=net.slope) if net.slope else graph.add("Relu", x)
    return x


def _ratio(graph: _Graph, working: float) -> tuple[str, str]:
    """Return numerators and denominators (Y, X) of the width of an image's pixel in working pixels, as in `Grid`."""
    known = graph.add("Greater", "pixel_size", _singles(0.0 if working else np.inf))
    pixel = graph.add("Where", known, "pixel_size", _singles(working or 1))
    pixel = graph.add("Cast", pixel, to=TensorProto.DOUBLE)
    ratio = graph.add("Div", pixel, np.array(working or 1, np.float64))
    inverse = graph.add("Reciprocal", ratio)
    denominators = np.arange(1, LARGEST_DENOMINATOR + 1, dtype=np.float64)[:, None]
    larger = graph.add("Max", ratio, inverse)
    nearest = graph.add("Div", graph.add("Round", graph.add("Mul", larger, denominators)), denominators)
    off = graph.add("Abs", graph.add("Sub", nearest, larger))
    below = graph.add("Add", graph.add("ArgMin", off, axis=0, keepdims=0), _ints(1))
    above = graph.add("Round", graph.add("Mul", larger, graph.add("Cast", below, to=TensorProto.DOUBLE)))
    above = graph.add("Cast", above, to=TensorProto.INT64)
    finer = graph.add("Less", ratio, np.array(1, np.float64))
    return graph.add("Where", finer, below, above), graph.add("Where", finer, above, below)


def _unit(graph: _Graph, up: str, down: str, depth: int) -> str:
    """Return `Grid.unit`: the least steps (Y, X) of the image's pixels that are multiples of 2^depth working pixels."""
    powers = 2 ** np.arange(1, depth + 1, dtype=np.int64)[:, None]
    divides = graph.add("Equal", graph.add("Mod", up, powers), _ints(0))
    common = graph.add("ReduceSum", graph.add("Cast", divides, to=TensorProto.INT64), _ints(0), keepdims=0)
    return graph.add("Mul", graph.add("Gather", 2 ** np.arange(depth, -1, -1, dtype=np.int64), common, axis=0), down)


def _standardised(graph: _Graph) -> str:
    """Standardise as `volumes.sample.standardised`, in double: float32 sums of a million are off by 1e-5 deviations."""
    axes: dict[str, Any] = {"axes": [1, 2, 3]}
    image, mean, std = (graph.add("Cast", each, to=TensorProto.DOUBLE) for each in ("image", "mean", "std"))
    own = graph.add("ReduceMean", image, **axes)
    rest = graph.add("Sub", image, own)
    deviation = graph.add("Sqrt", graph.add("ReduceMean", graph.add("Mul", rest, rest), **axes))
    mean = graph.add("Where", graph.add("IsNaN", mean), own, mean)
    std = graph.add("Where", graph.add("IsNaN", std), deviation, std)
    std = graph.add("Where", graph.add("Equal", std, np.array(0.0)), np.array(1.0), std)
    return graph.add("Cast", graph.add("Div", graph.add("Sub", image, mean), std), to=TensorProto.FLOAT)


def _mirrored(graph: _Graph, image: str, size: str, unit: str) -> str:
    """Mirror like the tiler: by a unit on each side, then up to a whole number of units, as often as it takes."""
    whole = graph.add("Div", graph.add("Sub", graph.add("Add", size, unit), _ints(1)), unit)
    total = graph.add("Mul", graph.add("Add", whole, _ints(2)), unit)
    for axis in (0, 1):
        n, before, stop = (graph.add("Gather", each, np.array(axis), axis=0) for each in (size, unit, total))
        place = graph.add("Sub", graph.add("Range", np.array(0), stop, np.array(1)), before)
        twice = graph.add("Mul", graph.add("Sub", n, np.array(1)), np.array(2))
        period = graph.add("Max", twice, np.array(1))  # of a single row: row 0, over and over
        place = graph.add("Mod", place, period)
        image = graph.add("Gather", image, graph.add("Min", place, graph.add("Sub", period, place)), axis=2 + axis)
    return image


def _resampled(graph: _Graph, x: str, channels: int, up: str, down: str) -> str:
    """Resample (N, channels, Y, X) like `volumes.resampling`, to up / down times as many pixels, a whole number."""
    shape = graph.add("Shape", x)
    n = graph.add("Slice", shape, _ints(0), _ints(1))
    size = graph.add("Slice", shape, _ints(2), _ints(4))
    shrinks = graph.add("Less", up, down)
    few, many = (graph.add("Where", shrinks, each, _ints(1, 1)) for each in (up, down))
    smaller = graph.add("Div", graph.add("Mul", size, few), many)
    head = graph.add("Concat", n, _ints(channels), axis=0)
    width = graph.add("Gather", size, _ints(1), axis=0)
    parts = [[graph.add("Gather", each, np.array(axis), axis=0) for each in (many, few)] for axis in (0, 1)]
    rows = [graph.add("Reshape", each, _ints(-1)) for each in (parts[0][0], parts[1][0])]
    x = graph.add("Reshape", x, graph.add("Concat", _ints(-1), rows[0], width, axis=0))
    x = graph.add("MatMul", graph.add("Transpose", _area_means(graph, *parts[0]), perm=[1, 0]), x)
    x = graph.add("Reshape", x, graph.add("Concat", _ints(-1), rows[1], axis=0))
    x = graph.add("MatMul", x, _area_means(graph, *parts[1]))
    x = graph.add("Reshape", x, graph.add("Concat", head, smaller, axis=0))
    more, less = (graph.add("Where", shrinks, _ints(1, 1), each) for each in (up, down))
    for axis in (0, 1):
        x = _enlarged(graph, x, axis, *(graph.add("Gather", each, np.array(axis), axis=0) for each in (more, less)))
    return x


def _enlarged(graph: _Graph, x: str, axis: int, up: str, down: str) -> str:
    """Interpolate linearly to up / down times as many pixels along Y or X.

    Positions are computed in integers: those of the operator *Resize* are float32, and inexact in wide images.
    """
    size = graph.add("Gather", graph.add("Shape", x), np.array(2 + axis), axis=0)
    goal = graph.add("Div", graph.add("Mul", size, up), down)
    halves = graph.add("Mul", up, np.array(2))
    odd = graph.add(
        "Range", np.array(1), graph.add("Add", graph.add("Mul", goal, np.array(2)), np.array(1)), np.array(2)
    )
    place = graph.add("Max", graph.add("Sub", graph.add("Mul", odd, down), up), np.array(0))
    first = graph.add("Div", place, halves)
    rest = graph.add("Sub", place, graph.add("Mul", first, halves))
    weight = graph.add("Div", *(graph.add("Cast", each, to=TensorProto.FLOAT) for each in (rest, halves)))
    weight = weight if axis else graph.add("Unsqueeze", weight, _ints(1))
    last = graph.add("Sub", size, np.array(1))
    second = graph.add("Min", graph.add("Add", first, np.array(1)), last)
    near, far = (graph.add("Gather", x, each, axis=2 + axis) for each in (first, second))
    return graph.add("Add", near, graph.add("Mul", graph.add("Sub", far, near), weight))


def _area_means(graph: _Graph, many: str, few: str) -> str:
    """Return weights (many, few) float32 of `many` pixels in `few` means, as in `torch`'s area interpolation."""
    pixel = graph.add("Unsqueeze", graph.add("Range", np.array(0), many, np.array(1)), _ints(1))
    mean = graph.add("Range", np.array(0), few, np.array(1))
    first = graph.add("Div", graph.add("Mul", mean, many), few)
    after = graph.add("Mul", graph.add("Add", mean, np.array(1)), many)
    last = graph.add("Div", graph.add("Sub", after, np.array(1)), few)
    inside = graph.add("And", graph.add("GreaterOrEqual", pixel, first), graph.add("LessOrEqual", pixel, last))
    inside = graph.add("Cast", inside, to=TensorProto.FLOAT)
    return graph.add("Div", inside, graph.add("ReduceSum", inside, _ints(0)))


def _outputs(graph: _Graph, logits: str, channels: int, boundary: bool) -> None:
    """Append outputs as of `tiler.foreground` and `tiler.labels`, or with `boundary` `tiler.mask` and `last_class`."""
    if channels == 1:
        probability = graph.add("Sigmoid", logits, name="probability")
        above = graph.add("Greater", probability, "threshold")
        graph.add("Cast", above, name="mask", to=TensorProto.UINT8)
        return
    shares = graph.add("Softmax", logits, axis=1)
    background = graph.add("Slice", shares, _ints(0), _ints(1), _ints(1))
    probability = graph.add("Sub", _single(1), background)
    probability = graph.add("Clip", probability, _single(0), _single(1), name="probability")
    if boundary:
        graph.add("Slice", shares, _ints(channels - 1), _ints(channels), _ints(1), name="boundary")
        graph.add("Cast", graph.add("Greater", probability, "threshold"), name="mask", to=TensorProto.UINT8)
        return
    others = graph.add("Slice", logits, _ints(1), _ints(channels), _ints(1))
    which = graph.add("Add", graph.add("ArgMax", others, axis=1), _ints(1))
    above = graph.add("Cast", graph.add("Greater", probability, "threshold"), to=TensorProto.INT64)
    graph.add("Cast", graph.add("Mul", which, above), name="mask", to=TensorProto.UINT8)


def _ints(*values: int) -> NDArray[np.int64]:
    return np.array(values, np.int64)


def _single(value: float) -> NDArray[np.float32]:
    return np.array(value, np.float32)


def _singles(value: float) -> NDArray[np.float32]:
    """Return a value for each of Y and X."""
    return np.full(2, value, np.float32)
