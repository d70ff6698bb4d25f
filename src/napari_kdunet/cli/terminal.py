"""Printing: results to the standard output, all else to the standard error, and control characters escaped."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Iterable
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from napari_kdunet.core.errors import OutputError, escape

if TYPE_CHECKING:
    from napari_kdunet.core import Tradeoff

__all__ = ["PIPE_EXIT_CODE", "console", "flush_results", "print_result", "print_table", "print_tradeoffs", "shorten"]

PIPE_EXIT_CODE = 141  # what a shell reports for SIGPIPE, the silent end of a command that ``head`` no longer reads
_MAX_LENGTH = 300  # characters of a message, whatever name or metadata it quotes
_NO_LIMIT = 10**6  # characters of a row of a table: a name that is cut or folded cannot be searched for


class _StandardError(io.TextIOBase):
    """The current `sys.stderr`; when that is full or closed, messages are lost but the work goes on."""

    @property
    def _stream(self) -> Any:
        return getattr(sys.stderr, "rich_proxied_file", sys.stderr)  # the stream behind rich's proxy

    def write(self, text: str) -> int:
        with suppress(OSError, ValueError):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with suppress(OSError, ValueError):
            self._stream.flush()

    def isatty(self) -> bool:
        return bool(self._stream.isatty())

    def fileno(self) -> int:
        return int(self._stream.fileno())

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return getattr(self._stream, "encoding", None) or "utf-8"


class _Console(Console):
    """A console that escapes control characters; nothing is parsed as markup, as a path may hold square brackets."""

    def print(self, *objects: Any, **options: Any) -> None:
        """Print one line of text like `Console.print`, escaped."""
        super().print(*(escape(thing) if isinstance(thing, str) else thing for thing in objects), **options)


_stderr: Any = _StandardError()
#: Console for everything but results.
console = _Console(file=_stderr, highlight=False, soft_wrap=True, markup=False, emoji=False)


def shorten(text: str) -> str:
    """Return a message of at most 300 characters, cut in the middle."""
    half = _MAX_LENGTH // 2
    return text if len(text) <= _MAX_LENGTH else f"{text[: half + 50]} ... {text[-half + 60 :]}"


def print_result(*lines: str) -> None:
    """Print lines to the standard output, and check that they arrive.

    Raises
    ------
    OutputError
        The standard output is full or closed.
    SystemExit
        The standard output is a pipe that is no longer read.
    """
    _print("".join(f"{escape(line)}\n" for line in lines))


def print_table(table: Table) -> None:
    """Print a table to the standard output, each row on one line; errors as in `print_result`.

    A terminal may wrap a row, but searching and copying still see one line.
    """
    text = io.StringIO()
    Console(file=text, width=_NO_LIMIT, soft_wrap=True, markup=False, emoji=False, highlight=False).print(table)
    _print("".join(f"{line.rstrip()}\n" for line in text.getvalue().splitlines()))


def print_tradeoffs(rows: Iterable[Tradeoff], title: str | None = None) -> None:
    """Print what networks cost and give as a table; errors as in `print_result`."""
    table = Table(title=title)
    for heading in ("", "k", "parameters", "file", "IoU", "s / megapixel"):
        table.add_column(heading, justify="left" if not heading else "right")
    for row in rows:
        size, speed = f"{row.file_bytes / 1e3:,.0f} kB", f"{row.seconds_per_megapixel:.3f}"
        table.add_row(row.name, str(row.k), f"{row.parameters:,}", size, f"{row.iou:.3f}", speed)
    print_table(table)


def flush_results() -> None:
    """Flush what libraries have printed, such as a help text; errors as in `print_result`."""
    _print("")


def _print(text: str) -> None:
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    try:
        sys.stdout.write(text.encode(encoding, "backslashreplace").decode(encoding))  # not always UTF-8 on Windows
        sys.stdout.flush()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "it is closed"
        with suppress(OSError, ValueError):  # else Python tries again at its exit, and complains
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if isinstance(error, BrokenPipeError):
            sys.exit(PIPE_EXIT_CODE)
        raise OutputError(f"cannot write to the standard output: {reason}") from error
