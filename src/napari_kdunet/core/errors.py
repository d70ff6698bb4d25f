"""What can go wrong, one tree.

::

    KDUNetError
    ├── InputError            the user's input is wrong: the message says which and what to do
    │   ├── ConfigError       a setting is out of bounds
    │   ├── VolumeError       an image volume cannot be used
    │   │   └── ChoiceError       a file holds more than one: say which
    │   ├── LabelsError       a labels volume cannot be used
    │   │   └── UnlabelledError   it can, once foreground and background are labelled in it
    │   └── ModelError        a model file cannot be used
    ├── OutputError           a result cannot be written (disk full, no permission, unknown ending)
    └── TrainingError         training cannot go on
        ├── DivergedError     the loss is no longer finite
        └── CollapsedError    the network gives (nearly) the same output everywhere

Every message is one line that names the input and says what to do next; the command line prints it as
it is and exits with 2 for an `InputError` or an `OutputError`, and with 1 for a `TrainingError`. It has less than
300 characters and none that a terminal would obey, whatever a file or a name holds.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

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
_END = 90  # of them from its end, where it says what to do


class KDUNetError(Exception):
    """Anything that napari-kdunet raises on purpose."""

    def __init__(self, message: str = "") -> None:
        super().__init__(_bounded(message))


def escape(text: str) -> str:
    r"""Text without control characters, which a terminal would obey: ``\x1b`` for an escape, ``\n`` for a new line."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def one_line(error: Exception) -> str:
    """The message of an exception on one line; its type where it has none."""
    return " ".join(str(error).split()) or type(error).__name__


def _bounded(message: str) -> str:
    """An escaped message, of which the middle is left out where it is too long."""
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
        What may be given for it.
    """

    def __init__(self, message: str, argument: str = "", choices: Iterable[Any] = ()) -> None:
        super().__init__(message)
        self.argument, self.choices = argument, tuple(choices)


class LabelsError(InputError):
    """A labels volume does not fit its image or holds nothing to learn from."""


class UnlabelledError(LabelsError):
    """Foreground or background is not labelled anywhere, yet."""


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


#: What errors without a type of their own say where memory ran out: torch, threads, and libraries that are loaded.
_OUT_OF_MEMORY = (
    "out of memory",
    "can't allocate memory",
    "cannot allocate memory",
    "can't start new thread",
    "failed to map segment",
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out: Python's, the GPU's, or the CPU's, for which most libraries have words but no type.

    Of an error that was raised from another, either may say so.
    """
    words = str(error).lower()
    return (
        isinstance(error, MemoryError)
        or (isinstance(error, RuntimeError | ImportError | OSError) and any(each in words for each in _OUT_OF_MEMORY))
        or (error.__cause__ is not None and is_out_of_memory(error.__cause__))
    )
