"""Work for the machines of a dask cluster; `distributed` (the extra ``cluster``) is imported when there is one."""

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
import zarr

from napari_kdunet.core.errors import ConfigError, OutputError, VolumeError
from napari_kdunet.core.writing.slabs import slabs
from napari_kdunet.core.writing.slices import compute

if TYPE_CHECKING:
    from distributed import Client

__all__ = ["Lost", "Outcome", "active_client", "connected", "written"]

Outcome: TypeAlias = tuple[int, "OSError | VolumeError | None"]
"""Index of a slice that has been written, or was to be, and why it could not be read."""

_PATIENCE = 10.0  # s for a scheduler to answer

_writing = threading.Lock()
_given_up: set[str] = set()


class Lost(OutputError):
    """A cluster does not answer any more, while what it has done is still there."""


@contextmanager
def connected(scheduler: str) -> Iterator[Client]:
    """Have a dask cluster compute what is computed inside.

    Parameters
    ----------
    scheduler : str
        Its scheduler's address (``tcp://host:8786``), or the file that ``dask scheduler --scheduler-file`` wrote.

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
    with _without_log():
        try:
            client = Client(timeout=_PATIENCE, set_as_default=False, **where)  # a default that fails would stay it
        except (OSError, ValueError, TypeError) as error:
            raise ConfigError(f"no dask scheduler answers at {scheduler}: give the address that it shows.") from error
        with client, client.as_current():
            yield client


@contextmanager
def _without_log() -> Iterator[None]:
    """Drop what `distributed` logs at length of what becomes our error."""

    def drop(record: logging.LogRecord) -> bool:
        return False

    logger = logging.getLogger("distributed.client")
    logger.addFilter(drop)
    try:
        yield
    finally:
        logger.removeFilter(drop)


def active_client() -> Client | None:
    """The client through which dask computes by default, where there is one."""
    if dask.config.get("scheduler", None) not in ("dask.distributed", "distributed"):
        return None
    from distributed import Client

    try:
        client: Client = Client.current()
    except ValueError:
        return None
    return client


def written(
    client: Client, volume: da.Array, path: Path, dtype: np.dtype[Any], todo: Sequence[int]
) -> Generator[Outcome, None, None]:
    """Let the workers compute slices and write them.

    What is done is a matter of the cluster: where a worker dies, another takes its slices. Only a slice's index comes
    back. The workers hold the volume, and with it the model, once each.

    Parameters
    ----------
    client : Client
        Of the cluster.
    volume : dask.array.Array
        ZYX. A chunk along z is one task.
    path : Path
        A Zarr array of the same shape, whose chunks are as thin as one slice; the workers see it under the same name.
    dtype : dtype
        Of that array.
    todo : sequence of int
        The slices to write, in order.

    Yields
    ------
    Outcome
        Of one slice, in the order in which they are finished.

    Raises
    ------
    Lost
        The cluster is gone, or its workers die of one slice after the other.
    OutputError, OSError
        A worker cannot write.
    """
    from distributed import KilledWorker, as_completed

    name = uuid.uuid4().hex
    with dask.config.set({"distributed.admin.large-graph-warning-threshold": "1 TB"}):  # large, but sent once
        job = client.submit(_same, _Job(name, volume, path.absolute(), dtype), pure=False)
    pending = set(client.map(_write, list(slabs(volume, todo)), job=job, pure=False))
    try:
        for future in as_completed(list(pending)):
            slices = future.result()
            pending.remove(future)  # one that is held is done again if the worker that did it dies
            del future
            yield from slices
    except (CancelledError, KilledWorker) as error:
        what = "its workers die" if isinstance(error, KilledWorker) else "the connection to it is lost"
        raise Lost(f"the cluster did not finish, {what}: see its logs, and give the same command again") from error
    finally:
        if client.status == "running":
            client.cancel([job, *pending])
            if pending:
                client.run(_give_up, name, on_error="ignore")


@dataclass(frozen=True)
class _Job:
    name: str
    volume: da.Array
    path: Path
    dtype: np.dtype[Any]


def _same(job: _Job) -> _Job:
    """A task, unlike data that a client has scattered, is done again if the only worker that has it dies."""
    return job


def _write(slab: list[int], job: _Job) -> list[Outcome]:
    done: list[Outcome] = []
    for z, pixels in compute(job.volume, slab, "synchronous"):
        if isinstance(pixels, np.ndarray):
            with _writing:
                if job.name not in _given_up:
                    _put(job, z, pixels)
            done.append((z, None))
        else:
            done.append((z, pixels))
    return done


def _put(job: _Job, z: int, pixels: np.ndarray[Any, Any]) -> None:
    if not job.path.is_dir():
        raise OutputError(f"a worker on {gethostname()} does not see {job.path}: give a folder that all share")
    array: Any = zarr.open_array(job.path, mode="r+")
    array[z] = pixels.astype(job.dtype, copy=False)


def _give_up(name: str) -> None:
    """Have this worker write no more for a job, whose folder is about to be removed."""
    _given_up.add(name)
    with _writing:
        pass
