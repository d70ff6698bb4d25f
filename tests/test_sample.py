"""The embedded volume: deterministic, of any size, EM-like, and not to be had by a threshold."""

import subprocess
import sys
from functools import cache

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import ndimage

from napari_kdunet.sample import VOXEL_SIZE, Look, synthetic_em, synthetic_family

Bytes = NDArray[np.uint8]
SEEDS = (0, 1, 2)


@cache
def volume(seed: int) -> tuple[Bytes, Bytes]:
    """The default volume of a seed, made once."""
    return synthetic_em(seed=seed)


def best_band_iou(image: Bytes, labels: Bytes) -> float:
    """Highest IoU of `low <= image < high` over all bands: one-sided thresholds of either sign are among them."""
    total = np.append(0, np.cumsum(np.bincount(image.ravel(), minlength=256)))
    hit = np.append(0, np.cumsum(np.bincount(image[labels > 0], minlength=256)))
    inside, overlap = total - total[:, None], hit - hit[:, None]
    return float((overlap / np.maximum(inside + hit[-1] - overlap, 1)).max())


@pytest.mark.parametrize("shape", [(1, 32, 32), (1, 64, 64), (3, 45, 71), (5, 33, 128), (2, 200, 32)])
def test_any_shape(shape: tuple[int, int, int]) -> None:
    raw, labels = synthetic_em(shape, seed=3)
    assert raw.shape == labels.shape == shape
    assert raw.dtype == labels.dtype == np.uint8
    assert np.unique(labels).tolist() == [0, 1]
    assert raw.std() > 20


@pytest.mark.parametrize("seed", range(12))
def test_even_the_smallest_volume_shows_both_classes(seed: int) -> None:
    labels = synthetic_em((1, 32, 32), seed=seed)[1]
    assert 0 < labels.mean() < 1


def test_default_volume() -> None:
    raw, labels = volume(0)
    assert raw.shape == labels.shape == (48, 256, 256)
    assert VOXEL_SIZE == (10, 10, 10)


def test_same_seed_same_bytes() -> None:
    first, again, other = (synthetic_em((4, 64, 96), seed=seed) for seed in (5, 5, 6))
    for a, b, c in zip(first, again, other, strict=True):
        assert np.array_equal(a, b)
        assert not np.array_equal(a, c)


def test_the_global_random_state_is_left_alone() -> None:
    before = np.random.get_state(legacy=False)  # noqa: NPY002
    synthetic_em((1, 32, 32))
    np.testing.assert_equal(np.random.get_state(legacy=False), before)  # noqa: NPY002


def test_smaller_voxels_show_less_tissue_in_more_detail() -> None:
    def width(voxel: float) -> float:
        """Mean thickness in pixels: the area of the mitochondria over their outline."""
        labels = synthetic_em((2, 256, 256), voxel_size=(50, voxel, voxel), seed=1)[1]
        outline = labels - ndimage.binary_erosion(labels, np.ones((1, 3, 3)))
        return float(labels.sum() / outline.sum())

    assert width(5.0) > 1.4 * width(10.0)


@pytest.mark.parametrize("shape", [(0, 32, 32), (1, 31, 32), (1, 32, 31), (32, 32)])
def test_too_small_a_shape(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="at least"):
        synthetic_em(shape)  # type: ignore[arg-type]


@pytest.mark.parametrize("voxel_size", [(10, 10), (10, 0, 10), (10, 10, 101), (10, 10, float("nan"))])
def test_impossible_voxel_size(voxel_size: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="voxel_size"):
        synthetic_em((1, 32, 32), voxel_size=voxel_size)  # type: ignore[arg-type]


@pytest.mark.parametrize("seed", SEEDS)
def test_mitochondria_take_a_plausible_share(seed: int) -> None:
    assert 0.05 < volume(seed)[1].mean() < 0.12


@pytest.mark.parametrize("seed", SEEDS)
def test_grey_values_are_like_fib_sem(seed: int) -> None:
    """Lucchi at 10 nm: mean 140, deviation 43, percentiles 5 and 95 at 73 and 203, mitochondria at 96."""
    raw, labels = volume(seed)
    assert 125 < raw.mean() < 155
    assert 36 < raw.std() < 48
    assert 60 < np.percentile(raw, 5) < 90
    assert 190 < np.percentile(raw, 95) < 220
    assert 85 < raw[labels > 0].mean() < 115
    assert np.isin(raw, (0, 255)).mean() < 0.01


@pytest.mark.parametrize("seed", SEEDS)
def test_no_threshold_finds_the_mitochondria(seed: int) -> None:
    raw, labels = volume(seed)
    for sigma in (0, 1, 1.5, 2, 2.5, 3, 4, 6, 8):
        for sigmas in ((0, sigma, sigma), (sigma, sigma, sigma)):
            assert best_band_iou(ndimage.gaussian_filter(raw, sigmas), labels) < 0.5


def test_contrast_flickers_and_some_slices_are_noisy() -> None:
    raw = np.concatenate([volume(seed)[0] for seed in SEEDS]).astype(np.float32)
    jumps = np.abs(np.diff(raw.mean((1, 2))))
    assert np.median(jumps) > 2
    noise = (raw - ndimage.gaussian_filter(raw, (0, 1, 1))).std((1, 2))
    assert noise.max() > 1.5 * np.median(noise)


@pytest.mark.parametrize("seed", SEEDS)
def test_structures_continue_from_slice_to_slice(seed: int) -> None:
    raw, labels = volume(seed)
    above, below = labels[:-1] > 0, labels[1:] > 0
    assert (above & below).sum() / (above | below).sum() > 0.8
    smooth = ndimage.gaussian_filter(raw.astype(np.float32), (0, 1, 1)).reshape(len(raw), -1)
    near, far = (np.mean([np.corrcoef(smooth[i], smooth[i + d])[0, 1] for i in range(0, 36, 6)]) for d in (1, 12))
    assert near > 0.8 > 0.6 > far


@pytest.mark.parametrize("seed", SEEDS)
def test_distractors(seed: int) -> None:
    """Much more than the mitochondria is as dark as they are, and some of it thick: neurites, lysosomes, synapses."""
    raw, labels = volume(seed)
    smooth = ndimage.gaussian_filter(raw.astype(np.float32), (0, 1.5, 1.5))
    dark = (smooth < np.percentile(smooth[labels > 0], 90)) & (labels == 0)
    assert dark.sum() > labels.sum()
    assert ndimage.binary_opening(dark, np.ones((3, 7, 7))).sum() > 0.2 * labels.sum()


@cache
def family() -> tuple[Bytes, Bytes]:
    """Twelve members of one slice each."""
    return synthetic_family(12, (1, 128, 128), seed=4)


def test_members_of_a_family_differ_in_stain_and_noise() -> None:
    raw, labels = family()
    assert raw.shape == labels.shape == (12, 128, 128)
    assert raw.dtype == labels.dtype == np.uint8
    assert np.unique(labels).tolist() == [0, 1]
    darker = [float(image[mask == 0].mean() - image[mask > 0].mean()) for image, mask in zip(raw, labels, strict=True)]
    noise = [float((image - ndimage.gaussian_filter(image, 1.0)).std()) for image in raw.astype(np.float32)]
    assert max(darker) > 60
    assert min(darker) < 15
    assert max(noise) > 3 * min(noise)


def test_same_seed_same_family() -> None:
    again, other = (synthetic_family(2, (1, 64, 64), seed=seed)[0] for seed in (4, 5))
    assert np.array_equal(again, synthetic_family(2, (1, 64, 64), seed=4)[0])
    assert not np.array_equal(again, other)


def test_a_frame_is_one_grey_value_and_holds_no_mitochondrion() -> None:
    plain, everywhere = synthetic_em((2, 128, 128), seed=3)
    raw, labels = synthetic_em((2, 128, 128), seed=3, look=Look(frame=1))
    for before, image, mask, seen in zip(plain, raw, labels, everywhere, strict=True):
        corner = int(image[0, 0])
        frame = (image == corner) & (before != corner)
        assert corner in (0, 255)
        assert 0.1 < frame.mean() < 0.6
        assert not mask[frame].any()
        assert np.array_equal(mask[~frame & (image != corner)], seen[~frame & (image != corner)])


def test_a_cell_body_is_wide_and_holds_a_nucleus_without_mitochondria() -> None:
    """The widest stretch without a mitochondrion: the radius in pixels of the largest disc between them."""

    def widest(look: Look) -> float:
        labels = synthetic_em((1, 256, 256), voxel_size=(20, 20, 20), seed=1, look=look)[1]
        return float(ndimage.distance_transform_edt(labels[0] == 0).max())

    assert widest(Look(soma=1)) > 1.3 * widest(Look())


def test_myelin_is_dark_and_thick() -> None:
    def thick_and_dark(look: Look) -> float:
        raw, labels = synthetic_em((1, 256, 256), seed=2, look=look)
        smooth = ndimage.gaussian_filter(raw[0].astype(np.float32), 1.5)
        return float(ndimage.binary_opening((smooth < 75) & (labels[0] == 0), np.ones((5, 5))).mean())

    assert thick_and_dark(Look(myelin=1)) > 2 * thick_and_dark(Look()) + 0.01


def test_neither_torch_nor_napari_is_imported() -> None:
    code = "import sys, napari_kdunet.sample; sys.exit(bool({'torch', 'napari', 'qtpy', 'dask'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
