"""The models of a session on disk, so that neither a crash nor closing napari loses what was trained."""

from __future__ import annotations

import os
import re
import time
from contextlib import suppress
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import platformdirs

from napari_kdunet.core.files import make_folder

if TYPE_CHECKING:
    from napari_kdunet.core import Model

__all__ = ["KEPT_DAYS", "SessionFolder"]

#: Days after which a model is deleted from the folder of an earlier session.
KEPT_DAYS = 30

_STAMP = "%Y-%m-%dT%H-%M-%S"
_LONGEST = 100  # characters of a file name


class SessionFolder:
    """The folder of this session's models, and the models of earlier sessions.

    Parameters
    ----------
    root : Path, optional
        Folder of all sessions; by default in the user's data directory.

    Attributes
    ----------
    folder : Path
        Folder of this session; it is created when its first model is written.
    """

    def __init__(self, root: Path | None = None) -> None:
        self.root = root or Path(platformdirs.user_data_dir("napari-kdunet", appauthor=False)) / "sessions"
        self.folder = self.root / f"{datetime.now():{_STAMP}} {os.getpid()}"
        self._taken: set[Path] = set()

    def new_path(self, name: str) -> Path:
        """Return where to write a model of this name: another path at each call."""
        stem = re.sub(r"[^\w .()-]", "_", name)[:_LONGEST].strip(" .") or "model"
        path, number = self.folder / f"{stem}.safetensors", 2
        while path in self._taken:
            path, number = self.folder / f"{stem} {number}.safetensors", number + 1
        self._taken.add(path)
        return path

    def write(self, model: Model, path: Path) -> None:
        """Write a model to a path from `new_path`, replacing an earlier one; may be called from any thread.

        Raises
        ------
        OutputError
            If the model cannot be written.
        """
        make_folder(path.parent)
        model.save(path)

    @cached_property
    def earlier(self) -> dict[str, Path]:
        """Models of earlier sessions, the latest first, by name and date; those older than `KEPT_DAYS` are deleted."""
        found: list[tuple[datetime, float, Path]] = []
        for path in self.root.glob("*/*.safetensors"):
            if path.parent == self.folder:
                continue
            with suppress(OSError, ValueError):  # just deleted by another napari, or not in the folder of a session
                began = datetime.strptime(path.parent.name.partition(" ")[0], _STAMP)
                written = path.stat().st_mtime
                if time.time() - written > KEPT_DAYS * 86_400:
                    _delete(path)
                elif not path.name.startswith("."):  # hidden: half a model, of a napari that was killed while it wrote
                    found.append((began, written, path))
        found.sort(reverse=True)
        return {f"{path.stem} (session of {began:%Y-%m-%d %H:%M:%S})": path for began, _, path in found}


def _delete(path: Path) -> None:
    """Delete a model, and then the folder of its session if that is empty."""
    path.unlink()
    with suppress(OSError):  # the folder holds other models
        path.parent.rmdir()
