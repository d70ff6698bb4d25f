"""Outlines of objects as a third class: what is learnt, what comes of it, and what is refused."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from napari_kdunet import core


def cells(seed: int = 0, depth: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """Bright rectangles in pairs that touch along a whole side, with a thin dark line there, and their ids."""
    rng = np.random.default_rng(seed)
    ids = np.zeros((depth, 96, 96), np.uint16)
    raw = np.full(ids.shape, 90.0)
    for z in range(depth):
        for i, (top, left) in enumerate([(4, 4), (4, 52), (52, 4), (52, 52)]):
            y, x = top + rng.integers(0, 8), left + rng.integers(0, 8)
            for side in (0, 1):
                at = np.s_[z, y : y + 30, x + 15 * side : x + 15 * side + 15]
                ids[at], raw[at] = 100 + 10 * i + side, 170
            raw[z, y : y + 30, x + 14 : x + 16] = 60
    return (raw + 6 * rng.standard_normal(ids.shape)).clip(0, 255).astype(np.uint8), ids


FORM = {"k": 4, "depth": 2, "patch": 48, "batch": 4, "pixel_size": 0.0, "boundary": True}
FORM |= {"elastic": 0.0, "rotation": 0.0, "scale": 0.0, "intensity": 0.0}


@pytest.fixture(scope="module")
def taught(quick):
    raw, ids = cells()
    return core.train(raw, ids, quick(**FORM, steps=90, validations=2, val_share=0.34))


def test_pairs_come_apart_that_no_shape_tells_apart(taught):
    raw, truth = cells(seed=1)
    probability = core.predict(taught, raw).compute()
    outlines = core.predict(taught, raw, output="boundary").compute()
    how = {"voxel_size": (50.0, 10.0, 10.0)}  # slices each for itself
    config = core.ObjectsConfig(threshold=taught.threshold, min_diameter=50.0, link=0.9)
    together, apart = (
        core.score_objects(np.asarray(core.instances(probability, config, boundary=each, **how))[:1], truth[:1])
        for each in (None, outlines)
    )
    assert (together.f1(), together.merges) == (0, 4)
    assert (apart.f1(), apart.merges, apart.splits) == (1, 0, 0)


def test_the_mask_is_that_of_the_objects_with_their_outlines(taught):
    raw, truth = cells(seed=1)
    labels = core.predict(taught, raw, output="labels").compute()
    probability = core.predict(taught, raw).compute()
    assert set(np.unique(labels)) == {0, 1}
    assert np.array_equal(labels > 0, probability > taught.threshold)
    assert core.evaluate(labels, truth).iou > 0.85
    outlines = core.predict(taught, raw, output="boundary").compute()
    assert outlines.dtype == np.float32
    assert (outlines <= probability + 1e-5).all()
    line = (truth > 0) & (raw < 100)
    assert outlines[line].mean() > 0.6 > 0.4 > outlines[truth == 0].mean()


def test_validation_is_of_the_foreground(taught):
    raw, ids = cells()
    (z,) = taught.summary["validation"]["slices"]
    scores = core.evaluate(core.predict(taught, raw[z : z + 1]), ids[z : z + 1], threshold=taught.threshold)
    assert taught.summary["validation"]["iou"] == pytest.approx(scores.iou, abs=5e-3)


def test_three_planes_have_outlines_too(taught):
    raw = np.repeat(cells()[0][:1], 24, axis=0)[:, :40, :40]
    flat, ortho = (core.predict(taught, raw, output="boundary", planes=planes).compute() for planes in ("z", "zyx"))
    assert ortho.shape == flat.shape
    assert np.array_equal(
        core.predict(taught, raw, output="labels", planes="zyx").compute(),
        core.predict(taught, raw, planes="zyx").compute() > taught.threshold,
    )
    assert not np.allclose(ortho, flat)


def test_a_file_says_so(taught, tmp_path):
    again = core.load_model(taught.save(tmp_path / "m.safetensors"))
    assert again.boundary
    assert again.class_names == ("background", "mitochondrion", "boundary")
    assert again.form_and_pixel_size["boundary"]


def test_training_goes_on_and_a_student_learns_outlines(taught, quick, one_line):
    raw, ids = cells()
    short = {**FORM, "steps": 2, "validations": 1}
    assert list(core.iter_train(raw, ids, quick(**short), start=taught))[-1].model.boundary
    student = list(core.iter_distill(taught, raw, ids, quick(**short, mode="mixed")))[-1].model
    assert student.boundary
    without = {name: value for name, value in short.items() if name != "boundary"}
    with one_line(core.ModelError, "outlines", "boundary"):
        core.iter_distill(taught, raw, ids, quick(**without, mode="mixed"))
    with one_line(core.VolumeError, "outlines"):
        core.iter_distill((ids > 0).astype(np.float32), raw, ids, quick(**short, mode="mixed"))
    with one_line(core.ModelError, "boundary"):
        list(core.iter_train(raw, ids > 0, quick(**without, classes=3), start=taught))


def test_a_student_of_the_mask_alone(taught, quick):
    """`adapt` learns of the foreground: a teacher with outlines is as good as any."""
    config = replace(core.DistillConfig.adapting(k=1, steps=2, pixel_size=0.0, patch=32, batch=2), device="cpu")
    event = list(core.iter_adapt(taught, cells()[0], config))[-1]
    assert not event.model.boundary


def test_what_cannot_be(taught, model, one_line):
    with one_line(core.ConfigError, "classes is 4", "boundary"):
        core.TrainConfig(classes=4, boundary=True)
    with one_line(core.ConfigError, "has not learnt outlines"):
        core.predict(model(), cells()[0], output="boundary")
    with one_line(core.VolumeError, "(3, 96, 96)", "(3, 96, 95)"):
        core.instances(np.zeros((3, 96, 96), bool), boundary=np.zeros((3, 96, 95), np.float32), voxel_size=(9, 9, 9))


def test_exports(taught, tmp_path, one_line):
    """ONNX and bioimage.io have outlines too, of C and a web page one line says that they have not."""
    pytest.importorskip("onnxruntime")
    raw = cells(seed=2, depth=1)[0]
    path = core.export_onnx(taught, tmp_path / "m.onnx")
    exported = core.OnnxModel.open(path)
    for output in ("probability", "boundary"):
        expected = core.predict(taught, raw, output=output).compute()
        np.testing.assert_allclose(exported.predict(raw, output=output).compute(), expected, atol=1e-4)
    labels = exported.predict(raw, output="labels").compute()
    assert (labels != core.predict(taught, raw, output="labels").compute()).mean() < 1e-3
    for export in (core.export_c, core.export_web):
        with one_line(core.ModelError, "3 classes"):
            export(taught, tmp_path / "out.x")
    plain = core.OnnxModel.open(core.export_onnx(core.load_model("lucchi-2unet"), tmp_path / "p.onnx"))
    with one_line(core.ConfigError, "has not learnt outlines"):
        plain.predict(raw, output="boundary")


def test_strokes_teach_too(quick):
    """As *Live* and corrections give them: 0 is not looked at, 1 background, 2 an object; read again when painted."""
    raw, ids = cells()
    strokes = np.zeros(ids.shape, np.uint8)
    strokes[:, 10:80:20] = 1 + (ids > 0)[:, 10:80:20]
    config = quick(**{**FORM, "ignore": 0, "steps": 3, "validations": 1, "val_share": 0.0})
    events = list(core.iter_train(raw, strokes, config, edited=lambda: [1]))
    assert events[-1].model.boundary
    assert config.live().classes == 3
    assert config.live().label_classes == 2


def test_objects_of_a_lazy_prediction(taught):
    """The graph of a prediction goes on into objects: nothing of it has to be computed before."""
    raw, how = cells(seed=1)[0], {"voxel_size": (50.0, 10.0, 10.0)}
    lazy = core.instances(core.predict(taught, raw), boundary=core.predict(taught, raw, output="boundary"), **how)
    computed = (core.predict(taught, raw, output=each).compute() for each in ("probability", "boundary"))
    probability, outlines = computed
    expected = np.asarray(core.instances(probability, boundary=outlines, **how))
    assert expected.max() > 4
    assert np.array_equal(np.asarray(lazy), expected)
