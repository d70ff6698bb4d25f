"""Write the table of formats in docs/formats.md from the table of readers, so that the two cannot drift."""

from __future__ import annotations

import re
from pathlib import Path

from napari_kdunet.core.reading.readers import FORMATS

DOCUMENT = Path(__file__).parents[1] / "docs" / "formats.md"


def table() -> str:
    """Return one row per format: its endings, what is taken from its metadata, and the extra that it needs."""
    rows = ["| format | endings | taken from its metadata | needs |", "|---|---|---|---|"]
    for row in FORMATS:
        endings = " ".join(f"`{ending}`" for ending in row.endings) or "a folder"
        rows.append(f"| {row.title} | {endings} | {row.metadata} | {'`formats`' if row.needs else ''} |")
    return "\n".join(rows) + "\n"


if __name__ == "__main__":
    text = re.sub(r"\| format \|.*?\n(?!\|)", lambda _: table(), DOCUMENT.read_text(), flags=re.DOTALL)
    DOCUMENT.write_text(text)
