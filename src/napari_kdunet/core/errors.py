"""The exceptions, in one tree.

::

    KDUNetError
    ├── InputError            the user's input is wrong: the message says which and what to do
    │   ├── ConfigError       a setting is out of bounds
    │   ├── VolumeError       an image volume cannot be used
    │   │   └── ChoiceError       a file holds several volumes, and none has been chosen
    │   ├── LabelsError       a labels volume cannot be used
    │   │   └── UnlabelledError   foreground or background is not labelled in it, yet
    │   └── ModelError        a model file cannot be used
    ├── OutputError           a result cannot be written (disk full, no permission, unknown ending)
    └── TrainingError         training cannot go on
        ├── DivergedError     the loss is no longer finite
        └── CollapsedError    the network gives (nearly) the same output everywhere

Every message is one line that names the input and says what to do next; the command line prints it as
it is and exits with 2 for an `InputError` or an `OutputError`, and with 1 for a `TrainingError`. It has fewer than
300 characters and no control characters, which a terminal would obey, whatever a file or a name holds.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

__all__ = [
    "ChoiceError",
    "CollapsedError",
    "ConfigError",
    "DivergedError",
    "InputError",
    "KDUNetError",
    "LabelsError",
    "ModelError",
    "OutputError",
    "TrainingError",
    "UnlabelledError",
    "VolumeError",
    "escape",
    "is_out_of_memory",
    "one_line",
]

_LONGEST = 290  # characters of a message: with the "error: " of the command line it is under 300
_END = 90  # characters kept from the end of a longer message, where it says what to do


class KDUNetError(Exception):
    """Anything that napari-kdunet raises on purpose."""

    def __init__(self, message: str = "") -> None:
        super().__init__(_bounded(message))


def escape(text: str) -> str:
    r"""Return text with control characters, which a terminal would obey, spelt out: an escape becomes ``\x1b``."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def one_line(error: Exception) -> str:
    """Return the message of an exception on one line, or the name of its type if it has none."""
    return " ".join(str(error).split()) or type(error).__name__


def _bounded(message: str) -> str:
    """Return a message escaped and, if it is too long, without its middle."""
    message = escape(message)
    if len(message) <= _LONGEST:
        return message
    return f"{message[: _LONGEST - _END - 5]} ... {message[-_END:]}"


class InputError(KDUNetError):
    """The user's input is wrong."""


class ConfigError(InputError):
    """A setting is out of bounds or of the wrong kind."""


class VolumeError(InputError):
    """An image volume is missing, unreadable or of a form that cannot be used."""


class ChoiceError(VolumeError):
    """A file holds several volumes, channels or time points, and none has been chosen.

    Attributes
    ----------
    argument : str
        The argument of `open_volume` that chooses: ``source``, ``channel`` or ``time``.
    choices : tuple
        The values that it accepts.
    """

    def __init__(self, message: str, argument: str = "", choices: Iterable[Any] = ()) -> None:
        super().__init__(message)
        self.argument, self.choices = argument, tuple(choices)


class LabelsError(InputError):
    """A labels volume does not fit its image or holds nothing to learn from."""


class UnlabelledError(LabelsError):
    """Foreground or background is not labelled anywhere, yet.

    Attributes
    ----------
    missing : str
        ``foreground`` or ``background``, or ``both`` if nothing is labelled.
    labels : str
        Name of the labels volume, or names of several.
    slices : tuple of int
        z of the slices in which it is missing; empty if it is missing in all, or there are several volumes.
    """

    def __init__(
        self,
        message: str,
        missing: Literal["foreground", "background", "both"] = "foreground",
        labels: str = "",
        slices: Iterable[int] = (),
    ) -> None:
        super().__init__(message)
        self.missing, self.labels, self.slices = missing, labels, tuple(slices)


class ModelError(InputError):
    """A model file is missing, damaged or not one of ours."""


class OutputError(KDUNetError):
    """A result cannot be written."""


class TrainingError(KDUNetError):
    """Training cannot go on.

    Attributes
    ----------
    model : Model or None
        The last good model, where there is one.
    """

    def __init__(self, message: str, model: Any = None) -> None:
        super().__init__(message)
        self.model = model


class DivergedError(TrainingError):
    """The loss is no longer finite."""


class CollapsedError(TrainingError):
    """The network gives (nearly) the same output everywhere."""


#: Words in error messages that mean that memory ran out, of torch, of threads, and of libraries being loaded: these
#: errors have no type of their own.
_OUT_OF_MEMORY = (
    "out of memory",
    "can't allocate memory",
    "cannot allocate memory",
    "can't start new thread",
    "failed to map segment",
)


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error, or one that it was raised from, means that memory ran out.

    The memory may be Python's, the GPU's or the CPU's; most libraries tell by words and not by a type.
    """
    words = str(error).lower()
    return (
        isinstance(error, MemoryError)
        or (isinstance(error, RuntimeError | ImportError | OSError) and any(each in words for each in _OUT_OF_MEMORY))
        or (error.__cause__ is not None and is_out_of_memory(error.__cause__))
    )
