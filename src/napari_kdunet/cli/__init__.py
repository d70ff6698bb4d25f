"""The command line: events of the core become progress bars, tables, figures and files."""

from napari_kdunet.cli.commands import app, main

__all__ = ["app", "main"]
