"""Training of networks that see neighbouring slices: what they learn by them, and all that goes on from there."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from napari_kdunet import core
from napari_kdunet.core.networks.model_file import TensorFile, save_tensors
from napari_kdunet.core.training.adapt import bundled_student, lesson

SHOWN_BESIDE = (1, 4, 7, 10)
SETTINGS = {"k": 2, "depth": 1, "pixel_size": 0.0, "batch": 4, "context": 1}


@pytest.fixture(scope="module")
def beside(blobs) -> tuple[np.ndarray, np.ndarray]:
    """Raw and labels: of every three slices the one in the middle is noise, and what it holds is seen beside it."""
    raw, labels = blobs((4, 64, 64))
    raw, labels = np.repeat(raw, 3, axis=0), np.repeat(labels, 3, axis=0)
    raw[list(SHOWN_BESIDE)] = np.random.default_rng(1).integers(50, 200, (4, 64, 64), dtype=np.uint8)
    return raw, labels


def test_what_only_the_neighbours_show_is_learnt_with_context_alone(beside, quick):
    raw, labels = beside
    scores = {}
    for context in (0, 1):
        settings = {**SETTINGS, "context": context, "slices": SHOWN_BESIDE, "steps": 80, "val_share": 0.25}
        model = list(core.iter_train(raw, labels, quick(**settings)))[-1].model
        assert (model.context, model.net.channels) == (context, 2 * context + 1)
        mask = np.asarray(core.predict(model, raw, output="labels"))
        scores[context] = core.evaluate(mask[list(SHOWN_BESIDE)], labels[list(SHOWN_BESIDE)]).iou
    assert scores[1] > 0.8
    assert scores[0] < 0.4  # a quarter is foreground


def test_the_distance_of_the_slices_learnt_from_goes_with_the_model(beside, quick, tmp_path):
    raw, labels = beside
    volume = core.open_volume(raw, voxel_size=(30.0, 10.0, 10.0))
    model = list(core.iter_train(volume, labels, quick(**SETTINGS, steps=30), out=tmp_path / "m.safetensors"))[-1].model
    again = core.load_model(tmp_path / "m.safetensors")
    assert model.context_distance == again.context_distance == 30.0
    assert model.summary["settings"]["context_distance"] == 30.0
    finer = core.open_volume(np.repeat(raw, 3, axis=0), voxel_size=(10.0, 10.0, 10.0))
    thick = np.asarray(core.predict(model, volume))
    np.testing.assert_allclose(np.asarray(core.predict(model, finer)[1::3])[1:-1], thick[1:-1], atol=1e-5)


def test_resumed_is_as_never_stopped(beside, quick, tmp_path):
    config = quick(**SETTINGS, steps=4, validations=4)
    whole = list(core.iter_train(*beside, config))[-1].model
    path = tmp_path / "m.safetensors"
    for event in core.iter_train(*beside, config, out=path):
        if isinstance(event, core.Saved):
            break
    again = list(core.iter_train(*beside, config, out=path, resume=True))[-1].model
    assert all(map(torch.equal, whole.net.state_dict().values(), again.net.state_dict().values()))


def test_a_state_of_before_there_was_context_is_resumed(blobs, quick, tmp_path, one_line):
    path, state = tmp_path / "m.safetensors", tmp_path / "m.resume.safetensors"
    config = quick(validations=3)
    events = core.iter_train(*blobs(), config, out=path)
    while not isinstance(next(events), core.Saved):
        pass
    events.close()
    file = TensorFile.open(state)
    settings = {name: value for name, value in file.metadata["settings"].items() if not name.startswith("context")}
    save_tensors(state, file.read(), file.metadata | {"settings": settings})
    with one_line(core.ConfigError, "context 0 (now 1)"):
        core.iter_train(*blobs(), replace(config, context=1), out=path, resume=True)
    assert isinstance(list(core.iter_train(*blobs(), config, out=path, resume=True))[-1], core.Done)


def test_labels_that_change_meanwhile(beside, quick):
    raw, labels = beside
    changes = iter([[3], [], [4]])
    events = list(core.iter_train(raw, labels.copy(), quick(**SETTINGS, steps=3), edited=lambda: next(changes, [])))
    assert isinstance(events[-1], core.Done)


def test_a_start_has_the_same_context(beside, quick, one_line):
    start = core.Model(core.KUNet(2, depth=1, context=1), 0.0)
    config = quick(**{**SETTINGS, "context": 0}, steps=1)
    with one_line(core.ModelError, "make context the same"):
        core.iter_train(*beside, config, start=start)
    config = replace(config, **start.form_and_pixel_size)
    assert isinstance(list(core.iter_train(*beside, config, start=start))[-1], core.Done)


def test_a_teacher_that_sees_more_than_its_student_and_the_reverse(beside, quick, model):
    raw, labels = beside
    for taught_by, context in ((1, 0), (0, 1), (1, 1)):
        teacher = model(2, depth=1, context=taught_by)
        config = quick(**{**SETTINGS, "context": context}, mode="mixed", steps=2)
        data = core.iter_distill(teacher, raw, labels, config)
        student = list(data)[-1].model
        assert (student.context, student.summary["teacher"].get("context", 0)) == (context, taught_by)
    probability = np.asarray(core.predict(teacher, raw))
    events = core.iter_distill(probability, raw, None, quick(**SETTINGS, mode="soft", steps=2))
    assert list(events)[-1].model.context == 1


def test_what_the_teacher_tells_is_its_prediction_of_the_whole(beside, model, quick):
    from napari_kdunet.core.data.dataset import prepare

    raw, labels = beside
    teacher, config = model(2, depth=1, context=1), quick(**{**SETTINGS, "context": 0}, mode="mixed", val_share=0.0)
    data = prepare(raw, labels, config, torch.device("cpu"), teacher=teacher)
    expected = np.asarray(core.predict(teacher, raw))
    for block in data.sampler.labelled:
        np.testing.assert_allclose(block.teacher_probability[0], expected[block.z], atol=1e-5)


@pytest.mark.parametrize("size", [(30.0, 10.0, 10.0), (10.0, 10.0, 10.0)])
def test_adaptation_takes_a_teacher_with_context(blobs, model, size):
    raw = core.open_volume(blobs((9, 64, 64))[0], voxel_size=size)
    teacher = replace(model(1, depth=1, context=1), context_distance=30.0)
    config = core.DistillConfig.adapting(depth=1, pixel_size=0.0, teacher_views=1, threads=1)
    images, probabilities = lesson(teacher, raw, config, pixels=3 * 64 * 64)
    expected = np.asarray(core.predict(teacher, raw))
    chosen = [z for z in range(9) if any(np.array_equal(image, raw.read(z)) for image in images)]
    assert len(images) == len(chosen) == 3
    np.testing.assert_allclose(probabilities, expected[chosen], atol=2e-4)


def test_the_student_of_an_adaptation_has_no_context(blobs, model, one_line):
    teacher = model(2, depth=1, context=1)
    with one_line(core.ConfigError, "context is 1"):
        next(core.iter_adapt(teacher, blobs()[0], core.DistillConfig.adapting(context=1)))
    assert bundled_student(2, teacher) is not teacher
