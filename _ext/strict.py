"""Warn, with chapter and line, about what would pass in silence: a failed cell, a figure without alt text.

With ``-W`` each warning fails the build.
"""

import re
from pathlib import Path

from docutils import nodes
from sphinx.util import logging

logger = logging.getLogger(__name__)
NO_ALT = "the figure has no alt text; say what it shows (for a cell: mystnb, image, alt)"
IMG, ALT = re.compile(r"<img\b[^>]*>"), re.compile(r"""\balt=["']?[^"'\s>]""")
CELL = re.compile(r"[`~:]{3,}\{code-cell\}")


def _check(app, doctree):
    path = Path(app.env.doc2path(app.env.docname))
    for block in doctree.findall(nodes.literal_block):
        if "traceback" in block["classes"]:
            _warn("cell", path, block, "the cell fails: " + block.astext().strip().splitlines()[-1])
    for image in doctree.findall(nodes.image):
        if not image.get("alt", "").strip():
            _warn("alt", path, image, NO_ALT)
    for raw in doctree.findall(nodes.raw):
        if any(not ALT.search(tag) for tag in IMG.findall(raw.astext())):
            _warn("alt", path, raw, NO_ALT)


def _warn(subtype, path, node, message):
    logger.warning("%s", message, location=f"{path}:{_line(path, node)}", type="strict", subtype=subtype)


def _line(path, node):
    """Line where a node begins; for the output of a cell, where the cell does (its nodes are off by a few lines)."""
    lineage = [node]
    while lineage[-1].parent is not None:
        lineage.append(lineage[-1].parent)
    line = next((ancestor.line for ancestor in lineage if ancestor.line), 1)
    if not any("cell" in ancestor.get("classes", []) for ancestor in lineage):
        return line
    lines = path.read_text(encoding="utf-8").splitlines()[:line]
    return max(number for number, text in enumerate(lines, 1) if CELL.match(text))


def setup(app):
    app.connect("doctree-read", _check)
    return {"parallel_read_safe": True}
