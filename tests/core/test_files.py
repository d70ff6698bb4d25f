"""What stands under the final name is whole: the new, or else the old, and nothing is left beside it."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from folders import names
from napari_kdunet.core.errors import ModelError, OutputError, VolumeError
from napari_kdunet.core.files import replacing, write_bytes


def make(path: Path, kind: str, text: str) -> None:
    """A file, or a folder with files, that holds the text."""
    if kind == "file":
        path.write_text(text)
    else:
        (path / "inner").mkdir(parents=True)
        (path / "inner" / "chunk").write_text(text)


def broken_off(path: Path, kind: str, error: BaseException) -> None:
    with replacing(path) as temporary:
        make(temporary, kind, "new")
        raise error


def content(path: Path) -> str:
    return (path if path.is_file() else path / "inner" / "chunk").read_text()


kinds = pytest.mark.parametrize("kind", ["file", "folder"])


@kinds
@pytest.mark.parametrize("old", [True, False])
def test_takes_its_place_at_the_end(tmp_path, kind, old):
    path = tmp_path / "out.zarr"
    if old:
        make(path, kind, "old")
    with replacing(path) as temporary:
        assert temporary.parent == path.parent
        assert temporary.name.startswith(".")
        assert temporary.suffix == path.suffix
        make(temporary, kind, "new")
        assert content(path) == "old" if old else not path.exists()
    assert content(path) == "new"
    assert names(tmp_path) == ["out.zarr"]


@kinds
@pytest.mark.parametrize("old", [True, False])
@pytest.mark.parametrize(
    "error",
    [KeyboardInterrupt(), GeneratorExit(), ValueError("x"), VolumeError("x"), ModelError("x"), OutputError("x")],
)
def test_other_errors_pass_as_they_are(tmp_path, kind, old, error):
    path = tmp_path / "out.zarr"
    if old:
        make(path, kind, "old")
    with pytest.raises(type(error)) as caught:
        broken_off(path, kind, error)
    assert caught.value is error
    assert error.__cause__ is None
    assert names(tmp_path) == (["out.zarr"] if old else [])
    assert not old or content(path) == "old"


@kinds
def test_os_errors_are_one_line_with_the_final_name(tmp_path, kind):
    path = tmp_path / "out.zarr"
    make(path, kind, "old")
    reason = os.strerror(errno.ENOSPC)
    with pytest.raises(OutputError) as caught:
        broken_off(path, kind, OSError(errno.ENOSPC, reason, "some/temporary"))
    assert str(caught.value) == f"cannot write {path}: {reason}; make room or choose another folder"
    assert isinstance(caught.value.__cause__, OSError)
    with pytest.raises(OutputError, match="two lines; make room"):
        broken_off(path, kind, OSError("two\nlines"))
    assert names(tmp_path) == ["out.zarr"]
    assert content(path) == "old"


def test_a_generator_that_is_closed(tmp_path):
    def work():
        with replacing(tmp_path / "out.tif") as temporary:
            temporary.write_text("half")
            yield

    generator = work()
    next(generator)
    assert len(names(tmp_path)) == 1
    generator.close()
    assert names(tmp_path) == []


@pytest.mark.parametrize("step", ["old", "part"])
def test_a_swap_that_fails_puts_the_old_folder_back(tmp_path, monkeypatch, step):
    path = tmp_path / "out.zarr"
    make(path, "folder", "old")
    rename = Path.rename

    def fail(self, target):
        if f".{step}-" in (target.name if step == "old" else self.name):
            raise PermissionError(errno.EACCES, "Permission denied")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fail)
    with pytest.raises(OutputError, match="Permission denied"), replacing(path) as temporary:
        make(temporary, "folder", "new")
    assert names(tmp_path) == ["out.zarr"]
    assert content(path) == "old"


@pytest.mark.parametrize(("old", "new"), [("folder", "file"), ("file", "folder")])
def test_files_and_folders_do_not_replace_each_other(tmp_path, old, new):
    path = tmp_path / "out"
    make(path, old, "old")
    with pytest.raises(OutputError, match="cannot write"), replacing(path) as temporary:
        make(temporary, new, "new")
    assert names(tmp_path) == ["out"]
    assert content(path) == "old"


@kinds
@pytest.mark.parametrize("old", [True, False])
def test_a_link_is_followed(tmp_path, kind, old):
    path, elsewhere = tmp_path / "here" / "out.zarr", tmp_path / "there" / "real.zarr"
    path.parent.mkdir()
    elsewhere.parent.mkdir()
    if old:
        make(elsewhere, kind, "old")
    try:
        path.symlink_to(elsewhere, target_is_directory=kind == "folder")
    except OSError:
        pytest.skip("no permission to make links")  # Windows
    with replacing(path) as temporary:
        make(temporary, kind, "new")
        assert temporary.parent == elsewhere.parent
    assert path.is_symlink()
    assert content(path) == content(elsewhere) == "new"
    assert names(tmp_path / "here") == ["out.zarr"]
    assert names(tmp_path / "there") == ["real.zarr"]


KILLED = """
import pathlib, signal, os, sys
from napari_kdunet.core.files import replacing
with replacing(pathlib.Path(sys.argv[1])) as temporary:
    temporary.write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.skipif(os.name != "posix", reason="there is no such signal")
def test_what_a_killed_process_left_is_removed(tmp_path):
    path = tmp_path / "m.safetensors"
    write_bytes(path, b"old")
    for _ in range(2):
        assert subprocess.run([sys.executable, "-c", KILLED, path], check=False).returncode == -signal.SIGKILL
    assert len(names(tmp_path)) == 2  # the second has removed what the first left
    with replacing(path) as temporary:  # one that is alive keeps its own
        temporary.write_text("of a living process")
        write_bytes(path, b"new")
        assert temporary.exists()
    assert names(tmp_path) == [path.name]


def test_what_is_not_known_to_be_dead_stays_for_a_day(tmp_path):
    other = tmp_path / ".m.part-7-7f-00000000-abcdef.safetensors"  # of another machine
    similar = tmp_path / ".m.part-7-7f-00000000-abcdef.txt.safetensors"
    for file in (other, similar):
        file.write_bytes(b"half")
    write_bytes(tmp_path / "m.safetensors", b"new")
    assert other.exists()
    os.utime(other, (0, 0))
    os.utime(similar, (0, 0))
    write_bytes(tmp_path / "m.safetensors", b"new")
    assert names(tmp_path) == [similar.name, "m.safetensors"]


def test_killed_between_the_two_renames_of_a_folder(tmp_path):
    path = tmp_path / "out.zarr"
    make(tmp_path / ".out.zarr.old-kdunet", "folder", "old")
    broken_off_quietly(path)
    assert names(tmp_path) == ["out.zarr"]
    assert content(path) == "old"


def broken_off_quietly(path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        broken_off(path, "folder", KeyboardInterrupt())


def test_nothing_written_is_an_error(tmp_path):
    with pytest.raises(OutputError, match=r"out\.tif"), replacing(tmp_path / "out.tif"):
        pass


def test_write_bytes(tmp_path):
    path = tmp_path / "m.safetensors"
    write_bytes(path, b"old")
    write_bytes(path, b"new")
    assert path.read_bytes() == b"new"
    assert names(tmp_path) == [path.name]
    with pytest.raises(OutputError, match="cannot write"):
        write_bytes(tmp_path / "no" / "m.safetensors", b"new")
    with pytest.raises(OutputError, match="cannot write"):
        write_bytes(tmp_path, b"new")
    assert path.read_bytes() == b"new"


def test_write_bytes_to_a_disk_that_is_full_at_the_end(tmp_path, monkeypatch):
    path = tmp_path / "m.safetensors"
    write_bytes(path, b"old")

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OutputError, match="No space left on device; make room"):
        write_bytes(path, b"new")
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == [path.name]


def test_write_bytes_to_a_disk_that_is_full_half_way(tmp_path):
    resource = pytest.importorskip("resource", reason="not on Windows")
    path = tmp_path / "m.safetensors"
    write_bytes(path, b"old")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, hard))  # no file may grow beyond
    try:
        with pytest.raises(OutputError, match="cannot write"):
            write_bytes(path, bytes(100_000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == [path.name]
