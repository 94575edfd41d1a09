"""Warn, with chapter and line, about what would pass in silence: a failed cell, a figure without alt text.

With ``-W`` each warning fails the build.
"""

from docutils import nodes
from sphinx.util import logging

logger = logging.getLogger(__name__)


def _check(app, doctree):
    for block in doctree.findall(nodes.literal_block):
        if "traceback" in block["classes"]:
            error = block.astext().strip().splitlines()[-1]
            logger.warning("the cell fails: %s", error, location=block, type="strict", subtype="cell")
    for image in doctree.findall(nodes.image):
        if not image.get("alt", "").strip():
            logger.warning(
                "the figure has no alt text; say in words what it shows (for a code cell: mystnb, image, alt)",
                location=image,
                type="strict",
                subtype="alt",
            )


def setup(app):
    app.connect("doctree-read", _check)
    return {"parallel_read_safe": True}
