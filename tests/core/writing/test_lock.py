"""One writer a result, whether the other is another thread's, process's, container's or machine's."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import pytest

from folders import names
from napari_kdunet.core.errors import OutputError
from napari_kdunet.core.files import Process
from napari_kdunet.core.volumes.volume import open_volume
from napari_kdunet.core.writing.lock import TargetLock
from napari_kdunet.core.writing.writer import iter_write


def lock_of(path: Path, **process) -> Path:
    """A lock file as another process writes it; by default one of another machine, just renewed."""
    about = {"host": "node7", "pid": 1, "start": 1, "machine": "00000000", **process}
    lock = path.with_name(f".{path.name}.lock")
    lock.write_text(json.dumps({"token": "another", "process": about}))
    return lock


def quick(path: Path) -> TargetLock:
    return TargetLock(path, renew_interval=0.02, lost_timeout=0.3)


def test_it_is_held_and_released(tmp_path, one_line):
    with TargetLock(tmp_path / "a.zarr"):
        with one_line(OutputError, "a.zarr", f"process {os.getpid()}"), TargetLock(tmp_path / "a.zarr"):
            pass
        with TargetLock(tmp_path / "b.zarr"):
            pass
    with TargetLock(tmp_path / "a.zarr"):
        pass
    assert names(tmp_path) == []


def test_two_names_of_one_result(tmp_path):
    (tmp_path / "link.zarr").symlink_to(tmp_path / "a.zarr")
    with TargetLock(tmp_path / "a.zarr"), pytest.raises(OutputError), TargetLock(tmp_path / "link.zarr"):
        pass


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="the system does not say when a process started")
def test_a_process_with_our_number_at_another_time_is_dead(tmp_path):
    me = Process.current()
    assert me.is_alive
    lock_of(tmp_path / "a.zarr", host=me.host, pid=me.pid, start=me.start + 1, machine=me.machine)
    begin = time.monotonic()
    with TargetLock(tmp_path / "a.zarr"):
        assert time.monotonic() - begin < 1
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    lock_of(tmp_path / "a.zarr", host=me.host, pid=gone.pid, start=1, machine=me.machine)
    with TargetLock(tmp_path / "a.zarr"):
        assert time.monotonic() - begin < 2


def test_another_machine_that_renews_its_lock_is_alive(tmp_path, one_line, caplog):
    path = tmp_path / "a.zarr"
    lock = lock_of(path)
    done = threading.Event()

    def renew() -> None:
        while not done.wait(0.05):
            os.utime(lock)

    renewing = threading.Thread(target=renew)
    renewing.start()
    try:
        with one_line(OutputError, "a.zarr", "process 1 on node7 is writing it"), quick(path):
            pass
    finally:
        done.set()
        renewing.join()
    assert lock.exists()
    assert "node7" in caplog.text


def test_another_machine_that_does_not_is_dead_after_a_while(tmp_path):
    path = tmp_path / "a.zarr"
    lock_of(path)
    begin = time.monotonic()
    with quick(path):
        assert 0.2 < time.monotonic() - begin < 5
    os.utime(lock_of(path), (0, 0))
    begin = time.monotonic()
    with TargetLock(path):  # at once: it has been silent for long
        assert time.monotonic() - begin < 5


ME = '{"token": "a", "process": {"host": "h", "pid": %s, "start": 1, "machine": "m"}}'
CONTENTS = ["", "{", "[]", '"a"', "1e999", "[" * 100_000, '{"token": 1, "process": {}}', '{"process": 3}']
CONTENTS += [ME % pid for pid in ("0", "-1", '"1"', "null", "1.5", "[]")]


@pytest.mark.parametrize("content", CONTENTS)
def test_a_damaged_lock_holds_nobody_up(tmp_path, content):
    (tmp_path / ".a.zarr.lock").write_text(content)
    with TargetLock(tmp_path / "a.zarr"):
        pass
    assert names(tmp_path) == []


def test_a_pipe_in_the_place_of_a_lock_holds_nobody_up(tmp_path):
    os.mkfifo(tmp_path / ".a.zarr.lock")
    with TargetLock(tmp_path / "a.zarr"):
        pass
    assert names(tmp_path) == []


def test_a_lock_of_the_future_is_waited_for_no_longer_than_others(tmp_path):
    """Of a machine whose clock is wrong."""
    os.utime(lock_of(tmp_path / "a.zarr"), (2**32, 2**32))
    begin = time.monotonic()
    with quick(tmp_path / "a.zarr"):
        assert time.monotonic() - begin < 5


def test_whoever_was_taken_for_dead_notices(tmp_path, one_line):
    with TargetLock(tmp_path / "a.zarr") as lock:
        lock.check()
        lock.path.unlink()
        lock.check()  # only removed: it is made again
        assert lock.is_mine
        lock_of(tmp_path / "a.zarr")
        with one_line(OutputError, "a.zarr", "process 1 on node7 has taken over"):
            lock.check()
    assert lock.path.exists()  # the other's


@pytest.mark.skipif(os.geteuid() == 0, reason="root may list everything")
def test_a_folder_that_may_not_be_listed(tmp_path):
    tmp_path.chmod(0o300)
    try:
        with TargetLock(tmp_path / "a.zarr") as lock:
            assert lock.is_mine
    finally:
        tmp_path.chmod(0o700)
    assert names(tmp_path) == []


def test_a_result_that_another_has_taken_over_is_not_put_in_place(tmp_path, one_line):
    path = tmp_path / "out.zarr"
    writing = iter_write(np.ones((3, 4, 5), np.uint8), path)
    next(writing)
    lock = lock_of(path)
    with one_line(OutputError, "out.zarr", "node7"):
        list(writing)
    assert names(tmp_path) == [lock.name]


@pytest.fixture
def threads_by_turns() -> Iterator[None]:
    """Threads that give way to one another nearly everywhere."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before)


@pytest.mark.usefixtures("threads_by_turns")
def test_many_at_once(tmp_path):
    """Of threads that want it at the same time one gets it, though a dead one had it."""
    start, held, rounds = threading.Barrier(8), [], 100

    def want() -> None:
        start.wait()
        with suppress(OutputError), TargetLock(tmp_path / "a.zarr") as lock:
            held.append(lock.is_mine)
            everybody.wait(10)

    for _ in range(rounds):
        os.utime(lock_of(tmp_path / "a.zarr"), (0, 0))
        everybody = threading.Event()
        threads = [threading.Thread(target=want) for _ in range(8)]
        for thread in threads:
            thread.start()
        deadline = time.monotonic() + 5
        while sum(thread.is_alive() for thread in threads) > 1 and time.monotonic() < deadline:
            threads[0].join(0.001)
        everybody.set()
        for thread in threads:
            thread.join()
    assert held == [True] * rounds
    assert names(tmp_path) == []


WRITER = """
import sys
import numpy as np
from napari_kdunet.core.writing.writer import iter_write
for z, done in iter_write(np.load(sys.argv[1]), sys.argv[2], resume_key="this"):
    print(z, done, flush=True)
    if z == 2:
        sys.stdin.readline()
"""
NAMESPACE = ("unshare", "--pid", "--fork", "--mount-proc", "--kill-child")


def has_namespaces() -> bool:
    try:
        return subprocess.run([*NAMESPACE, "true"], check=False, capture_output=True).returncode == 0
    except OSError:
        return False


@contextmanager
def container(argv) -> Iterator[subprocess.Popen[str]]:
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen([*NAMESPACE, *map(str, argv)], text=True, **pipes) as process:
        yield process


@pytest.mark.skipif(not has_namespaces(), reason="PID namespaces cannot be made here")
def test_two_containers_write_the_same_zarr(tmp_path):
    """In both the writer is process 1."""
    pixels = np.random.default_rng(0).integers(0, 255, (5, 30, 40), dtype=np.uint8)
    np.save(tmp_path / "pixels.npy", pixels)
    folder = tmp_path / "out"
    folder.mkdir()
    path = folder / "out.zarr"
    argv = [sys.executable, "-c", WRITER, tmp_path / "pixels.npy", path]
    with container(argv) as first:
        assert [first.stdout.readline() for _ in range(3)] == ["0 1\n", "1 2\n", "2 3\n"]
        with container(argv) as second:
            _, err = second.communicate(timeout=60)
        assert second.returncode == 1
        assert "process 1 on " in err.splitlines()[-1]
        assert "is writing it" in err.splitlines()[-1]
        out, err = first.communicate("\n", timeout=60)
        assert (first.returncode, out, err) == (0, "3 4\n4 5\n", "")
    np.testing.assert_array_equal(np.asarray(open_volume(path)), pixels)
    assert names(folder) == ["out.zarr"]

    path = folder / "killed.zarr"
    argv[-1] = path
    with container(argv) as first:
        assert [first.stdout.readline() for _ in range(3)] == ["0 1\n", "1 2\n", "2 3\n"]
        first.send_signal(signal.SIGKILL)
        first.wait()
    os.utime(folder / ".killed.zarr.lock", (0, 0))  # some time later
    with container(argv) as second:
        out, err = second.communicate("\n", timeout=60)
        assert (second.returncode, out, err) == (0, "3 4\n4 5\n", "")
    np.testing.assert_array_equal(np.asarray(open_volume(path)), pixels)
    assert names(folder) == ["killed.zarr", "out.zarr"]
