"""What a network says of itself, and what is assumed of one that does not say."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

__all__ = ["Counted", "Network", "UsualUNet"]


@runtime_checkable
class Network(Protocol):
    """What prediction and training ask a network about itself, beside that it is an `nn.Module`.

    The module maps (N, `channels`, Y, X) float images, standardised slice by slice, to (N, `classes`, Y, X) logits.
    An architecture of one's own has these five attributes or properties; a wrapper adds them to somebody else's.
    """

    @property
    def channels(self) -> int:
        """Input channels, an odd number: the slice itself, between as many neighbours below (at lower z) and above."""

    @property
    def classes(self) -> int:
        """Output channels, one a class, background first."""

    @property
    def multiple(self) -> int:
        """Sides of an input must be multiples of this, in pixels."""

    @property
    def reach(self) -> int:
        """Radius of the receptive field in pixels: the least halo of a tile."""

    @property
    def k(self) -> int:
        """Channels at full resolution, to estimate the memory of a tile with."""


class UsualUNet:
    """The `Network` that is assumed where a module does not say: these suit the usual U-Nets."""

    channels: int = 1
    classes: int = 2
    multiple: int = 32
    reach: int = 128
    k: int = 64


@runtime_checkable
class Counted(Protocol):
    """A network that knows how many parameters it has, as one that torch does not compute must."""

    @property
    def parameter_count(self) -> int:
        """Number of learnable parameters."""
