"""Write what a model makes of a volume to a file, with what is known of the volume at its end."""

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
    """Write a prediction of `volume` as `iter_write`; slices that hold no image stand in its metadata as ``lost``.

    They are known, and `metadata` has them, once the last slice is yielded.
    """
    with closing(iter_write(result, path, metadata=metadata, **how)) as slices:
        for written in slices:
            if written.done == len(volume) and (lost := volume.lost_slices()):
                metadata["lost"] = lost
            yield written
