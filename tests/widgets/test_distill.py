"""*Distil student*, opened through the manifest and driven by its buttons."""

import warnings

import numpy as np
import pytest
from qtpy.QtWidgets import QFileDialog, QMessageBox

from napari_kdunet import core
from napari_kdunet.core.config.distillation import ADAPTING
from napari_kdunet.core.metrics import Curve
from napari_kdunet.core.volumes.labels import class_index
from napari_kdunet.widgets.shared.models import models


@pytest.fixture
def teacher():
    import torch

    torch.manual_seed(0)
    return core.Model(core.KUNet(2))


@pytest.fixture
def widget(bench, teacher):
    models.add("teacher", teacher)
    return bench.open("Distil student")


def expected_iou(probability, labels, slices):
    """The best IoU over the thresholds, as the student's."""
    z = list(slices)
    truth = labels[z] > 0
    return max(core.Confusion.of(probability[z] > t, truth).iou for t in np.arange(1, 512) / 512)


def test_a_student_is_distilled_and_its_teacher_is_the_line_to_reach(bench, widget, teacher):
    assert widget.teacher.value == "teacher"
    assert widget.teacher_layer.value is None
    widget.view.start_button.click()
    assert not widget.control_button.isEnabled()
    bench.finish(widget)
    bench.assert_ready(widget)
    assert widget.control_button.isEnabled()
    assert models.session_names() == ["em k1 distilled", "teacher"]
    student = models.get("em k1 distilled")
    summary = student.summary
    assert summary["teacher"]["parameters"] == teacher.parameter_count
    assert summary["settings"]["tau"] == 4.0
    run = widget.view.curves.runs["student"]
    assert run.val_steps == [4, 8, 12]
    raw = core.open_volume(bench.em.data, voxel_size=(10, 10, 10))
    probability = core.predict(teacher, raw).compute()
    iou = expected_iou(probability, bench.mito.data, summary["validation"]["slices"])
    assert widget.view.curves.teacher_iou == pytest.approx(iou, abs=0.005)
    words = widget.size_label.text()
    assert f"{teacher.parameter_count:,}" in words
    assert f"{student.parameter_count:,}" in words
    assert f"{teacher.parameter_count / student.parameter_count:.3g}×" in words
    bench.assert_shown_and_gone(widget)


def test_the_line_to_reach_is_that_of_the_averaged_teacher(bench, teacher):
    models.add("teacher", teacher)
    widget = bench.open("Distil student", teacher_views=8)
    widget.view.start_button.click()
    bench.finish(widget)
    summary = models.get("em k1 distilled").summary
    assert summary["settings"]["teacher_views"] == 8
    raw = core.open_volume(bench.em.data, voxel_size=(10, 10, 10))
    ious = []
    for views in (1, 8):
        curve, probability = Curve(), core.predict(teacher, raw, views=views)
        for z in summary["validation"]["slices"]:
            curve.add(probability[z].compute(), class_index(bench.mito.data[z], 2, None))
        ious.append(curve.iou(curve.best_threshold()))
    assert widget.view.curves.teacher_iou == pytest.approx(ious[1], abs=2e-4)
    assert widget.view.curves.teacher_iou != pytest.approx(ious[0], abs=1e-3)


def test_the_control_run_is_the_same_student_without_the_teacher_in_the_same_plot(bench, widget):
    widget.view.start_button.click()
    bench.finish(widget)
    line, name = widget.view.curves.teacher_iou, widget.teacher.value
    widget.control_button.click()
    assert not widget.view.start_button.isEnabled()
    bench.finish(widget)
    assert models.session_names()[0] == "em k1 control"
    assert widget.teacher.value == name, "a control run is newer, but no teacher"
    control, student = models.get("em k1 control"), models.get("em k1 distilled")
    assert "teacher" not in control.summary
    shared = control.summary["settings"]
    assert shared == {name: student.summary["settings"][name] for name in shared}
    assert {name: run.val_steps for name, run in widget.view.curves.runs.items()} == {
        "student": [4, 8, 12],
        "control": [4, 8, 12],
    }
    assert widget.view.curves.teacher_iou == line


def test_a_teacher_below_its_control_run_is_said_to_be_and_what_to_do(bench):
    wrong = np.where(bench.mito.data > 0, 0.1, 0.9).astype(np.float32)
    layer = bench.viewer.add_image(wrong, name="wrong", scale=bench.em.scale)
    widget = bench.open("Distil student", steps=60)
    widget.image.value, widget.teacher_layer.value = bench.em, layer
    for button in (widget.view.start_button, widget.control_button):
        assert widget.verdict_label.text() == ""
        button.click()
        bench.finish(widget)
    control = max(widget.view.curves.runs["control"].ious)
    assert widget.view.curves.teacher_iou < control
    text = widget.verdict_label.text()
    student = max(widget.view.curves.runs["student"].ious)
    assert text.startswith(f"Best IoU: student {student:.3f}, control run {control:.3f}. ")
    assert f"(IoU {widget.view.curves.teacher_iou:.3f} and {control:.3f}): take a teacher that knows" in text
    widget.teacher_layer.value = bench.viewer.add_image(1 - wrong, name="right", scale=bench.em.scale)
    widget.image.value = bench.em
    widget.view.start_button.click()
    bench.finish(widget)
    student = max(widget.view.curves.runs["student"].ious)
    assert widget.verdict_label.text() == f"Best IoU: student {student:.3f}, control run {control:.3f}."
    assert set(widget.view.curves.runs) == {"control", "student"}
    widget.k.value += 1
    widget.control_button.click()
    bench.finish(widget)
    assert list(widget.view.curves.runs) == ["control"], "of another student: not to be compared"
    assert models.session_names()[0].endswith("control")
    assert not models.best_for("em").endswith("control")
    assert not models.newest_teacher().endswith("control")


def test_a_teacher_that_lies_elsewhere_than_the_image_is_told(bench, notified):
    probability = np.where(bench.mito.data > 0, 0.9, 0.1).astype(np.float32)
    beside = np.add(bench.em.translate, (0, 3 * bench.em.scale[1], 0))
    grid = {"scale": bench.em.scale, "units": bench.em.units, "translate": beside}
    layer = bench.viewer.add_image(probability, name="other tool", **grid)
    widget = bench.open("Distil student", mode="soft", steps=1, validations=1)
    widget.image.value, widget.teacher_layer.value = bench.em, layer
    widget.view.start_button.click()
    bench.finish(widget)
    assert notified[0].startswith("other tool is shifted from em (by +0, +3, +0 voxels)")


def test_a_probability_layer_teaches(bench):
    labels = bench.mito.data
    probability = np.where(labels > 0, 0.9, 0.1).astype(np.float32)
    bench.viewer.add_image(probability, name="other tool", scale=bench.em.scale)
    widget = bench.open("Distil student", mode="soft")
    widget.image.value = bench.em
    assert [layer.name for layer in widget.teacher_layer.choices if layer] == ["other tool"]
    widget.teacher_layer.value = bench.viewer.layers["other tool"]
    widget.view.start_button.click()
    bench.finish(widget)
    assert models.get("em k1 distilled").summary["teacher"] == {"probability": "other tool"}
    assert widget.view.curves.teacher_iou == pytest.approx(1.0)
    assert "Teacher:" not in widget.size_label.text()


@pytest.fixture
def answer(monkeypatch):
    """How the user answers the question, and what was asked."""
    asked: list[str] = []

    def say(button):
        def ask(parent, title, text, *_):
            asked.append(text)
            return button

        monkeypatch.setattr(QMessageBox, "warning", ask)
        return asked

    return say


def test_a_network_of_another_tool_teaches(bench, teacher, tmp_path, monkeypatch, answer):
    import torch

    asked, path = answer(QMessageBox.StandardButton.No), tmp_path / "other.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        axes = {"x": {2: "h", 3: "w"}}
        example = (torch.zeros(1, 1, 32, 32),)
        torch.onnx.export(teacher.net, example, path, input_names=["x"], dynamic_axes=axes, dynamo=False)
    widget = bench.open("Distil student")
    monkeypatch.setattr(QFileDialog, "getOpenFileName", lambda *_: (str(path), ""))
    widget.teacher_file.open_button.native.click()
    assert widget.teacher_file.file_name.value == "other.onnx"
    assert not asked
    widget.view.start_button.click()
    bench.finish(widget)
    summary = models.get("em k1 distilled").summary
    raw = core.open_volume(bench.em.data, voxel_size=(10, 10, 10))
    iou = expected_iou(core.predict(teacher, raw).compute(), bench.mito.data, summary["validation"]["slices"])
    assert widget.view.curves.teacher_iou == pytest.approx(iou, abs=0.01)
    assert "Teacher:" in widget.size_label.text()
    widget.teacher_file.clear_button.native.click()
    assert widget.teacher_file.path is None


@pytest.mark.parametrize("trusted", [False, True])
def test_a_torchscript_teacher_is_asked_about(bench, notified, tmp_path, answer, trusted):
    buttons = QMessageBox.StandardButton
    asked, path = answer(buttons.Yes if trusted else buttons.No), tmp_path / "other.pt"
    path.write_bytes(b"no TorchScript")
    widget = bench.open("Distil student")
    widget.teacher_file.open(path)
    assert "other.pt" in asked[0]
    assert "run code on your computer" in asked[0]
    assert widget.teacher_file.path == (path if trusted else None)
    widget.view.start_button.click()
    if trusted:
        bench.finish(widget)
        assert "is not a TorchScript file" in notified[0]
    else:
        assert notified == ["there is no teacher: train one, open one from a file, or choose a layer."]
    bench.assert_ready(widget)


def test_labels_are_optional(bench, widget, notified):
    widget.labels_layer.value = None
    widget.view.start_button.click()
    bench.finish(widget)
    assert models.session_names()[0] == "em k1 distilled"
    assert widget.view.score.text().endswith(" · with the teacher; the latest model is kept")
    assert widget.view.curves.teacher_iou is None
    notified.clear()  # so short a run may have collapsed
    widget.control_button.click()
    assert notified == ["a control run learns from labels alone: choose a labels layer."]
    bench.assert_ready(widget)


def test_without_labels_a_bundled_student_adapts_to_the_image(bench, teacher, bundle, tmp_path):
    generalist = core.Model(core.KUNet(1), threshold=0.3)
    bundle(generalist.save(tmp_path / "mito-1unet.safetensors"))
    models.add("teacher", teacher)
    widget = bench.open("Distil student", steps=1, lr=1e-4)
    widget.labels_layer.value = None
    widget.view.start_button.click()
    bench.finish(widget)
    student = models.get("em k1 distilled")
    settings = student.summary["settings"]
    adapting = core.DistillConfig.adapting()
    assert {name: settings[name] for name in ADAPTING} == {name: getattr(adapting, name) for name in ADAPTING}
    assert settings["patch"] == 32, "what the user has set stays"
    before, after = (dict(model.net.named_parameters()) for model in (generalist, student))
    assert all((before[name] - after[name]).abs().max() < 1e-3 for name in before)


def test_an_adaptation_cannot_be_paused_while_the_teacher_is_asked(bench, widget):
    """The teacher has a share of the minutes: in a pause they would run out, and it would tell of one part alone."""
    widget.labels_layer.value, widget.steps.value = None, 100_000
    widget.view.start_button.click()
    assert "asking the teacher" in widget.view.status.text()
    assert widget.view.stop_button.isEnabled()
    assert not widget.view.pause_button.isEnabled()
    bench.wait_for(widget, "student", validations=0)
    assert widget.view.pause_button.isEnabled()
    bench.stop(widget)
    bench.assert_ready(widget)


def test_an_adaptation_takes_no_typed_size_for_the_distance_of_slices(bench, tiny_em):
    """A student that begins as its teacher agrees with it about sections, seen as what they are."""
    raw, labels = tiny_em
    config = core.TrainConfig(k=1, patch=32, batch=2, steps=60, pixel_size=0.0, device="cpu")
    models.add("teacher", core.train(raw, labels, config))
    rng = np.random.default_rng(0)
    sections = np.stack([np.rot90(raw[rng.integers(len(raw))], rng.integers(4)) for _ in range(40)])
    layer = bench.viewer.add_image(sections, name="sections", scale=(10, 10, 10), units=("nm",) * 3)
    widget = bench.open("Distil student", steps=1, validations=1, lr=1e-4)
    widget.image.value, widget.labels_layer.value, widget.teacher.value = layer, None, "teacher"
    widget.view.start_button.click()
    bench.finish(widget)
    assert max(widget.view.curves.runs["student"].ious) > 0.9


def test_a_student_that_sees_neighbouring_slices_is_distilled_without_labels(bench, widget):
    widget.labels_layer.value, widget.context.value = None, 1
    widget.view.start_button.click()
    bench.finish(widget)
    assert models.session_names()[0] == "em k1 distilled"
    assert models.get("em k1 distilled").summary["settings"]["confidence"] == 0


@pytest.mark.parametrize("labelled", [True, False])
def test_a_constant_image_is_named_at_the_click(bench, widget, notified, labelled):
    bench.em.data = np.full_like(bench.em.data, 7)
    widget.labels_layer.value = bench.mito if labelled else None
    widget.view.start_button.click()
    assert widget.worker is None, "said before anything starts"
    assert notified == ["em shows nothing in the slices to train on, only constant grey or noise: choose others."]
    assert widget.error_label.text() == notified[0]
    bench.assert_ready(widget)


def test_unlabelled_slices_are_learnt_from_too(bench, widget):
    few = np.zeros_like(bench.mito.data)
    few[:2] = bench.mito.data[:2]
    widget.labels_layer.value = bench.viewer.add_labels(few, name="few")
    widget.view.start_button.click()
    bench.finish(widget)
    summary = models.get("em k1 distilled").summary
    assert summary["labelled_slices"] == [0, 1]
    assert summary["unlabelled_slices"] == 6


def test_a_student_that_is_not_smaller_is_warned_of(bench):
    """“0.255x smaller” says nothing to most."""
    models.add("teacher", core.Model(core.KUNet(2)))
    widget = bench.open("Distil student", k=4)
    assert widget.size_label.text().startswith("The student is not smaller than its teacher, a 2-Unet: lower k")
    widget.k.value = 1
    assert widget.size_label.text() == ""
    widget.k.value = 4
    widget.view.start_button.click()
    bench.finish(widget)
    assert "Student: 122,394 parameters, not smaller (3.96×): lower k" in widget.size_label.text()


def test_no_teacher_is_notified(bench, notified):
    widget = bench.open("Distil student")
    widget.view.start_button.click()
    assert notified == ["there is no teacher: train one, open one from a file, or choose a layer."]
    bench.assert_ready(widget)


def test_an_error_reaches_the_user_and_the_buttons_are_usable_again(bench, widget, notified, raise_in):
    raise_in("iter_distill", RuntimeError("CUDA out of memory"), after=2)
    widget.view.start_button.click()
    bench.finish(widget)
    assert len(notified) == 1
    assert notified[0].startswith("Out of memory: lower k")
    bench.assert_ready(widget)
    assert widget.control_button.isEnabled()


def test_another_image_starts_a_new_plot(bench, widget):
    widget.control_button.click()
    bench.finish(widget)
    widget.image.value = bench.viewer.add_image(bench.em.data, name="other", scale=bench.em.scale)
    widget.view.start_button.click()
    bench.finish(widget)
    assert list(widget.view.curves.runs) == ["student"]
    assert [layer.name for layer in bench.viewer.layers] == ["em", "mito", "other"]


def test_a_student_scored_by_its_teacher_is_not_compared_with_a_control_run(bench, widget):
    labels = widget.labels_layer.value
    widget.labels_layer.value = None
    widget.view.start_button.click()
    bench.finish(widget)
    assert widget.view.score.text().startswith("Agreement IoU ")
    widget.labels_layer.value = labels
    widget.control_button.click()
    bench.finish(widget)
    assert list(widget.view.curves.runs) == ["control"]
    assert widget.verdict_label.text() == ""


def test_what_teaches_is_the_row_that_can_be_chosen(bench, widget, tmp_path):
    probability = bench.viewer.add_image(np.zeros(bench.em.data.shape, np.float32), name="probability")
    assert widget.teacher.enabled
    widget.teacher_layer.value = probability
    assert not widget.teacher.enabled
    widget.teacher_layer.value = None
    assert widget.teacher.enabled
