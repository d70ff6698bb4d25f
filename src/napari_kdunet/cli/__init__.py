"""The command line: shows the events of the core as progress bars, tables and figures, and writes files."""

import atexit
import gc
import os
import sys

from napari_kdunet.cli.signals import exit_at_once, handle, handling, stop_command

__all__ = ["main"]


def main() -> None:
    """Run the command line; see `commands.run` for its exit codes.

    Signals are handled before the commands are imported, so that one in the first half second counts too.
    """
    _replace_closed_streams()
    atexit.unregister(gc.freeze)
    atexit.register(gc.freeze)  # modules are not looked through for garbage when all of them are about to go
    with handling(exit_at_once):
        atexit.unregister(handle)
        atexit.register(handle, exit_at_once)  # libraries take a while to end
        from napari_kdunet.cli.commands import run

        with handling(stop_command(main.__code__)):
            run()


def _replace_closed_streams() -> None:
    """Replace each closed standard stream, where Python has None, by one on which writing fails as on a full disk.

    The replacement takes the stream's file descriptor: the next file opened would get it otherwise, and with it all
    that is printed.
    """
    for name in ("stdin", "stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_RDONLY)))
