"""Write a prediction to a file, with metadata that is known once the whole volume has been read."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import closing
from pathlib import Path
from typing import Any

from napari_kdunet.core.volumes.volume import Volume
from napari_kdunet.core.writing.writer import Written, iter_write

__all__ = ["iter_write_prediction"]


def iter_write_prediction(
    result: Any, volume: Volume, path: str | Path, *, metadata: dict[str, Any], **how: Any
) -> Generator[Written, None, None]:
    """Write a prediction of `volume` as `iter_write` does, with a list of slices without an image in its metadata.

    The list is `metadata` ``["lost"]``. It is complete, and in `metadata`, when the last slice is yielded.
    """
    with closing(iter_write(result, path, metadata=metadata, **how)) as slices:
        for written in slices:
            if written.done == len(volume) and (lost := volume.lost_slices()):
                metadata["lost"] = lost
            yield written
