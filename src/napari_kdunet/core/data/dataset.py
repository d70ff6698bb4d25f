"""The data of a training: volumes and labels opened, checked, split into training and validation, and loaded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from napari_kdunet.core.config import TrainConfig
from napari_kdunet.core.data.patches import PatchSampler, TrainingVolume, load_blocks
from napari_kdunet.core.data.splits import is_labelled, labelled_slices, spaced
from napari_kdunet.core.data.teachers import TeacherOutput
from napari_kdunet.core.data.validation import Validation, split
from napari_kdunet.core.devices import training_threads
from napari_kdunet.core.errors import UnlabelledError, VolumeError
from napari_kdunet.core.networks.model import Model
from napari_kdunet.core.volumes.volume import Volume, check_labels, open_volume

__all__ = ["Dataset", "prepare"]


@dataclass
class Dataset:
    """Training patches and validation slices."""

    sampler: PatchSampler
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
        """Read the labels of slice `z` again; a held-out slice is validated on, never trained on."""
        config = self.sampler.config
        if self.labels is None or z in self.held_out or not 0 <= z < self.labels.shape[0]:
            return
        counts, _ = is_labelled(self.labels, z, config)
        volume = TrainingVolume(self.image, self.labels, slices=(z,) if counts else ())
        self.sampler.replace(z, load_blocks(volume, config, int(config.memory * 1e9))[0])
        if self.validation.kind == "training slices":
            slices = tuple(sorted({block.z for block in self.sampler.labelled}))
            self.validation = replace(self.validation, slices=spaced(slices, config.val_slices))


def prepare(
    raw: Any,
    labels: Any | None,
    config: TrainConfig,
    device: torch.device,
    *,
    val: tuple[Any, Any] | None = None,
    teacher: Model | Volume | None = None,
    teacher_views: int = 1,
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
    teacher_views : int
        Over how many mirror images and quarter turns of a slice a network that teaches is averaged.
    unlabelled : sequence of volumes
        More raw volumes without labels, which are learnt from through the teacher alone.
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
    labelled = () if truth is None else labelled_slices(truth, config)

    def output(volume: Volume) -> TeacherOutput | None:
        threads = training_threads(config.k, config.threads)[1]
        return None if teacher is None else TeacherOutput(teacher, volume, device.type, threads, teacher_views)

    of_image = output(image)
    validation, held_out = split(image, truth, labelled, config, val, of_image)
    for z in validation.slices:
        validation.raw.statistics(z)  # a bad slice is found now rather than after the first part of the training
    trained = tuple(z for z in labelled if z not in held_out)
    others = tuple(z for z in range(image.shape[0]) if z not in labelled and z not in held_out) if teacher else ()
    with_labels = [TrainingVolume(image, truth, of_image, trained)] if trained else []
    without = [TrainingVolume(image, None, of_image, others)] if others else []
    for more in map(open_volume, unlabelled):
        without.append(TrainingVolume(more, None, output(more), tuple(range(more.shape[0]))))
    used = dict.fromkeys((image, validation.raw, *(volume.raw for volume in without)))
    notes = [note for volume in used for note in _pixel_size_notes(volume, config)]
    sampler, sampled = _load(with_labels, without, config, device, processes)
    if sampled:
        notes.append(f"the slices need more than {config.memory:g} GB: an even sample of them is trained on.")
    if isinstance(teacher, Volume):
        _check_probability(teacher, sampler)
    if truth is not None:
        _check_both(truth, sampler)
    pixel_size = image.voxel_size[-1] if image.voxel_size else 0.0
    unlabelled_slices = sum(len(volume.slices) for volume in without)
    return Dataset(sampler, validation, trained, unlabelled_slices, pixel_size, image, truth, held_out, tuple(notes))


def _check_both(labels: Volume, sampler: PatchSampler) -> None:
    """Check that there is foreground and background to learn from."""
    background, *others = sampler.class_pixels().tolist()
    for name, pixels in (("foreground", sum(others)), ("background", background)):
        if not pixels:
            where = "in the slices to train on"
            raise UnlabelledError(f"{labels.name} has no {name} {where}: label some or name others.")


def _pixel_size_notes(image: Volume, config: TrainConfig) -> list[str]:
    if image.voxel_size is None and config.pixel_size:
        return [f"the pixel size of {image.name} is not known: taken as the working {config.pixel_size:g} nm."]
    return []


def _check_probability(probability: Volume, sampler: PatchSampler) -> None:
    """Read all values now, rather than when they are first needed."""
    outputs = (block.teacher_probability for block in (*sampler.labelled, *sampler.unlabelled))
    most = max(output.max().item() for output in outputs if output is not None)
    if probability.dtype == "uint8" and most < 1.5 / 255:
        raise VolumeError(f"{probability.name} is uint8, but holds only 0 and 1: give a mask as bool, or times 255.")


def _load(
    labelled: list[TrainingVolume],
    unlabelled: list[TrainingVolume],
    config: TrainConfig,
    device: torch.device,
    processes: int,
) -> tuple[PatchSampler, bool]:
    """Load the blocks of both kinds of volumes, each within its share of the memory; whether they are a sample."""
    limit = int(config.memory * 1e9 / max(1, len(labelled) + len(unlabelled)))
    loaded = [[load_blocks(volume, config, limit) for volume in kind] for kind in (labelled, unlabelled)]
    blocks = [[block for part, _ in kind for block in part] for kind in loaded]
    sampled = any(cut for kind in loaded for _, cut in kind)
    side = max((min(block.image.shape[-2:]) for kind in blocks for block in kind), default=config.patch)
    return PatchSampler(blocks[0], blocks[1], config.within(side), device, processes=processes), sampled
