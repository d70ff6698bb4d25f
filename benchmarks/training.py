"""Speed of training: ours beside the plainest PyTorch loop that does the same work.

    python benchmarks/training.py [--raw RAW --labels LABELS] [--threads 1,2] [--seconds 5] [--rounds 3]

Measured are a teacher (k = 16, from labels) and a student (k = 2, mixed distillation from a 16-Unet). "The same work"
is the same network, loss, optimiser, clipping, averaged weights, patch size and kinds of augmentation; the plain loop
augments in the usual way, sample by sample with scipy in a `Dataset`, in the one worker process of a `DataLoader` (ours
has one helper thread). The two loops take turns within one run, each for a few seconds; medians over the turns are
printed. The first step of a turn is not counted, as its batch was made during the pause.

Ours asks the teacher once per slice, before the turns, and warps its answers; the plain loop asks it for each batch.
The time that our asking takes is printed: it is spent once, however long the training.

"Waits" is the share of the time in which the loop does nothing but wait for its batch. "Making" is the time that one
batch takes to make by itself, on one thread, as a share of a step: what data and augmentation would cost if they did
not run in parallel.
"""

from __future__ import annotations

import argparse
import math
import os
import platform
import time
from collections.abc import Callable, Iterator
from statistics import median
from typing import Any, NamedTuple

import numpy as np
import torch
from machine import cpu_name
from scipy import ndimage
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader, Dataset

from napari_kdunet import core
from napari_kdunet.core.data.dataset import prepare
from napari_kdunet.core.data.patches import PatchSampler
from napari_kdunet.core.devices import cores, using_threads
from napari_kdunet.sample import VOXEL_SIZE, synthetic_em

ENDLESS = {"steps": 10**8, "validations": 1}  # neither end nor validate while we measure


class Turn(NamedTuple):
    steps: int
    seconds: float
    waited: float


class Loop(NamedTuple):
    """A training that can be driven: one step (returns the seconds it waited for data), and one batch by itself."""

    step: Callable[[], float]
    make_batch: Callable[[], Any]
    threads: int

    def turn(self, seconds: float) -> Turn:
        with using_threads(self.threads):
            self.step()
            begin, steps, waited = time.perf_counter(), 0, 0.0
            while steps < 2 or time.perf_counter() - begin < seconds:
                waited += self.step()
                steps += 1
            return Turn(steps, time.perf_counter() - begin, waited)

    def making(self, times: int = 5) -> float:
        """Return the seconds that a batch takes to make on one thread while nothing else runs: median of a few."""
        taken = []
        with using_threads(1):
            for _ in range(times):
                begin = time.perf_counter()
                self.make_batch()
                taken.append(time.perf_counter() - begin)
        return median(taken)


# Ours


def our_loop(pool: PatchSampler, events: Iterator[core.Event], threads: int, warm_up: int) -> Loop:
    next(events)  # Started
    for _ in range(warm_up):
        next(events)
    counter = iter(range(10**9))

    def step() -> float:
        event = next(events)
        assert isinstance(event, core.Stepped)
        return event.data_seconds

    return Loop(step, lambda: pool.batch(next(counter)), threads)


# The plain one


class Patches(Dataset):
    """Random patches of a volume at the working pixel size, augmented one by one."""

    def __init__(self, images: np.ndarray, labels: np.ndarray, config: core.TrainConfig) -> None:
        self.images, self.labels, self.config = images, labels, config

    def __len__(self) -> int:
        return 10**8

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        c, rng = self.config, np.random.default_rng((self.config.seed, index))
        image, label = self.crop(rng, 2 * math.ceil(0.75 * c.patch))  # room to turn in
        for axis in (0, 1):
            if c.flips and rng.random() < 0.5:
                image, label = np.flip(image, axis), np.flip(label, axis)
        image, label = self.turn(rng, image, label)
        image, label = self.stretch(rng, image, label)
        gain, shift = c.intensity * rng.uniform(-1, 1, 2)
        image = image * (1 + gain) + shift
        target = np.stack([label == 0, label > 0])
        return torch.from_numpy(image[None].astype(np.float32)), torch.from_numpy(target.astype(np.float32))

    def crop(self, rng: np.random.Generator, side: int) -> tuple[np.ndarray, np.ndarray]:
        z = rng.integers(len(self.images))
        image, label = self.images[z], self.labels[z]
        pads = [(0, max(0, side - n)) for n in image.shape]
        if any(after for _, after in pads):
            image, label = np.pad(image, pads, mode="symmetric"), np.pad(label, pads, mode="symmetric")
        y, x = (rng.integers(n - side + 1) for n in image.shape)
        return image[y : y + side, x : x + side], label[y : y + side, x : x + side]

    def turn(self, rng: np.random.Generator, image: np.ndarray, label: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Rotate, scale and cut out the middle."""
        angle = math.radians(self.config.rotation) * rng.uniform(-1, 1)
        size = 1 + self.config.scale * rng.uniform(-1, 1)
        matrix = size * np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
        side = self.config.patch
        offset = (np.array(image.shape) - 1) / 2 - matrix @ np.full(2, (side - 1) / 2)
        options = {"offset": offset, "output_shape": (side, side), "mode": "reflect"}
        return (
            ndimage.affine_transform(image, matrix, order=1, **options),
            ndimage.affine_transform(label, matrix, order=0, **options),
        )

    def stretch(self, rng: np.random.Generator, image: np.ndarray, label: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Elastic deformation after Simard et al. 2003: smoothed noise as displacement."""
        field = ndimage.gaussian_filter(rng.standard_normal((2, *image.shape), np.float32), (0, 16, 16), mode="wrap")
        places = np.indices(image.shape, np.float32) + self.config.elastic * field / field.std()
        return (
            ndimage.map_coordinates(image, places, order=1, mode="reflect"),
            ndimage.map_coordinates(label, places, order=0, mode="reflect"),
        )


def plain_loop(patches: Patches, teacher: torch.nn.Module | None, threads: int, workers: int) -> Loop:
    config = patches.config
    prefetch = 1 if workers else None
    batches = iter(DataLoader(patches, batch_size=config.batch, num_workers=workers, prefetch_factor=prefetch))
    torch.manual_seed(config.seed)
    net = core.KUNet(config.k, config.bn).train()
    optimizer = torch.optim.AdamW(net.parameters(), lr=config.lr, weight_decay=config.weight_decay)
    average = AveragedModel(net, multi_avg_fn=get_ema_multi_avg_fn(config.ema))
    tau, lam = config.temperature, config.loss_weights(0.0)[1] or 1.0

    def step() -> float:
        begin = time.perf_counter()
        image, target = next(batches)
        waited = time.perf_counter() - begin
        taught = None
        if teacher is not None:
            with torch.no_grad():
                taught = teacher(image)
        loss = core.distillation_loss(net(image), target, taught, tau=tau, lam=lam, dice=config.dice).total
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), config.clip)
        optimizer.step()
        average.update_parameters(net)
        loss.item()
        return waited

    return Loop(step, lambda: [patches[i] for i in range(config.batch)], threads)


# The measurement


def volumes(arguments: argparse.Namespace) -> tuple[core.Volume, core.Volume]:
    if arguments.raw:
        return core.open_volume(arguments.raw), core.open_volume(arguments.labels)
    raw, labels = synthetic_em((16, 384, 384))
    image = core.open_volume(raw, voxel_size=VOXEL_SIZE, name="the embedded synthetic volume")
    return image, core.open_volume(labels, voxel_size=VOXEL_SIZE)


def plain_arrays(pool: PatchSampler) -> tuple[np.ndarray, np.ndarray]:
    """Return the pixels that our loop trains on, as arrays of images and labels."""
    blocks = [block for block in pool.labelled if block.target is not None]
    smallest = np.min([block.image.shape[-2:] for block in blocks], axis=0)
    y, x = (slice(n) for n in smallest)
    images = np.stack([block.image[0, y, x].float().numpy() for block in blocks])
    return images, np.stack([block.target[:, y, x].numpy().argmax(axis=0).astype(np.uint8) for block in blocks])


def measure(kind: str, threads: int, arguments: argparse.Namespace, data: tuple[core.Volume, core.Volume]) -> None:
    """Let the two loops take turns and print their rows."""
    shared = {"batch": arguments.batch, "patch": arguments.patch, "threads": threads, "device": "cpu", **ENDLESS}
    teacher = core.Model(core.KUNet(16)) if kind == "student" else None
    config = core.TrainConfig(k=16, **shared) if teacher is None else core.DistillConfig(k=2, **shared)
    pool = prepare(*data, config, torch.device("cpu"), teacher=teacher).sampler
    blocks = [*pool.labelled, *pool.unlabelled]
    if teacher is not None:
        begin = time.perf_counter()
        assert all(block.teacher_probability is not None for block in blocks)
        print(f"(the teacher was asked in {(time.perf_counter() - begin) / len(blocks):.2f} s a slice)", flush=True)
    events: Any = core.iter_distill(teacher, *data, config) if teacher else core.iter_train(*data, config)
    loops = {
        "ours": our_loop(pool, events, threads, 1 if teacher is None else 5 * len(blocks)),
        "plain": plain_loop(
            Patches(*plain_arrays(pool), config), teacher and teacher.net.eval(), threads, arguments.workers
        ),
    }
    turns: dict[str, list[Turn]] = {name: [] for name in loops}
    for _ in range(arguments.rounds):
        for name, loop in loops.items():
            turns[name].append(loop.turn(arguments.seconds))
    events.close()
    pixels = config.batch * config.patch**2
    speeds = {name: median(turn.steps / turn.seconds for turn in done) for name, done in turns.items()}
    for name, done in turns.items():
        each = sorted(turn.steps / turn.seconds for turn in done)
        waits = median(turn.waited / turn.seconds for turn in done)
        making = loops[name].making() * speeds[name]
        print(
            f"| {kind}, k = {config.k} | {threads} | {name} | {speeds[name]:.3f} | {each[0]:.3f}-{each[-1]:.3f} | "
            f"{speeds[name] * pixels / 1e6:.3f} | {waits:.1%} | {making:.1%} | {speeds[name] / speeds['plain']:.2f} |",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--raw", help="volume to train on; the embedded synthetic one if not given")
    parser.add_argument("--labels", help="its labels")
    parser.add_argument("--threads", default="1,2", help="thread counts, with commas between")
    parser.add_argument("--seconds", type=float, default=5.0, help="of one turn of one loop")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each loop")
    parser.add_argument("--batch", type=int, default=core.TrainConfig().batch, help="patches a step")
    parser.add_argument("--patch", type=int, default=core.TrainConfig().patch, help="side of a patch, pixels")
    parser.add_argument("--workers", type=int, default=1, help="processes of the plain loop's DataLoader")
    arguments = parser.parse_args()
    if (arguments.raw is None) != (arguments.labels is None):
        parser.error("--raw and --labels go together")
    begin = time.perf_counter()
    data = volumes(arguments)
    print(f"CPU: {cpu_name()}, {cores()} cores; load before {os.getloadavg()[0]:.1f}")
    print(f"torch {torch.__version__}, Python {platform.python_version()}, {platform.system()}; ", end="")
    print(f"OMP_WAIT_POLICY={os.environ.get('OMP_WAIT_POLICY', 'unset')}")
    print(
        f"{data[0].name} {data[0].shape}; batches of {arguments.batch} x {arguments.patch} x {arguments.patch}; ",
        end="",
    )
    print(f"median of {arguments.rounds} turns of {arguments.seconds:g} s, ours and plain by turns\n")
    print("| network | threads | loop | steps/s | range | Mpixel/s | waits | making | speed / plain |")
    print("|---|---:|---|---:|---:|---:|---:|---:|---:|")
    for kind in ("teacher", "student"):
        for threads in map(int, arguments.threads.split(",")):
            measure(kind, threads, arguments, data)
    print(f"\n{time.perf_counter() - begin:.0f} s in all")


if __name__ == "__main__":
    main()
