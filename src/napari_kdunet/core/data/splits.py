"""Which slices are labelled, and which of them are held out for validation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from napari_kdunet.core.config.training import TrainConfig
from napari_kdunet.core.errors import ConfigError, UnlabelledError, VolumeError
from napari_kdunet.core.volumes.labels import read_classes
from napari_kdunet.core.volumes.volume import Volume, open_pair, open_volume

__all__ = ["held_out_slices", "hold_out", "is_labelled", "labelled_slices"]


def labelled_slices(labels: Volume, config: TrainConfig) -> tuple[int, ...]:
    """Return the z of the labelled slices among those that `config.slices` names.

    Raises
    ------
    UnlabelledError
        If nothing is labelled, or nothing as foreground.
    ConfigError
        If a named slice does not exist.
    """
    if isinstance(config.slices, tuple):
        if max(config.slices) >= labels.shape[0]:
            last = labels.shape[0] - 1
            raise ConfigError(f"slices names z={max(config.slices)}, but {labels.name} has slices 0 to {last}.")
        candidates: Sequence[int] = sorted(set(config.slices))
    else:
        candidates = range(labels.shape[0])
    labelled, any_foreground = [], False
    for z in candidates:
        counts, positive = is_labelled(labels, z, config)
        any_foreground = any_foreground or positive
        if counts:
            labelled.append(z)
    named = candidates if isinstance(config.slices, tuple) else ()
    if not labelled and config.ignore is not None:
        why = f"{labels.name} holds nothing but the ignore value {config.ignore}: label some pixels."
        raise UnlabelledError(why, "both", labels.name, named)
    if not any_foreground:
        why = f"{labels.name} has no foreground: label some before training."
        raise UnlabelledError(why, "foreground", labels.name, named)
    return tuple(labelled)


def is_labelled(labels: Volume, z: int, config: TrainConfig) -> tuple[bool, bool]:
    """Return whether a slice counts as labelled, and whether it has foreground.

    With slices="auto" and no ignore value, a slice without foreground does not count: perhaps nobody has looked at it.
    """
    index = read_classes(labels, z, classes=config.label_classes, ignore=config.ignore)
    known, positive = bool((index >= 0).any()), bool((index > 0).any())
    return (known if config.slices != "auto" or config.ignore is not None else positive), positive


def held_out_slices(slices: tuple[int, ...], share: float) -> tuple[int, ...]:
    """Return the middle of the slices, about `share` of them; none if that is less than one, and never all.

    The middle is like the rest, whereas the ends of a stack are often cut, bent or noisy. If there are few slices, each
    is worth more to learn from than to validate on.
    """
    count = min(round(len(slices) * share), len(slices) - 1) if len(slices) * share >= 1 else 0
    first = (len(slices) - count) // 2
    return slices[first : first + count]


def hold_out(raw: Any, labels: Any, share: float = 0.25) -> tuple[tuple[Volume, Volume], tuple[Volume, Volume]]:
    """Split a labelled volume in z: one part to train on, and its last slices to score on.

    Parameters
    ----------
    raw, labels : volume
        Anything that `open_volume` takes, ZYX.
    share : float
        About this share of the slices is held out, at least one.

    Returns
    -------
    pair, pair of Volume
        Raw and labels of the first part, and of the last.

    Raises
    ------
    VolumeError, LabelsError
        If the volumes cannot be used, or there is but one slice.
    """
    volumes = open_pair(raw, labels)
    count = volumes[0].shape[0]
    if count < 2:
        raise VolumeError(
            f"{volumes[0].name} is one slice, of which nothing can be held out: give a volume to score on."
        )
    cut = count - max(1, round(share * count))

    def part(volume: Volume, first: int, last: int) -> Volume:
        name = f"{volume.name}[{first}:{last}]"
        sample = None if volume.sample is None else volume.sample.data[first:last]
        pixels = volume.data[first:last]
        return open_volume(pixels, voxel_size=volume.voxel_size, name=name, fill=volume.fill, sample=sample)

    first, last = ((part(volumes[0], *z), part(volumes[1], *z)) for z in ((0, cut), (cut, count)))
    return first, last
