"""Compute and write slices on the workers of a dask cluster; `distributed` (the extra ``cluster``) is imported late."""

from __future__ import annotations

import logging
import threading
import uuid
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import CancelledError
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from socket import gethostname
from typing import TYPE_CHECKING, Any, TypeAlias

import dask
import dask.array as da
import numpy as np

from napari_kdunet.core.errors import ConfigError, OutputError, VolumeError
from napari_kdunet.core.volumes.slice_reader import compute_slices, iter_slabs
from napari_kdunet.core.writing.ome_zarr import Levels

if TYPE_CHECKING:
    from distributed import Client

__all__ = ["Outcome", "active_client", "connect", "iter_write_on_cluster"]

Outcome: TypeAlias = tuple[int, "OSError | VolumeError | None"]
"""Index of a slice, and None once it is written, or the error with which reading it failed."""

# State of a worker process
_write_lock = threading.Lock()
_cancelled_jobs: set[str] = set()


@contextmanager
def connect(scheduler: str, timeout: float = 10.0) -> Iterator[Client]:
    """Connect to a dask cluster, which computes dask arrays inside the context.

    Parameters
    ----------
    scheduler : str
        Address of the scheduler (``tcp://host:8786``), or the file that ``dask scheduler --scheduler-file`` wrote.
    timeout : float
        Seconds that the scheduler may take to answer.

    Raises
    ------
    ConfigError
        `distributed` is not installed, or no scheduler answers.
    """
    try:
        from distributed import Client
    except ImportError:
        raise ConfigError("a scheduler needs dask.distributed: pip install 'napari-kdunet[cluster]'.") from None
    where = {"scheduler_file" if Path(scheduler).is_file() else "address": scheduler}
    with _client_log_muted():
        try:
            client = Client(timeout=timeout, set_as_default=False, **where)  # else a failed client stays the default
        except (OSError, ValueError, TypeError) as error:
            raise ConfigError(
                f"no dask scheduler answers at {scheduler}: give the address that the scheduler shows."
            ) from error
        with client, client.as_current():
            yield client


@contextmanager
def _client_log_muted() -> Iterator[None]:
    """Drop the log messages of `distributed` about a connection that fails, which becomes an error of ours."""

    def drop(record: logging.LogRecord) -> bool:
        return False

    logger = logging.getLogger("distributed.client")
    logger.addFilter(drop)
    try:
        yield
    finally:
        logger.removeFilter(drop)


def active_client() -> Client | None:
    """Return the `distributed.Client` through which dask computes by default, or None."""
    if dask.config.get("scheduler", None) not in ("dask.distributed", "distributed"):
        return None
    from distributed import Client

    try:
        client: Client = Client.current()
    except ValueError:
        return None
    return client


def iter_write_on_cluster(
    client: Client, volume: da.Array, path: Path, indices: Sequence[int]
) -> Generator[Outcome, None, None]:
    """Let the workers of a cluster compute slices and write them to an OME-Zarr.

    If a worker dies, another takes over its slices. Pixels do not pass through this process. Each worker receives the
    volume, and with it the model, once.

    Parameters
    ----------
    client : distributed.Client
        Connected to the cluster.
    volume : dask.array.Array
        ZYX. A chunk along z is one task.
    path : Path
        An OME-Zarr that `ome_zarr.zarr_writer` has made, on a file system shared with the workers.
    indices : sequence of int
        Slices to write, ascending.

    Yields
    ------
    Outcome
        Outcome of one slice, in the order in which slices are finished.

    Raises
    ------
    OutputError, OSError
        The connection is lost, a slice's task has killed several workers, or a worker cannot write. Slices that are
        written already are kept.
    """
    from distributed import KilledWorker, as_completed

    name = uuid.uuid4().hex
    with dask.config.set({"distributed.admin.large-graph-warning-threshold": "1 TB"}):  # large, but sent once
        job = client.submit(_identity, _Job(name, volume, path.absolute()), pure=False)
    pending = set(client.map(_write_slab, list(iter_slabs(volume, indices)), job=job, pure=False))
    try:
        for future in as_completed(list(pending)):
            slices = future.result()
            pending.remove(future)  # a future that is held is computed again if its worker dies
            del future
            yield from slices
    except (CancelledError, KilledWorker) as error:
        what = "its workers die" if isinstance(error, KilledWorker) else "the connection to it is lost"
        raise OutputError(
            f"the cluster did not finish, {what}: see its logs, and give the same command again"
        ) from error
    finally:
        if client.status == "running":
            client.cancel([job, *pending])
            if pending:
                client.run(_cancel_job, name, on_error="ignore")


@dataclass(frozen=True)
class _Job:
    """What the slices of one volume have in common."""

    name: str
    volume: da.Array
    path: Path


def _identity(job: _Job) -> _Job:
    """Return `job` as a task's result: it is computed again if its only worker dies; scattered data would be lost."""
    return job


def _write_slab(slab: list[int], job: _Job) -> list[Outcome]:
    done: list[Outcome] = []
    for z, pixels in compute_slices(job.volume, slab, "synchronous"):
        if isinstance(pixels, np.ndarray):
            with _write_lock:
                if job.name not in _cancelled_jobs:
                    _write_slice(job, z, pixels)
            done.append((z, None))
        else:
            done.append((z, pixels))
    return done


def _write_slice(job: _Job, z: int, pixels: np.ndarray[Any, Any]) -> None:
    if not job.path.is_dir():
        raise OutputError(f"a worker on {gethostname()} does not see {job.path}: give a folder that all share")
    Levels(job.path).write(z, pixels)


def _cancel_job(name: str) -> None:
    """Make this worker write nothing more for a job, as its folder is about to be removed."""
    _cancelled_jobs.add(name)
    with _write_lock:
        pass
