"""The script of the live figures: the files in `_assets/live/` joined into one, which also a page on disk can load."""

from pathlib import Path

FOLDER = Path(__file__).parents[1] / "_assets" / "live"
PARTS = ["kernel", "dynamics", "networks", "engine"]  # each uses those before it


def script():
    """All parts, in a scope of their own."""
    sources = [(FOLDER / f"{part}.js").read_text(encoding="utf-8") for part in PARTS]
    return "(() => {\n'use strict'\n" + "\n".join(sources) + "})()\n"
