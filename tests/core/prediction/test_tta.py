"""Averaging over mirror images and quarter turns: of what, at which tile, and for which networks it is nothing."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from napari_kdunet import core


def noise(shape, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 255, shape, dtype=np.uint8)


def symmetries(image: np.ndarray, views: int) -> list[np.ndarray]:
    """The first views of an image (..., Y, X), each its own inverse but for the quarter turns, which come in pairs."""
    turned = np.rot90(image, axes=(-2, -1))
    seen = [image, image[..., ::-1], image[..., ::-1, :], np.rot90(image, 2, axes=(-2, -1))]
    seen += [turned, np.rot90(turned, 2, axes=(-2, -1)), turned[..., ::-1], turned[..., ::-1, :]]
    return seen[:views]


BACK = (0, 1, 2, 3, 5, 4, 6, 7)  # which of them undoes each


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("views", [1, 2, 4, 8])
def test_views_are_the_mean_of_the_logits_of_mirror_images_and_quarter_turns(model, views, classes):
    raw, made = noise((2, 32, 48)), model(2, depth=2, classes=classes)
    for z in range(2):
        image = ((raw[z] - raw[z].mean()) / raw[z].std()).astype(np.float32)
        logits = []
        for i, view in enumerate(symmetries(np.pad(image, 4, mode="reflect"), views)):
            with torch.no_grad():
                seen = made.net(torch.from_numpy(view.copy())[None, None])[0].numpy()
            logits.append(symmetries(seen, 8)[BACK[i]])
        mean = torch.from_numpy(np.mean(logits, axis=0))
        expected = 1 - mean.softmax(dim=0)[0, 4:-4, 4:-4].numpy()
        np.testing.assert_allclose(core.predict(made, raw, views=views)[z].compute(), expected, atol=1e-5)


@settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(
    shape=st.tuples(st.just(1), st.integers(1, 90), st.integers(1, 90)),
    tile=st.integers(12, 60),
    size=st.sampled_from([0.0, 4.6, 8.0, 20.0]),
    depth=st.integers(1, 3),
    views=st.sampled_from([2, 4, 8]),
    seed=st.integers(0, 99),
)
def test_tiled_equals_untiled(model, shape, tile, size, depth, views, seed):
    raw = core.open_volume(noise(shape, seed), voxel_size=(40.0, size, size * 1.3) if size else None)
    made = model(1, depth=depth, pixel_size=10.0, seed=seed)
    whole = core.predict(made, raw, tile=10_000, views=views)
    assert whole.npartitions == 1
    np.testing.assert_allclose(core.predict(made, raw, tile=tile, views=views).compute(), whole.compute(), atol=2e-5)


def test_of_a_network_that_is_symmetric_itself_views_change_nothing(model):
    raw, made = noise((1, 70, 45)), model(2, depth=3)
    plain, seen = core.predict(made, raw).compute(), core.predict(made, raw, views=8).compute()
    assert np.abs(seen - plain).max() > 0.01
    with torch.no_grad():
        for module in made.net.modules():
            if isinstance(module, torch.nn.Conv2d | torch.nn.ConvTranspose2d):
                same = [module.weight.rot90(turn, (-2, -1)) for turn in range(4)]
                module.weight.copy_(torch.stack([*same, *(m.flip(-1) for m in same)]).mean(dim=0))
    plain = core.predict(made, raw, tile=32).compute()
    assert np.ptp(plain) > 0.01
    for views in (2, 4, 8):
        np.testing.assert_allclose(core.predict(made, raw, tile=32, views=views).compute(), plain, atol=1e-5)


def test_a_foreign_network_is_averaged_too(model):
    class Right(torch.nn.Module):
        """What is to the right of each pixel."""

        def forward(self, x):
            return torch.cat((torch.zeros_like(x), x.roll(-1, dims=-1)), dim=1)

    raw = noise((1, 40, 70))
    z = np.pad((raw[0] - raw.mean()) / raw.std(), 1, mode="reflect")
    beside = [z[1:-1, 2:], z[1:-1, :-2], z[2:, 1:-1], z[:-2, 1:-1]]  # the four neighbours, each seen by two of 8 views
    for views, seen in ((1, beside[:1]), (2, beside[:2]), (4, beside[:2]), (8, beside)):
        out = core.predict(core.Model(Right(), 0.0), raw, tile=32, views=views).compute()[0]
        np.testing.assert_allclose(out, 1 / (1 + np.exp(-np.mean(seen, axis=0))), atol=1e-5)


@pytest.mark.parametrize(("said", "views"), [(4, 4), (None, 1), (3, 1), (4.0, 1), ("8", 1), ([4], 1), (10**30, 1)])
def test_as_many_views_as_the_model_says(model, said, views):
    """A file may be somebody else's: what is no number of views is none."""
    raw, made = noise((2, 40, 70)), model(2, depth=3)
    made = core.Model(made.net, made.pixel_size, summary={} if said is None else {"views": said})
    assert made.views == views
    given, other = (core.predict(made, raw, views=number).compute() for number in (views, 5 - views))
    assert np.array_equal(core.predict(made, raw).compute(), given)
    assert np.abs(given - other).max() > 0.01


def test_a_model_is_told_its_views_and_says_so_in_its_file(model, tmp_path):
    made = model(2, depth=3)
    made = core.Model(made.net, made.pixel_size, summary={"seconds": 3.0})
    again = core.load_model(made.with_views(8).save(tmp_path / "m.safetensors"))
    assert (again.views, made.views, again.summary["seconds"]) == (8, 1, 3.0)
    raw = noise((1, 40, 70))
    assert np.array_equal(core.predict(again, raw).compute(), core.predict(made, raw, views=8).compute())
    assert again.with_views(1).views == 1


@pytest.mark.parametrize("views", [0, 3, 16])
def test_other_numbers_of_views(model, one_line, views):
    with one_line(core.ConfigError, f"views is {views}", "1, 2, 4 or 8"):
        core.predict(model(), noise((1, 8, 8)), views=views)
    with one_line(core.ConfigError, f"views is {views}", "1, 2, 4 or 8"):
        model().with_views(views)
