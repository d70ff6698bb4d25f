"""Distributed data-parallel training (DDP), launched and connected by Lightning Fabric.

Each process runs the same loop on its own part of each step's batch. What must be equal in all of them is summed,
averaged, or computed on rank 0 and broadcast; so all take the same decisions, and only rank 0 writes files.
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

from napari_kdunet.core.config.training import TrainConfig
from napari_kdunet.core.devices import pick_device
from napari_kdunet.core.errors import ConfigError, TrainingError, one_line

__all__ = ["ProcessGroup", "launch", "single_process"]

T = TypeVar("T")

#: Timeout of a collective operation. Long, because the other ranks wait in one while rank 0 validates; a process that
#: dies ends the wait at once, by its broken connections or by the launcher.
_COLLECTIVE_TIMEOUT = timedelta(days=1)


def single_process(config: TrainConfig) -> Fabric:
    """A Fabric for training in this process only."""
    precision: Any = config.precision
    return Fabric(accelerator=pick_device(config.device).type, devices=1, precision=precision)


@contextmanager
def launch(config: TrainConfig, devices: int = 1, nodes: int = 1) -> Iterator[Fabric | None]:
    """Launch the processes of a training and connect them; each of them runs the body of the block.

    Under torchrun or SLURM's srun the processes are running already. Otherwise this program is started again with the
    same command line, once for each further device; if the first process leaves the block with an error, it ends the
    others.

    Parameters
    ----------
    config : TrainConfig
        Settings, of which device and precision are used.
    devices : int
        Number of processes on each machine: one for each GPU, or any number that share the CPU's cores.
    nodes : int
        Number of machines.

    Yields
    ------
    Fabric or None
        The argument `fabric` for `iter_train` and `iter_distill`; None for a single process.

    Raises
    ------
    ConfigError
        If there are fewer devices, or the launcher has started another number of processes.
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
    strategy = DDPStrategy(timeout=_COLLECTIVE_TIMEOUT)
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
            os.environ["LOCAL_WORLD_SIZE"] = str(devices)  # as torchrun does, for `devices.cores`
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
        children.clear()  # ends Fabric's observer, which would see a killed child as a failure and kill us
        for child in left:
            child.kill()
            child.wait()
        torch.distributed.destroy_process_group()  # otherwise its threads may abort us at exit


class ProcessGroup:
    """The processes of one training; with a single one each method is the identity or does nothing.

    Parameters
    ----------
    fabric : Fabric
        A launched Fabric.
    """

    def __init__(self, fabric: Fabric) -> None:
        self._fabric = fabric
        self.size: int = fabric.world_size
        self.rank: int = fabric.global_rank

    def total(self, part: Tensor) -> Tensor:
        """Sum a tensor over all processes (all-reduce); gradients flow."""
        return part if self.size == 1 else _Total.apply(part)  # type: ignore[no-untyped-call]

    def average(self, tensors: Iterable[Tensor]) -> None:
        """Replace each floating-point tensor by its mean over the processes, in place."""
        floats = [tensor for tensor in tensors if tensor.is_floating_point()]
        if self.size == 1 or not floats:
            return
        flat = torch.cat([tensor.ravel() for tensor in floats])
        torch.distributed.all_reduce(flat)
        for tensor, mean in zip(floats, (flat / self.size).split([t.numel() for t in floats]), strict=True):
            tensor.copy_(mean.view_as(tensor))

    def on_rank_zero(self, compute: Callable[[], T]) -> T:
        """Call `compute` on rank 0 and broadcast its result to all processes.

        Raises
        ------
        TrainingError
            On the other ranks, if rank 0 has stopped or `compute` failed there.
        """
        if self.size == 1:
            return compute()
        if self.rank:
            message: tuple[bool, Any] = self._fabric.broadcast((True, None))
            if message[0]:
                raise TrainingError("the first process of this training has stopped: see its message.")
            return message[1]  # type: ignore[no-any-return]
        try:
            result = compute()
        except BaseException:
            self.stop()
            raise
        self._fabric.broadcast((False, result))
        return result

    def stop(self) -> None:
        """Tell the other ranks, in their present or next `on_rank_zero`, that rank 0 has stopped."""
        if self.size > 1 and not self.rank:
            self._fabric.broadcast((True, None))

    @contextmanager
    def connected(self) -> Iterator[None]:
        """Raise a `TrainingError` where a collective operation fails because another process has ended."""
        try:
            yield
        except RuntimeError as error:
            if self.size > 1 and (isinstance(error, torch.distributed.DistError) or "gloo" in str(error)):
                raise TrainingError(
                    "another process of this training has ended: see its message, and go on from the last saved state."
                ) from error
            raise


class _Total(torch.autograd.Function):
    """Sum over the processes; the gradient is multiplied by their number, because DDP averages all gradients."""

    @staticmethod
    def forward(ctx: Any, part: Tensor) -> Tensor:
        total = part.clone()
        torch.distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad * torch.distributed.get_world_size()
