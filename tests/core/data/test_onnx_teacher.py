"""Teachers in ONNX files: they teach what they compute, and one of a stranger's does nothing else."""

from __future__ import annotations

import copy
import importlib.util
import pickle
import time
import warnings
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from mutations import MEGABYTES, SECONDS, damaged, keeps_promise, peak_megabytes
from napari_kdunet import core
from napari_kdunet.core.data import onnx_teacher
from napari_kdunet.core.data.teachers import as_teacher

CONFIG = core.DistillConfig(k=1, depth=2, patch=32, steps=2, batch=2, validations=1, threads=1, pixel_size=0.0)
SLOW = [pytest.param(range(first, first + 200), marks=pytest.mark.exhaustive) for first in range(50, 1050, 200)]


def export(net, path, sides=None):
    axes = {} if sides else {"dynamic_axes": {"x": {0: "n", 2: "h", 3: "w"}, "y": {0: "n", 2: "h", 3: "w"}}}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        example = torch.zeros(1, 1, *(sides or (32, 32)))
        torch.onnx.export(net.eval(), (example,), path, input_names=["x"], output_names=["y"], dynamo=False, **axes)
    return path


def graph(
    nodes, *, sides=("h", "w"), initializers=(), inputs=("x",), channels=1, kind=TensorProto.FLOAT, version=17, **more
):
    """The bytes of a network of these nodes, from x to y."""
    images = [helper.make_tensor_value_info(name, kind, ["n", channels, *sides]) for name in inputs]
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    made = helper.make_graph(nodes, "g", images, [output], initializer=list(initializers))
    opsets = [helper.make_opsetid("", 17), *more.pop("opsets", [])]
    return helper.make_model(made, opset_imports=opsets, ir_version=9, **more)


def tensor(name, values, dtype=np.float32):
    return numpy_helper.from_array(np.asarray(values, dtype), name)


@pytest.fixture(scope="module")
def net(model):
    return model(2, depth=2).net


@pytest.fixture(scope="module")
def exported(net, tmp_path_factory):
    return export(net, tmp_path_factory.mktemp("onnx") / "t.onnx")


def test_it_gives_the_logits_of_the_network(net, exported):
    teacher = as_teacher(exported, CONFIG)
    x = torch.randn(3, 1, 64, 96)
    with torch.no_grad():
        assert torch.allclose(teacher.net(x), net(x), atol=1e-4)
    traits = teacher.traits
    assert (traits.classes, traits.channels, traits.multiple) == (2, 1, 32)
    assert teacher.pixel_size == CONFIG.pixel_size
    assert teacher.parameter_count == pytest.approx(core.Model(net).parameter_count, rel=0.05)  # BN may be folded


def test_it_teaches_as_the_network_does(net, exported, blobs):
    losses = [
        [e.soft for e in core.iter_distill(teacher, *blobs(), CONFIG) if isinstance(e, core.Stepped)]
        for teacher in (net, exported, str(exported))
    ]
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
    assert losses[2] == losses[1]


def test_a_model_that_was_exported_is_no_teacher(tmp_path):
    """Its graph gives probabilities of grey values, not logits of standardised ones."""
    path = core.export_onnx("lucchi-1unet", tmp_path / "own.onnx")
    with pytest.raises(core.ModelError, match=r"give the \.safetensors file that it was made from"):
        as_teacher(path, CONFIG)


def test_copies_compute_too(exported):
    teacher, x = as_teacher(exported, CONFIG), torch.randn(1, 1, 32, 32)
    expected = teacher.net(x)
    assert torch.equal(copy.deepcopy(teacher).net(x), expected)
    assert torch.equal(pickle.loads(pickle.dumps(teacher)).net(x), expected)


def test_as_many_threads_as_asked(exported):
    teacher = as_teacher(exported, CONFIG)
    before = teacher.net.net._process
    assert before.threads == torch.get_num_threads() == 1
    torch.set_num_threads(2)
    teacher.net(torch.zeros(1, 1, 32, 32))
    assert teacher.net.net._process.threads == 2
    assert before._process.wait(10) is not None


def test_fixed_sides(tmp_path):
    """A network that looks at 3 x 3 pixels, in patches: the same as on the whole but where the image ends."""
    net = torch.nn.Conv2d(1, 2, 3, padding=1)
    teacher = as_teacher(export(net, tmp_path / "t.onnx", (48, 64)), CONFIG)
    for shape in ((48, 64), (96, 160), (32, 32), (130, 40), (49, 65)):
        x = torch.randn(2, 1, *shape)
        with torch.no_grad():
            out, whole = teacher.net(x), net(x)
        assert out.shape == whole.shape
        assert torch.allclose(out[..., 1:-1, 1:-1], whole[..., 1:-1, 1:-1], atol=1e-5)


@pytest.mark.parametrize("kind", [TensorProto.FLOAT16, TensorProto.DOUBLE])
def test_other_floats(tmp_path, kind):
    path = tmp_path / "t.onnx"
    onnx.save(graph([helper.make_node("Cast", ["x"], ["y"], to=1)], kind=kind), path)
    x = torch.full((1, 1, 32, 32), 0.5)
    assert torch.equal(as_teacher(path, CONFIG).net(x)[:, 1:], x)  # one logit is the difference of two


def test_half_the_size_is_enlarged(tmp_path):
    path = tmp_path / "t.onnx"
    onnx.save(graph([helper.make_node("MaxPool", ["x"], ["y"], kernel_shape=[2, 2], strides=[2, 2])]), path)
    assert as_teacher(path, CONFIG).net(torch.zeros(1, 1, 64, 32)).shape == (1, 2, 64, 32)


# ---------------------------------------------------------------- of a stranger


def loop(body_nodes=()):
    """Run for ever, with the image as what is carried along."""
    names = [("i", TensorProto.INT64), ("on", TensorProto.BOOL)]
    inputs = [helper.make_tensor_value_info(name, kind, []) for name, kind in names]
    carried = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("a", "b")]
    nodes = [helper.make_node("Identity", ["on"], ["on2"]), helper.make_node("Abs", ["a"], ["b"]), *body_nodes]
    still = helper.make_tensor_value_info("on2", TensorProto.BOOL, [])
    body = helper.make_graph(nodes, "body", [*inputs, carried[0]], [still, carried[1]])
    return graph(
        [helper.make_node("Loop", ["n", "yes", "x"], ["y"], body=body)],
        initializers=[tensor("n", 2**62, np.int64), tensor("yes", True, bool)],
    )


def external(where):
    weights = tensor("w", np.ones((1, 1, 1, 1)))
    weights.ClearField("raw_data")
    weights.data_location = TensorProto.EXTERNAL
    weights.external_data.add(key="location", value=where)
    return graph([helper.make_node("Mul", ["x", "w"], ["y"])], initializers=[weights])


def external_in_a_loop(where):
    made = loop()
    constant = helper.make_node("Constant", [], ["c"], value=external(where).graph.initializer[0])
    next(a for a in made.graph.node[0].attribute if a.name == "body").g.node.append(constant)
    return made


def filled(*shape):
    """An output of this shape, made from nothing."""
    node = helper.make_node("ConstantOfShape", ["s"], ["y"])
    return graph([node], initializers=[tensor("s", shape, np.int64)])


def part_of(megabytes):
    """The image, beside so much memory."""
    nodes = [
        helper.make_node("ConstantOfShape", ["s"], ["all"]),
        helper.make_node("ReduceSum", ["all"], ["sum"], keepdims=0),
        helper.make_node("Add", ["x", "sum"], ["y"]),
    ]
    return graph(nodes, initializers=[tensor("s", (megabytes, 2**18), np.int64)])


def functions_of_functions(depth=40):
    """Each calls the one below it twice: 2 ** depth nodes once they are put in place."""
    opset = [helper.make_opsetid("", 17), helper.make_opsetid("f", 1)]
    made = [helper.make_function("f", "f0", ["a"], ["b"], [helper.make_node("Abs", ["a"], ["b"])], opset)]
    for i in range(1, depth):
        nodes = [helper.make_node(f"f{i - 1}", [p], [q], domain="f") for p, q in (("a", "m"), ("m", "b"))]
        made.append(helper.make_function("f", f"f{i}", ["a"], ["b"], nodes, opset))
    node = helper.make_node(f"f{depth - 1}", ["x"], ["y"], domain="f")
    return graph([node], functions=made, opsets=[helper.make_opsetid("f", 1)])


ABS = helper.make_node("Abs", ["x"], ["y"])
BAD = {
    "endless": (lambda: loop(), ["takes more than 1 s"]),
    "outside": (lambda: external("../secret"), ["other files"]),
    "outside, by its full path": (lambda: external("/etc/passwd"), ["other files"]),
    "outside, deep inside": (lambda: external_in_a_loop("secret"), ["other files"]),
    "a terabyte": (lambda: filled(1, 2, 2**19, 2**18), []),
    "a gigabyte": (lambda: filled(1, 2, 2**13, 2**14), []),
    "400 MB on the way": (lambda: part_of(400), []),
    "a large output": (lambda: filled(1, 2, 512, 512), ["(1, 2, 512, 512)"]),
    "many channels": (lambda: filled(1, 65, 128, 128), ["65"]),
    "nothing": (lambda: filled(1, 2, 0, 0), ["(1, 2, 0, 0)"]),
    "a vector": (lambda: filled(7), ["logits"]),
    "three classes": (lambda: filled(1, 3, 128, 128), ["3 classes", "2"]),
    "functions of functions": (functions_of_functions, ["operators"]),
    "operators of others": (
        lambda: graph([helper.make_node("Run", ["x"], ["y"], domain="evil")], opsets=[helper.make_opsetid("evil", 1)]),
        ["evil"],
    ),
    "a cached engine": (
        lambda: graph(
            [helper.make_node("EPContext", ["x"], ["y"], domain="com.microsoft", ep_cache_context="/etc/passwd")],
            opsets=[helper.make_opsetid("com.microsoft", 1)],
        ),
        ["com.microsoft"],
    ),
    "control characters": (
        lambda: graph([helper.make_node("Run", ["x"], ["y"], domain="\x1b[31m\n")]),
        ["operators"],
    ),
    "an unknown operator": (lambda: graph([helper.make_node("Nonsense", ["x"], ["y"])]), ["Nonsense"]),
    "two inputs": (lambda: graph([helper.make_node("Add", ["x", "z"], ["y"])], inputs=("x", "z")), ["2 inputs"]),
    "colours": (lambda: graph([ABS], channels=3), ["(N, 1, Y, X)"]),
    "whole numbers": (lambda: graph([ABS], kind=TensorProto.INT64), ["floats"]),
    "one side": (lambda: graph([ABS], sides=(64, "w")), ["64 x 0"]),
    "small sides": (lambda: graph([ABS], sides=(8, 8)), ["8 x 8"]),
    "large sides": (lambda: graph([ABS], sides=(2**20, 2**20)), ["1048576"]),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_networks(tmp_path, case):
    make, words = BAD[case]
    path = tmp_path / "t.onnx"
    path.write_bytes(make().SerializeToString())
    (tmp_path / "secret").write_bytes(np.ones(1, np.float32).tobytes())
    before = peak_megabytes()
    refused = keeps_promise(lambda: as_teacher(path, CONFIG), seconds=2 * SECONDS)  # a process is started
    assert isinstance(refused, core.ModelError)
    assert str(path) in str(refused)
    for word in words:
        assert word in str(refused)
    assert peak_megabytes() - before < MEGABYTES


def test_the_process_of_a_network_has_a_limit(exported):
    """A process of torch's size begins as a copy of this one, so that its peak is asked of the system."""
    teacher = as_teacher(exported, CONFIG)
    status = Path(f"/proc/{teacher.net.net._process._process.pid}/status")
    if not status.exists():
        pytest.skip("no /proc")
    peak = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
    assert int(peak.split()[1]) / 1024 < MEGABYTES


def test_nothing_of_the_current_folder_is_imported(exported, tmp_path, monkeypatch):
    """Where one stands is often a stranger's folder."""
    for name in ("json", "numpy", "onnx", "onnxruntime", "napari_kdunet"):
        (tmp_path / f"{name}.py").write_text("open('ran', 'w')\nraise SystemExit")
    monkeypatch.chdir(tmp_path)
    assert as_teacher(exported, CONFIG).net(torch.zeros(1, 1, 32, 32)).shape == (1, 2, 32, 32)
    assert not (tmp_path / "ran").exists()


def test_an_end_in_the_midst(tmp_path):
    """A network that is quick on the first patch and endless on others is ended too."""
    condition = [
        helper.make_node("ReduceMax", ["x"], ["most"], keepdims=0),
        helper.make_node("Cast", ["most"], ["yes"], to=TensorProto.BOOL),
    ]
    made = loop()
    made.graph.initializer.pop()
    made.graph.node.insert(0, condition[1])
    made.graph.node.insert(0, condition[0])
    path = tmp_path / "t.onnx"
    path.write_bytes(made.SerializeToString())
    network = onnx_teacher.OnnxNetwork(path, tile_seconds=1.0)
    begin = time.perf_counter()
    with pytest.raises(core.ModelError, match="takes more than 1 s"):
        network(torch.ones(1, 1, 32, 32))
    assert time.perf_counter() - begin < 20  # and not the minute that a tile has by default


def test_without_onnxruntime(exported, monkeypatch, one_line):
    monkeypatch.setattr(onnx_teacher, "find_spec", lambda name: None)
    with one_line(core.ModelError, str(exported), "napari-kdunet[onnx]"):
        as_teacher(exported, CONFIG)
    assert importlib.util.find_spec("onnxruntime")


def test_what_is_no_onnx(tmp_path, one_line):
    path = tmp_path / "t.onnx"
    with one_line(core.ModelError, str(path), "no teacher"):
        as_teacher(path, CONFIG)
    for content in (b"", b"no network", b"\x08" * 100_000, b"ORTM" * 8):
        path.write_bytes(content)
        with one_line(core.ModelError, str(path)):
            as_teacher(path, CONFIG)


def test_a_file_that_is_too_large(tmp_path, one_line):
    path = tmp_path / "t.onnx"
    with path.open("wb") as file:
        file.truncate(2**30 + 1)
    with one_line(core.ModelError, str(path), "1024 MB"):
        as_teacher(path, CONFIG)


@pytest.mark.parametrize("seeds", [range(50), *SLOW], ids=lambda seeds: f"seeds {seeds.start} to {seeds.stop}")
def test_any_file_is_a_teacher_or_one_line(exported, tmp_path, seeds):
    path, whole = tmp_path / "t.onnx", exported.read_bytes()
    for seed in seeds:
        path.write_bytes(damaged(whole, seed))
        try:
            result = keeps_promise(lambda: as_teacher(path, CONFIG), seconds=2 * SECONDS)
            assert isinstance(result, core.Model | core.ModelError)
        except BaseException as error:
            raise AssertionError(f"seed {seed}") from error
