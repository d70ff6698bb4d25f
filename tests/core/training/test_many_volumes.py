"""One training on several volumes: each with its own pixel size, contrast, shape and dtype, and the scores' means."""

from __future__ import annotations

from statistics import fmean

import numpy as np
import pytest
import torch

from napari_kdunet import core
from napari_kdunet.core.data.dataset import prepare

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def pair(blobs):
    """Bright blobs at 10 nm, and dark ones at 5 nm of another shape and dtype."""
    raw, labels = blobs((6, 64, 64))
    other, truth = blobs((7, 48, 56), seed=3)
    other = (9000 - 30 * other.repeat(2, axis=1).repeat(2, axis=2).astype(np.int32)).astype(np.uint16)
    truth = truth.repeat(2, axis=1).repeat(2, axis=2)
    return [
        (core.open_volume(raw, voxel_size=(40, 10, 10), name="bright"), labels),
        (core.open_volume(other, voxel_size=(40, 5, 5), name="dark"), truth),
    ]


@pytest.fixture(scope="module")
def settings(quick):
    return quick(k=4, depth=2, steps=80, batch=4, validations=4, seed=1)


def validated(events) -> list[core.Validated]:
    return [event for event in events if isinstance(event, core.Validated)]


def trace(events) -> list[tuple]:
    """Losses and scores, which are equal where the weights are."""
    kept = (core.Stepped, core.Validated)
    return [(e.step, getattr(e, "loss", None), getattr(e, "volume_ious", None)) for e in events if isinstance(e, kept)]


# ---------------------------------------------------------------- what is learnt


@pytest.fixture(scope="module")
def together(pair, settings):
    return list(core.iter_train(pair, config=settings))


def test_together_beats_either_alone(together, pair, settings):
    def iou(model) -> float:
        return fmean(
            core.evaluate(core.predict(model, raw), labels, threshold=model.threshold).iou for raw, labels in pair
        )

    both = iou(together[-1].model)
    assert both > 0.7
    for alone in pair:
        assert iou(core.train(*alone, settings)) < both - 0.1


def test_scores_are_means_and_the_best_is_chosen_by_them(together, pair):
    started, done, scored = together[0], together[-1], validated(together)
    assert started.val_volumes == ("bright", "dark")
    assert started.val_slices == (2, 3)  # the middle of six, the middle of seven
    assert started.labelled_slices == (0, 1, 3, 4, 5, 0, 1, 2, 4, 5, 6)
    assert started.validated_on == "held-out slices"
    assert all(e.iou == pytest.approx(fmean(e.volume_ious)) for e in scored)
    assert done.iou == max(e.iou for e in scored)
    best = next(e for e in scored if e.iou == done.iou)
    assert done.model.summary["validation"]["volume_ious"] == list(best.volume_ious)
    for (raw, labels), z, said in zip(pair, (2, 3), best.volume_ious, strict=True):
        probability = np.asarray(core.predict(best.model, raw))[z : z + 1]
        found = core.evaluate(probability, labels[z : z + 1], threshold=best.threshold)
        assert found.iou == pytest.approx(said, abs=5e-3)


def test_a_pair_is_a_list_of_one(pair, settings, quick):
    config = quick(steps=4)
    (raw, labels), _ = pair
    one = list(core.iter_train(raw, labels, config))
    assert trace(one) == trace(core.iter_train([(raw, labels)], config=config))
    assert all(e.volume_ious == (e.iou,) for e in validated(one))


def test_given_validation_volumes(pair, quick):
    raw, labels = pair[1]
    started, *_ = core.iter_train(pair[0][0], pair[0][1], quick(steps=2), val=[(raw, labels), pair[0]])
    assert started.validated_on == "given volume"
    assert started.val_volumes == ("dark", "bright")
    assert len(started.labelled_slices) == 6


def test_each_volume_holds_out_what_it_can(pair, quick):
    """Of few slices none is held out; a threshold is chosen for all."""
    few = (core.open_volume(pair[1][0].data[:2], voxel_size=(40, 5, 5), name="few"), pair[1][1][:2])
    started, *_ = core.iter_train([pair[0], few], config=quick(steps=1))
    assert started.val_slices == (2, 0, 1)
    assert started.validated_on == "held-out slices and training slices"


# ---------------------------------------------------------------- patches


def sampler(volumes, config, **more):
    return prepare(volumes, None, config, CPU, **more).sampler


def test_each_volume_is_cut_at_the_working_pixel_size(pair, quick):
    made = sampler(pair, quick(pixel_size=10.0))
    assert {(block.volume.index, tuple(block.image.shape)) for block in made.labelled} == {
        (0, (1, 64, 64)),
        (1, (1, 48, 56)),  # of 96 x 112 pixels of 5 nm
    }
    assert all(abs(block.image.float().mean()) < 0.05 for block in made.labelled)  # each standardised by itself
    assert all(block.image.float().std() > 0.8 for block in made.labelled)


def test_small_volumes_are_mirrored_to_the_patch_of_large_ones(blobs, quick):
    config = quick(patch=64, depth=2, pixel_size=0.0, batch=6)
    batch = sampler([blobs((3, 96, 80)), blobs((3, 20, 24))], config).batch(0)
    assert batch.image.shape == (6, 1, 64, 64)
    torch.testing.assert_close(batch.target.sum(dim=1), torch.ones(6, 64, 64), atol=0.02, rtol=0)


@pytest.mark.parametrize(
    ("weights", "expected"),
    [("even", (1 / 3, 1 / 3, 1 / 3)), ("area", (0.1, 0.4, 0.5)), ((1, 2, 5), (1 / 8, 2 / 8, 5 / 8))],
)
def test_how_often_patches_come_from_each_volume(quick, weights, expected):
    """Volumes of 10, 40 and 50 % of the area, told apart by the labels of a stripe."""
    rng, volumes = np.random.default_rng(0), []
    for shape, share in (((2, 40, 40), 0.05), ((2, 80, 80), 0.5), ((10, 40, 40), 0.95)):
        volumes.append((rng.integers(0, 255, shape, dtype=np.uint8), (rng.random(shape) < share).astype(np.uint8)))
    config = quick(batch=8, pixel_size=0.0, volume_weights=weights, val_share=0.0)
    made = sampler(volumes, config)
    shares = torch.cat([made.batch(step).target[:, 1].mean(dim=(1, 2)) for step in range(100)])
    counts = [int(((shares > low) & (shares < low + 0.3)).sum()) for low in (-0.1, 0.35, 0.75)]
    assert sum(counts) == 800
    assert np.array(counts) / 800 == pytest.approx(expected, abs=0.06)  # three standard deviations


def test_processes_share_the_batch(pair, quick):
    """Each rank makes its part of what one process would make."""
    whole = sampler(pair, quick(batch=8)).batch(3)
    parts = [sampler(pair, quick(batch=4), processes=2).batch(3, rank=rank) for rank in range(2)]
    assert all(torch.equal(part.image, whole.image[rank::2]) for rank, part in enumerate(parts))


def test_memory_is_shared(pair, quick):
    events = core.iter_train(pair, config=quick(memory=6e-5, steps=1))
    assert any("even sample" in note for note in next(events).notes)
    events.close()
    made = sampler(pair, quick(memory=6e-5))
    assert {block.volume.index for block in made.labelled} == {0, 1}
    size = sum(block.image.nbytes + block.target.nbytes for block in made.labelled)
    assert size <= 6e4


# ---------------------------------------------------------------- resuming, painting, teachers


@pytest.mark.parametrize("stop", [1, 4, 7])
def test_resuming_is_exact(pair, quick, tmp_path, stop):
    config, out = quick(k=2, depth=2, steps=6, validations=3, volume_weights=(1, 3)), tmp_path / "m.safetensors"
    expected = trace(core.iter_train(pair, config=config))
    events = core.iter_train(pair, config=config, out=out)
    before = [next(events) for _ in range(stop)]
    events.close()
    assert trace(before) + trace(core.iter_train(pair, config=config, out=out, resume=True)) == expected


def test_slices_that_are_painted_on_are_of_the_first_volume(pair, quick):
    """Its labels are read again while those of another volume are learnt from as they were."""
    (raw, truth), other = pair
    labels, config = truth.copy(), quick(val_share=0.0, steps=4)
    data = prepare([(raw, labels), other], None, config, CPU)

    def slices(index: int) -> set[int]:
        return {block.z for block in data.sampler.labelled if block.volume.index == index}

    labels[0] = 0
    data.read_again(0)
    assert slices(0) == {1, 2, 3, 4, 5}
    assert slices(1) == set(range(7))
    assert data.validations[0].slices == (1, 2, 3, 4, 5)
    assert data.validations[1].slices == tuple(range(7))
    labels[0] = truth[0]
    data.read_again(0)
    data.read_again(6)  # there is none in the first volume
    assert slices(0) == set(range(6))
    assert slices(1) == set(range(7))


def test_distilling_on_several_volumes(pair, together, quick):
    """A pair without labels is learnt from through the teacher alone, and is not validated on beside labels."""
    (bright, labels), (dark, _) = pair
    config = quick(mode="mixed", steps=2)
    started, *_ = core.iter_distill(together[-1].model, [(bright, labels), (dark, None)], config=config)
    assert (len(started.labelled_slices), started.unlabelled_slices) == (5, 7)
    assert started.val_volumes == ("bright",)
    started, *_ = core.iter_distill(together[-1].model, [(bright, None), (dark, None)], config=config)
    assert started.validated_on == "teacher"
    assert started.val_volumes == ("bright", "dark")
    assert started.unlabelled_slices == 11


# ---------------------------------------------------------------- wrong input


def test_wrong_input(pair, quick, one_line):
    (raw, labels), other = pair
    with one_line(core.VolumeError, "list of pairs"):
        core.train([], config=quick())
    with one_line(core.VolumeError, "list of pairs"):
        core.train([(raw, labels), (raw,)], config=quick())
    with one_line(core.LabelsError, "dark", "neither labels"):
        core.train([(raw, labels), (other[0], None)], config=quick())
    with one_line(core.LabelsError, "foreground"):
        core.train([(raw, labels), (other[0], 0 * other[1])], config=quick())
    with one_line(core.ConfigError, "slices names z=6"):
        core.train([other, (raw, labels)], config=quick(slices=(2, 6)))
    with one_line(core.ConfigError, "volume_weights", "3 numbers for 2 volumes"):
        core.train(pair, config=quick(volume_weights=(1, 2, 3)))
    with one_line(core.VolumeError, "cannot teach"):
        core.distill(labels > 0, pair, config=quick(mode="mixed"))
