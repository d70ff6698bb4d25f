"""What a network states of itself, and what is assumed of one that does not state it."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

__all__ = ["Counted", "Network", "UsualUNet"]


@runtime_checkable
class Network(Protocol):
    """What prediction and training need to know of a network, which is an `nn.Module` besides.

    The module maps (N, `channels`, Y, X) float images, standardised slice by slice, to (N, `classes`, Y, X) logits.
    Give an architecture of your own these five attributes or properties; wrap somebody else's to add them.
    """

    @property
    def channels(self) -> int:
        """Number of input channels, odd: the slice between equally many neighbours below (at lower z) and above."""

    @property
    def classes(self) -> int:
        """Number of output channels, one for each class, background first."""

    @property
    def multiple(self) -> int:
        """Sides of an input must be multiples of this, in pixels."""

    @property
    def reach(self) -> int:
        """Radius of the receptive field in pixels: the smallest halo of a tile."""

    @property
    def k(self) -> int:
        """Number of channels at full resolution, from which the memory of a tile is estimated."""


class UsualUNet:
    """The `Network` that is assumed for a module that states nothing: values that suit the usual U-Nets."""

    channels: int = 1
    classes: int = 2
    multiple: int = 32
    reach: int = 128
    k: int = 64


@runtime_checkable
class Counted(Protocol):
    """A network that states its number of parameters, as one that is not computed by torch must."""

    @property
    def parameter_count(self) -> int:
        """Number of learnable parameters."""
