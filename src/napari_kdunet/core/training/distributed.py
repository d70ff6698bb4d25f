"""Several processes that train one network together, started and connected by Lightning Fabric.

Each process runs the same loop on its own part of each step's batch. What must be the same in all of them is added up,
averaged, or found by the first and told to the others; so all take the same decisions, and only the first writes.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
from lightning_fabric import Fabric
from lightning_fabric.strategies import DDPStrategy
from lightning_fabric.utilities.exceptions import MisconfigurationException
from torch import Tensor

from napari_kdunet.core.config import TrainConfig
from napari_kdunet.core.devices import pick_device
from napari_kdunet.core.errors import ConfigError, TrainingError
from napari_kdunet.core.volumes.sources import one_line

__all__ = ["Team", "alone", "launched"]

T = TypeVar("T")

#: How long a process waits for the others, which do nothing while the first validates. One that dies does not make
#: them wait: its connections break, or the launcher ends them.
_PATIENCE = timedelta(days=1)


def alone(config: TrainConfig) -> Fabric:
    """The Fabric of a training in this process only."""
    precision: Any = config.precision
    return Fabric(accelerator=pick_device(config.device).type, devices=1, precision=precision)


@contextmanager
def launched(config: TrainConfig, devices: int = 1, nodes: int = 1) -> Iterator[Fabric | None]:
    """Start the processes of a training and connect them; inside, the same goes on in each of them.

    Under torchrun or SLURM's srun the processes are there already. Else this program is started again with the same
    command line, once for each further device; if the first process leaves the block with an error, it ends those.

    Parameters
    ----------
    config : TrainConfig
        Its device and precision are taken.
    devices : int
        Processes on each machine: one for each GPU, or so many that share the CPU's cores.
    nodes : int
        Machines.

    Yields
    ------
    Fabric or None
        What `iter_train` and `iter_distill` take as `fabric`; None where one process is all.

    Raises
    ------
    ConfigError
        If there are not so many devices, or the launcher has started another number of processes.
    """
    if devices * nodes == 1:
        if torch.distributed.is_torchelastic_launched() and int(os.environ["WORLD_SIZE"]) > 1:
            raise ConfigError(
                f"torchrun has started {os.environ['WORLD_SIZE']} processes: give devices and nodes, too."
            )
        yield None
        return
    device, precision = pick_device(config.device), config.precision
    if device.type == "mps":
        raise ConfigError("several processes train on the CPU or on CUDA GPUs, not on mps: choose the device cpu.")
    strategy = DDPStrategy(timeout=_PATIENCE)
    try:
        fabric = Fabric(
            accelerator=device.type,
            devices=devices,
            num_nodes=nodes,
            strategy=strategy,
            precision=precision,  # type: ignore[arg-type]
        )
        environment: Any = strategy.cluster_environment
        if not environment.creates_processes_externally:
            os.environ["LOCAL_WORLD_SIZE"] = str(devices)  # as torchrun has it: see `devices.cores`
        fabric.launch()
    except (ValueError, RuntimeError, MisconfigurationException) as error:
        raise ConfigError(f"cannot train on {devices} devices of {nodes} nodes: {one_line(error)}") from error
    launcher: Any = strategy.launcher
    children: list[subprocess.Popen[bytes]] = launcher.procs
    try:
        yield fabric
        for child in children:
            child.wait()
    finally:
        left = children.copy()
        children.clear()  # Fabric's watchman, who takes a child's end for a failure and kills us, is off
        for child in left:
            child.kill()
            child.wait()
        torch.distributed.destroy_process_group()  # or its threads may abort us at the exit


class Team:
    """The processes of one training as one of them sees them; with a single process nothing here does anything.

    Parameters
    ----------
    fabric : Fabric
        Launched.
    """

    def __init__(self, fabric: Fabric) -> None:
        self._fabric = fabric
        self.size: int = fabric.world_size
        self.rank: int = fabric.global_rank

    def total(self, part: Tensor) -> Tensor:
        """The sum over all processes of what each has of a batch; gradients flow."""
        return part if self.size == 1 else _Total.apply(part)  # type: ignore[no-untyped-call]

    def average(self, tensors: Iterable[Tensor]) -> None:
        """Replace each floating-point tensor, one alike in all processes, by its mean over the processes."""
        found = [tensor for tensor in tensors if tensor.is_floating_point()]
        if self.size == 1 or not found:
            return
        flat = torch.cat([tensor.ravel() for tensor in found])
        torch.distributed.all_reduce(flat)
        for tensor, mean in zip(found, (flat / self.size).split([t.numel() for t in found]), strict=True):
            tensor.copy_(mean.view_as(tensor))

    def first(self, find: Callable[[], T]) -> T:
        """What the first process finds, in all of them.

        Raises
        ------
        TrainingError
            In the others, if the first one has stopped or failed to find it.
        """
        if self.size == 1:
            return find()
        if self.rank:
            message: tuple[bool, Any] = self._fabric.broadcast((True, None))
            if message[0]:
                raise TrainingError("the first process of this training has stopped: see what it says.")
            return message[1]  # type: ignore[no-any-return]
        try:
            found = find()
        except BaseException:
            self.stop()
            raise
        self._fabric.broadcast((False, found))
        return found

    def stop(self) -> None:
        """Tell the others, which are at their next `first` or on the way to it, that the first process has stopped."""
        if self.size > 1 and not self.rank:
            self._fabric.broadcast((True, None))

    @contextmanager
    def connected(self) -> Iterator[None]:
        """Say in our words that another process is gone: a `TrainingError`."""
        try:
            yield
        except RuntimeError as error:
            if self.size > 1 and (isinstance(error, torch.distributed.DistError) or "gloo" in str(error)):
                raise TrainingError(
                    "another process of this training has ended: see what it says, and go on from the last saved state."
                ) from error
            raise


class _Total(torch.autograd.Function):
    """Sum over the processes. Its gradient is times their number, because DDP takes the mean of all gradients."""

    @staticmethod
    def forward(ctx: Any, part: Tensor) -> Tensor:
        total = part.clone()
        torch.distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad * torch.distributed.get_world_size()
