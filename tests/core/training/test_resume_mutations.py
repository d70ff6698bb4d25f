"""Damaged states to resume from: the training goes on, or one line says what to do, and the best model is usable."""

from __future__ import annotations

import pytest

from mutations import MEGABYTES, damaged_safetensors, join_safetensors, keeps_promise, peak_megabytes, split_safetensors
from napari_kdunet import core


@pytest.fixture(scope="module")
def stopped(blobs, quick, tmp_path_factory):
    """A training that was stopped once it had a model, and how to go on with it."""
    folder = tmp_path_factory.mktemp("stopped")
    out, state = folder / "m.safetensors", folder / "m.resume.safetensors"
    config, (raw, labels) = quick(k=1, depth=1, steps=40, validations=4, batch=4, lr=0.02), blobs((6, 32, 32))
    events = core.iter_train(raw, labels, config, out=out)
    for _ in range(34):
        next(events)
    events.close()
    assert out.is_file()

    def resume():
        events = core.iter_train(raw, labels, config, out=out, resume=True)
        started = next(events)
        return started, events

    return out, state, state.read_bytes(), resume


def test_a_damaged_state_says_what_to_do(stopped, one_line):
    out, state, whole, resume = stopped
    for bit in range(0, 8 * len(whole), 8 * len(whole) // 61):
        data = bytearray(whole)
        data[bit // 8] ^= 1 << bit % 8
        state.write_bytes(data)
        with one_line(core.ModelError, str(state), "start anew without --resume", f"{out}, is still usable"):
            resume()
    assert core.load_model(out).net.k == 1
    state.write_bytes(whole)


def test_without_a_model_beside_it_none_is_named(stopped, one_line):
    out, state, whole, resume = stopped
    model = out.read_bytes()
    state.write_bytes(whole[:-3])
    for content in (None, model[:-3]):
        out.unlink() if content is None else out.write_bytes(content)
        with one_line(core.ModelError, str(state), "start anew") as caught:
            resume()
        assert "usable" not in str(caught.value)
    out.write_bytes(model)
    state.write_bytes(whole)


def test_a_state_of_an_older_version_is_resumed(stopped):
    """Which has no checksum."""
    _, state, whole, resume = stopped
    state.write_bytes(whole)
    expected = [event.loss for event in resume()[1] if isinstance(event, core.Stepped)]
    state.write_bytes(join_safetensors(*split_safetensors(whole)))
    assert b"crc32" not in state.read_bytes()
    assert [event.loss for event in resume()[1] if isinstance(event, core.Stepped)] == expected
    assert expected


@pytest.mark.parametrize(
    "seeds", [range(50), pytest.param(range(50, 1050), marks=pytest.mark.exhaustive)], ids=["quick", "many"]
)
def test_any_state_is_resumed_or_one_line(stopped, seeds):
    _, state, whole, resume = stopped
    before, refused = peak_megabytes(), 0
    for seed in seeds:
        state.write_bytes(damaged_safetensors(whole, seed))
        try:
            refused += isinstance(keeps_promise(resume), core.InputError)
        except BaseException as error:
            raise AssertionError(f"seed {seed}") from error
    assert peak_megabytes() - before < MEGABYTES
    assert refused > len(seeds) / 2
