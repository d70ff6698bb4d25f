"""The data of a training: volumes and labels opened, checked, split into training and validation, and loaded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch

from napari_kdunet.core.config.training import TrainConfig
from napari_kdunet.core.data.patches import PatchSampler, TrainingVolume, load_blocks
from napari_kdunet.core.data.splits import is_labelled
from napari_kdunet.core.data.teachers import TeacherOutput
from napari_kdunet.core.data.validation import Validation, given_validation, split
from napari_kdunet.core.devices import training_threads
from napari_kdunet.core.errors import ConfigError, LabelsError, UnlabelledError, VolumeError
from napari_kdunet.core.networks.model import Model
from napari_kdunet.core.volumes.fingerprint import volume_fingerprint
from napari_kdunet.core.volumes.slices import spaced
from napari_kdunet.core.volumes.volume import Volume, open_pair, open_volume, shows_nothing

__all__ = ["Dataset", "prepare"]


@dataclass
class Dataset:
    """Training patches and validation slices."""

    config: TrainConfig
    """Settings, with `context_distance` filled in from the volumes."""
    sampler: PatchSampler
    validations: tuple[Validation, ...]
    """One for each volume that is validated on; scores are means over them."""
    labelled_slices: tuple[int, ...]
    """z of the labelled slices of all volumes, one volume after the other."""
    unlabelled_slices: int
    """Number of slices that are trained on with the teacher alone."""
    first: TrainingVolume
    """The first volume, whose labels may change during training, with all its slices that are not held out."""
    volumes: tuple[TrainingVolume, ...] = ()
    """All that is trained on: volumes with their labelled slices, and with those that the teacher alone teaches."""
    notes: tuple[str, ...] = field(default=())

    @property
    def val_slices(self) -> tuple[int, ...]:
        """The validation slices of all volumes, one after the other."""
        return tuple(z for validation in self.validations for z in validation.slices)

    @property
    def validated_on(self) -> str:
        """What the validation is against: see `Started.validated_on`."""
        return " and ".join(dict.fromkeys(validation.kind for validation in self.validations))

    @property
    def has_truth(self) -> bool:
        """Whether any label tells which model is best; agreement with a teacher does not, as a student outgrows it."""
        return self.validated_on != "teacher"

    def fingerprint(self) -> dict[str, str]:
        """Return checksums of images and labels, validation included, by which a resumed training knows its data."""
        raws = [(volume.raw, volume.slices) for volume in self.volumes]
        raws += [(validation.raw, validation.slices) for validation in self.validations]
        images = [volume_fingerprint(raw, slices) for raw, slices in raws]
        truths = [(volume.labels, volume.slices) for volume in self.volumes if volume.labels is not None]
        truths += [(each.labels, each.slices) for each in self.validations if each.labels is not None]
        labels = [volume_fingerprint(truth, slices, slices, every=True) for truth, slices in truths]
        return {"images": " ".join(dict.fromkeys(images)), "labels": " ".join(dict.fromkeys(labels))}

    def read_again(self, z: int) -> None:
        """Read the labels of slice `z` of the first volume again; a held-out slice stays held out."""
        config, first = self.sampler.config, self.first
        if first.labels is None or z not in first.slices:
            return
        counts, _ = is_labelled(first.labels, z, config)
        volume = replace(first, slices=(z,) if counts else ())
        stay = [block for block in self.sampler.labelled if (block.volume.index, block.z) != (first.index, z)]
        left = max(0, int(config.memory * 1e9) - sum(block.nbytes for block in stay))
        self.sampler.replace(z, load_blocks(volume, config, left)[0])
        learnt = next((part for part in self.volumes if part.index == first.index and part.labels is not None), None)
        if learnt is not None:
            slices = tuple(sorted({*learnt.slices, z} if counts else {*learnt.slices} - {z}))
            self.volumes = tuple(replace(part, slices=slices) if part is learnt else part for part in self.volumes)
        validation, *others = self.validations
        if validation.kind == "training slices":
            slices = tuple(sorted({block.z for block in self.sampler.labelled if block.volume.index == 0}))
            self.validations = (replace(validation, slices=spaced(slices, config.val_slices)), *others)


def prepare(
    raw: Any,
    labels: Any | None,
    config: TrainConfig,
    device: torch.device,
    *,
    val: Any = None,
    teacher: Model | Volume | None = None,
    teacher_views: int = 1,
    kept: Model | None = None,
    unlabelled: Sequence[Any] = (),
    processes: int = 1,
) -> Dataset:
    """Open, check, split and load the data of a training.

    Parameters
    ----------
    raw, labels : volume
        ZYX; labels may be None where there is a teacher. Or `raw` is a list of pairs (raw, labels), and `labels` None.
    config : TrainConfig
        Settings: which slices to use, which share to hold out, how much memory to take.
    device : torch.device
        Device of the batches.
    val : pair of volumes, or list of pairs
        Raw and labels to validate on instead of a held-out share of each volume.
    teacher : Model or Volume, optional
        The teacher, with which slices without labels are trained on too; a Volume is its probability for `raw`.
    teacher_views : int
        Number of views (mirror images and quarter turns) of a slice over which a teacher network is averaged.
    kept : Model, optional
        A start model that teaches the unlabelled pixels of labelled slices, in place of a teacher.
    unlabelled : sequence of volumes
        More raw volumes without labels, which are trained on with the teacher alone.
    processes : int
        Number of processes that share each step's batch.

    Raises
    ------
    VolumeError, LabelsError, ConfigError
        If a volume, its labels or a setting cannot be used.
    """
    pairs = _pairs(raw if labels is None and isinstance(raw, list | tuple) else (raw, labels))
    volumes = _open([*pairs, *((more, None) for more in unlabelled)])
    _check(volumes, teacher, config)
    config = _with_distance(config, volumes)
    threads = training_threads(config.k, config.threads)[1]
    if teacher is not None:
        volumes = [
            replace(volume, teacher=TeacherOutput(teacher, volume.raw, device.type, threads, teacher_views))
            for volume in volumes
        ]

    given = [given_validation(*pair, config) for pair in _pairs(val)] if val is not None else []
    # if no volume has labels, `raw` is validated against the teacher
    judged = [volume for volume in volumes if volume.labels is not None] or volumes[: len(pairs)]
    splits = [split(volume, config, not given and volume in judged) for volume in volumes]
    if kept is not None:
        splits = [part.taught_by(TeacherOutput(kept, part.labelled.raw, device.type, threads)) for part in splits]
    validations = given + [part.validation for part in splits if part.validation is not None]
    for validation in validations:
        for z in validation.slices:
            validation.raw.statistics(z)  # a bad slice is found now rather than after the first part of the training

    labelled = [part.labelled for part in splits if part.labelled.slices]
    others = [part.unlabelled for part in splits if part.unlabelled.slices]
    sampler, sampled = _load(labelled, others, config, device, processes)
    notes = _notes(volumes, validations, config, sampled)
    if isinstance(teacher, Volume):
        _check_probability(sampler)
    if labelled:
        _check_both(labelled, sampler)
    elif not sampler.unlabelled:
        raise shows_nothing(volumes[0].raw, "in the slices to train on", "choose others")
    labelled_z = tuple(z for part in labelled for z in part.slices)
    unlabelled_slices = sum(len(part.slices) for part in others)
    first = replace(splits[0].labelled, slices=splits[0].usable)
    learnt = (*labelled, *others)
    return Dataset(config, sampler, tuple(validations), labelled_z, unlabelled_slices, first, learnt, notes)


def _pairs(given: Any) -> list[tuple[Any, Any]]:
    """Return one pair of image and labels, or a list of pairs, as a list; errors as in `prepare`."""
    several = isinstance(given, list | tuple) and all(isinstance(each, list | tuple) for each in given)
    pairs = list(given) if several else [given]
    if not pairs or not all(isinstance(pair, list | tuple) and len(pair) == 2 for pair in pairs):
        raise VolumeError("give several volumes as a list of pairs, [(image, labels), ...], with at least one pair.")
    return [(image, labels) for image, labels in pairs]


def _open(pairs: Sequence[tuple[Any, Any]]) -> list[TrainingVolume]:
    """Open images, each with its labels if it has any."""
    opened = [(open_volume(image), None) if labels is None else open_pair(image, labels) for image, labels in pairs]
    return [TrainingVolume(image, labels, index=i) for i, (image, labels) in enumerate(opened)]


def _check(volumes: list[TrainingVolume], teacher: Model | Volume | None, config: TrainConfig) -> None:
    """Check that each volume has labels or a teacher, and that the settings fit the number of volumes."""
    image, weights = volumes[0].raw, config.volume_weights
    if isinstance(weights, tuple) and len(weights) != len(volumes):
        raise ConfigError(f"volume_weights has {len(weights)} numbers for {len(volumes)} volumes: give one for each.")
    if isinstance(teacher, Volume) and (teacher.shape != image.shape or len(volumes) > 1):
        why = (
            "a probability volume teaches on one volume only, and several are given"
            if len(volumes) > 1
            else f"its shape is {teacher.shape}"
        )
        raise VolumeError(f"{teacher.name} cannot teach on {image.name}, shape {image.shape}: {why}.")
    for volume in volumes:
        if volume.labels is None and teacher is None:
            raise LabelsError(f"{volume.raw.name} has neither labels nor a teacher: give one of them.")


def _with_distance(config: TrainConfig, volumes: list[TrainingVolume]) -> TrainConfig:
    """Return the settings with the context distance: the volumes' largest, so that no slice is its own neighbour."""
    if not config.context or config.context_distance:
        return config
    return replace(
        config, context_distance=max((v.raw.voxel_size[0] for v in volumes if v.raw.voxel_size), default=0.0)
    )


def _check_both(volumes: list[TrainingVolume], sampler: PatchSampler) -> None:
    """Check that both foreground and background are labelled."""
    background, *others = sampler.class_pixels().tolist()
    if background and sum(others):
        return
    empty = next((volume.raw for volume in volumes if all(map(volume.raw.is_lost, volume.slices))), None)
    if empty is not None:
        raise shows_nothing(empty, "in the slices to train on", "choose others")
    names = ", ".join(volume.labels.name for volume in volumes[:3] if volume.labels is not None)
    missing: Literal["foreground", "background"] = "foreground" if background else "background"
    why = f"{names} has no {missing} in the slices to train on: label some, or choose other slices."
    raise UnlabelledError(why, missing, names, volumes[0].slices if len(volumes) == 1 else ())


def _notes(
    volumes: Sequence[TrainingVolume], validations: Sequence[Validation], config: TrainConfig, sampled: bool
) -> tuple[str, ...]:
    """Return what was assumed of the volumes that are trained and validated on."""
    used = dict.fromkeys((*(volume.raw for volume in volumes), *(validation.raw for validation in validations)))
    opened = dict.fromkeys((*used, *(volume.labels for volume in volumes if volume.labels is not None)))
    notes = [f"{volume.name}: {note}." for volume in opened for note in volume.notes]
    notes += [note for volume in used for note in _pixel_size_notes(volume, config)]
    if sampled:
        notes.append(f"the slices need more than {config.memory:g} GB of memory: an even sample of them is used.")
    return tuple(notes)


def _pixel_size_notes(image: Volume, config: TrainConfig) -> list[str]:
    notes = []
    if image.voxel_size is None and config.pixel_size:
        notes.append(
            f"the pixel size of {image.name} is not known: it is taken as the working {config.pixel_size:g} nm."
        )
    if image.voxel_size is None and config.context and config.context_distance:
        notes.append(f"the distance of the slices of {image.name} is not known: the context is the adjacent slices.")
    return notes


def _check_probability(sampler: PatchSampler) -> None:
    """Read all values now, rather than when they are first needed."""
    for block in (*sampler.labelled, *sampler.unlabelled):
        _ = block.teacher_probability


def _load(
    labelled: list[TrainingVolume],
    unlabelled: list[TrainingVolume],
    config: TrainConfig,
    device: torch.device,
    processes: int,
) -> tuple[PatchSampler, bool]:
    """Load the blocks of all volumes, each within its share of the memory, and return whether they are a sample."""
    limit = int(config.memory * 1e9 / max(1, len(labelled) + len(unlabelled)))
    loaded = [[load_blocks(volume, config, limit) for volume in kind] for kind in (labelled, unlabelled)]
    blocks = [[block for part, _ in kind for block in part] for kind in loaded]
    sampled = any(cut for kind in loaded for _, cut in kind)
    side = max((min(block.image.shape[-2:]) for kind in blocks for block in kind), default=config.patch)
    return PatchSampler(blocks[0], blocks[1], config.within(side), device, processes=processes), sampled
