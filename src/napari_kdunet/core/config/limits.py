"""What settings, model files and predictions allow alike."""

from __future__ import annotations

from napari_kdunet.core.errors import ConfigError

__all__ = ["LEAST_PIXEL_SIZE", "VIEWS", "check_views"]

VIEWS = (1, 2, 4, 8)
"""Numbers of mirror images and quarter turns that logits can be averaged over; see `core.prediction.tta`."""


def check_views(views: int) -> None:
    """Raise a `ConfigError` if `views` is not one of `VIEWS`."""
    if views not in VIEWS:
        raise ConfigError(f"views is {views}: choose {', '.join(map(str, VIEWS[:-1]))} or {VIEWS[-1]}.")


LEAST_PIXEL_SIZE = 0.1
"""Smallest working pixel size in nm other than 0 (the image's own): less would enlarge an image beyond all measure."""
