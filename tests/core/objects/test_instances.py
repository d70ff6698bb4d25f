"""Objects from masks and probabilities: they come apart, and do not depend on the blocks they are found in."""

import os
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from skimage.segmentation import expand_labels

from napari_kdunet import core
from napari_kdunet.core.objects import blocks
from napari_kdunet.core.objects.foreground import _pooled
from napari_kdunet.sample import synthetic_em

CUBES = (10.0, 10.0, 10.0)


def balls(shape, *centres_and_radii):
    grid = np.indices(shape)
    near = [((grid - np.reshape(c, (3, 1, 1, 1))) ** 2).sum(0) <= r * r for c, r in centres_and_radii]
    return np.logical_or.reduce(near)


def found(prediction, voxel_size=CUBES, block=None, **settings_):
    how = core.ObjectsConfig(**{"min_diameter": 0.0, **settings_})
    return np.asarray(core.instances(prediction, how, voxel_size=voxel_size, block=block))


def noisy(seed, shape=(20, 40, 44)):
    """Blobs of all sizes with holes, as probabilities."""
    rng = np.random.default_rng(seed)
    field = ndimage.gaussian_filter(rng.standard_normal(shape, np.float32), 2.5)
    field = 0.5 + field / field.std() / 4 + 0.05 * rng.standard_normal(shape, np.float32)
    return np.clip(field, 0, 1).astype(np.float32)


@pytest.mark.parametrize("neck", ["shape", "probability"])
def test_two_that_touch_come_apart(neck):
    if neck == "shape":
        volume = balls((30, 30, 60), ((15, 15, 17), 12), ((15, 15, 38), 12)).astype(np.float32)
    else:  # a bar whose probability falls in the middle
        volume = np.zeros((30, 30, 60), np.float32)
        volume[8:22, 8:22, 5:55] = 0.95
        volume[8:22, 8:22, 29:31] = 0.55
    ids = found(volume)
    assert ids.max() == 2
    assert ids[15, 15, 15] != ids[15, 15, 45]
    assert np.array_equal(ids > 0, volume > 0.5)  # nothing is lost between them
    assert found(volume, split=0.0).max() == 1


def test_one_that_bends_stays_one():
    turn = np.linspace(0, np.pi, 60)
    path = [((15, 15 + 30 * np.sin(a), 45 + 30 * np.cos(a)), 8) for a in turn]
    assert found(balls((30, 60, 90), *path)).max() == 1


@settings(max_examples=6, deadline=None)
@given(
    st.integers(0, 2**16),
    st.tuples(st.integers(6, 20), st.integers(15, 40), st.integers(15, 44)),
    st.sampled_from([CUBES, (5.0, 5.0, 5.0), (40.0, 8.0, 8.0), (8.0, 4.0, 6.0)]),
    st.sampled_from([0.0, 8.0]),
)
def test_blocks_give_what_the_whole_gives(seed, block, voxel_size, smoothing):
    volume = noisy(seed)
    whole = found(volume, voxel_size, (20, 40, 44), smoothing=smoothing)
    assert whole.max() > 3
    assert np.array_equal(found(volume, voxel_size, block, smoothing=smoothing), whole)


def test_blocks_with_outlines_give_what_the_whole_gives():
    config, outlines = core.ObjectsConfig(min_diameter=0.0), np.minimum(noisy(5), noisy(6)) / 2
    how = {"boundary": outlines, "voxel_size": CUBES}
    whole = np.asarray(core.instances(noisy(5), config, **how))
    assert np.array_equal(np.asarray(core.instances(noisy(5), config, block=(7, 16, 9), **how)), whole)
    assert not np.array_equal(whole, found(noisy(5)))
    assert np.array_equal(whole > 0, found(noisy(5)) > 0)


def test_larger_than_memory_is_the_same(tmp_path, monkeypatch):
    expected = found(noisy(0))
    monkeypatch.setattr(blocks, "_IN_MEMORY", 0)
    how = core.ObjectsConfig(min_diameter=0)
    ids = core.instances(noisy(0), how, voxel_size=CUBES, block=(16, 16, 16), scratch=tmp_path)
    assert list(tmp_path.iterdir())
    assert np.array_equal(np.asarray(ids), expected)
    del ids
    assert not list(tmp_path.iterdir())


def test_files_and_bytes_are_read_like_arrays(tmp_path):
    volume = np.rint(noisy(1) * 255).astype(np.uint8)
    expected = found((volume / np.float32(255)).astype(np.float32))
    core.write_volume(volume, tmp_path / "p.tif", voxel_size=CUBES)
    how = core.ObjectsConfig(min_diameter=0)
    assert np.array_equal(np.asarray(core.instances(tmp_path / "p.tif", how, block=(8, 16, 30))), expected)


def test_ids_run_from_one_along_z():
    ids = found(noisy(2))
    assert np.unique(ids).tolist() == list(range(ids.max() + 1))
    assert np.array_equal(found(noisy(2)), ids)


def test_small_ones_are_left_out_by_their_size_in_nm():
    volume = balls((40, 40, 90), ((20, 20, 20), 4), ((20, 20, 60), 9))
    for diameter, left in ((70, 2), (95, 1), (170, 1), (200, 0)):  # their own are some 80 and 180 nm
        assert found(volume, min_diameter=float(diameter)).max() == left
    assert found(volume, (20.0, 20.0, 20.0), min_diameter=95.0).max() == 2  # they are twice as large now


@pytest.mark.parametrize("voxel_size", [CUBES, (50.0, 10.0, 10.0)])
def test_holes_up_to_a_width_are_filled(voxel_size):
    volume = balls((25, 40, 40), ((12, 20, 20), 11)).astype(bool)
    volume[12, 19:22, 19:22] = False  # 30 nm wide
    assert (found(volume, voxel_size, holes=30.0) > 0).sum() == volume.sum() + 9
    assert (found(volume, voxel_size, holes=20.0) > 0).sum() == volume.sum()
    volume[12, 20, 20:] = False  # a slit to the outside is no hole
    assert volume.sum() <= (found(volume, voxel_size, holes=30.0) > 0).sum() <= volume.sum() + 8 * (voxel_size[0] > 10)


def test_slices_far_apart_are_linked_by_overlap():
    volume = np.zeros((4, 40, 60), bool)
    volume[:, 10:30, 10:30] = True  # one through all slices
    volume[:2, 10:30, 40:50] = True  # two that hardly overlap
    volume[2:, 28:38, 48:58] = True
    ids = found(volume, (50.0, 10.0, 10.0))
    assert ids.max() == 3
    assert len(np.unique(ids[:, 20, 20])) == 1
    assert found(volume, (50.0, 10.0, 10.0), link=0.0).max() == 2
    assert found(volume, (20.0, 10.0, 10.0), split=0.0).max() == 2  # in 3-D they touch
    assert found(volume, (20.0, 10.0, 10.0), mode="2d").max() == 3


def test_mitochondria_of_the_synthetic_volume():
    """Those of the truth; and where they are drawn 50 nm wider, so that they touch, most come apart again."""
    _, truth = synthetic_em(instances=True)
    assert core.score_objects(found(truth > 0, holes=0.0), truth).f1() > 0.97
    wider = expand_labels(truth, 5)
    together = core.score_objects(found(wider > 0, holes=0.0, split=0.0), wider)
    apart = core.score_objects(found(wider > 0, holes=0.0), wider)
    assert together.merges > 8
    assert apart.merges <= 2
    assert apart.f1() > 0.95 > together.f1()


@pytest.mark.data
@pytest.mark.skipif("KDUNET_DATA" not in os.environ, reason="KDUNET_DATA names no folder of real volumes")
def test_sections_of_a_fly():
    """Outlines of vnc-train, drawn 55 nm wider so that neighbours merge: some come apart again, and F1 rises.

    The contacts are often as wide as the mitochondria, so that no shape tells them apart: 20 merges become 14.
    """
    labels = np.asarray(core.open_volume(Path(os.environ["KDUNET_DATA"]) / "vnc-train-labels.tif"))[:4] > 0
    merged = apart = 0
    for section in labels:
        truth = expand_labels(ndimage.label(section)[0], 12)[None]
        size = (50.0, 4.6, 4.6)
        together = core.score_objects(found(truth > 0, size, split=0.0, holes=0.0), truth)
        split = core.score_objects(found(truth > 0, size, holes=0.0), truth)
        merged, apart = merged + together.merges, apart + split.merges
        assert split.f1() > together.f1()
    assert apart <= 0.75 * merged


def test_a_mask_of_nothing():
    assert found(np.zeros((5, 20, 20), bool)).max() == 0


def test_what_cannot_be():
    with pytest.raises(core.VolumeError, match=r"voxel size of .* is not known"):
        core.instances(np.zeros((5, 20, 20), bool))
    with pytest.raises(core.VolumeError, match="not a probability"):
        core.instances(np.full((5, 20, 20), 3, np.float32), voxel_size=CUBES)
    with pytest.raises(core.ConfigError, match="split is 2"):
        core.ObjectsConfig(split=2.0)


def test_progress_and_stop():
    seen = []
    core.instances(noisy(0), voxel_size=CUBES, block=(5, 20, 44), progress=seen.append)
    assert seen == sorted(seen)
    assert seen[-1] == 1

    def stop(share):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        core.instances(noisy(0), voxel_size=CUBES, progress=stop)


def test_memory_does_not_grow_with_depth(tmp_path, monkeypatch):
    """What blocks hand on are tables of basins, not of all the paths that cross their faces."""
    monkeypatch.setattr(blocks, "_IN_MEMORY", 2**10)

    def peak(depth):
        bar = np.zeros((depth, 64, 64), bool)
        bar[:, 4:60, 4:60] = True
        tracemalloc.start()
        core.instances(bar, voxel_size=(40.0,) * 3, block=(16, 32, 32), scratch=tmp_path)
        memory = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return memory

    assert peak(512) < 2 * peak(64)


def test_holes_of_a_single_slice_are_filled():
    volume = np.zeros((1, 60, 60), bool)
    volume[0, 20:40, 20:40] = True
    volume[0, 29:32, 29:32] = False
    for mode in ("auto", "3d", "2d"):
        assert (found(volume, (5.0, 5.0, 5.0), holes=30.0, mode=mode) > 0).sum() == 400


def test_the_mean_of_a_cell_of_many_voxels():
    """A sum of so many 16-bit numbers takes more than 32 bits."""
    assert _pooled(np.full((60, 60, 60), 2**16 - 1, np.uint16), (50, 50, 50)).tolist() == np.ones((2, 2, 2)).tolist()
