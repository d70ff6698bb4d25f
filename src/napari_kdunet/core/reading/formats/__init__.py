"""Readers of file formats, one a file; `readers` has the table of them."""
