"""The command line: shows the events of the core as progress bars, tables and figures, and writes files."""

from napari_kdunet.cli.commands import app, main

__all__ = ["app", "main"]
