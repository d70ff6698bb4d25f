"""What a training learns from and what it is judged by, opened, checked and loaded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from napari_kdunet.core.config import DistillConfig, TrainConfig
from napari_kdunet.core.data.patches import Pool, Source, load_blocks
from napari_kdunet.core.data.splits import Validation, is_labelled, labelled_slices, spaced, split
from napari_kdunet.core.data.teachers import Teaching
from napari_kdunet.core.devices import training_threads
from napari_kdunet.core.errors import UnlabelledError, VolumeError
from napari_kdunet.core.networks.model import Model
from napari_kdunet.core.volumes.volume import Volume, check_labels, open_volume

__all__ = ["Dataset", "prepare"]


@dataclass
class Dataset:
    """All that a training reads."""

    pool: Pool
    validation: Validation
    labelled_slices: tuple[int, ...]
    unlabelled_slices: int
    pixel_size: float
    """The image's own, nm; 0 where it is not known."""
    image: Volume
    labels: Volume | None
    held_out: frozenset[int]
    notes: tuple[str, ...] = field(default=())

    def read_again(self, z: int) -> None:
        """Take slice `z` as it is labelled by now; one that is held out is judged by it, not learnt from."""
        config = self.pool.config
        if self.labels is None or z in self.held_out or not 0 <= z < self.labels.shape[0]:
            return
        counts, _ = is_labelled(self.labels, z, config)
        source = Source(self.image, self.labels, slices=(z,) if counts else ())
        self.pool.replace(z, load_blocks(source, config, int(config.memory * 1e9))[0])
        if self.validation.kind == "training slices":
            slices = tuple(sorted({block.z for block in self.pool.labelled}))
            self.validation = replace(self.validation, slices=spaced(slices, config.val_slices))


def prepare(
    raw: Any,
    labels: Any | None,
    config: TrainConfig,
    device: torch.device,
    *,
    val: tuple[Any, Any] | None = None,
    teacher: Model | Volume | None = None,
    unlabelled: Sequence[Any] = (),
    processes: int = 1,
) -> Dataset:
    """Open, check, split and load everything.

    Parameters
    ----------
    raw, labels : volume
        ZYX; labels may be None where there is a teacher.
    config : TrainConfig
        Which slices, which share to hold out, how much memory.
    device : torch.device
        Where the batches go.
    val : pair of volumes, optional
        Raw and labels to validate on instead of a held-out share.
    teacher : Model or Volume, optional
        With a teacher the slices that are not labelled are learnt from too; a Volume is its probability of `raw`.
    unlabelled : sequence of volumes
        More raw volumes that only the teacher speaks of.
    processes : int
        How many share each step's batch.

    Raises
    ------
    VolumeError, LabelsError, ConfigError
        If something cannot be used.
    """
    image = open_volume(raw)
    truth = None if labels is None else open_volume(labels)
    if truth is not None:
        check_labels(image, truth)
    if isinstance(teacher, Volume) and (teacher.shape != image.shape or unlabelled):
        why = "volumes without its probability were given" if unlabelled else f"its shape is {teacher.shape}"
        raise VolumeError(f"{teacher.name} cannot teach on {image.name}, shape {image.shape}: {why}.")
    found = () if truth is None else labelled_slices(truth, config)
    teaching = _teaching(teacher, image, config, device)
    validation, held_out = split(image, truth, found, config, val, teaching)
    for z in validation.slices:
        validation.raw.statistics(z)  # a bad slice is found now rather than after the first part of the training
    learnt = tuple(z for z in found if z not in held_out)
    others = tuple(z for z in range(image.shape[0]) if z not in found and z not in held_out) if teacher else ()
    labelled = [Source(image, truth, teaching, learnt)] if learnt else []
    taught = [Source(image, None, teaching, others)] if others else []
    for more in map(open_volume, unlabelled):
        taught.append(Source(more, None, _teaching(teacher, more, config, device), tuple(range(more.shape[0]))))
    used = dict.fromkeys((image, validation.raw, *(source.raw for source in taught)))
    notes = [note for volume in used for note in _pixel_size_notes(volume, config)]
    pool, sampled = _load(labelled, taught, config, device, processes)
    if sampled:
        notes.append(f"the slices need more than {config.memory:g} GB: an even sample of them is trained on.")
    if isinstance(teacher, Volume):
        _check_probability(teacher, pool)
    if truth is not None:
        _check_both(truth, pool)
    own = image.voxel_size[-1] if image.voxel_size else 0.0
    unlabelled_slices = sum(len(source.slices) for source in taught)
    return Dataset(pool, validation, learnt, unlabelled_slices, own, image, truth, held_out, tuple(notes))


def _check_both(labels: Volume, pool: Pool) -> None:
    """Check that there is foreground and background to learn from."""
    background, *others = pool.class_pixels().tolist()
    for name, pixels in (("foreground", sum(others)), ("background", background)):
        if not pixels:
            where = "in the slices to train on"
            raise UnlabelledError(f"{labels.name} has no {name} {where}: label some or name others.")


def _pixel_size_notes(image: Volume, config: TrainConfig) -> list[str]:
    if image.voxel_size is None and config.pixel_size:
        return [f"the pixel size of {image.name} is not known: taken as the working {config.pixel_size:g} nm."]
    return []


def _check_probability(probability: Volume, pool: Pool) -> None:
    """Look at all values now, rather than when they are first needed."""
    most = max(block.taught.max().item() for block in (*pool.labelled, *pool.unlabelled) if block.taught is not None)
    if probability.dtype == "uint8" and most < 1.5 / 255:
        raise VolumeError(f"{probability.name} is uint8, but holds only 0 and 1: give a mask as bool, or times 255.")


def _teaching(
    teacher: Model | Volume | None, raw: Volume, config: TrainConfig, device: torch.device
) -> Teaching | None:
    if teacher is None:
        return None
    views = config.teacher_views if isinstance(config, DistillConfig) else 1
    return Teaching(teacher, raw, device.type, training_threads(config.k, config.threads)[1], views)


def _load(
    labelled: list[Source], taught: list[Source], config: TrainConfig, device: torch.device, processes: int
) -> tuple[Pool, bool]:
    """Load both kinds of sources, each within its share of the memory."""
    limit = int(config.memory * 1e9 / max(1, len(labelled) + len(taught)))
    loaded = [[load_blocks(source, config, limit) for source in kind] for kind in (labelled, taught)]
    blocks = [[block for found, _ in kind for block in found] for kind in loaded]
    sampled = any(cut for kind in loaded for _, cut in kind)
    side = max((min(block.image.shape[-2:]) for kind in blocks for block in kind), default=config.patch)
    return Pool(blocks[0], blocks[1], config.within(side), device, processes=processes), sampled
