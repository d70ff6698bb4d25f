"""Messages of errors: short, and nothing in them that a terminal obeys."""

from __future__ import annotations

import pickle

import pytest

from napari_kdunet import core


@pytest.mark.parametrize("kind", [core.KDUNetError, core.VolumeError, core.OutputError, core.TrainingError])
def test_messages_are_bounded(kind):
    assert str(kind("a.tif is empty: give another")) == "a.tif is empty: give another"
    odd = kind(f"cannot write \x1b[31m\n{'x' * 6000}: give another name")
    assert str(odd).isprintable()
    assert len(str(odd)) < 300
    assert str(odd).startswith(r"cannot write \x1b[31m\nxx")
    assert str(odd).endswith("xx: give another name")
    assert str(pickle.loads(pickle.dumps(odd))) == str(odd)


def test_what_is_not_labelled_comes_back_from_another_process():
    error = core.UnlabelledError("mito has no background", "background", "mito", [2, 5])
    again = pickle.loads(pickle.dumps(error))
    assert (str(again), again.missing, again.labels, again.slices) == (str(error), "background", "mito", (2, 5))
