"""The command line: shows the events of the core as progress bars, tables and figures, and writes files."""

import atexit

from napari_kdunet.cli.signals import exit_at_once, handle, handling, stop_command

__all__ = ["main"]


def main() -> None:
    """Run the command line; see `commands.run` for its exit codes.

    Signals are handled before the commands are imported: one in the first half second counts, too.
    """
    with handling(exit_at_once):
        atexit.unregister(handle)
        atexit.register(handle, exit_at_once)  # libraries take a while to end
        from napari_kdunet.cli.commands import run

        with handling(stop_command(main.__code__)):
            run()
